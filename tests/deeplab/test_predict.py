"""`predict` on any pictures."""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from deeplab_runs import command_line, copy_of, finished_run, log_of, paths_of, run, run_apart
from PIL import Image
from pipeline import VAL_IDS, disturb_weights

from deeplab import inference, main, prediction
from deeplab.config import FINAL
from deeplab.prediction import contents, find_pictures
from misc.checkpoint import load_checkpoint
from misc.maps_io import read_image, read_label
from misc.transforms import NEAREST, resize
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


def predict(
    sample: Path, folder: Path, source: Path, output: Path, *flags: str, size: object = "none"
) -> int:
    """Run the command; pictures keep their own size unless another is given."""
    given = ("--input", str(source), "--output", str(output), *flags)
    return run("predict", sample, folder, *given, values={"IMAGE.SIZE.TEST": size})


def outputs(name: str) -> set[str]:
    """Files that belong to a picture."""
    return {f"{name}.png", f"{name}_overlay.jpg", f"{name}.crc"}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_folder_of_pictures(sample: Path, folder: Path, photos: Path, tmp_path: Path) -> None:
    assert predict(sample, folder, photos, tmp_path / "out") == 0
    names = {*VAL_IDS, "gray"}
    assert names_in(tmp_path / "out") == {"made_by.json"}.union(*map(outputs, names))
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
    assert names_in(tmp_path / "out") == {"made_by.json", *outputs(VAL_IDS[0])}
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


# -------------------------------------------------------------------------------- size of the input


@pytest.mark.parametrize("size", [32, 100])
def test_long_side_is_scaled_for_the_network(
    sample: Path, folder: Path, photos: Path, tmp_path: Path, size: int
) -> None:
    """As if OpenCV had scaled the picture, up or down, and the result had been segmented."""
    photo = photos / f"{VAL_IDS[0]}.jpg"
    image = read_image(photo)
    assert predict(sample, folder, photo, tmp_path / "out", size=size) == 0
    factor = size / max(image.shape)
    scaled = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    assert max(scaled.shape[:2]) == size
    (tmp_path / "scaled").mkdir()
    Image.fromarray(scaled).save(tmp_path / "scaled/photo.png")
    assert predict(sample, folder, tmp_path / "scaled", tmp_path / "out") == 0
    label = read_label(tmp_path / "out/photo.png")
    assert label.shape == scaled.shape[:2]
    expected = resize(label, image.shape[:2], NEAREST)
    found = read_label(tmp_path / "out" / f"{photo.stem}.png")
    np.testing.assert_array_equal(found, expected)


