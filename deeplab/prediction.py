"""Segment any pictures with a trained network.

Reads a picture or a folder of them; writes the label map `NAME.png` with the VOC palette and
`NAME_overlay.jpg`, the label map over the photo. Beside them `NAME.crc` tells which picture they
are of and what made them: the same command goes on where it was stopped, and makes again what other
weights or settings made. Files without that are not ours and are never replaced.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from deeplab import lineage
from deeplab.config import Config, class_names
from deeplab.crf import refine_logits
from deeplab.data import to_input
from deeplab.inference import fetch, load_network, segment
from deeplab.model import MultiScale
from misc.distributed import (
    gather_shards,
    join_processes,
    on_main,
    require_shared,
    shard,
    together,
    world_size,
)
from misc.errors import UserError
from misc.files import atomic_path, sha256_file
from misc.loading import eval_loader, to_device
from misc.maps_io import read_image, write_label
from misc.progress import log, progress
from misc.provenance import Record, read_record, record_path, write_record
from misc.tables import percent, show
from misc.transforms import NEAREST, resize
from misc.visualize import overlay_label
from misc.writing import BackgroundWriter
from net.crf import require_backend
from voc12.lists import some_of

OVERLAY_ENDING = "_overlay.jpg"
_OVERLAY_QUALITY = 92
_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")
_UNFINISHED = "unfinished"


class Segmenter(NamedTuple):
    """A network and how it segments pictures."""

    network: MultiScale
    weights: Path
    config: Config
    device: torch.device
    crf: bool


class Outcome(NamedTuple):
    """What the log says of a picture, and whether it is one."""

    text: str
    readable: bool


def run(
    config: Config,
    model_path: Path,
    source: Path,
    output: Path,
    device: torch.device,
    crf: bool = False,
) -> int:
    """Segment a picture or the pictures of a folder; those that are done are kept.

    Args:
        config: configuration; pictures get the long side IMAGE.SIZE.TEST for the network, and their
            label maps the pictures' own size.
        model_path: trained weights.
        source: a picture, or a folder whose pictures are taken (not those of its subfolders).
        output: folder for the results; created when needed.
        device: of the network.
        crf: refine with the dense CRF.

    Returns:
        Number of pictures that were segmented now.

    Raises:
        UserError: there is no picture, weights do not fit the configuration, files that are not
            ours are in the way, or some pictures could not be read; the others are done then.
    """
    join_processes(device)
    paths = on_main(lambda: find_pictures(source, output))
    require_shared(output, "--output")
    with together():
        if crf:
            require_backend(config.CRF.BACKEND)
        network = load_network(config, model_path, device)
        record = lineage.prediction(config, sha256_file(model_path), crf)
    left = on_main(lambda: _pictures_left(paths, output, record, model_path))
    log(
        f"predict: {len(left)} of {len(paths)} pictures of {source} to do with {model_path} on "
        f"{device}"
    )
    segmenter = Segmenter(network, model_path, config, device, crf)
    with together():
        share = _predict(shard(left), output, record, segmenter)
    unreadable = _told_by_all(left, gather_shards(share))
    if unreadable:
        raise UserError(
            f"{len(unreadable)} of {len(paths)} files of {source} cannot be read as pictures: "
            f"{some_of(unreadable)}; the others are done, replace or remove these."
        )
    log(f"predict: all {len(paths)} pictures are done in {output}")
    return len(left)


def _told_by_all(paths: Sequence[Path], outcomes: Sequence[Outcome]) -> list[str]:
    """Log what the other processes would say, and return the names of what is no picture."""
    for outcome in (one for index, one in enumerate(outcomes) if index % world_size()):
        log(outcome.text)
    return [path.name for path, one in zip(paths, outcomes, strict=True) if not one.readable]


def find_pictures(source: Path, output: Path) -> list[Path]:
    """The pictures to segment, by name.

    Raises:
        UserError: there is none, two have the same name, or the results would overwrite them.
    """
    if source.is_dir():
        paths = sorted(path for path in source.iterdir() if _is_picture(path))
    elif source.is_file():
        paths = [source]
    else:
        raise UserError(f"--input {source} does not exist; name a picture or a folder of pictures.")
    if not paths:
        raise UserError(f"--input {source} holds no pictures, such as NAME.jpg or NAME.png.")
    if output.resolve() == paths[0].parent.resolve():
        raise UserError(f"--output {output} is the folder of the pictures; choose another one.")
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; name a folder.")
    first = {path.stem: path for path in reversed(paths)}
    for path in paths:
        if first[path.stem] != path:
            raise UserError(
                f"--input {source}: {first[path.stem].name} and {path.name} would both be written "
                f"as {path.stem}.png; rename one of them."
            )
    return paths


def _is_picture(path: Path) -> bool:
    """Whether a file of a folder is meant: a PDF or a video beside the photos is not."""
    hidden = path.name.startswith(".")
    return path.is_file() and path.suffix.lower() in _PICTURE_SUFFIXES and not hidden


# ------------------------------------------------------------------------------ going on, redoing


def _pictures_left(
    paths: Sequence[Path], output: Path, record: Record, model_path: Path
) -> list[Path]:
    """The pictures to do; says what differs where others made what is there.

    Raises:
        UserError: files that are not ours are in the way.
    """
    recorded = read_record(output)
    _require_own_files(paths, output, recorded)
    left = [path for path in paths if not _is_done(path, output, record)]
    differences = record.differences(recorded) if recorded else []
    if differences:
        log(f"{output}: what is there is made again, as {'; '.join(differences)}.")
    if left:
        output.mkdir(parents=True, exist_ok=True)
        write_record(output, record, facts={"model": str(model_path)})
    return left


def _require_own_files(paths: Sequence[Path], output: Path, recorded: Record | None) -> None:
    if recorded is not None and recorded.step != lineage.PREDICT:
        raise UserError(
            f"--output {output} belongs to the step {recorded.step}, see {record_path(output)}; "
            "choose another folder."
        )
    foreign = [
        target.name
        for path in paths
        for target in _targets(path, output)
        if target.exists()
        and (recorded is None or lineage.recorded_picture(output, path.stem) is None)
    ]
    if foreign:
        raise UserError(
            f"--output {output} has {len(foreign)} files that predict has not made and would "
            f"replace: {some_of(foreign)}; choose another folder or move them away."
        )


def _targets(path: Path, output: Path) -> tuple[Path, Path]:
    """Label map and overlay of a picture."""
    return output / f"{path.stem}.png", output / f"{path.stem}{OVERLAY_ENDING}"


def _is_done(path: Path, output: Path, record: Record) -> bool:
    there = all(target.is_file() for target in _targets(path, output))
    return there and lineage.recorded_picture(output, path.stem) == _origin(path, record)


def _origin(path: Path, record: Record) -> str:
    """What the outputs of a picture depend on."""
    return f"{lineage.picture_hash(path)} {record.fingerprint}"


# -------------------------------------------------------------------------------- every picture


class _Photos(Dataset[dict[str, Any]]):
    """Pictures of a folder; use with `DataLoader(batch_size=None)`.

    Items:
        index (int) and origin (str, see `_origin`); of a file that is no picture error (str); of a
        picture image (h, w, 3) uint8 RGB, scaled, which has the long side for the network, and
        input (3, h', w') float32, what the network gets of that.
    """

    def __init__(self, paths: Sequence[Path], record: Record, config: Config) -> None:
        self.paths, self.record, self.config = paths, record, config

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, settings = self.paths[index], self.config.IMAGE
        # Before it is read: a picture replaced meanwhile is done again.
        item = {"index": index, "origin": _origin(path, self.record)}
        try:
            image = read_image(path)
        except UserError as error:
            return {**item, "error": str(error)}
        long_side = settings.SIZE.TEST
        scaled = image if long_side is None else scale_long_side(image, long_side)
        return {**item, "image": image, "scaled": scaled, "input": to_input(scaled, settings.MEAN)}


def _predict(
    paths: Sequence[Path], output: Path, record: Record, segmenter: Segmenter
) -> list[Outcome]:
    """Segment pictures and write their files."""
    config, device = segmenter.config, segmenter.device
    workers = config.DATALOADER.NUM_WORKERS if len(paths) > 1 else 0
    loader = eval_loader(_Photos(paths, record, config), None, workers, device)
    names, outcomes = class_names(config), []
    with BackgroundWriter() as writer:
        for item in progress(loader, "predict"):
            path = paths[item["index"]]
            if "error" in item:
                outcomes.append(_told(f"left out: {item['error']}", readable=False))
                continue
            image = item["image"].numpy()
            label = _label(item, segmenter)
            writer.submit(path.name, _write, path, output, item["origin"], image, label)
            outcomes.append(_told(f"{path.name}: {contents(label, names)}", readable=True))
    return outcomes


def _write(path: Path, output: Path, origin: str, image: np.ndarray, label: np.ndarray) -> None:
    label_map, overlay = _targets(path, output)
    lineage.record_picture(output, path.stem, _UNFINISHED)  # ours from here on
    write_label(label_map, label)
    with atomic_path(overlay) as temporary:
        Image.fromarray(overlay_label(image, label)).save(temporary, quality=_OVERLAY_QUALITY)
    lineage.record_picture(output, path.stem, origin)


def _told(text: str, readable: bool) -> Outcome:
    log(text)
    return Outcome(text, readable)


def _label(item: dict[str, Any], segmenter: Segmenter) -> np.ndarray:
    """Segment a picture of `_Photos`: (h, w) uint8 labels."""
    image = to_device(item["input"], segmenter.device)
    found = segment(segmenter.network, image, segmenter.config.SOLVER.PRECISION)
    logits, label = fetch(*found, segmenter.weights)
    if segmenter.crf:
        label = refine_logits(logits, item["scaled"].numpy(), segmenter.config)
    return resize(label, tuple(item["image"].shape[:2]), NEAREST)


def scale_long_side(image: np.ndarray, long_side: int) -> np.ndarray:
    """Scale an (h, w, 3) uint8 picture up or down, bilinearly as OpenCV does."""
    height, width = image.shape[:2]
    factor = long_side / max(height, width)
    # a side that would vanish keeps one pixel
    return cv2.resize(image, None, fx=max(factor, 1 / width), fy=max(factor, 1 / height))


def contents(label: np.ndarray, names: Sequence[str]) -> str:
    """Which classes a label map holds, and their shares of the picture: `bird 12.30 %, ..`."""
    counts = np.bincount(label.ravel(), minlength=len(names))
    found = [index for index in np.argsort(-counts, kind="stable") if index and counts[index]]
    shares = [f"{names[index]} {show(percent(counts[index] / label.size))} %" for index in found]
    return ", ".join(shares) or f"{names[0]} only"
