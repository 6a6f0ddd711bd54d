"""Every problem of a data set is found, and all of them are told at once."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import fill
from PIL import Image

from misc.maps_io import write_label
from voc12.devkit import Devkit
from voc12.preflight import find_problems

CLASSES = ("cat", "dog")
IDS = ("a", "b", "7")
EXIF_ORIENTATION = 0x0112


@pytest.fixture
def devkit(tmp_path: Path) -> Devkit:
    """Three sound pictures with masks, object masks and annotations."""
    devkit = Devkit(tmp_path / "root")
    for folder in ("JPEGImages", "Annotations"):
        (devkit.root / folder).mkdir(parents=True)
    label = np.zeros((10, 14), np.uint8)
    label[2:5], label[5:7] = 2, 255
    for image_id in IDS:
        Image.fromarray(fill.image(image_id, 10, 14)).save(devkit.image_path(image_id))
        annotate(devkit, image_id, "cat")
        write_label(devkit.root / "SegmentationClassAug" / f"{image_id}.png", label)
        write_label(devkit.object_mask_path(image_id), label * 3)
    return devkit


def annotate(devkit: Devkit, image_id: str, name: str) -> None:
    text = f"<annotation><object><name>{name}</name></object></annotation>"
    devkit.annotation_path(image_id).write_text(text)


def mask(devkit: Devkit, image_id: str) -> Path:
    return devkit.root / "SegmentationClassAug" / f"{image_id}.png"


def all_problems(devkit: Devkit, ids: tuple[str, ...] = IDS) -> list[str]:
    return find_problems(devkit, CLASSES, ids, ids, ids, ids)


def only_problem(devkit: Devkit) -> str:
    (problem,) = all_problems(devkit)
    return problem


def test_sound_data_has_no_problems(devkit: Devkit) -> None:
    assert all_problems(devkit) == []


def test_missing_root_is_one_problem_that_says_what_was_expected(tmp_path: Path) -> None:
    problem = only_problem(Devkit(tmp_path / "nowhere"))
    assert "nowhere (--voc12_root) does not exist" in problem and "JPEGImages" in problem


@pytest.mark.parametrize(
    ("folder", "reported"),
    [
        ("JPEGImages", "JPEGImages"),
        ("Annotations", "Annotations"),
        ("SegmentationClassAug", "SegmentationClass or "),
        ("SegmentationObject", "SegmentationObject"),
    ],
)
def test_missing_folder_is_one_problem(devkit: Devkit, folder: str, reported: str) -> None:
    (devkit.root / folder).rename(devkit.root / "away")
    problem = only_problem(devkit)
    assert problem.startswith("missing folder: ") and reported in problem and "3 ids" in problem


def test_folders_nobody_needs_may_be_missing(devkit: Devkit) -> None:
    for folder in ("Annotations", "SegmentationClassAug", "SegmentationObject"):
        (devkit.root / folder).rename(devkit.root / f"away_{folder}")
    assert find_problems(devkit, CLASSES, IDS) == []


def test_root_one_level_too_high_is_recognised(devkit: Devkit) -> None:
    problems = find_problems(Devkit(devkit.root.parent), CLASSES, IDS)
    assert len(problems) == 1 and f"did you mean --voc12_root {devkit.root}?" in problems[0]


def test_missing_picture(devkit: Devkit) -> None:
    devkit.image_path("b").unlink()
    assert only_problem(devkit).startswith("missing picture: 'b' has no ")


def test_ids_with_suffix_get_a_hint(devkit: Devkit) -> None:
    (problem,) = find_problems(devkit, CLASSES, ("a.jpg",))
    assert "list ids without suffix" in problem


def test_truncated_picture_whose_header_is_fine(devkit: Devkit) -> None:
    path = devkit.image_path("b")
    path.write_bytes(path.read_bytes()[:-60])
    with Image.open(path) as image:
        assert image.size == (14, 10)
    assert only_problem(devkit).startswith(f"unreadable picture: {path}")


def test_missing_mask(devkit: Devkit) -> None:
    mask(devkit, "7").unlink()
    problem = only_problem(devkit)
    assert problem.startswith("missing mask: '7' has no ")
    assert "SegmentationClass/7.png (nor SegmentationClassAug)" in problem


def test_mask_of_another_size(devkit: Devkit) -> None:
    write_label(mask(devkit, "a"), np.zeros((10, 13), np.uint8))
    problem = only_problem(devkit)
    assert problem.startswith("mask of another size: ") and "is 13x10" in problem
    assert problem.endswith("is 14x10")


def test_object_mask_of_another_size(devkit: Devkit) -> None:
    write_label(devkit.object_mask_path("a"), np.zeros((1, 1), np.uint8))
    assert "SegmentationObject/a.png is 1x1" in only_problem(devkit)


def test_mask_drawn_on_the_rotated_picture_gets_an_explanation(devkit: Devkit) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.fromarray(fill.image("a", 14, 10)).save(devkit.image_path("a"), exif=exif)
    (problem,) = find_problems(devkit, CLASSES, IDS, IDS)
    assert "its EXIF rotation is ignored" in problem


def test_mask_values_are_named(devkit: Devkit) -> None:
    write_label(mask(devkit, "a"), np.arange(140, dtype=np.uint8).reshape(10, 14) % 5)
    problem = only_problem(devkit)
    assert problem.startswith("mask with other values: ")
    assert "holds 3, 4; allowed are 0..2 and 255" in problem


def test_colour_mask(devkit: Devkit) -> None:
    Image.fromarray(fill.image("a", 10, 14)).save(mask(devkit, "a"))
    problem = only_problem(devkit)
    assert problem.startswith("unusable mask: ") and "mode RGB" in problem


def test_masks_are_compared_with_pictures_that_need_no_check(devkit: Devkit) -> None:
    write_label(mask(devkit, "a"), np.zeros((10, 13), np.uint8))
    (problem,) = find_problems(devkit, CLASSES, (), ("a",))
    assert problem.startswith("mask of another size: ")
    devkit.image_path("a").unlink()
    assert find_problems(devkit, CLASSES, (), ("a",)) == []


def test_own_mask_folder(devkit: Devkit, tmp_path: Path) -> None:
    write_label(tmp_path / "own" / "a.png", np.full((10, 14), 9, np.uint8))
    (problem,) = find_problems(devkit, CLASSES, ("a",), ("a",), mask_dir=tmp_path / "own")
    assert "own/a.png holds 9" in problem
    (problem,) = find_problems(devkit, CLASSES, ("a",), ("a",), mask_dir=tmp_path / "none")
    assert problem.startswith("missing folder: ")


def test_annotation_problems(devkit: Devkit) -> None:
    devkit.annotation_path("a").unlink()
    devkit.annotation_path("b").write_text("<annotation>")
    annotate(devkit, "7", "wolf")
    missing, malformed, unknown = all_problems(devkit)
    assert missing.startswith("missing image label: 'a' has no ")
    assert malformed.startswith("unusable image label: ") and "b.xml" in malformed
    assert "7.xml: unknown class 'wolf'; known are cat, dog" in unknown


def test_own_image_labels_replace_annotations(devkit: Devkit, tmp_path: Path) -> None:
    (devkit.root / "Annotations").rename(devkit.root / "away")
    path = tmp_path / "labels.csv"
    path.write_text("a,cat\nb,wolf\n")
    unknown, missing = find_problems(devkit, CLASSES, IDS, label_ids=IDS, cls_labels=path)
    assert "labels.csv, line 2: unknown class 'wolf'" in unknown
    assert missing == "missing image label: '7' has no entry in --cls_labels"
    path.write_text("a\n")
    (unusable,) = find_problems(devkit, CLASSES, IDS, label_ids=IDS, cls_labels=path)
    assert unusable.startswith("unusable image labels: ") and "line 1" in unusable


def test_different_problems_are_found_together(devkit: Devkit) -> None:
    devkit.image_path("a").write_bytes(b"no picture")
    mask(devkit, "b").unlink()
    annotate(devkit, "7", "wolf")
    (devkit.root / "SegmentationObject").rename(devkit.root / "away")
    kinds = [problem.partition(":")[0] for problem in all_problems(devkit)]
    assert kinds == [
        "missing folder",
        "unreadable picture",
        "missing mask",
        "unusable image label",
    ]


def test_every_picture_is_opened_once(devkit: Devkit, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = Image.open

    def counting_open(path: Path) -> Image.Image:
        opened.append(str(path))
        return real(path)

    monkeypatch.setattr("misc.maps_io.Image.open", counting_open)
    twice = IDS + IDS
    assert find_problems(devkit, CLASSES, twice, twice, twice, twice) == []
    assert len(opened) == len(set(opened)) == 9


# ------------------------------------------------------------------------------- what is remembered


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folder and name of every picture and mask that is opened."""
    names: list[str] = []
    real = Image.open

    def counted(path: Path, *args: Any, **options: Any) -> Image.Image:
        names.append("/".join(Path(path).parts[-2:]))
        return real(path, *args, **options)

    monkeypatch.setattr(Image, "open", counted)
    return names


