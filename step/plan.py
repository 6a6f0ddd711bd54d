"""The nine steps as data: what each reads and writes, and the record of what makes it.

A step starts with `begin`, which checks what it reads, makes ready what it writes and tells what is
left to do. Records hold the options that `step.options` says to affect them, the class names, and
hashes of what went in; devices, batch sizes of inference, workers and folders are not in them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from misc.config import identifying
from misc.distributed import on_main, shard
from misc.errors import UserError
from misc.files import file_hash, up_to_date
from misc.outputs import keep_file, prepare_output, require_outputs
from misc.progress import log
from misc.provenance import Record, check_record, read_record
from net.normalisation import input_statistics
from step.options import CAM_BACKBONE, CAM_CNN, CAM_TRANSFORMER, EDGES, Options
from step.run import Run

IMPORT_STEP = "import_cams"
_IMPORT_REDO = f"python -m step.{IMPORT_STEP} and --overwrite"


def uses_cnn(options: Options) -> bool:
    """Whether the fusion of the CAMs needs the CNN branch."""
    return options.cam_fusion != "transformer"


def uses_transformer(options: Options) -> bool:
    """Whether the fusion of the CAMs needs the transformer branch."""
    return options.cam_fusion != "cnn"


class Input(NamedTuple):
    """What a step reads of an earlier one.

    Attributes:
        name: the option that names the folder or weight file, without dashes.
        lists: options; their pictures need a file each.
        is_used: whether it is read with these options.
        network: the option of the network whose weights these are, where the record tells.
        part: name of the options, see `step.options`, that are part of the record if it is used.
    """

    name: str
    lists: tuple[str, ...] = ()
    is_used: Callable[[Options], bool] = lambda options: True
    network: str | None = None
    part: str | None = None


@dataclass(frozen=True)
class Output:
    """A folder with a file per picture, or a weight file.

    Attributes:
        name: the option that names it, without dashes.
        step: that writes it.
        lists: options; the lists that it is made for.
        suffix: of the pictures' files; None for a weight file.
        reads: what it is made from; None for all that the step reads.
        part: name of the options that are part of the record; None for those of the step.
    """

    name: str
    step: str
    lists: tuple[str, ...]
    suffix: str | None = None
    reads: tuple[Input, ...] | None = None
    part: str | None = None

    @property
    def option(self) -> str:
        """As it is typed."""
        return f"--{self.name}"

    def path(self, run: Run) -> Path:
        """Where it lies."""
        return getattr(run.options, self.name)

    def file(self, run: Run, image_id: str) -> Path:
        """The file of a picture."""
        return self.path(run) / f"{image_id}{self.suffix}"

    def used(self, options: Options) -> list[Input]:
        """What it is made from with these options."""
        reads = STEPS[self.step].reads if self.reads is None else self.reads
        return [one for one in reads if one.is_used(options)]

    def arguments(self, options: Options) -> dict[str, Any]:
        """The options that its record holds."""
        parts = [self.part or self.step]
        parts += [one.part for one in self.used(options) if one.part is not None]
        return {k: v for part in parts for k, v in identifying(options, part).items()}

    def record(self, run: Run) -> Record:
        """What makes it now."""
        options, step = run.options, STEPS[self.step]
        used, arguments = self.used(options), self.arguments(options)
        inputs = {_label(one.name): _identity(run, one.name) for one in used}
        if step.trains:
            pictures = run.source.id_list(options.train_list)
            data = run.source.fingerprint(pictures.ids)
            inputs |= {"train_list": pictures.sha256, "train_data": data}
            inputs |= {
                name: file_hash(_first_weights(options, name)) for name in step.first_weights
            }
        networks = (*step.trains, *(one.network for one in used if one.network is not None))
        inputs |= _statistics(options, networks)
        return Record(self.step, {**arguments, "class_names": run.class_names}, inputs)


@dataclass(frozen=True)
class Step:
    """What a step reads and writes.

    Attributes:
        lists: options; lists whose pictures it reads, beside those that are scored.
        labelled: those of the lists whose image labels it reads.
        reads: outputs of earlier steps.
        writes: its own outputs.
        trains: options of the networks that it trains.
        state: name of the file from which an interrupted training goes on.
    """

    lists: tuple[str, ...] = ()
    labelled: tuple[str, ...] = ()
    reads: tuple[Input, ...] = ()
    writes: tuple[Output, ...] = ()
    trains: tuple[str, ...] = ()
    state: str = ""

    @property
    def first_weights(self) -> tuple[str, ...]:
        """Options of the local weights from which its training starts."""
        return tuple(f"{network}_weights" for network in self.trains)


_TRAIN, _INFER = ("train_list",), ("infer_list",)
_BOTH = (*_TRAIN, *_INFER)
_IRN = Input("irn_weights_name")
_CAMS_OF_TRAIN, _CAMS_OF_INFER = Input("cam_out_dir", _TRAIN), Input("cam_out_dir", _INFER)

STEPS: dict[str, Step] = {
    "train_cam": Step(
        lists=(*_TRAIN, "val_list"),
        labelled=(*_TRAIN, "val_list"),
        writes=(
            Output("cam_weights_name", "train_cam", _TRAIN),
            Output("deit_weights_name", "train_cam", _TRAIN),
        ),
        trains=("vit", "cnn"),
        state="train_cam.state.pth",
    ),
    "make_cam": Step(
        lists=_BOTH,
        labelled=_BOTH,
        reads=(
            Input("cam_weights_name", (), uses_cnn, "cnn", CAM_CNN),
            Input("deit_weights_name", (), uses_transformer, "vit", CAM_TRANSFORMER),
        ),
        writes=(Output("cam_out_dir", "make_cam", _BOTH, ".npz"),),
    ),
    "eval_cam": Step(reads=(Input("cam_out_dir"),)),
    "cam_to_ir_label": Step(
        lists=_TRAIN,
        reads=(_CAMS_OF_TRAIN,),
        writes=(Output("ir_label_out_dir", "cam_to_ir_label", _TRAIN, ".png"),),
    ),
    # The mean displacement alone is taken over the inference list: trained weights serve other
    # lists as well, so their record does not hold it.
    "train_irn": Step(
        lists=_BOTH,
        reads=(Input("ir_label_out_dir", _TRAIN),),
        writes=(Output("irn_weights_name", "train_irn", _BOTH),),
        trains=("irn_backbone",),
        state="train_irn.state.pth",
    ),
    "make_ins_seg_labels": Step(
        lists=_INFER,
        reads=(_IRN, _CAMS_OF_INFER),
        writes=(Output("ins_seg_out_dir", "make_ins_seg_labels", _INFER, ".npz"),),
    ),
    "eval_ins_seg": Step(reads=(Input("ins_seg_out_dir"),)),
    "make_sem_seg_labels": Step(
        lists=_INFER,
        reads=(_IRN, _CAMS_OF_INFER),
        writes=(
            Output("sem_seg_out_dir", "make_sem_seg_labels", _INFER, ".png"),
            Output("edge_out_dir", "make_sem_seg_labels", _INFER, ".png", (_IRN,), EDGES),
        ),
    ),
    "eval_sem_seg": Step(reads=(Input("sem_seg_out_dir"),)),
}
OUTPUTS = {output.name: output for step in STEPS.values() for output in step.writes}
"""Every output by the name of its option."""


# ---------------------------------------------------------------------------- what went into them


def _label(name: str) -> str:
    """What records call an input."""
    return name.removesuffix("_name").removesuffix("_out_dir")


def _identity(run: Run, name: str) -> str:
    """Hash of a weight file; fingerprint of a folder, as recorded or as it would be made now."""
    output = OUTPUTS[name]
    path = output.path(run)
    if output.suffix is None:
        return file_hash(path)
    recorded = read_record(path) if path.is_dir() else None
    return (recorded or output.record(run)).fingerprint


def _first_weights(options: Options, name: str) -> Path | str | None:
    own = getattr(options, name)
    of_cam = (name, own) == ("irn_backbone_weights", CAM_BACKBONE)
    return options.cam_weights_name if of_cam else own


def _statistics(options: Options, networks: tuple[str, ...]) -> dict[str, str]:
    """How networks want their pictures, which follows from their names and timm's version.

    Nothing for ImageNet's mean and standard deviation.
    """
    found = {f"input of {name}": input_statistics(getattr(options, name)) for name in networks}
    return {key: text for key, text in found.items() if text is not None}


# ----------------------------------------------------------------------------------- start a step


class Work(NamedTuple):
    """What a step has to do.

    Attributes:
        ids: of the pictures that its outputs are made for; none of a step that only reads.
        left: those that are still to do; all that a training reads, none when its weights are kept.
        record: what makes its first output now; None of a step that only reads.
    """

    ids: tuple[str, ...]
    left: list[str]
    record: Record | None

    @property
    def share(self) -> list[str]:
        """This process's part of what is left."""
        return shard(self.left)


