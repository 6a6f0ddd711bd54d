"""Step 3: score the class activation maps as label maps (the "seed").

Reads `result/cam/ID.npz` and the SegmentationClass masks of `--eval_list` (see `step.scoring`).
Writes nothing; returns the seed mIoU at `--cam_eval_thres`.
`python -m step.eval_cam --thresholds ...` scores several background scores offline from the same
maps; `step.sweep` does so with the pseudo masks as well.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from misc.arguments import fraction
from misc.distributed import join_processes, on_main, shard, together
from misc.entry import run_entry
from misc.maps_io import CamMaps, load_cam, read_label
from misc.metrics import SegmentationScores, ThresholdConfusion, fitting
from misc.progress import log, progress
from misc.tables import percent, show
from step.plan import begin
from step.run import Run, finished_run
from step.scoring import Scored, report_segmentation, scored_output, scored_pictures
from voc12.source import open_source

STEP = "eval_cam"
SWEEP_THRESHOLDS = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40)


def run(run: Run) -> dict[str, Any]:
    """Score the CAMs at one background score.

    Returns:
        See `step.scoring.report_segmentation`; also `threshold`.

    Raises:
        UserError: no picture has a CAM and a mask, or the two do not fit.
    """
    options = run.options
    begin(STEP, run)
    scored = on_main(lambda: scored_pictures(run, STEP))
    scores = score_cams(run, scored, [options.cam_eval_thres])[0]
    title = f"seed at background score {options.cam_eval_thres}"
    result = report_segmentation(title, scores, run.class_names, scored)
    return {**result, "threshold": options.cam_eval_thres}


def score_cams(run: Run, scored: Scored, thresholds: Sequence[float]) -> list[SegmentationScores]:
    """Scores at each background score, in rising order, reading every CAM once."""
    devkit, confusion = run.source.devkit, ThresholdConfusion(run.num_classes + 1, thresholds)
    with together():
        for name in progress(shard(scored.ids), STEP):
            path = scored_output(STEP).file(run, name)
            count_seed(confusion, load_cam(path), read_label(devkit.mask_path(name)), path)
    matrices = confusion.matrices()
    for matrix in matrices:
        matrix.reduce()
    return [matrix.compute() for matrix in matrices]


def count_seed(
    confusion: ThresholdConfusion, maps: CamMaps, ground_truth: np.ndarray, source: Path
) -> None:
    """Count the CAMs of one picture, in which the strongest class competes with the background.

    Args:
        confusion: at background scores in the units of the maps (0..1).
        maps: K may be 0; then everything is background.
        ground_truth: (h, w) labels.
        source: file of the maps.

    Raises:
        UserError: the maps do not fit the ground truth or the class list.
    """
    background = np.zeros((1, *maps.high_res.shape[1:]), np.float32)
    stacked, labels = np.concatenate((background, maps.high_res)), np.append(0, maps.keys + 1)
    with fitting(source):
        confusion.update(labels[stacked.argmax(axis=0)], stacked.max(axis=0), ground_truth)


def main(argv: Sequence[str] | None = None) -> int:
    """Sweep the background score over stored CAMs; returns the exit status."""
    parser = argparse.ArgumentParser(prog="step.eval_cam", description=main.__doc__)
    parser.add_argument("--voc12_root", type=Path, required=True, help="VOC devkit root")
    parser.add_argument("--cam_out_dir", type=Path, default=Path("result/cam"), help="CAM folder")
    parser.add_argument("--eval_list", default="train", help="list to score: a name or a file")
    parser.add_argument("--classes", type=Path, help="file of class names (default: VOC's 20)")
    parser.add_argument(
        "--thresholds", type=fraction, nargs="+", default=SWEEP_THRESHOLDS, help="0..1"
    )
    return run_entry(parser.prog, lambda: sweep(parser.parse_args(argv)))


def sweep(args: argparse.Namespace) -> None:
    """Print the seed mIoU at each of `args.thresholds`, with the list that was scored."""
    join_processes(torch.device("cpu"))
    lists = {"eval_list": args.eval_list, "infer_list": args.eval_list}
    source = open_source(args.voc12_root, args.classes)
    run = finished_run(source, cam_out_dir=args.cam_out_dir, **lists)
    scored = on_main(lambda: scored_pictures(run, STEP))
    log(f"seed mIoU on {scored.describe()}")
    thresholds = sorted(set(args.thresholds))
    scores = score_cams(run, scored, thresholds)
    for threshold, score in zip(thresholds, scores, strict=True):
        log(f"  background score {threshold:.2f}: {show(percent(score.miou_of_occurring))} %")


if __name__ == "__main__":
    sys.exit(main())
