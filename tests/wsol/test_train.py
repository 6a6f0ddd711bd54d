"""Training of WSOL: one tiny run, its losses and files, resuming, and several processes.

No golden of a WSOL training exists. What its steps should do rests on the definitions of the paper,
computed with torch's own losses, and on the settings that the published code writes down; the
cross entropies also follow from golden logits, see `test_wsol_model`.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import update
from processes import run_processes
from torch import nn
from torch.multiprocessing import ProcessExitedException
from torch.nn import functional as F
from wsol_runs import (
    EPOCHS,
    RATE,
    STEPS_PER_EPOCH,
    TEST_BATCHES,
    WEIGHTS,
    WSOL,
    command_line,
    config_of,
    epoch_lines,
    equal_weights,
    log_of,
    results,
    run,
    weights,
)

from misc import training
from misc.checkpoint import load_checkpoint
from net.losses import CamLosses
from wsol import engine, evaluation
from wsol.config import Config, Paths
from wsol.model import CNN, TRANSFORMER, Networks, build_cnn, build_transformer, logits_of
from wsol.optimisation import build_optimisers, mean_difference, training_losses
from wsol.selection import CHOICES

TRAIN_SCRIPT = WSOL / "tools_cam/train_cam.py"
LAUNCHER = WSOL / "tools_cam/launch.py"

MIDDLE_OF_EPOCH_2 = STEPS_PER_EPOCH + TEST_BATCHES + 2


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Of tiny networks."""
    return config_of(tmp_path, tmp_path)


@pytest.fixture
def one_step(config: Config) -> Callable:
    """Losses and gradients of one step on made-up pictures."""

    def step(l1_weight: float) -> tuple[tuple, dict, Networks]:
        torch.manual_seed(0)
        networks = Networks(build_transformer(config), build_cnn(config))
        images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 1])
        optimisers = build_optimisers(networks, config, RATE)
        models = networks.eval()._asdict()  # no drop path
        with torch.no_grad():
            maps = {name: model(images) for name, model in models.items()}
        losses, right = training_losses(models, images, labels, l1_weight)
        update(optimisers, losses.total(l1_weight))
        return (
            (CamLosses(*(loss.detach() for loss in losses)), right),
            {"maps": maps, "labels": labels},
            networks,
        )

    return step


def test_losses_are_those_of_the_method(one_step: Callable):
    (losses, right), before, _ = one_step(0.0)
    maps, labels = before["maps"], before["labels"]
    logits = logits_of(maps[TRANSFORMER])
    assert losses.transformer == pytest.approx(float(F.cross_entropy(logits, labels)))
    assert losses.cnn == pytest.approx(
        float(F.cross_entropy(logits_of(maps[CNN]), labels)), rel=1e-5
    )
    difference = (maps[TRANSFORMER] - maps[CNN]).abs().mean()
    assert losses.refinement == pytest.approx(float(difference), rel=1e-5)
    assert right == 100 * (logits.argmax(1) == labels).float().mean()


def test_l1_loss_reaches_both_networks_when_it_is_on(one_step: Callable):
    def gradients(l1_weight: float) -> dict[str, torch.Tensor]:
        networks = one_step(l1_weight)[2]
        return {
            TRANSFORMER: networks.transformer.head.weight.grad,
            CNN: networks.cnn.classifier.weight.grad,
        }

    off, on, double = gradients(0.0), gradients(1.0), gradients(2.0)
    for name in (TRANSFORMER, CNN):
        share = on[name] - off[name]
        assert share.abs().max() > 0
        torch.testing.assert_close(double[name] - off[name], 2 * share, rtol=1e-3, atol=1e-5)


def test_maps_of_other_grids_are_resized_before_they_are_compared():
    first, second = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert mean_difference(first, second) == (first - second).abs().mean()
    constant = torch.full((2, 3, 7, 7), 2.0)
    expected = pytest.approx(float((first - 2).abs().mean()), rel=1e-5)
    assert float(mean_difference(first, constant)) == expected


def test_bfloat16_gives_about_the_same_losses():
    def losses(precision: str) -> CamLosses:
        torch.manual_seed(0)
        models = {name: nn.Conv2d(3, 3, 3) for name in (TRANSFORMER, CNN)}
        images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
        return training_losses(models, images, labels, 1.0, precision)[0]

    exact, rough = losses("float32"), losses("bfloat16")
    for one, other in zip(rough, exact, strict=True):
        assert one.dtype == torch.float32
        assert one.item() == pytest.approx(other.item(), rel=0.02)
        assert one.item() != other.item()


