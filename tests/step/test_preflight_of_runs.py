"""A run on bad data stops before it computes anything, and tells everything that is wrong."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pipeline import (
    QUICK,
    TRAIN_IDS,
    VAL_IDS,
    WEIGHTS,
    copy_of,
    equal_weights,
    log_of,
    metrics,
    output,
    run,
    same_list,
    write_list,
)

from misc.maps_io import read_label, write_label
from voc12.devkit import Devkit
from voc12.labels import read_annotation


@pytest.fixture
def devkit(sample: Path, tmp_path: Path) -> Devkit:
    """A copy of the sample to spoil."""
    return Devkit(Path(shutil.copytree(sample, tmp_path / "voc")))


def spoil(devkit: Devkit) -> list[str]:
    """Put one problem of each kind into the training pictures; returns what must be said."""
    missing, broken, other_size, bad_value, unlabelled = TRAIN_IDS[:5]
    devkit.image_path(missing).unlink()
    picture = devkit.image_path(broken)
    picture.write_bytes(picture.read_bytes()[:-200])
    write_label(devkit.mask_path(other_size), np.zeros((9, 7), np.uint8))
    label = read_label(devkit.mask_path(bad_value))
    label[0, :2] = 21, 254
    write_label(devkit.mask_path(bad_value), label)
    devkit.annotation_path(unlabelled).unlink()
    return [
        "Nothing was started, 5 problems",
        f"'{missing}' has no {devkit.image_path(missing)}",
        f"{picture} cannot be read as a picture",
        f"{devkit.mask_path(other_size)} is 7x9",
        f"{devkit.mask_path(bad_value)} holds 21, 254; allowed are 0..20 and 255",
        f"'{unlabelled}' has no {devkit.annotation_path(unlabelled)}",
    ]


def written(work: Path) -> list[str]:
    """Names of files of a run other than its log and the lists it derived."""
    files = (path for path in work.rglob("*") if path.is_file() and path.parent.name != "cache")
    return [path.name for path in files if path.suffix != ".log"]


def refused(capsys: pytest.CaptureFixture, root: Path, work: Path, *flags: str, **options) -> str:
    """Run, expect status 2 and no output files; returns what was said."""
    before = written(work)
    assert run(root, work, *flags, **options) == 2
    assert written(work) == before
    return capsys.readouterr().err


def test_all_problems_are_told_at_once_and_nothing_is_written(
    devkit: Devkit, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    expected = spoil(devkit)
    error = refused(capsys, devkit.root, tmp_path / "work")
    for text in expected:
        assert text in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("steps", "count"),
    [
        ("train_cam", 3),  # pictures and image labels, no masks
        ("train_cam,eval_cam", 5),
        ("cam_to_ir_label", 2),  # pictures only
        ("eval_cam", 2),  # masks only
    ],
)
def test_only_what_the_steps_need_is_checked(
    devkit: Devkit,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    steps: str,
    count: int,
) -> None:
    spoil(devkit)
    work = copy_of(finished, tmp_path / "work")
    error = refused(capsys, devkit.root, work, "--steps", steps)
    assert f"Nothing was started, {count} problem" in error


def test_unusable_lists_are_told_together_with_the_rest(
    devkit: Devkit, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    devkit.image_path(TRAIN_IDS[0]).unlink()
    lists = {"val_list": "nolist", "infer_list": write_list(tmp_path / "empty.txt", [])}
    error = refused(capsys, devkit.root, tmp_path / "work", **lists)
    assert "unusable list (2)" in error
    assert "nolist" in error and "empty.txt is empty" in error
    assert f"'{TRAIN_IDS[0]}' has no" in error


def test_an_evaluation_list_that_is_named_must_be_there(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Else a slip of the pen scores the inference list; test_other_data.py has the default."""
    work = copy_of(finished, tmp_path / "work")
    error = refused(capsys, sample, work, "--steps", "eval_cam,eval_sem_seg", eval_list="vall")
    assert "unusable list (1)" in error and "vall" in error


