"""The engine of all trainings: means, what a unit is told, hooks, resuming, several processes."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from torch.utils.data import Dataset

from misc.checkpoint import load_checkpoint
from misc.distributed import rank
from misc.errors import UserError
from misc.files import atomic_path
from misc.training import Hook, Loss, Training

COUNT, BATCH_SIZE, EPOCHS = 7, 3, 2


class Numbers(Dataset):
    """Items that are the key they are asked for by."""

    def __init__(self, count: int = COUNT) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int]) -> dict[str, int]:
        return {"epoch": key[0], "index": key[1]}


Seen = list[tuple[int, list[int]]]


def loss_of(value: float) -> Loss:
    """A loss that no network has a part in."""
    loss = torch.tensor(value)
    return Loss(loss.clone().requires_grad_(), {"loss": loss})


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[Seen, Training]]:
    """Run a training that only looks at its batches: (epoch, indices) of every step."""

    def start(name: str, **options: Any) -> tuple[Seen, Training]:
        seen: Seen = []

        def step(models: dict[str, nn.Module], batch: dict[str, Any], epoch: int) -> Loss:
            assert batch["epoch"].tolist() == [epoch] * BATCH_SIZE
            seen.append((epoch, batch["index"].tolist()))
            return loss_of(float(len(seen)))

        defaults = {
            "dataset": Numbers(),
            "batch_size": BATCH_SIZE,
            "units": EPOCHS,
            "seed": 0,
            "models": {"net": nn.Linear(1, 1)},
            "optimisers": {},
        }
        training = Training(
            title="numbers",
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
    assert training.steps_per_unit == COUNT // BATCH_SIZE == 2
    assert [epoch for epoch, _ in seen] == [0, 0, 1, 1]
    for epoch in range(EPOCHS):
        indices = [i for number, batch in seen if number == epoch for i in batch]
        assert len(set(indices)) == 2 * BATCH_SIZE


def test_short_training_draws_few_pictures_again(tmp_path: Path) -> None:
    """Four steps of three pictures are six rounds of two; then one epoch ends, as it would."""
    drawn: list[int] = []
    ended: list[int] = []

    def step(models: dict[str, nn.Module], batch: dict[str, Any], epoch: int) -> Loss:
        assert epoch == 0 and len(batch["index"]) == 3
        drawn.extend(batch["index"].tolist())
        return loss_of(1.0)

    training = Training(
        title="numbers",
        dataset=Numbers(2),
        batch_size=2,
        units=EPOCHS,
        seed=0,
        models={"net": nn.Linear(1, 1)},
        optimisers={},
        step=step,
        device=torch.device("cpu"),
        state_path=tmp_path / "a.pth",
        fingerprint="",
        measure=lambda epoch: {"measured": float(epoch)},
        hooks=[Hook(1, ended.append)],
    )
    training.shorten(4, batch_size=3)
    training.run()
    assert sorted(drawn) == [0] * 6 + [1] * 6
    assert all(sorted(drawn[at : at + 2]) == [0, 1] for at in range(0, 12, 2))
    assert training.history == [{"loss": 1.0, "measured": 1.0}] and ended == [1]


def test_a_last_smaller_batch_is_kept_when_asked_for(run: Callable) -> None:
    sizes: list[int] = []
    indices: list[int] = []

    def step(models: dict[str, nn.Module], batch: dict[str, Any], epoch: int) -> Loss:
        sizes.append(len(batch["index"]))
        indices.extend(batch["index"].tolist())
        assert batch["weight"] == 1
        return loss_of(float(len(sizes)))

    _, training = run("a", step=step, units=1, drop_last=False)
    assert sizes == [3, 3, 1] and training.steps_per_unit == 3
    assert sorted(indices) == list(range(COUNT))
    # every picture counts once: (3 * 1 + 3 * 2 + 1 * 3) / 7
    assert training.history == [{"loss": pytest.approx(12 / 7)}]


def test_steps_of_cub_as_in_the_published_log(run: Callable) -> None:
    sizes: list[int] = []

    def step(models: dict[str, nn.Module], batch: dict[str, Any], epoch: int) -> Loss:
        sizes.append(len(batch["index"]))
        return loss_of(0.0)

    run("a", step=step, units=1, dataset=Numbers(5994), batch_size=64, drop_last=False)
    assert sizes == [64] * 93 + [42]  # the log of CRT counts to 94


def test_order_depends_on_seed_and_epoch_alone(run: Callable) -> None:
    first, _ = run("a")
    torch.manual_seed(99)  # the state of the global generator does not matter
    assert run("b")[0] == first
    assert run("c", num_workers=1)[0] == first
    assert run("d", seed=1)[0] != first
    assert first[0][1] + first[1][1] != first[2][1] + first[3][1]


def test_history_holds_the_means_of_every_epoch(run: Callable) -> None:
    _, training = run("a", measure=lambda epoch: {"score": 10.0 * (epoch - 1)})
    assert training.history == [{"loss": 1.5, "score": 0.0}, {"loss": 3.5, "score": 10.0}]


def test_epochs_are_announced_before_their_first_step(run: Callable) -> None:
    announced: list[int] = []
    run("a", before=announced.append)
    assert announced == [0, 1]
    announced.clear()
    run("a", before=announced.append, units=3)  # goes on after epoch 1
    assert announced == [2]


def test_loss_that_is_not_finite_stops_the_run(tmp_path: Path, run: Callable) -> None:
    def step(models: dict[str, nn.Module], batch: dict[str, Any], epoch: int) -> Loss:
        return loss_of(float("nan"))

    with pytest.raises(UserError, match=r"not finite in step 1 of epoch 1 \(loss nan\)"):
        run("a", step=step)
    assert not (tmp_path / "a.pth").exists()


def test_number_of_an_epoch_that_is_not_finite_stops_the_run(tmp_path: Path, run: Callable) -> None:
    with pytest.raises(UserError, match=r"not finite after epoch 2 \(loss 3.5, score nan\); lower"):
        run("a", measure=lambda epoch: {"score": [1.0, float("nan")][epoch - 1]})
    assert load_checkpoint(tmp_path / "a.pth")["finished"] == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_network_that_the_last_update_spoilt_is_not_saved(
    tmp_path: Path, run: Callable, bad: float
) -> None:
    network = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    left = [EPOCHS * (COUNT // BATCH_SIZE)]

    def step(models: dict[str, nn.Module], batch: dict[str, Any], epoch: int) -> Loss:
        left[0] -= 1
        if left == [0]:
            network[0].weight.data[0, 1] = bad
        return loss_of(1.0)

    with pytest.raises(UserError, match=r"0\.weight of network net is not finite after epoch 2"):
        run("a", step=step, models={"net": network})
    assert load_checkpoint(tmp_path / "a.pth")["finished"] == 1


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


# ------------------------------------------------------------------------- counting iterations


def test_hooks_reports_and_states_come_after_their_intervals(tmp_path: Path, run: Callable) -> None:
    told: list[tuple[str, int]] = []

    def step(models: dict[str, nn.Module], batch: dict[str, Any], iteration: int) -> Loss:
        told.append(("step", iteration))
        return loss_of(float(iteration + 1))

    def state_of(_: int) -> int:
        path = tmp_path / "a.pth"
        return load_checkpoint(path)["finished"] if path.exists() else 0

    _, training = run(
        "a",
        step=step,
        unit="iteration",
        units=5,
        accumulate=2,
        average=3,
        report_every=2,
        state_every=(3,),
        hooks=(
            Hook(2, lambda done: told.append(("two", done))),
            Hook(3, lambda done: told.append(("state before", state_of(done))), at_end=True),
        ),
    )
    steps = [[("step", i), ("step", i)] for i in range(5)]
    assert told == [
        *steps[0],
        *(*steps[1], ("two", 2)),
        *(*steps[2], ("state before", 0)),
        *(*steps[3], ("two", 4)),
        *(*steps[4], ("state before", 3)),
    ]
    # of iterations 1 and 2; 2, 3 and 4; 3, 4 and 5
    expected = [(2, 1.5), (4, 3.0), (5, 4.0)]
    assert training.history == [{"iteration": i, "loss": loss} for i, loss in expected]
    assert load_checkpoint(tmp_path / "a.pth")["finished"] == 3


def test_accumulated_gradients_are_those_of_the_mean(run: Callable) -> None:
    weight = nn.Parameter(torch.tensor(0.0))
    seen: list[list[int]] = []

    def step(models: dict[str, nn.Module], batch: dict[str, Any], iteration: int) -> Loss:
        seen.append(batch["index"].tolist())
        loss = weight * batch["index"].float().mean()
        return Loss(loss, {"loss": loss.detach()})

    optimiser = {"sgd": torch.optim.SGD([weight], lr=1.0)}
    run("a", step=step, unit="iteration", units=1, accumulate=3, optimisers=optimiser)
    assert len(seen) == 3
    assert weight.item() == pytest.approx(-sum(map(sum, seen)) / (3 * BATCH_SIZE))


def test_losses_between_reports_are_looked_at_every_twenty_steps(run: Callable) -> None:
    done: list[int] = []

    def step(models: dict[str, nn.Module], batch: dict[str, Any], iteration: int) -> Loss:
        done.append(iteration)
        return loss_of(float("inf") if iteration >= 3 else 1.0)

    with pytest.raises(UserError, match=r"not finite in iteration 4 \(loss inf\)"):
        run("a", step=step, unit="iteration", units=99, report_every=99, state_every=(99,))
    assert len(done) == 20


def test_losses_are_looked_at_before_a_state_is_written(tmp_path: Path, run: Callable) -> None:
    def step(models: dict[str, nn.Module], batch: dict[str, Any], iteration: int) -> Loss:
        return loss_of(float("inf") if iteration == 2 else 1.0)

    with pytest.raises(UserError, match=r"not finite in iteration 3 \(loss inf\)"):
        run("a", step=step, unit="iteration", units=99, report_every=99, state_every=(3,))
    assert not (tmp_path / "a.pth").exists()


def test_epochs_that_are_no_whole_number_of_updates_are_refused(run: Callable) -> None:
    with pytest.raises(ValueError, match="no whole number of updates of 2 batches"):
        run("a", drop_last=False, accumulate=2)


# ---------------------------------------------------------------------------- several processes

# A sum over parts that are summed first differs from the sum by a rounding error of float32, about
# 1e-7, which some dozens of updates with momentum multiply by less than a hundred.
ALIKE = {"rtol": 1e-5, "atol": 1e-6}


class Points(Dataset):
    """Points of three coordinates, and what the network should say."""

    def __init__(self, count: int = 6) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        point = torch.tensor([index, index % 2, index % 3 + 0.1 * epoch])
        return {"point": point, "wanted": point.sum(dim=0, keepdim=True)}


def train_points(path: Path, dropout: float = 0.0, **options: Any) -> Training:
    """Train a small network; the loss is a mean over points."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(dropout), nn.Linear(4, 1))

    def step(models: dict[str, nn.Module], batch: dict[str, Any], _: int) -> Loss:
        loss = (models["net"](batch["point"]) - batch["wanted"]).square().mean()
        loss = batch["weight"] * loss
        return Loss(loss, {"loss": loss.detach()})

    options = {"dataset": Points(), "batch_size": 4, "units": 10, **options}
    training = Training(
        title="points",
        seed=0,
        models={"net": network},
        optimisers={"net": torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.5)},
        device=torch.device("cpu"),
        state_path=path,
        fingerprint="",
        **{"step": step, **options},
    )
    training.run()
    return training


