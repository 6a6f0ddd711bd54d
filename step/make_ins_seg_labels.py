"""Step 6: instance masks, by walking the CAMs of every displacement cluster apart.

Reads pictures of `--infer_list`, `result/cam` and `sess/res50_irn.pth`; writes
`result/ins_seg/ID.npz` with score (n,), class (n,) and mask (n, h, w).
"""

from collections.abc import Sequence
from typing import Any

from misc.maps_io import save_instances
from misc.writing import BackgroundWriter
from net.instances import instances_from_maps
from step.plan import OUTPUTS
from step.run import Run
from step.walk import infer, write_left

STEP = "make_ins_seg_labels"


def run(run: Run) -> dict[str, Any]:
    """Write the instances of the inference list."""
    return write_left(STEP, run, write)


def write(run: Run, ids: Sequence[str], writer: BackgroundWriter) -> None:
    """Write the instances of some pictures."""
    options = run.options
    for one in infer(run, ids, STEP, with_displacement=True):
        found = instances_from_maps(
            one.cam,
            one.edge,
            one.displacement,
            one.keys,
            one.size,
            options.ins_seg_bg_thres,
            options.beta,
            options.exp_times,
            options.walk_radius,
        )
        path = OUTPUTS["ins_seg_out_dir"].file(run, one.name)
        writer.submit(one.name, save_instances, path, found.score, found.class_id, found.mask)
