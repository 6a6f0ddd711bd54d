"""What every step writes: files, the ids they belong to, and the record of what makes them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from misc.outputs import check_removal, prepare_output, remove_file, remove_outputs
from misc.progress import log
from misc.provenance import Record, read_record
from misc.tensorboard import remove_event_files
from step import lineage
from step.run import Run


class Output(NamedTuple):
    """Something that a step writes.

    Attributes:
        option: the command line option that names it.
        path: the folder of the pictures' files, or a weight file.
        record: what makes it with the current arguments.
        suffix: of the pictures' files; None for a weight file.
        lists: the options whose lists have a file each.
    """

    option: str
    path: Path
    record: Callable[[Run], Record]
    suffix: str | None = None
    lists: tuple[str, ...] = ()

    def ids(self, run: Run) -> tuple[str, ...]:
        """Ids of the pictures that get a file."""
        return run.source.ids_of(*(getattr(run.options, name) for name in self.lists))


class _Folder(NamedTuple):
    option: str
    record: Callable[[Run], Record]
    suffix: str
    lists: tuple[str, ...]


_WEIGHTS: dict[str, dict[str, Callable[[Run], Record]]] = {
    "train_cam": {
        "cam_weights_name": lineage.cam_training,
        "deit_weights_name": lineage.cam_training,
    },
    "train_irn": {"irn_weights_name": lineage.irn_training},
}
_STATES = {
    "train_cam": ("cam_weights_name", "train_cam.state.pth"),
    "train_irn": ("irn_weights_name", "train_irn.state.pth"),
}
_FOLDERS = {
    "make_cam": (_Folder("cam_out_dir", lineage.cams, ".npz", ("train_list", "infer_list")),),
    "cam_to_ir_label": (_Folder("ir_label_out_dir", lineage.ir_labels, ".png", ("train_list",)),),
    "make_ins_seg_labels": (
        _Folder("ins_seg_out_dir", lineage.instances, ".npz", ("infer_list",)),
    ),
    "make_sem_seg_labels": (
        _Folder("sem_seg_out_dir", lineage.pseudo_masks, ".png", ("infer_list",)),
        _Folder("edge_out_dir", lineage.edges, ".png", ("infer_list",)),
    ),
}


def outputs_of(run: Run, step: str) -> tuple[Output, ...]:
    """Everything that a step writes; nothing for the scoring steps."""
    files = (
        Output(f"--{name}", getattr(run.options, name), record)
        for name, record in _WEIGHTS.get(step, {}).items()
    )
    folders = (
        Output(f"--{option}", getattr(run.options, option), record, suffix, lists)
        for option, record, suffix, lists in _FOLDERS.get(step, ())
    )
    return (*files, *folders)


def prepare_outputs(run: Run, step: str) -> list[tuple[str, ...]]:
    """Make the output folders of a step ready; returns the ids that each of them serves.

    Raises:
        UserError: a folder holds outputs of something else.
    """
    served = []
    for output in outputs_of(run, step):
        served.append(ids := output.ids(run))
        prepare_output(
            output.path,
            output.record(run),
            output.suffix,
            ids,
            force=run.options.force,
            option=output.option,
            lists=lineage.list_facts(run, *(getattr(run.options, name) for name in output.lists)),
        )
    return served


def state_path(run: Run, step: str) -> Path:
    """Where a training step keeps what it resumes from."""
    option, name = _STATES[step]
    return getattr(run.options, option).with_name(name)


def board_dir(run: Run, step: str) -> Path:
    """Where a training step writes for TensorBoard."""
    return run.options.result_dir / "logs" / step


def overwrite_problems(run: Run, steps: Iterable[str]) -> list[str]:
    """What forbids to remove the outputs of the chosen steps.

    Only what has a record of ours is ever removed, and only for the pictures of the current lists.
    Other pictures' files stay, so they must be what the current arguments make, too. Weights that
    are trained again may differ in their last digits: nothing that was made from them may stay.

    Returns:
        Problems as `kind: what and remedy`, none if all is well.
    """
    problems, changed = [], False
    for step in steps:
        inputs_changed = changed
        for output in outputs_of(run, step):
            expected, recorded = output.record(run), read_record(output.path)
            differs = recorded is not None and bool(expected.differences(recorded))
            changed |= differs or step in _WEIGHTS
            ids = output.ids(run) if output.suffix else None
            problem = check_removal(
                *(output.path, expected.step, output.option, output.suffix, ids),
                changed=inputs_changed or differs,
            )
            problems += [f"not to be overwritten: {problem}"] if problem else []
    return problems


def remove_before(run: Run, steps: Sequence[str]) -> None:
    """Remove the outputs of all chosen steps, so that the same command can go on if interrupted.

    The last step comes first: nothing is computed beside older outputs that are still there. Call
    it when everything that the steps need is known to be usable, see `overwrite_problems`.
    """
    for step in reversed(steps):
        for output in outputs_of(run, step):
            if output.suffix is None:
                count = remove_file(output.path)
            else:
                count = remove_outputs(output.path, output.suffix, output.ids(run))
            if count:
                log(f"--overwrite: removed {count} file(s) of {step}: {output.path}")
        if step in _STATES:
            state_path(run, step).unlink(missing_ok=True)
            remove_event_files(board_dir(run, step))
