"""What the evaluation steps share: which pictures are scored, and how scores are reported."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from misc.errors import UserError
from misc.metrics import ConfusionMatrix, SegmentationScores, nan_mean
from misc.progress import log
from voc12.lists import IdList
from voc12.source import open_source

_PERCENT = 100.0


def evaluation_list(args: argparse.Namespace) -> IdList:
    """The pictures that are scored: those of `--eval_list`."""
    return open_source(args).id_list(args.eval_list)


def describe(pictures: IdList) -> str:
    """Name a list in a log line, so that no score stands without its split."""
    return f"list {pictures.name} ({len(pictures.ids)} pictures, {pictures.source})"


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


def add_picture(
    confusion: ConfusionMatrix, prediction: np.ndarray, ground_truth: np.ndarray, source: Path
) -> None:
    """Count one picture; an unusable label map becomes an error that names its file.

    Raises:
        UserError: sizes differ or a label is outside the class list.
    """
    try:
        confusion.update(prediction, ground_truth)
    except ValueError as error:
        raise UserError(
            f"{source}: {error}; check that predictions and masks belong to the same pictures and "
            "the same class list."
        ) from None


def report_segmentation(
    title: str, scores: SegmentationScores, class_names: Sequence[str], pictures: IdList
) -> dict[str, Any]:
    """Log a line and return the scores for JSON.

    Returns:
        In percent, None where undefined: `miou`; `iou` by class name, background first; FP and FN
        (shares of the union) of the background and their mean over the foreground classes. Beside
        them `list` and `pictures`, what was scored.
    """
    fp, fn = scores.false_positive, scores.false_negative
    result = {
        "miou": percent(scores.miou),
        "iou": by_class(["background", *class_names], scores.iou),
        "background_fp": percent(fp[0]),
        "background_fn": percent(fn[0]),
        "foreground_fp": percent(nan_mean(fp[1:])),
        "foreground_fn": percent(nan_mean(fn[1:])),
        "list": pictures.name,
        "pictures": len(pictures.ids),
    }
    log(
        f"{title}: mIoU {show(result['miou'])} % on {describe(pictures)}; "
        f"background FP {show(result['background_fp'])} FN {show(result['background_fn'])}, "
        f"foreground FP {show(result['foreground_fp'])} FN {show(result['foreground_fn'])}."
    )
    return result


def by_class(names: Sequence[str], values: np.ndarray) -> dict[str, float | None]:
    """Fractions as percent by class name."""
    return {name: percent(value) for name, value in zip(names, values, strict=True)}


def percent(value: float) -> float | None:
    """A fraction in percent; None for NaN, which JSON does not know."""
    return None if math.isnan(value) else float(value) * _PERCENT


def show(value: float | None) -> str:
    """Two decimals, or a dash where nothing was counted."""
    return "-" if value is None else f"{value:.2f}"
