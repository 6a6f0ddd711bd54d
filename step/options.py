"""The command line of the pipeline: presets, what follows from other options, chosen steps.

A preset is a dictionary of defaults, and any option given explicitly wins. Parsing has no side
effects: nothing is read, created or derived except paths, which become absolute.
"""

import argparse
from collections.abc import Sequence

from misc.files import expand_user
from step.consistency import require_consistent, require_separate_outputs
from step.option_groups import PATH_OPTIONS, STEP_NAMES, build_parser, switch_name
from step.presets import PRESETS, ROOT_FIELD, defaults


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
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
    args = parser.parse_args(argv)
    if args.voc12_root is None and not own_photos and preset != "demo":
        parser.error(
            "--voc12_root is required (or name your own photos with --photos FOLDER, or try the "
            "built-in sample: --preset demo)"
        )
    _fill_in_root(args)
    require_consistent(args)
    args = resolve_paths(args)
    require_separate_outputs(args)
    return args


def _fill_in_root(args: argparse.Namespace) -> None:
    """Complete the paths of the preset that lie in the data set, unless others were given."""
    root = str(expand_user(args.voc12_root or ""))
    for name, value in PRESETS[args.preset].items():
        if ROOT_FIELD in str(value) and getattr(args, name) == value:
            setattr(args, name, value.replace(ROOT_FIELD, root))


def resolve_paths(args: argparse.Namespace) -> argparse.Namespace:
    """Make output paths absolute below `--work_dir`, fill defaults that depend on others."""
    args.work_dir = expand_user(args.work_dir).resolve()
    if args.photos is not None:
        args.photos = expand_user(args.photos).absolute()
    for name in PATH_OPTIONS:
        setattr(args, name, args.work_dir / expand_user(getattr(args, name)))
    args.deit_learning_rate = args.deit_learning_rate or args.cam_learning_rate
    return args


def selected_steps(args: argparse.Namespace) -> tuple[str, ...]:
    """Names of the steps to run, in order."""
    if args.steps is not None:
        return tuple(step for step in STEP_NAMES if step in args.steps)
    start = STEP_NAMES.index(args.from_step) if args.from_step else 0
    return tuple(step for step in STEP_NAMES[start:] if getattr(args, switch_name(step)))
