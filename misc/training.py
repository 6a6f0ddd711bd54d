"""The engine of all trainings: one stream of batches, resumable units, losses, hooks, curves."""

import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from misc.batches import BatchStream
from misc.checkpoint import load_training_state, save_training_state
from misc.distributed import (
    all_gather,
    all_reduce_mean,
    barrier,
    data_parallel,
    is_main_process,
    own_gradients,
    rank,
    taking_part,
    together,
    world_size,
)
from misc.errors import UserError
from misc.files import remove_leftovers
from misc.loading import pinned, to_device
from misc.progress import log, progress
from misc.seed import seed_random_layers
from misc.tensorboard import Board, open_board

_STEPS_BETWEEN_FETCHES = 20

Numbers = dict[str, float]


class Loss(NamedTuple):
    """What a step returns.

    Attributes:
        total: scalar to differentiate.
        parts: detached scalars by name, for the log.

    Both are this process's part: their means over the processes are those of the whole batch.
    """

    total: Tensor
    parts: Mapping[str, Tensor]


class Hook(NamedTuple):
    """Something to do after every n units, and after the last one where `at_end` says so."""

    every: int
    call: Callable[[int], object]
    at_end: bool = False


def numbers_in_words(numbers: Mapping[str, float]) -> str:
    """`name value, name value` with four decimals."""
    return ", ".join(f"{name} {value:.4f}" for name, value in numbers.items())


