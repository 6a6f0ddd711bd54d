"""Train TS-CAM and the CNN that refines it, and evaluate localisation after every epoch.

python wsol/tools_cam/train_cam.py --config_file wsol/configs/CUB/deit_tscam_small_patch16_224.yaml
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from misc.errors import UserError
from wsol.command_line import add_rate, build_parser, run_tool
from wsol.config import Config
from wsol.published_flags import add_published_flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit status."""
    parser = build_parser(__file__, __doc__)
    add_rate(parser, "learning rate of the transformer")
    parser.add_argument(
        "--resume",
        action="store_true",  # takes no value, which would swallow the KEY behind it
        help="insist on a run to go on with (without it one is gone on with where there is one)",
    )
    parser.add_argument("--overwrite", action="store_true", help="start the run afresh")
    add_published_flags(parser)
    return run_tool(parser, _train, argv)


def _train(args: argparse.Namespace, config: Config) -> None:
    if args.resume and args.overwrite:
        raise UserError("--resume goes on with a run and --overwrite deletes it: give one of them.")

    from wsol.engine import train

    train(config, args.lr, args.device, args.resume, args.overwrite, args.notes)


if __name__ == "__main__":
    sys.exit(main())