def test_steps_that_would_score_nothing_are_refused_by_name_and_else_left_out(
    devkit: Devkit, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for image_id in TRAIN_IDS:
        devkit.mask_path(image_id).unlink()
    work = copy_of(finished, tmp_path / "work")
    error = refused(capsys, devkit.root, work, "--steps", "eval_cam,eval_sem_seg")
    assert "nothing to score (2)" in error
    assert "no picture of --eval_list train or --infer_list train has both CAM in" in error
    assert run(devkit.root, work) == 0
    text = log_of(work)
    for step in ("eval_cam", "eval_ins_seg", "eval_sem_seg"):
        assert f"left out: {step} has nothing to score" in text
    assert metrics(work)["mask_miou"] is None


def test_the_inference_list_is_scored_where_the_evaluation_list_has_no_output(
    sample: Path, finished: Path, tmp_path: Path
) -> None:
    work = copy_of(finished, tmp_path / "work")
    assert run(sample, work, eval_list="val") == 0
    again, before = metrics(work), metrics(finished)
    assert again["mask_miou"] == before["mask_miou"]
    assert again["steps"]["eval_sem_seg"]["list"] == "train"
    text = log_of(work)
    for step in ("eval_cam", "eval_ins_seg", "eval_sem_seg"):
        assert f"{step}: list val (2 pictures" in text and "scored is list train" in text
    assert text.count("on 6 of 6 pictures of list train") == 3
    assert "IoU in % on list train (6 of 6 pictures)" in text


def test_a_list_that_is_named_is_scored_whatever_the_inference_list_is(
    sample: Path, finished: Path, tmp_path: Path
) -> None:
    work = copy_of(finished, tmp_path / "work")
    two = write_list(tmp_path / "two.txt", (*TRAIN_IDS[:2], *VAL_IDS))
    assert run(sample, work, "--steps", "eval_sem_seg", eval_list=two, infer_list="val") == 0
    scores = metrics(work)["steps"]["eval_sem_seg"]
    assert (scores["list"], scores["pictures"], scores["list_pictures"]) == ("two", 2, 4)


@pytest.mark.parametrize(
    ("option", "step", "asked"),
    [
        ("cnn_weights", "train_cam", True),
        ("vit_weights", "train_cam", True),
        ("irn_backbone_weights", "train_irn", True),
        ("irn_backbone_weights", "make_cam", False),
    ],
)
def test_missing_weight_files_are_told_before_hours_of_training(
    sample: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    option: str,
    step: str,
    asked: bool,
) -> None:
    error = refused(capsys, sample, tmp_path, "--steps", step, **{option: "/missing/x.pth"})
    assert (f"--{option} /missing/x.pth does not exist" in error) is asked


def test_lists_of_other_steps_may_be_missing(sample: Path, tmp_path: Path) -> None:
    options = {**QUICK, "infer_list": "nolist", "figure_num": 2}
    assert run(sample, tmp_path, "--steps", "train_cam", **options) == 0
    assert metrics(tmp_path)["eval_list"] is None


# ------------------------------------------------------------------ pictures without image labels


def labels_json(path: Path, devkit: Devkit, ids: Sequence[str]) -> Path:
    """The annotations of some pictures as a JSON file."""
    names = {i: list(read_annotation(devkit.annotation_path(i)).names) for i in ids}
    path.write_text(json.dumps(names))
    return path


def test_pictures_without_labels_are_refused_or_served_by_cls_labels(
    devkit: Devkit, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    table = labels_json(tmp_path / "labels.json", devkit, TRAIN_IDS + VAL_IDS)
    for image_id in VAL_IDS:
        devkit.annotation_path(image_id).unlink()
    new = write_list(tmp_path / "new.txt", VAL_IDS)
    work = copy_of(finished, tmp_path / "work")
    error = refused(capsys, devkit.root, work, "--steps", "make_cam", infer_list=new)
    assert "missing image label (2)" in error and VAL_IDS[0] in error
    # The same labels of the training pictures from a file: their weights are kept.
    assert run(devkit.root, work, infer_list=new, cls_labels=table) == 0
    assert equal_weights(work, finished, *WEIGHTS)
    assert all(output(work, "sem_seg", i).is_file() for i in VAL_IDS)


def test_labels_must_cover_the_lists_and_know_the_classes(
    devkit: Devkit, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(f"{TRAIN_IDS[0]},cat;unicorn\n{TRAIN_IDS[1]},\n")
    options = same_list(write_list(tmp_path / "three.txt", TRAIN_IDS[:3]))
    error = refused(capsys, devkit.root, tmp_path / "work", cls_labels=table, **options)
    assert "labels.csv, line 1: unknown class 'unicorn'" in error
    assert f"'{TRAIN_IDS[2]}' has no entry in --cls_labels" in error


# ------------------------------------------------------------------------------- EXIF rotation


def test_mask_of_the_rotated_picture_is_explained(
    devkit: Devkit, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    picture = devkit.image_path(TRAIN_IDS[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(picture) as image:
        image.save(picture, exif=exif)
    rotated = np.rot90(read_label(devkit.mask_path(TRAIN_IDS[0])))
    write_label(devkit.mask_path(TRAIN_IDS[0]), np.ascontiguousarray(rotated))
    error = refused(capsys, devkit.root, tmp_path / "work")
    assert "mask of another size (1)" in error and "EXIF rotation is ignored" in error
