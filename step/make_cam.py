"""Step 2: class activation maps of both branches over all scales, fused.

Reads pictures and image labels of `--train_list` and `--infer_list`, and the branches' weights;
writes `result/cam/ID.npz` with keys (K,), cam (K, ceil(h/4), ceil(w/4)) and high_res (K, h, w).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from misc.distributed import select_device, together
from misc.errors import UserError
from misc.file_memory import FileMemory
from misc.loading import eval_loader, to_device
from misc.maps_io import save_cam
from misc.precision import autocast
from misc.progress import log, progress
from misc.writing import BackgroundWriter
from net.cam_maps import fuse, normalise_maps, sum_scales
from net.deit_cam import DeitCam
from net.resnet_cam import CnnCam
from step.cam_origins import CamOrigin, cam_origins
from step.networks import load_branches
from step.plan import OUTPUTS, STEPS, begin
from step.run import Run
from voc12.dataset import MultiScaleDataset

STEP = "make_cam"


def multi_scale_cams(
    branch: CnnCam | DeitCam, images: Sequence[Tensor], tile_batch: int = 32
) -> list[Tensor]:
    """CAMs (C, h_s, w_s) of one picture at several scales, each summed with its mirror image's."""
    if isinstance(branch, DeitCam):
        return branch.cams(images, tile_batch)
    return [branch.cam(image) for image in images]


def picture_cams(
    branches: Sequence[CnnCam | DeitCam],
    images: Sequence[Tensor],
    size: tuple[int, int],
    keys: np.ndarray,
    fusion: str,
    tile_batch: int = 32,
) -> tuple[Tensor, Tensor]:
    """Normalised, fused CAMs of the classes `keys` of one picture.

    Args:
        branches: CNN, transformer or both, in evaluation mode.
        images: the normalised picture at every scale, (3, h_s, w_s), on the branches' device.
        size: (h, w) of the picture.
        keys: (K,) class indices from 0.
        fusion: see `net.cam_maps.fuse`.
        tile_batch: tiles per transformer pass.

    Returns:
        cam (K, ceil(h / 4), ceil(w / 4)) and high_res (K, h, w), float32 in 0..1.
    """
    index = torch.as_tensor(keys).to(images[0].device, non_blocking=True)
    coarse, full = [], []
    for branch in branches:
        maps = [cam[index] for cam in multi_scale_cams(branch, images, tile_batch)]
        for target, summed in zip((coarse, full), sum_scales(maps, size), strict=True):
            target.append(normalise_maps(summed))
    return fuse(coarse, fusion), fuse(full, fusion)


def run(run: Run) -> dict[str, Any]:
    """Write the CAMs of every picture of the training and the inference list.

    Raises:
        UserError: the CAMs of a picture are not finite.
    """
    options, source, device = run.options, run.source, select_device(run.options.device)
    labels = source.image_labels(run.ids("train_list", "infer_list"))
    keys = {image_id: np.flatnonzero(label) for image_id, label in labels.items()}
    work = begin(STEP, run, partial(_left, run, keys))
    log(f"{STEP}: {len(work.left)} of {len(work.ids)} pictures, fusion {options.cam_fusion}")
    with (
        together(),
        cam_origins(options.cache_dir, options.cam_out_dir) as origins,
        BackgroundWriter() as writer,
    ):
        hashes = source.picture_hashes(work.share)
        for name, *maps in infer(run, work.share, keys, device):
            origin = CamOrigin(tuple(keys[name].tolist()), hashes[name])
            writer.submit(name, _write, run, name, keys[name], maps, origin, origins)
    return {"pictures": len(work.ids), "made": len(work.left)}


def _write(
    run: Run,
    name: str,
    keys: np.ndarray,
    maps: Sequence[Tensor],
    origin: CamOrigin,
    origins: FileMemory[CamOrigin],
) -> None:
    path, (cam, high_res) = OUTPUTS["cam_out_dir"].file(run, name), fetch(run, name, *maps)
    save_cam(path, keys, cam, high_res, origin.picture)
    origins.learn(path, origin)


def infer(
    run: Run,
    ids: Sequence[str],
    keys: Mapping[str, np.ndarray],
    device: torch.device,
    description: str = STEP,
    use_attention: bool = True,
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Id, cam and high_res of every picture, on the device; see `picture_cams` and `fetch`.

    Nothing here waits for a GPU: it is given the next picture while it still computes one.

    Args:
        run: the run.
        ids: of the pictures.
        keys: (K,) class indices from 0 of every picture, by id.
        device: where the branches run.
        description: text before the bar.
        use_attention: see `net.deit_cam.DeitCam`.
    """
    options, branches = run.options, load_branches(run, device, use_attention)
    dataset = MultiScaleDataset(run.source.devkit, ids, options.cam_scales)
    loader = eval_loader(dataset, None, options.num_workers, device)
    for item in progress(loader, description):
        name = item["name"]
        with autocast(device, options.precision):
            cam, high_res = picture_cams(
                branches,
                to_device(item["images"], device),
                tuple(item["size"]),
                keys[name],
                options.cam_fusion,
                options.cam_tile_batch,
            )
        yield name, cam, high_res


def fetch(run: Run, name: str, *maps: Tensor) -> list[np.ndarray]:
    """Maps of a picture from the device.

    Raises:
        UserError: they are not finite; names the weights that the fusion uses.
    """
    arrays = [one.cpu().numpy() for one in maps]
    if all(np.isfinite(array).all() for array in arrays):
        return arrays
    used = [one for one in STEPS[STEP].reads if one.is_used(run.options)]
    weights = " or ".join(str(OUTPUTS[one.name].path(run)) for one in used)
    raise UserError(
        f"{name}: the class activation maps are not finite; {weights} is damaged or the training "
        "diverged, train again with a lower learning rate and --overwrite."
    )


def _left(run: Run, keys: Mapping[str, np.ndarray], ids: Sequence[str]) -> list[str]:
    """Pictures without CAMs, or with those of another picture or of other classes than now."""
    options, output, hashes = run.options, OUTPUTS["cam_out_dir"], run.source.picture_hashes(ids)
    now = {i: CamOrigin(tuple(keys[i].tolist()), hashes[i]) for i in ids}
    with cam_origins(options.cache_dir, options.cam_out_dir) as origins:
        paths = {i: output.file(run, i) for i in ids}
        return [i for i, path in paths.items() if not path.is_file() or origins.of(path) != now[i]]
