"""DeepLab v2 on pseudo masks.

python deeplab/main.py train   -c CONFIG.yaml                 train on the pseudo masks
python deeplab/main.py test    -c CONFIG.yaml -m MODEL.pth    segment and score a split
python deeplab/main.py crf     -c CONFIG.yaml -j 8            refine what test left
python deeplab/main.py predict -c CONFIG.yaml -m MODEL.pth --input PHOTOS --output FOLDER
python deeplab/main.py report  -c CONFIG.yaml                 table of scores, figure, page

Every value of the configuration can be given as KEY=VALUE (SOLVER.ITER_MAX=100). With several GPUs
or machines every command runs under torchrun, with the same results:
torchrun --nproc_per_node 4 deeplab/main.py train -c ...
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deeplab.config import FINAL, Config, Paths, load
from misc.config_types import absolute_path
from misc.entry import run_entry
from misc.errors import UserError

if TYPE_CHECKING:
    import torch

PROGRAM = "deeplab/main.py"

_MAX_SIDE = "--max-side"
_INSTEAD_OF_MAX_SIDE = (
    "is now IMAGE.SIZE.TEST=PIXELS, the long side that pictures get for the network; "
    "IMAGE.SIZE.TEST=none keeps their own size"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    # Parsing comes first and alone: --help and wrong options answer without loading torch.
    return run_entry(PROGRAM, lambda: run_command(parse_args(argv)))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line; `overrides` is the list of KEY=VALUE."""
    parser = build_parser()
    args, overrides = parser.parse_known_args(argv)
    unknown = [text for text in overrides if text.startswith("-")]
    if unknown and unknown[0].partition("=")[0] == _MAX_SIDE:
        parser.error(f"{_MAX_SIDE} {_INSTEAD_OF_MAX_SIDE}")
    if unknown:
        parser.error(f"unknown option {unknown[0]}; see {args.command} --help")
    args.overrides = overrides
    return args


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, *parts: Callable[[argparse.ArgumentParser], None]) -> None:
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            allow_abbrev=False,
            epilog="KEY=VALUE anywhere after the command replaces a value of the configuration.",
        )
        command.add_argument(
            "-c", "--config-path", type=Path, required=True, metavar="YAML", help="configuration"
        )
        for part in parts:
            part(command)

    add("train", "train on the pseudo masks", _add_device, _add_overwrite)
    add("test", "segment and score a split", _add_model, _add_split, _add_device, _add_overwrite)
    add("crf", "refine what test left", _add_model, _add_split, _add_jobs, _add_overwrite)
    add("predict", "segment any pictures", _add_model, _add_pictures, _add_device)
    add("report", "put all scores into a table, a figure and a page", _add_split, _add_figure_num)
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    cuda, cpu = "use a GPU when there is one (default: --cuda)", "use no GPU; the last one counts"
    parser.add_argument("--cuda", dest="device", action="store_const", const="cuda", help=cuda)
    parser.add_argument("--cpu", dest="device", action="store_const", const="cpu", help=cpu)
    parser.set_defaults(device="auto")


def _add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="make again what is there")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m",
        "--model-path",
        type=Path,
        metavar="PTH",
        help="trained weights (default: checkpoint_final.pth of the configuration)",
    )


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--split",
        choices=("val", "test", "train"),
        default="val",
        help="which list of DATASET.SPLIT (default: val)",
    )


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-j",
        "--n-jobs",
        type=int,
        metavar="N",
        help="processes, under torchrun of each of its processes (default: CRF.N_JOBS, else one "
        "per CPU core)",
    )


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-i",
        "--input",
        "--image-path",
        dest="input",
        type=Path,
        required=True,
        help="a picture, or a folder of them",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for ID.png and ID_overlay.jpg"
    )
    parser.add_argument("--crf", action="store_true", help="refine with the dense CRF (on the CPU)")


def _add_figure_num(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--figure-num", type=int, default=6, help="pictures of the figure (default: %(default)s)"
    )
    parser.add_argument(
        "--report-num",
        type=int,
        default=300,
        help="pictures of report.html; 0 for no page (default: %(default)s)",
    )