def test_optimisers_have_the_published_settings(config: Config):
    networks = Networks(build_transformer(config), build_cnn(config))
    optimisers = build_optimisers(networks, config, 5e-5)
    groups = [(g["lr"], g["weight_decay"]) for g in optimisers[TRANSFORMER].param_groups]
    assert groups == [(5e-5, 0.05), (5e-5, 0.0)]
    groups = [(g["lr"], g["weight_decay"], g["momentum"]) for g in optimisers[CNN].param_groups]
    assert groups == [(0.005, 1e-4, 0.0), (0.05, 1e-4, 0.0)]
    assert isinstance(optimisers[TRANSFORMER], torch.optim.AdamW)
    assert isinstance(optimisers[CNN], torch.optim.SGD)


# ------------------------------------------------------------------------------------- one run


def test_every_picture_is_trained_on(birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes, losses = [], engine.training_losses

    def counted(models: dict, images: torch.Tensor, *more: object) -> tuple:
        sizes.append(len(images))
        return losses(models, images, *more)

    monkeypatch.setattr(engine, "training_losses", counted)
    assert run(birds, tmp_path, SOLVER__NUM_EPOCHS=1) == 0
    assert sizes == [5, 5, 2]
    sizes.clear()
    assert run(birds, tmp_path / "b", SOLVER__NUM_EPOCHS=1, TRAIN__BATCH_SIZE=64) == 0
    assert sizes == [12]


def test_every_epoch_leaves_one_line_and_one_row(trained: Path):
    lines = [line for line in log_of(trained).splitlines() if "epoch 2/2:" in line]
    assert len(lines) == 1
    for name in (
        *("loss transformer", "loss cnn", "loss l1", "Prec@1", "Cls@1", "Cls@5"),
        *("Loc@1", "Loc@5", "GT-known"),
        *("right", "wrong class", "multi instance", "part", "more", "wrong"),
    ):
        assert f" {name} " in lines[0]
    rows = epoch_lines(trained)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["rate_transformer"] for row in rows] == [RATE, pytest.approx(RATE / 10)]
    assert rows[0]["rate_cnn"] == rows[1]["rate_cnn"] == 0.005
    kinds = ("right", "wrong_class", "multi_instance", "part", "more", "wrong")
    assert sum(rows[1][kind] for kind in kinds) == pytest.approx(100)


def test_curves_are_on_the_board(trained: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(Paths(trained).board)).Reload()
    for name in ("loss_l1", "gt_known", "rate_transformer"):
        points = [(event.step, event.value) for event in board.Scalars(name)]
        expected = [(row["epoch"], pytest.approx(row[name])) for row in epoch_lines(trained)]
        assert points == expected


