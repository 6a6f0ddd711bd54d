"""What the scripts in tools_cam/ share: options, and the configuration they describe."""

import argparse
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from misc.arguments import HelpFormatter, positive_float
from misc.config import pairs_to_overrides
from misc.entry import run_entry
from misc.errors import UserError
from misc.files import expand_user
from wsol.config import Config, load
from wsol.published_flags import overrides_of, unused_flags

PUBLISHED_RATE = 5e-5
_WEIGHTS = (".pth", ".tar", ".pt", ".safetensors")


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
        "--config_file", type=expand_user, required=True, help="YAML file, as in wsol/configs"
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
    """Add `--weights`, which the published script calls `--resume`."""
    parser.add_argument(
        "--weights",
        "--resume",
        type=expand_user,
        help="checkpoint in the published layout (default: model_last.pth of the configured run)",
    )


def run_tool(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace, Config], object],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line and do the work; returns the exit status.

    Wrong options and configurations are answered before `work` loads torch. `args.notes` says what
    has no effect, for its log.
    """

    def start() -> None:
        args = parser.parse_intermixed_args(argv)
        _refuse_weights_among_keys(args.overrides)
        overrides = [*overrides_of(args), *pairs_to_overrides(args.overrides)]
        unused = unused_flags(args)
        config = load(args.config_file, overrides, unused)
        given = ", ".join(unused)
        args.notes = [f"without effect here: {given}"] if given else []
        _quiet_warnings()
        with _failures_in_words():
            work(args, config)

    return run_entry(parser.prog, start)


def _refuse_weights_among_keys(tokens: Sequence[str]) -> None:
    """What stands behind the published `--resume` of train_cam.py, which did nothing with it."""
    for token in tokens[::2]:
        if "=" not in token and Path(token).suffix in _WEIGHTS:
            raise UserError(
                f"{token} stands where a KEY is expected; --resume of train_cam.py takes no file: "
                "the training in BASIC.SAVE_DIR goes on. MODEL.VIT_WEIGHTS names first weights."
            )


def tell_notes(args: argparse.Namespace) -> None:
    """Log what has no effect."""
    from misc.progress import log

    for note in args.notes:
        log(note)


@contextmanager
def _failures_in_words() -> Iterator[None]:
    """Say what happened to files and loader processes that went away during the work."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename} is not there any more; put it back and repeat the command."
        ) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a process that loads pictures ended ({str(error).splitlines()[0]}); repeat the "
            "command with BASIC.NUM_WORKERS 0, or give it more memory (in Docker --shm-size 2g)."
        ) from error


def _quiet_warnings() -> None:
    """Tell warnings as one line of the log."""

    def show(message: Warning | str, *_: object) -> None:
        from misc.progress import log

        log(f"warning: {message}")

    warnings.showwarning = show
