"""Training loops: seeded order of the pictures, epochs that are resumable and logged."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler

from misc.checkpoint import load_training_state, rng_state, save_training_state, set_rng_state
from misc.distributed import (
    all_gather,
    all_reduce_sum,
    barrier,
    is_main_process,
    rank,
    shard,
    share_of_batch,
    unwrap,
    world_size,
)
from misc.errors import UserError
from misc.files import remove_leftovers
from misc.progress import log, progress

_EPOCH_SEED_STRIDE = 1_000_003  # keeps the shuffles of different seeds apart


class EpochDataset(Protocol):
    """A data set whose augmentation depends on (seed, epoch, index) alone."""

    epoch: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Autocast to bfloat16 when `precision` asks for it; float32 is left alone."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def fit_batch(batch_size: int, count: int, option: str) -> int:
    """The batch size, or the number of pictures when there are fewer (with a line in the log).

    Under several processes the smaller batch is one that they can share evenly.

    Raises:
        UserError: there are fewer pictures than processes.
    """
    if count >= batch_size:
        return batch_size
    fitting = count - count % world_size()
    if world_size() > 1 and fitting == 0:
        raise UserError(
            f"the list has {count} picture(s), too few for {world_size()} processes; start fewer."
        )
    log(f"{option} {batch_size} is more than the {count} pictures of the list; {fitting} is used.")
    return fitting


class ShareOfBatches(Sampler[list]):
    """This process's share of every batch, in a plain run the whole of it.

    All processes must go through the same batches. A last, smaller batch may leave a process
    nothing: it gets the first item, whose loss must not count, so that no other waits for it. A
    DataLoader takes it as `batch_sampler`.
    """

    def __init__(self, batches: Collection[list], batch_size: int, *, even: bool = True) -> None:
        """Share out `batches` of `batch_size` items each; for `even` see `share_of_batch`.

        Raises:
            UserError: the items of a batch cannot be dealt out.
        """
        share_of_batch(batch_size, "the batch size", even=even)
        self.batches = batches

    def __iter__(self) -> Iterator[list]:
        return (shard(batch) or batch[:1] for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class BatchStream(ShareOfBatches):
    """Batches of a training that counts iterations: shuffled epochs, one after the other.

    Batch k depends on (seed, k) alone, so that a training goes on from any iteration without having
    kept the state of a loader. A batch may end one epoch and begin the next. Under several
    processes every process gets its share of the batch, and the shares may differ by one: the loss
    must weight them, as `deeplab.model.msc_loss` does.

    Yields lists of (epoch, index), which a DataLoader that has the stream as `batch_sampler` hands
    to the data set one by one. Give that DataLoader a `generator` of its own: it draws a seed for
    its workers, by default from the global generator, whose state would then depend on the number
    of interruptions.
    """

    def __init__(self, count: int, batch_size: int, seed: int, start: int, stop: int) -> None:
        """Stream the batches `start` to `stop` - 1.

        Args:
            count: number of items of the data set.
            batch_size: items of a batch, of all processes together.
            seed: of the order.
            start: first batch, from 0.
            stop: end of the stream.

        Raises:
            ValueError: there is no item.
            UserError: there are more processes than items in a batch.
        """
        if count < 1:
            raise ValueError("a stream of batches needs at least one item")
        batches = _StreamedBatches(count, batch_size, seed, start, stop)
        super().__init__(batches, batch_size, even=False)


@dataclass(frozen=True)
class _StreamedBatches:
    """The batches of a `BatchStream` before they are shared out."""

    count: int
    batch_size: int
    seed: int
    start: int
    stop: int

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        position, epoch, order = self.start * self.batch_size, -1, []
        for _ in range(len(self)):
            batch = []
            for place in range(position, position + self.batch_size):
                if place // self.count != epoch:
                    epoch = place // self.count
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
                batch.append((epoch, int(order[place % self.count])))
            position += self.batch_size
            yield batch


def numbers_in_words(numbers: Mapping[str, float]) -> str:
    """`name value, name value` with four decimals."""
    return ", ".join(f"{name} {value:.4f}" for name, value in numbers.items())


@dataclass
class Training:
    """One training run.

    It may be spread over several processes: all of them go through the same batches and compute
    their share of each. Wrap the networks by `misc.distributed.data_parallel` then.

    Attributes:
        title: short text for bars and log lines.
        dataset: items with a settable `epoch`.
        batch_size: pictures per step, of all processes together.
        epochs: number of epochs.
        seed: of the order of pictures.
        models: networks by name, already on `device`.
        optimisers: optimisers by name.
        step: takes a batch on the device and the epoch (from 0), updates the networks, returns
            its mean losses by name as detached scalar tensors; their means over the pictures of the
            epoch go into log and history. `weight` of the batch is what the losses of this process
            must be multiplied by before their gradients are averaged over the processes: 1 where
            these have equally many pictures, as all batches but the last one make sure of.
        state_path: resumable state, written after every epoch.
        fingerprint: identifies arguments and data of the run.
        num_workers: loader processes.
        drop_last: leave out the pictures of an epoch that fill no batch; without it they are a
            last, smaller batch, and the processes may have unequal shares of any batch.
        before_epoch: called with the epoch, in every process, before the networks are set to
            training; for learning rates that change by epoch.
        after_epoch: called with the epoch, in every process; returns numbers for the log.
        in_words: the numbers of an epoch as its log line has them.
    """

    title: str
    dataset: EpochDataset
    batch_size: int
    epochs: int
    seed: int
    models: Mapping[str, nn.Module]
    optimisers: Mapping[str, torch.optim.Optimizer]
    step: Callable[[dict[str, Any], int], dict[str, Tensor]]
    device: torch.device
    state_path: Path
    fingerprint: str
    num_workers: int = 0
    drop_last: bool = True
    before_epoch: Callable[[int], None] | None = None
    after_epoch: Callable[[int], dict[str, float]] | None = None
    in_words: Callable[[Mapping[str, float]], str] = numbers_in_words
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full if self.drop_last else full + (rest > 0)

    def resume(self) -> int:
        """Restore the last finished epoch, if any, and return how many are finished."""
        models = self._bare_models()
        state = load_training_state(self.state_path, models, self.optimisers, self.fingerprint)
        barrier()  # nobody writes a new state before all have read this one
        if state is None:
            return 0
        self.history = list(state.extra.get("history", []))
        generators = state.extra.get("rng", [])
        if len(generators) == world_size():
            set_rng_state(generators[rank()])
        log(f"{self.title}: continued after epoch {state.epoch} from {self.state_path}.")
        return state.epoch

    def run(self) -> None:
        """Run all epochs that are not finished yet.

        Raises:
            UserError: a loss, a number of `after_epoch` or a network is not finite; no state is
                written then.
        """
        if is_main_process():
            remove_leftovers(self.state_path)
        for epoch in range(self.resume(), self.epochs):
            if self.before_epoch is not None:
                self.before_epoch(epoch)
            means = self._run_epoch(epoch)
            self._require_finite_networks(epoch)
            if self.after_epoch is not None:
                means.update(self.after_epoch(epoch))
            self._require_finite(means, f"after epoch {epoch + 1}")
            self.history.append(means)
            log(f"{self.title}: epoch {epoch + 1}/{self.epochs}: {self.in_words(means)}")
            self._save_state(epoch + 1)

    def _save_state(self, finished_epochs: int) -> None:
        """Write the state; it is the same in all processes but for the random generators."""
        extra: dict[str, Any] = {"history": self.history}
        if world_size() > 1:
            extra["rng"] = all_gather(rng_state())
        if is_main_process():
            save_training_state(
                self.state_path,
                self._bare_models(),
                self.optimisers,
                finished_epochs,
                self.fingerprint,
                extra,
            )

    def _bare_models(self) -> dict[str, nn.Module]:
        return {name: unwrap(model) for name, model in self.models.items()}

    def _run_epoch(self, epoch: int) -> dict[str, float]:
        for model in self.models.values():
            model.train()
        self.dataset.epoch = epoch
        sums: dict[str, Tensor] = {}
        pictures = 0
        bar = progress(self._loader(epoch), f"{self.title} {epoch + 1}/{self.epochs}")
        for index, batch in enumerate(bar):
            share, total = self._pictures_of(index)
            weight = world_size() * share / total
            losses = self.step({**to_device(batch, self.device), "weight": weight}, epoch)
            pictures += total
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + share * value
            if not math.isfinite(sum(losses.values())):
                self._require_finite(losses, f"in step {index + 1} of epoch {epoch + 1}")
            bar.set_postfix({name: f"{float(value):.3f}" for name, value in losses.items()})
        return {name: float(all_reduce_sum(value)) / pictures for name, value in sums.items()}

    def _pictures_of(self, index: int) -> tuple[int, int]:
        """Number of pictures in a batch of an epoch: this process's own, and those of all."""
        total = min(self.batch_size, len(self.dataset) - index * self.batch_size)
        return len(shard(range(total))), total

    def _loader(self, epoch: int) -> DataLoader:
        order = torch.Generator().manual_seed(self.seed * _EPOCH_SEED_STRIDE + epoch)
        pictures = RandomSampler(self.dataset, generator=order)
        batches = BatchSampler(pictures, self.batch_size, self.drop_last)
        return DataLoader(
            self.dataset,
            batch_sampler=ShareOfBatches(batches, self.batch_size, even=self.drop_last),
            generator=order,
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
        )

    def _require_finite(self, numbers: Mapping[str, Tensor | float], when: str) -> None:
        values = {name: float(value) for name, value in numbers.items()}
        if not all(math.isfinite(value) for value in values.values()):
            shown = ", ".join(f"{name} {value}" for name, value in values.items())
            self._stop(f"a loss is not finite {when} ({shown})")

    def _require_finite_networks(self, epoch: int) -> None:
        """Losses are those before an update: they do not see what the last one has done."""
        for name, model in self._bare_models().items():
            for key, value in model.state_dict().items():
                if not value.isfinite().all():
                    self._stop(f"{key} of network {name} is not finite after epoch {epoch + 1}")

    def _stop(self, problem: str) -> NoReturn:
        raise UserError(
            f"{self.title}: {problem}; lower the learning rate and start again with --overwrite."
        )


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move the tensors of a batch to the device."""
    return {
        key: value.to(device, non_blocking=True) if torch.is_tensor(value) else value
        for key, value in batch.items()
    }


def eval_loader(dataset: Dataset, batch_size: int | None, num_workers: int) -> DataLoader:
    """Loader in list order; `batch_size` None yields single items as they are."""
    return DataLoader(dataset, batch_size, shuffle=False, num_workers=num_workers)
