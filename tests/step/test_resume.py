"""A run that was killed goes on where it was, and ends where an uninterrupted run ends."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pipeline import (
    STATES,
    STEPS_PER_EPOCH,
    TRAIN_IDS,
    WEIGHTS,
    command_line,
    copy_of,
    equal_weights,
    hashes,
    log_of,
    metrics,
    output,
    run,
)
from processes import killed_run

import run_sample
from misc.checkpoint import load_checkpoint
from step import train_cam

REPOSITORY = Path(run_sample.__file__).parent

KILLED_RUN = killed_run("run_sample", "misc.training")
MIDDLE_OF_EPOCH_2 = STEPS_PER_EPOCH + 2
TRAINED = {"train_cam": ("cnn", "transformer"), "train_irn": ("irn",)}


def run_and_kill(sample: Path, work: Path, step: str) -> None:
    """Run one training step in a process that SIGKILL ends in its second epoch."""
    argv = [str(MIDDLE_OF_EPOCH_2), *command_line(sample, work, "--steps", step)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", KILLED_RUN, *argv]
    killed = subprocess.run(command, env=environment, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()


@pytest.mark.parametrize("step", TRAINED)
def test_killed_training_ends_with_the_weights_of_an_uninterrupted_one(
    sample: Path, finished: Path, tmp_path: Path, step: str
) -> None:
    names = TRAINED[step]
    without = [f"{WEIGHTS[name]}*" for name in names]
    work = copy_of(finished, tmp_path / "work", without=without)
    run_and_kill(sample, work, step)
    assert load_checkpoint(work / "sess" / STATES[step])["finished"] == 1
    assert not any((work / "sess" / WEIGHTS[name]).exists() for name in names)
    assert run(sample, work, "--steps", step) == 0
    assert f"{step}: continued after epoch 1" in log_of(work)
    assert f"{step}: epoch 1/2" not in log_of(work).split("continued")[1]
    assert equal_weights(work, finished, *names)
    assert metrics(work)["steps"][step] == metrics(finished)["steps"][step]
    assert not (work / "sess" / STATES[step]).exists()


def stop_after(monkeypatch: pytest.MonkeyPatch, target: str, calls: int) -> None:
    """Let `target` (module.function) work `calls` times and be interrupted afterwards."""
    module, _, name = target.rpartition(".")
    original, left = getattr(importlib.import_module(module), name), calls

    def wrapped(*args: object, **kwargs: object) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(target, wrapped)


@pytest.mark.parametrize(
    ("name", "kind", "writer"),
    [
        ("make_cam", "cam", "step.make_cam.save_cam"),
        ("cam_to_ir_label", "ir_label", "net.pseudo_labels.write_label"),
        ("make_ins_seg_labels", "ins_seg", "step.make_ins_seg_labels.save_instances"),
        ("make_sem_seg_labels", "sem_seg", "step.make_sem_seg_labels.write_label"),
    ],
)
def test_interrupted_pictures_go_on_and_keep_what_is_finished(
    sample: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    name: str,
    kind: str,
    writer: str,
) -> None:
    work = copy_of(finished, tmp_path / "work", without=[kind])
    with monkeypatch.context() as patch:
        stop_after(patch, writer, calls=2)
        assert run(sample, work, "--steps", name) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    done = [output(work, kind, i) for i in TRAIN_IDS if output(work, kind, i).exists()]
    assert len(done) == 2
    before = [path.stat().st_mtime_ns for path in done]
    half_written = done[0].with_name(f".tmp-0123-{TRAIN_IDS[-1]}{done[0].suffix}")
    half_written.write_bytes(b"half")
    assert run(sample, work, "--steps", name) == 0
    assert [path.stat().st_mtime_ns for path in done] == before
    assert hashes(work, kind) == hashes(finished, kind)
    assert metrics(work)["steps"][name]["made"] == len(TRAIN_IDS) - 2


def test_loss_that_is_not_finite_stops_and_the_last_state_stays(
    sample: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    original, left = train_cam.cam_losses, STEPS_PER_EPOCH

    def overflow(*args: object) -> object:
        nonlocal left
        left -= 1
        losses = original(*args)
        return losses if left >= 0 else losses._replace(cnn=losses.cnn * torch.inf)

    with monkeypatch.context() as patch:
        patch.setattr(train_cam, "cam_losses", overflow)
        assert run(sample, tmp_path, "--steps", "train_cam") == 2
    error = capsys.readouterr().err
    assert "train_cam: a loss is not finite in step 1 of epoch 2 (cnn inf" in error
    assert "lower the learning rate" in error
    assert load_checkpoint(tmp_path / "sess" / STATES["train_cam"])["finished"] == 1
    assert not list((tmp_path / "sess").glob("res152_cam*"))
    assert run(sample, tmp_path, "--steps", "train_cam") == 0
    assert equal_weights(tmp_path, finished, "cnn", "transformer")


def test_state_of_another_run_is_refused_until_overwritten(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, "step.train_cam.training_losses", calls=STEPS_PER_EPOCH + 1)
        assert run(sample, tmp_path, "--steps", "train_cam", cam_lambda=0.7) == 130
    assert run(sample, tmp_path, "--steps", "train_cam") == 2
    error = capsys.readouterr().err
    assert "train_cam.state.pth is the state of a training run with other arguments" in error
    assert run(sample, tmp_path, "--steps", "train_cam", "--overwrite") == 0
    assert equal_weights(tmp_path, finished, "cnn", "transformer")


def test_killed_between_two_weight_files_makes_both(
    sample: Path, finished: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, "step.networks.save_checkpoint", calls=1)
        assert run(sample, tmp_path, "--steps", "train_cam") == 130
    names = {path.name for path in (tmp_path / "sess").glob("*.pth")}
    assert names == {WEIGHTS["cnn"], STATES["train_cam"]}
    assert run(sample, tmp_path, "--steps", "train_cam") == 0
    assert equal_weights(tmp_path, finished, "cnn", "transformer")
