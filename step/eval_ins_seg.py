"""Step 7: score the instance masks.

Reads `result/ins_seg/ID.npz` and, for the pictures of `--eval_list`, the SegmentationObject and
SegmentationClass masks. Writes nothing; returns the average precision at IoU 0.5, VOC style.
"""

import argparse
from pathlib import Path
from typing import Any

from misc import lineage
from misc.distributed import shard
from misc.errors import UserError
from misc.evaluation import by_class, describe, evaluation_list, percent, require_files, show
from misc.maps_io import load_instances, read_label
from misc.metrics import InstanceAveragePrecision, instances_of, nan_mean
from misc.progress import log, progress
from voc12.dataset import Devkit

_IOU_THRESHOLD = 0.5


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Score the instances.

    Returns:
        In percent, None where undefined: `ap50`, the mean over classes with ground truth, and `ap`
        by class name. Beside them `list` and `pictures`, what was scored.

    Raises:
        UserError: a picture of the list has no instances file or no masks, or they do not fit.
    """
    lineage.require_input(args.ins_seg_out_dir, lineage.instances, args)
    pictures, devkit = evaluation_list(args), Devkit(args.voc12_root)
    predictions = {name: args.ins_seg_out_dir / f"{name}.npz" for name in pictures.ids}
    masks = {name: devkit.mask_path(name) for name in pictures.ids}
    objects = {name: devkit.object_mask_path(name) for name in pictures.ids}
    for files, what in ((masks, "SegmentationClass mask"), (objects, "SegmentationObject mask")):
        require_files(files, what, "choose a list that has masks with --eval_list")
    remedy = f"run make_ins_seg_labels with --infer_list {args.eval_list}"
    require_files(predictions, "instances", remedy)
    metric = InstanceAveragePrecision(args.num_classes, _IOU_THRESHOLD)
    for name in progress(shard(pictures.ids), "eval_ins_seg"):
        _add_picture(metric, predictions[name], objects[name], masks[name])
    metric.reduce()
    ap = metric.compute()
    result = {"ap50": percent(nan_mean(ap)), "ap": by_class(args.class_names, ap)}
    log(f"instances: AP at IoU {_IOU_THRESHOLD} {show(result['ap50'])} % on {describe(pictures)}.")
    return {**result, "list": pictures.name, "pictures": len(pictures.ids)}


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
