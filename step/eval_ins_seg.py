"""Step 7: score the instance masks.

Reads `result/ins_seg/ID.npz` and, for the pictures of `--eval_list`, the SegmentationObject and
SegmentationClass masks. Writes nothing; returns the average precision at IoU 0.5, VOC style.
"""

from pathlib import Path
from typing import Any

from misc.distributed import on_main, shard, together
from misc.errors import UserError
from misc.maps_io import load_instances, read_label
from misc.metrics import InstanceAveragePrecision, instances_of, nan_mean
from misc.progress import log, progress
from misc.tables import by_class, percent, show
from step.plan import begin
from step.run import Run
from step.scoring import scored_output, scored_pictures

STEP = "eval_ins_seg"
_IOU_THRESHOLD = 0.5


def run(run: Run) -> dict[str, Any]:
    """Score the instances.

    Returns:
        In percent, None where undefined: `ap50`, the mean over classes with ground truth, and `ap`
        by class name. Beside them what was scored, see `step.scoring.Scored.facts`.

    Raises:
        UserError: no picture has an instances file and both masks, or they do not fit.
    """
    begin(STEP, run)
    scored, devkit = on_main(lambda: scored_pictures(run, STEP)), run.source.devkit
    metric = InstanceAveragePrecision(run.num_classes, _IOU_THRESHOLD)
    with together():
        for name in progress(shard(scored.ids), STEP):
            masks = devkit.object_mask_path(name), devkit.mask_path(name)
            _add_picture(metric, scored_output(STEP).file(run, name), *masks)
    metric.reduce()
    ap = metric.compute()
    result = {"ap50": percent(nan_mean(ap)), "ap": by_class(run.class_names, ap)}
    log(f"instances: AP at IoU {_IOU_THRESHOLD} {show(result['ap50'])} % on {scored.describe()}.")
    return {**result, **scored.facts()}


def _add_picture(
    metric: InstanceAveragePrecision, prediction: Path, objects: Path, mask: Path
) -> None:
    found = load_instances(prediction)
    try:
        truth = instances_of(read_label(objects), read_label(mask))
        metric.update(found.mask, found.class_id, found.score, *truth)
    except (ValueError, IndexError) as error:
        raise UserError(
            f"{prediction}: {error}; check that predictions and masks belong to the same pictures "
            "and the same class list."
        ) from None
