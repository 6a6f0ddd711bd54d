"""The command line of the pipeline: presets, what follows from other options, contradictions.

A preset is a dictionary of defaults, and any option given explicitly wins. Parsing has no side
effects: nothing is read, created or derived except paths, which become absolute.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from misc.arguments import HelpFormatter, add_options
from misc.errors import UserError
from misc.files import expand_user
from step.contradictions import require_consistent
from step.options import PATH_OPTIONS, Options
from step.presets import PRESETS, ROOT_FIELD, defaults


def build_parser() -> argparse.ArgumentParser:
    """The parser of run_sample.py."""
    parser = argparse.ArgumentParser(
        prog="run_sample.py",
        usage="run_sample.py --voc12_root PATH [options] | --photos FOLDER [options] | "
        "--preset demo [options]",
        description="From image-level labels to pseudo masks: CRT in nine steps.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,  # an abbreviated --preset would not be seen by `parse_args`
    )
    add_options(parser, Options)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> Options:
    """Parse the command line; the preset sets defaults, explicit options win.

    Raises:
        UserError: options that contradict each other.
    """
    parser = build_parser()
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", choices=sorted(PRESETS))
    first.add_argument("--photos")
    first.add_argument("--init")
    early = first.parse_known_args(argv)[0]
    own_photos = early.photos is not None
    preset = early.preset or ("photos" if own_photos else "paper")
    parser.set_defaults(preset=preset, **defaults(preset, early.init, own_photos))
    options = Options(**vars(parser.parse_args(argv)))
    if options.voc12_root is None and not own_photos and preset != "demo":
        parser.error(
            "--voc12_root is required (or name your own photos with --photos FOLDER, or try the "
            "built-in sample: --preset demo)"
        )
    if early.photos == "":
        raise UserError("--photos is empty; name the folder that holds your class folders.")
    options = _resolve_paths(_fill_in_root(options))
    require_consistent(options)
    return options


def _fill_in_root(options: Options) -> Options:
    """Complete the paths of the preset that lie in the data set, unless others were given."""
    root = str(expand_user(options.voc12_root or ""))
    filled = {
        name: value.replace(ROOT_FIELD, root)
        for name, value in PRESETS[options.preset].items()
        if ROOT_FIELD in str(value) and getattr(options, name) == value
    }
    return replace(options, **filled)


def _resolve_paths(options: Options) -> Options:
    """Make output paths absolute below `--work_dir`, fill defaults that depend on others."""
    work_dir = expand_user(options.work_dir).resolve()
    photos = None if options.photos is None else expand_user(options.photos).absolute()
    return replace(
        options,
        work_dir=work_dir,
        photos=photos,
        deit_learning_rate=options.deit_learning_rate or options.cam_learning_rate,
        **{name: work_dir / expand_user(getattr(options, name)) for name in PATH_OPTIONS},
    )
