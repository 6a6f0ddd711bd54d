"""Look at lists, pictures and label maps before hours are spent on them, and report all at once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deeplab.config import Config, Split, class_names, dataset_root
from deeplab.data import (
    VALIDATION_FOLDERS,
    find_problems,
    id_list,
    training_label_dir,
    training_label_path,
    validation_labels,
)
from misc.checks import require_no_problems
from misc.errors import UserError
from misc.maps_io import BACKGROUND_LABEL, IGNORE_LABEL, LABEL_VALUES, read_label
from misc.progress import log
from misc.provenance import read_record
from voc12.devkit import Devkit
from voc12.lists import IdList, some_of

SAMPLE_SIZE = 500
"""Number of label maps whose pixels are counted."""

SAMPLE_SEED = 0
"""The same labels are looked at whatever the seed of the run."""

SUSPICIOUS_BACKGROUND = 0.97
"""Share of the labelled pixels above which a network may well learn nothing but background."""


@dataclass(frozen=True)
class LabelShares:
    """What a sample of label maps consists of.

    Attributes:
        names: of the N classes, background first.
        total: number of label maps the sample is drawn from.
        pixels: (sampled, 256) int64, pixels of every value in every sampled map.
        origin: what made the maps, in words.
    """

    names: tuple[str, ...]
    total: int
    pixels: np.ndarray
    origin: str = "unknown"

    @property
    def ignore(self) -> float:
        """Share of all pixels that have no label, 0..1."""
        return self._share(IGNORE_LABEL)

    @property
    def background(self) -> float:
        """Share of background in the labelled pixels, 0..1; NaN when no pixel is labelled."""
        labelled = np.delete(self.pixels, IGNORE_LABEL, axis=1).sum()
        return float(self.pixels[:, BACKGROUND_LABEL].sum() / labelled) if labelled else np.nan

    @property
    def has_objects(self) -> bool:
        """Whether any pixel belongs to a class other than background."""
        return bool(self.pixels[:, 1 : len(self.names)].any())

    def content(self) -> dict[str, Any]:
        """The numbers as plain JSON values; shares of all pixels, ignored ones included."""
        shares = {name: self._share(label) for label, name in self._rows()}
        facts = {"sampled": len(self.pixels), "total": self.total, "origin": self.origin}
        return {**facts, "shares": shares}

    def table(self) -> str:
        """Lines with the share of pixels, and the number of pictures, of every class."""
        width = max(len(name) for _, name in self._rows())
        lines = [f"{'':{width + 2}}share of pixels  pictures"]
        for label, name in self._rows():
            pictures = np.count_nonzero(self.pixels[:, label])
            lines.append(f"  {name:{width}}{self._share(label):14.2%}{pictures:12}")
        return "\n".join(lines)

    def _rows(self) -> list[tuple[int, str]]:
        return [*enumerate(self.names), (IGNORE_LABEL, "(ignore)")]

    def _share(self, label: int) -> float:
        return float(self.pixels[:, label].sum() / self.pixels.sum())


def check_training(config: Config) -> tuple[IdList, LabelShares]:
    """Check everything that training reads, and say what its labels consist of.

    Returns:
        The list of training pictures, and the shares of the classes in a sample of its labels.

    Raises:
        UserError: lists every problem: unusable list, missing or broken pictures and label maps,
            other sizes, values that are no class, labels without a single object.
    """
    id_list_ = id_list(config, "train")
    label_dir = training_label_dir(config)
    problems = find_problems(
        Devkit(dataset_root(config)),
        class_names(config)[1:],
        id_list_.ids,
        id_list_.ids,
        mask_dir=label_dir,
    )
    require_no_problems(problems + _uncovered(config, id_list_))
    log(
        f"training: {len(id_list_)} pictures of {id_list_.source}, labels from {label_dir} "
        "(every picture and label read, sizes and values are right)"
    )
    _warn_of_overlap(config, id_list_)
    shares = count_labels(
        [training_label_path(config, image_id) for image_id in id_list_.ids], class_names(config)
    )
    require_objects(shares, label_dir)
    origin = label_origin(label_dir)
    log(f"the labels are {origin}")
    return id_list_, replace(shares, origin=origin)


def label_origin(label_dir: Path) -> str:
    """What made the training labels, as far as the record in their folder tells."""
    record = read_record(label_dir)
    if record is None:
        return (
            "of unknown origin (there is no record of what made them): if people drew them, the "
            "result is not weakly supervised."
        )
    return f"outputs of the step {record.step} ({record.fingerprint[:12]})."


def check_evaluation(config: Config, split: Split) -> tuple[IdList, dict[str, Path]]:
    """Check the pictures of a split, and their ground truth where there is any.

    Only `test` may go without ground truth, and then without any at all.

    Returns:
        The list of pictures, and the label map of every id; empty when the split has none.

    Raises:
        UserError: lists every problem.
    """
    pictures = id_list(config, split)
    labels = validation_labels(config, pictures.ids)
    devkit, classes = Devkit(dataset_root(config)), class_names(config)[1:]
    problems = find_problems(devkit, classes, pictures.ids)
    for mask_dir in (devkit.root / folder for folder in VALIDATION_FOLDERS):
        labelled = [image_id for image_id, path in labels.items() if mask_dir in path.parents]
        if labelled:
            problems += find_problems(devkit, classes, (), labelled, mask_dir=mask_dir)
    missing = [image_id for image_id in pictures.ids if image_id not in labels]
    if missing and (labels or split != "test"):
        folders = " nor ".join(str(devkit.root / folder) for folder in VALIDATION_FOLDERS)
        problems.append(
            f"missing ground truth: {len(missing)} of {len(pictures)} pictures of {split} "
            f"({some_of(missing)}) have no ID.png in {folders}; put it there, or use --split test "
            "for a list without ground truth"
        )
    require_no_problems(problems)
    return pictures, labels


def count_labels(
    paths: Sequence[Path], names: Sequence[str], sample_size: int = SAMPLE_SIZE
) -> LabelShares:
    """Count the pixels of every class in a random sample of label maps.

    Args:
        paths: label maps, at least one.
        names: of the classes, background first.
        sample_size: largest number of maps that are read.
    """
    rng = np.random.default_rng(SAMPLE_SEED)
    chosen = rng.choice(len(paths), size=min(sample_size, len(paths)), replace=False)
    pixels = [
        np.bincount(read_label(paths[index]).ravel(), minlength=LABEL_VALUES)
        for index in sorted(chosen)
    ]
    return LabelShares(tuple(names), len(paths), np.stack(pixels))


def require_objects(shares: LabelShares, source: Path) -> None:
    """Log the shares of the classes; stop when nothing but background could be learned.

    Args:
        shares: of the training labels.
        source: folder of the labels, for messages.

    Raises:
        UserError: there is no pixel of any object.
    """
    sampled = len(shares.pixels)
    log(f"labels of {sampled} of {shares.total} pictures:\n{shares.table()}")
    if not shares.has_objects:
        raise UserError(
            f"the {sampled} label maps of {source} that were looked at (of {shares.total}) hold "
            "nothing but background and ignored pixels, so only background could be learned; make "
            "the pseudo masks again, or name the right folder with DATASET.TRAIN_LABELS=FOLDER."
        )
    if shares.background > SUSPICIOUS_BACKGROUND:
        log(
            f"warning: {shares.background:.1%} of the labelled pixels are background; a network "
            "trained on that may predict nothing else. Look at the masks before going on."
        )


def _uncovered(config: Config, pictures: IdList) -> list[str]:
    """One problem with a remedy when the folder of labels does not belong to the list."""
    label_dir = training_label_dir(config)
    count = sum(training_label_path(config, image_id).is_file() for image_id in pictures.ids)
    if count == len(pictures):
        return []
    return [
        f"missing labels: {label_dir} has the labels of {count} of the {len(pictures)} "
        f"pictures of DATASET.SPLIT.TRAIN={config.DATASET.SPLIT.TRAIN}; link or copy the folder "
        "that run_sample.py made for this list (result/sem_seg, option --infer_list), name it with "
        "DATASET.TRAIN_LABELS=FOLDER, or train on the list the labels were made for"
    ]


def _warn_of_overlap(config: Config, pictures: IdList) -> None:
    """Scores on pictures that were trained on say little; a missing list matters only later."""
    try:
        scored = id_list(config, "val")
    except UserError:
        return
    shared = set(pictures.ids).intersection(scored.ids)
    if shared:
        log(
            f"warning: {len(shared)} of the {len(scored)} pictures of "
            f"DATASET.SPLIT.VAL={config.DATASET.SPLIT.VAL} are also trained on."
        )
