"""Evaluation of a checkpoint: all scores at the configured threshold, localisation at many."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from misc.checkpoint import load_checkpoint
from misc.config import flatten
from misc.distributed import join_processes, on_main, require_shared, select_device, together
from misc.files import sha256_file, write_json
from misc.precision import with_settled_precision
from misc.progress import log
from misc.seed import run_facts, seed_everything
from misc.tables import percent, show
from net.folding import fold_batch_norms
from wsol import page
from wsol.box_accuracy import IOU_THRESHOLDS, MaxBoxAccuracy, MaxBoxResult
from wsol.config import Config, paths_of
from wsol.evaluation import TABLE_SCORES, Evaluation, Found, evaluate, in_words, log_table
from wsol.localization import LocalisationResult
from wsol.masks import require_usable, square_mask
from wsol.model import load_networks
from wsol.pictures import TEST, Picture
from wsol.pixel_precision import PixelAveragePrecision
from wsol.source import fingerprint, open_pictures

_UNKNOWN = "not recorded in the checkpoint"
_BOX_SCORES = ("box_acc_30", "box_acc_50", "box_acc_70")  # of IOU_THRESHOLDS
_CHOSEN = "by definition at the best thresholds on the boxes that are scored"


class ThresholdFreeScores:
    """MaxBoxAccV2 and, where pictures have true masks, PxAP."""

    def __init__(self, config: Config, pictures: Sequence[Picture]) -> None:
        """Start with zeros; `pictures` are those of the split."""
        self._config, self._pictures = config, pictures
        self.boxes, self.pixels = MaxBoxAccuracy(), PixelAveragePrecision()

    def update(self, found: Found) -> None:
        """Add one picture."""
        if found.truth is not None:
            self.boxes.update(found.cam, found.truth, self._config.DATA.CROP_SIZE)
        mask = square_mask(self._config, self._pictures[found.index])
        if mask is not None:
            self.pixels.update(found.cam, mask)

    def reduce(self) -> None:
        """Add up the counts of all processes."""
        self.boxes.reduce()
        self.pixels.reduce()


def test(config: Config, weights: Path | None, device_name: str = "auto") -> dict[str, Any]:
    """Evaluate a checkpoint on TEST.SPLIT; write scores and page beside the run's other files.

    Args:
        config: from `wsol.config.load`.
        weights: checkpoint in the published layout; None for the last epoch of the configured run.
        device_name: see `misc.distributed.select_device`.

    Returns:
        The content of the file, see `wsol.config.Paths.evaluation`.

    Raises:
        UserError: bad data, or a checkpoint that is missing or holds other networks.
    """
    device, paths, split = select_device(device_name), paths_of(config), config.TEST.SPLIT
    join_processes(device)
    config = with_settled_precision(config, device)
    require_shared(paths.folder, "BASIC.SAVE_DIR")
    seed_everything(config.BASIC.SEED)
    weights = weights or paths.last
    with together():
        networks = load_networks(config, weights).to(device)
        if networks.cnn is not None:
            fold_batch_norms(networks.cnn)
    image_set = open_pictures(config, (split,))
    pictures = image_set.split(split)
    on_main(lambda: require_usable(config, pictures))
    more = ThresholdFreeScores(config, pictures)
    items = page.Items(config, pictures, image_set.class_names)

    def visit(found: Found, box: np.ndarray) -> None:
        more.update(found)
        items.add(found, box)

    boxed_dir = paths.boxed_images(split) if config.TEST.SAVE_BOXED_IMAGE else None
    thresholds = thresholds_of(config)
    found = evaluate(networks, pictures, config, device, thresholds, boxed_dir, visit)
    more.reduce()
    content = on_main(partial(_record, config, weights, device, pictures, found, more))
    if config.TEST.REPORT_NUM:
        page.write(config, content, items)
    return content


def _record(
    config: Config,
    weights: Path,
    device: torch.device,
    pictures: Sequence[Picture],
    found: Evaluation,
    more: ThresholdFreeScores,
) -> dict[str, Any]:
    """Write and log the scores of a split; returns the content of the file."""
    split, boxes = config.TEST.SPLIT, more.boxes.compute()
    path = paths_of(config).evaluation(split)
    content = {
        "split": split,
        "pictures": {"count": len(pictures), "sha256": fingerprint(pictures)},
        "weights": {"path": str(weights), "sha256": sha256_file(weights), **_origin(weights)},
        "scores": found.scores.numbers(),
        "thresholds": _by_threshold(found.scores, boxes),
        "max_box_acc_v2": _max_box(boxes),
        "pxap": _pxap(more.pixels),
        "seconds_per_picture": found.seconds_per_picture,
        "arguments": flatten(config),
        **run_facts(device),
    }
    write_json(path, content)
    _tell(config, found.scores, content)
    log(f"scores are in {path}")
    return content


def thresholds_of(config: Config) -> list[float]:
    """CAM_THR first, then the other thresholds in order."""
    others = sorted(set(config.TEST.THRESHOLDS) - {config.MODEL.CAM_THR})
    return [config.MODEL.CAM_THR, *others]


def _origin(weights: Path) -> dict[str, Any]:
    """Epoch of a checkpoint, and how it was chosen."""
    checkpoint = load_checkpoint(weights)
    return {"epoch": checkpoint.get("epoch"), "chosen": checkpoint.get("chosen", _UNKNOWN)}


def _by_threshold(scores: LocalisationResult, boxes: MaxBoxResult) -> list[dict[str, float]]:
    """Localisation in percent by threshold, in rising order; empty without true boxes."""
    rows = [
        {
            "threshold": threshold,
            **{name: row[name] for name in TABLE_SCORES},
            **dict(zip(_BOX_SCORES, boxes.at(threshold).tolist(), strict=True)),
        }
        for index, threshold in enumerate(scores.thresholds)
        if TABLE_SCORES[0] in (row := scores.numbers(index))
    ]
    return sorted(rows, key=lambda row: row["threshold"])


def _max_box(boxes: MaxBoxResult) -> dict[str, Any] | None:
    """MaxBoxAccV2 in percent and what it is the mean of; None without true boxes."""
    if not boxes.boxed:
        return None
    parts = zip(IOU_THRESHOLDS, boxes.best.tolist(), boxes.best_thresholds.tolist(), strict=True)
    by_iou = [{"iou": iou, "percent": best, "threshold": at} for iou, best, at in parts]
    return {"percent": boxes.mean, "by_iou": by_iou, "chosen": _CHOSEN}


def _pxap(pixels: PixelAveragePrecision) -> dict[str, Any] | None:
    """PxAP in percent, None where no mask has an object; None without true masks."""
    if not pixels.masked:
        return None
    return {"percent": percent(pixels.compute()), "pictures": pixels.masked}


def _tell(config: Config, scores: LocalisationResult, content: Mapping[str, Any]) -> None:
    """Log scores, what they are scores of, and the table of thresholds."""
    split, weights = config.TEST.SPLIT, content["weights"]
    log(f"{weights['path']}: epoch {weights['epoch']}, {weights['chosen']}")
    log(f"{split} split at CAM_THR {config.MODEL.CAM_THR:g}: {in_words(content['scores'])}")
    log(f"{content['seconds_per_picture']:.4f} seconds per picture")
    if content["pxap"]:
        masked = f"{content['pxap']['pictures']} of {scores.pictures} pictures, which have masks"
        log(f"PxAP {show(content['pxap']['percent'], decimals=1)} on {masked}")
    if not scores.boxed:
        log(f"the pictures of the {split} split have no boxes: nothing was localised.")
        return
    shares = ", ".join(f"{kind} {values[0]:.1f}" for kind, values in scores.breakdown.items())
    log(f"of {scores.boxed} pictures with boxes, in %: {shares}")
    log_table(content["thresholds"])
    parts = (
        f"IoU {part['iou']:g}: {part['percent']:.1f} at {part['threshold']:.3f}"
        for part in content["max_box_acc_v2"]["by_iou"]
    )
    log(f"MaxBoxAccV2 {content['max_box_acc_v2']['percent']:.1f} ({', '.join(parts)}): {_CHOSEN}")
    best = scores.thresholds[scores.best_threshold()]
    if split == TEST:
        log("a threshold chosen from this table is tuned on test boxes; choose by TEST.SPLIT train")
    else:
        log(f"best GT-known on {split} pictures: MODEL.CAM_THR {best:g}")
