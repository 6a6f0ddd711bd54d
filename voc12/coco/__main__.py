"""COCO in the layout that the steps and DeepLab read: lists, classes, image labels and masks.

python -m voc12.coco ROOT               COCO 2014: ROOT/train2014, ROOT/val2014, ROOT/annotations
python -m voc12.coco ROOT --splits train2017 val2017
python run_sample.py --preset coco --voc12_root ROOT

Reads ROOT/annotations/instances_SPLIT.json and the pictures in ROOT/SPLIT, which are linked, not
copied. Writes into --output: classes.txt, categories.csv, labels.csv, JPEGImages, SegmentationClass
and, in ImageSets/Segmentation, SPLIT.txt and SPLIT_unannotated.txt. The same command goes on where
it was interrupted; masks are made again when their annotation file has changed.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from misc.arguments import BooleanAction, HelpFormatter, non_negative_int
from misc.entry import run_entry
from voc12.coco import SPLITS


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m voc12.coco",
        description="Write COCO's annotations as lists, classes, image labels and index masks.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "root", type=Path, help="folder with annotations/instances_SPLIT.json and SPLIT/*.jpg"
    )
    parser.add_argument("--output", type=Path, help="where to write (default: the root itself)")
    parser.add_argument(
        "--splits", nargs="+", default=SPLITS, metavar="SPLIT", help="parts of the data set"
    )
    parser.add_argument(
        "--skip_missing",
        action=BooleanAction,
        default=False,
        help="leave out pictures that are not there; they are named in SPLIT_missing.txt",
    )
    parser.add_argument(
        "--num_workers",
        type=non_negative_int,
        default=os.cpu_count() or 1,
        help="processes that draw masks; 0 draws in the main process",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Convert a data set; returns the exit status."""
    return run_entry("voc12.coco", lambda: _run(build_parser().parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    from voc12.coco.devkit import convert  # loads torch, which drawing processes do without

    convert(
        args.root.expanduser(),
        (args.output or args.root).expanduser(),
        args.splits,
        num_workers=args.num_workers,
        skip_missing=args.skip_missing,
    )


if __name__ == "__main__":
    sys.exit(main())
