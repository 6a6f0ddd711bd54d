"""Evaluation of localisation: maps once, boxes at all thresholds, scores over all processes."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from misc.distributed import shard, together
from misc.loading import eval_loader, to_device
from misc.precision import autocast
from misc.progress import log, progress
from misc.writing import BackgroundWriter
from wsol.config import Config
from wsol.figure import save_boxed, square_photo
from wsol.localization import (
    KINDS,
    LocalisationResult,
    LocalisationScores,
    boxes_at,
    require_finite,
)
from wsol.model import Networks, localise
from wsol.pictures import NO_SCALED_BOX, Picture
from wsol.source import whole_pictures

SCORE_TITLES = {
    "cls_top1": "Cls@1",
    "cls_top5": "Cls@5",
    "loc_top1": "Loc@1",
    "loc_top5": "Loc@5",
    "gt_known": "GT-known",
    "box_acc_30": "Box@.3",
    "box_acc_50": "Box@.5",
    "box_acc_70": "Box@.7",
}
LOSSES = ("loss_transformer", "loss_cnn", "loss_l1")
TABLE_SCORES = ("loc_top1", "loc_top5", "gt_known")


class Evaluation(NamedTuple):
    """Scores of a split and the wall time per picture, in seconds."""

    scores: LocalisationResult
    seconds_per_picture: float


class Found(NamedTuple):
    """What was found in one picture.

    Attributes:
        index: of the picture in its split.
        label: its class.
        logits: (C,) float32.
        cam: (h, w) float32, map of its class.
        truth: (4,) true box on the square picture, None where unknown.
    """

    index: int
    label: int
    logits: np.ndarray
    cam: np.ndarray
    truth: np.ndarray | None


def evaluate(
    networks: Networks,
    pictures: Sequence[Picture],
    config: Config,
    device: torch.device,
    thresholds: Sequence[float],
    boxed_dir: Path | None = None,
    visit: Callable[[Found, np.ndarray], object] | None = None,
) -> Evaluation:
    """Classify and localise pictures; every process takes its share, all get the scores of all.

    Args:
        networks: those that MODEL.CAM needs, on `device`; put into evaluation mode.
        pictures: a split.
        config: batch size, map, normalisation.
        device: of this process.
        thresholds: shares of a map's maximum that are scored, from maps computed once.
        boxed_dir: where to write heat maps with boxes at the first threshold; None for nowhere.
        visit: called with every picture of this process and its box (4,) at the first threshold.

    Raises:
        UserError: scores or a map are not finite.
    """
    scores = LocalisationScores(thresholds)
    start = time.perf_counter()
    with together(), BackgroundWriter() as writer:
        for found in _localised(networks.eval(), pictures, config, device):
            boxes = boxes_at(found.cam, thresholds, config.DATA.CROP_SIZE)
            scores.update(found.logits, found.label, boxes, found.truth)
            if visit is not None:
                visit(found, boxes[0])
            if boxed_dir is not None:
                picture = pictures[found.index]
                target = (boxed_dir / picture.name).with_suffix(".jpg")
                size = config.DATA.CROP_SIZE
                writer.submit(picture.name, _write, target, picture, size, found, boxes[0])
    scores.reduce()
    seconds = time.perf_counter() - start
    return Evaluation(scores.compute(), seconds / max(1, len(pictures)))


def _write(path: Path, picture: Picture, size: int, found: Found, box: np.ndarray) -> None:
    save_boxed(path, square_photo(picture.path, size), found.cam, found.truth, box)


def _localised(
    networks: Networks, pictures: Sequence[Picture], config: Config, device: torch.device
) -> Iterator[Found]:
    """This process's share of the pictures, one by one.

    Whole batches are dealt out: their size decides how sums are rounded, and so now and then about
    a box.
    """
    size, every = config.TEST.BATCH_SIZE, range(len(pictures))
    mine = [index for start in shard(every[::size]) for index in every[start : start + size]]
    share = Subset(whole_pictures(config, pictures), mine)
    loader = eval_loader(share, size, config.BASIC.NUM_WORKERS, device)
    for batch in progress(loader, "evaluate"):
        images, labels = to_device([batch["image"], batch["label"]], device)
        with autocast(device, config.SOLVER.PRECISION):
            logits, cams = localise(networks, images, labels, config.MODEL.CAM)
        for found in _unbatched(batch, logits, cams):
            require_finite(found.logits, found.cam, pictures[found.index].path)
            yield found


def _unbatched(batch: dict[str, Any], logits: Tensor, cams: Tensor) -> Iterator[Found]:
    columns = (batch["index"], batch["label"], logits, cams, batch["box"])
    for index, label, scores, cam, box in zip(*(c.cpu().numpy() for c in columns), strict=True):
        truth = None if tuple(box) == NO_SCALED_BOX else box
        yield Found(int(index), int(label), scores, cam, truth)


def in_words(numbers: Mapping[str, float]) -> str:
    """`Cls@1 71.2, .., GT-known 90.1` of the scores in percent that are there."""
    return ", ".join(f"{t} {numbers[n]:.1f}" for n, t in SCORE_TITLES.items() if n in numbers)


def epoch_in_words(numbers: Mapping[str, float]) -> str:
    """Losses, accuracy in training, and test scores of an epoch, in percent but for the losses."""
    losses = [f"{name.replace('_', ' ')} {numbers[name]:.4f}" for name in LOSSES]
    kinds = [f"{name.replace('_', ' ')} {numbers[name]:.1f}" for name in KINDS if name in numbers]
    parts = [f"{', '.join(losses)}, Prec@1 {numbers['prec1']:.1f}", in_words(numbers)]
    return "; ".join([*parts, ", ".join(kinds)] if kinds else parts)


def log_table(rows: Sequence[Mapping[str, float]]) -> None:
    """Log localisation in percent by threshold; every row has `threshold` and the same scores."""
    names = [name for name in rows[0] if name != "threshold"]
    titles = [SCORE_TITLES[name] for name in names]
    log("  ".join(f"{title:>8}" for title in ("CAM_THR", *titles)))
    for row in rows:
        values = [f"{row[name]:8.1f}" for name in names]
        log("  ".join([f"{row['threshold']:8.3g}", *values]))
