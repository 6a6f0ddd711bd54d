"""What the scripts in tools_cam/ share: options, and the configuration they describe."""

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from misc.config import pairs_to_overrides
from misc.entry import run_entry
from misc.option_types import HelpFormatter, positive_float
from wsol.config import Config, load

PUBLISHED_RATE = 5e-5


def build_parser(script: str, documentation: str) -> argparse.ArgumentParser:
    """Parser with `--config_file`, `--device` and trailing `KEY VALUE` pairs.

    Args:
        script: path of the script.
        documentation: its docstring, whose first line describes it.
    """
    parser = argparse.ArgumentParser(
        prog=Path(script).name,
        description=documentation.partition("\n")[0],
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config_file", type=Path, required=True, help="YAML file, as in wsol/configs"
    )
    parser.add_argument(
        "--device", default="auto", help="auto (GPU when there is one), cpu, cuda, cuda:INDEX"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY VALUE",
        help="configuration values to replace, such as MODEL.CAM_THR 0.1",
    )
    return parser


def add_rate(parser: argparse.ArgumentParser, text: str) -> None:
    """Add `--lr` with a help text."""
    parser.add_argument("--lr", type=positive_float, default=PUBLISHED_RATE, help=text)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add `--weights`."""
    parser.add_argument(
        "--weights",
        type=Path,
        help="checkpoint in the published layout (default: model_last.pth of the configured run)",
    )


def run_tool(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace, Config], object],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line and do the work; returns the exit status.

    Wrong options and configurations are answered before `work` loads torch.
    """

    def start() -> None:
        args = parser.parse_intermixed_args(argv)
        config = load(args.config_file, pairs_to_overrides(args.overrides))
        _quiet_warnings()
        work(args, config)

    return run_entry(parser.prog, start)


def _quiet_warnings() -> None:
    """Tell warnings as one line of the log."""

    def show(message: Warning | str, *_: object) -> None:
        from misc.progress import log

        log(f"warning: {message}")

    warnings.showwarning = show