def test_missing_tensorboard_is_told_before_the_first_epoch(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run(birds, tmp_path) == 2
    assert "pip install tensorboard" in capsys.readouterr().err
    assert not Paths(tmp_path).state.exists()


def test_results_say_how_every_epoch_was_chosen(trained: Path):
    content = results(trained)
    found, rows = content["results"], epoch_lines(trained)
    assert found["last"]["epoch"] == EPOCHS
    assert found["last"]["chosen"] == "last epoch"
    for name, score in (("best_top1_loc", "loc_top1"), ("best_gt_known", "gt_known")):
        values = [row[score] for row in rows]
        assert found[name]["epoch"] == 1 + values.index(max(values))
        assert found[name]["scores"][score] == max(values)
        assert "best test epoch" in found[name]["chosen"]
        assert "inflated" in found[name]["chosen"]
        assert f"{found[name]['chosen']}, epoch {found[name]['epoch']}: Cls@1" in log_of(trained)
    assert content["arguments"]["MODEL.CNN"] == "resnet18"
    assert content["arguments"]["--lr"] == RATE
    assert content["initialisation"]["cnn"] == "resnet18, random weights"
    assert content["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert content["speed"]["seconds_per_step"] > 0
    assert content["speed"]["seconds_per_test_picture"] > 0


def test_weights_are_those_of_their_epoch(trained: Path):
    found = results(trained)["results"]
    for name, entry in zip(WEIGHTS, (found[choice.name] for choice in CHOICES), strict=True):
        checkpoint = load_checkpoint(trained / name)
        assert checkpoint["epoch"] == entry["epoch"]
        assert checkpoint["chosen"].startswith(entry["chosen"])
    state = load_checkpoint(Paths(trained).state)["models"]
    last = weights(trained / "model_last.pth")
    assert torch.equal(last["state_dict.head.weight"], state[TRANSFORMER]["head.weight"])
    fixed = "cnn_state_dict.resnet50.layer4.1.bn2.running_var"
    assert torch.equal(last[fixed], state[CNN]["backbone.layer4.1.bn2.running_var"])


def test_finished_run_is_kept_and_told_again(birds: Path, trained_copy: Path):
    before = {name: weights(trained_copy / name) for name in WEIGHTS}
    rows = epoch_lines(trained_copy)
    assert run(birds, trained_copy) == 0
    assert "epoch 2/2" not in log_of(trained_copy)
    assert "last epoch, epoch 2: Cls@1" in log_of(trained_copy)
    assert epoch_lines(trained_copy) == rows
    for name, tensors in before.items():
        after = weights(trained_copy / name)
        assert all(torch.equal(tensors[key], after[key]) for key in tensors)


def test_finished_run_can_be_trained_on(birds: Path, trained: Path, trained_copy: Path):
    assert run(birds, trained_copy, "--resume", SOLVER__NUM_EPOCHS=EPOCHS + 1) == 0
    rows = epoch_lines(trained_copy)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[:2] == epoch_lines(trained)
    assert results(trained_copy)["results"]["last"]["epoch"] == 3


# ------------------------------------------------------------------------------------ resuming


def run_and_kill(birds: Path, folder: Path, batch: int) -> None:
    """Train in this process, which SIGKILL ends when a batch (from 1) is about to be used."""
    use, left = training.to_device, batch

    def use_or_die(*arguments: object) -> dict:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return use(*arguments)

    training.to_device = evaluation.to_device = use_or_die
    run(birds, folder)


def test_killed_run_ends_as_an_uninterrupted_one(birds: Path, trained: Path, tmp_path: Path):
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_processes(run_and_kill, birds, tmp_path, MIDDLE_OF_EPOCH_2, count=1)
    assert load_checkpoint(Paths(tmp_path).state)["finished"] == 1
    assert load_checkpoint(tmp_path / "model_last.pth")["epoch"] == 1
    assert run(birds, tmp_path, "--resume") == 0
    assert "continued after epoch 1" in log_of(tmp_path)
    assert all(equal_weights(trained, tmp_path, name) for name in WEIGHTS)
    assert epoch_lines(tmp_path) == epoch_lines(trained)
    scores = [
        {name: entry["scores"] for name, entry in results(folder)["results"].items()}
        for folder in (trained, tmp_path)
    ]
    assert scores[0] == scores[1]


def test_run_killed_between_state_and_weights_writes_them(
    birds: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, "keep_weights", stop)
        assert run(birds, tmp_path) == 130
    assert load_checkpoint(Paths(tmp_path).state)["finished"] == 1
    assert not list(tmp_path.glob("model_*"))
    assert run(birds, tmp_path) == 0
    assert all(equal_weights(trained, tmp_path, name) for name in WEIGHTS)
    assert epoch_lines(tmp_path) == epoch_lines(trained)


def test_loss_that_is_not_finite_stops_with_a_sentence(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert run(birds, tmp_path, SOLVER__CNN_LR=1e30) == 2
    assert "a loss is not finite in step" in capsys.readouterr().err


# --------------------------------------------------------------------------- several processes


def train_equally(birds: Path, folder: Path, values: dict[str, Any]) -> None:
    """Train an epoch that does not depend on the random numbers of a process."""
    values = {"SOLVER__CNN_LR": 1e-3, "MODEL__DROP_PATH": 0, "SOLVER__NUM_EPOCHS": 1, **values}
    assert run(birds, folder, **values) == 0


@pytest.mark.parametrize(
    "values",
    [
        {"TRAIN__BATCH_SIZE": 4},  # always two pictures each
        {"TRAIN__BATCH_SIZE": 9},  # 5 and 4, then 2 and 1
        {"TRAIN__BATCH_SIZE": 11},  # 6 and 5, then one picture for two processes
        {"TRAIN__BATCH_SIZE": 7, "MODEL__FIXED_BATCHNORM": False},  # statistics of the whole batch
    ],
)
def test_two_processes_train_as_one(birds: Path, tmp_path: Path, values: dict[str, Any]):
    train_equally(birds, tmp_path / "one", values)
    run_processes(train_equally, birds, tmp_path / "two", values)
    one, two = (epoch_lines(tmp_path / name)[0] for name in ("one", "two"))
    assert two == {name: pytest.approx(value, rel=1e-3) for name, value in one.items()}
    one, two = (weights(tmp_path / name / "model_last.pth") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key in one:
        # AdamW divides by the size of a gradient: where that is hardly more than its rounding
        # error, a tenth of a step may differ; the L1 loss hands a little of it on to the CNN.
        tolerance = 2e-5 if key.startswith("cnn") else RATE / 10
        torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=tolerance)


def test_wrong_input_of_several_processes_is_one_sentence(birds: Path, tmp_path: Path):
    argv = command_line(birds, tmp_path, MODEL__CAM_THR=2)
    command = [sys.executable, str(LAUNCHER), "2", str(TRAIN_SCRIPT), *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 2
    sentence = "train_cam.py: command line: MODEL.CAM_THR is 2.0; it must be at most 1.\n"
    assert done.stderr == sentence
