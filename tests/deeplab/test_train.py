"""Training of DeepLab: what a run leaves, resuming, several processes, and the update itself."""

import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from deeplab_runs import (
    ITERATIONS,
    command_line,
    config_of,
    copy_of,
    equal_weights,
    finished_run,
    log_of,
    paths_of,
    run,
    run_apart,
    run_commands,
    two_process_run,
)
from PIL import Image
from processes import killed_run, run_processes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deeplab import engine
from deeplab.config import FINAL, Config
from deeplab.data import TrainDataset, id_list
from deeplab.initialisation import initialise
from deeplab.model import MultiScale, build_model
from misc.batches import BatchStream, first_images
from misc.checkpoint import load_checkpoint
from misc.files import read_json
from misc.provenance import read_record, record_path
from misc.seed import run_facts, seed_everything
from misc.training import Loss

KILLED_RUN = killed_run("deeplab.main", "misc.training")
LAST_BATCH = 2 * ITERATIONS
LAST_STATE = 4
ALIKE = {"rtol": 1e-5, "atol": 1e-7}  # an update is about 1e-5


def curves(folder: Path) -> EventAccumulator:
    """What TensorBoard would show."""
    board = EventAccumulator(str(folder))
    board.Reload()
    return board


# ---------------------------------------------------------------------- what a run leaves behind


def test_run_leaves_checkpoints_with_records_and_no_state(sample: Path) -> None:
    paths = paths_of(sample, finished_run(sample))
    names = {f"checkpoint_{name}.pth" for name in (3, 6, FINAL)}
    there = {path.name for path in paths.models_dir.iterdir()}
    assert there == names | {f"{name}.json" for name in names}
    for name in (3, 6, FINAL):
        assert read_record(paths.checkpoint(name)) == read_record(paths.checkpoint(FINAL))
    assert equal_weights(paths.checkpoint(6), paths.checkpoint(FINAL))
    assert not equal_weights(paths.checkpoint(3), paths.checkpoint(FINAL))


def test_checkpoint_is_a_plain_state_dict_of_the_network(sample: Path) -> None:
    folder = finished_run(sample)
    state = load_checkpoint(paths_of(sample, folder).checkpoint(FINAL))
    assert state.keys() == build_model(config_of(sample, folder)).state_dict().keys()
    assert {key.partition(".")[0] for key in state} == {"base"}


def test_record_tells_what_the_weights_come_from(sample: Path) -> None:
    content = read_json(record_path(paths_of(sample, finished_run(sample)).checkpoint(FINAL)))
    facts = content["facts"]
    assert content["inputs"].keys() == {"train_list", "pictures", "labels", "first_weights"}
    assert content["lists"]["train"]["count"] == 6
    assert facts["initialisation"]["pixel_labels"] is False
    assert facts["training_labels"]["shares"]["background"] > 0.5
    assert facts["config"]["SOLVER.ITER_SIZE"] == 2
    assert [point["iteration"] for point in facts["history"]] == [2, 4, 6]
    assert facts["commit"] == run_facts()["commit"]


