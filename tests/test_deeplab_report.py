"""`report`: everything that was scored in one table, and a figure."""

import shutil
from pathlib import Path

import pytest
from deeplab_runs import copy_of, finished_run, log_of, paths_of, run
from pipeline import TRAIN_IDS

from misc.files import read_json
from misc.maps_io import read_image


@pytest.fixture
def scored(sample: Path, tmp_path: Path) -> Path:
    """Folder of a finished run to change."""
    return copy_of(finished_run(sample), tmp_path / "run", "scores")


def test_report_collects_all_scores(sample: Path, scored: Path) -> None:
    assert run("report", sample, scored) == 0
    paths, text = paths_of(sample, scored), log_of(sample, scored, "report")
    content = read_json(paths.report_path)
    scores = {
        name: read_json(paths.scores_path("val", crf=crf))["Mean IoU"]
        for name, crf in (("DeepLab", False), ("DeepLab + CRF", True))
    }
    constant = content["constant_background"]["Mean IoU"]
    assert {name: one["Mean IoU"] for name, one in content["scores"].items()} == scores
    assert content["training_labels"]["Mean IoU"] == 1  # ground truth stands in for them
    assert content["training_labels"]["pictures"] == len(TRAIN_IDS)
    for name, value in scores.items():
        assert content["margin_over_constant_background"][name] == pytest.approx(value - constant)
        assert f"{name}: {100 * (value - constant):+.2f} points of mean IoU" in text
    assert "training labels  background  DeepLab  DeepLab + CRF" in text
    assert "which was only scored, never trained on" in text
    assert "random weights, so no pixel label was ever seen" in text


def test_figure_shows_pictures_with_their_label_maps(sample: Path, scored: Path) -> None:
    assert run("report", sample, scored, "--figure-num", "2") == 0
    paths = paths_of(sample, scored)
    height, width = read_image(paths.figure_path).shape[:2]
    assert "shows 2 of 2 pictures" in log_of(sample, scored, "report")
    assert width > height > 200
    paths.figure_path.unlink()
    assert run("report", sample, scored, "--figure-num", "0") == 0
    assert not paths.figure_path.exists()


def test_report_goes_without_crf_and_without_training_labels(
    sample: Path, scored: Path, tmp_path: Path
) -> None:
    paths = paths_of(sample, scored)
    paths.scores_path("val", crf=True).unlink()
    shutil.rmtree(paths.prediction_dir("val", crf=True))
    values = {"DATASET.TRAIN_LABELS": tmp_path}
    assert run("report", sample, scored, values=values) == 0
    content = read_json(paths.report_path)
    assert content["scores"].keys() == {"DeepLab"} and content["training_labels"] is None
    assert "`crf --split val` makes them" in log_of(sample, scored, "report")


def test_missing_scores_are_named(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run("report", sample, tmp_path) == 2
    error = capsys.readouterr().err
    assert "scores.json does not exist; run `test --split val` first" in error


def test_scores_of_two_models_are_not_mixed(
    sample: Path, scored: Path, capsys: pytest.CaptureFixture
) -> None:
    path = paths_of(sample, scored).scores_path("val")
    path.write_text(path.read_text().replace('"sha256": "', '"sha256": "0'))
    assert run("report", sample, scored) == 2
    assert "run `crf --split val --overwrite`" in capsys.readouterr().err
