"""Evaluating and drawing a checkpoint: thresholds in one pass, boxed pictures, the figure."""

import html
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import get_worker_info
from wsol_runs import (
    CLASSES,
    SIDE,
    SMALL,
    TEST_PER_CLASS,
    TRAIN_PER_CLASS,
    config_of,
    epoch_lines,
    pairs,
    results,
    run_tool,
)

from misc.checkpoint import load_checkpoint, save_checkpoint
from misc.files import read_json
from wsol import evaluation, figure, pictures, testing
from wsol.config import Paths
from wsol.evaluation import evaluate
from wsol.figure import ESTIMATED_COLOUR, TRUE_COLOUR, save_boxed, with_boxes
from wsol.localization import boxes_at
from wsol.model import Localisation, Networks, Views
from wsol.pictures import ImageSet
from wsol.source import open_pictures
from wsol.tools_cam import test_cam, visualize

test_cam.__test__ = False
TEST_COUNT, TRAIN_COUNT = CLASSES * TEST_PER_CLASS, CLASSES * TRAIN_PER_CLASS


def arguments(birds: Path, folder: Path, *flags: str, **values: object) -> list[str]:
    """Arguments of test_cam.py or visualize.py for the tiny run in `folder`."""
    options = ["--config_file", str(SMALL), "--device", "cpu", *flags]
    return [*options, *pairs(birds, folder, **values)]


def evaluated(birds: Path, folder: Path, *flags: str, **values: object) -> dict:
    """What test_cam.py writes."""
    assert run_tool(test_cam, arguments(birds, folder, *flags, **values)) == 0
    split = values.get("TEST__SPLIT", "test")
    return read_json(Paths(folder).evaluation(split))


def test_last_epoch_is_scored_as_in_training(birds: Path, trained_copy: Path):
    found = evaluated(birds, trained_copy, "--lr", "5e-5")
    last = results(trained_copy)["results"]["last"]
    assert found["scores"].items() <= last["scores"].items()
    assert found["weights"]["epoch"] == last["epoch"]
    assert found["weights"]["chosen"].startswith("last epoch")
    assert (found["split"], found["pictures"]["count"]) == ("test", TEST_COUNT)
    assert found["seconds_per_picture"] > 0


