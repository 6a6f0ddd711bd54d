"""Whether the chosen steps could run to their end: data, networks, weights, what is overwritten.

Looked at before anything is computed or removed; all problems are told at once.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from misc.checks import require_no_problems
from misc.errors import UserError
from misc.progress import log
from misc.tensorboard import require_tensorboard
from net.crf import require_backend
from step.networks import build_cnn, build_deit, build_irn, load_branches, load_irn
from step.options import CAM_BACKBONE, selected_steps
from step.overwrite import overwrite_problems
from step.plan import STEPS, require_inputs
from step.run import Run
from step.scoring import SCORING_STEPS, Scored, find_scored, nothing_to_score, scored_output
from voc12.devkit import (
    ANNOTATION_FOLDER,
    AUG_MASK_FOLDER,
    IMAGE_FOLDER,
    LIST_FOLDER,
    MASK_FOLDER,
    OBJECT_MASK_FOLDER,
)
from voc12.preflight import find_problems
from voc12.source import NO_LIST

_ALL_LISTS = ("train_list", "val_list", "infer_list")
_CPU = torch.device("cpu")
_DATA_FOLDERS = [
    (folder,)
    for folder in (
        IMAGE_FOLDER,
        ANNOTATION_FOLDER,
        MASK_FOLDER,
        AUG_MASK_FOLDER,
        OBJECT_MASK_FOLDER,
        Path(LIST_FOLDER).parts[0],
    )
]


def require_root(run: Run) -> None:
    """Stop when there are no pictures at all, with a hint where they may be.

    Raises:
        UserError: `--voc12_root` or its JPEGImages does not exist.
    """
    source = run.source
    if not (source.devkit.root / IMAGE_FOLDER).is_dir():
        require_no_problems(find_problems(source.devkit, source.classes, ("any",)))


def check(run: Run) -> tuple[str, ...]:
    """Check everything that the chosen steps need.

    Returns:
        The steps that can run: those that would have nothing to score are left out with a line in
        the log, unless `--steps` names them.

    Raises:
        UserError: lists every problem.
    """
    steps = selected_steps(run.options)
    if not steps:
        raise UserError("no step is switched on; name some with --steps.")
    require_root(run)
    problems = _outputs_in_the_data(run, steps)
    lists = _Lists(run, steps, problems)
    scored, steps = _scorable_steps(run, steps, lists, problems)
    problems += _data_problems(run, steps, lists, scored)
    problems += _missing_weights(run, steps) + readiness_problems(run, steps)
    if run.options.overwrite and not problems:
        problems += overwrite_problems(run, steps)
    require_no_problems(problems)
    return steps


def check_machine(run: Run, steps: tuple[str, ...]) -> None:
    """Check what another machine than that of the main process has to have, too.

    ImageNet weights that are not there yet are downloaded.

    Raises:
        UserError: the data set or local weights are not there, or something cannot be built.
    """
    require_root(run)
    require_no_problems(_missing_weights(run, steps) + readiness_problems(run, steps))


def _outputs_in_the_data(run: Run, steps: tuple[str, ...]) -> list[str]:
    """Outputs that would lie among the pictures, annotations or masks of the data set."""
    root = run.source.devkit.root.resolve()
    places = {out.option: out.path(run).resolve() for step in steps for out in STEPS[step].writes}
    return [
        f"output among the data: {option} {path} lies in a folder of the data set; choose another"
        for option, path in places.items()
        if path.is_relative_to(root) and path.relative_to(root).parts[:1] in _DATA_FOLDERS
    ]


class _Lists:
    """The ids of the lists that the steps read; a list that nothing reads is empty."""

    def __init__(self, run: Run, steps: Iterable[str], problems: list[str]) -> None:
        self._run, self._problems = run, problems
        read = {option for step in steps for option in STEPS[step].lists}
        self._ids = {one: self._find(one) if one in read else () for one in _ALL_LISTS}

    def of(self, options: Iterable[str]) -> tuple[str, ...]:
        """Ids of several lists, each once."""
        return tuple(dict.fromkeys(i for option in options for i in self._ids[option]))

    def _find(self, option: str) -> tuple[str, ...]:
        name, options = getattr(self._run.options, option), self._run.options
        if option == "val_list" and name == NO_LIST:
            return ()
        try:
            found = self._run.source.id_list(name).ids
        except UserError as error:
            text = f"unusable list: {error}"
            if name == options.val_list != options.train_list:
                text = f"{text.rstrip('.')}; or go without validation: --val_list {NO_LIST}."
            self._problems += [text] if text not in self._problems else []
            return ()
        if not found:
            self._problems.append(f"unusable list: {name} is empty; name a list of pictures")
        return found


def _scorable_steps(
    run: Run, steps: tuple[str, ...], lists: _Lists, problems: list[str]
) -> tuple[dict[str, Scored], tuple[str, ...]]:
    """What each scoring step will score, and the steps without those that would score nothing."""
    scored: dict[str, Scored] = {}
    devkit = run.source.devkit
    if run.options.steps is None and not devkit.has_masks():
        dropped = [step for step in steps if step in SCORING_STEPS]
        steps = tuple(step for step in steps if step not in dropped)
        if dropped:
            log(f"{devkit.root} has no SegmentationClass folder: {', '.join(dropped)} left out.")
    for step in SCORING_STEPS:
        if step not in steps:
            continue
        maker = scored_output(step).step
        ids = lists.of(STEPS[maker].lists)
        try:
            found = find_scored(run, step, ids if maker in steps else ())
        except UserError as error:
            text = f"unusable list: {error}"
            problems += [text] if text not in problems else []
            continue
        if found is not None:
            scored[step] = found
        elif run.options.steps is not None:
            problems.append(f"nothing to score: {nothing_to_score(run, step)}")
        else:
            steps = tuple(name for name in steps if name != step)
            log(f"left out: {nothing_to_score(run, step)}")
    return scored, steps


def _data_problems(
    run: Run, steps: tuple[str, ...], lists: _Lists, scored: dict[str, Scored]
) -> list[str]:
    """What is wrong with pictures, image labels and masks."""
    source = run.source
    labelled = [option for step in steps for option in STEPS[step].labelled]
    instances = scored.get("eval_ins_seg")
    return find_problems(
        source.devkit,
        source.classes,
        image_ids=[i for i in lists.of(_ALL_LISTS) if i not in source.photos],
        mask_ids=dict.fromkeys(i for one in scored.values() for i in one.ids),
        object_mask_ids=instances.ids if instances else (),
        label_ids=lists.of(labelled),
        cls_labels=source.cls_labels,
        cache_dir=source.cache_dir,
    )


def _missing_weights(run: Run, steps: tuple[str, ...]) -> list[str]:
    """Local weight files that steps of this run will read, maybe hours later."""
    options = [option for step in steps for option in STEPS[step].first_weights]
    paths = {option: getattr(run.options, option) for option in options}
    return [
        f"missing weights: --{option} {path} does not exist"
        for option, path in paths.items()
        if path not in (None, CAM_BACKBONE) and not Path(path).is_file()
    ]


def readiness_problems(run: Run, steps: tuple[str, ...]) -> list[str]:
    """Try everything that steps of this run build, load or import later.

    Training whose weights are there already will keep them and needs nothing; what reads them does.
    ImageNet weights that are not here yet are downloaded now.

    Returns:
        Problems as `kind: what and remedy`, none if all is well.
    """
    return [
        f"unusable {what}: {error}"
        for what, attempt in _attempts(run, steps)
        if (error := _failure(attempt)) is not None
    ]


def _failure(attempt: Callable[[], object]) -> UserError | None:
    try:
        attempt()
    except UserError as error:
        return error
    return None


def _attempts(run: Run, steps: tuple[str, ...]) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is tried, in words and as a function."""
    trained = {step for step in steps if STEPS[step].trains and _trains(run, step)}
    if "train_cam" in trained:
        yield "CNN branch", lambda: build_cnn(run)
        yield "transformer branch", lambda: build_deit(run)
    elif "make_cam" in steps:
        yield "weights", lambda: (require_inputs("make_cam", run), load_branches(run, _CPU))
    if trained:
        yield "TensorBoard", require_tensorboard
    if "cam_to_ir_label" in steps:
        yield "dense CRF", lambda: require_backend(run.options.crf_backend)
    if "train_irn" in trained:
        later = run.options.irn_backbone_weights == CAM_BACKBONE  # those are still to be trained
        yield "IRNet", lambda: build_irn(run, trained=later)
    elif {"make_ins_seg_labels", "make_sem_seg_labels"}.intersection(steps):
        yield "weights", lambda: load_irn(run, _CPU)


def _trains(run: Run, step: str) -> bool:
    """Whether a training step will not just keep the weights that are there."""
    return run.options.overwrite or not all(
        output.path(run).is_file() for output in STEPS[step].writes
    )
