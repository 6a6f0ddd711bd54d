"""Data in COCO's layout go through preflight, training, CAMs, scores and DeepLab's checks."""

import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import coco_files as coco
import numpy as np
import pipeline
import pytest
from deeplab_runs import CONFIG

from deeplab.config import load
from deeplab.preflight import check_evaluation, check_training
from misc.errors import UserError
from misc.files import read_json, write_json
from misc.maps_io import load_cam, read_label
from misc.progress import set_log_file
from step.command_line import parse_args
from step.next_command import deeplab_command
from voc12.coco import __main__ as command
from voc12.devkit import Devkit
from voc12.labels import VOC_CLASSES, read_annotation
from voc12.preflight import find_problems
from voc12.sample.devkit import build

# COCO's ids of the six classes of the sample: another order than VOC's, and with gaps.
CATEGORIES = {"car": 3, "boat": 9, "bird": 16, "cat": 17, "sheep": 20, "tvmonitor": 72}
NAMES = sorted(CATEGORIES, key=CATEGORIES.__getitem__)
STEPS = "train_cam,make_cam,eval_cam"
SPLITS = {"train2014": range(1, 9), "val2014": range(9, 13)}
LISTS = dict.fromkeys(("train_list", "val_list", "infer_list"))
"""Options that a run leaves to the preset."""

Capture = pytest.CaptureFixture[str]


def sample_id(number: int) -> str:
    return f"sample_{number:06d}"


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures to train on and four others, in VOC's layout."""
    return build(tmp_path_factory.mktemp("voc") / "voc", 8, 4, size_range=((44, 56), (56, 68)))


def annotations_of(voc: Path, numbers: Iterable[int]) -> list[Any]:
    """The objects of the sample as run lengths."""
    found = []
    for number in numbers:
        objects = read_label(voc / "SegmentationObject" / f"{sample_id(number)}.png")
        classes = read_label(voc / "SegmentationClass" / f"{sample_id(number)}.png")
        for value in np.setdiff1d(objects, [0, 255]):
            name = VOC_CLASSES[int(classes[objects == value][0]) - 1]
            shape = coco.runs(objects == value)
            found.append(coco.annotation(len(found), number, CATEGORIES[name], shape))
    return found


