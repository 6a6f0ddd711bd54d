"""Training of the pipeline's networks: several processes like one, and what TensorBoard shows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline import (
    EPOCHS,
    TRAIN_IDS,
    VAL_IDS,
    WEIGHTS,
    copy_of,
    metrics,
    prepared,
    same_list,
    weights,
    write_list,
)
from processes import run_processes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from misc.distributed import is_main_process
from misc.files import read_json, write_json
from step import train_cam, train_irn
from step.overwrite import remove_before

STEPS = {"train_cam": train_cam, "train_irn": train_irn}
NETWORKS = {"train_cam": ("cnn", "transformer"), "train_irn": ("irn",)}

# Sums over the parts of a batch round differently from the sum over the batch: 1e-7 of a gradient.
# A few updates of at most 0.1 (rate times 10 for the heads) leave that far below 1e-5 of weights
# and losses; weights near 0 have the size of an update at most. Batch norms that learn have one
# update here: they multiply rounding errors with every further one, from 5e-7 after two to 2e-5
# after six at a rate of 0.001. tests/net/test_batchnorm.py has more updates, in float64.
ALIKE = {"rtol": 1e-5, "atol": 1e-6}

TWO_PICTURES = {"cam_batch_size": 2, "irn_batch_size": 2}
LEARNING_NORM = {"fixed_batchnorm": False, "cnn_frozen_stages": 0}


def train(sample: Path, work: Path, step: str, options: dict[str, Any]) -> None:
    """What a process does that takes part in a training step."""
    results = STEPS[step].run(prepared(sample, work, **options))
    if is_main_process():
        write_json(work / "epochs.json", results)


def count_for(ids: tuple[str, ...]) -> int:
    """Number of processes: two, or one more than there are pictures."""
    return 3 if len(ids) == 2 else 2


def assert_trained_alike(one: Path, other: Path, step: str) -> None:
    """Compare the networks of two work folders, and the losses of their epochs."""
    for name in NETWORKS[step]:
        torch.testing.assert_close(weights(other, name), weights(one, name), **ALIKE)
    first, second = (read_json(work / "epochs.json")["epochs"] for work in (one, other))
    assert len(first) == len(second)
    for row, same in zip(first, second, strict=True):
        assert same == pytest.approx(row, rel=1e-5)


@pytest.mark.parametrize(
    ("ids", "options"),
    [
        (TRAIN_IDS, {"cam_batch_size": 3, "cam_num_epoches": 2}),  # shares 2 and 1
        (TRAIN_IDS[:5], {**LEARNING_NORM, "cam_batch_size": 5}),
        (TRAIN_IDS[:2], TWO_PICTURES),  # one process of three has none, for validation neither
        (TRAIN_IDS[:2], {**TWO_PICTURES, **LEARNING_NORM, "cam_num_epoches": 2}),
    ],
    ids=["uneven", "batch norm learns", "none for the third", "none, batch norm learns"],
)
def test_processes_train_the_branches_as_one_does(
    sample: Path, tmp_path: Path, ids: tuple[str, ...], options: dict[str, Any]
) -> None:
    lists = {
        "train_list": write_list(tmp_path / "train.txt", ids),
        "val_list": write_list(tmp_path / "val.txt", VAL_IDS[: len(ids)]),
    }
    options = {"cam_num_epoches": 1, "cam_refine_epoch": 1, **options, **lists}
    train(sample, tmp_path / "one", "train_cam", options)
    run_processes(train, sample, tmp_path / "two", "train_cam", options, count=count_for(ids))
    assert_trained_alike(tmp_path / "one", tmp_path / "two", "train_cam")


@pytest.mark.parametrize(
    ("ids", "options"),
    [(TRAIN_IDS, {"irn_batch_size": 3}), (TRAIN_IDS[:2], TWO_PICTURES)],
    ids=["uneven", "none for the third"],
)
def test_processes_train_irnet_as_one_does(
    sample: Path, finished: Path, tmp_path: Path, ids: tuple[str, ...], options: dict[str, Any]
) -> None:
    options = {**same_list(write_list(tmp_path / "list.txt", ids)), **options}
    folders = [
        copy_of(finished, tmp_path / name, without=[f"{WEIGHTS['irn']}*"])
        for name in ("one", "two")
    ]
    train(sample, folders[0], "train_irn", options)
    run_processes(train, sample, folders[1], "train_irn", options, count=count_for(ids))
    assert_trained_alike(*folders, "train_irn")
    shifts = [weights(folder, "irn")["mean_shift.running_mean"] for folder in folders]
    assert shifts[0].abs().min() > 0
    torch.testing.assert_close(*shifts, rtol=1e-5, atol=1e-7)


# ----------------------------------------------------------------------------------- TensorBoard


def board(work: Path, step: str) -> EventAccumulator:
    return EventAccumulator(str(work / "result/logs" / step)).Reload()


@pytest.mark.parametrize(
    ("step", "losses", "grid"),
    [
        (
            "train_cam",
            ("cnn", "transformer", "l1", "val_cnn", "val_transformer"),
            "cnn_transformer",
        ),
        ("train_irn", ("positive", "negative", "displacement_foreground"), "label_edge"),
    ],
)
def test_curves_and_pictures_of_every_epoch(
    finished: Path, step: str, losses: tuple[str, ...], grid: str
) -> None:
    shown, rows = board(finished, step), metrics(finished)["steps"][step]["epochs"]
    for name in losses:
        points = [(point.step, point.value) for point in shown.Scalars(name)]
        expected = [(e, pytest.approx(row[name])) for e, row in enumerate(rows, start=1)]
        assert points == expected and len(points) == EPOCHS
    (rates, *_) = [tag for tag in shown.Tags()["scalars"] if tag.startswith("learning_rate/")]
    assert [point.value > 0 for point in shown.Scalars(rates)] == [True] * EPOCHS
    pictures = shown.Images(f"input_{grid}")
    assert [picture.step for picture in pictures] == list(range(1, EPOCHS + 1))
    side = {"train_cam": 48, "train_irn": 64}[step]
    assert all(picture.width > 3 * side and picture.height > 2 * side for picture in pictures)


def test_overwrite_removes_the_curves_of_its_own_steps(
    sample: Path, finished: Path, tmp_path: Path
) -> None:
    work = copy_of(finished, tmp_path / "work")
    own, other = (work / "result/logs" / step for step in STEPS)
    curves, others = list(own.iterdir()), list(other.iterdir())
    (own / "notes.txt").write_text("of the user")
    remove_before(prepared(sample, work), ["train_cam"])
    assert curves and [path.name for path in own.iterdir()] == ["notes.txt"]
    assert others and all(path.exists() for path in others)