@dataclass
class Training:
    """One training run, in any number of processes, which it makes data parallel itself.

    It counts units: epochs, or iterations (updates), whose batches go from one epoch into the next.
    Reports, hooks and states come after whole units, in this order. Random layers draw from a
    generator that depends on (seed, iteration, process) alone.

    Attributes:
        title: short text for bars and log lines.
        dataset: items keyed by (epoch, index).
        batch_size: pictures per batch, of all processes together.
        units: number of units.
        seed: of the order of pictures and of random layers.
        models: networks by name, already on `device`.
        optimisers: optimisers by name.
        step: takes the networks, as they are to be called in training, a batch on the device and
            the unit (from 0). `weight` of the batch is what a mean over this process's pictures
            must be multiplied by before it is averaged over the processes: 1 where all have equally
            many, 0 where this one has none.
        state_path: resumable state.
        fingerprint: identifies arguments and data of the run.
        unit: what is counted.
        drop_last: leave out the pictures of an epoch that fill no batch; without it they are a
            last, smaller batch; None fills that from the next epoch.
        accumulate: batches of an update.
        num_workers: loader processes.
        report_every: units between two entries of log, history and TensorBoard.
        average: units whose mean losses a report gives.
        state_every: intervals of units after which a state is written.
        board_dir: folder of TensorBoard; None for no curves.
        curves: further numbers for TensorBoard, after a unit (from 1); by default the learning rate
            of every optimiser's first group.
        before: called with the unit (from 0), in every process.
        measure: called with the unit (from 1) in every process; returns numbers for the report.
        hooks: called with the unit (from 1) in every process, the networks in any mode.
        settle: called in every process when a state has been written or read; makes what follows
            from it alone.
        in_words: the numbers of a report as its log line has them.
        remedy: what to do about losses that are not finite.
        history: the reports so far.
        finished: units that are done.
        recent: mean losses of the last `average` units.
        batch: the last batch that was used.
        board: TensorBoard; silent outside of `run` and in all processes but the main one.
        pictures_per_second: speed since the last report.
    """

    title: str
    dataset: Dataset
    batch_size: int
    units: int
    seed: int
    models: Mapping[str, nn.Module]
    optimisers: Mapping[str, torch.optim.Optimizer]
    step: Callable[[Mapping[str, nn.Module], dict[str, Any], int], Loss]
    device: torch.device
    state_path: Path
    fingerprint: str
    unit: Literal["epoch", "iteration"] = "epoch"
    drop_last: bool | None = True
    accumulate: int = 1
    num_workers: int = 0
    report_every: int = 1
    average: int = 1
    state_every: Sequence[int] = (1,)
    board_dir: Path | None = None
    curves: Callable[[int], Numbers] | None = None
    before: Callable[[int], object] | None = None
    measure: Callable[[int], Numbers] | None = None
    hooks: Sequence[Hook] = ()
    settle: Callable[[], object] | None = None
    in_words: Callable[[Numbers], str] = numbers_in_words
    remedy: str = "lower the learning rate and start again with --overwrite."
    history: list[Numbers] = field(default_factory=list)
    finished: int = 0
    batch: dict[str, Any] = field(default_factory=dict)
    board: Board = field(default_factory=lambda: Board(None))
    pictures_per_second: float = 0.0

    def __post_init__(self) -> None:
        self.recent: deque[Numbers] = deque(maxlen=self.average)
        self._losses = _Losses()

    @functools.cached_property
    def steps_per_unit(self) -> int:
        """Updates of a unit.

        Raises:
            ValueError: the batches of an epoch make no whole number of updates.
        """
        if self.unit == "iteration":
            return 1
        steps, rest = divmod(self._stream(0, 0).batches_per_epoch, self.accumulate)
        if rest:
            raise ValueError(f"an epoch is no whole number of updates of {self.accumulate} batches")
        return steps

    def shorten(self, steps: int, batch_size: int) -> None:
        """Make it one epoch of a few updates, with all that comes after an epoch, to see the cost.

        Args:
            steps: how many.
            batch_size: even if it is more than there are pictures, which are then drawn again.
        """
        self.unit, self.units, self.steps_per_unit = "epoch", 1, steps
        self.batch_size, self.drop_last = batch_size, None

    def run(self) -> None:
        """Run all units that are not finished yet.

        Raises:
            UserError: a loss, a number of `measure` or a network is not finite; no state is
                written then.
        """
        if is_main_process():
            remove_leftovers(self.state_path)
        self._resume()
        if self.settle is not None:
            self.settle()
        if self.finished >= self.units:
            return
        self._parallel = {n: data_parallel(m, self.device) for n, m in self.models.items()}
        steps = self.steps_per_unit
        iterations = range(self.finished * steps, self.units * steps)
        batches = self._batches(iterations)
        with open_board(self.board_dir, self.finished + 1) as self.board:
            self._restart_clock()
            for iteration in (bar := progress(iterations, self.title)):
                if iteration % steps == 0:
                    self._begin(iteration // steps)
                self._update(iteration, batches)
                if (iteration + 1) % steps == 0:
                    self._finish((iteration + 1) // steps)
                elif len(self._losses) >= _STEPS_BETWEEN_FETCHES:
                    self._fetch()
                bar.set_postfix_str(self._losses.shown, refresh=False)
        barrier()  # nobody reads the last state before it is written

    def _resume(self) -> None:
        """Restore the last state, if any.

        Raises:
            UserError: it cannot be used, or the processes have found different ones.
        """
        path, fingerprint = self.state_path, self.fingerprint
        with together():
            state = load_training_state(path, self.models, self.optimisers, fingerprint, self.units)
        # Also: nobody writes a new state before all have read this one.
        found = sorted(set(all_gather(0 if state is None else state.finished)))
        if len(found) > 1:
            raise UserError(
                f"{path} is not the same file for all processes, some of which would go on after "
                f"{self.unit} {found[0]} and some after {found[-1]}: all machines must see one "
                "folder; name one on a disk that they share."
            )
        if state is not None:
            self.finished = state.finished
            self.history = list(state.extra["history"])
            self.recent.extend(state.extra.get("recent", []))
            log(f"{self.title}: continued after {self.unit} {self.finished} from {path}.")

    def _stream(self, start: int, stop: int) -> BatchStream:
        drop_last = None if self.unit == "iteration" else self.drop_last
        return BatchStream(len(self.dataset), self.batch_size, self.seed, start, stop, drop_last)

    def _batches(self, iterations: range) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number of pictures of each batch, of all processes together, and this one's part."""
        stream = self._stream(
            *(end * self.accumulate for end in (iterations.start, iterations.stop))
        )
        loader = DataLoader(
            self.dataset,
            batch_sampler=stream,
            num_workers=self.num_workers,
            pin_memory=pinned(self.device),
            generator=torch.Generator(),
        )
        for number, batch in enumerate(loader, stream.start):
            own, total = stream.share(number)
            weight = world_size() * own / total
            yield total, {**to_device(batch, self.device), "weight": weight}

    def _begin(self, unit: int) -> None:
        if self.before is not None:
            self.before(unit)
        for model in self._parallel.values():
            model.train()

    def _update(self, iteration: int, batches: Iterator[tuple[int, dict[str, Any]]]) -> None:
        """One update of all networks from `accumulate` batches."""
        seed_random_layers(self.seed, iteration, rank())
        for optimiser in self.optimisers.values():
            optimiser.zero_grad()
        for number in range(1, self.accumulate + 1):
            pictures, self.batch = next(batches)
            waits = number < self.accumulate  # the processes average their gradients once
            with (
                own_gradients(self._parallel.values()) if waits else nullcontext(),
                taking_part(self.batch["weight"] > 0),
            ):
                loss = self.step(self._parallel, self.batch, iteration // self.steps_per_unit)
                (loss.total / self.accumulate).backward()
            self._losses.add(iteration, pictures, loss.parts)
            self._pictures += pictures
        for optimiser in self.optimisers.values():
            optimiser.step()

    def _fetch(self) -> None:
        """Take in the losses of the last iterations.

        Raises:
            UserError: one is not finite.
        """
        for iteration, losses in self._losses.fetch():
            step = iteration % self.steps_per_unit + 1
            unit = f"{self.unit} {iteration // self.steps_per_unit + 1}"
            where = unit if self.unit == "iteration" else f"step {step} of {unit}"
            self._require_finite(losses, f"in {where}")
            if step == self.steps_per_unit:
                self.recent.append(self._losses.close())

    def _finish(self, finished: int) -> None:
        """Report, call the hooks and write the state, whatever is due after a unit."""
        self.finished, is_last = finished, finished == self.units
        report = is_last or finished % self.report_every == 0
        hooks = [h for h in self.hooks if finished % h.every == 0 or (is_last and h.at_end)]
        state = any(finished % interval == 0 for interval in self.state_every)
        if report or hooks or state or len(self._losses) >= _STEPS_BETWEEN_FETCHES:
            self._fetch()
        if hooks or state:
            self._require_finite_networks()
        if report:
            self._report()
        for hook in hooks:
            hook.call(finished)
        if state:
            self._save_state()

    def _report(self) -> None:
        """Write log, history and curves."""
        self.pictures_per_second = self._pictures / (time.perf_counter() - self._clock)
        names = self.recent[0]
        numbers = {n: sum(row[n] for row in self.recent) / len(self.recent) for n in names}
        if self.measure is not None:
            numbers |= self.measure(self.finished)
        place = f"{self.unit} {self.finished}"
        self._require_finite(numbers, f"after {place}")
        counted = {} if self.unit == "epoch" else {self.unit: self.finished}
        self.history.append(counted | numbers)
        log(f"{self.title}: {place}/{self.units}: {self.in_words(numbers)}")
        more = self.curves(self.finished) if self.curves is not None else self._learning_rates()
        speed = {"pictures_per_second": self.pictures_per_second}
        self.board.scalars({**numbers, **more, **speed}, self.finished)
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._pictures, self._clock = 0, time.perf_counter()

    def _learning_rates(self) -> Numbers:
        groups = {name: o.param_groups[0] for name, o in self.optimisers.items()}
        return {f"learning_rate/{name}": group["lr"] for name, group in groups.items()}

    def _save_state(self) -> None:
        """Write the state, which is the same in all processes, and let follow what does."""
        if is_main_process():
            self.state_path.parent.mkdir(parents=True, exist_ok=True)
            save_training_state(
                self.state_path,
                self.models,
                self.optimisers,
                self.finished,
                self.fingerprint,
                {"history": self.history, "recent": list(self.recent)},
            )
        if self.settle is not None:
            self.settle()

    def _require_finite(self, numbers: Mapping[str, float], when: str) -> None:
        if not all(math.isfinite(value) for value in numbers.values()):
            shown = ", ".join(f"{name} {value}" for name, value in numbers.items())
            self.stop(f"a loss is not finite {when} ({shown})")

    def _require_finite_networks(self) -> None:
        """Losses are those before an update: they do not see what the last one has done."""
        for name, model in self.models.items():
            state = model.state_dict()
            finite = torch.stack([value.isfinite().all() for value in state.values()]).tolist()
            for key, is_finite in zip(state, finite, strict=True):
                if not is_finite:
                    place = f"{self.unit} {self.finished}"
                    self.stop(f"{key} of network {name} is not finite after {place}")

    def stop(self, problem: str) -> NoReturn:
        """End the training because of a problem, which must be one in every process.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.title}: {problem}; {self.remedy}")


class _Losses:
    """Losses of a training, fetched from the device a few iterations at a time.

    Attributes:
        shown: the last ones that were fetched, for a bar.
    """

    def __init__(self) -> None:
        self.shown = ""
        self._waiting: dict[int, list[tuple[int, Tensor]]] = {}
        self._names: list[str] = []
        self._sums: dict[str, float] = {}
        self._pictures = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, iteration: int, pictures: int, parts: Mapping[str, Tensor]) -> None:
        """Take this process's part of the losses of a batch, without waiting for the device."""
        self._names = list(parts)
        values = torch.stack([value.detach().float() for value in parts.values()])
        self._waiting.setdefault(iteration, []).append((pictures, values))

    def fetch(self) -> Iterator[tuple[int, dict[str, float]]]:
        """The mean losses of every iteration that waits, the same in all processes."""
        rows = [
            (iteration, sum(pictures for pictures, _ in batches), batches)
            for iteration, batches in self._waiting.items()
        ]
        if not rows:
            return
        means = [sum(n * values for n, values in batches) / total for _, total, batches in rows]
        self._waiting = {}
        for (iteration, total, _), row in zip(
            rows, all_reduce_mean(torch.stack(means)).tolist(), strict=True
        ):
            losses = dict(zip(self._names, row, strict=True))
            self.shown = ", ".join(f"{name}={value:.3f}" for name, value in losses.items())
            for name, value in losses.items():
                self._sums[name] = self._sums.get(name, 0.0) + total * value
            self._pictures += total
            yield iteration, losses

    def close(self) -> dict[str, float]:
        """Means over the pictures since the last call."""
        means = {name: value / self._pictures for name, value in self._sums.items()}
        self._sums, self._pictures = {}, 0
        return means
