"""Scores of label maps against ground truth, under the published names, and the table of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from misc.config import flatten
from misc.distributed import shard, together
from misc.errors import UserError
from misc.files import read_json, write_json
from misc.maps_io import BACKGROUND_LABEL, read_label
from misc.metrics import ConfusionMatrix, SegmentationScores, add_picture
from misc.progress import log, progress
from misc.seed import run_facts
from misc.tables import Column, iou_table, percent, show

MEAN_IOU, CLASS_IOU = "Mean IoU", "Class IoU"
CONSTANT_BACKGROUND = "Constant Background"


def compare(
    label_dir: Path, ground_truth: Mapping[str, Path], num_classes: int, remedy: str
) -> ConfusionMatrix:
    """Count the pixels of all pictures by true and given label; 255 counts as background.

    Args:
        label_dir: holds ID.png, the label maps that are scored.
        ground_truth: label map of every id.
        num_classes: with background.
        remedy: what to do about a missing label map, for the message.

    Returns:
        Counts over all processes.

    Raises:
        UserError: a label map is missing, or does not fit its ground truth.
    """
    label_maps = {image_id: label_dir / f"{image_id}.png" for image_id in ground_truth}
    confusion = ConfusionMatrix(num_classes)
    with together():
        require_files(label_maps, "label map", remedy)
        for image_id in progress(shard(list(ground_truth)), "score"):
            path = label_maps[image_id]
            add_picture(confusion, read_label(path), read_label(ground_truth[image_id]), path)
    confusion.reduce()
    return confusion


def scores_of(confusion: ConfusionMatrix, names: Sequence[str]) -> dict[str, Any]:
    """The published scores, as fractions; None where nothing was counted.

    Args:
        confusion: counts.
        names: of the classes, background first.

    Returns:
        Pixel Accuracy, Mean Accuracy, Frequency Weighted IoU, Mean IoU (over the classes of the
        ground truth), Class IoU by name, and the last two of a prediction that is background
        everywhere, for comparison.
    """
    scores = confusion.compute()
    return {
        "Pixel Accuracy": _fraction(scores.pixel_accuracy),
        "Mean Accuracy": _fraction(scores.mean_accuracy),
        "Frequency Weighted IoU": _fraction(scores.frequency_weighted_iou),
        **_ious(scores, names),
        CONSTANT_BACKGROUND: _ious(_constant_background(confusion).compute(), names),
    }


def _ious(scores: SegmentationScores, names: Sequence[str]) -> dict[str, Any]:
    by_name = zip(names, scores.iou, strict=True)
    return {
        MEAN_IOU: _fraction(scores.miou_of_true),
        CLASS_IOU: {name: _fraction(value) for name, value in by_name},
    }


def _constant_background(confusion: ConfusionMatrix) -> ConfusionMatrix:
    """The counts of predicting background everywhere."""
    constant = ConfusionMatrix(confusion.num_classes)
    constant.counts[:, BACKGROUND_LABEL] = confusion.counts.sum(axis=1)
    return constant


def _fraction(value: float) -> float | None:
    """A number as JSON knows it."""
    return None if np.isnan(value) else float(value)


def write_scores(path: Path, scores: Mapping[str, Any], config: Any, **facts: Any) -> None:
    """Write scores beside what they depend on."""
    write_json(path, {**scores, **facts, "config": flatten(config), **run_facts()})
    log(f"wrote {path}")


def read_scores(path: Path) -> dict[str, Any] | None:
    """What `write_scores` wrote; None when there is no such file.

    Raises:
        UserError: the file is something else.
    """
    if not path.is_file():
        return None
    scores = read_json(path)
    if not _are_scores(scores):
        raise UserError(
            f"{path} does not hold the scores of `test` or `crf`; remove it and run the command "
            "again."
        )
    return scores


def _are_scores(content: Any) -> bool:
    """Whether a file has everything that is read of scores."""
    if not (_are_ious(content) and _are_ious(content.get(CONSTANT_BACKGROUND))):
        return False
    model, start = content.get("model"), content.get("initialisation")
    return (
        isinstance(model, Mapping)
        and all(isinstance(model.get(key), str) for key in ("path", "sha256"))
        and (isinstance(start, str) or (isinstance(start, Mapping) and "what" in start))
    )


def _are_ious(content: Any) -> bool:
    if not isinstance(content, Mapping) or not isinstance(content.get(CLASS_IOU), Mapping):
        return False
    values = [content.get(MEAN_IOU, ""), *content[CLASS_IOU].values()]
    return all(value is None or isinstance(value, int | float) for value in values)


def log_table(title: str, names: Sequence[str], columns: Mapping[str, Mapping[str, Any]]) -> None:
    """Log the IoU of every class that occurs, and the means, in percent.

    Args:
        title: line above the table.
        names: of the classes, background first.
        columns: scores by heading, each as `scores_of` returns them.
    """
    in_percents = {
        heading: Column(
            {name: _percent(value) for name, value in scores[CLASS_IOU].items()},
            _percent(scores[MEAN_IOU]),
        )
        for heading, scores in columns.items()
    }
    log(f"{title}\n{iou_table(names, in_percents, decimals=2)}")


def in_percent(fraction: float | None) -> str:
    """A fraction as percent with two decimals; a dash for None."""
    return show(_percent(fraction))


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else percent(fraction)


def require_files(files: Mapping[str, Path | None], what: str, remedy: str) -> None:
    """Stop unless every picture has its file.

    Args:
        files: path by id; None where the data set has none.
        what: what the files are, for the message.
        remedy: what to do about a missing one.

    Raises:
        UserError: counts the missing files and names the first.
    """
    missing = [name for name, path in files.items() if path is None or not path.is_file()]
    if missing:
        first = files[missing[0]] or missing[0]
        raise UserError(
            f"{len(missing)} of {len(files)} pictures have no {what}, the first is {first}; "
            f"{remedy}."
        )
