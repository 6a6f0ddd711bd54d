"""What every output of the pipeline should have been made from, given the current arguments.

One function per output; the step that makes it writes this record, and the steps that read it
compare. Only arguments that change the result are listed: devices, batch sizes of inference,
workers and folders are not.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from misc.errors import UserError
from misc.files import sha256_file
from misc.progress import log
from misc.provenance import Record, check_record, read_record, require_outputs
from step.consistency import CAM_BACKBONE
from voc12.source import open_source

_NETWORKS = ("vit", "vit_args", "num_passes", "tile_size", "tile_stride")
_CNN_TRAINING = ("cnn", "cnn_frozen_stages", "fixed_batchnorm")
_CAM_TRAINING = (
    *_NETWORKS,
    *_CNN_TRAINING,
    "init",
    "cam_crop_size",
    "cam_long_side",
    "cam_batch_size",
    "cam_num_epoches",
    "cam_learning_rate",
    "deit_learning_rate",
    "deit_optimiser",
    "cam_weight_decay",
    "momentum",
    "cam_lambda",
    "cam_refine_epoch",
    "precision",
    "seed",
)
_IRN_TRAINING = (
    "irn_backbone",
    "init",
    "irn_crop_size",
    "irn_batch_size",
    "irn_num_epoches",
    "irn_learning_rate",
    "irn_weight_decay",
    "irn_radius",
    "momentum",
    "precision",
    "seed",
)
_WALK = ("irn_backbone", "irn_min_input", "beta", "exp_times", "walk_radius", "precision")


IMPORT_STEP = "import_cams"
_IMPORT_REDO = f"python -m step.{IMPORT_STEP} and --overwrite"
_MISSING = "(missing)"


def _arguments(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in (*names, "class_names")}


def _file_hash(path: Path | str | None) -> str:
    if path is None:
        return "none"
    path = Path(path)
    if not path.is_file():
        return _MISSING  # differs from any record; what needs the file itself says so
    return sha256_file(path)


def _inputs_of(args: argparse.Namespace, *options: str) -> dict[str, str]:
    """How networks want their pictures, which follows from their names and timm's version.

    Nothing for ImageNet's mean and standard deviation.
    """
    from net.normalisation import input_statistics

    found = {f"input of {option}": input_statistics(getattr(args, option)) for option in options}
    return {key: text for key, text in found.items() if text is not None}


def list_facts(args: argparse.Namespace, *names: str) -> dict[str, dict[str, Any]]:
    """Name, hash and number of ids of lists, for a person who reads the record."""
    source = open_source(args)
    lists = {name: source.id_list(name) for name in names}
    return {
        name: {"source": one.source, "sha256": one.sha256, "count": len(one.ids)}
        for name, one in lists.items()
    }


def cam_training(args: argparse.Namespace) -> Record:
    """Both CAM branches' weights."""
    source = open_source(args)
    return Record(
        "train_cam",
        _arguments(args, _CAM_TRAINING),
        {
            "train_list": source.id_list(args.train_list).sha256,
            "train_data": source.fingerprint(source.id_list(args.train_list).ids),
            "cnn_weights": _file_hash(args.cnn_weights),
            "vit_weights": _file_hash(args.vit_weights),
            **_inputs_of(args, "vit", "cnn"),
        },
    )


def cams(args: argparse.Namespace) -> Record:
    """Fused CAMs of single pictures."""
    names = ("cam_scales", "cam_fusion", "precision")
    inputs = {}
    if uses_transformer(args):
        names += _NETWORKS
        inputs["deit_weights"] = _file_hash(args.deit_weights_name)
        inputs |= _inputs_of(args, "vit")
    if uses_cnn(args):
        names += ("cnn",)
        inputs["cam_weights"] = _file_hash(args.cam_weights_name)
        inputs |= _inputs_of(args, "cnn")
    return Record("make_cam", _arguments(args, names), inputs)


def imported_cams(args: argparse.Namespace, source: str) -> Record:
    """CAMs that another method made.

    Args:
        args: options of `step.import_cams`.
        source: hash of the files that were imported.
    """
    names = ("background", "normalise", "stretch")
    return Record(IMPORT_STEP, _arguments(args, names), {"source": source})


