"""Whole pictures through a trained network: logits for the CRF, predictions, scores.

Reads the pictures of a split and a checkpoint; writes `logits/ID.npy`, palette PNGs, scores.json
and, where the split has no ground truth, the archive for the VOC evaluation server. Beside the
logits, `ID.crc` tells which picture the outputs of an id are of; it is written last. Under torchrun
every process takes its part of the pictures.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deeplab import lineage, logits, scoring
from deeplab.config import Config, Paths, Split, class_names, dataset_root
from deeplab.data import PictureDataset
from deeplab.initialisation import load_trained
from deeplab.model import MultiScale, build_model
from deeplab.preflight import check_evaluation
from deeplab.refinement import PREDICTION_SUFFIX
from deeplab.submission import write_submission
from misc.distributed import barrier, is_main_process, join_processes, shard
from misc.errors import UserError
from misc.files import sha256_file, up_to_date
from misc.maps_io import opened_image, write_label
from misc.outputs import check_removal, prepare_output
from misc.progress import log, progress
from misc.provenance import Record
from misc.seed import seed_everything
from misc.training import eval_loader
from voc12.devkit import Devkit
from voc12.lists import IdList, describe

COLUMN = "DeepLab"
COLUMN_CRF = f"{COLUMN} + CRF"
"""Headings of the predictions without and with the CRF, in tables and figures."""

_SECONDS = "seconds_per_picture"


def load_network(config: Config, model_path: Path, device: torch.device) -> MultiScale:
    """The network of a configuration with trained weights, ready to segment.

    Raises:
        UserError: the weights are not those of this network, or were trained with other classes
            or another mean.
    """
    lineage.require_same_network(config, model_path)
    seed_everything(config.EXP.SEED)
    network = build_model(config)
    load_trained(network, model_path)
    return network.to(device).eval()


@torch.inference_mode()
def segment(network: MultiScale, image: Tensor, weights: Path) -> tuple[np.ndarray, np.ndarray]:
    """Segment one picture.

    Args:
        network: in evaluation mode.
        image: (3, h, w) float32 BGR minus mean, on the device of the network.
        weights: file of the network's weights, for messages.

    Returns:
        Logits (C, h', w') float32 at the stride of the network, and labels (h, w) uint8.

    Raises:
        UserError: a logit is not finite, so that every label would be arbitrary.
    """
    scores = network(image[None]).float()
    if not torch.isfinite(scores).all():
        raise UserError(
            f"with the weights {weights} the network gives class scores that are NaN or infinite; "
            "they are damaged or their training diverged, use another checkpoint."
        )
    full = F.interpolate(scores, image.shape[-2:], mode="bilinear", align_corners=False)
    return scores[0].cpu().numpy(), full[0].argmax(dim=0).to(torch.uint8).cpu().numpy()


def run(
    config: Config, model_path: Path, split: Split, device: torch.device, overwrite: bool = False
) -> dict[str, Any]:
    """Segment the pictures of a split and score them.

    Args:
        config: configuration.
        model_path: trained weights.
        split: which pictures.
        device: of the network.
        overwrite: make outputs again that are there.

    Returns:
        The content of scores.json, without what the scores depend on; empty when the split has no
        ground truth.

    Raises:
        UserError: data or weights are unusable, or the folder has outputs of another model.
    """
    join_processes(device)
    pictures, ground_truth = check_evaluation(config, split)
    network = load_network(config, model_path, device)
    model = {"path": str(model_path), "sha256": sha256_file(model_path)}
    log(f"test: {describe(pictures)} with {model_path} on {device}")
    left = _prepare(config, split, pictures, model, network.output_stride, overwrite)
    seconds = _segment_all(config, split, network, model_path, left, device)
    facts = {
        "model": model,
        **lineage.training_facts(model_path),
        "device": str(device),
        _SECONDS: seconds,
    }
    return publish(config, split, pictures, ground_truth, facts)


def require_own_outputs(folder: Path, record: Record, suffix: str, pictures: IdList) -> None:
    """Stop before files of a list are removed that the step of a record has not made.

    Raises:
        UserError: names one.
    """
    problem = check_removal(folder, record.step, "EXP.ID", suffix, pictures.ids)
    if problem:
        raise UserError(f"{problem}.")


def prepare_folder(
    folder: Path,
    record: Record,
    suffix: str,
    pictures: IdList,
    overwrite: bool,
) -> None:
    """Make a folder ready for outputs of `record`; see `prepare_output`."""
    prepare_output(
        folder,
        record,
        suffix,
        pictures.ids,
        overwrite=overwrite,
        option="EXP.ID",
        lists=lineage.list_facts(pictures),
        redo=lineage.REDO,
    )


def _prepare(
    config: Config,
    split: Split,
    pictures: IdList,
    model: Mapping[str, str],
    stride: int,
    overwrite: bool,
) -> list[str]:
    """Prepare the output folders and return this process's pictures that are left to do."""
    paths, images = Paths(config), lineage.image_paths(config, pictures.ids)
    folder, predictions = paths.logits_dir(split), paths.prediction_dir(split)
    record = lineage.logits(config, model["sha256"])
    if overwrite:  # nothing is removed before it is known that all may be, and that the rest fits
        require_own_outputs(folder, record, logits.SUFFIX, pictures)
        require_own_outputs(predictions, record, PREDICTION_SUFFIX, pictures)
        _require_space(config, folder, images, pictures.ids, stride)
    if is_main_process():
        prepare_folder(folder, record, logits.SUFFIX, pictures, overwrite)
        prepare_folder(predictions, record, PREDICTION_SUFFIX, pictures, overwrite)
    barrier()
    done = {image_id for image_id in pictures.ids if _is_done(paths, split, image_id, images)}
    barrier()  # nobody writes before all have looked
    left = [image_id for image_id in pictures.ids if image_id not in done]
    if is_main_process():
        for target in (folder, predictions):
            lineage.update_record(target, record, pictures, {"model": model}, making=bool(left))
        if left:
            for crf in (False, True):  # scores of what is about to change
                paths.scores_path(split, crf).unlink(missing_ok=True)
    if not overwrite:
        _require_space(config, folder, images, left, stride)
    return shard(left)


