"""What the chosen steps would take: each is run on some pictures, the rest is multiplication.

`run_sample.py --estimate`. Everything is made in a temporary folder, which goes in the end; what is
there already is read, never changed. Pictures whose outputs the same options have made do not
count, nor do trainings whose weights are kept; a training that was interrupted counts in full.

Trainings run a few steps of the real batch. Later steps use the weights of these, or those that
are there: times do not depend on the values of weights, except for the instances, which take longer
the more clusters IRNet sees.
"""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch

from misc.distributed import select_device, world_size
from misc.errors import UserError
from misc.progress import Loop, log, watched
from misc.tables import aligned, clock, show
from step.checks import check
from step.options import PATH_OPTIONS, Options
from step.photo_changes import check_photos
from step.plan import OUTPUTS, STEPS, Output, board_dir, is_current, is_made_as_now, require_read
from step.run import Run, prepare_data
from step.scoring import SCORING_STEPS, find_scored, scored_output
from step.steps import run_measured

TRIAL_STEPS = 4  # of a training: the first is a warm-up, the last one has the end of an epoch in it
_ROUNDS_OF_A_WORKER = 3  # the first is its warm-up
_EPOCHS = {"train_cam": "cam_num_epoches", "train_irn": "irn_num_epoches"}
_BATCHES = {"train_cam": "cam_batch_size", "train_irn": "irn_batch_size"}
_IN_PROCESSES = "cam_to_ir_label"  # the step that is spread over --num_workers processes
_MIB, _GIB = 2**20, 2**30


@dataclass(frozen=True)
class Part:
    """Something that a step does many times.

    Attributes:
        unit: what is done once, in words.
        seconds: that it takes.
        units: how often the run would do it.
        tried: seconds that the trial spent on it, its warm-up left out.
    """

    unit: str
    seconds: float
    units: int
    tried: float


@dataclass(frozen=True)
class Cost:
    """What a step would take.

    Attributes:
        step: its name.
        parts: empty where there is nothing left to do.
        start: seconds of what it does once: networks, processes, the first picture.
        memory: peak in bytes by device.
        disk: bytes that it would write.
    """

    step: str
    parts: tuple[Part, ...] = ()
    start: float = 0.0
    memory: Mapping[str, int] | None = None
    disk: float = 0.0

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.start + sum(part.seconds * part.units for part in self.parts)


