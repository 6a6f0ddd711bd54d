"""Evaluate a checkpoint on TEST.SPLIT, at MODEL.CAM_THR and at all of TEST.THRESHOLDS.

python wsol/tools_cam/test_cam.py --config_file YAML --weights MODEL_PATH TEST.SPLIT train
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from wsol.command_line import add_rate, add_weights, build_parser, run_tool, tell_notes
from wsol.config import Config
from wsol.published_flags import add_published_flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit status."""
    parser = build_parser(__file__, __doc__)
    add_weights(parser)
    add_rate(parser, "of the published command; evaluation has no use for it")
    add_published_flags(parser)
    return run_tool(parser, _test, argv)


def _test(args: argparse.Namespace, config: Config) -> None:
    from wsol.testing import test

    tell_notes(args)
    test(config, args.weights, args.device)


if __name__ == "__main__":
    sys.exit(main())