Left = Callable[[Sequence[str]], list[str]]
"""Those of some pictures that are still to do."""


def begin(name: str, run: Run, left: Left | None = None) -> Work:
    """Check the inputs of a step, make its output folders ready, and tell what is left to do.

    The main process decides for all.

    Args:
        name: of the step.
        run: the run.
        left: which pictures lack their outputs; by default those that lack one, or have one that
            is older than the picture's file in the folder that the step reads.

    Raises:
        UserError: an input is missing or was made by something else, or there are outputs of
            something else.
    """
    return on_main(lambda: _begin(name, run, left))


def _begin(name: str, run: Run, left: Left | None) -> Work:
    step = STEPS[name]
    require_inputs(name, run)
    if not step.writes:
        return Work((), [], None)
    ids, record = run.ids(*step.writes[0].lists), step.writes[0].record(run)
    if step.trains:  # all its weights have the same record
        return Work(ids, [] if _keeps_weights(step, record, run) else list(ids), record)
    for output in step.writes:
        expected = record if output is step.writes[0] else output.record(run)
        prepare_output(
            *(output.path(run), expected, str(output.suffix), ids),
            force=run.options.force,
            option=output.option,
            lists=list_facts(run, output),
        )
    left = left or (lambda ids: [i for i in ids if not is_current(step, run, i)])
    return Work(ids, left(ids), record)