def state(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path)["models"]["net"]


CASES: dict[str, dict[str, Any]] = {
    "even": {"batch_size": 4, "drop_last": True},
    "two and one": {"batch_size": 3, "drop_last": False},
    "then one and one": {"batch_size": 4, "drop_last": False},
    "then one and none": {"batch_size": 5, "drop_last": False},
    "one point": {"dataset": Points(1), "batch_size": 1},
    "accumulated": {"unit": "iteration", "batch_size": 5, "accumulate": 3},
}


def train_all_cases(folder: Path) -> None:
    for name, options in CASES.items():
        training = train_points(folder / f"{name}.pth", **options)
        torch.save(training.models["net"].state_dict(), folder / f"{name} {rank()}.pth")


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    run_processes(train_all_cases, tmp_path / "two")
    train_all_cases(tmp_path / "one")
    for name in CASES:
        path = tmp_path / "two" / f"{name}.pth"
        expected = load_checkpoint(tmp_path / "one" / f"{name}.pth")
        torch.testing.assert_close(state(path), expected["models"]["net"], **ALIKE)
        losses = [row["loss"] for row in load_checkpoint(path)["extra"]["history"]]
        wanted = [row["loss"] for row in expected["extra"]["history"]]
        assert losses == pytest.approx(wanted, rel=1e-5)
        for index in range(2):
            found = load_checkpoint(tmp_path / "two" / f"{name} {index}.pth")
            torch.testing.assert_close(found, state(path), rtol=0, atol=0)


