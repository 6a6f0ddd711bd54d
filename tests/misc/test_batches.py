"""Batches of a training: their order, where they go on, and every process's share of them."""

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from misc.batches import BatchStream


def _stream(start: int, stop: int, count: int = 5, batch_size: int = 3, seed: int = 0) -> list:
    return list(BatchStream(count, batch_size, seed, start, stop))


def test_stream_goes_through_shuffled_epochs_one_after_the_other() -> None:
    items = [item for batch in _stream(0, 10) for item in batch]
    assert [epoch for epoch, _ in items] == [epoch for epoch in range(6) for _ in range(5)]
    orders = [[index for _, index in items[i : i + 5]] for i in range(0, 30, 5)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert {len(batch) for batch in _stream(0, 10)} == {3}


def test_stream_goes_on_from_anywhere() -> None:
    whole = _stream(0, 12)
    for start in range(12):
        assert _stream(start, 12) == whole[start:]
    assert _stream(12, 12) == _stream(13, 12) == []
    assert len(BatchStream(5, 3, 0, 4, 12)) == 8


def test_stream_depends_on_the_seed() -> None:
    assert _stream(0, 4) != _stream(0, 4, seed=1)


def test_batch_may_hold_several_epochs() -> None:
    ((*items,),) = _stream(0, 1, count=2, batch_size=5)
    assert [epoch for epoch, _ in items] == [0, 0, 1, 1, 2]
    with pytest.raises(ValueError, match="at least one item"):
        _stream(0, 1, count=0)


class Keys(Dataset):
    """Items that are the key they are asked for by."""

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
        return key


@pytest.mark.parametrize("workers", [0, 1])
def test_stream_feeds_a_loader(workers: int) -> None:
    loader = DataLoader(Keys(), batch_sampler=BatchStream(5, 3, 0, 2, 5), num_workers=workers)
    found = [list(zip(*(part.tolist() for part in batch), strict=True)) for batch in loader]
    assert found == _stream(2, 5)


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [3, 3]), (False, [3, 3, 1])])
def test_epochs_may_end_with_a_batch_of_their_own(drop_last: bool, sizes: list[int]) -> None:
    stream = BatchStream(7, 3, 2, 0, 2 * len(sizes), drop_last)
    batches = list(stream)
    assert [len(batch) for batch in batches] == 2 * sizes
    assert stream.batches_per_epoch == len(sizes)
    for epoch in range(2):
        items = [item for batch in batches if batch[0][0] == epoch for item in batch]
        order = np.random.default_rng([2, epoch]).permutation(7)[: sum(sizes)]
        assert items == [(epoch, int(index)) for index in order]
    middle = BatchStream(7, 3, 2, 3, len(batches), drop_last)
    assert list(middle) == batches[3:]


def test_epoch_without_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="2 item"):
        BatchStream(2, 3, 0, 0, 1, drop_last=True)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_processes_share_every_batch(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    def stream() -> BatchStream:
        return BatchStream(7, 3, 0, 0, 6, drop_last=False)

    together, parts, shares = list(stream()), [], []
    monkeypatch.setenv("WORLD_SIZE", str(count))
    for index in range(count):
        monkeypatch.setenv("RANK", str(index))
        parts.append(list(stream()))
        shares.append([stream().share(number) for number in range(6)])
    for number, batch in enumerate(together):
        own = [part[number] for part in parts]
        counted = [items[: share[number][0]] for items, share in zip(own, shares, strict=True)]
        assert sorted(item for items in counted for item in items) == sorted(batch)
        assert {share[number][1] for share in shares} == {len(batch)}
        # a process without an item takes part with one that does not count
        assert all(items == batch[:1] for items, part in zip(own, counted, strict=True) if not part)
        assert all(own)
