"""What the two steps of the random walk share: IRNet's maps beside the CAMs of every picture."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from misc.distributed import select_device, together
from misc.errors import UserError
from misc.maps_io import CamMaps, load_cam
from misc.precision import autocast
from misc.progress import log, progress
from misc.training import eval_loader
from step.networks import load_irn
from step.plan import OUTPUTS, begin
from step.run import Run
from voc12.dataset import MultiScaleDataset


class Inference(NamedTuple):
    """One picture on its way to labels: name, size (h, w), CAMs, IRNet's maps on the device.

    There are displacements where they are asked for.
    """

    name: str
    size: tuple[int, int]
    maps: CamMaps
    cam: Tensor
    edge: Tensor
    displacement: Tensor | None


def infer(
    run: Run, ids: Sequence[str], description: str, with_displacement: bool = False
) -> Iterator[Inference]:
    """Run IRNet on pictures at their original size.

    Raises:
        UserError: what it says about a picture is not finite.
    """
    options, device = run.options, select_device(run.options.device)
    model = load_irn(run, device)
    dataset = MultiScaleDataset(run.source.devkit, ids, (1.0,))
    for item in progress(eval_loader(dataset, None, options.num_workers), description):
        name = item["name"]
        with autocast(device, options.precision):
            image = item["images"][0].to(device)
            edge, displacement = model.edge_displacement(
                image, options.irn_min_input, with_displacement
            )
        if not all(one.isfinite().all() for one in (edge, displacement) if one is not None):
            raise UserError(
                f"{name}: the edges or displacements are not finite; {options.irn_weights_name} is "
                "damaged or its training diverged, train it again with a lower "
                "--irn_learning_rate and --overwrite."
            )
        maps = load_cam(OUTPUTS["cam_out_dir"].file(run, name))
        cam = torch.from_numpy(maps.cam).to(device)
        yield Inference(name, tuple(item["size"]), maps, cam, edge, displacement)


def write_left(step: str, run: Run, write: Callable[[Run, Sequence[str]], None]) -> dict[str, Any]:
    """Start a step, let every process write its share of what is left, and count it."""
    work = begin(step, run)
    log(f"{step}: {len(work.left)} pictures to do")
    with together():
        write(run, work.share)
    return {"made": len(work.left)}
