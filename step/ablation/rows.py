"""What is compared, as data: groups of rows that differ from CRT in one thing.

CRT is the run without changes, which is `--preset demo` unless more options are given. Braces in
titles and changes stand for its options, so that they stay true when these change.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from misc.config import flatten
from step.options import Options


@dataclass(frozen=True)
class Row:
    """One way to make masks.

    Attributes:
        name: as it is typed, and of its folder.
        title: in the table.
        changes: options that differ from CRT, as they are typed.
        walks: whether IRNet's random walk makes the masks. Without it they are the CAMs themselves
            at the background score of the masks, at the size of the picture.
    """

    name: str
    title: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    walks: bool = True


CRT = Row("crt", "CRT")


@dataclass(frozen=True)
class Group:
    """Rows to be read together.

    Attributes:
        title: what differs.
        crt: what CRT is called here.
        shows: the question, or what has to be known, in a sentence.
        rows: the others; CRT closes the group.
    """

    title: str
    crt: str
    shows: str
    rows: tuple[Row, ...]

    def members(self) -> tuple[tuple[str, Row], ...]:
        """Titles and rows, CRT as the last."""
        return (*((row.title, row) for row in self.rows), (f"{self.crt} (CRT)", CRT))


CNN = Row("cnn", "CNN alone", {"cam_lambda": 0, "cam_fusion": "cnn"})
TRANSFORMER = Row(
    "transformer", "transformer alone", {"cam_lambda": 0, "cam_fusion": "transformer"}
)
GROUPS = (
    Group(
        "Branches",
        "both with refinement",
        "Alone means trained without the L1 loss between the branches; the paper says that the CNN "
        "alone sees parts (low recall) and the transformer alone too much (low precision).",
        (CNN, TRANSFORMER),
    ),
    Group(
        "Passes",
        "{num_passes} passes",
        "How often the tokens pass the same blocks of the transformer.",
        (
            Row("passes1", "1 pass", {"num_passes": 1}),
            Row("passes2", "2 passes", {"num_passes": 2}),
        ),
    ),
    Group(
        "Tiles",
        "tiles of {tile_size} pixels every {tile_stride}",
        "The whole training crop is one input of the transformer, at the same scale; larger "
        "pictures are then cut into such windows side by side.",
        (
            Row(
                "whole",
                "whole crop of {cam_crop_size} pixels",
                {"tile_size": "{cam_crop_size}", "tile_stride": "{cam_crop_size}"},
            ),
        ),
    ),
    Group(
        "Refinement",
        "lambda {cam_lambda:g}",
        "Weight of the L1 loss between the maps of the branches.",
        (
            Row("lambda0.01", "lambda 0.01", {"cam_lambda": 0.01}),
            Row("lambda1", "lambda 1", {"cam_lambda": 1}),
        ),
    ),
    Group(
        "Fusion",
        "{cam_fusion}",
        "Whose maps of the one training become the CAMs.",
        (
            Row("fusion_cnn", "cnn", {"cam_fusion": "cnn"}),
            Row("fusion_mean", "mean", {"cam_fusion": "mean"}),
            Row("fusion_max", "max", {"cam_fusion": "max"}),
        ),
    ),
    Group(
        "Random walk",
        "on",
        "Off: the masks are the CAMs at the background score of the masks, without IRNet.",
        (Row("walk_off", "off", {"cam_eval_thres": "{sem_seg_bg_thres}"}, walks=False),),
    ),
    Group(
        "IR labels",
        "CRF of {crf_iterations} steps, background scores {conf_bg_thres:g} and {conf_fg_thres:g}",
        "Pixels between the two background scores teach IRNet nothing.",
        (
            Row("crf_off", "no CRF", {"crf_iterations": 0}),
            Row(
                "narrow",
                "background scores 0.2 and 0.3",
                {"conf_bg_thres": 0.2, "conf_fg_thres": 0.3},
            ),
        ),
    ),
)
ROWS = (CRT, *(row for group in GROUPS for row in group.rows))
"""Every row once; one that shares a training with others stands behind the one that does it."""


def row_names() -> tuple[str, ...]:
    """As they are typed."""
    return tuple(row.name for row in ROWS)


def filled(text: Any, crt: Options) -> str:
    """A title or the value of a change, with the options of CRT in place of the braces."""
    return str(text).format_map(flatten(crt))


def changes_of(row: Row, crt: Options) -> list[str]:
    """The changes of a row as they are typed."""
    return [w for n, v in row.changes.items() for w in (f"--{n}", filled(v, crt))]