def go_on_with_points(path: Path, units: int) -> None:
    train_points(path, units=units, batch_size=5, drop_last=False)


def test_number_of_processes_may_change_between_two_epochs(tmp_path: Path) -> None:
    path, whole = tmp_path / "parts.pth", tmp_path / "whole.pth"
    run_processes(go_on_with_points, path, 3)
    go_on_with_points(path, 6)
    run_processes(go_on_with_points, path, 10, count=3)
    go_on_with_points(whole, 10)
    torch.testing.assert_close(state(path), state(whole), **ALIKE)
    assert len(load_checkpoint(path)["extra"]["history"]) == 10


def drop_out_in_parts(folder: Path) -> None:
    train_points(folder / "whole.pth", 0.5, units=4)
    for units in (2, 4):
        train_points(folder / "parts.pth", 0.5, units=units)
    train_points(folder / "none.pth", units=4)


@pytest.mark.parametrize("count", [1, 2])
def test_random_layers_go_on_as_if_nothing_had_happened(tmp_path: Path, count: int) -> None:
    run_processes(drop_out_in_parts, tmp_path, count=count)
    whole, parts, none = (state(tmp_path / f"{name}.pth") for name in ("whole", "parts", "none"))
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)
    assert not torch.equal(whole["0.weight"], none["0.weight"])


