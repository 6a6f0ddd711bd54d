"""The epoch loop: order of the pictures, dropped rests, means, and what an epoch is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from misc.training import Training

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

        training = Training(
            title="numbers",
            dataset=Numbers(),
            batch_size=BATCH_SIZE,
            epochs=EPOCHS,
            models={"net": nn.Linear(1, 1)},
            optimisers={},
            step=step,
            device=torch.device("cpu"),
            state_path=tmp_path / f"{name}.pth",
            fingerprint="",
            **{"seed": 0, **options},
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


def test_order_depends_on_seed_and_epoch_alone(run: Callable) -> None:
    first, _ = run("a")
    torch.manual_seed(99)  # the state of the global generator does not matter
    assert run("b")[0] == first
    assert run("c", num_workers=1)[0] == first
    assert run("d", seed=1)[0] != first
    assert first[0][1] + first[1][1] != first[2][1] + first[3][1]


def test_history_holds_the_means_of_every_epoch(run: Callable) -> None:
    _, training = run("a", after_epoch=lambda epoch: {"score": 10.0 * epoch})
    assert training.history == [{"loss": 1.5, "score": 0.0}, {"loss": 3.5, "score": 10.0}]


def test_finished_training_is_not_repeated(run: Callable) -> None:
    _, first = run("a")
    seen, second = run("a")
    assert seen == []
    assert second.history == first.history
