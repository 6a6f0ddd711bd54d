"""One figure of a few pictures: photo with boxes, both networks' maps and what is made of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from misc.distributed import select_device
from misc.progress import log, progress
from misc.training import eval_loader, to_device
from misc.visualize import FigureRow, save_figure
from step.make_figure import spread
from wsol.config import Config, paths_of
from wsol.drawing import square_photo, with_boxes, with_heat
from wsol.evaluation import require_finite
from wsol.localization import boxes_at
from wsol.model import Networks, load_networks, localise, views
from wsol.pictures import NO_SCALED_BOX, Picture
from wsol.source import open_pictures, whole_pictures

PHOTO, CNN_CAM = "true red, found green", "CNN CAM"
ATTENTION, FUSED = "attention", "fused CAM"
COLUMNS = (PHOTO, CNN_CAM, ATTENTION, FUSED)


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
    networks = load_networks(config, weights).to(device)
    image_set = open_pictures(config, (split,))
    pictures = spread(image_set.split(split), count)
    loader = eval_loader(whole_pictures(config, pictures), batch_size=1, num_workers=0)
    rows = [
        _row(config, networks, pictures[int(batch["index"])], batch, image_set.class_names)
        for batch in (to_device(b, device) for b in progress(loader, "visualize"))
    ]
    save_figure(output, rows, COLUMNS, ())
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
    require_finite(_array(logits), _array(cam), picture)
    (estimated,) = boxes_at(_array(cam), [config.MODEL.CAM_THR], config.DATA.CROP_SIZE)
    box = batch["box"][0].cpu().numpy()
    truth = None if tuple(box) == NO_SCALED_BOX else box
    photo = square_photo(picture.path, config.DATA.CROP_SIZE)
    maps, _ = views(networks, images, label)
    cells = {PHOTO: with_boxes(photo, truth, estimated)}
    for title, one in ((CNN_CAM, maps.cnn), (ATTENTION, maps.attention), (FUSED, maps.fused)):
        if one is not None:
            cells[title] = with_heat(photo, _array(one))
    best = names[int(logits.argmax())] if int(logits.argmax()) < len(names) else "unknown class"
    told = "" if best == names[picture.label] else f", taken for {best}"
    return FigureRow(f"{picture.name}{told}", cells)


def _array(values: torch.Tensor) -> np.ndarray:
    """What a batch of one picture holds."""
    return values[0].cpu().numpy()
