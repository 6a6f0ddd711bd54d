"""Step 9: score the pseudo masks.

Reads `result/sem_seg/ID.png` and the SegmentationClass masks of `--eval_list`. Writes nothing;
returns mask mIoU, IoU per class, and FP and FN of background and foreground.
"""

import argparse
from typing import Any

from misc.distributed import shard
from misc.maps_io import read_label
from misc.metrics import ConfusionMatrix, add_picture
from misc.progress import progress
from step import lineage
from step.scoring import output_path, report_segmentation, scored_pictures
from voc12.devkit import Devkit

STEP = "eval_sem_seg"


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Score the pseudo masks; 255 in a prediction counts as background.

    Returns:
        See `step.scoring.report_segmentation`.

    Raises:
        UserError: no picture has a pseudo mask and a mask, or the two do not fit.
    """
    lineage.require_input(args.sem_seg_out_dir, lineage.pseudo_masks, args)
    scored, devkit = scored_pictures(args, STEP), Devkit(args.voc12_root)
    confusion = ConfusionMatrix(args.num_classes + 1)
    for name in progress(shard(scored.ids), STEP):
        path = output_path(args, STEP, name)
        add_picture(confusion, read_label(path), read_label(devkit.mask_path(name)), path)
    confusion.reduce()
    return report_segmentation("mask", confusion.compute(), args.class_names, scored)
