"""Pictures with maps and boxes: single ones, and one figure of a few with all maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from misc.distributed import (
    gather_shards,
    join_processes,
    on_main,
    require_shared,
    select_device,
    shard,
    together,
)
from misc.files import atomic_path
from misc.loading import eval_loader, to_device
from misc.maps_io import read_image
from misc.precision import with_settled_precision
from misc.progress import log, progress
from misc.transforms import resize
from misc.visualize import FigureRow, draw_box, heat_map, save_figure, spread
from net.folding import fold_batch_norms
from wsol.config import Config, paths_of
from wsol.localization import boxes_at, cam_to_heat, require_finite
from wsol.model import Networks, load_networks, localise, views
from wsol.pictures import BILINEAR, NO_SCALED_BOX, Picture
from wsol.source import open_pictures, whole_pictures

PHOTO, ATTENTION = "true red, found green", "attention"
CNN, TRANSFORMER, FUSED = "CNN", "transformer", "CRT: maps x attention"
COLUMNS = (PHOTO, ATTENTION, CNN, TRANSFORMER, FUSED)
TRUE_COLOUR, ESTIMATED_COLOUR = (255, 0, 0), (0, 255, 0)  # red and green, as published
_JPEG_QUALITY = 92
_HEAT_MAX = 255


def square_photo(path: Path, size: int) -> np.ndarray:
    """A picture as the networks see it: (S, S, 3) uint8."""
    return resize(read_image(path), (size, size), BILINEAR)


def with_heat(photo: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """Lay a map (h, w), stretched to its whole range, over a square photo (S, S, 3) uint8."""
    heat = cam_to_heat(cam, len(photo)) / _HEAT_MAX
    return heat_map(photo, heat[None])


def with_boxes(
    photo: np.ndarray, truth: np.ndarray | None, estimated: np.ndarray | None
) -> np.ndarray:
    """Draw the true box in red and the estimated one in green, each (4,) x1, y1, x2, y2."""
    last = len(photo) - 1  # an estimated box ends behind its last pixel
    for box, colour in ((truth, TRUE_COLOUR), (estimated, ESTIMATED_COLOUR)):
        if box is not None:
            photo = draw_box(photo, np.minimum(box, last), colour)
    return photo


def save_boxed(
    path: Path, photo: np.ndarray, cam: np.ndarray, truth: np.ndarray | None, estimated: np.ndarray
) -> None:
    """Write a JPEG: the map (h, w) over the photo (S, S, 3), with both boxes."""
    picture = with_boxes(with_heat(photo, cam), truth, estimated)
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, quality=_JPEG_QUALITY)


def draw(
    config: Config,
    weights: Path | None,
    count: int,
    output: Path | None = None,
    device_name: str = "auto",
) -> Path:
    """Draw pictures of TEST.SPLIT, spread evenly over it, with the maps of their true class.

    Args:
        config: from `wsol.config.load`.
        weights: checkpoint in the published layout; None for the last epoch of the configured run.
        count: number of pictures.
        output: PNG; None for figure.png of the configured run.
        device_name: see `misc.distributed.select_device`.

    Returns:
        The file.

    Raises:
        UserError: bad data, or a checkpoint that is missing, holds other networks or is of no use.
    """
    device, paths, split = select_device(device_name), paths_of(config), config.TEST.SPLIT
    weights, output = weights or paths.last, output or paths.figure
    join_processes(device)
    config = with_settled_precision(config, device)
    require_shared(paths.folder, "BASIC.SAVE_DIR")
    with together():
        networks = load_networks(config, weights).to(device)
        if networks.cnn is not None:
            fold_batch_norms(networks.cnn)
    image_set = open_pictures(config, (split,))
    share = shard(spread(image_set.split(split), count))
    with together():
        loader = eval_loader(
            whole_pictures(config, share), batch_size=1, num_workers=0, device=device
        )
        rows = [
            _row(config, networks, share[int(batch["index"])], batch, image_set.class_names)
            for batch in (to_device(b, device) for b in progress(loader, "visualize"))
        ]
    rows = gather_shards(rows)
    on_main(lambda: save_figure(output, rows, COLUMNS, ()))
    log(f"{output} shows {len(rows)} of {len(image_set.split(split))} pictures of {split}.")
    return output


def _row(
    config: Config,
    networks: Networks,
    picture: Picture,
    batch: dict[str, Any],
    names: Sequence[str],
) -> FigureRow:
    images, label = batch["image"], batch["label"]
    logits, cam = localise(networks, images, label, config.MODEL.CAM)
    require_finite(_array(logits), _array(cam), picture.path)
    (estimated,) = boxes_at(_array(cam), [config.MODEL.CAM_THR], config.DATA.CROP_SIZE)
    box = batch["box"][0].cpu().numpy()
    truth = None if tuple(box) == NO_SCALED_BOX else box
    photo = square_photo(picture.path, config.DATA.CROP_SIZE)
    maps, _ = views(networks, images, label)
    cells = {PHOTO: with_boxes(photo, truth, estimated)}
    shown = (maps.attention, maps.cnn, maps.class_map, maps.fused)
    for title, one in zip((ATTENTION, CNN, TRANSFORMER, FUSED), shown, strict=True):
        if one is not None:
            cells[title] = with_heat(photo, _array(one))
    best = names[int(logits.argmax())] if int(logits.argmax()) < len(names) else "unknown class"
    told = "" if best == names[picture.label] else f", taken for {best}"
    return FigureRow(f"{picture.name}{told}", cells)


def _array(values: torch.Tensor) -> np.ndarray:
    """What a batch of one picture holds."""
    return values[0].cpu().numpy()