def test_thresholds_are_scored_in_one_pass_of_maps(
    birds: Path, trained_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    calls, localise = [], evaluation.localise

    def counted(networks: Networks, images: torch.Tensor, *more: object) -> Localisation:
        calls.append(len(images))
        return localise(networks, images, *more)

    monkeypatch.setattr(evaluation, "localise", counted)
    found = evaluated(
        birds, trained_copy, TEST__SPLIT="train", MODEL__CAM_THR=0.3, TEST__THRESHOLDS="0.1,0.5"
    )
    assert sum(calls) == TRAIN_COUNT
    assert [row["threshold"] for row in found["thresholds"]] == [0.1, 0.3, 0.5]
    assert found["thresholds"][1]["gt_known"] == found["scores"]["gt_known"]
    alone = evaluated(
        birds, trained_copy, TEST__SPLIT="train", MODEL__CAM_THR=0.5, TEST__THRESHOLDS="[]"
    )
    assert alone["scores"]["loc_top5"] == found["thresholds"][2]["loc_top5"]
    said = capsys.readouterr().out
    best = float(said.partition("best GT-known on train pictures: MODEL.CAM_THR ")[2].split()[0])
    by_threshold = {row["threshold"]: row["gt_known"] for row in found["thresholds"]}
    assert by_threshold[best] == max(by_threshold.values())


def test_replaced_pictures_have_another_fingerprint(
    birds: Path, trained_copy: Path, tmp_path: Path
):
    copy = Path(shutil.copytree(birds, tmp_path / "CUB"))
    before, same = evaluated(birds, trained_copy), evaluated(copy, trained_copy)
    for picture in (copy / "images").rglob("*.jpg"):
        with Image.open(picture) as image:
            size = image.size
        Image.new("RGB", size, "red").save(picture)
    after = evaluated(copy, trained_copy)
    assert before["pictures"] == same["pictures"]
    assert before["pictures"]["sha256"] != after["pictures"]["sha256"]


@pytest.mark.parametrize(("tool", "user"), [(test_cam, evaluation), (visualize, figure)])
@pytest.mark.parametrize("part", ["logits", "cams"])
def test_scores_that_are_not_finite_are_refused(
    birds: Path,
    trained_copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    tool: Any,
    user: Any,
    part: str,
):
    localise = evaluation.localise

    def spoiled(*arguments: object) -> Localisation:
        found = localise(*arguments)
        getattr(found, part)[0].view(-1)[0] = float("nan")
        return found

    monkeypatch.setattr(user, "localise", spoiled)
    assert run_tool(tool, arguments(birds, trained_copy)) == 2
    error = capsys.readouterr().err
    assert "are not finite, so the weights are of no use" in error
    assert "/images/" in error
    paths = Paths(trained_copy)
    assert not (paths.evaluation("test").exists() or paths.figure.exists())


def test_a_killed_loader_process_is_one_sentence(
    birds: Path,
    trained_copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    def die(_: object) -> None:
        assert get_worker_info() is not None
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(pictures, "read_image", die)
    assert run_tool(test_cam, arguments(birds, trained_copy, BASIC__NUM_WORKERS=1)) == 2
    error = capsys.readouterr().err
    assert "a process that loads pictures ended" in error
    assert "BASIC.NUM_WORKERS 0" in error
    assert "Traceback" not in error


def test_a_picture_that_vanishes_is_one_sentence(
    birds: Path,
    trained_copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    copy = Path(shutil.copytree(birds, tmp_path / "CUB"))
    opened = testing.open_pictures

    def open_and_lose(*arguments: object) -> ImageSet:
        image_set = opened(*arguments)
        image_set.test[0].path.unlink()
        return image_set

    monkeypatch.setattr(testing, "open_pictures", open_and_lose)
    for workers in (0, 1):
        assert run_tool(test_cam, arguments(copy, trained_copy, BASIC__NUM_WORKERS=workers)) == 2
        shutil.copytree(birds, copy, dirs_exist_ok=True)
        error = capsys.readouterr().err
        assert str(opened(config_of(copy, trained_copy)).test[0].path) in error
        assert "Traceback" not in error


@pytest.mark.parametrize("name", ["figure", "figure.jpg", "figure.png/"])
def test_figures_are_named_as_png(
    birds: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str
):
    with pytest.raises(SystemExit, match="2"):
        run_tool(visualize, arguments(birds, trained, "--output", f"{tmp_path}/{name}x"))
    assert "must end in .png" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_home_of_nobody_is_one_sentence(birds: Path, trained: Path, capsys: pytest.CaptureFixture):
    flags = ("--weights", "~no-such-user/model.pth")
    assert run_tool(test_cam, arguments(birds, trained, *flags)) == 2
    error = capsys.readouterr().err
    assert "there is no user no-such-user here" in error and error.count("\n") == 1


def test_table_of_test_pictures_warns_of_tuning(
    birds: Path, trained_copy: Path, capsys: pytest.CaptureFixture
):
    evaluated(birds, trained_copy)
    said = capsys.readouterr().out
    assert "tuned on test boxes; choose by TEST.SPLIT train" in said
    assert "best GT-known" not in said


def test_page_shows_scores_and_pictures_the_worst_box_first(birds: Path, trained_copy: Path):
    found = evaluated(birds, trained_copy, MODEL__CAM_THR=0.5)
    assert found["scores"]["gt_known"] > 0
    text = Paths(trained_copy).page("test").read_text(encoding="utf-8")
    seen = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())
    assert f"GT-known {found['scores']['gt_known']:.1f} %" in seen
    kind = max(("wrong", "part", "more", "right"), key=lambda kind: found["scores"][kind])
    assert f" {kind} {found['scores'][kind]:.1f}" in seen
    for row in found["thresholds"]:
        cells = " ".join(f"{row[name]:.1f}" for name in ("loc_top1", "loc_top5", "gt_known"))
        assert f"{row['threshold']:g} {cells}" in seen
    first, *_, last = (row["loss_cnn"] for row in epoch_lines(trained_copy))
    assert f"loss cnn {first:.3g} to {last:.3g} over epochs" in seen
    shares = re.findall(r"IoU with the true box</dt><dd>([\d.]+) %", text)
    assert len(shares) == TEST_COUNT
    assert [float(share) for share in shares] == sorted(map(float, shares))
    at_half = sum(float(share) >= 50 for share in shares)  # what GT-known counts
    assert found["scores"]["gt_known"] == pytest.approx(100 * at_half / TEST_COUNT)
    assert len(re.findall(r'alt="boxes of', text)) == TEST_COUNT
    assert len(re.findall(r'alt="CAM of', text)) == 2 * TEST_COUNT  # the map, and the boxes on it


def test_page_of_few_pictures_names_the_others(birds: Path, trained_copy: Path):
    evaluated(birds, trained_copy, TEST__REPORT_NUM=2, TEST__SPLIT="train")
    text = Paths(trained_copy).page("train").read_text(encoding="utf-8")
    shown = re.findall(r'data-name="([^"]*)"', text)
    assert len(shown) == 2
    assert f"{TRAIN_COUNT - 2} pictures are not shown (TEST.REPORT_NUM)" in text
    evaluated(birds, trained_copy, TEST__REPORT_NUM=0)
    assert not Paths(trained_copy).page("test").exists()


def test_page_without_boxes_or_log_of_the_training(
    birds: Path, tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture
):
    for split in ("train", "test"):
        shutil.copytree(birds / "images", tmp_path / "data" / split)
    weights = shutil.copy(trained / "model_last.pth", tmp_path)
    values = {"DATA__DATASET": "FOLDER"}
    evaluated(tmp_path / "data", tmp_path / "run", "--weights", str(weights), **values)
    text = Paths(tmp_path / "run").page("test").read_text(encoding="utf-8")
    assert "IoU with the true box" not in text and "by threshold" not in text
    assert "The training of these weights has no log." in text
    assert 'alt="CAM of' in text


def test_a_damaged_log_of_the_training_is_named_when_the_scores_are_written(
    birds: Path, trained_copy: Path, capsys: pytest.CaptureFixture
):
    paths = Paths(trained_copy)
    for content in ("no json\n", "[1]\n", '{"loss_cnn": "low"}\n'):
        paths.epoch_log.write_text(content)
        paths.evaluation("test").unlink(missing_ok=True)
        assert run_tool(test_cam, arguments(birds, trained_copy)) == 2
        assert f"{paths.epoch_log} is not the log of a training" in capsys.readouterr().err
        assert paths.evaluation("test").exists()


def test_maps_of_the_true_object_localise_perfectly(
    birds: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
):
    config = config_of(birds, trained)
    pictures = open_pictures(config).test

    def perfect(_: Networks, images: torch.Tensor, classes: torch.Tensor, __: str) -> Localisation:
        cams = torch.zeros(len(images), SIDE, SIDE)
        for cam, (x1, y1, x2, y2) in zip(cams, boxes.pop(0), strict=True):
            cam[y1:y2, x1:x2] = 1.0
        return Localisation(torch.eye(CLASSES)[classes], cams)

    from wsol.source import whole_pictures

    truths = [item["box"] for item in whole_pictures(config, pictures)]
    size = config.TEST.BATCH_SIZE
    boxes = [truths[start : start + size] for start in range(0, len(truths), size)]
    monkeypatch.setattr(evaluation, "localise", perfect)
    none = Networks(None, None)
    found = evaluate(none, pictures, config, torch.device("cpu"), [0.5]).scores.numbers()
    assert [found[name] for name in ("cls_top1", "loc_top1", "gt_known", "right")] == [100.0] * 4


def test_boxed_pictures_are_written_when_asked_for(birds: Path, trained_copy: Path):
    folder = Paths(trained_copy).boxed_images("test")
    evaluated(birds, trained_copy)
    assert not folder.exists()
    evaluated(birds, trained_copy, TEST__SAVE_BOXED_IMAGE=True)
    written = sorted(folder.rglob("*.jpg"))
    assert len(written) == TEST_COUNT
    assert {path.parent.name for path in written} == {p.name for p in (birds / "images").iterdir()}
    assert np.asarray(Image.open(written[0])).shape == (SIDE, SIDE, 3)


def test_boxes_are_drawn_in_the_published_colours(tmp_path: Path):
    photo, truth = np.full((64, 64, 3), 120, np.uint8), np.array([5, 6, 30, 40])
    estimated = np.array([20, 20, 64, 64])  # ends behind the last pixel
    drawn = with_boxes(photo, truth, estimated)
    assert tuple(drawn[6, 5]) == TRUE_COLOUR == (255, 0, 0)
    assert tuple(drawn[63, 63]) == tuple(drawn[20, 40]) == ESTIMATED_COLOUR == (0, 255, 0)
    assert (photo == 120).all()
    assert (with_boxes(photo, None, estimated)[6, 5] == 120).all()
    cam = np.zeros((4, 4), np.float32)
    cam[:2, :2] = 1
    save_boxed(tmp_path / "a/b.jpg", photo, cam, truth, boxes_at(cam, [0.5], 64)[0])
    picture = np.asarray(Image.open(tmp_path / "a/b.jpg")).astype(int)
    hot, cold = picture[15, 15], picture[55, 55]
    assert hot[0] > hot[2]  # red over the object, blue elsewhere
    assert cold[2] > cold[0]


@pytest.mark.parametrize("source", ["cnn", "mean"])
def test_other_maps_can_be_evaluated(birds: Path, trained_copy: Path, source: str):
    found = evaluated(birds, trained_copy, MODEL__CAM=source)
    assert found["arguments"]["MODEL.CAM"] == source
    assert 0 <= found["scores"]["gt_known"] <= 100


def test_figure_shows_the_pictures(birds: Path, trained: Path, tmp_path: Path):
    target = tmp_path / "figure.png"
    flags = ("--num", "4", "--output", str(target))
    assert run_tool(visualize, arguments(birds, trained, *flags)) == 0
    few = tmp_path / "few.png"
    flags = ("--num", "2", "--output", str(few), "--weights", str(trained / "model_best.pth"))
    assert run_tool(visualize, arguments(birds, trained, *flags, TEST__SPLIT="train")) == 0
    large, small = (Image.open(path) for path in (target, few))
    assert large.width == small.width
    assert large.height > 1.5 * small.height


def test_figure_shows_every_map_under_its_title(
    birds: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each map is given one hot corner, in which its cell is red and in the others blue."""
    corners = {"cnn": (0, 0), "class_map": (0, -1), "attention": (-1, 0), "fused": (-1, -1)}
    maps, drawn = {name: torch.zeros(1, 4, 4) for name in corners}, {}
    for name, corner in corners.items():
        maps[name][0][corner] = 1
    monkeypatch.setattr(figure, "views", lambda *_: (Views(**maps), {}))
    monkeypatch.setattr(
        figure, "save_figure", lambda _, rows, columns, __: drawn.update(rows=rows, columns=columns)
    )
    flags = ("--num", "2", "--output", str(tmp_path / "figure.png"))
    assert run_tool(visualize, arguments(birds, trained, *flags)) == 0
    assert drawn["columns"][-3:] == ("CNN", "transformer", "CRT: maps x attention")
    titles = ("CNN", "transformer", "attention", "CRT: maps x attention")
    assert len(drawn["rows"]) == 2
    for row in drawn["rows"]:
        assert set(row.cells) == set(drawn["columns"]) == {*titles, "true red, found green"}
        for title, hot in zip(titles, corners.values(), strict=True):
            for corner in corners.values():
                red, _, blue = row.cells[title][corner].astype(int)
                assert (red > blue) == (corner == hot), (title, corner)


def test_figure_leaves_out_a_network_that_is_not_there(birds: Path, trained: Path, tmp_path: Path):
    state = load_checkpoint(trained / "model_last.pth")
    del state["cnn_state_dict"]
    save_checkpoint(tmp_path / "transformer.pth", state)
    target = tmp_path / "figure.png"
    flags = ("--output", str(target), "--weights", str(tmp_path / "transformer.pth"), "--num", "1")
    assert run_tool(visualize, arguments(birds, trained, *flags)) == 0
    full = tmp_path / "full.png"
    flags = ("--num", "1", "--output", str(full))
    assert run_tool(visualize, arguments(birds, trained, *flags)) == 0
    assert Image.open(target).width < Image.open(full).width


def test_pictures_without_boxes_are_classified_alone(
    birds: Path, tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture
):
    folders = tmp_path / "folders"
    for split in ("train", "test"):
        (folders / split).mkdir(parents=True)
        for source in (birds / "images").iterdir():
            (folders / split / source.name).symlink_to(source)
    weights = str(trained / "model_last.pth")
    found = evaluated(folders, tmp_path, "--weights", weights, DATA__DATASET="FOLDER")
    assert set(found["scores"]) == {"cls_top1", "cls_top5"}
    assert found["thresholds"] == []
    assert "have no boxes" in capsys.readouterr().out
