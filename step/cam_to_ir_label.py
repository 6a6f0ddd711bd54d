"""Step 4: confident foreground and background of the CAMs, refined by a dense CRF.

Reads pictures of `--train_list` and `result/cam`; writes `result/ir_label/ID.png` with class
labels, 0 for background and 255 where neither is certain.
"""

from functools import partial
from typing import Any

from misc.distributed import shard
from misc.files import up_to_date
from misc.parallel import map_pictures
from misc.progress import log
from net.pseudo_labels import write_ir_label
from step import lineage
from step.plan import prepare_outputs
from step.run import Run

STEP = "cam_to_ir_label"
SUFFIX = ".png"


def run(run: Run) -> dict[str, Any]:
    """Write the IR labels of every picture of the training list."""
    options, source = run.options, run.source
    ids = source.id_list(options.train_list).ids
    lineage.require_input(options.cam_out_dir, lineage.cams, run)
    lineage.require_ids(options.cam_out_dir, ".npz", ids, "make_cam")
    prepare_outputs(run, STEP)
    work = [
        (source.devkit.image_path(i), options.cam_out_dir / f"{i}.npz", path)
        for i in shard(ids)
        if not up_to_date(
            path := options.ir_label_out_dir / f"{i}{SUFFIX}", options.cam_out_dir / f"{i}.npz"
        )
    ]
    log(f"cam_to_ir_label: {len(work)} of {len(ids)} pictures")
    label = partial(write_ir_label, fg_thres=options.conf_fg_thres, bg_thres=options.conf_bg_thres)
    map_pictures(label, work, options.num_workers, "cam_to_ir_label")
    return {"pictures": len(ids), "made": len(work)}