def spoil_one_loss(path: Path) -> None:
    def step(models: dict[str, nn.Module], batch: dict[str, Any], unit: int) -> Loss:
        loss = models["net"](batch["point"]).mean()
        loss = loss * (torch.nan if rank() == 1 and unit == 2 else 1)
        return Loss(loss, {"loss": loss.detach()})

    with pytest.raises(UserError, match=r"not finite in step 1 of epoch 3 \(loss nan\)"):
        train_points(path, step=step)


def test_loss_that_is_not_finite_in_one_process_stops_all(tmp_path: Path) -> None:
    run_processes(spoil_one_loss, tmp_path / "a.pth")
    assert load_checkpoint(tmp_path / "a.pth")["finished"] == 2


def kill_one(path: Path) -> None:
    def die(unit: int) -> None:
        if unit == 4 and rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    train_points(path, before=die)


def test_killed_process_ends_all_and_the_same_command_goes_on(tmp_path: Path) -> None:
    path, whole = tmp_path / "killed.pth", tmp_path / "whole.pth"
    with pytest.raises((ProcessExitedException, ProcessRaisedException)):
        run_processes(kill_one, path)
    assert load_checkpoint(path)["finished"] == 4
    run_processes(train_points, path)
    train_points(whole)
    torch.testing.assert_close(state(path), state(whole), **ALIKE)


def go_on_apart(folder: Path) -> None:
    path = folder / str(rank()) / "state.pth"
    with pytest.raises(UserError) as error:
        train_points(path)
    (folder / f"{rank()}.txt").write_text(str(error.value))


@pytest.mark.parametrize("there", [(3, 0), (2, 3), (3, "broken")])
def test_processes_that_find_different_states_all_refuse(
    tmp_path: Path, there: tuple[object, object]
) -> None:
    for index, units in enumerate(there):
        path = tmp_path / str(index) / "state.pth"
        path.parent.mkdir()
        if units == "broken":
            path.write_bytes(b"broken")
        elif units:
            train_points(path, units=units)
    run_processes(go_on_apart, tmp_path)
    said = [(tmp_path / f"{index}.txt").read_text() for index in range(2)]
    if "broken" in there:
        assert set(said) == {said[0]} and "1/state.pth cannot be read as a checkpoint" in said[0]
        return
    low, high = sorted(there)
    for index, sentence in enumerate(said):
        assert sentence == (
            f"{tmp_path}/{index}/state.pth is not the same file for all processes, some of which "
            f"would go on after epoch {low} and some after {high}: all machines must see one "
            "folder; name one on a disk that they share."
        )
