"""Segment any pictures with a trained network.

Reads a picture or a folder of them; writes the label map `NAME.png` with the VOC palette and
`NAME_overlay.jpg`, the label map over the photo.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from deeplab.config import Config, class_names
from deeplab.data import to_input
from deeplab.inference import load_network, segment
from deeplab.model import MultiScale
from deeplab.refinement import refine_logits
from misc.crf import require_densecrf
from misc.errors import UserError
from misc.evaluation import percent, show
from misc.files import atomic_path
from misc.maps_io import read_image, write_label
from misc.progress import log, progress
from misc.transforms import NEAREST, resize, resize_long_side
from misc.visualize import overlay_label
from voc12.lists import some_of

OVERLAY_ENDING = "_overlay.jpg"
_OVERLAY_QUALITY = 92
_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")


class Options(NamedTuple):
    """How pictures are segmented."""

    device: torch.device
    crf: bool
    max_side: int


def run(
    config: Config,
    model_path: Path,
    source: Path,
    output: Path,
    device: torch.device,
    crf: bool = False,
    max_side: int = 1024,
) -> int:
    """Segment a picture or the pictures of a folder.

    Args:
        config: configuration.
        model_path: trained weights.
        source: a picture, or a folder whose pictures are taken (not those of its subfolders).
        output: folder for the results; created when needed.
        device: of the network.
        crf: refine with the dense CRF.
        max_side: larger pictures are reduced to this long side for the network, and their label
            maps enlarged again.

    Returns:
        Number of segmented pictures.

    Raises:
        UserError: there is no picture, weights do not fit the configuration, or some pictures could
            not be read; the others are done then.
    """
    _require_usable(max_side, crf)
    paths = find_pictures(source, output)
    network, options = load_network(config, model_path, device), Options(device, crf, max_side)
    log(f"predict: {len(paths)} pictures of {source} with {model_path} on {device}")
    unreadable = []
    for path in progress(paths, "predict"):
        try:
            image = read_image(path)
        except UserError as error:
            log(f"left out: {error}")
            unreadable.append(path.name)
        else:
            label = label_picture(network, image, config, options)
            _write(output, path.stem, image, label)
            log(f"{path.name}: {contents(label, class_names(config))}")
    if unreadable:
        raise UserError(
            f"{len(unreadable)} of {len(paths)} files of {source} cannot be read as pictures: "
            f"{some_of(unreadable)}; the others are done, replace or remove these."
        )
    log(f"predict: wrote {output}")
    return len(paths)


def _require_usable(max_side: int, crf: bool) -> None:
    if max_side < 1:
        raise UserError(f"--max-side is {max_side}; give a number of pixels, at least 1.")
    if crf:
        require_densecrf()


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


def label_picture(
    network: MultiScale, image: np.ndarray, config: Config, options: Options
) -> np.ndarray:
    """Segment an (h, w, 3) uint8 RGB picture of any size; returns (h, w) uint8 labels."""
    size = image.shape[:2]
    small = resize_long_side(image, options.max_side) if max(size) > options.max_side else image
    logits, label = segment(network, to_input(small, config.IMAGE.MEAN).to(options.device))
    if options.crf:
        label = refine_logits(logits, small, config)
    return resize(label, size, NEAREST)


def contents(label: np.ndarray, names: Sequence[str]) -> str:
    """Which classes a label map holds, and their shares of the picture: `bird 12.30 %, ..`."""
    counts = np.bincount(label.ravel(), minlength=len(names))
    found = [index for index in np.argsort(-counts, kind="stable") if index and counts[index]]
    shares = [f"{names[index]} {show(percent(counts[index] / label.size))} %" for index in found]
    return ", ".join(shares) or f"{names[0]} only"


def _write(output: Path, name: str, image: np.ndarray, label: np.ndarray) -> None:
    write_label(output / f"{name}.png", label)
    with atomic_path(output / f"{name}{OVERLAY_ENDING}") as temporary:
        Image.fromarray(overlay_label(image, label)).save(temporary, quality=_OVERLAY_QUALITY)
