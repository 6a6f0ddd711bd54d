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

from deeplab import lineage, logits, outputs
from deeplab.config import Config, Paths, Split, dataset_root
from deeplab.data import PictureDataset
from deeplab.initialisation import load_trained
from deeplab.model import MultiScale, build_model
from deeplab.preflight import check_evaluation
from misc.distributed import join_processes, on_main, require_shared, shard, together
from misc.errors import UserError
from misc.files import sha256_file, up_to_date
from misc.loading import eval_loader, to_device
from misc.maps_io import opened_image, write_label
from misc.precision import FLOAT32, autocast
from misc.progress import log, progress
from misc.seed import seed_everything
from misc.writing import BackgroundWriter
from net.folding import fold_batch_norms
from voc12.devkit import Devkit
from voc12.lists import IdList, describe


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
    network.to(device).eval()
    fold_batch_norms(network.base)
    return network


@torch.inference_mode()
def segment(network: MultiScale, image: Tensor, precision: str = FLOAT32) -> tuple[Tensor, Tensor]:
    """Segment one picture, without waiting for the device; see `fetch`.

    Args:
        network: in evaluation mode.
        image: (3, h, w) float32 BGR minus mean, on the device of the network.
        precision: see `misc.precision`.

    Returns:
        Logits (C, h', w') float32 at the stride of the network, and labels (h, w) uint8.
    """
    with autocast(image.device, precision):
        scores = network(image[None]).float()
    full = F.interpolate(scores, image.shape[-2:], mode="bilinear", align_corners=False)
    return scores[0], full[0].argmax(dim=0).to(torch.uint8)


def fetch(scores: Tensor, label: Tensor, weights: Path) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of `segment` from the device.

    Args:
        scores: (C, h', w').
        label: (h, w).
        weights: file of the network's weights, for messages.

    Raises:
        UserError: a logit is not finite, so that every label would be arbitrary.
    """
    logits = scores.cpu().numpy()
    if not np.isfinite(logits).all():
        raise UserError(
            f"with the weights {weights} the network gives class scores that are NaN or infinite; "
            "they are damaged or their training diverged, use another checkpoint."
        )
    return logits, label.cpu().numpy()


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
    require_shared(config.EXP.OUTPUT_DIR, "EXP.OUTPUT_DIR")
    pictures, ground_truth = on_main(lambda: check_evaluation(config, split))
    with together():
        network = load_network(config, model_path, device)
        model = {"path": str(model_path), "sha256": sha256_file(model_path)}
    log(f"test: {describe(pictures)} with {model_path} on {device}")
    stride = network.output_stride
    left = on_main(lambda: _prepare(config, split, pictures, model, stride, overwrite))
    start = time.perf_counter()
    with together():
        _segment_all(config, split, network, model_path, shard(left), device)
    facts = {
        "model": model,
        **on_main(lambda: lineage.training_facts(model_path)),
        "device": str(device),
        "seconds_per_picture": outputs.seconds_per_picture("test", len(left), start),
    }
    return outputs.publish(config, split, pictures, ground_truth, facts)


def _prepare(
    config: Config,
    split: Split,
    pictures: IdList,
    model: Mapping[str, str],
    stride: int,
    overwrite: bool,
) -> list[str]:
    """Prepare the output folders and return the pictures that are left to do."""
    paths, images = Paths(config), lineage.image_paths(config, pictures.ids)
    folder, predictions = paths.logits_dir(split), paths.prediction_dir(split)
    record = lineage.logits(config, model["sha256"], config.SOLVER.PRECISION)
    if overwrite:  # nothing is removed before it is known that all may be, and that the rest fits
        outputs.require_own(folder, record, logits.SUFFIX, pictures)
        outputs.require_own(predictions, record, outputs.PREDICTION_SUFFIX, pictures)
        _require_space(config, folder, images, pictures.ids, stride)
    outputs.prepare_folder(folder, record, logits.SUFFIX, pictures, overwrite)
    outputs.prepare_folder(predictions, record, outputs.PREDICTION_SUFFIX, pictures, overwrite)
    left = [image_id for image_id in pictures.ids if not _is_done(paths, split, image_id, images)]
    if not overwrite:
        _require_space(config, folder, images, left, stride)
    for target in (folder, predictions):
        lineage.update_record(target, record, pictures, {"model": model}, making=bool(left))
    for crf in (False, True) if left else ():  # scores of what is about to change
        paths.scores_path(split, crf).unlink(missing_ok=True)
    return left


def _is_done(paths: Paths, split: Split, image_id: str, images: Mapping[str, Path]) -> bool:
    """Whether the outputs of a picture are there and are its own."""
    folder = paths.logits_dir(split)
    scores = folder / f"{image_id}{logits.SUFFIX}"
    prediction = paths.prediction_dir(split) / f"{image_id}{outputs.PREDICTION_SUFFIX}"
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
) -> None:
    """Write logits and predictions of pictures."""
    paths = Paths(config)
    dataset = PictureDataset(Devkit(dataset_root(config)), ids, config.IMAGE.MEAN)
    loader = eval_loader(dataset, None, config.DATALOADER.NUM_WORKERS, device)
    # Hashed before they are read: a picture replaced meanwhile counts as changed next time.
    hashes = {i: lineage.picture_hash(path) for i, path in lineage.image_paths(config, ids).items()}
    folder, predictions = paths.logits_dir(split), paths.prediction_dir(split)

    def write(name: str, *found: Tensor) -> None:
        scores, label = fetch(*found, model_path)
        lineage.forget_picture(folder, name)
        logits.save_logits(folder / f"{name}{logits.SUFFIX}", scores)
        write_label(predictions / f"{name}{outputs.PREDICTION_SUFFIX}", label)
        lineage.record_picture(folder, name, hashes[name])

    with BackgroundWriter() as writer:
        for item in progress(loader, "test"):
            image = to_device(item["image"], device)
            found = segment(network, image, config.SOLVER.PRECISION)
            writer.submit(item["name"], write, item["name"], *found)