def is_imported(folder: Path) -> bool:
    """Whether CAMs are those of another method."""
    recorded = read_record(folder)
    return recorded is not None and recorded.step == IMPORT_STEP


def uses_cnn(args: argparse.Namespace) -> bool:
    """Whether the fusion needs the CNN branch."""
    return args.cam_fusion != "transformer"


def uses_transformer(args: argparse.Namespace) -> bool:
    """Whether the fusion needs the transformer branch."""
    return args.cam_fusion != "cnn"


def ir_labels(args: argparse.Namespace) -> Record:
    """Labels for IRNet."""
    arguments = _arguments(args, ("conf_fg_thres", "conf_bg_thres"))
    return Record("cam_to_ir_label", arguments, {"cam": _input(args.cam_out_dir, cams, args)})


def irn_training(args: argparse.Namespace) -> Record:
    """IRNet's weights.

    The inference list is left out on purpose: only the mean displacement is taken over it, and
    trained weights serve other lists as well.
    """
    source = open_source(args)
    own = args.irn_backbone_weights
    backbone = args.cam_weights_name if own == CAM_BACKBONE else own
    return Record(
        "train_irn",
        _arguments(args, _IRN_TRAINING),
        {
            "train_list": source.id_list(args.train_list).sha256,
            "train_data": source.fingerprint(source.id_list(args.train_list).ids),
            "ir_label": _input(args.ir_label_out_dir, ir_labels, args),
            "irn_backbone_weights": _file_hash(backbone),
            **_inputs_of(args, "irn_backbone"),
        },
    )


def pseudo_masks(args: argparse.Namespace) -> Record:
    """Pseudo masks of single pictures."""
    return _walk_record(args, "make_sem_seg_labels", "sem_seg_bg_thres")


def edges(args: argparse.Namespace) -> Record:
    """Edge maps of single pictures."""
    arguments = _arguments(args, ("irn_backbone", "irn_min_input", "precision"))
    return Record(
        "make_sem_seg_labels", arguments, {"irn_weights": _file_hash(args.irn_weights_name)}
    )


def instances(args: argparse.Namespace) -> Record:
    """Instance masks of single pictures."""
    return _walk_record(args, "make_ins_seg_labels", "ins_seg_bg_thres")


def _walk_record(args: argparse.Namespace, step: str, threshold: str) -> Record:
    inputs = {
        "cam": _input(args.cam_out_dir, cams, args),
        "irn_weights": _file_hash(args.irn_weights_name),
    }
    return Record(step, _arguments(args, (*_WALK, threshold)), inputs)


def _input(
    folder: Path, expected: Callable[[argparse.Namespace], Record], args: argparse.Namespace
) -> str:
    """Fingerprint of an input folder: what is recorded there, else what would make it now."""
    recorded = read_record(folder) if folder.is_dir() else None
    return (recorded or expected(args)).fingerprint


def require_input(
    target: Path, expected: Callable[[argparse.Namespace], Record], args: argparse.Namespace
) -> None:
    """Stop when an input is missing or was made by something else (see `check_record`).

    What would make it now is worked out only when there is a record to compare with: weights
    from elsewhere need no training list. Imported CAMs are what they are; only their classes must
    be those of now.
    """
    if not target.exists():
        raise UserError(
            f"{target} does not exist; run the step that makes it or correct the option."
        )
    recorded = read_record(target)
    if recorded is None:
        log(f"{target} has no record of what made it and is used as it is.")
    elif is_imported(target):
        same = {**recorded.arguments, "class_names": args.class_names}
        check_record(target, replace(recorded, arguments=same), args.force, _IMPORT_REDO)
    else:
        check_record(target, expected(args), args.force)


def require_ids(folder: Path, suffix: str, ids: tuple[str, ...], step: str) -> None:
    """Stop when outputs of an earlier step are missing.

    Raises:
        UserError: counts the missing files and names the first.
    """
    require_outputs(folder, suffix, ids, IMPORT_STEP if is_imported(folder) else step)
