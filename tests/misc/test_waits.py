"""Nothing waits for the device between the fetches of losses, one every 20 steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import deeplab_runs
import pipeline
import pytest
import torch
import wsol_runs
from device_waits import waits
from networks import golden_cnn, golden_deit
from torch import nn
from torch.utils.data import Dataset

from misc.errors import UserError
from misc.training import Loss, Training
from step import train_cam
from step.make_cam import picture_cams

STEPS = 45
CPU = torch.device("cpu")


def test_what_would_wait_is_seen() -> None:
    values = torch.tensor([1.0, 2.0])
    with waits() as found:
        values + 1
        assert found == []
        float(values.sum())
        bool(values[0] > 0)
        values[values > 1]
        values.tolist()
        values.cpu()
    scalar = "aten._local_scalar_dense.default"
    assert found == [scalar, scalar, "aten.index.Tensor", "tolist", "cpu"]
    before = len(found)
    values.tolist()
    assert len(found) == before


class Items(Dataset):
    """One number each."""

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {"value": torch.tensor(1.0)}


def start(folder: Path, step: Callable[..., Loss]) -> Training:
    """Train one number over an epoch of 45 steps."""
    net = nn.Linear(1, 1)
    training = Training(
        title="numbers",
        dataset=Items(),
        batch_size=1,
        units=1,
        seed=0,
        models={"net": net},
        optimisers={"sgd": torch.optim.SGD(net.parameters(), lr=0.0)},
        step=step,
        device=CPU,
        state_path=folder / "state.pth",
        fingerprint="",
    )
    training.run()
    return training


def test_losses_are_fetched_once_every_20_steps(tmp_path: Path) -> None:
    before_step: list[int] = []

    def step(models: dict[str, nn.Module], batch: dict[str, Any], _: int) -> Loss:
        before_step.append(len(found))
        loss = models["net"](batch["value"][:, None]).square().sum()
        return Loss(loss, {"loss": loss.detach()})

    with waits() as found:
        start(tmp_path, step)
    assert len(before_step) == STEPS
    waited = [i for i in range(1, STEPS) if before_step[i] > before_step[i - 1]]
    assert waited == [20, 40]
    assert [before_step[i] - before_step[i - 1] for i in waited] == [1, 1]


@pytest.mark.parametrize("broken", [3, 20, STEPS])
def test_broken_loss_is_named_within_20_steps_and_before_a_state(
    tmp_path: Path, broken: int
) -> None:
    steps = 0

    def step(models: dict[str, nn.Module], batch: dict[str, Any], _: int) -> Loss:
        nonlocal steps
        steps += 1
        loss = models["net"](batch["value"][:, None]).square().sum()
        loss = loss * torch.nan if steps == broken else loss
        return Loss(loss, {"loss": loss.detach()})

    with pytest.raises(UserError, match=rf"a loss is not finite in step {broken} of epoch 1 "):
        start(tmp_path, step)
    assert steps < broken + 20
    assert not (tmp_path / "state.pth").exists()


@pytest.fixture
def waits_of_steps(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What waits in every step of a training, forward and backward."""
    every: list[list[str]] = []
    set_up = Training.__post_init__

    def listen(training: Training) -> None:
        step = training.step

        def listened(*arguments: Any) -> Loss:
            with waits() as found:
                loss = step(*arguments)
                loss.total.backward(retain_graph=True)
            every.append(found)
            return loss

        training.step = listened
        set_up(training)

    monkeypatch.setattr(Training, "__post_init__", listen)
    return every


def test_no_step_of_the_branches_waits(
    sample: Path, tmp_path: Path, waits_of_steps: list[list[str]]
) -> None:
    assert pipeline.run(sample, tmp_path, "--steps", "train_cam", **pipeline.QUICK) == 0
    assert waits_of_steps == [[]] * pipeline.STEPS_PER_EPOCH


def test_no_step_of_irnet_waits(
    sample: Path, finished: Path, tmp_path: Path, waits_of_steps: list[list[str]]
) -> None:
    work = pipeline.copy_of(finished, tmp_path / "work", without=["res50_irn*"])
    assert pipeline.run(sample, work, "--steps", "train_irn") == 0
    assert waits_of_steps == [[]] * (pipeline.EPOCHS * pipeline.STEPS_PER_EPOCH)


def test_no_step_of_deeplab_waits(
    sample: Path, tmp_path: Path, waits_of_steps: list[list[str]]
) -> None:
    assert deeplab_runs.run("train", sample, tmp_path) == 0
    accumulated = deeplab_runs.TINY["SOLVER.ITER_SIZE"]
    assert waits_of_steps == [[]] * (deeplab_runs.ITERATIONS * accumulated)


def test_no_step_of_localisation_waits(
    birds: Path, tmp_path: Path, waits_of_steps: list[list[str]]
) -> None:
    assert wsol_runs.run(birds, tmp_path) == 0
    assert waits_of_steps == [[]] * (wsol_runs.EPOCHS * wsol_runs.STEPS_PER_EPOCH)


def test_validation_waits_only_for_its_sums(sample: Path, tmp_path: Path) -> None:
    run = pipeline.prepared(sample, tmp_path, val_list="train", cam_batch_size=1)
    models = {name: nn.Conv2d(3, run.num_classes, 1) for name in ("cnn", "transformer")}
    with waits() as found:
        numbers = train_cam.validate(run, models, CPU)
    assert numbers.keys() == {"val_cnn", "val_transformer"}
    assert found == ["aten._local_scalar_dense.default", "tolist"]  # the loader's seed, the sums


def test_maps_of_a_picture_are_made_without_waiting(golden: Callable) -> None:
    branches = [golden_cnn(), golden_deit()]
    image = golden("make_cam")["image"]
    pictures = [torch.rand(3, *image.shape[:2]), torch.rand(3, 40, 50)]
    keys = golden("make_cam")["keys"]
    with waits() as found:
        cam, high_res = picture_cams(branches, pictures, image.shape[:2], keys, "mean")
    assert found == []
    assert len(cam) == len(high_res) == len(keys)
