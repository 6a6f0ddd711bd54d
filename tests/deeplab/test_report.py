"""`report`: everything that was scored in one table, and a figure."""

import html
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from deeplab_runs import config_of, copy_of, finished_run, log_of, paths_of, run
from pipeline import TRAIN_IDS, VAL_IDS, disturb_weights

from deeplab.config import FINAL
from deeplab.report import draw_picture, score_training_labels
from misc.files import read_json
from misc.maps_io import read_image, read_label, write_label


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


def page_of(path: Path) -> tuple[str, list[str]]:
    """What a reader sees of a page in one line, and the alternative texts of its pictures."""
    text = path.read_text(encoding="utf-8")
    without = re.sub(r"<(style|script)>.*?</\1>", " ", text, flags=re.DOTALL)
    seen = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", without)).split())
    return seen, re.findall(r'alt="([^"]*)"', text)


def test_page_shows_scores_the_loss_and_every_label_map(sample: Path, scored: Path) -> None:
    models = finished_run(sample) / "models"
    shutil.copytree(models, scored / "models")
    assert run("report", sample, scored) == 0
    paths = paths_of(sample, scored)
    seen, alts = page_of(paths.page_path)
    for name, crf in (("DeepLab", False), ("DeepLab + CRF", True)):
        score = read_json(paths.scores_path("val", crf=crf))
        assert f"mean IoU, {name} {100 * score['Mean IoU']:.1f} %" in seen
    history = read_json(f"{paths.checkpoint(FINAL)}.json")["facts"]["history"]
    assert f"loss {history[0]['loss']:.3g} to {history[-1]['loss']:.3g} over iterations" in seen
    assert "MODEL.BACKBONE test_resnet" in seen  # differs from the published configuration
    titles = ("truth", "DeepLab", "DeepLab + CRF")
    assert sorted(alts) == sorted(
        [f"photo {i}" for i in VAL_IDS]
        + [f"{'ground truth' if t == 'truth' else t} of {i}" for t in titles for i in VAL_IDS]
        + [f"pseudo mask of {i}" for i in VAL_IDS]
    )
    assert "2 of 2 pictures" in log_of(sample, scored, "report").splitlines()[-1]


def test_worst_prediction_comes_first(sample: Path, scored: Path) -> None:
    """As after a prediction that equals the truth, and another without anything in common."""
    folder = paths_of(sample, scored).prediction_dir("val", crf=True)
    truths = {i: read_label(sample / "SegmentationClass" / f"{i}.png") for i in VAL_IDS}
    write_label(folder / f"{VAL_IDS[0]}.png", truths[VAL_IDS[0]])
    write_label(folder / f"{VAL_IDS[1]}.png", np.zeros_like(truths[VAL_IDS[1]]))
    assert run("report", sample, scored, "--figure-num", "0") == 0
    text = paths_of(sample, scored).page_path.read_text(encoding="utf-8")
    assert re.findall(r'data-name="([^"]*)"', text) == list(reversed(VAL_IDS))
    assert re.findall(r"prediction and truth disagree</dt><dd>([^<]*)<", text) == ["100 %", "0 %"]


def test_refined_maps_older_than_the_prediction_are_left_out(sample: Path, scored: Path) -> None:
    plain, refined = (
        paths_of(sample, scored).prediction_dir("val", crf) / f"{VAL_IDS[0]}.png"
        for crf in (False, True)
    )
    os.utime(refined, ns=(plain.stat().st_mtime_ns - 1,) * 2)
    config = config_of(sample, scored)
    assert "DeepLab + CRF" not in draw_picture(config, "val", VAL_IDS[0]).cells
    assert "DeepLab + CRF" in draw_picture(config, "val", VAL_IDS[1]).cells
    assert run("report", sample, scored) == 0
    _, alts = page_of(paths_of(sample, scored).page_path)
    assert [alt for alt in alts if "CRF" in alt] == [f"DeepLab + CRF of {VAL_IDS[1]}"]


def test_number_of_pictures_of_the_page(
    sample: Path, scored: Path, capsys: pytest.CaptureFixture
) -> None:
    paths = paths_of(sample, scored)
    assert run("report", sample, scored, "--report-num", "1") == 0
    seen, alts = page_of(paths.page_path)
    assert f"1 pictures are not shown (--report-num) {VAL_IDS[1]}" in seen
    assert not [alt for alt in alts if VAL_IDS[1] in alt]
    paths.page_path.unlink()
    assert run("report", sample, scored, "--report-num", "0") == 0
    assert not paths.page_path.exists()
    assert run("report", sample, scored, "--report-num", "-1") == 2
    assert "--report-num -1 is no number of pictures" in capsys.readouterr().err


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