def test_long_side_is_the_published_513_when_nothing_is_said(
    sample: Path, folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def segment(network: object, image: torch.Tensor, *rest: object) -> tuple:
        seen.append(tuple(image.shape))
        return inference.segment(network, image, *rest)

    monkeypatch.setattr(prediction, "segment", segment)
    given = ("--input", str(photos / "gray.png"), "--output", str(tmp_path / "out"))
    assert run("predict", sample, folder, *given) == 0
    assert seen == [(3, 342, 513)]
    assert read_label(tmp_path / "out/gray.png").shape == (20, 30)


@pytest.mark.parametrize(
    ("size", "long_side", "expected"),
    [
        ((100, 50), 25, (25, 12)),  # 12.5, half to even
        ((50, 100), 200, (100, 200)),
        ((1, 1000), 10, (1, 10)),
        ((1000, 1), 10, (10, 1)),
        ((1, 1), 513, (513, 513)),
    ],
)
def test_scaled_sizes(size: tuple[int, int], long_side: int, expected: tuple[int, int]) -> None:
    image = np.full((*size, 3), 7, np.uint8)
    scaled = prediction.scale_long_side(image, long_side)
    assert scaled.shape == (*expected, 3) and (scaled == 7).all()


# ------------------------------------------------------------------------------ going on, redoing


def times(folder: Path) -> dict[str, int]:
    """When the label maps of a folder were written."""
    return {path.stem: path.stat().st_mtime_ns for path in folder.glob("*.png")}


def remade(sample: Path, folder: Path, photos: Path, output: Path, *flags: str, **size: int) -> set:
    """Run the command again; names of the pictures whose label maps were written anew."""
    before = times(output)
    assert predict(sample, folder, photos, output, *flags, **size) == 0
    return {name for name, time in times(output).items() if before.get(name) != time}


def test_same_command_keeps_what_is_done(
    sample: Path, folder: Path, photos: Path, tmp_path: Path
) -> None:
    out, gray = tmp_path / "out", photos / "gray.png"
    everything = {*VAL_IDS, "gray"}
    assert predict(sample, folder, photos, out) == 0
    assert remade(sample, folder, photos, out) == set()
    assert "0 of 3 pictures" in log_of(sample, folder, "predict")
    (out / f"{VAL_IDS[0]}_overlay.jpg").unlink()
    assert remade(sample, folder, photos, out) == {VAL_IDS[0]}
    Image.fromarray(np.full((20, 30), 9, np.uint8)).save(gray)
    os.utime(gray, (1, 1))  # as when an older file is put there
    assert remade(sample, folder, photos, out) == {"gray"}
    assert remade(sample, folder, photos, out, size=40) == everything
    assert "IMAGE.SIZE.TEST is 40 now and was null" in log_of(sample, folder, "predict")
    assert remade(sample, folder, photos, out, "--crf", size=40) == everything
    disturb_weights(paths_of(sample, folder).checkpoint(FINAL))
    assert remade(sample, folder, gray, out, "--crf", size=40) == {"gray"}
    assert "input model is" in log_of(sample, folder, "predict")
    # the others are still of the earlier weights, whatever the record of the folder says
    assert remade(sample, folder, photos, out, "--crf", size=40) == {*VAL_IDS}


@pytest.mark.parametrize("killed", ["write_label", "overlay_label"])
def test_killed_command_goes_on(
    sample: Path, folder: Path, photos: Path, tmp_path: Path, killed: str
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction, killed, stop)
        assert predict(sample, folder, photos, out) == 130
    assert predict(sample, folder, photos, out) == 0
    assert len(times(out)) == 3
    assert remade(sample, folder, photos, out) == set()


@pytest.mark.parametrize("ending", [".png", "_overlay.jpg"])
def test_files_of_the_user_are_never_replaced(
    sample: Path,
    folder: Path,
    photos: Path,
    tmp_path: Path,
    ending: str,
    capsys: pytest.CaptureFixture,
) -> None:
    out = tmp_path / "out"
    assert predict(sample, folder, photos / "gray.png", out) == 0
    own = out / f"{VAL_IDS[1]}{ending}"
    own.write_bytes(b"drawn by hand")
    before = names_in(out), times(out)
    assert predict(sample, folder, photos, out) == 2
    error = capsys.readouterr().err
    assert f"has 1 files that predict has not made and would replace: '{own.name}'" in error
    assert own.read_bytes() == b"drawn by hand" and (names_in(out), times(out)) == before


def test_folders_of_other_steps_are_left_alone(
    sample: Path, folder: Path, photos: Path, capsys: pytest.CaptureFixture
) -> None:
    copy_of(finished_run(sample), folder, "scores")
    out = paths_of(sample, folder).prediction_dir("val", crf=True)
    before = (out / "made_by.json").read_bytes()
    assert predict(sample, folder, photos / "gray.png", out) == 2
    assert "belongs to the step crf, see" in capsys.readouterr().err
    assert (out / "made_by.json").read_bytes() == before


def test_name_that_is_no_utf8_works(
    sample: Path, folder: Path, photos: Path, tmp_path: Path
) -> None:
    """In a process of its own: only there is standard output as strict as on a terminal."""
    name = os.fsdecode(b"caf\xe9")
    shutil.copy(photos / "gray.png", photos / f"{name}.png")
    (photos / os.fsdecode(b"broken\xff.jpg")).write_bytes(b"no picture")
    given = ("--input", str(photos), "--output", str(tmp_path / "out"))
    argv = command_line("predict", sample, folder, *given, values={"IMAGE.SIZE.TEST": "none"})
    done = run_apart("deeplab/main.py", *argv)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "1 of 5 files of" in done.stderr and "broken\\udcff.jpg" in done.stderr
    assert "caf\\udce9.png: " in done.stdout
    assert read_label(tmp_path / "out" / f"{name}.png").shape == (20, 30)
    assert "caf\\udce9.png: " in log_of(sample, folder, "predict")
    (photos / os.fsdecode(b"broken\xff.jpg")).unlink()
    assert remade(sample, folder, photos, tmp_path / "out") == set()


# --------------------------------------------------------------------------------- unusable input


def test_weights_without_finite_scores_write_nothing(
    sample: Path, folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = paths_of(sample, folder).checkpoint(FINAL)
    state = load_checkpoint(model)
    state["base.aspp.c0.weight"].fill_(3e38)  # finite, but not what comes of it
    torch.save(state, model)
    for command, given in (
        ("predict", ("--input", str(photos), "--output", str(tmp_path / "out"))),
        ("test", ()),
    ):
        assert run(command, sample, folder, *given) == 2
        error = capsys.readouterr().err
        assert f"{model} the network gives class scores that are NaN or infinite" in error
    assert not list(tmp_path.rglob("*_overlay.jpg")) and not list(folder.rglob("*.png"))
    assert not list(folder.rglob("scores.json"))


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


@pytest.mark.parametrize("size", [0, -5, "large"])
def test_impossible_size_is_refused(
    sample: Path,
    folder: Path,
    photos: Path,
    tmp_path: Path,
    size: object,
    capsys: pytest.CaptureFixture,
) -> None:
    assert predict(sample, folder, photos, tmp_path / "out", size=size) == 2
    assert f"IMAGE.SIZE.TEST is {size}" in capsys.readouterr().err.replace("'", "")


def test_option_of_earlier_versions_is_answered(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main.parse_args(["predict", "-c", "x", "--input", "a", "--output", "b", "--max-side", "9"])
    assert stop.value.code == 2
    assert "--max-side is now IMAGE.SIZE.TEST=PIXELS" in capsys.readouterr().err


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
