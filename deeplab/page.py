"""report.html: the scores, the loss curve and pictures of a split, sorted by how wrong they are.

What the worker processes call stands first and imports no torch.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deeplab.config import Config, Paths, Split, class_names
from misc.config import flatten
from misc.errors import UserError
from misc.files import read_json
from misc.maps_io import BACKGROUND_LABEL, IGNORE_LABEL, read_image, read_label
from misc.page import thumbnails
from misc.page.disagreement import disagreement
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
from misc.parallel import map_pictures

if TYPE_CHECKING:
    from voc12.lists import IdList

PHOTO, LABELS_COLUMN, BACKGROUND_COLUMN = "photo", "training labels", "background"
MEASURES = (
    Measure("prediction and truth disagree"),
    Measure("changed by the CRF"),
    Measure("size of the prediction", rising=True),
)
_HUNDRED = 100
_NOTE = (
    "Two label maps disagree by one minus the IoU of their objects, classes included. The "
    "prediction is the one after the CRF where there is one."
)


class Task(NamedTuple):
    """A picture to show.

    Attributes:
        name: its id.
        photo: file.
        files: its label maps by title.
        truth: title of the ground truth.
        predictions: titles of the predictions, the last one at the end.
    """

    name: str
    photo: Path
    files: Mapping[str, Path]
    truth: str
    predictions: tuple[str, ...]


def draw_item(task: Task) -> Item:
    """The picture with its label maps, classes and measures.

    Raises:
        UserError: a file cannot be read.
    """
    image = read_image(task.photo)
    labels = {title: read_label(path) for title, path in task.files.items()}
    made = [labels[title] for title in task.predictions if title in labels]
    last = made[-1] if made else None
    shown = [one for one in (labels.get(task.truth), last) if one is not None]
    return Item(
        task.name,
        thumbnails.photo(image),
        thumbnails.small_size(image.shape[:2]),
        {title: Layer((thumbnails.labels(label),)) for title, label in labels.items()},
        _classes_of(shown),
        (
            _difference(last, labels.get(task.truth)),
            _difference(made[0], last) if len(made) > 1 else None,
            None if last is None else float((last != BACKGROUND_LABEL).mean()),
        ),
    )


def _difference(first: np.ndarray | None, second: np.ndarray | None) -> float | None:
    if first is None or second is None or first.shape != second.shape:
        return None
    return disagreement(first, second)


def _classes_of(labels: Sequence[np.ndarray]) -> list[int]:
    """Indices from 0 of the classes in any of the label maps."""
    values = {int(value) for label in labels for value in np.unique(label)}
    return sorted(value - 1 for value in values - {BACKGROUND_LABEL, IGNORE_LABEL})


def write(
    config: Config, split: Split, pictures: "IdList", content: Mapping[str, Any], count: int
) -> None:
    """Write the page of a split.

    Args:
        config: configuration.
        split: whose predictions.
        pictures: its list.
        content: of report.json.
        count: pictures that are shown at most, spread evenly over the list.

    Raises:
        UserError: a picture cannot be read, or has a class without name.
    """
    from misc.distributed import is_main_process

    gallery = _gallery(config, split, pictures, count)
    if is_main_process():
        _write(config, split, pictures, content, gallery)


def _write(
    config: Config,
    split: Split,
    pictures: "IdList",
    content: Mapping[str, Any],
    gallery: Gallery,
) -> None:
    from misc.progress import log

    paths, names = Paths(config), class_names(config)
    sections = [
        Section("Scores", [_score_table(content, names)]),
        Section("Training", curves := _curves(content), "" if curves else "No loss is recorded."),
        Section("Origin", _origin(config, content)),
        Section("Pictures", [gallery]),
    ]
    what = f"{len(gallery.items)} of {len(pictures)} pictures of list {pictures.name}"
    page = Page("DeepLab on pseudo masks", f"{config.EXP.ID} · {what}", _tiles(content), sections)
    path = paths.of_split(paths.page_path, split)
    write_page(path, page)
    log(f"to look at: {path}, {what}, {path.stat().st_size / 1e6:.1f} MB")


def _gallery(config: Config, split: Split, pictures: "IdList", count: int) -> Gallery:
    """The pictures of all processes, each of which draws its part."""
    from deeplab import lineage, outputs
    from misc.distributed import gather_shards, shard, together
    from misc.visualize import spread

    shown = spread(pictures.ids, count)
    titles = (outputs.COLUMN, outputs.COLUMN_CRF)
    with together():
        tasks = [
            Task(i, path, outputs.label_files(config, split, i), outputs.TRUTH, titles)
            for i, path in lineage.image_paths(config, shard(shown)).items()
        ]
        items = map_pictures(draw_item, tasks, config.DATALOADER.NUM_WORKERS, "page")
    items = gather_shards(items)
    names = class_names(config)[1:]
    for item in items:
        if max(item.classes, default=-1) >= len(names):
            raise UserError(
                f"{item.name} has class {max(item.classes) + 1} but only {len(names)} are named; "
                "correct DATASET.LABELS and DATASET.N_CLASSES."
            )
    order = (outputs.TRUTH, *titles, outputs.MASK)
    layers = [PHOTO, *(t for t in order if any(t in item.layers for item in items))]
    first = next((title for title in reversed(titles) if title in layers), PHOTO)
    left = sorted(set(pictures.ids) - set(shown))
    hidden = {"pictures are not shown (--report-num)": left} if left else {}
    return Gallery(items, layers, first, MEASURES, names, note=_NOTE, hidden=hidden)


def columns_of(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Scores by heading: training labels, a constant prediction, and the predictions."""
    labels = content["training_labels"]
    return {
        **({LABELS_COLUMN: labels} if labels else {}),
        BACKGROUND_COLUMN: content["constant_background"],
        **content["scores"],
    }


