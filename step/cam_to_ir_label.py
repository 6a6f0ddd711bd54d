"""Step 4: confident foreground and background of the CAMs, refined by a dense CRF.

Reads pictures of `--train_list` and `result/cam`; writes `result/ir_label/ID.png` with class
labels, 0 for background and 255 where neither is certain.
"""

from functools import partial
from typing import Any

from misc.distributed import together
from misc.parallel import map_pictures
from misc.progress import log
from net.crf import CrfParameters
from net.pseudo_labels import write_ir_label
from step.plan import OUTPUTS, begin
from step.run import Run

STEP = "cam_to_ir_label"


def run(run: Run) -> dict[str, Any]:
    """Write the IR labels of every picture of the training list."""
    options, devkit = run.options, run.source.devkit
    work = begin(STEP, run)
    cams, labels = OUTPUTS["cam_out_dir"], OUTPUTS["ir_label_out_dir"]
    jobs = [(devkit.image_path(i), cams.file(run, i), labels.file(run, i)) for i in work.share]
    log(f"{STEP}: {len(work.left)} of {len(work.ids)} pictures")
    label = partial(
        write_ir_label,
        fg_thres=options.conf_fg_thres,
        bg_thres=options.conf_bg_thres,
        crf=CrfParameters(iterations=options.crf_iterations),
        backend=options.crf_backend,
    )
    with together():
        map_pictures(label, jobs, options.num_workers, STEP)
    return {"pictures": len(work.ids), "made": len(work.left)}