def remembered_problems(devkit: Devkit) -> list[str]:
    cache = devkit.root.parent / "cache"
    return find_problems(devkit, CLASSES, IDS, IDS, IDS, IDS, cache_dir=cache)


def test_every_file_is_decoded_once_and_not_at_the_next_start(
    devkit: Devkit, opened: list[str]
) -> None:
    assert remembered_problems(devkit) == []
    folders = ("JPEGImages/{}.jpg", "SegmentationClassAug/{}.png", "SegmentationObject/{}.png")
    assert sorted(opened) == sorted(folder.format(i) for folder in folders for i in IDS)
    opened.clear()
    assert remembered_problems(devkit) == []
    assert opened == []


def test_only_changed_files_are_decoded_again(devkit: Devkit, opened: list[str]) -> None:
    assert remembered_problems(devkit) == []
    opened.clear()
    picture, label = devkit.image_path("b"), mask(devkit, "7")
    data = picture.read_bytes()
    picture.write_bytes(data[:-60] + bytes(60))  # of the same size
    os.utime(picture, ns=(7, 7))
    os.utime(label, ns=(7, 7))
    (problem,) = remembered_problems(devkit)
    assert problem.startswith(f"unreadable picture: {picture}")
    assert sorted(set(opened)) == ["JPEGImages/b.jpg", "SegmentationClassAug/7.png"]
    opened.clear()
    assert remembered_problems(devkit) == [problem]  # what is wrong is told until it is mended
    picture.write_bytes(data)
    assert remembered_problems(devkit) == []


def test_remembered_masks_are_held_against_the_classes_and_sizes_of_now(devkit: Devkit) -> None:
    assert remembered_problems(devkit) == []
    cache = devkit.root.parent / "cache"
    found = find_problems(devkit, ("cat",), (), IDS, cache_dir=cache)
    assert len(found) == 3 and all("holds 2; allowed are 0..1 and 255" in one for one in found)
    Image.fromarray(fill.image("a", 10, 15)).save(devkit.image_path("a"))
    wrong = remembered_problems(devkit)
    assert len(wrong) == 2 and all("is 14x10" in one and "is 15x10" in one for one in wrong)


def test_remembered_annotations_are_held_against_the_classes_of_now(devkit: Devkit) -> None:
    assert remembered_problems(devkit) == []
    cache = devkit.root.parent / "cache"
    found = find_problems(devkit, ("dog",), (), label_ids=IDS, cache_dir=cache)
    assert len(found) == 3 and all("unknown class 'cat'" in one for one in found)
