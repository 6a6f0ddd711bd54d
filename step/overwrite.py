"""--overwrite: what of earlier outputs may be removed, and the removal."""

from collections.abc import Iterable, Sequence

from misc.outputs import check_removal, remove_file, remove_outputs
from misc.progress import log
from misc.provenance import read_record
from misc.tensorboard import remove_event_files
from step.plan import STEPS, board_dir, state_path
from step.run import Run


def overwrite_problems(run: Run, names: Iterable[str]) -> list[str]:
    """What forbids to remove the outputs of the chosen steps.

    Only what has a record of ours is ever removed, and only for the pictures of the current lists.
    Other pictures' files stay, so they must be what the current arguments make, too. Weights that
    are trained again may differ in their last digits: nothing that was made from them may stay.

    Returns:
        Problems as `kind: what and remedy`, none if all is well.
    """
    problems, changed = [], False
    for name in names:
        inputs_changed = changed
        for output in STEPS[name].writes:
            path = output.path(run)
            expected, recorded = output.record(run), read_record(path)
            differs = bool(expected.differences(recorded))
            changed |= differs or output.suffix is None
            ids = run.ids(*output.lists) if output.suffix else None
            problem = check_removal(
                *(path, expected.step, output.option, output.suffix, ids),
                changed=inputs_changed or differs,
            )
            problems += [f"not to be overwritten: {problem}"] if problem else []
    return problems


def remove_before(run: Run, names: Sequence[str]) -> None:
    """Remove the outputs of all chosen steps, so that the same command can go on if interrupted.

    The last step comes first: nothing is computed beside older outputs that are still there. Call
    it when everything that the steps need is known to be usable, see `overwrite_problems`.
    """
    for name in reversed(names):
        for output in STEPS[name].writes:
            path = output.path(run)
            if output.suffix is None:
                count = remove_file(path)
            else:
                count = remove_outputs(path, output.suffix, run.ids(*output.lists))
            if count:
                log(f"--overwrite: removed {count} file(s) of {name}: {path}")
        if STEPS[name].trains:
            state_path(run, name).unlink(missing_ok=True)
            remove_event_files(board_dir(run, name))