def estimate(options: Options) -> list[Cost]:
    """Print what the chosen steps would take.

    Raises:
        UserError: there are several processes, or the run itself would be refused.
    """
    if world_size() > 1:
        raise UserError(
            "--estimate measures one process; start it without torchrun. Several processes share "
            "the pictures of every step."
        )
    if options.overwrite:
        log("--overwrite: all of it counts as still to do; nothing is removed.")
    with tempfile.TemporaryDirectory(prefix="crt-estimate-", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        run = prepare_data(replace(options, work_dir=place, cache_dir=place / "cache"))
        check_photos(run)
        steps = check(run)
        left = pictures_left(run, steps)
        trial = make_trial(run, steps, left, place)
        costs = []
        for name in steps:
            log(f"estimate: {name} {'...' if left[name] else 'is finished'}")
            costs.append(_try(name, run, trial, left[name]) if left[name] else Cost(name))
    log(cost_table(costs))
    log(_told(run, costs))
    return costs


# ------------------------------------------------------------------------------ what is left to do


def pictures_left(run: Run, steps: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Ids that each step has to work on; for a training those of its list, or none if it is done.

    Steps that score have all of their pictures to do.
    """
    left: dict[str, tuple[str, ...]] = {}
    for name in steps:
        step = STEPS[name]
        if name in SCORING_STEPS:
            maker = scored_output(name).step
            to_be_made = run.ids(*STEPS[maker].lists) if maker in steps else ()
            scored = find_scored(run, name, to_be_made)
            left[name] = scored.ids if scored else ()
            continue
        kept = all(_is_kept(output, run) for output in step.writes)
        ids = run.ids("train_list") if step.trains else run.ids(*step.writes[0].lists)
        if kept and not step.trains:
            again = {i for one in step.reads for i in left.get(OUTPUTS[one.name].step, ())}
            left[name] = tuple(i for i in ids if i in again or not is_current(step, run, i))
        else:
            left[name] = () if kept else ids
    return left


def _is_kept(output: Output, run: Run) -> bool:
    """Whether a run keeps what is there of an output."""
    options = run.options
    if options.overwrite or not output.path(run).exists():
        return False
    return options.force or is_made_as_now(output.name, run)


# ---------------------------------------------------------------------------------------- the trial


def make_trial(
    run: Run, steps: Sequence[str], left: Mapping[str, Sequence[str]], place: Path
) -> Run:
    """A small run of the same options in another folder.

    Its lists are pictures of the real ones, as far as possible of those that are scored. What no
    step makes that will run is linked.

    Args:
        run: the real one.
        steps: the chosen ones.
        left: see `pictures_left`.
        place: the folder.

    Raises:
        UserError: an input is missing or was made by something else.
    """
    options = run.options
    lists = {option for step in steps for option in STEPS[step].lists}
    scored = {name: left[name] for name in steps if name in SCORING_STEPS}
    votes = Counter(i for ids in scored.values() for i in ids)
    chosen = {name: _some_of(run.ids(name), votes, options.estimate) for name in sorted(lists)}
    every = [i for ids in chosen.values() for i in ids]
    every += [i for ids in scored.values() for i in _some_of(ids, votes, options.estimate)]
    chosen["eval_list"] = list(dict.fromkeys(every))
    trial = Run(
        replace(
            options,
            overwrite=False,
            force=False,
            **{name: place / getattr(Options(), name) for name in PATH_OPTIONS},
            **{name: str(_write_list(place, name, ids)) for name, ids in chosen.items() if ids},
            **{_BATCHES[name]: batch_size(run, name) for name in steps if name in _BATCHES},
        ),
        run.source,
        TRIAL_STEPS,
    )
    _link_inputs(run, trial, [name for name in steps if left[name]], chosen["eval_list"])
    return trial


def _some_of(ids: Sequence[str], votes: Mapping[str, int], count: int) -> list[str]:
    """Up to `count` ids, evenly spread over those with most votes."""
    most = max((votes.get(i, 0) for i in ids), default=0)
    pool = [i for i in ids if votes.get(i, 0) == most]
    count = min(count, len(pool))
    return [pool[number * len(pool) // count] for number in range(count)]


def _write_list(place: Path, name: str, ids: Sequence[str]) -> Path:
    path = place / "lists" / f"some_of_{name}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{i}\n" for i in ids), encoding="utf-8")
    return path


def batch_size(run: Run, name: str) -> int:
    """Pictures in a step of a training."""
    return min(getattr(run.options, _BATCHES[name]), len(run.ids("train_list")))


def _link_inputs(run: Run, trial: Run, running: Sequence[str], ids: Sequence[str]) -> None:
    """Let the trial read what none of its steps makes."""
    for one in (one for name in running for one in STEPS[name].reads):
        output = OUTPUTS[one.name]
        if output.step in running or not one.is_used(run.options):
            continue
        require_read(one, run)
        if output.suffix is None:
            pairs = [(output.path(run), output.path(trial))]
        else:
            pairs = [(output.file(run, i), output.file(trial, i)) for i in ids]
        for path, link in pairs:
            if path.is_file() and not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)


def _try(name: str, run: Run, trial: Run, left: Sequence[str]) -> Cost:
    """Run a step of the trial and work out the real one."""
    device = select_device(run.options.device)
    workers = _workers(run.options) if name == _IN_PROCESSES else run.options.num_workers
    trial = replace(trial, options=replace(trial.options, num_workers=workers))
    finish = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    with watched(finish) as loops:
        measured = run_measured(name, trial)
    if STEPS[name].trains:
        parts = _training_parts(name, run, trial, {loop.description: loop for loop in loops})
    else:
        parts = (_picture_part(name, run.options, loops[0], workers, len(left)),)
    start = max(0.0, measured.seconds - sum(part.tried for part in parts))
    return Cost(name, parts, start, measured.memory, _disk(name, run, trial, len(left)))


def _workers(options: Options) -> int:
    """Processes that a trial keeps busy."""
    return min(options.num_workers, max(1, options.estimate // _ROUNDS_OF_A_WORKER))


def _picture_part(name: str, options: Options, loop: Loop, workers: int, pictures: int) -> Part:
    """Every process warms up with one picture; twice as many processes take half the time."""
    spread, warm_up = 1.0, 1
    if name == _IN_PROCESSES and workers:
        spread, warm_up = min(options.num_workers, pictures) / workers, workers
    seconds = mean(loop.seconds[warm_up:] or loop.seconds)
    return Part("picture", seconds / spread, pictures, seconds * len(loop.seconds))


def _training_parts(name: str, run: Run, trial: Run, loops: Mapping[str, Loop]) -> tuple[Part, ...]:
    """Steps, validation and end of an epoch, and what follows the last one."""
    rounds, batch = loops[name].seconds, batch_size(run, name)
    epochs, step = getattr(run.options, _EPOCHS[name]), mean(rounds[1:-1])
    steps = len(run.ids("train_list")) // batch * epochs
    parts, more = [Part(f"step of {batch} pictures", step, steps, step * len(rounds))], 0.0
    if "validate" in loops:
        more = sum(loops["validate"].seconds)
        each, pictures = more / len(trial.ids("val_list")), len(run.ids("val_list"))
        parts.append(Part("picture validated", each, pictures * epochs, more))
    end = max(0.0, rounds[-1] - step - more)
    parts.append(Part("end of an epoch", end, epochs, end))
    if "mean displacement" in loops:
        spent = sum(loops["mean displacement"].seconds)
        each, pictures = spent / len(trial.ids("infer_list")), len(run.ids("infer_list"))
        parts.append(Part("picture displaced", each, pictures, spent))
    return tuple(parts)


def _disk(name: str, run: Run, trial: Run, pictures: int) -> float:
    """Bytes that a step would write; states of trainings are removed at their end."""
    writes = STEPS[name].writes
    if STEPS[name].trains:
        weights = sum(output.path(trial).stat().st_size for output in writes)
        files = [path for path in board_dir(trial, name).rglob("*") if path.is_file()]
        curves = sum(path.stat().st_size for path in files)
        return weights + curves * getattr(run.options, _EPOCHS[name])
    ids = trial.ids(*writes[0].lists) if writes else ()
    sizes = [output.file(trial, i).stat().st_size for output in writes for i in ids]
    return sum(sizes) / len(ids) * pictures if ids else 0.0


# ---------------------------------------------------------------------------------------- the table


def cost_table(costs: Sequence[Cost]) -> str:
    """Lines with every step and its parts, and the total."""
    devices = sorted({device for cost in costs for device in cost.memory or {}})
    heading = ["step", "unit", "s per unit", "units", "start s", "whole"]
    rows = [[*heading, *(f"{device} GiB" for device in devices), "disk MiB"]]
    for cost in costs:
        memory = [show((cost.memory or {}).get(device, 0) / _GIB) for device in devices]
        ending = [show(cost.start, 1), clock(cost.seconds), *memory, show(cost.disk / _MIB, 1)]
        for part in cost.parts or (Part("finished", 0.0, 0, 0.0),):
            rows.append([cost.step, part.unit, show(part.seconds, 3), str(part.units), *ending])
            cost, ending = replace(cost, step=""), [""] * len(ending)
    peaks = [max((cost.memory or {}).get(device, 0) for cost in costs) for device in devices]
    total = ["total", "", "", "", "", clock(sum(cost.seconds for cost in costs))]
    disk = sum(cost.disk for cost in costs) / _MIB
    return aligned([*rows, [*total, *(show(p / _GIB) for p in peaks), show(disk, 1)]], left=2)


def _told(run: Run, costs: Sequence[Cost]) -> str:
    """What the table was computed from, and what is not in it."""
    options = run.options
    trained = any(STEPS[cost.step].trains for cost in costs if cost.parts)
    steps = f" and {TRIAL_STEPS} steps of each training" if trained else ""
    return (
        f"computed from up to {options.estimate} pictures of each list{steps} on "
        f"{select_device(options.device)} with --num_workers {options.num_workers}, the first of "
        "each not counted. 'whole' is 'start' and all units; the checks before the first step, "
        "overlays, figure and page come on top, and instances depend on the trained network. "
        "Nothing was written."
    )
