"""The epoch loop: order of the pictures, dropped rests, means, and what an epoch is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes
from torch import nn
from torch.utils.data import DataLoader, Dataset

from misc.checkpoint import load_checkpoint
from misc.distributed import data_parallel, is_main_process, rank, unwrap
from misc.errors import UserError
from misc.files import atomic_path
from misc.training import BatchStream, ShareOfBatches, Training, fit_batch

COUNT, BATCH_SIZE, EPOCHS = 7, 3, 2


class Numbers(Dataset):
    """Items that are their index, and the epoch they are asked for in."""

    epoch = -1

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"index": index, "epoch": self.epoch}


Seen = list[tuple[int, list[int]]]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[Seen, Training]]:
    """Run a training that only looks at its batches: (epoch, indices) of every step."""

    def start(name: str, **options: Any) -> tuple[Seen, Training]:
        seen: Seen = []

        def step(batch: dict[str, Any], epoch: int) -> dict[str, torch.Tensor]:
            assert batch["epoch"].tolist() == [epoch] * BATCH_SIZE
            seen.append((epoch, batch["index"].tolist()))
            return {"loss": torch.tensor(float(len(seen)))}

        defaults = {
            "dataset": Numbers(),
            "batch_size": BATCH_SIZE,
            "epochs": EPOCHS,
            "seed": 0,
            "models": {"net": nn.Linear(1, 1)},
        }
        training = Training(
            title="numbers",
            optimisers={},
            device=torch.device("cpu"),
            state_path=tmp_path / f"{name}.pth",
            fingerprint="",
            **{**defaults, "step": step, **options},
        )
        training.run()
        return seen, training

    return start


def test_full_batches_of_different_pictures_in_every_epoch(run: Callable) -> None:
    seen, training = run("a")
    assert training.steps_per_epoch == COUNT // BATCH_SIZE == 2
    assert [epoch for epoch, _ in seen] == [0, 0, 1, 1]
    for epoch in range(EPOCHS):
        indices = [i for number, batch in seen if number == epoch for i in batch]
        assert len(set(indices)) == 2 * BATCH_SIZE


def test_a_last_smaller_batch_is_kept_when_asked_for(run: Callable) -> None:
    sizes: list[int] = []
    indices: list[int] = []

    def step(batch: dict[str, Any], epoch: int) -> dict[str, torch.Tensor]:
        sizes.append(len(batch["index"]))
        indices.extend(batch["index"].tolist())
        assert batch["weight"] == 1
        return {"loss": torch.tensor(float(len(sizes)))}

    _, training = run("a", step=step, epochs=1, drop_last=False)
    assert sizes == [3, 3, 1] and training.steps_per_epoch == 3
    assert sorted(indices) == list(range(COUNT))
    # every picture counts once: (3 * 1 + 3 * 2 + 1 * 3) / 7
    assert training.history == [{"loss": pytest.approx(12 / 7)}]


def test_steps_of_cub_as_in_the_published_log(run: Callable) -> None:
    class Cub(Numbers):
        def __len__(self) -> int:
            return 5994

    sizes: list[int] = []

    def step(batch: dict[str, Any], epoch: int) -> dict[str, torch.Tensor]:
        sizes.append(len(batch["index"]))
        return {"loss": torch.tensor(0.0)}

    run("a", step=step, epochs=1, dataset=Cub(), batch_size=64, drop_last=False)
    assert sizes == [64] * 93 + [42]  # the log of CRT counts to 94


def test_order_depends_on_seed_and_epoch_alone(run: Callable) -> None:
    first, _ = run("a")
    torch.manual_seed(99)  # the state of the global generator does not matter
    assert run("b")[0] == first
    assert run("c", num_workers=1)[0] == first
    assert run("d", seed=1)[0] != first
    assert first[0][1] + first[1][1] != first[2][1] + first[3][1]


def test_a_plain_run_keeps_the_order_of_a_shuffling_loader(run: Callable) -> None:
    seen, _ = run("a", seed=3)
    order = torch.Generator().manual_seed(3 * 1_000_003)
    loader = DataLoader(range(COUNT), BATCH_SIZE, shuffle=True, drop_last=True, generator=order)
    assert [batch.tolist() for batch in loader] == [batch for epoch, batch in seen if epoch == 0]


def test_history_holds_the_means_of_every_epoch(run: Callable) -> None:
    _, training = run("a", after_epoch=lambda epoch: {"score": 10.0 * epoch})
    assert training.history == [{"loss": 1.5, "score": 0.0}, {"loss": 3.5, "score": 10.0}]


def test_epochs_are_announced_before_their_first_step(run: Callable) -> None:
    announced: list[int] = []
    run("a", before_epoch=announced.append)
    assert announced == [0, 1]
    announced.clear()
    run("a", before_epoch=announced.append, epochs=3)  # goes on after epoch 1
    assert announced == [2]


def test_loss_that_is_not_finite_stops_the_run(tmp_path: Path, run: Callable) -> None:
    def step(batch: dict[str, Any], epoch: int) -> dict[str, torch.Tensor]:
        return {"loss": torch.tensor(float("nan"))}

    with pytest.raises(UserError, match=r"not finite in step 1 of epoch 1 \(loss nan\)"):
        run("a", step=step)
    assert not (tmp_path / "a.pth").exists()


def test_number_of_an_epoch_that_is_not_finite_stops_the_run(tmp_path: Path, run: Callable) -> None:
    with pytest.raises(UserError, match=r"not finite after epoch 2 \(loss 3.5, score nan\); lower"):
        run("a", after_epoch=lambda epoch: {"score": [1.0, float("nan")][epoch]})
    assert load_checkpoint(tmp_path / "a.pth")["epoch"] == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_network_that_the_last_update_spoilt_is_not_saved(
    tmp_path: Path, run: Callable, bad: float
) -> None:
    network = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    left = [EPOCHS * (COUNT // BATCH_SIZE)]

    def step(batch: dict[str, Any], epoch: int) -> dict[str, torch.Tensor]:
        left[0] -= 1
        if left == [0]:
            network[0].weight.data[0, 1] = bad
        return {"loss": torch.tensor(1.0)}

    with pytest.raises(UserError, match=r"0\.weight of network net is not finite after epoch 2"):
        run("a", step=step, models={"net": network})
    assert load_checkpoint(tmp_path / "a.pth")["epoch"] == 1


def test_what_killed_writers_left_of_the_state_is_removed(tmp_path: Path, run: Callable) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a.pth") as temporary:
        raise KeyboardInterrupt
    temporary.write_bytes(b"half")
    other = temporary.with_name(temporary.name.replace("a.pth", "other.pth"))
    other.write_bytes(b"of another run")
    run("a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "a.pth"]


def test_finished_training_is_not_repeated(run: Callable) -> None:
    _, first = run("a")
    seen, second = run("a")
    assert seen == []
    assert second.history == first.history


# ---------------------------------------------------------------------------- several processes


class Points(Dataset):
    """Six points of three coordinates, and what the network should say."""

    epoch = -1

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        point = torch.tensor([index, index % 2, index % 3 + 0.1 * self.epoch])
        return {"point": point, "wanted": point.sum(dim=0, keepdim=True)}


def _train_points(path: Path, epochs: int, dropout: float = 0.0) -> Training:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(dropout), nn.Linear(4, 1))
    torch.manual_seed(rank())  # networks alike, dropout not
    device = torch.device("cpu")
    model = data_parallel(network, device)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(batch: dict[str, Any], epoch: int) -> dict[str, torch.Tensor]:
        loss = (model(batch["point"]) - batch["wanted"]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return {"loss": loss.detach()}

    training = Training(
        title="points",
        dataset=Points(),
        batch_size=4,
        epochs=epochs,
        seed=0,
        models={"net": model},
        optimisers={"net": optimiser},
        step=step,
        device=device,
        state_path=path,
        fingerprint="",
    )
    training.run()
    return training


def _train_every_point(path: Path, batch_size: int) -> list[dict[str, float]]:
    """Ten epochs whose last batch has unequal shares; returns the history."""
    torch.manual_seed(0)
    model = data_parallel(nn.Linear(3, 1), torch.device("cpu"))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)

    def step(batch: dict[str, Any], epoch: int) -> dict[str, torch.Tensor]:
        loss = (model(batch["point"]) - batch["wanted"]).square().mean()
        optimiser.zero_grad()
        (batch["weight"] * loss).backward()
        optimiser.step()
        return {"loss": loss.detach()}

    training = Training(
        title="every point",
        dataset=Points(),
        batch_size=batch_size,
        drop_last=False,
        epochs=10,
        seed=0,
        models={"net": model},
        optimisers={},
        step=step,
        device=torch.device("cpu"),
        state_path=path,
        fingerprint="",
    )
    training.run()
    return training.history


def _train_every_point_in_processes(folder: Path) -> None:
    for batch_size in (3, 4, 5):
        _train_every_point(folder / f"two{batch_size}.pth", batch_size)


def test_unequal_shares_of_a_batch_train_as_one_process_does(tmp_path: Path) -> None:
    run_processes(_train_every_point_in_processes, tmp_path)
    for batch_size in (3, 4, 5):  # shares 2 and 1, 1 and 1, 1 and none
        path = tmp_path / f"one{batch_size}.pth"
        history = _train_every_point(path, batch_size)
        both = tmp_path / f"two{batch_size}.pth"
        torch.testing.assert_close(_weights(both), _weights(path), rtol=1e-5, atol=1e-6)
        found = load_checkpoint(both)["extra"]["history"]
        assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in history])


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path)["models"]["net"]


def _train_in_processes(folder: Path) -> None:
    training = _train_points(folder / "two.pth", 3)
    torch.save(unwrap(training.models["net"]).state_dict(), folder / f"net{rank()}.pth")
    torch.save(training.history, folder / f"history{rank()}.pth")
    _train_points(folder / "whole.pth", 4, dropout=0.5)
    _train_points(folder / "parts.pth", 2, dropout=0.5)
    _train_points(folder / "parts.pth", 4, dropout=0.5)
    dealt = list(BatchStream(5, 4, seed=0, start=0, stop=6))
    torch.save(dealt, folder / f"dealt{rank()}.pth")
    with pytest.raises(UserError, match="batch size 3 cannot be dealt out evenly"):
        ShareOfBatches([[0, 1, 2]], 3)
    uneven = list(BatchStream(5, 3, seed=0, start=0, stop=6))
    torch.save(uneven, folder / f"uneven{rank()}.pth")
    with pytest.raises(UserError, match="batch size 1 is too small for 2 processes"):
        BatchStream(5, 1, seed=0, start=0, stop=6)
    assert fit_batch(8, 5, "--batch") == 4
    with pytest.raises(UserError, match=r"1 picture\(s\), too few for 2 processes"):
        fit_batch(8, 1, "--batch")
    assert is_main_process() == (rank() == 0)


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    run_processes(_train_in_processes, tmp_path)
    alone = _train_points(tmp_path / "one.pth", 3)
    expected = _weights(tmp_path / "one.pth")
    for index in range(2):
        found = load_checkpoint(tmp_path / f"net{index}.pth")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(_weights(tmp_path / "two.pth"), found, rtol=0, atol=0)
        history = torch.load(tmp_path / f"history{index}.pth", weights_only=True)
        assert [entry["loss"] for entry in history] == pytest.approx(
            [entry["loss"] for entry in alone.history], rel=1e-4
        )
    # Every process goes on with its own random numbers.
    whole, parts = _weights(tmp_path / "whole.pth"), _weights(tmp_path / "parts.pth")
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)
    first, second = (torch.load(tmp_path / f"dealt{i}.pth", weights_only=True) for i in range(2))
    together = list(BatchStream(5, 4, seed=0, start=0, stop=6))
    assert [[a[0], b[0], a[1], b[1]] for a, b in zip(first, second, strict=True)] == together
    first, second = (torch.load(tmp_path / f"uneven{i}.pth", weights_only=True) for i in range(2))
    together = _stream(0, 6)
    assert [[a[0], *b, a[1]] for a, b in zip(first, second, strict=True)] == together


# ------------------------------------------------------------------------- counting iterations


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
