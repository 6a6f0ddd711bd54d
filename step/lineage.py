"""What every output of the pipeline should have been made from, given the current arguments.

One function per output; the step that makes it writes this record, and the steps that read it
compare. Only arguments that change the result are listed: devices, batch sizes of inference,
workers and folders are not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from misc.config import identifying
from misc.errors import UserError
from misc.files import sha256_file
from misc.outputs import require_outputs
from misc.progress import log
from misc.provenance import Record, check_record, read_record
from step.options import CAM_BACKBONE, CAM_CNN, CAM_TRANSFORMER, EDGES
from step.run import Run

IMPORT_STEP = "import_cams"
_IMPORT_REDO = f"python -m step.{IMPORT_STEP} and --overwrite"
_MISSING = "(missing)"


def _arguments(run: Run, *records: str) -> dict[str, Any]:
    """The options that are part of records, and the class names."""
    values = {k: v for name in records for k, v in identifying(run.options, name).items()}
    return {**values, "class_names": run.class_names}


def _file_hash(path: Path | str | None) -> str:
    if path is None:
        return "none"
    path = Path(path)
    if not path.is_file():
        return _MISSING  # differs from any record; what needs the file itself says so
    return sha256_file(path)


def _inputs_of(run: Run, *options: str) -> dict[str, str]:
    """How networks want their pictures, which follows from their names and timm's version.

    Nothing for ImageNet's mean and standard deviation.
    """
    from net.normalisation import input_statistics

    found = {
        f"input of {option}": input_statistics(getattr(run.options, option)) for option in options
    }
    return {key: text for key, text in found.items() if text is not None}


def list_facts(run: Run, *names: str) -> dict[str, dict[str, Any]]:
    """Name, hash and number of ids of lists, for a person who reads the record."""
    source = run.source
    lists = {name: source.id_list(name) for name in names}
    return {
        name: {"source": one.source, "sha256": one.sha256, "count": len(one.ids)}
        for name, one in lists.items()
    }


def cam_training(run: Run) -> Record:
    """Both CAM branches' weights."""
    options, source = run.options, run.source
    return Record(
        "train_cam",
        _arguments(run, "train_cam"),
        {
            "train_list": source.id_list(options.train_list).sha256,
            "train_data": source.fingerprint(source.id_list(options.train_list).ids),
            "cnn_weights": _file_hash(options.cnn_weights),
            "vit_weights": _file_hash(options.vit_weights),
            **_inputs_of(run, "vit", "cnn"),
        },
    )


def cams(run: Run) -> Record:
    """Fused CAMs of single pictures."""
    records = ["make_cam"]
    inputs = {}
    if uses_transformer(run):
        records.append(CAM_TRANSFORMER)
        inputs["deit_weights"] = _file_hash(run.options.deit_weights_name)
        inputs |= _inputs_of(run, "vit")
    if uses_cnn(run):
        records.append(CAM_CNN)
        inputs["cam_weights"] = _file_hash(run.options.cam_weights_name)
        inputs |= _inputs_of(run, "cnn")
    return Record("make_cam", _arguments(run, *records), inputs)


def imported_cams(settings: Mapping[str, Any], class_names: Sequence[str], source: str) -> Record:
    """CAMs that another method made.

    Args:
        settings: what is done with the maps.
        class_names: foreground classes.
        source: hash of the files that were imported.
    """
    return Record(IMPORT_STEP, {**settings, "class_names": class_names}, {"source": source})


def is_imported(folder: Path) -> bool:
    """Whether CAMs are those of another method."""
    recorded = read_record(folder)
    return recorded is not None and recorded.step == IMPORT_STEP


def uses_cnn(run: Run) -> bool:
    """Whether the fusion needs the CNN branch."""
    return run.options.cam_fusion != "transformer"


def uses_transformer(run: Run) -> bool:
    """Whether the fusion needs the transformer branch."""
    return run.options.cam_fusion != "cnn"


def ir_labels(run: Run) -> Record:
    """Labels for IRNet."""
    arguments = _arguments(run, "cam_to_ir_label")
    return Record("cam_to_ir_label", arguments, {"cam": _input(run.options.cam_out_dir, cams, run)})


def irn_training(run: Run) -> Record:
    """IRNet's weights.

    The inference list is left out on purpose: only the mean displacement is taken over it, and
    trained weights serve other lists as well.
    """
    options, source = run.options, run.source
    own = options.irn_backbone_weights
    backbone = options.cam_weights_name if own == CAM_BACKBONE else own
    return Record(
        "train_irn",
        _arguments(run, "train_irn"),
        {
            "train_list": source.id_list(options.train_list).sha256,
            "train_data": source.fingerprint(source.id_list(options.train_list).ids),
            "ir_label": _input(options.ir_label_out_dir, ir_labels, run),
            "irn_backbone_weights": _file_hash(backbone),
            **_inputs_of(run, "irn_backbone"),
        },
    )


def pseudo_masks(run: Run) -> Record:
    """Pseudo masks of single pictures."""
    return _walk_record(run, "make_sem_seg_labels")


def edges(run: Run) -> Record:
    """Edge maps of single pictures."""
    return Record(
        "make_sem_seg_labels",
        _arguments(run, EDGES),
        {"irn_weights": _file_hash(run.options.irn_weights_name)},
    )


def instances(run: Run) -> Record:
    """Instance masks of single pictures."""
    return _walk_record(run, "make_ins_seg_labels")


def _walk_record(run: Run, step: str) -> Record:
    inputs = {
        "cam": _input(run.options.cam_out_dir, cams, run),
        "irn_weights": _file_hash(run.options.irn_weights_name),
    }
    return Record(step, _arguments(run, step), inputs)


def _input(folder: Path, expected: Callable[[Run], Record], run: Run) -> str:
    """Fingerprint of an input folder: what is recorded there, else what would make it now."""
    recorded = read_record(folder) if folder.is_dir() else None
    return (recorded or expected(run)).fingerprint


def require_input(target: Path, expected: Callable[[Run], Record], run: Run) -> None:
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
        same = {**recorded.arguments, "class_names": run.class_names}
        check_record(target, replace(recorded, arguments=same), run.options.force, _IMPORT_REDO)
    else:
        check_record(target, expected(run), run.options.force)


def require_ids(folder: Path, suffix: str, ids: tuple[str, ...], step: str) -> None:
    """Stop when outputs of an earlier step are missing.

    Raises:
        UserError: counts the missing files and names the first.
    """
    require_outputs(folder, suffix, ids, IMPORT_STEP if is_imported(folder) else step)