def _is_done(paths: Paths, split: Split, image_id: str, images: Mapping[str, Path]) -> bool:
    """Whether the outputs of a picture are there and are its own."""
    folder = paths.logits_dir(split)
    scores = folder / f"{image_id}{logits.SUFFIX}"
    prediction = paths.prediction_dir(split) / f"{image_id}{PREDICTION_SUFFIX}"
    if not (scores.is_file() and up_to_date(prediction, scores)):
        return False
    return lineage.recorded_picture(folder, image_id) == lineage.picture_hash(images[image_id])


def _require_space(
    config: Config, folder: Path, images: Mapping[str, Path], left: Sequence[str], stride: int
) -> None:
    """Say how much disk space the logits take, and stop when those to come do not fit."""
    count = config.DATASET.N_CLASSES
    sizes = {image_id: _size(path) for image_id, path in images.items()}
    total = logits.expected_bytes(sizes.values(), count, stride)
    log(
        f"test: the logits of {len(images)} pictures take about {logits.megabytes(total)} in "
        f"{folder}; {len(left)} pictures to do"
    )
    needed = logits.expected_bytes((sizes[image_id] for image_id in left), count, stride)
    replaced = (folder / f"{image_id}{logits.SUFFIX}" for image_id in left)
    needed -= sum(path.stat().st_size for path in replaced if path.is_file())
    logits.require_space(folder, needed)


def _size(path: Path) -> tuple[int, int]:
    """Height and width of a picture."""
    with opened_image(path) as image:
        return image.size[::-1]


def _segment_all(
    config: Config,
    split: Split,
    network: MultiScale,
    model_path: Path,
    ids: Sequence[str],
    device: torch.device,
) -> float | None:
    """Write logits and predictions; returns seconds per picture, None without pictures."""
    paths, start = Paths(config), time.perf_counter()
    dataset = PictureDataset(Devkit(dataset_root(config)), ids, config.IMAGE.MEAN)
    loader = eval_loader(dataset, None, config.DATALOADER.NUM_WORKERS)
    # Hashed before they are read: a picture replaced meanwhile counts as changed next time.
    hashes = {i: lineage.picture_hash(path) for i, path in lineage.image_paths(config, ids).items()}
    folder, predictions = paths.logits_dir(split), paths.prediction_dir(split)
    for item in progress(loader, "test"):
        name = item["name"]
        scores, label = segment(network, item["image"].to(device), model_path)
        lineage.forget_picture(folder, name)
        logits.save_logits(folder / f"{name}{logits.SUFFIX}", scores)
        write_label(predictions / f"{name}{PREDICTION_SUFFIX}", label)
        lineage.record_picture(folder, name, hashes[name])
    barrier()
    if not ids:
        return None
    seconds = (time.perf_counter() - start) / len(ids)
    log(f"test: {len(ids)} pictures, {seconds:.3f} s each")
    return round(seconds, 4)


def publish(
    config: Config,
    split: Split,
    pictures: IdList,
    ground_truth: Mapping[str, Path],
    facts: Mapping[str, Any],
    crf: bool = False,
) -> dict[str, Any]:
    """Score the predictions of a split and print the table; write the archive of a test split.

    Args:
        config: configuration.
        split: whose predictions.
        pictures: its list.
        ground_truth: label map of every id; empty when there are none.
        facts: what the scores depend on, for the file.
        crf: whether these are the predictions after the CRF.

    Returns:
        The scores; empty without ground truth.
    """
    paths, names = Paths(config), class_names(config)
    predictions = paths.prediction_dir(split, crf)
    if (split == "test" or not ground_truth) and is_main_process():
        images = lineage.image_paths(config, pictures.ids)
        write_submission(paths.submission_path(split, crf), predictions, images, len(names))
    if not ground_truth:
        log(f"{describe(pictures)} has no ground truth, so there are no scores.")
        return {}
    confusion = scoring.compare(predictions, ground_truth, len(names), "run test again")
    scores = scoring.scores_of(confusion, names)
    facts = {"split": split, "list": lineage.list_facts(pictures), **facts}
    if facts[_SECONDS] is None and (earlier := scoring.read_scores(paths.scores_path(split, crf))):
        facts[_SECONDS] = earlier.get(_SECONDS)  # of the same outputs, else it would be gone
    scoring.write_scores(
        paths.scores_path(split, crf), scores, config, pictures=len(pictures), **facts
    )
    columns = {COLUMN_CRF if crf else COLUMN: scores}
    plain = scoring.read_scores(paths.scores_path(split)) if crf else None
    if plain is not None and plain["model"]["sha256"] == facts["model"]["sha256"]:
        columns = {COLUMN: plain, **columns}
    scoring.log_table(f"IoU in % on {describe(pictures)}", names, columns)
    constant = scores[scoring.CONSTANT_BACKGROUND][scoring.MEAN_IOU]
    log(f"for comparison: background everywhere has a mean IoU of {scoring.in_percent(constant)} %")
    return scores
