"""Whole runs on a folder of photos, and what a second run makes of a changed folder."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pipeline import PICTURE_OUTPUTS, QUICK, TRAIN_IDS, WEIGHTS, copy_of, log_of, output, run

from misc.maps_io import load_cam, read_image, read_label
from voc12.devkit import Devkit

IDS = ("background_sky", "boat_1", "boat_old_2", "car_1", "car_2")
FULL_SIZE = (120, 80)  # width and height of the one large photo
# Lists, data and scores come from --photos, everything else from the tiny run.
FROM_PHOTOS = dict.fromkeys(
    ("voc12_root", "train_list", "val_list", "infer_list", "eval_ins_seg_pass")
)


@pytest.fixture(scope="module")
def folder(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of the sample in two classes, three formats, one picture in both; read only."""
    root = tmp_path_factory.mktemp("photos") / "f"
    places = ("boat/1.jpg", "boat/old/2.webp", "car/1.png", "car/2.jpg", "background/sky.jpg")
    for place, image_id in zip(places, TRAIN_IDS[:5], strict=True):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(Devkit(sample).image_path(image_id)) as image:
            changed = image.resize(FULL_SIZE) if place == "car/2.jpg" else image
            changed.save(root / place)
    shutil.copy(root / "boat" / "1.jpg", root / "car" / "the same.jpg")
    return root


def start(folder: Path, work: Path, *flags: str) -> int:
    options = {**FROM_PHOTOS, **QUICK, "figure_num": 2}
    return run(folder, work, *flags, photos=folder, photos_long_side=70, **options)


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folder of a finished run; read only."""
    work = tmp_path_factory.mktemp("done") / "work"
    assert start(folder, work) == 0
    return work


@pytest.fixture
def changed(folder: Path, done: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the folder and of what was made of it."""
    return Path(shutil.copytree(folder, tmp_path / "f")), copy_of(done, tmp_path / "work")


def times(work: Path) -> dict[Path, int]:
    files = [work / "sess" / name for name in WEIGHTS.values()]
    files += [path for path in (work / "result").rglob("*.*") if path.suffix in (".npz", ".png")]
    files += (work / "result" / "overlay").glob("*.jpg")
    return {path: path.stat().st_mtime_ns for path in files if path.name != "figure.png"}


def redone(work: Path, before: dict[Path, int]) -> set[str]:
    """What is new or was written again, as folder/name."""
    after = times(work)
    assert before.keys() <= after.keys()
    return {f"{p.parent.name}/{p.name}" for p, when in after.items() if when != before.get(p)}


def test_masks_and_overlays_of_all_photos(folder: Path, done: Path) -> None:
    for image_id in IDS:
        image = read_image(Devkit(done / "sess" / "photos").image_path(image_id))
        label = read_label(output(done, "sem_seg", image_id))
        assert label.shape == image.shape[:2]
        assert label.max() <= 2
        overlay = read_image(done / "result" / "overlay" / f"{image_id}.jpg").astype(int)
        assert overlay.shape == image.shape
        if not label.any():
            assert abs(overlay - image).mean() < 12  # nothing but the loss of JPEG
    assert not read_label(output(done, "sem_seg", "background_sky")).any()
    assert len(load_cam(output(done, "cam", "background_sky")).keys) == 0
    assert load_cam(output(done, "cam", "boat_1")).keys.tolist() == [0, 1]
    assert load_cam(output(done, "cam", "car_2")).keys.tolist() == [1]
    assert (done / "result" / "figure.png").is_file()
    assert "5 pictures: boat 2, car 3, no class 1" in log_of(done)


def test_large_photos_get_masks_in_their_own_size(folder: Path, done: Path) -> None:
    small = read_label(output(done, "sem_seg", "car_2"))
    (large,) = (done / "result" / "full_size").glob("*.png")
    assert large.name == "car_2.png"
    label = read_label(large)
    assert (small.shape[1], label.shape[::-1]) == (70, FULL_SIZE)
    assert set(np.unique(label)) == set(np.unique(small))


def test_the_same_command_keeps_everything(folder: Path, done: Path, tmp_path: Path) -> None:
    work = copy_of(done, tmp_path / "work")
    before = times(work)
    assert start(folder, work) == 0
    assert redone(work, before) == set()


def test_a_new_photo_asks_and_gets_what_it_lacks(
    changed: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    folder, work = changed
    with Image.open(folder / "boat" / "1.jpg") as image:
        image.rotate(90).save(folder / "boat" / "new.jpg")
    before = times(work)
    for steps in ((), ("--steps", "make_cam,make_sem_seg_labels")):
        assert start(folder, work, *steps) == 2
        told = capsys.readouterr().err
        assert "1 new ('boat_new')" in told and "--force" in told and "--overwrite" in told
    assert redone(work, before) == set()
    assert start(folder, work, "--force") == 0
    outputs = {f"{kind}/boat_new{suffix}" for kind, suffix in PICTURE_OUTPUTS.items()}
    assert redone(work, before) == outputs | {"overlay/boat_new.jpg"}


def test_a_replaced_photo_is_made_again(
    changed: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    folder, work = changed
    with Image.open(folder / "car" / "1.png") as image:
        image.rotate(180).save(folder / "car" / "1.png")
    before = times(work)
    assert start(folder, work) == 2
    assert "1 changed ('car_1')" in capsys.readouterr().err
    assert start(folder, work, "--force") == 0
    outputs = {f"{kind}/car_1{suffix}" for kind, suffix in PICTURE_OUTPUTS.items()}
    assert redone(work, before) == outputs | {"overlay/car_1.jpg"}


def test_files_of_a_removed_photo_stay_and_are_listed(
    changed: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    folder, work = changed
    (folder / "boat" / "old" / "2.webp").unlink()
    before = times(work)
    assert start(folder, work) == 2
    assert "1 gone ('boat_old_2')" in capsys.readouterr().err
    assert redone(work, before) == set()
    listed = (work / "sess" / "photos" / "gone.txt").read_text().splitlines()
    assert sorted(listed) == sorted(str(path) for path in before if "boat_old_2" in path.name)
    assert start(folder, work, "--overwrite") == 2  # another training would not fit those files
    assert "files of other lists" in capsys.readouterr().err
    for path in listed:
        Path(path).unlink()
    assert start(folder, work, "--overwrite") == 0
    assert len(redone(work, {p: t for p, t in before.items() if str(p) not in listed})) > 20


def test_a_new_class_needs_another_training(
    changed: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    folder, work = changed
    (folder / "tree").mkdir()
    with Image.open(folder / "car" / "1.png") as image:
        image.rotate(90).save(folder / "tree" / "1.png")
    assert start(folder, work) == 2
    told = capsys.readouterr().err
    assert "--overwrite to train again on all 6" in told and "other classes" in told


def test_photos_that_change_before_the_networks_are_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """One class, smallest pictures, and a start that ended before the training."""
    mine = tmp_path / "f"
    for name, size in (("a", (1, 1)), ("b", (7, 5)), ("c", (15, 40))):
        (mine / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10 * size[0], 90, 20)).save(mine / "cat" / f"{name}.png")
    (mine / "cat" / "d.png").write_bytes(b"spoilt")
    assert start(mine, tmp_path / "work") == 2
    assert "unreadable picture" in capsys.readouterr().err
    (mine / "cat" / "d.png").unlink()
    assert start(mine, tmp_path / "work") == 0
    for name, size in (("a", (1, 1)), ("b", (7, 5)), ("c", (15, 40))):
        label = read_label(output(tmp_path / "work", "sem_seg", f"cat_{name}"))
        assert label.shape == size[::-1]