def run_command(args: argparse.Namespace) -> None:
    """Read the configuration and run the command."""
    unused: list[str] = []
    config = load(args.config_path, args.overrides, unused)
    _open_log(Paths(config).logs_dir / f"{args.command}.log", args)
    _say_unused(unused)
    _COMMANDS[args.command](args, config)


def _open_log(path: Path, args: argparse.Namespace) -> None:
    from misc.progress import log, log_to_file, set_log_file

    try:
        set_log_file(path)
    except OSError as error:
        raise UserError(f"EXP.OUTPUT_DIR cannot be written: {error}.") from None
    warnings.showwarning = lambda message, *_: log(f"warning: {message}")
    options = {name: str(value) for name, value in vars(args).items() if value is not None}
    log_to_file(f"options: {options}")


def _say_unused(keys: Sequence[str]) -> None:
    from misc.progress import log

    if keys:
        log(
            f"not used: {', '.join(keys)}; what is written goes to "
            "EXP.OUTPUT_DIR/KIND/voc12/EXP.ID/LIST."
        )


def _train(args: argparse.Namespace, config: Config) -> None:
    from deeplab import engine

    engine.train(*_on_device(args, config), args.overwrite)


def _test(args: argparse.Namespace, config: Config) -> None:
    from deeplab import inference

    model_path = require_model(args.model_path, config)
    config, device = _on_device(args, config)
    inference.run(config, model_path, args.split, device, args.overwrite)


def _crf(args: argparse.Namespace, config: Config) -> None:
    from deeplab import refinement

    if args.n_jobs is not None and args.n_jobs < 0:  # said before anything is removed
        raise UserError(
            f"-j {args.n_jobs} is no number of processes; use 0 or more, or leave it out for one "
            "per CPU core."
        )
    model_path = require_model(args.model_path, config) if args.model_path else None
    refinement.run(config, args.split, model_path, args.n_jobs, args.overwrite)


def _predict(args: argparse.Namespace, config: Config) -> None:
    from deeplab import prediction

    model_path = require_model(args.model_path, config)
    config, device = _on_device(args, config)
    prediction.run(config, model_path, args.input, args.output, device, args.crf)


def _report(args: argparse.Namespace, config: Config) -> None:
    from deeplab import report

    for option, number in (("--figure-num", args.figure_num), ("--report-num", args.report_num)):
        if number < 0:
            raise UserError(f"{option} {number} is no number of pictures; use 0 or more.")
    report.run(config, args.split, args.figure_num, args.report_num)


_COMMANDS = {
    "train": _train,
    "test": _test,
    "crf": _crf,
    "predict": _predict,
    "report": _report,
}


def _on_device(args: argparse.Namespace, config: Config) -> "tuple[Config, torch.device]":
    """The configuration with the arithmetic that suits the device, and the device."""
    from misc.precision import with_settled_precision

    device = _device(args)
    return with_settled_precision(config, device), device


def _device(args: argparse.Namespace) -> "torch.device":
    """The device; `--cuda` without a GPU means the CPU, as in the published code."""
    import torch

    from misc.distributed import select_device
    from misc.progress import log

    if args.device == "cuda" and not torch.cuda.is_available():
        log(f"--cuda: PyTorch {torch.__version__} sees no CUDA GPU, so the CPU is used.")
        return torch.device("cpu")
    return select_device(args.device, option="--")


def require_model(path: Path | None, config: Config) -> Path:
    """The weights to use: those of the command line, else the final ones of the configuration.

    Raises:
        UserError: there is no such file; the message names those that there are.
    """
    folder = Paths(config).models_dir
    chosen = absolute_path(path, Path.cwd()) if path else Paths(config).checkpoint(FINAL)
    if chosen.is_file():
        return chosen
    there = sorted(found.name for found in folder.glob("*.pth") if ".state." not in found.name)
    what = f"there are {', '.join(there)} in {folder}" if there else f"{folder} has no weights yet"
    raise UserError(
        f"the weights {chosen} do not exist, {what}; run train, or name others with -m."
    )


if __name__ == "__main__":
    sys.exit(main())
