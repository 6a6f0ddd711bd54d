"""report.html: scores, thresholds, curves, and pictures with boxes, the worst boxes first."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from misc.config import flatten
from misc.distributed import all_gather, is_main_process
from misc.errors import UserError
from misc.page import thumbnails
from misc.page.document import (
    Chart,
    Column,
    Facts,
    Gallery,
    Item,
    Layer,
    Measure,
    Page,
    Section,
    Table,
    Tile,
    argument_facts,
    origin_facts,
    split_by_default,
    write_page,
)
from misc.progress import log
from misc.visualize import spread
from wsol.config import Config, Paths, paths_of
from wsol.evaluation import SCORE_TITLES, TABLE_SCORES, Found
from wsol.figure import ESTIMATED_COLOUR, TRUE_COLOUR, square_photo
from wsol.localization import KINDS, cam_to_heat, iou
from wsol.pictures import Picture

PHOTO, BOXES, CAM = "photo", "boxes", "CAM"
_MEASURES = (Measure("IoU with the true box", rising=True),)
_NOTE = "Green is the box that was found for the true class, red the true one."
_HEAT_MAX = 255
_CHARTS = {
    "Losses of the networks": ("loss_transformer", "loss_cnn"),
    "Loss between the networks": ("loss_l1",),
    "Scores on test pictures in %": ("cls_top1", "loc_top1", "gt_known"),
}


class Items:
    """Collects some pictures of an evaluation, evenly chosen over all of them."""

    def __init__(self, config: Config, pictures: Sequence[Picture], names: Sequence[str]) -> None:
        """Choose TEST.REPORT_NUM of the pictures of a split whose classes have `names`."""
        self.pictures, self.names = pictures, names
        self._side = config.DATA.CROP_SIZE
        self._chosen = set(spread(range(len(pictures)), config.TEST.REPORT_NUM))
        self._items: dict[int, Item] = {}

    def add(self, found: Found, box: np.ndarray) -> None:
        """Draw a picture if it was chosen; `box` (4,) is the estimated one."""
        if found.index in self._chosen:
            self._items[found.index] = self._draw(found, box)

    def _draw(self, found: Found, box: np.ndarray) -> Item:
        picture, size = self.pictures[found.index], (self._side, self._side)
        true = [] if found.truth is None else [(found.truth, TRUE_COLOUR)]
        boxes = thumbnails.boxes(size, [*true, (box, ESTIMATED_COLOUR)])
        heat = thumbnails.heat(cam_to_heat(found.cam, self._side)[None] / np.float32(_HEAT_MAX))
        best = int(found.logits.argmax())
        taken = self.names[best] if best < len(self.names) else "an unknown class"
        return Item(
            picture.name,
            thumbnails.photo(square_photo(picture.path, self._side)),
            thumbnails.small_size(size),
            {BOXES: Layer((boxes,)), CAM: Layer((heat, boxes), gray=True)},
            (picture.label,),
            (None if found.truth is None else float(iou(box, found.truth)),),
            () if best == picture.label else (f"taken for {taken}",),
        )

    def gather(self) -> list[Item]:
        """The pictures of all processes, in the order of the split."""
        items = {index: item for part in all_gather(self._items) for index, item in part.items()}
        return [items[index] for index in sorted(items)]

    def others(self) -> list[str]:
        """Names of the pictures that were not chosen."""
        return [p.name for index, p in enumerate(self.pictures) if index not in self._chosen]


def write(config: Config, content: Mapping[str, Any], items: Items) -> None:
    """Write the page of an evaluation, in the main process.

    Args:
        config: of the run.
        content: what `wsol.testing.test` wrote.
        items: its pictures.

    Raises:
        UserError: log.jsonl is not what the training writes.
    """
    shown = items.gather()
    if not is_main_process():
        return
    paths, split = paths_of(config), content["split"]
    left = items.others()
    hidden = {"pictures are not shown (TEST.REPORT_NUM)": left} if left else {}
    layers = (PHOTO, BOXES, CAM)
    gallery = Gallery(shown, layers, CAM, _MEASURES, items.names, False, _NOTE, hidden)
    curves = _curves(paths, content)
    sections = [
        Section("Scores", _tables(content)),
        Section("Training", curves, "" if curves else "The training of these weights has no log."),
        Section("Origin", _origin(config, content)),
        Section("Pictures", [gallery]),
    ]
    what = f"{len(shown)} of {len(items.pictures)} pictures of the {split} split"
    page = Page(
        "Localisation from class labels", f"{paths.folder} · {what}", _tiles(content), sections
    )
    write_page(paths.page(split), page)
    log(f"to look at: {paths.page(split)}, {what}")


def _tiles(content: Mapping[str, Any]) -> list[Tile]:
    scores = content["scores"]
    return [Tile(t, f"{scores[name]:.1f} %") for name, t in SCORE_TITLES.items() if name in scores]


def _tables(content: Mapping[str, Any]) -> list[Table]:
    """What became of the pictures, and localisation by threshold; nothing without true boxes."""
    scores, rows = content["scores"], content["thresholds"]
    if not rows:
        return []
    kinds = [kind.replace("_", " ") for kind in KINDS]
    threshold = content["arguments"]["MODEL.CAM_THR"]
    share = Column("% of the pictures", [scores[kind] for kind in KINDS], bars=True)
    columns = [Column(SCORE_TITLES[n], [row[n] for row in rows], bars=True) for n in TABLE_SCORES]
    note = (
        "A threshold chosen from this table is tuned on test boxes; choose by TEST.SPLIT train."
        if content["split"] == "test"
        else ""
    )
    names = [f"{row['threshold']:g}" for row in rows]
    return [
        Table(f"What became of the boxes at CAM_THR {threshold:g}", "kind", kinds, [share]),
        Table("Localisation in % by threshold", "CAM_THR", names, columns, note=note),
    ]


def _curves(paths: Paths, content: Mapping[str, Any]) -> list[Chart]:
    """Losses and scores by epoch, where the weights are of the configured run."""
    if Path(content["weights"]["path"]) not in paths.weights or not paths.epoch_log.is_file():
        return []
    try:
        lines = paths.epoch_log.read_text("utf-8").splitlines()
        rows = [dict(json.loads(line)) for line in lines]
        return [
            Chart(title, "epochs", [row["epoch"] for row in rows], _series(rows, names))
            for title, names in _CHARTS.items()
            if _series(rows, names)
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{paths.epoch_log} is not the log of a training ({error}).") from error


def _series(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, list[float]]:
    return {
        SCORE_TITLES.get(name, name.replace("_", " ")): [float(row[name]) for row in rows]
        for name in names
        if all(name in row for row in rows)
    }


def _origin(config: Config, content: Mapping[str, Any]) -> list[Facts]:
    weights = content["weights"]
    rows = [(name, str(weights[name])) for name in ("path", "epoch", "chosen", "sha256")]
    origin = {**content, "command": shlex.join(sys.argv), "seed": config.BASIC.SEED}
    return [
        Facts("Weights", rows),
        origin_facts(origin),
        argument_facts(*split_by_default(flatten(config), flatten(Config()))),
    ]
