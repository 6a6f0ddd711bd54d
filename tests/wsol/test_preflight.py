"""Every problem of a set of pictures with boxes is found, and all of them are told at once."""

from pathlib import Path

import pytest
from golden import fill
from PIL import Image

from misc.errors import UserError
from wsol import synthetic
from wsol.pictures import Box, ImageSet, Picture
from wsol.preflight import find_problems, load_checked

WIDTH, HEIGHT = 100, 50


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    return synthetic.build(tmp_path / "birds", 2, 1, 2, ((64, 72), (72, 80)))


def set_of(folder: Path, box: Box | None) -> ImageSet:
    path = folder / "a.png"
    Image.fromarray(fill.image("a", HEIGHT, WIDTH)).save(path)
    picture = Picture(path, 0, box, "a.png")
    return ImageSet(folder, ("auk",), (picture,), (picture,))


def test_sound_data(birds: Path) -> None:
    image_set = load_checked("CUB", birds, 2)
    assert (len(image_set.train), len(image_set.test)) == (4, 2)
    assert find_problems(image_set, 200) == []
    assert len(load_checked("FOLDER", birds / "images", 2, ("train",)).train) == 6


def test_all_problems_are_told_at_once(birds: Path) -> None:
    image_set = load_checked("CUB", birds, 2)
    image_set.train[0].path.unlink()
    image_set.train[1].path.write_bytes(image_set.train[1].path.read_bytes()[:300])
    lines = (birds / "bounding_boxes.txt").read_text().splitlines()
    lines[2] = "3 5 5 0 10"
    lines[3] = "4 5 5 500 10"
    (birds / "bounding_boxes.txt").write_text("\n".join(lines))
    (birds / "train_test_split.txt").write_text("1 1\n2 1\n3 0\n4 0\n5 1\n")
    with pytest.raises(UserError) as error:
        load_checked("CUB", birds, 1)
    message = str(error.value)
    for kind in (
        "files that disagree (1)",
        "label outside (1)",
        "missing picture (1)",
        "unreadable picture (1)",
        "box without area (1)",
        "box outside its picture (1)",
    ):
        assert kind in message
    assert str(image_set.train[0].path) in message and str(image_set.train[1].path) in message
    assert "x, y, width, height 5, 5, 0, 10" in message
    assert "DATA.NUM_CLASSES is 1; set it to 2" in message


def test_only_the_splits_of_a_run_are_looked_at(birds: Path) -> None:
    image_set = load_checked("CUB", birds, 2)
    image_set.train[0].path.unlink()
    assert find_problems(image_set, 2, ("test",)) == []
    assert len(find_problems(image_set, 2, ("train",))) == 1


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        (None, None),
        ((0, 0, WIDTH, HEIGHT), None),
        ((-1, -1, WIDTH + 2, HEIGHT + 2), None),  # within the tolerance
        ((0, 0, 10, -3), "box without area"),
        ((-5, 0, 50, 10), "box outside its picture"),
        ((0, 45, 10, 10), "box outside its picture"),
    ],
)
def test_boxes(tmp_path: Path, box: Box | None, kind: str | None) -> None:
    found = find_problems(set_of(tmp_path, box), 1, ("train",))
    assert [problem.partition(":")[0] for problem in found] == ([] if kind is None else [kind])


def test_a_split_without_pictures_is_a_problem(tmp_path: Path) -> None:
    image_set = set_of(tmp_path, None)
    empty = ImageSet(tmp_path, ("auk",), image_set.train, ())
    assert find_problems(empty, 1, ("train",)) == []
    (problem,) = find_problems(empty, 1)
    assert problem.startswith("no pictures:") and "test" in problem


def test_unread_tables_are_the_only_problem(birds: Path) -> None:
    (birds / "bounding_boxes.txt").unlink()
    with pytest.raises(UserError, match="1 problem:\nmissing file"):
        load_checked("CUB", birds, 2)


@pytest.mark.parametrize("layout", ["CUB", "FOLDER"])
def test_a_missing_data_set_is_one_sentence(tmp_path: Path, layout: str) -> None:
    with pytest.raises(UserError, match="does not exist") as error:
        load_checked(layout, tmp_path / "nowhere", 2)
    assert "\n" not in str(error.value)
