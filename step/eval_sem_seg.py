"""Step 9: score the pseudo masks.

Reads `result/sem_seg/ID.png` and the SegmentationClass masks of `--eval_list`. Writes nothing;
returns mask mIoU, IoU per class, and FP and FN of background and foreground.
"""

import argparse
from typing import Any

from misc import lineage
from misc.distributed import shard
from misc.evaluation import add_picture, evaluation_list, report_segmentation, require_files
from misc.maps_io import read_label
from misc.metrics import ConfusionMatrix
from misc.progress import progress
from voc12.dataset import Devkit


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Score the pseudo masks; 255 in a prediction counts as background.

    Returns:
        See `misc.evaluation.report_segmentation`.

    Raises:
        UserError: a picture of the list has no pseudo mask or no mask, or the two do not fit.
    """
    lineage.require_input(args.sem_seg_out_dir, lineage.pseudo_masks, args)
    pictures, devkit = evaluation_list(args), Devkit(args.voc12_root)
    masks = {name: devkit.mask_path(name) for name in pictures.ids}
    predictions = {name: args.sem_seg_out_dir / f"{name}.png" for name in pictures.ids}
    require_files(masks, "SegmentationClass mask", "choose a list that has masks with --eval_list")
    remedy = f"run make_sem_seg_labels with --infer_list {args.eval_list}"
    require_files(predictions, "pseudo mask", remedy)
    confusion = ConfusionMatrix(args.num_classes + 1)
    for name in progress(shard(pictures.ids), "eval_sem_seg"):
        prediction = read_label(predictions[name])
        add_picture(confusion, prediction, read_label(masks[name]), predictions[name])
    confusion.reduce()
    return report_segmentation("mask", confusion.compute(), args.class_names, pictures)
