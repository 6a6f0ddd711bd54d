"""Which pictures make which batch of a training, and this process's share of each."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from misc.distributed import shard
from misc.progress import log

_CALIBRATION_BATCHES = 4

Key = tuple[int, int]
"""(epoch, index): what a training item, its random numbers included, is a function of."""


def fit_batch(batch_size: int, count: int, option: str) -> int:
    """The batch size, or the number of pictures when there are fewer (with a line in the log)."""
    if count < batch_size:
        log(
            f"{option} {batch_size} is more than the {count} pictures of the list; {count} is used."
        )
    return min(batch_size, count)


class BatchStream(Sampler[list[Key]]):
    """Batches of a training: shuffled epochs, one after the other.

    Batch k depends on (seed, k) alone, so that a training goes on from any batch, in any number of
    processes, without having kept the state of a loader. Every process gets its share of each
    batch, in a plain run the whole of it; shares may differ by one, and the loss must weight them.
    A batch of fewer items than processes leaves some nothing: they get its first item, which must
    not count, so that no other waits for them.

    A DataLoader takes it as `batch_sampler` and hands the keys to the data set one by one. Give
    that DataLoader a `generator` of its own: it draws a seed for its workers, by default from the
    global generator.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        drop_last: bool | None = None,
    ) -> None:
        """Stream the batches `start` to `stop` - 1.

        Args:
            count: number of items of the data set.
            batch_size: items of a batch, of all processes together.
            seed: of the order.
            start: first batch, from 0.
            stop: end of the stream.
            drop_last: whether the items of an epoch that fill no batch are left out or make a
                last, smaller one; None fills that batch from the next epoch.

        Raises:
            ValueError: there is no item, or not even one batch in an epoch.
        """
        if count < 1:
            raise ValueError("a stream of batches needs at least one item")
        if drop_last and count < batch_size:
            raise ValueError(f"{count} item(s) fill no batch of {batch_size}")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.start, self.stop, self.drop_last = start, stop, drop_last

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch that ends with a batch of its own."""
        full, rest = divmod(self.count, self.batch_size)
        return full if self.drop_last else full + (rest > 0)

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[Key]]:
        for number in range(self.start, self.stop):
            batch = self.batch(number)
            yield shard(batch) or batch[:1]

    def batch(self, number: int) -> list[Key]:
        """A whole batch, the shares of all processes together."""
        places = (divmod(place, self.count) for place in self._places(number))
        return [(epoch, _order(self.seed, epoch, self.count)[place]) for epoch, place in places]

    def share(self, number: int) -> tuple[int, int]:
        """Items of a batch: this process's own, which may be 0, and those of all."""
        places = self._places(number)
        return len(shard(places)), len(places)

    def _places(self, number: int) -> range:
        """Which items of all epochs, one after the other, a batch holds."""
        if self.drop_last is None:
            return range(number * self.batch_size, (number + 1) * self.batch_size)
        epoch, number = divmod(number, self.batches_per_epoch)
        first = epoch * self.count + number * self.batch_size
        return range(first, min(first + self.batch_size, (epoch + 1) * self.count))


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> list[int]:
    return np.random.default_rng([seed, epoch]).permutation(count).tolist()


def first_images(dataset: Dataset, batch_size: int) -> Iterator[Tensor]:
    """The first few pictures in batches (B, 3, h, w), the same in every process.

    Batch norms of random networks are calibrated by them.
    """
    count = min(len(dataset), _CALIBRATION_BATCHES * batch_size)
    for start in range(0, count, batch_size):
        places = range(start, min(start + batch_size, count))
        yield torch.stack([dataset[0, index]["image"] for index in places])


def counted_labels(batch: Mapping[str, Any], ignore: int) -> Tensor:
    """Label maps of a batch; a process whose picture does not count ignores all of its pixels."""
    label = batch["label"]
    return label if batch["weight"] else torch.full_like(label, ignore)