def _score_table(content: Mapping[str, Any], names: Sequence[str]) -> Table:
    from deeplab.scoring import CLASS_IOU, MEAN_IOU

    scores = columns_of(content)
    used = [n for n in names if any(one[CLASS_IOU].get(n) is not None for one in scores.values())]
    columns = [
        Column(title, [_percent(v) for v in (*map(one[CLASS_IOU].get, used), one[MEAN_IOU])], True)
        for title, one in scores.items()
    ]
    (name, facts), *_ = content["list"].items()
    note = "The training labels are scored on the training list; background: predicted everywhere."
    title = f"IoU by class in %, {name}, {facts['count']} pictures"
    return Table(title, "class", [*used, "mean"], columns, sums=1, note=note)


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else _HUNDRED * fraction


def _tiles(content: Mapping[str, Any]) -> list[Tile]:
    from deeplab.scoring import MEAN_IOU
    from misc.tables import show

    margins = content["margin_over_constant_background"]
    return [
        Tile(
            f"mean IoU, {title}",
            f"{show(_percent(one[MEAN_IOU]), 1)} %",
            f"{show(_percent(margins[title]), 1)} points over background everywhere",
        )
        for title, one in content["scores"].items()
    ]


def _curves(content: Mapping[str, Any]) -> list[Chart]:
    """The loss of the training, from the record beside the weights that were scored."""
    from misc.provenance import record_path

    path = record_path(Path(content["model"]["path"]))
    facts = read_json(path).get("facts", {}) if path.is_file() else {}
    history = facts.get("history") or []
    if not history:
        return []
    losses = {"loss": [row["loss"] for row in history]}
    return [Chart("Loss", "iterations", [row["iteration"] for row in history], losses)]


def _origin(config: Config, content: Mapping[str, Any]) -> list[Facts]:
    start = content["initialisation"]
    what = start["what"] if isinstance(start, Mapping) else start
    weights = [("weights", content["model"]["path"]), ("SHA-256", content["model"]["sha256"])]
    origin = origin_facts({**content, "command": shlex.join(sys.argv), "seed": config.EXP.SEED})
    return [
        Facts("Weights", [*weights, ("first weights", what)]),
        origin,
        argument_facts(*split_by_default(flatten(config), flatten(Config()))),
    ]
