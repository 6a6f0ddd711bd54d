"""Networks that overflow end a run with a sentence, and nothing of them is written."""

from pathlib import Path

import pytest
import torch
from pipeline import TRAIN_IDS, WEIGHTS, copy_of, run

from misc.checkpoint import load_checkpoint, save_checkpoint

Capture = pytest.CaptureFixture[str]


def _overflowing(finished: Path, target: Path, name: str, *without: str) -> Path:
    """A work folder whose network `name` has finite weights that are far too large."""
    work = copy_of(finished, target, without=without)
    path = work / "sess" / WEIGHTS[name]
    state = load_checkpoint(path)
    large = {k: v * 1e30 if torch.is_floating_point(v) else v for k, v in state.items()}
    assert all(value.isfinite().all() for value in large.values())
    save_checkpoint(path, large)
    return work


@pytest.mark.parametrize(
    ("step", "folders"),
    [("make_sem_seg_labels", ("sem_seg", "edge")), ("make_ins_seg_labels", ("ins_seg",))],
)
def test_irnet_that_overflows_makes_no_masks(
    sample: Path, finished: Path, tmp_path: Path, capsys: Capture, step: str, folders: tuple
) -> None:
    work = _overflowing(finished, tmp_path / "work", "irn", *folders)
    assert run(sample, work, "--steps", step) == 2
    said = capsys.readouterr().err
    assert f"run_sample.py: {TRAIN_IDS[0]}: the edges or displacements are not finite; " in said
    assert str(work / "sess" / WEIGHTS["irn"]) in said
    assert not [p for folder in folders for p in (work / "result" / folder).glob("sample*")]


def test_branch_that_overflows_makes_no_cams(
    sample: Path, finished: Path, tmp_path: Path, capsys: Capture
) -> None:
    work = _overflowing(finished, tmp_path / "work", "transformer", "cam")
    assert run(sample, work, "--steps", "make_cam") == 2
    said = capsys.readouterr().err
    assert f"run_sample.py: {TRAIN_IDS[0]}: the class activation maps are not finite; " in said
    assert str(work / "sess" / WEIGHTS["transformer"]) in said
    assert not list((work / "result" / "cam").glob("*.npz"))


@pytest.mark.parametrize(
    ("step", "options", "left"),
    [
        ("train_cam", {"deit_learning_rate": 1e30, "cam_num_epoches": 1}, "deits_cam.pth"),
        ("train_irn", {"irn_learning_rate": 1e30, "irn_num_epoches": 1}, "res50_irn.pth"),
    ],
)
def test_training_that_diverges_in_its_last_update_writes_no_weights(
    sample: Path,
    finished: Path,
    tmp_path: Path,
    capsys: Capture,
    step: str,
    options: dict,
    left: str,
) -> None:
    work = copy_of(finished, tmp_path / "work", without=["*.pth", "*.pth.json"])
    one_step = {"cam_batch_size": len(TRAIN_IDS), "irn_batch_size": len(TRAIN_IDS)}
    assert run(sample, work, "--steps", step, "--force", **one_step, **options) == 2
    assert "not finite" in capsys.readouterr().err
    assert not (work / "sess" / left).exists()
