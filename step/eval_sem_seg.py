"""Step 9: score the pseudo masks.

Reads `result/sem_seg/ID.png` and the SegmentationClass masks of `--eval_list`. Writes nothing;
returns mask mIoU, IoU per class, and FP and FN of background and foreground.
"""

from typing import Any

from misc.distributed import on_main, shard, together
from misc.maps_io import read_label
from misc.metrics import ConfusionMatrix, add_picture
from misc.progress import progress
from step.plan import begin
from step.run import Run
from step.scoring import report_segmentation, scored_output, scored_pictures

STEP = "eval_sem_seg"


def run(run: Run) -> dict[str, Any]:
    """Score the pseudo masks; 255 in a prediction counts as background.

    Returns:
        See `step.scoring.report_segmentation`.

    Raises:
        UserError: no picture has a pseudo mask and a mask, or the two do not fit.
    """
    begin(STEP, run)
    scored, devkit = on_main(lambda: scored_pictures(run, STEP)), run.source.devkit
    confusion = ConfusionMatrix(run.num_classes + 1)
    with together():
        for name in progress(shard(scored.ids), STEP):
            path = scored_output(STEP).file(run, name)
            add_picture(confusion, read_label(path), read_label(devkit.mask_path(name)), path)
    confusion.reduce()
    return report_segmentation("mask", confusion.compute(), run.class_names, scored)
