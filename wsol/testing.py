"""Evaluation of a checkpoint: all scores at the configured threshold, localisation at many."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from misc.checkpoint import load_checkpoint
from misc.config import flatten
from misc.distributed import is_main_process, join_processes, select_device
from misc.files import sha256_file, write_json
from misc.progress import log
from misc.seed import run_facts, seed_everything
from wsol import page
from wsol.config import Config, paths_of
from wsol.evaluation import TABLE_SCORES, evaluate, in_words, log_table
from wsol.localization import LocalisationResult
from wsol.model import load_networks
from wsol.pictures import TEST
from wsol.source import fingerprint, open_pictures

_UNKNOWN = "not recorded in the checkpoint"


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
    seed_everything(config.BASIC.SEED)
    weights = weights or paths.last
    networks = load_networks(config, weights).to(device)
    image_set = open_pictures(config, (split,))
    pictures = image_set.split(split)
    items = page.Items(config, pictures, image_set.class_names)
    found = evaluate(
        networks,
        pictures,
        config,
        device,
        thresholds_of(config),
        paths.boxed_images(split) if config.TEST.SAVE_BOXED_IMAGE else None,
        items.add,
    )
    content = {
        "split": split,
        "pictures": {"count": len(pictures), "sha256": fingerprint(pictures)},
        "weights": {"path": str(weights), "sha256": sha256_file(weights), **_origin(weights)},
        "scores": found.scores.numbers(),
        "thresholds": _by_threshold(found.scores),
        "seconds_per_picture": found.seconds_per_picture,
        "arguments": flatten(config),
        **run_facts(device),
    }
    if is_main_process():
        write_json(paths.evaluation(split), content)
    _tell(config, found.scores, content)
    log(f"scores are in {paths.evaluation(split)}")
    if config.TEST.REPORT_NUM:
        page.write(config, content, items)
    return content


def thresholds_of(config: Config) -> list[float]:
    """CAM_THR first, then the other thresholds in order."""
    others = sorted(set(config.TEST.THRESHOLDS) - {config.MODEL.CAM_THR})
    return [config.MODEL.CAM_THR, *others]


def _origin(weights: Path) -> dict[str, Any]:
    """Epoch of a checkpoint, and how it was chosen."""
    checkpoint = load_checkpoint(weights)
    return {"epoch": checkpoint.get("epoch"), "chosen": checkpoint.get("chosen", _UNKNOWN)}


def _by_threshold(scores: LocalisationResult) -> list[dict[str, float]]:
    """Localisation in percent by threshold, in rising order; empty without true boxes."""
    rows = [
        {"threshold": threshold, **{name: row[name] for name in TABLE_SCORES}}
        for index, threshold in enumerate(scores.thresholds)
        if TABLE_SCORES[0] in (row := scores.numbers(index))
    ]
    return sorted(rows, key=lambda row: row["threshold"])


def _tell(config: Config, scores: LocalisationResult, content: Mapping[str, Any]) -> None:
    """Log scores, what they are scores of, and the table of thresholds."""
    split, weights = config.TEST.SPLIT, content["weights"]
    log(f"{weights['path']}: epoch {weights['epoch']}, {weights['chosen']}")
    log(f"{split} split at CAM_THR {config.MODEL.CAM_THR:g}: {in_words(content['scores'])}")
    log(f"{content['seconds_per_picture']:.4f} seconds per picture")
    if not scores.boxed:
        log(f"the pictures of the {split} split have no boxes: nothing was localised.")
        return
    shares = ", ".join(f"{kind} {values[0]:.1f}" for kind, values in scores.breakdown.items())
    log(f"of {scores.boxed} pictures with boxes, in %: {shares}")
    log_table(content["thresholds"])
    best = scores.thresholds[scores.best_threshold()]
    if split == TEST:
        log("a threshold chosen from this table is tuned on test boxes; choose by TEST.SPLIT train")
    else:
        log(f"best GT-known on {split} pictures: MODEL.CAM_THR {best:g}")
