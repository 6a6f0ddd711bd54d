"""python -m voc12.coco: what it writes, keeps, makes again and refuses."""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import coco_files as coco
import numpy as np
import pytest

from misc.maps_io import read_image, read_label
from misc.progress import set_log_file
from voc12.coco import __main__ as command
from voc12.coco.devkit import link_picture
from voc12.devkit import Devkit
from voc12.labels import load_classes, load_image_labels
from voc12.lists import resolve_list
from voc12.preflight import find_problems

REPOSITORY = Path(command.__file__).parents[2]
TRAIN_IDS = [coco.name_of("train2014", number) for number in (9, 25, 30, 34)]
VAL_ID = coco.name_of("val2014", 42)
CLASSES = ("person", "bicycle", "stop sign")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set as it comes out of COCO's archives."""
    return coco.write_set(tmp_path / "coco")


@pytest.fixture
def converted(root: Path) -> Path:
    """The same after the command."""
    assert convert(root) == 0
    return root


def convert(root: Path, *words: str) -> int:
    try:
        return command.main([str(root), "--num_workers", "0", *words])
    finally:
        set_log_file(None)


def mask(root: Path, image_id: str) -> Path:
    return root / "SegmentationClass" / f"{image_id}.png"


def image_list(root: Path, name: str) -> Path:
    return root / "ImageSets" / "Segmentation" / f"{name}.txt"


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and link with its time of change and size."""
    paths = [path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
    stats = {str(path.relative_to(folder)): path.lstat() for path in paths}
    return {name: (stat.st_mtime_ns, stat.st_size) for name, stat in stats.items()}


# -------------------------------------------------------------------------------- what it writes


def test_lists_name_annotated_pictures_and_others_apart(converted: Path) -> None:
    assert resolve_list("train2014", converted).ids == tuple(TRAIN_IDS[:3])
    assert resolve_list("val2014", converted).ids == (VAL_ID,)
    assert image_list(converted, "train2014_unannotated").read_text() == f"{TRAIN_IDS[3]}\n"
    assert image_list(converted, "val2014_unannotated").read_text() == ""


def test_classes_are_contiguous_in_the_order_of_the_category_ids(converted: Path) -> None:
    assert load_classes(converted / "classes.txt") == CLASSES
    with (converted / "categories.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [
            ["label", "name", "category_id", "objects"],
            ["1", "person", "1", "3"],
            ["2", "bicycle", "2", "2"],
            ["3", "stop sign", "13", "4"],
        ]


def test_image_labels_are_the_categories_of_a_picture(converted: Path) -> None:
    ids = [*TRAIN_IDS, VAL_ID]
    labels = load_image_labels(ids, converted, CLASSES, converted / "labels.csv")
    expected = [[1, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 0, 1]]
    assert [labels[image_id].tolist() for image_id in ids] == expected


def test_masks_hold_labels_and_not_category_ids(converted: Path) -> None:
    drawings = {TRAIN_IDS[0]: coco.MASK_OF_9, TRAIN_IDS[1]: coco.MASK_OF_25}
    for image_id, text in drawings.items():
        assert (read_label(mask(converted, image_id)) == coco.drawn(text)).all()
    for image_id in TRAIN_IDS[2:]:
        assert not read_label(mask(converted, image_id)).any()
    expected = np.zeros((coco.HEIGHT, coco.WIDTH), np.uint8)
    expected[:4] = 3
    assert (read_label(mask(converted, VAL_ID)) == expected).all()


def test_pictures_are_linked_not_copied(converted: Path) -> None:
    for image_id, split in [(TRAIN_IDS[0], "train2014"), (VAL_ID, "val2014")]:
        path = Devkit(converted).image_path(image_id)
        assert path.is_symlink()
        assert str(path.readlink()) == f"../{split}/{image_id}.jpg"
        assert read_image(path).shape == (coco.HEIGHT, coco.WIDTH, 3)


def test_the_preflight_has_nothing_to_say(converted: Path) -> None:
    ids = [*TRAIN_IDS, VAL_ID]
    labels = converted / "labels.csv"
    assert find_problems(Devkit(converted), CLASSES, ids, ids, (), ids, labels) == []


def test_the_log_says_what_labels_mean_and_what_became_of_pictures(converted: Path) -> None:
    text = (converted / "coco.log").read_text()
    assert "1 person (category 1), 3 stop sign (category 13)" in text
    assert "list train2014: 3 pictures; 1 without any annotation are left out" in text
    assert "train2014: 4 masks drawn" in text
    assert "8 annotations in the new ones, of which 1 are crowds (255) and 4 have no pixel" in text
    assert f"next: python run_sample.py --preset coco --voc12_root {converted}\n" in text


def test_the_record_says_what_made_the_masks(converted: Path) -> None:
    record = json.loads((converted / "SegmentationClass" / "made_by.json").read_text())
    assert record["step"] == "voc12.coco"
    assert record["arguments"]["class_names"] == list(CLASSES)
    assert record["inputs"].keys() == {"train2014", "val2014"}
    assert record["lists"]["train2014"]["count"] == 3


def test_another_output_folder_leaves_the_data_set_alone(root: Path, tmp_path: Path) -> None:
    before, output = tree(root), tmp_path / "deep" / "devkit"
    assert convert(root, "--output", str(output)) == 0
    assert tree(root) == before
    assert read_image(Devkit(output).image_path(VAL_ID)).shape[:2] == (coco.HEIGHT, coco.WIDTH)
    assert str(Devkit(output).image_path(VAL_ID).readlink()).startswith("../../../coco/val2014/")


def test_parts_may_have_any_names(root: Path) -> None:
    (root / "train2014").rename(root / "mine")
    source = root / "annotations" / "instances_train2014.json"
    source.rename(source.with_name("instances_mine.json"))
    assert convert(root, "--splits", "mine") == 0
    assert resolve_list("mine", root).ids == tuple(TRAIN_IDS[:3])
    lists = "--train_list mine --val_list none --infer_list mine --eval_list mine"
    assert f"--preset coco --voc12_root {root} {lists}\n" in (root / "coco.log").read_text()


def test_processes_draw_the_same_masks(root: Path, tmp_path: Path) -> None:
    assert convert(root, "--output", str(tmp_path / "one")) == 0
    assert convert(root, "--output", str(tmp_path / "two"), "--num_workers", "2") == 0
    for image_id in [*TRAIN_IDS, VAL_ID]:
        first, second = mask(tmp_path / "one", image_id), mask(tmp_path / "two", image_id)
        assert first.read_bytes() == second.read_bytes()


def test_annotations_of_unknown_pictures_are_mentioned(root: Path) -> None:
    coco.write_json(root, "train2014", coco.TRAIN_IMAGES[1:], coco.TRAIN_ANNOTATIONS)
    assert convert(root) == 0
    text = (root / "coco.log").read_text()
    assert "3 annotations are of pictures that the file does not name" in text


# ------------------------------------------------------------------ going on, and making it again


def test_finished_masks_are_kept_and_missing_ones_drawn(converted: Path) -> None:
    mask(converted, TRAIN_IDS[1]).unlink()
    before = tree(converted / "SegmentationClass")
    assert convert(converted) == 0
    after = tree(converted / "SegmentationClass")
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {f"{TRAIN_IDS[1]}.png", "made_by.json"}
    assert "train2014: 1 masks drawn" in (converted / "coco.log").read_text()


def test_masks_are_made_again_where_the_annotation_file_changed(converted: Path) -> None:
    before = tree(converted / "SegmentationClass")
    coco.write_json(converted, "val2014", coco.VAL_IMAGES, [])
    assert convert(converted) == 0
    after = tree(converted / "SegmentationClass")
    assert not read_label(mask(converted, VAL_ID)).any()
    assert all(after[f"{i}.png"] == before[f"{i}.png"] for i in TRAIN_IDS)
    assert image_list(converted, "val2014").read_text() == ""
    text = (converted / "coco.log").read_text()
    assert "instances_val2014.json has changed: 1 masks of val2014 are made again" in text


def test_masks_are_made_again_where_the_rules_changed(
    converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask(converted, VAL_ID).write_bytes(b"old")
    monkeypatch.setattr("voc12.coco.devkit.RULES", "other")
    assert convert(converted) == 0
    assert read_label(mask(converted, VAL_ID)).max() == 3
    assert "how masks are made has changed" in (converted / "coco.log").read_text()


def test_masks_drawn_for_an_older_file_are_not_kept_when_killed_before_the_record(
    converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coco.write_json(converted, "val2014", coco.VAL_IMAGES, [])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("voc12.coco.devkit._write_record", killed)
        assert convert(converted) == 130
    assert convert(converted) == 0
    assert not read_label(mask(converted, VAL_ID)).any()


def test_pictures_with_bad_annotations_get_no_mask_and_others_do(
    root: Path, capsys: Capture
) -> None:
    bad = [coco.annotation(20, 25, 1, [[1, 2, 3]]), coco.annotation(21, 34, 1, "x")]
    coco.write_json(root, "train2014", coco.TRAIN_IMAGES, coco.TRAIN_ANNOTATIONS + bad)
    assert convert(root) == 2
    error = capsys.readouterr().err
    assert "2 pictures have no mask" in error
    assert "instances_train2014.json: annotation 20 of COCO_train2014_000000000025.jpg" in error
    made = [i for i in [*TRAIN_IDS, VAL_ID] if mask(root, i).exists()]
    assert made == [TRAIN_IDS[0], TRAIN_IDS[2], VAL_ID]


# --------------------------------------------------------------------------------------- pictures


def test_pictures_that_are_in_place_are_left_alone(root: Path) -> None:
    (root / "JPEGImages").mkdir()
    for split in ("train2014", "val2014"):
        for path in (root / split).iterdir():
            path.rename(root / "JPEGImages" / path.name)
    before = tree(root / "JPEGImages")
    assert convert(root) == 0
    assert tree(root / "JPEGImages") == before


def test_links_that_lead_elsewhere_are_replaced_and_files_are_not(tmp_path: Path) -> None:
    source, other = tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg"
    for path in (source, other):
        path.parent.mkdir()
        path.write_text(path.parent.name)
    link = tmp_path / "c" / "1.jpg"
    link_picture(other, link)
    link_picture(source, link)
    assert link.read_text() == "a" and link.is_symlink()
    link.unlink()
    link.write_text("mine")
    link_picture(source, link)
    assert link.read_text() == "mine"
    assert [path.name for path in link.parent.iterdir()] == ["1.jpg"]


def refuse(*_: object) -> None:
    raise OSError(1, "Operation not permitted")


def test_hard_links_where_symbolic_ones_are_not_allowed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert convert(root) == 0
    path = root / "JPEGImages" / f"{VAL_ID}.jpg"
    assert not path.is_symlink()
    assert path.samefile(root / "val2014" / f"{VAL_ID}.jpg")


def test_file_systems_without_links_get_a_sentence(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert convert(root) == 2
    error = capsys.readouterr().err
    assert "JPEGImages cannot hold links to pictures (Operation not permitted)" in error
    assert "move the pictures from" in error
    assert list((root / "JPEGImages").iterdir()) == []


def test_missing_pictures_stop_it_or_are_left_out_by_name(root: Path, capsys: Capture) -> None:
    (root / "train2014" / f"{TRAIN_IDS[1]}.jpg").unlink()
    assert convert(root) == 2
    error = capsys.readouterr().err
    assert f"1 of 4 pictures of {root}/annotations/instances_train2014.json are not in" in error
    assert TRAIN_IDS[1] in error and "--skip_missing" in error
    assert not (root / "classes.txt").exists()
    assert convert(root, "--skip_missing") == 0
    assert resolve_list("train2014", root).ids == (TRAIN_IDS[0], TRAIN_IDS[2])
    assert image_list(root, "train2014_missing").read_text() == f"{TRAIN_IDS[1]}\n"
    assert TRAIN_IDS[1] not in (root / "labels.csv").read_text()
    assert not mask(root, TRAIN_IDS[1]).exists()
    assert "do not compare with published ones" in (root / "coco.log").read_text()


# ---------------------------------------------------------------------------------- refused input


def empty_folder(root: Path) -> None:
    shutil.rmtree(root / "annotations")


def one_level_too_high(root: Path) -> None:
    inner = root / "inner"
    inner.mkdir()
    (root / "annotations").rename(inner / "annotations")


def other_categories(root: Path) -> None:
    categories = [*coco.CATEGORIES, {**coco.GAP, "name": "street sign"}]
    coco.write_json(root, "val2014", coco.VAL_IMAGES, coco.VAL_ANNOTATIONS, categories)


def same_pictures(root: Path) -> None:
    coco.write_json(root, "val2014", coco.TRAIN_IMAGES, [])
    shutil.copytree(root / "train2014", root / "val2014", dirs_exist_ok=True)


def truncated(root: Path) -> None:
    path = root / "annotations" / "instances_val2014.json"
    path.write_text(path.read_text()[:-30])


def no_pictures(root: Path) -> None:
    shutil.rmtree(root / "val2014")


def own_masks(root: Path) -> None:
    mask(root, "mine").parent.mkdir()
    mask(root, "mine").write_bytes(b"mine")


def own_text(name: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("mine\n")

    return spoil


def folder_for_text(root: Path) -> None:
    (root / "labels.csv").mkdir()


def file_for_folder(root: Path) -> None:
    (root / "JPEGImages").write_text("")


@pytest.mark.parametrize(
    ("spoil", "words", "told"),
    [
        (empty_folder, (), "instances_train2014.json, .*instances_val2014.json is not there"),
        (one_level_too_high, (), "did you mean .*/inner?"),
        (None, ("--splits", "test2014"), "instances_test2014.json is not there"),
        (None, ("--splits", "val2014", "val2014"), "--splits names 'val2014' more than once"),
        (other_categories, (), "id 13 is 'street sign' and 'stop sign'"),
        (same_pictures, (), "are in more than one of train2014, val2014"),
        (truncated, (), "instances_val2014.json is not a JSON object"),
        (no_pictures, (), "1 of 1 pictures of .* unpack val2014.zip"),
        (no_pictures, ("--skip_missing",), "1 of 1 pictures of .* unpack val2014.zip"),
        (own_masks, (), "mine.png was not made by this command"),
        (own_text("classes.txt"), (), "classes.txt is not as this command writes it"),
        (own_text("ImageSets/Segmentation/train2014.txt"), (), "train2014.txt is not as this"),
        (folder_for_text, (), "labels.csv is not as this command writes it"),
        (file_for_folder, (), "JPEGImages"),
        (None, ("--num_workers", "-1"), "-1 must be at least 0"),
        (None, ("--split", "val2014"), "unrecognized arguments: --split"),
    ],
)
def test_bad_input_is_a_sentence_and_nothing_of_the_user_is_touched(
    root: Path, capsys: Capture, spoil: Callable | None, words: tuple[str, ...], told: str
) -> None:
    if spoil is not None:
        spoil(root)
    before = tree(root)
    try:
        status = convert(root, *words)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    error = capsys.readouterr().err.replace("\n", " ")
    assert re.search(told, error), error
    after = tree(root)
    assert {name: after.get(name) for name in before} == before
    assert not mask(root, VAL_ID).exists()


def test_nothing_is_forgotten_that_was_converted_before(converted: Path, capsys: Capture) -> None:
    before = tree(converted)
    assert convert(converted, "--splits", "val2014") == 2
    assert "was also made from train2014; name all parts" in capsys.readouterr().err
    assert tree(converted) == before


def test_a_list_that_was_edited_is_not_replaced(converted: Path, capsys: Capture) -> None:
    image_list(converted, "val2014").write_text("mine\n")
    coco.write_json(converted, "val2014", coco.VAL_IMAGES, [])
    assert convert(converted) == 2
    assert "val2014.txt is not as this command writes it" in capsys.readouterr().err
    assert image_list(converted, "val2014").read_text() == "mine\n"
    assert read_label(mask(converted, VAL_ID)).max() == 3


def test_without_pycocotools_one_sentence_says_what_to_install(
    root: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    assert convert(root) == 2
    assert "pip install pycocotools" in capsys.readouterr().err
    assert not (root / "classes.txt").exists()


def test_command_line_answers_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from voc12.coco.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code]
    answer = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert answer.stdout.endswith("False\n") and "--skip_missing" in answer.stdout