def test_log_and_tensorboard_tell_the_same(sample: Path) -> None:
    folder = finished_run(sample)
    paths, text = paths_of(sample, folder), log_of(sample, folder, "train")
    history = read_json(record_path(paths.checkpoint(FINAL)))["facts"]["history"]
    for point in history:
        assert f"iteration {point['iteration']}/6: loss {point['loss']:.4f}" in text
    board = curves(paths.logs_dir)
    loss = [(point.step, pytest.approx(point.value)) for point in board.Scalars("loss")]
    assert [(point["iteration"], point["loss"]) for point in history] == loss
    rates = [
        [point.value for point in board.Scalars(f"learning_rate/{name}")]
        for name in ("body", "aspp_weights", "aspp_biases")
    ]
    falling = [1e-5 * (1 - step / ITERATIONS) ** 0.9 for step in (0, 2, 4)]
    expected = [np.multiply(falling, factor) for factor in (1, 10, 20)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert all(point.value > 0 for point in board.Scalars("pictures_per_second"))


def test_tensorboard_has_a_grid_of_input_label_and_prediction(sample: Path) -> None:
    paths = paths_of(sample, finished_run(sample))
    grids = curves(paths.logs_dir).Images("input_label_prediction")
    assert [grid.step for grid in grids] == [3, 6]
    assert all(grid.width > 3 * 40 and grid.height > 2 * 40 for grid in grids)


# --------------------------------------------------------------------------------- the update


def start_of(config: Config) -> tuple[MultiScale, TrainDataset]:
    """The network before its first update, and the training items."""
    seed_everything(config.EXP.SEED)
    dataset = TrainDataset(config, id_list(config, "train").ids)
    network = build_model(config)
    initialise(network, config, first_images(dataset, config.SOLVER.BATCH_SIZE.TRAIN))
    return network.train(), dataset


def reference_loss(network: MultiScale, batch: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Sum of four cross entropies against labels that PIL resized."""
    images = torch.stack([item["image"] for item in batch])
    total = torch.zeros(())
    for output in network.forward_all(images):
        height, width = output.shape[-2:]
        labels = [
            Image.fromarray(item["label"].byte().numpy()).resize((width, height), Image.NEAREST)
            for item in batch
        ]
        target = torch.stack([torch.from_numpy(np.array(label)).long() for label in labels])
        total = total + F.cross_entropy(output, target, ignore_index=255)
    return total


def test_training_is_the_published_recipe(sample: Path) -> None:
    """A whole run against torch's SGD and labels resized by PIL.

    Losses, gradients, groups and rates of single steps are compared with the published code's own
    outputs in test_deeplab_model.py and test_schedule.py; there are none of several steps.
    """
    folder = finished_run(sample)
    config = config_of(sample, folder)
    network, dataset = start_of(config)
    named = dict(network.base.named_parameters())
    weights = [value for key, value in named.items() if "aspp" in key and "weight" in key]
    biases = [value for key, value in named.items() if "aspp" in key and "bias" in key]
    body = [v for k, v in named.items() if "aspp" not in k and v.dim() == 4]
    groups = [
        {"params": body, "factor": 1},
        {"params": weights, "factor": 10},
        {"params": biases, "factor": 20, "weight_decay": 0},
    ]
    optimiser = torch.optim.SGD(groups, lr=1, momentum=0.9, weight_decay=5e-4)
    batches = list(BatchStream(len(dataset), 2, 0, 0, LAST_BATCH))
    for iteration in range(ITERATIONS):
        optimiser.zero_grad()
        for keys in batches[2 * iteration : 2 * iteration + 2]:
            (reference_loss(network, [dataset[key] for key in keys]) / 2).backward()
        rate = 1e-5 * (1 - (iteration - iteration % 2) / ITERATIONS) ** 0.9
        for group in optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        optimiser.step()
    trained = load_checkpoint(paths_of(sample, folder).checkpoint(FINAL))
    for key, value in network.state_dict().items():
        torch.testing.assert_close(trained[key], value, **ALIKE)


@pytest.mark.parametrize(
    ("momentum", "weight_decay", "power"), [(0.9, 5e-4, 0.9), (0.5, 0.25, 2.0)]
)
def test_optimiser_obeys_the_configuration(
    sample: Path, momentum: float, weight_decay: float, power: float
) -> None:
    """With gradient 0 an update is -rate * decay * weight, and momentum repeats a part of it."""
    values = {
        "SOLVER.LR": 0.125,
        "SOLVER.MOMENTUM": momentum,
        "SOLVER.WEIGHT_DECAY": weight_decay,
        "SOLVER.POLY_POWER": power,
        "SOLVER.LR_DECAY": 1,
        "SOLVER.ITER_MAX": 4,
    }
    config = config_of(sample, finished_run(sample), values)
    network = build_model(config)
    optimiser = engine.build_optimiser(network, config)
    groups = network.parameter_groups()
    assert [group["params"] for group in optimiser.param_groups] == list(groups)
    first = groups.body[0].detach()[0, 0, 0, 0].clone().double().item()
    bias = groups.aspp_biases[0].detach().fill_(1.5)[0]
    weight, velocity = first, 0.0
    for step in range(3):
        rate = 0.125 * (1 - step / 4) ** power
        for parameter in (value for group in groups for value in group):
            parameter.grad = torch.zeros_like(parameter)
        optimiser.step()
        rates = [group["lr"] for group in optimiser.param_groups]
        assert rates == pytest.approx([rate, 10 * rate, 20 * rate])
        velocity = momentum * velocity + weight_decay * weight
        weight -= rate * velocity
    assert groups.body[0][0, 0, 0, 0].item() == pytest.approx(weight, rel=1e-5)
    assert weight != pytest.approx(first, rel=1e-5)
    assert bias == 1.5  # the biases of the classifier are not decayed


def test_only_batch_norm_is_left_alone(sample: Path) -> None:
    folder = finished_run(sample)
    network, _ = start_of(config_of(sample, folder))
    trained = load_checkpoint(paths_of(sample, folder).checkpoint(FINAL))
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, trained[k])}
    assert changed <= {k for k, v in network.named_parameters() if v.dim() == 4 or "aspp" in k}
    assert {k for k in trained if "aspp" in k} < changed


# --------------------------------------------------------------------------- stopped, resumed


def test_killed_training_ends_with_the_weights_of_an_uninterrupted_one(
    sample: Path, tmp_path: Path
) -> None:
    often = {"SOLVER.ITER_TB": 1}  # so that the killed run writes points after its last state
    argv = command_line("train", sample, tmp_path, values=often)
    killed = run_apart("-c", KILLED_RUN, str(LAST_BATCH), *argv)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    paths = paths_of(sample, tmp_path)
    assert load_checkpoint(paths.state_path)["finished"] == LAST_STATE
    assert not paths.checkpoint(FINAL).exists()
    time.sleep(1)  # TensorBoard orders files by the second of their start
    assert run("train", sample, tmp_path, values={**often, "DATALOADER.NUM_WORKERS": 1}) == 0
    assert f"continued after iteration {LAST_STATE}" in log_of(sample, tmp_path, "train")
    whole = paths_of(sample, finished_run(sample))
    for name in (3, 6, FINAL):
        assert equal_weights(paths.checkpoint(name), whole.checkpoint(name))
    history = read_json(record_path(paths.checkpoint(FINAL)))["facts"]["history"]
    of_whole = read_json(record_path(whole.checkpoint(FINAL)))["facts"]["history"]
    assert history[1::2] == of_whole
    assert [point.step for point in curves(paths.logs_dir).Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert not paths.state_path.exists()
    assert not record_path(paths.state_path).exists()


def test_finished_training_is_kept(sample: Path, tmp_path: Path) -> None:
    paths = paths_of(sample, copy_of(finished_run(sample), tmp_path, "models"))
    left = [paths.state_path, paths.models_dir / ".tmp-012-training.state.pth"]
    for path in left:  # killed at the very end
        path.write_bytes(b"")
    before = paths.checkpoint(FINAL).stat().st_mtime_ns
    moved = Path(shutil.copytree(sample, tmp_path / "moved"))  # the same data elsewhere
    values = {"SOLVER.ITER_TB": 5, "DATASET.ROOT": moved}
    assert run("train", sample, tmp_path, values=values) == 0
    assert paths.checkpoint(FINAL).stat().st_mtime_ns == before
    assert "is finished and is kept" in log_of(sample, tmp_path, "train")
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize(
    ("values", "difference"),
    [
        ({"SOLVER.LR": 2e-5}, "SOLVER.LR is 2e-05 now and was 1e-05"),
        ({"DATASET.SPLIT.TRAIN": "val"}, "input train_list is"),
    ],
)
def test_weights_of_other_arguments_are_refused(
    sample: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    values: dict[str, object],
    difference: str,
) -> None:
    folder = copy_of(finished_run(sample), tmp_path, "models")
    models = folder / "models/voc12/tiny"
    (models / "train").rename(models / str(values.get("DATASET.SPLIT.TRAIN", "train")))
    assert run("train", sample, folder, values=values) == 2
    error = capsys.readouterr().err
    assert difference in error and "--overwrite" in error and "--from_step" not in error


def test_overwrite_starts_afresh(sample: Path, tmp_path: Path) -> None:
    paths = paths_of(sample, copy_of(finished_run(sample), tmp_path, "models", "logs"))
    values = {"SOLVER.ITER_MAX": 2}
    assert run("train", sample, tmp_path, "--overwrite", values=values) == 0
    assert not paths.checkpoint(3).exists() and not paths.checkpoint(6).exists()
    assert not equal_weights(
        paths.checkpoint(FINAL), paths_of(sample, finished_run(sample)).checkpoint(FINAL)
    )
    assert [point.step for point in curves(paths.logs_dir).Scalars("loss")] == [2]


def test_state_of_other_arguments_is_refused_and_names_them(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    stop_with_nan(monkeypatch, iteration=4)
    assert run("train", sample, tmp_path, values={"SOLVER.MOMENTUM": 0.5}) == 2
    capsys.readouterr()
    assert run("train", sample, tmp_path) == 2
    error = capsys.readouterr().err
    assert "training.state.pth" in error and "SOLVER.MOMENTUM is 0.9 now and was 0.5" in error


def stop_with_nan(monkeypatch: pytest.MonkeyPatch, iteration: int) -> None:
    """Make the loss of an iteration (from 1) infinite."""
    original, left = engine.msc_loss, 2 * (iteration - 1)

    def overflow(*args: object) -> tuple[torch.Tensor, list[torch.Tensor]]:
        nonlocal left
        left -= 1
        total, parts = original(*args)
        return (total if left >= 0 else total * torch.inf), parts

    monkeypatch.setattr(engine, "msc_loss", overflow)


def test_loss_that_is_not_finite_stops_and_the_last_state_stays(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_with_nan(patch, iteration=4)
        assert run("train", sample, tmp_path) == 2
    error = capsys.readouterr().err
    assert "a loss is not finite in iteration 4 (loss inf); lower SOLVER.LR" in error
    assert "stopped: train: a loss is not finite" in log_of(sample, tmp_path, "train")
    assert load_checkpoint(paths_of(sample, tmp_path).state_path)["finished"] == 3
    assert run("train", sample, tmp_path) == 0
    finals = [paths_of(sample, f).checkpoint(FINAL) for f in (tmp_path, finished_run(sample))]
    assert equal_weights(*finals)


def test_weights_that_are_not_finite_are_never_written(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The loss of the last update was finite, and nothing looks at the weights afterwards."""
    paths = paths_of(sample, tmp_path)
    values = {"SOLVER.LR": 1e30, "SOLVER.ITER_MAX": 1}
    assert run("train", sample, tmp_path, values=values) == 2
    error = capsys.readouterr().err
    assert "gives class scores that are NaN or infinite after the last update" in error
    assert "lower SOLVER.LR, which is 1e+30" in error
    assert list(paths.models_dir.glob("*")) == []


def test_state_of_weights_that_are_not_finite_is_not_written(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    step, left = engine.TrainingRun.step, 4 * 2  # batches of four iterations

    def diverge(training: engine.TrainingRun, *arguments: object) -> Loss:
        nonlocal left
        loss, left = step(training, *arguments), left - 1
        if left == 0:
            training.network.parameter_groups().aspp_biases[0].data[0] = torch.nan
        return loss

    monkeypatch.setattr(engine.TrainingRun, "step", diverge)
    assert run("train", sample, tmp_path) == 2
    assert (
        "base.aspp.c0.bias of network deeplab is not finite after iteration 4"
        in capsys.readouterr().err
    )
    monkeypatch.undo()
    paths = paths_of(sample, tmp_path)
    assert load_checkpoint(paths.state_path)["finished"] == 3  # from which the same command goes on
    assert run("train", sample, tmp_path) == 0
    finals = [paths_of(sample, f).checkpoint(FINAL) for f in (tmp_path, finished_run(sample))]
    assert equal_weights(*finals)


# ------------------------------------------------------------------------------------ processes


def test_two_processes_train_like_one(sample: Path) -> None:
    folder = two_process_run(sample)
    one, two = (paths_of(sample, f).checkpoint(FINAL) for f in (finished_run(sample), folder))
    states = load_checkpoint(one), load_checkpoint(two)
    assert states[0].keys() == states[1].keys()
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], **ALIKE)
    losses = [
        [point["loss"] for point in read_json(record_path(path))["facts"]["history"]]
        for path in (one, two)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert read_record(one) == read_record(two)
    text = log_of(sample, folder, "train")
    assert text.count("iteration 6/6") == 1  # the main process alone speaks


@pytest.mark.parametrize(("batch_size", "count"), [(3, 2), (2, 3)])  # 2 and 1; 1, 1 and none
def test_processes_train_uneven_batches_like_one(
    sample: Path, tmp_path: Path, batch_size: int, count: int
) -> None:
    values = {"SOLVER.BATCH_SIZE.TRAIN": batch_size, "SOLVER.ITER_MAX": 3, "SOLVER.ITER_TB": 1}
    folders = tmp_path / "one", tmp_path / "two"
    assert run("train", sample, folders[0], values=values) == 0
    argv = command_line("train", sample, folders[1], values=values)
    run_processes(run_commands, argv, count=count)
    states, losses = [], []
    for folder in folders:
        path = paths_of(sample, folder).checkpoint(FINAL)
        states.append(load_checkpoint(path))
        losses.append([point["loss"] for point in read_json(record_path(path))["facts"]["history"]])
    for key in states[0]:
        torch.testing.assert_close(states[1][key], states[0][key], **ALIKE)
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_order_of_the_list_does_not_change_the_weights(sample: Path, tmp_path: Path) -> None:
    config = config_of(sample, tmp_path)
    ids = id_list(config, "train").ids
    (tmp_path / "train.txt").write_text("".join(f"{name}\n" for name in reversed(ids)))
    values = {"DATASET.SPLIT.TRAIN": tmp_path / "train.txt"}
    assert run("train", sample, tmp_path, values=values) == 0
    paths = [paths_of(sample, finished_run(sample)), paths_of(sample, tmp_path)]
    assert equal_weights(*(each.checkpoint(FINAL) for each in paths))


def test_bfloat16_trains_too(sample: Path, tmp_path: Path) -> None:
    values = {"SOLVER.PRECISION": "bfloat16", "SOLVER.ITER_MAX": 1}
    assert run("train", sample, tmp_path, values=values) == 0
    state = load_checkpoint(paths_of(sample, tmp_path).checkpoint(FINAL))
    assert all(value.dtype != torch.bfloat16 for value in state.values())
