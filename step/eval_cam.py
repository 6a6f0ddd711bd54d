"""Step 3: score the class activation maps as label maps (the "seed").

Reads `result/cam/ID.npz` and the SegmentationClass masks of `--eval_list` (see `step.scoring`).
Writes nothing; returns the seed mIoU at `--cam_eval_thres`.
`python -m step.eval_cam --thresholds ...` scores several background scores offline from the same
maps.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from misc import lineage
from misc.distributed import shard
from misc.entry import run_entry
from misc.evaluation import add_picture, percent, show
from misc.maps_io import load_cam, read_label
from misc.metrics import ConfusionMatrix, SegmentationScores
from misc.option_types import fraction
from misc.progress import log, progress
from misc.pseudo_labels import cam_to_label
from step.scoring import Scored, output_path, report_segmentation, scored_pictures
from voc12.devkit import Devkit
from voc12.labels import load_classes

STEP = "eval_cam"
_SWEEP = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Score the CAMs at one background score.

    Returns:
        See `step.scoring.report_segmentation`; also `threshold`.

    Raises:
        UserError: no picture has a CAM and a mask, or the two do not fit.
    """
    lineage.require_input(args.cam_out_dir, lineage.cams, args)
    scored = scored_pictures(args, STEP)
    scores = score_cams(args, scored, [args.cam_eval_thres])[0]
    title = f"seed at background score {args.cam_eval_thres}"
    result = report_segmentation(title, scores, args.class_names, scored)
    return {**result, "threshold": args.cam_eval_thres}


def score_cams(
    args: argparse.Namespace, scored: Scored, thresholds: Sequence[float]
) -> list[SegmentationScores]:
    """Scores at each background score, reading every CAM once."""
    devkit = Devkit(args.voc12_root)
    confusions = [ConfusionMatrix(args.num_classes + 1) for _ in thresholds]
    for name in progress(shard(scored.ids), STEP):
        path = output_path(args, STEP, name)
        maps, ground_truth = load_cam(path), read_label(devkit.mask_path(name))
        for threshold, confusion in zip(thresholds, confusions, strict=True):
            add_picture(confusion, cam_to_label(maps, threshold), ground_truth, path)
    for confusion in confusions:
        confusion.reduce()
    return [confusion.compute() for confusion in confusions]


def main(argv: Sequence[str] | None = None) -> int:
    """Sweep the background score over stored CAMs; returns the exit status."""
    parser = argparse.ArgumentParser(prog="step.eval_cam", description=main.__doc__)
    parser.add_argument("--voc12_root", type=Path, required=True, help="VOC devkit root")
    parser.add_argument("--cam_out_dir", type=Path, default=Path("result/cam"), help="CAM folder")
    parser.add_argument("--eval_list", default="train", help="list to score: a name or a file")
    parser.add_argument("--classes", type=Path, help="file of class names (default: VOC's 20)")
    parser.add_argument("--thresholds", type=fraction, nargs="+", default=_SWEEP, help="0..1")
    return run_entry(parser.prog, lambda: sweep(parser.parse_args(argv)))


def sweep(args: argparse.Namespace) -> None:
    """Print the seed mIoU at each of `args.thresholds`, with the list that was scored."""
    args.cache_dir = args.cls_labels = None
    args.infer_list = args.eval_list
    args.num_classes = len(load_classes(args.classes))
    scored = scored_pictures(args, STEP)
    log(f"seed mIoU on {scored.describe()}")
    scores = score_cams(args, scored, args.thresholds)
    for threshold, score in zip(args.thresholds, scores, strict=True):
        log(f"  background score {threshold:.2f}: {show(percent(score.miou))} %")


if __name__ == "__main__":
    sys.exit(main())
