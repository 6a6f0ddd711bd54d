"""Draw a few pictures with boxes, the CNN's map, the attention and the fused map, as one PNG.

python wsol/tools_cam/visualize.py --config_file YAML --weights MODEL_PATH --num 6
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from misc.arguments import positive_int
from misc.files import expand_user
from wsol.command_line import add_weights, build_parser, run_tool, tell_notes
from wsol.config import Config


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit status."""
    parser = build_parser(__file__, __doc__)
    add_weights(parser)
    parser.add_argument("--num", type=positive_int, default=6, help="pictures of TEST.SPLIT")
    parser.add_argument("--output", type=_png, help="PNG (default: figure.png of the run)")
    return run_tool(parser, _draw, argv)


def _png(text: str) -> Path:
    """Parse the name of a PNG."""
    path = expand_user(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text} must end in .png")
    return path


def _draw(args: argparse.Namespace, config: Config) -> None:
    from wsol.figure import draw

    tell_notes(args)
    draw(config, args.weights, args.num, args.output, args.device)


if __name__ == "__main__":
    sys.exit(main())