def is_current(step: Step, run: Run, image_id: str) -> bool:
    """Whether a picture has its outputs of a step, none older than what the step reads for it."""
    read = [OUTPUTS[one.name] for one in step.reads if one.lists]
    inputs = [one.file(run, image_id) for one in read]
    return all(up_to_date(output.file(run, image_id), *inputs) for output in step.writes)


def require_inputs(name: str, run: Run) -> None:
    """Stop when an input of a step is missing or was made by something else; see `require_read`."""
    for one in STEPS[name].reads:
        require_read(one, run)


def require_read(one: Input, run: Run) -> None:
    """Stop when an input is missing or was made by something else.

    Raises:
        UserError: names it, or counts the pictures whose files are missing.
    """
    if one.is_used(run.options):
        require_input(one.name, run)
    if one.lists:
        folder = OUTPUTS[one.name].path(run)
        maker = IMPORT_STEP if is_imported(folder) else OUTPUTS[one.name].step
        require_outputs(folder, str(OUTPUTS[one.name].suffix), run.ids(*one.lists), maker)


def require_input(name: str, run: Run) -> None:
    """Stop when an output that is read now is missing or was made by something else.

    What would make it now is worked out only when there is a record to compare with: weights
    from elsewhere need no training list. Imported CAMs are what they are; only their classes must
    be those of now.

    Args:
        name: of the option.
        run: the run.
    """
    target, force = OUTPUTS[name].path(run), run.options.force
    if not target.exists():
        raise UserError(
            f"{target} does not exist; run the step that makes it or correct the option."
        )
    recorded = read_record(target)
    if recorded is None:
        log(f"{target} has no record of what made it and is used as it is.")
    elif is_imported(target):
        same = {**recorded.arguments, "class_names": run.class_names}
        check_record(target, replace(recorded, arguments=same), force, _IMPORT_REDO)
    else:
        check_record(target, OUTPUTS[name].record(run), force)


def is_made_as_now(name: str, run: Run) -> bool:
    """Whether an output is there and its record says that the current arguments made it.

    Args:
        name: of the option.
        run: the run.

    Raises:
        UserError: what would make it now is not there, such as a list; or a record is damaged.
    """
    output = OUTPUTS[name]
    recorded = read_record(output.path(run)) if output.path(run).exists() else None
    return recorded is not None and not output.record(run).differences(recorded)


def is_imported(folder: Path) -> bool:
    """Whether CAMs are those of another method."""
    recorded = read_record(folder)
    return recorded is not None and recorded.step == IMPORT_STEP


def list_facts(run: Run, output: Output) -> dict[str, dict[str, Any]]:
    """Name, hash and number of ids of an output's lists, for a person who reads the record."""
    names = [getattr(run.options, option) for option in output.lists]
    return {name: run.source.id_list(name).facts() for name in names}


def _keeps_weights(step: Step, record: Record, run: Run) -> bool:
    """Whether all weights of a training are there; they come from one training, or none is kept."""
    kept = [
        output.path(run)
        for output in step.writes
        if keep_file(output.path(run), record, force=run.options.force, option=output.option)
    ]
    if len(kept) == len(step.writes):
        return True
    for path in kept:
        recorded = read_record(path)
        if recorded is None or record.differences(recorded):
            raise UserError(
                f"{path} comes from elsewhere and the other branch has no weights: both are "
                "trained together, so give both files, or write to other names with "
                f"{' and '.join(output.option for output in step.writes)}."
            )
    return False


def board_dir(run: Run, name: str) -> Path:
    """Where a training step writes for TensorBoard."""
    return run.options.result_dir / "logs" / name


def state_path(run: Run, name: str) -> Path:
    """Where a training step keeps what it resumes from."""
    return STEPS[name].writes[0].path(run).with_name(STEPS[name].state)
