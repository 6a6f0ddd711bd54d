"""What stops a training of DeepLab before it starts, and what it never removes."""

import shutil
from pathlib import Path

import pytest
from deeplab_runs import (
    copy_of,
    finished_run,
    paths_of,
    run,
)

from deeplab.config import FINAL
from misc.provenance import record_path


def test_checkpoints_of_others_outlive_overwrite(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paths = paths_of(sample, copy_of(finished_run(sample), tmp_path, "models"))
    own = paths.models_dir / "checkpoint_coco.pth"
    own.write_bytes(b"of the user")
    values = {"SOLVER.ITER_MAX": 2, "SOLVER.ITER_SAVE": 2}
    assert run("train", sample, tmp_path, "--overwrite", values=values) == 0
    assert own.read_bytes() == b"of the user"
    assert not paths.checkpoint(3).exists() and paths.checkpoint(2).exists()
    record_path(paths.checkpoint(2)).unlink()
    before = sorted(paths.models_dir.iterdir())
    assert run("train", sample, tmp_path, "--overwrite", values=values) == 2
    assert "checkpoint_2.pth has no record of what made it" in capsys.readouterr().err
    assert sorted(paths.models_dir.iterdir()) == before


@pytest.mark.parametrize(
    "values",
    [
        {"MODEL.INIT_MODEL": "broken.pth"},
        {"MODEL.BACKBONE": "resnet9000"},
        {"DATASET.SPLIT.TRAIN": "nolist"},
        {"DATASET.ROOT": "nowhere"},
    ],
)
def test_nothing_is_removed_for_a_training_that_cannot_start(
    sample: Path, tmp_path: Path, values: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = paths_of(sample, copy_of(finished_run(sample), tmp_path / "run", "models", "logs"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.pth").write_bytes(b"half a file")
    before = {path for path in (tmp_path / "run").rglob("*")}
    assert run("train", sample, tmp_path / "run", "--overwrite", values=values) == 2
    assert {path for path in before if path.exists()} == before
    assert paths.checkpoint(FINAL).is_file()


def test_missing_labels_are_all_told_at_once(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    labels = Path(shutil.copytree(sample / "SegmentationClass", tmp_path / "labels"))
    missing = ["sample_000001", "sample_000004"]
    for name in missing:
        (labels / f"{name}.png").unlink()
    paths = paths_of(sample, copy_of(finished_run(sample), tmp_path, "models"))
    values = {"DATASET.TRAIN_LABELS": labels}
    assert run("train", sample, tmp_path, "--overwrite", values=values) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in missing) and "Traceback" not in error
    assert paths.checkpoint(FINAL).is_file()  # nothing is removed for a run that cannot start


def test_missing_first_weights_are_named(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    values = {"MODEL.INIT_MODEL": tmp_path / "coco.pth"}
    assert run("train", sample, tmp_path, values=values) == 2
    error = capsys.readouterr().err
    assert f"MODEL.INIT_MODEL is {tmp_path / 'coco.pth'}, which does not exist" in error
