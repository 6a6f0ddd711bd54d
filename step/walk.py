"""What the two steps of the random walk share: IRNet's maps beside the CAMs of every picture."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from misc.distributed import select_device, together
from misc.errors import UserError
from misc.loading import eval_loader, to_device
from misc.maps_io import load_cam
from misc.precision import autocast
from misc.progress import log, progress
from misc.writing import BackgroundWriter
from step.networks import load_irn
from step.plan import OUTPUTS, begin
from step.run import Run
from voc12.dataset import MultiScaleDataset
from voc12.devkit import Devkit


class Inference(NamedTuple):
    """One picture on its way to labels.

    Attributes:
        name: its id.
        size: (h, w).
        keys: (K,) class indices from 0.
        cam: (K, ceil(h / 4), ceil(w / 4)), like what follows on the device.
        edge: (1, ceil(h / 4), ceil(w / 4)).
        displacement: (2, ceil(h / 4), ceil(w / 4)), or None where it is not asked for.
    """

    name: str
    size: tuple[int, int]
    keys: np.ndarray
    cam: Tensor
    edge: Tensor
    displacement: Tensor | None


class _PicturesWithCams(MultiScaleDataset):
    """Pictures at their original size, each with `keys` and `cam` of its CAMs."""

    def __init__(self, devkit: Devkit, ids: Sequence[str], cams: Sequence[Path]) -> None:
        super().__init__(devkit, ids, (1.0,))
        self.cams = tuple(cams)

    def __getitem__(self, index: int) -> dict[str, Any]:
        maps = load_cam(self.cams[index])
        return {**super().__getitem__(index), "keys": maps.keys, "cam": maps.cam}


def infer(
    run: Run, ids: Sequence[str], description: str, with_displacement: bool = False
) -> Iterator[Inference]:
    """Run IRNet on pictures at their original size.

    Raises:
        UserError: what it says about a picture is not finite.
    """
    options, device = run.options, select_device(run.options.device)
    model = load_irn(run, device)
    cams = [OUTPUTS["cam_out_dir"].file(run, image_id) for image_id in ids]
    dataset = _PicturesWithCams(run.source.devkit, ids, cams)
    for item in progress(eval_loader(dataset, None, options.num_workers, device), description):
        name = item["name"]
        image, cam = to_device([*item["images"], item["cam"]], device)
        with autocast(device, options.precision):
            edge, displacement = model.edge_displacement(
                image, options.irn_min_input, with_displacement
            )
        if not all(one.isfinite().all() for one in (edge, displacement) if one is not None):
            raise UserError(
                f"{name}: the edges or displacements are not finite; {options.irn_weights_name} is "
                "damaged or its training diverged, train it again with a lower "
                "--irn_learning_rate and --overwrite."
            )
        keys = item["keys"].numpy()
        yield Inference(name, tuple(item["size"]), keys, cam, edge, displacement)


def write_left(
    step: str, run: Run, write: Callable[[Run, Sequence[str], BackgroundWriter], None]
) -> dict[str, Any]:
    """Start a step, let every process write its share of what is left, and count it."""
    work = begin(step, run)
    log(f"{step}: {len(work.left)} pictures to do")
    with together(), BackgroundWriter() as writer:
        write(run, work.share, writer)
    return {"made": len(work.left)}
