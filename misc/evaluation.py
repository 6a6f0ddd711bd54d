"""What all scoring of label maps shares: checked files, counted pictures, numbers for readers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from misc.errors import UserError
from misc.metrics import ConfusionMatrix
from voc12.lists import IdList

_PERCENT = 100.0


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
    with fitting(source):
        confusion.update(prediction, ground_truth)


@contextmanager
def fitting(source: Path) -> Iterator[None]:
    """Say of which file label maps are that do not fit to each other.

    Raises:
        UserError: instead of the ValueError of a confusion matrix.
    """
    try:
        yield
    except ValueError as error:
        raise UserError(
            f"{source}: {error}; check that predictions and masks belong to the same pictures and "
            "the same class list."
        ) from None


def by_class(names: Sequence[str], values: np.ndarray) -> dict[str, float | None]:
    """Fractions as percent by class name."""
    return {name: percent(value) for name, value in zip(names, values, strict=True)}


def percent(value: float) -> float | None:
    """A fraction in percent; None for NaN, which JSON does not know."""
    return None if math.isnan(value) else float(value) * _PERCENT


def show(value: float | None, decimals: int = 2) -> str:
    """A number with some decimals, or a dash where nothing was counted."""
    return "-" if value is None else f"{value:.{decimals}f}"
