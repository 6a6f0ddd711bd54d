"""Whether the chosen steps could start: networks, weights and packages, before hours of work."""

import importlib
from argparse import Namespace
from collections.abc import Callable

from misc.errors import UserError


def readiness_problems(args: Namespace, steps: tuple[str, ...]) -> list[str]:
    """Try everything that steps of this run build or import later.

    Training whose weights are there already will keep them and needs nothing. ImageNet weights
    that are not here yet are downloaded now.

    Returns:
        Problems as `kind: what and remedy`, none if all is well.
    """
    finished = {
        "train_cam": args.cam_weights_name.is_file() and args.deit_weights_name.is_file(),
        "train_irn": args.irn_weights_name.is_file(),
    }
    problems = []
    for step, what, attempt in (
        ("train_cam", "CNN branch", _build_cnn),
        ("train_cam", "transformer branch", _build_deit),
        ("cam_to_ir_label", "dense CRF", _import_crf),
        ("train_irn", "IRNet", _build_irn),
    ):
        if step in steps and (args.overwrite or not finished.get(step, False)):
            problems += _attempt(what, attempt, args)
    return problems


def _attempt(what: str, attempt: Callable[[Namespace], object], args: Namespace) -> list[str]:
    try:
        attempt(args)
    except UserError as error:
        return [f"unusable {what}: {error}"]
    return []


def _build_cnn(args: Namespace) -> object:
    return importlib.import_module("step.train_cam").build_cnn(args)


def _build_deit(args: Namespace) -> object:
    return importlib.import_module("step.train_cam").build_deit(args)


def _build_irn(args: Namespace) -> object:
    """IRNet with its backbone's weights, unless those are still to be trained."""
    from misc.consistency import CAM_BACKBONE

    trained = args.irn_backbone_weights == CAM_BACKBONE
    return importlib.import_module("step.train_irn").build_model(args, trained=trained)


def _import_crf(_: Namespace) -> object:
    return importlib.import_module("misc.crf").require_densecrf()