@pytest.fixture(scope="module")
def root(voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures in COCO's layout, converted."""
    root = tmp_path_factory.mktemp("coco") / "coco"
    categories = [{"id": number, "name": name} for name, number in CATEGORIES.items()]
    for split, numbers in SPLITS.items():
        (root / split).mkdir(parents=True)
        images = []
        for number in numbers:
            mask = read_label(voc / "SegmentationClass" / f"{sample_id(number)}.png")
            images.append(coco.image(split, number, mask.shape))
            source = Devkit(voc).image_path(sample_id(number))
            shutil.copy(source, root / split / images[-1]["file_name"])
        coco.write_json(root, split, images, annotations_of(voc, numbers), categories)
    assert command.main([str(root), "--num_workers", "0"]) == 0
    set_log_file(None)
    return root


def run(root: Path, work_dir: Path, *flags: str, **options: Any) -> int:
    return pipeline.run(root, work_dir, "--preset", "coco", *flags, **{**LISTS, **options})


def test_masks_are_those_of_the_sample_with_the_labels_of_coco(voc: Path, root: Path) -> None:
    label_of = np.zeros(256, np.uint8)
    for position, name in enumerate(VOC_CLASSES, start=1):
        label_of[position] = NAMES.index(name) + 1 if name in NAMES else 99
    for split, numbers in SPLITS.items():
        for number in numbers:
            theirs = read_label(voc / "SegmentationClass" / f"{sample_id(number)}.png")
            ours = read_label(root / "SegmentationClass" / f"{coco.name_of(split, number)}.png")
            inside = theirs != 255  # VOC's borders belong to no object
            assert (ours[inside] == label_of[theirs[inside]]).all()
            assert not ours[~inside].any()


def test_classes_follow_the_category_ids(root: Path) -> None:
    assert (root / "classes.txt").read_text().split() == NAMES


@pytest.fixture(scope="module")
def work(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folder of the first three steps."""
    work_dir = tmp_path_factory.mktemp("work")
    assert run(root, work_dir, "--steps", STEPS, cam_num_epoches=1, cam_batch_size=4) == 0
    return work_dir


def test_run_reads_lists_classes_and_labels_of_the_preset(voc: Path, work: Path) -> None:
    ids = {coco.name_of("train2014", number) for number in SPLITS["train2014"]}
    assert pipeline.ids_in(work / "result" / "cam") == ids
    for number in SPLITS["train2014"]:
        names = read_annotation(Devkit(voc).annotation_path(sample_id(number))).names
        cam = load_cam(work / "result" / "cam" / f"{coco.name_of('train2014', number)}.npz")
        assert [NAMES[key] for key in cam.keys] == sorted(names, key=NAMES.index)


def test_scores_name_their_list_and_classes(work: Path) -> None:
    result = pipeline.metrics(work)["steps"]["eval_cam"]
    assert (result["list"], result["pictures"]) == ("train2014", 8)
    assert set(result["iou"]) == {"background", *NAMES}
    assert result["miou"] is not None
    assert "not the standard one" not in pipeline.log_of(work)


# ------------------------------------------------------------------------------------- the preset


def test_preset_reads_what_the_command_writes_unless_told_otherwise() -> None:
    args = parse_args(["--preset", "coco", "--voc12_root", "data/coco"])
    assert (args.classes, args.cls_labels) == ("data/coco/classes.txt", "data/coco/labels.csv")
    lists = args.train_list, args.val_list, args.infer_list, args.eval_list
    assert lists == ("train2014", "val2014", "train2014", "train2014")
    words = ["--preset", "coco", "--voc12_root", "x", "--classes", "a.txt", "--infer_list", "val"]
    args = parse_args(words)
    assert (args.classes, args.cls_labels, args.infer_list) == ("a.txt", "x/labels.csv", "val")


def test_preset_keeps_the_published_hyper_parameters() -> None:
    coco_args = vars(parse_args(["--preset", "coco", "--voc12_root", "x"]))
    paper = vars(parse_args(["--voc12_root", "x"]))
    differing = {name for name in paper if coco_args[name] != paper[name]}
    data = {"preset", "classes", "cls_labels", "train_list", "val_list", "infer_list", "eval_list"}
    assert differing == data


def test_preset_needs_a_data_set(capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_args(["--preset", "coco"])
    assert "--voc12_root is required" in capsys.readouterr().err


def test_preset_before_the_command_says_what_to_do(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "coco" / "train2014").mkdir(parents=True)
    assert run(tmp_path / "coco", tmp_path / "work") == 2
    error = capsys.readouterr().err
    assert "coco/classes.txt does not exist; python -m voc12.coco ROOT writes it" in error


# ------------------------------------------------------------------------------- mixed-up classes


def spoil_classes(root: Path, path: Path) -> Path:
    """COCO's classes with one too many in the middle, as in lists of 91."""
    names = (root / "classes.txt").read_text().split()
    path.write_text("\n".join([*names[:2], "street sign", *names[2:]]) + "\n")
    return path


def test_run_with_other_classes_than_the_masks_is_refused(
    root: Path, tmp_path: Path, capsys: Capture
) -> None:
    classes = spoil_classes(root, tmp_path / "classes.txt")
    assert run(root, tmp_path / "work", "--steps", STEPS, classes=classes) == 2
    error = capsys.readouterr().err
    assert "label 3 is 'bird' in" in error and "but 'street sign' in this run" in error
    assert not list((tmp_path / "work").rglob("*.pth"))


def config_values(root: Path, classes: Path, labels: Path, **more: Any) -> list[str]:
    values = {
        "DATASET.ROOT": root,
        "DATASET.LABELS": classes,
        "DATASET.N_CLASSES": len(classes.read_text().split("\n")),
        "DATASET.TRAIN_LABELS": labels,
        "DATASET.SPLIT.TRAIN": "train2014",
        "DATASET.SPLIT.VAL": "val2014",
        **more,
    }
    return [f"{key}={value}" for key, value in values.items()]


def test_deeplab_finds_pictures_and_masks(root: Path) -> None:
    masks = root / "SegmentationClass"
    config = load(CONFIG, config_values(root, root / "classes.txt", masks))
    pictures, shares = check_training(config)
    assert len(pictures) == 8 and shares.has_objects
    scored, labels = check_evaluation(config, "val")
    assert set(labels) == set(scored.ids) and len(labels) == 4


@pytest.mark.parametrize("check", [check_training, lambda config: check_evaluation(config, "val")])
def test_deeplab_refuses_other_classes_than_those_of_the_masks(
    root: Path, tmp_path: Path, check: Any
) -> None:
    masks = root / "SegmentationClass"
    classes = spoil_classes(root, tmp_path / "classes.txt")
    config = load(CONFIG, config_values(root, classes, masks))
    with pytest.raises(UserError, match=r"label 3 is 'bird' in .* with DATASET\.LABELS"):
        check(config)


def test_command_for_deeplab_names_the_classes_and_the_list(root: Path, work: Path) -> None:
    flags = ("--preset", "coco")
    words = shlex.split(deeplab_command(pipeline.prepared(root, work, *flags, **LISTS)))
    assert f"DATASET.LABELS={root}/classes.txt" in words
    assert "DATASET.SPLIT.TRAIN=train2014" in words
    assert f"DATASET.N_CLASSES={len(NAMES) + 1}" in words


def test_masks_whose_record_names_no_classes_are_used_as_they_are(
    root: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "copy", symlinks=True))
    ids = [coco.name_of("val2014", number) for number in SPLITS["val2014"]]
    record = copy / "SegmentationClass" / "made_by.json"
    content = read_json(record)
    classes = ["x", *NAMES[1:]]
    assert "masks of other classes" in find_problems(Devkit(copy), classes, ids, ids)[0]
    del content["arguments"]["class_names"]
    write_json(record, content)
    assert find_problems(Devkit(copy), classes, ids, ids) == []
