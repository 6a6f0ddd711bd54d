"""`test`: logits, predictions and scores; going on, and what is never removed."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from deeplab_runs import (
    config_of,
    copy_of,
    finished_run,
    log_of,
    paths_of,
    run,
)
from PIL import Image
from pipeline import TRAIN_IDS, VAL_IDS, disturb_weights

from deeplab import inference, logits, scoring
from deeplab.config import FINAL, class_names
from misc.files import read_json, sha256_file
from misc.maps_io import read_image, read_label, voc_palette, write_label
from misc.metrics import ConfusionMatrix
from misc.provenance import record_path
from voc12.devkit import Devkit

NAMES = ("background", "a", "b")


@pytest.fixture
def tested(sample: Path, tmp_path: Path) -> Path:
    """Folder of a finished run to change."""
    return copy_of(finished_run(sample), tmp_path / "run")


# ------------------------------------------------------------------------------ what it writes


def test_logits_and_predictions_are_those_of_the_network(sample: Path) -> None:
    folder = finished_run(sample)
    config, paths = config_of(sample, folder), paths_of(sample, folder)
    cpu = torch.device("cpu")
    network = inference.load_network(config, paths.checkpoint(FINAL), cpu)
    classes = set()
    for image_id in VAL_IDS:
        image = read_image(Devkit(sample).image_path(image_id))
        bgr = image[..., ::-1] - np.array([104.008, 116.669, 122.675])
        with torch.no_grad():
            scores = network(torch.from_numpy(bgr.transpose(2, 0, 1)[None]).float())
            full = F.interpolate(scores, image.shape[:2], mode="bilinear", align_corners=False)
        stored = np.load(paths.logits_dir("val") / f"{image_id}.npy")
        assert stored.dtype == np.float16
        assert stored.shape == (21, *(-(-side // 16) for side in image.shape[:2]))
        np.testing.assert_allclose(stored, scores[0], rtol=1e-3, atol=1e-4)
        prediction = read_label(paths.prediction_dir("val") / f"{image_id}.png")
        np.testing.assert_array_equal(prediction, full[0].argmax(0))
        classes |= set(np.unique(prediction))
    assert len(classes) > 3  # else the comparison would say little


def test_predictions_carry_the_voc_palette(sample: Path) -> None:
    folder = paths_of(sample, finished_run(sample)).prediction_dir("val")
    with Image.open(folder / f"{VAL_IDS[0]}.png") as image:
        palette = np.reshape(image.getpalette(), (-1, 3))
        assert image.mode == "P"
    np.testing.assert_array_equal(palette, voc_palette()[: len(palette)])


def test_scores_are_those_of_the_predictions(sample: Path) -> None:
    folder = finished_run(sample)
    paths, names = paths_of(sample, folder), class_names(config_of(sample, folder))
    content = read_json(paths.scores_path("val"))
    confusion = np.zeros((21, 21))
    for image_id in VAL_IDS:
        truth = read_label(sample / "SegmentationClass" / f"{image_id}.png")
        prediction = read_label(paths.prediction_dir("val") / f"{image_id}.png")
        for true, given in zip(truth.ravel(), prediction.ravel(), strict=True):
            if true != 255:
                confusion[true, given] += 1
    hits, true, given = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore"):
        iou, accuracy = hits / (true + given - hits), hits / true
    for name, value in zip(names, iou, strict=True):
        expected = None if np.isnan(value) else pytest.approx(value)
        assert content["Class IoU"][name] == expected
    assert content["Mean IoU"] == pytest.approx(iou[true > 0].mean())
    assert content["Pixel Accuracy"] == pytest.approx(hits.sum() / true.sum())
    assert content["Mean Accuracy"] == pytest.approx(accuracy[true > 0].mean())
    weighted = (true / true.sum() * iou)[true > 0].sum()
    assert content["Frequency Weighted IoU"] == pytest.approx(weighted)
    constant = true[0] / true.sum() / np.count_nonzero(true)
    assert content["Constant Background"]["Mean IoU"] == pytest.approx(constant)


def test_scores_tell_what_they_depend_on(sample: Path) -> None:
    folder = finished_run(sample)
    paths = paths_of(sample, folder)
    content, model = read_json(paths.scores_path("val")), paths.checkpoint(FINAL)
    assert content["model"] == {"path": str(model), "sha256": sha256_file(model)}
    assert content["initialisation"]["source"] == "random"
    assert content["training_labels"]["sampled"] == len(TRAIN_IDS)
    assert content["split"] == "val" and content["pictures"] == len(VAL_IDS)
    assert content["list"]["val"]["count"] == len(VAL_IDS)
    assert content["config"]["MODEL.BACKBONE"] == "test_resnet"
    assert content["seconds_per_picture"] > 0 and "torch" in content["versions"]


def test_log_has_the_disk_use_and_a_table_of_classes(sample: Path) -> None:
    folder = finished_run(sample)
    text = log_of(sample, folder, "test")
    content = read_json(paths_of(sample, folder).scores_path("val"))
    assert "the logits of 2 pictures take about 0.0 MB" in text
    table = text[text.index("IoU in %") :]
    assert f"{100 * content['Class IoU']['background']:.2f}" in table
    assert re.search(rf"mean +{100 * content['Mean IoU']:.2f}\n", table)
    assert "aeroplane" not in table or content["Class IoU"]["aeroplane"] is not None
    assert f"{100 * content['Constant Background']['Mean IoU']:.2f} %" in table


def test_scores_equal_the_published_ones(golden) -> None:
    expected = golden("deeplab_scores")
    confusion = ConfusionMatrix(21)
    for prediction, truth in zip(expected["pred"], expected["gt"], strict=True):
        confusion.update(prediction, truth)
    names = [f"class {index}" for index in range(21)]
    scores = scoring.scores_of(confusion, names)
    for name, key in {
        "Pixel Accuracy": "pixel_accuracy",
        "Mean Accuracy": "mean_accuracy",
        "Frequency Weighted IoU": "fw_iou",
        "Mean IoU": "mean_iou",
    }.items():
        assert scores[name] == pytest.approx(float(expected[key]))
    given = [np.nan if scores["Class IoU"][n] is None else scores["Class IoU"][n] for n in names]
    np.testing.assert_allclose(given, expected["class_iou"], rtol=1e-5)


def test_train_split_is_scored_against_ground_truth(sample: Path, tested: Path) -> None:
    assert run("test", sample, tested, "--split", "train") == 0
    content = read_json(paths_of(sample, tested).scores_path("train"))
    assert content["pictures"] == len(TRAIN_IDS) and content["split"] == "train"


# ------------------------------------------------------------------------------ going on, redoing


def times(folder: Path) -> dict[Path, int]:
    """When the outputs of a folder were written."""
    return {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix != ".json"}


def test_finished_pictures_are_kept(sample: Path, tested: Path) -> None:
    paths = paths_of(sample, tested)
    gone = paths.prediction_dir("val") / f"{VAL_IDS[1]}.png"
    content = gone.read_bytes()
    before = {**times(paths.logits_dir("val")), **times(paths.prediction_dir("val"))}
    gone.unlink()
    assert run("test", sample, tested) == 0
    after = {**times(paths.logits_dir("val")), **times(paths.prediction_dir("val"))}
    remade = {path for path in before if after[path] != before[path]}
    logits_dir = paths.logits_dir("val")
    assert remade == {gone, *(logits_dir / f"{VAL_IDS[1]}{suffix}" for suffix in (".npy", ".crc"))}
    assert gone.read_bytes() == content
    assert "1 pictures to do" in log_of(sample, tested, "test")


def test_interrupted_test_goes_on(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    copy_of(finished_run(sample), tmp_path, "models")
    original, left = inference.segment, 1

    def segment(*args: object) -> tuple[np.ndarray, np.ndarray]:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "segment", segment)
        assert run("test", sample, tmp_path) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert run("test", sample, tmp_path) == 0
    scores = [
        read_json(paths_of(sample, folder).scores_path("val"))
        for folder in (tmp_path, finished_run(sample))
    ]
    assert scores[0]["Class IoU"] == scores[1]["Class IoU"]


def test_picture_is_finished_only_once_all_its_outputs_are(sample: Path, tested: Path) -> None:
    paths = paths_of(sample, tested)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    (paths.prediction_dir("val") / f"{VAL_IDS[0]}.png").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "write_label", killed)
        assert run("test", sample, tested) == 130
    write_label(paths.prediction_dir("val") / f"{VAL_IDS[0]}.png", np.zeros((3, 4), np.uint8))
    assert run("test", sample, tested) == 0
    assert "1 pictures to do" in log_of(sample, tested, "test")


def test_run_that_makes_nothing_leaves_the_records(sample: Path, tested: Path) -> None:
    paths = paths_of(sample, tested)
    folders = (
        paths.logits_dir("val"),
        paths.prediction_dir("val"),
        paths.prediction_dir("val", True),
    )
    records = [folder / "made_by.json" for folder in folders]
    contents = [read_json(path) for path in records]
    for content in contents:
        assert content["facts"]["model"]["sha256"] and content["lists"].keys() == {"val"}
    before = [path.stat().st_mtime_ns for path in records]
    assert run("test", sample, tested) == 0 == run("crf", sample, tested)
    assert [path.stat().st_mtime_ns for path in records] == before
    for path, content in zip(records, contents, strict=True):  # made for another list, too
        path.write_text(json.dumps({**content, "lists": {"earlier": {"count": 3}}}))
    assert run("test", sample, tested) == 0 == run("crf", sample, tested)
    for path, content in zip(records, contents, strict=True):
        after = read_json(path)
        assert after["lists"].keys() == {"earlier", "val"}
        assert after["facts"]["model"]["sha256"] == content["facts"]["model"]["sha256"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"MODEL.ATROUS_RATES": "2,3"}, "MODEL.ATROUS_RATES is [2, 3] now and was [1, 2]"),
        ({"IMAGE.MEAN.R": 1.5}, "IMAGE.MEAN.R is 1.5 now and was 122.675"),
        ({"DATASET.LABELS": "labels.txt"}, "class 20 is radio now and was tvmonitor"),
    ],
)
def test_weights_of_another_configuration_are_refused(
    sample: Path,
    tmp_path: Path,
    values: dict[str, object],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    folder = copy_of(finished_run(sample), tmp_path, "models")
    names = [*class_names(config_of(sample, folder))[:-1], "radio"]
    lines = [f"{index} {name}" for index, name in enumerate(names)]
    (tmp_path / "labels.txt").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    assert run("test", sample, folder, values=values) == 2
    error = capsys.readouterr().err
    assert message in error and "of the training" in error
    paths_of(sample, folder).checkpoint(FINAL).with_suffix(".pth.json").unlink()
    config = config_of(sample, folder, values)
    inference.load_network(config, paths_of(sample, folder).checkpoint(FINAL), torch.device("cpu"))


def test_changed_picture_is_segmented_again(sample: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(sample, tmp_path / "voc"))
    folder = copy_of(finished_run(sample), tmp_path / "run")
    picture = Devkit(root).image_path(VAL_IDS[0])
    Image.fromarray(read_image(picture)[::-1].copy()).save(picture)
    os.utime(picture, (1, 1))  # as when an older file is put there
    os.utime(Devkit(root).image_path(VAL_IDS[1]))
    assert run("test", root, folder) == 0
    assert "1 pictures to do" in log_of(root, folder, "test")
    assert run("test", root, folder) == 0
    assert "0 pictures to do" in log_of(root, folder, "test")


def test_outputs_of_another_model_are_refused_until_overwritten(
    sample: Path, tested: Path, capsys: pytest.CaptureFixture
) -> None:
    paths = paths_of(sample, tested)
    disturb_weights(paths.checkpoint(FINAL))
    assert run("test", sample, tested) == 2
    error = capsys.readouterr().err
    assert "input model is" in error and "--overwrite" in error and "--force" not in error
    before = read_json(paths.scores_path("val"))
    assert run("test", sample, tested, "--overwrite") == 0
    after = read_json(paths.scores_path("val"))
    assert after["model"] != before["model"]


# --------------------------------------------------------------------------------- disk space


def test_too_little_space_stops_before_anything_is_written(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    copy_of(finished_run(sample), tmp_path, "models")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert run("test", sample, tmp_path) == 2
    assert "only 0.0 MB are free there" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.npy"))


def test_nothing_is_removed_before_it_is_known_that_the_rest_fits(
    sample: Path, tested: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    paths = paths_of(sample, tested)
    before = {**times(paths.logits_dir("val")), **times(paths.prediction_dir("val"))}
    usage = shutil.disk_usage(tested)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(logits, "expected_bytes", lambda *_: 10**9)
    assert run("test", sample, tested, "--overwrite") == 2
    assert "The logits need about" in capsys.readouterr().err
    after = {**times(paths.logits_dir("val")), **times(paths.prediction_dir("val"))}
    assert before == after


def test_logits_that_are_replaced_make_room(
    sample: Path, tested: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tested)._replace(free=500)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert run("test", sample, tested, "--overwrite") == 0


@pytest.mark.parametrize("record", [None, {"step": "mine", "arguments": {}, "inputs": {}}])
@pytest.mark.parametrize("command", ["test", "crf"])
def test_outputs_without_our_record_outlive_overwrite(
    sample: Path,
    tested: Path,
    command: str,
    record: dict | None,
    capsys: pytest.CaptureFixture,
) -> None:
    """Not even those are removed of which there is a record."""
    paths = paths_of(sample, tested)
    folder = paths.prediction_dir("val", crf=command == "crf")
    (folder / "made_by.json").unlink()
    if record is not None:
        (folder / "made_by.json").write_text(json.dumps(record))
    before = {**times(paths.logits_dir("val")), **times(folder)}
    assert run(command, sample, tested, "--overwrite") == 2
    error = capsys.readouterr().err
    first = folder / f"{VAL_IDS[0]}.png"
    known = "has no record of what made it" if record is None else "is of mine"
    assert f"{first} would be replaced, but {folder} {known}" in error
    assert "--overwrite" not in error
    assert before == {**times(paths.logits_dir("val")), **times(folder)}


@pytest.mark.parametrize("spoiled", ["weights", "picture", "network"])
def test_nothing_is_removed_for_a_test_that_cannot_start(
    sample: Path, tested: Path, tmp_path: Path, spoiled: str
) -> None:
    paths, root = paths_of(sample, tested), Path(shutil.copytree(sample, tmp_path / "voc"))
    before = {**times(paths.logits_dir("val")), **times(paths.prediction_dir("val"))}
    values = {"MODEL.ATROUS_RATES": "1,2,3"} if spoiled == "network" else {}
    if spoiled == "weights":
        paths.checkpoint(FINAL).write_bytes(paths.checkpoint(FINAL).read_bytes()[:1000])
    if spoiled == "picture":
        Devkit(root).image_path(VAL_IDS[1]).write_bytes(b"half a picture")
    assert run("test", root, tested, "--overwrite", values=values) == 2
    assert before == {**times(paths.logits_dir("val")), **times(paths.prediction_dir("val"))}


def test_mean_of_the_configuration_is_subtracted(sample: Path, tmp_path: Path) -> None:
    mean = {"R": 10.5, "G": 200, "B": 60}
    values = {f"IMAGE.MEAN.{channel}": value for channel, value in mean.items()}
    values |= {"SOLVER.ITER_MAX": 1}
    for command in ("train", "test"):
        assert run(command, sample, tmp_path, values=values) == 0
    config, paths = config_of(sample, tmp_path, values), paths_of(sample, tmp_path)
    network = inference.load_network(config, paths.checkpoint(FINAL), torch.device("cpu"))
    image = read_image(Devkit(sample).image_path(VAL_IDS[0])).astype(np.float32)
    bgr = (image - [mean["R"], mean["G"], mean["B"]])[..., ::-1].transpose(2, 0, 1)
    with torch.no_grad():
        scores = network(torch.from_numpy(bgr.copy()).float()[None])[0]
    stored = np.load(paths.logits_dir("val") / f"{VAL_IDS[0]}.npy")
    np.testing.assert_allclose(stored, scores, rtol=1e-3, atol=1e-4)
    photo, out = Devkit(sample).image_path(VAL_IDS[0]), tmp_path / "out"
    given = ("--input", str(photo), "--output", str(out))
    assert (
        run("predict", sample, tmp_path, *given, values={**values, "IMAGE.SIZE.TEST": "none"}) == 0
    )
    tested = read_label(paths.prediction_dir("val") / f"{photo.stem}.png")
    np.testing.assert_array_equal(read_label(out / f"{photo.stem}.png"), tested)


@pytest.mark.parametrize("facts", [[], None, "x", {"model": "x"}, {"model": {"path": 3}}])
def test_record_without_facts_is_no_traceback(sample: Path, tested: Path, facts: object) -> None:
    """The scores say then that nothing is known, and the logits are believed."""
    paths = paths_of(sample, tested)
    for path in (
        record_path(paths.logits_dir("val")),
        paths.checkpoint(FINAL).with_suffix(".pth.json"),
    ):
        path.write_text(json.dumps({**read_json(path), "facts": facts}))
    assert run("test", sample, tested) == 0 == run("crf", sample, tested)
    assert "unknown" in read_json(paths.scores_path("val"))["initialisation"]


def test_logits_of_another_precision_are_other_logits_and_the_crf_takes_either(
    sample: Path, tested: Path, capsys: pytest.CaptureFixture
) -> None:
    bfloat16 = {"SOLVER.PRECISION": "bfloat16"}
    assert run("test", sample, tested, values=bfloat16) == 2  # float32's are there
    assert "precision is bfloat16 now and was (absent)" in capsys.readouterr().err
    assert run("test", sample, tested, "--overwrite", values=bfloat16) == 0
    for image_id in VAL_IDS:
        float32, other = (
            np.load(paths_of(sample, folder).logits_dir("val") / f"{image_id}.npy")
            for folder in (finished_run(sample), tested)
        )
        spread = float(np.ptp(float32.astype(np.float32)))
        assert 0 < np.abs(float32.astype(np.float32) - other).max() < 0.1 * spread
    assert run("crf", sample, tested, "--overwrite") == 0
