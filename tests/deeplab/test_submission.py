"""The archive for the VOC evaluation server, and splits without ground truth."""

import os
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from deeplab_runs import config_of, copy_of, finished_run, paths_of, run
from PIL import Image
from pipeline import VAL_IDS, write_list

from deeplab.config import FINAL
from deeplab.submission import FOLDER, write_submission
from misc.errors import UserError
from misc.maps_io import write_label

NAMES = ("background", "a", "b")


@pytest.fixture
def tested(sample: Path, tmp_path: Path) -> Path:
    """Folder of a finished run to change."""
    return copy_of(finished_run(sample), tmp_path / "run")


@pytest.fixture
def unlabelled(sample: Path, tmp_path: Path) -> dict[str, object]:
    """Values for a test split without ground truth."""
    root = tmp_path / "unlabelled"
    shutil.copytree(sample / "JPEGImages", root / "JPEGImages")
    return {"DATASET.ROOT": root, "DATASET.SPLIT.TEST": write_list(tmp_path / "t.txt", VAL_IDS)}


def test_split_without_ground_truth_becomes_an_archive(
    sample: Path, tested: Path, unlabelled: dict[str, object]
) -> None:
    assert run("test", sample, tested, "--split", "test", values=unlabelled) == 0
    paths = paths_of(sample, tested).__class__(config_of(sample, tested, unlabelled))
    assert not paths.scores_path("test").exists()
    archive = paths.submission_path("test")
    with tarfile.open(archive, "r:gz") as stream:
        assert stream.getnames() == [f"{FOLDER}/{image_id}.png" for image_id in VAL_IDS]
        for image_id in VAL_IDS:
            content = stream.extractfile(f"{FOLDER}/{image_id}.png").read()
            assert content == (paths.prediction_dir("test") / f"{image_id}.png").read_bytes()
    before = archive.read_bytes()
    assert run("test", sample, tested, "--split", "test", "--overwrite", values=unlabelled) == 0
    assert archive.read_bytes() == before
    assert run("crf", sample, tested, "--split", "test", values=unlabelled) == 0
    assert paths.submission_path("test", crf=True).is_file()


def test_test_split_with_ground_truth_is_scored_and_packed(sample: Path, tested: Path) -> None:
    values = {"DATASET.SPLIT.TEST": "val", "EXP.ID": "other"}
    model = paths_of(sample, tested).checkpoint(FINAL)
    flags = ("--split", "test", "-m", str(model))
    assert run("test", sample, tested, *flags, values=values) == 0
    made = {path.name for path in (tested / "scores/voc12/other/val").iterdir()}
    assert made == {"predictions", "scores.json", "submission.tar.gz"}


def test_validation_without_ground_truth_is_refused(
    sample: Path, tested: Path, unlabelled: dict[str, object], capsys: pytest.CaptureFixture
) -> None:
    values = {**unlabelled, "DATASET.SPLIT.VAL": unlabelled["DATASET.SPLIT.TEST"]}
    assert run("test", sample, tested, values=values) == 2
    error = capsys.readouterr().err
    assert "missing ground truth" in error and VAL_IDS[0] in error


@pytest.fixture
def prediction(tmp_path: Path) -> tuple[Path, dict[str, Path]]:
    """A folder with one prediction, and its picture."""
    Image.new("RGB", (4, 3)).save(tmp_path / "photo.jpg")
    write_label(tmp_path / "predictions/a.png", np.zeros((3, 4), np.uint8))
    return tmp_path / "predictions", {"a": tmp_path / "photo.jpg"}


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.full((3, 4), 3), "has labels \\[3\\]; the server accepts 0..2"),
        (np.zeros((4, 3)), "is \\(4, 3\\) \\(height, width\\) but its picture"),
    ],
)
def test_unusable_predictions_are_not_packed(
    tmp_path: Path, prediction: tuple[Path, dict[str, Path]], label: np.ndarray, message: str
) -> None:
    folder, images = prediction
    write_submission(tmp_path / "good.tar.gz", folder, images, len(NAMES))
    write_label(folder / "a.png", label.astype(np.uint8))
    with pytest.raises(UserError, match=message):
        write_submission(tmp_path / "bad.tar.gz", folder, images, len(NAMES))
    assert {path.name for path in tmp_path.glob("*.tar.gz")} == {"good.tar.gz"}
    assert not list(tmp_path.glob(".tmp-*"))


def test_archive_does_not_depend_on_times(
    tmp_path: Path, prediction: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, images = prediction
    write_submission(tmp_path / "one.tar.gz", folder, images, len(NAMES))
    os.utime(folder / "a.png", (1, 1))
    monkeypatch.setattr(time, "time", lambda: 1e9)
    write_submission(tmp_path / "two.tar.gz", folder, images, len(NAMES))
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()
