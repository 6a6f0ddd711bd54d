"""`report`: everything that was scored in one table, and a figure."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from deeplab_runs import config_of, copy_of, finished_run, log_of, paths_of, run
from pipeline import TRAIN_IDS, VAL_IDS, disturb_weights

from deeplab.config import FINAL
from deeplab.report import score_training_labels
from misc.files import read_json
from misc.maps_io import read_image, write_label


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
    assert "so no pixel label was ever seen" in text


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


def test_scores_of_weights_that_were_replaced_are_refused(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = copy_of(finished_run(sample), tmp_path, "models")
    assert run("test", sample, folder) == 0 == run("report", sample, folder)
    model = paths_of(sample, folder).checkpoint(FINAL)
    disturb_weights(model)
    assert run("report", sample, folder) == 2
    error = capsys.readouterr().err
    assert str(model) in error and "run `test --split val --overwrite`" in error
    model.unlink()  # nothing left to compare with
    assert run("report", sample, folder) == 0


def test_report_of_another_split_has_files_of_its_own(sample: Path, tmp_path: Path) -> None:
    folder = copy_of(finished_run(sample), tmp_path, "models", "scores")
    flags = ("--figure-num", "1")
    assert run("report", sample, folder, *flags) == 0
    paths = paths_of(sample, folder)
    before = paths.report_path.read_bytes(), paths.figure_path.read_bytes()
    assert run("test", sample, folder, "--split", "train") == 0
    assert run("report", sample, folder, "--split", "train", *flags) == 0
    assert (paths.report_path.read_bytes(), paths.figure_path.read_bytes()) == before
    assert read_json(paths.report_path.with_name("report_train.json"))["split"] == "train"
    assert paths.figure_path.with_name("figure_train.png").is_file()


def test_training_labels_in_subfolders_are_scored(sample: Path, tmp_path: Path) -> None:
    root = tmp_path / "voc"
    ids = [f"sub{number}/{image_id}" for number, image_id in enumerate(TRAIN_IDS)]
    for kind, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        for image_id in ids:
            target = root / kind / f"{image_id}.{suffix}"
            target.parent.mkdir(parents=True)
            shutil.copy(sample / kind / f"{target.name}", target)
    (tmp_path / "list.txt").write_text("\n".join(ids))
    values = {
        "DATASET.ROOT": root,
        "DATASET.TRAIN_LABELS": root / "SegmentationClass",
        "DATASET.SPLIT.TRAIN": tmp_path / "list.txt",
    }
    scores = score_training_labels(config_of(sample, tmp_path, values))
    assert scores is not None and scores["Mean IoU"] == 1 and scores["pictures"] == len(ids)


def test_ground_truth_without_labelled_pixel_has_no_margin(sample: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(sample, tmp_path / "voc"))
    for image_id in VAL_IDS:
        path = root / "SegmentationClass" / f"{image_id}.png"
        write_label(path, np.full(read_image(path).shape[:2], 255, np.uint8))
    folder = copy_of(finished_run(sample), tmp_path / "run", "models")
    assert run("test", root, folder) == 0 == run("report", root, folder)
    content = read_json(paths_of(root, folder).report_path)
    assert content["margin_over_constant_background"] == {"DeepLab": None}
    assert "has no labelled pixel" in log_of(root, folder, "report")


def without(*keys: str) -> Callable[[dict], dict]:
    def change(scores: dict) -> dict:
        inner = scores
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return scores

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda scores: {},
        lambda scores: [],
        lambda scores: "none",
        lambda scores: {**scores, "Mean IoU": "high"},
        lambda scores: {**scores, "Class IoU": {"background": [1]}},
        lambda scores: {**scores, "Class IoU": [0.5]},
        lambda scores: {**scores, "model": "checkpoint.pth"},
        lambda scores: {**scores, "initialisation": {}},
        without("model", "sha256"),
        without("model"),
        without("initialisation"),
        without("Mean IoU"),
        without("Class IoU"),
        without("Constant Background"),
        without("Constant Background", "Mean IoU"),
    ],
)
@pytest.mark.parametrize("crf", [False, True])
def test_files_that_hold_no_scores_are_named(
    sample: Path,
    scored: Path,
    change: Callable[[dict], object],
    crf: bool,
    capsys: pytest.CaptureFixture,
) -> None:
    path = paths_of(sample, scored).scores_path("val", crf)
    path.write_text(json.dumps(change(read_json(path))))
    assert run("report", sample, scored) == 2
    assert f"{path} does not hold the scores of `test` or `crf`" in capsys.readouterr().err
