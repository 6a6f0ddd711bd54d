"""Reading CUB-200-2011 and class folders, and the torch data sets over them."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import fill
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from misc.errors import UserError
from misc.transforms import IMAGENET_MEAN, IMAGENET_STD
from wsol.cub import scan_cub
from wsol.folders import TEST_EVERY, scan_folders
from wsol.pictures import NO_SCALED_BOX, ImageSet, Picture, TestPictures, TrainPictures, scaled_box
from wsol.preflight import CUB, FOLDER, load_checked

TABLES = {
    "images.txt": "4 1.finch/a b.png\n9 1.finch/c.png\n17 2.gull/d.png\n",
    "image_class_labels.txt": "17 2\n4 1\n9 1\n",
    "train_test_split.txt": "4 1\n9 0\n17 1\n",
    "bounding_boxes.txt": "4 1.0 2.0 20.5 10.0\n9 0 0 30 20\n17 3 4 5 6\n\n",
    "classes.txt": "1 1.finch\n2 2.gull\n",
}
CLASSES = 3
SIZES = {"1.finch/a b.png": (20, 30), "1.finch/c.png": (20, 30), "2.gull/d.png": (45, 25)}


def read_set(layout: str, root: Path) -> ImageSet:
    """The data set as every script reads it."""
    return load_checked(layout, root, CLASSES)


def write_picture(path: Path, size: tuple[int, int] = (20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(fill.image(path.name, *size)).save(path)


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    root = tmp_path / "cub"
    for name, size in SIZES.items():
        write_picture(root / "images" / name, size)
    for name, text in TABLES.items():
        (root / name).write_text(text)
    return root


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    root = tmp_path / "zoo"
    for name in ("train/wren/1.JPG", "train/auk/2.png", "train/auk/1.png", "val/auk/3.png"):
        write_picture(root / name)
    (root / "boxes.csv").write_text("path,x,y,w,h\nval/auk/3.png, 1, 2.5, 3, 4\n")
    return root


# ---------------------------------------------------------------- CUB


def test_cub_is_joined_by_id(cub: Path) -> None:
    image_set = read_set(CUB, cub)
    assert image_set.class_names == ("1.finch", "2.gull")
    assert image_set.train == (
        Picture(cub / "images/1.finch/a b.png", 0, (1, 2, 20.5, 10), "1.finch/a b.png"),
        Picture(cub / "images/2.gull/d.png", 1, (3, 4, 5, 6), "2.gull/d.png"),
    )
    assert [picture.name for picture in image_set.test] == ["1.finch/c.png"]
    assert image_set.split("test") is image_set.test


def test_without_classes_file_the_folders_name_the_classes(cub: Path) -> None:
    (cub / "classes.txt").unlink()
    (cub / "image_class_labels.txt").write_text("4 1\n9 1\n17 3\n")
    image_set = read_set(CUB, cub)
    assert image_set.class_names == ("1.finch", "class 2", "2.gull")


def test_ids_may_be_words(cub: Path) -> None:
    for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt"):
        (cub / name).write_text(TABLES[name].replace("17 ", "2007_000032 "))
    boxes = TABLES["bounding_boxes.txt"].replace("17 ", "2007_000032 ")
    (cub / "bounding_boxes.txt").write_text(boxes)
    assert len(read_set(CUB, cub).train) == 2


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("images.txt", "4 a.png\n4 b.png\n9 c.png\n17 d.png\n", "repeated id: .* line 2: 4"),
        ("images.txt", "4 a.png\n9 a.png\n17 d.png\n", "repeated picture: .* a.png 2 times"),
        ("images.txt", "4 ../a.png\n9 b.png\n17 d.png\n", "malformed line: .* line 1"),
        ("image_class_labels.txt", "4 0\n9 1\n17 2\n", "malformed line: .*class number from 1"),
        ("image_class_labels.txt", "4 1\n9 x\n17 2\n", "malformed line: .* line 2: '9 x'"),
        ("image_class_labels.txt", "4 1\n9 1\n17 7\n", "files that disagree: .*classes.txt.* '7'"),
        ("train_test_split.txt", "4 1\n9 2\n17 0\n", "malformed line: .*neither 1"),
        ("train_test_split.txt", "4 1\n9 0\n", "files that disagree: .*split.txt.* '17'"),
        ("bounding_boxes.txt", "4 1 2 3\n9 1 2 3 4\n17 1 2 3 4\n", "malformed line: .*four numb"),
        ("bounding_boxes.txt", "4 1 2 3 nan\n9 1 2 3 4\n17 1 2 3 4\n", "malformed line: .*four"),
    ],
)
def test_files_of_cub_that_do_not_fit(cub: Path, file: str, text: str, problem: str) -> None:
    (cub / file).write_text(text)
    (found,) = scan_cub(cub)[1]
    assert re.search(problem, found)
    with pytest.raises(UserError, match=re.escape(found.partition(": ")[2])):
        read_set(CUB, cub)


@pytest.mark.parametrize("state", ["missing", "empty"])
def test_a_file_without_content_is_one_problem(cub: Path, state: str) -> None:
    path = cub / "bounding_boxes.txt"
    path.unlink() if state == "missing" else path.write_text("\n")
    image_set, problems = scan_cub(cub)
    assert problems == [f"{state} file: {path}"]
    assert not image_set.train


def test_an_id_of_one_file_is_missing_in_the_others(cub: Path) -> None:
    (cub / "train_test_split.txt").write_text(TABLES["train_test_split.txt"] + "5\t1\r\n")
    image_set, problems = scan_cub(cub)
    assert len(problems) == 3 and all(problem.endswith("have: '5'") for problem in problems)
    assert len(image_set.train) == 2


def test_all_problems_of_cub_are_told_at_once(cub: Path) -> None:
    (cub / "bounding_boxes.txt").write_bytes(b"\xff\xfe\x00")
    (cub / "train_test_split.txt").write_text("4 yes\n9 0\n17 1\n")
    kinds = [problem.partition(":")[0] for problem in scan_cub(cub)[1]]
    assert kinds == ["malformed line", "unreadable file"]


def test_a_folder_too_high_is_recognised(cub: Path) -> None:
    with pytest.raises(UserError, match=rf"did you mean {cub}\?"):
        read_set(CUB, cub.parent)
    with pytest.raises(UserError, match="does not exist; it must hold images"):
        read_set(CUB, cub / "nowhere")


# ---------------------------------------------------------------- class folders


def test_class_folders_with_boxes(folders: Path) -> None:
    image_set = read_set(FOLDER, folders)
    assert image_set.class_names == ("auk", "wren")
    assert [(picture.name, picture.label, picture.box) for picture in image_set.train] == [
        ("train/auk/1.png", 0, None),
        ("train/auk/2.png", 0, None),
        ("train/wren/1.JPG", 1, None),
    ]
    (test,) = image_set.test
    assert test == Picture(folders / "val/auk/3.png", 0, (1, 2.5, 3, 4), "val/auk/3.png")


def test_class_folders_without_boxes_and_with_other_files(folders: Path) -> None:
    (folders / "boxes.csv").unlink()
    (folders / "train" / "auk" / "notes.txt").write_text("no picture")
    (folders / "train" / ".cache").mkdir()
    image_set = read_set(FOLDER, folders)
    assert len(image_set.train) == 3
    assert all(picture.box is None for picture in image_set.train + image_set.test)


def test_test_goes_before_val(folders: Path) -> None:
    write_picture(folders / "test" / "wren" / "9.png")
    (folders / "boxes.csv").unlink()
    assert [picture.name for picture in read_set(FOLDER, folders).test] == ["test/wren/9.png"]


def test_folders_of_classes_alone_are_divided(tmp_path: Path) -> None:
    for number in range(2 * TEST_EVERY + 1):
        for name in ("auk", "train"):  # a class of VOC has this name
            write_picture(tmp_path / name / f"{number:02d}.png")
    image_set = read_set(FOLDER, tmp_path)
    assert image_set.class_names == ("auk", "train")
    expected = [f"{name}/{n:02d}.png" for name in ("auk", "train") for n in (4, 9)]
    assert [picture.name for picture in image_set.test] == expected
    assert len(image_set.train) == 2 * (2 * TEST_EVERY - 1)
    assert not set(image_set.train) & set(image_set.test)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("train/auk/1.png,1,2,3", "malformed line: .*line 3: 'train/auk/1.png,1,2,3' does not"),
        ("train/auk/1.png,1,2,3,wide", "malformed line: .*line 3: 'train/auk/1.png,1,2,3,wide'"),
        ("train/auk/7.png,1,2,3,4", "box without picture: .*line 3: .*train/auk/7.png"),
        ("val/auk/3.png,1,2,3,4", "repeated box: .*line 3: val/auk/3.png"),
    ],
)
def test_boxes_that_do_not_fit(folders: Path, row: str, problem: str) -> None:
    with (folders / "boxes.csv").open("a") as stream:
        stream.write(f"{row}\n")
    (found,) = scan_folders(folders)[1]
    assert re.search(problem, found)
    with pytest.raises(UserError, match=re.escape(found.partition(": ")[2])):
        read_set(FOLDER, folders)


def test_class_folders_that_do_not_fit(folders: Path) -> None:
    (folders / "train" / "tern").mkdir()
    (folders / "val" / "kite").mkdir()
    with pytest.raises(UserError) as error:
        read_set(FOLDER, folders)
    assert "class without pictures (1):\n  1. 'tern'" in str(error.value)
    assert "unknown class (1):\n  2. 'kite'" in str(error.value)


def test_class_folders_that_are_not_there(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"holds no such data set.*did you mean {folders}\?"):
        read_set(FOLDER, tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_set(FOLDER, tmp_path / "nowhere")
    (folders / "val").rename(folders / "validation")
    with pytest.raises(UserError, match="has train/ but none of test, val"):
        read_set(FOLDER, folders)


# ---------------------------------------------------------------- boxes


def test_scaled_box_by_hand() -> None:
    """No golden of scaled boxes exists: these are computed by hand from the published rule."""
    # 60/500*224 = 26.88, 27/335*224 = 18.05, (60+325)/500*224 = 172.48, (27+304)/335*224 = 221.3
    assert scaled_box((60.0, 27.0, 325.0, 304.0), (500, 335), 224).tolist() == [26, 18, 172, 221]


def test_scaled_box_cuts_fractions_off_first_and_stays_inside() -> None:
    # without cutting off first: (9.9 + 9.9) / 224 * 224 = 19.8
    assert scaled_box((9.9, 9.9, 9.9, 9.9), (224, 224), 224).tolist() == [9, 9, 18, 18]
    assert scaled_box((-4, 0, 999, 20), (100, 20), 224).tolist() == [0, 0, 223, 223]


# ---------------------------------------------------------------- data sets


def test_test_pictures_are_resized_as_torchvision_does(cub: Path) -> None:
    picture = read_set(CUB, cub).train[1]
    published = transforms.Compose(
        [
            transforms.Resize((16, 16)),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    item = TestPictures([picture], 16)[0]
    with Image.open(picture.path) as image:
        torch.testing.assert_close(item["image"], published(image), rtol=1e-5, atol=1e-5)
    assert (item["label"], item["index"]) == (1, 0)
    assert item["box"].tolist() == scaled_box(picture.box, (25, 45), 16).tolist()


def test_batches_hold_pictures_without_boxes(folders: Path) -> None:
    pictures = [read_set(FOLDER, folders).train[0], read_set(FOLDER, folders).test[0]]
    (batch,) = DataLoader(TestPictures(pictures, 16), batch_size=2)
    assert batch["image"].shape == (2, 3, 16, 16) and batch["image"].dtype == torch.float32
    assert batch["label"].dtype == batch["box"].dtype == batch["index"].dtype == torch.int64
    assert batch["box"][0].tolist() == list(NO_SCALED_BOX)
    assert (batch["box"][1] >= 0).all()


def training_pictures(cub: Path, seed: int = 3) -> TrainPictures:
    return TrainPictures(read_set(CUB, cub).train, 24, 16, seed)


def test_training_pictures_are_crops_of_the_resized_picture(cub: Path) -> None:
    """No golden of crops exists: each must be a window of the resized picture, or flipped."""
    whole = TestPictures(read_set(CUB, cub).train, 24)[0]["image"]
    windows = whole.unfold(1, 16, 1).unfold(2, 16, 1)  # (3, 9, 9, 16, 16)
    positions, flips = set(), set()
    for epoch in range(30):
        image = training_pictures(cub)[epoch, 0]["image"]
        for flipped in (False, True):
            view = image.flip(2) if flipped else image
            equal = (windows == view[:, None, None]).flatten(3).all(dim=3).all(dim=0)
            positions |= {tuple(p) for p in equal.nonzero().tolist()}
            flips |= {flipped} if equal.any() else set()
    assert flips == {False, True}
    assert len(positions) > 15
    assert {0, 8} <= {p for position in positions for p in position}


def test_training_pictures_depend_on_seed_epoch_and_index_alone(cub: Path) -> None:
    first, again = training_pictures(cub), training_pictures(cub)
    expected = [again[1, index]["image"] for index in (1, 0)][::-1]
    assert all(torch.equal(first[1, i]["image"], expected[i]) for i in range(2))
    for other, epoch in ((again, 2), (training_pictures(cub, seed=4), 1)):
        assert any(not torch.equal(other[epoch, i]["image"], expected[i]) for i in range(2))


def test_own_mean_and_std(cub: Path) -> None:
    pictures = read_set(CUB, cub).train
    plain = TestPictures(pictures, 16, mean=(0, 0, 0), std=(1, 1, 1))[0]["image"]
    assert plain.min() >= 0 and plain.max() <= 1
    dataset = TrainPictures(pictures, 16, 16, 0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    image = dataset[0, 0]["image"]
    expected = 2 * plain - 1
    assert any(torch.allclose(image, view, atol=1e-6) for view in (expected, expected.flip(2)))
    assert np.isfinite(image.numpy()).all()
