"""Step 8: pseudo masks, by a random walk of the CAMs that stops at IRNet's edges.

Reads pictures of `--infer_list`, `result/cam` and `sess/res50_irn.pth`; writes palette PNGs
`result/sem_seg/ID.png` and the edge maps `result/edge/ID.png` (gray, a quarter of the size).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from misc.distributed import select_device, shard
from misc.errors import UserError
from misc.files import atomic_path, up_to_date
from misc.maps_io import CamMaps, load_cam, write_label
from misc.progress import log, progress
from misc.training import autocast, eval_loader
from net.irn import IRNet
from net.pretrained import load_weights
from net.pseudo_labels import propagate_to_label
from step import lineage
from step.plan import outputs_of, prepare_outputs
from step.run import Run
from step.train_irn import build_model
from voc12.dataset import MultiScaleDataset

STEP = "make_sem_seg_labels"
SUFFIX = ".png"


class Inference(NamedTuple):
    """One picture on its way to labels: name, size (h, w), CAMs, IRNet's maps on the device."""

    name: str
    size: tuple[int, int]
    maps: CamMaps
    cam: Tensor
    edge: Tensor
    displacement: Tensor


def prepare(run: Run, step: str) -> list[str]:
    """Check the inputs, prepare the output folders, and return the ids that are left to do.

    A picture is done when all its outputs are there and newer than its CAM.

    Args:
        run: the run.
        step: the step that is about to run.
    """
    options = run.options
    lineage.require_input(options.irn_weights_name, lineage.irn_training, run)
    lineage.require_input(options.cam_out_dir, lineage.cams, run)
    ids = run.source.id_list(options.infer_list).ids
    lineage.require_ids(options.cam_out_dir, ".npz", ids, "make_cam")
    prepare_outputs(run, step)
    return [
        i
        for i in shard(ids)
        if not all(
            up_to_date(output.path / f"{i}{output.suffix}", options.cam_out_dir / f"{i}.npz")
            for output in outputs_of(run, step)
        )
    ]


def load_network(run: Run, device: torch.device) -> IRNet:
    """IRNet with its trained weights."""
    model = build_model(run, trained=True)
    load_weights(model, run.options.irn_weights_name, "irn")
    return model.to(device).eval()


def infer(run: Run, ids: list[str], description: str) -> Iterator[Inference]:
    """Run IRNet on pictures at their original size.

    Raises:
        UserError: what it says about a picture is not finite.
    """
    options = run.options
    device = select_device(options.device)
    model = load_network(run, device)
    dataset = MultiScaleDataset(run.source.devkit, ids, (1.0,))
    for item in progress(eval_loader(dataset, None, options.num_workers), description):
        with autocast(device, options.precision):
            image = item["images"][0].to(device)
            edge, displacement = model.edge_displacement(image, options.irn_min_input)
        if not (edge.isfinite().all() and displacement.isfinite().all()):
            raise UserError(
                f"{item['name']}: the edges or displacements are not finite; "
                f"{options.irn_weights_name} is damaged or its training diverged, train it again "
                "with a lower --irn_learning_rate and --overwrite."
            )
        maps = load_cam(options.cam_out_dir / f"{item['name']}.npz")
        cam = torch.from_numpy(maps.cam).to(device)
        yield Inference(item["name"], tuple(item["size"]), maps, cam, edge, displacement)


def write_edge(path: Path, edge: Tensor) -> None:
    """Write edge probabilities (1, h, w) as a gray PNG."""
    gray = np.round(edge[0].cpu().numpy() * 255).astype(np.uint8)
    with atomic_path(path) as temporary:
        Image.fromarray(gray).save(temporary)


def run(run: Run) -> dict[str, Any]:
    """Write the pseudo masks and edge maps of the inference list."""
    options = run.options
    left = prepare(run, STEP)
    log(f"{STEP}: {len(left)} pictures to do")
    for one in infer(run, left, STEP):
        label = propagate_to_label(
            one.cam,
            one.edge,
            one.maps.keys,
            one.size,
            options.sem_seg_bg_thres,
            options.beta,
            options.exp_times,
            options.walk_radius,
        )
        write_edge(options.edge_out_dir / f"{one.name}{SUFFIX}", one.edge)
        write_label(options.sem_seg_out_dir / f"{one.name}{SUFFIX}", label)
    return {"made": len(left)}
