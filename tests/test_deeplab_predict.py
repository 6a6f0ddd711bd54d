"""`predict` on any pictures."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from deeplab_runs import copy_of, finished_run, log_of, paths_of, run
from PIL import Image
from pipeline import VAL_IDS

from deeplab.prediction import contents, find_pictures
from misc.maps_io import read_image, read_label
from misc.transforms import NEAREST, resize, resize_long_side
from misc.visualize import overlay_label
from voc12.devkit import Devkit


@pytest.fixture
def folder(sample: Path, tmp_path: Path) -> Path:
    """Folder of a run with trained weights."""
    return copy_of(finished_run(sample), tmp_path / "run", "models")


@pytest.fixture
def photos(sample: Path, tmp_path: Path) -> Path:
    """A folder of three pictures and other files."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for image_id in VAL_IDS:
        shutil.copy(Devkit(sample).image_path(image_id), photos)
    Image.fromarray(np.full((20, 30), 128, np.uint8)).save(photos / "gray.png")
    (photos / "notes.txt").write_text("no picture")
    (photos / ".hidden.jpg").write_text("no picture")
    return photos


def predict(sample: Path, folder: Path, source: Path, output: Path, *flags: str) -> int:
    given = ("--input", str(source), "--output", str(output), *flags)
    return run("predict", sample, folder, *given)


def test_folder_of_pictures(sample: Path, folder: Path, photos: Path, tmp_path: Path) -> None:
    assert predict(sample, folder, photos, tmp_path / "out") == 0
    names = {*VAL_IDS, "gray"}
    expected = {f"{name}.png" for name in names} | {f"{name}_overlay.jpg" for name in names}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
    tested = paths_of(sample, finished_run(sample)).prediction_dir("val")
    for image_id in VAL_IDS:
        label = read_label(tmp_path / "out" / f"{image_id}.png")
        np.testing.assert_array_equal(label, read_label(tested / f"{image_id}.png"))
    assert read_label(tmp_path / "out/gray.png").shape == (20, 30)


def test_single_picture_with_overlay(
    sample: Path, folder: Path, photos: Path, tmp_path: Path
) -> None:
    photo = photos / f"{VAL_IDS[0]}.jpg"
    assert predict(sample, folder, photo, tmp_path / "out") == 0
    label = read_label(tmp_path / "out" / f"{VAL_IDS[0]}.png")
    overlay = read_image(tmp_path / "out" / f"{VAL_IDS[0]}_overlay.jpg")
    expected = overlay_label(read_image(photo), label)
    assert np.abs(overlay.astype(int) - expected).mean() < 8  # JPEG
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert f"{photo.name}: " in log_of(sample, folder, "predict")


def test_crf_is_that_of_the_command(
    sample: Path, folder: Path, photos: Path, tmp_path: Path
) -> None:
    assert predict(sample, folder, photos, tmp_path / "out", "--crf") == 0
    refined = paths_of(sample, finished_run(sample)).prediction_dir("val", crf=True)
    for image_id in VAL_IDS:
        label = read_label(tmp_path / "out" / f"{image_id}.png")
        # `crf` starts from logits that were rounded to float16
        assert (label != read_label(refined / f"{image_id}.png")).mean() < 0.01


def test_large_pictures_are_reduced_for_the_network(
    sample: Path, folder: Path, photos: Path, tmp_path: Path
) -> None:
    assert predict(sample, folder, photos, tmp_path / "out", "--max-side", "32") == 0
    for path in photos.glob("sample_*"):
        label = read_label(tmp_path / "out" / f"{path.stem}.png")
        assert label.shape == read_image(path).shape[:2]
    # as if the small picture itself had been segmented
    photo = photos / f"{VAL_IDS[0]}.jpg"
    small = tmp_path / "small"
    small.mkdir()
    image = resize_long_side(read_image(photo), 32)
    Image.fromarray(image).save(small / "photo.png")
    assert predict(sample, folder, small, tmp_path / "out") == 0
    expected = resize(read_label(tmp_path / "out/photo.png"), read_image(photo).shape[:2], NEAREST)
    np.testing.assert_array_equal(read_label(tmp_path / "out" / f"{photo.stem}.png"), expected)


def test_broken_pictures_are_named_and_the_rest_is_done(
    sample: Path, folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (photos / "broken.jpg").write_bytes(b"no picture")
    assert predict(sample, folder, photos, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "1 of 4 files" in error and "'broken.jpg'" in error
    assert len(list((tmp_path / "out").glob("*.png"))) == 3


def test_two_pictures_of_one_name_are_refused(
    sample: Path, folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copy(photos / "gray.png", photos / "gray.jpg")
    assert predict(sample, folder, photos, tmp_path / "out") == 2
    assert "gray.jpg and gray.png would both be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("nowhere", "out", "nowhere does not exist"),
        ("empty", "out", "holds no pictures"),
        ("photos", "photos", "is the folder of the pictures"),
        ("photos", "photos/notes.txt", "is a file; name a folder"),
    ],
)
def test_unusable_folders_are_named(
    sample: Path,
    folder: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    source: str,
    output: str,
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    assert predict(sample, folder, tmp_path / source, tmp_path / output) == 2
    assert message in capsys.readouterr().err


def test_impossible_size_is_refused(
    sample: Path, folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert predict(sample, folder, photos, tmp_path / "out", "--max-side", "0") == 2
    assert "--max-side is 0" in capsys.readouterr().err


def test_contents_are_told_from_large_to_small() -> None:
    label = np.zeros((10, 10), np.uint8)
    label[:2], label[2:5] = 1, 2
    assert contents(label, ("background", "bird", "cat")) == "cat 30.00 %, bird 20.00 %"
    assert contents(label * 0, ("background", "bird")) == "background only"


def test_weights_of_another_configuration_are_refused(
    sample: Path, folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ("--input", str(photos), "--output", str(tmp_path / "out"))
    values = {"MODEL.ATROUS_RATES": "2,3"}
    assert run("predict", sample, folder, *given, values=values) == 2
    assert "MODEL.ATROUS_RATES is [2, 3] now and was [1, 2]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_files_of_a_folder_are_no_pictures(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.PNG", "notes.pdf", "clip.mpg", ".hidden.png", "list.txt"):
        (tmp_path / name).touch()
    found = find_pictures(tmp_path, tmp_path / "out")
    assert [path.name for path in found] == ["a.jpg", "b.PNG"]
