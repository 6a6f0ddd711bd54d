"""The configuration of DeepLab: published defaults, consistency, class names and paths."""

import subprocess
import sys
from pathlib import Path

import pytest

from deeplab.config import VOC_LABELS, Config, Paths, class_names, dataset_root, load
from misc.config import flatten
from misc.errors import UserError
from voc12.labels import VOC_CLASSES

REPOSITORY = Path(__file__).parents[2]
PUBLISHED_YAML = REPOSITORY / "deeplab/configs/voc12_resnet_dplv2.yaml"
PUBLISHED = {
    "EXP.ID": "voc12_resnet_v2",
    "DATASET.NAME": "vocaug",
    "DATASET.N_CLASSES": 21,
    "DATASET.IGNORE_LABEL": 255,
    "DATASET.SCALES": [0.5, 0.75, 1.0, 1.25, 1.5],
    "DATASET.SPLIT.TRAIN": "train_aug",
    "DATASET.SPLIT.VAL": "val",
    "DATASET.SPLIT.TEST": "test",
    "IMAGE.MEAN.R": 122.675,
    "IMAGE.MEAN.G": 116.669,
    "IMAGE.MEAN.B": 104.008,
    "IMAGE.SIZE.BASE": None,
    "IMAGE.SIZE.TRAIN": 321,
    "IMAGE.SIZE.TEST": 513,
    "MODEL.NAME": "DeepLabV2_ResNet101_MSC",
    "MODEL.N_BLOCKS": [3, 4, 23, 3],
    "MODEL.ATROUS_RATES": [6, 12, 18, 24],
    "SOLVER.BATCH_SIZE.TRAIN": 5,
    "SOLVER.BATCH_SIZE.TEST": 1,
    "SOLVER.ITER_MAX": 20000,
    "SOLVER.ITER_SIZE": 2,
    "SOLVER.ITER_SAVE": 5000,
    "SOLVER.ITER_TB": 100,
    "SOLVER.LR_DECAY": 10,
    "SOLVER.LR": 2.5e-4,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.OPTIMIZER": "sgd",
    "SOLVER.POLY_POWER": 0.9,
    "SOLVER.WEIGHT_DECAY": 5e-4,
    "SOLVER.AVERAGE_LOSS": 20,
    "CRF.ITER_MAX": 10,
    "CRF.POS_W": 3,
    "CRF.POS_XY_STD": 1,
    "CRF.BI_W": 4,
    "CRF.BI_XY_STD": 67,
    "CRF.BI_RGB_STD": 3,
    "CRF.IMAGE": "rgb",
}
THREE_CLASSES = "0\t__background__\n1 potted plant\n\n2\tcow, ox\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with configs/own.yaml, which sets nothing, and the class names of own data."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "own.yaml").write_text("")
    (tmp_path / "labels.txt").write_text(THREE_CLASSES)
    return tmp_path


def own(tree: Path, *overrides: str) -> Config:
    return load(tree / "configs" / "own.yaml", overrides)


def refusal(tree: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        own(tree, *overrides)
    return str(caught.value)


@pytest.mark.parametrize("source", [PUBLISHED_YAML, None])
def test_published_values_are_in_the_yaml_and_are_the_defaults(
    source: Path | None, tree: Path
) -> None:
    values = flatten(own(tree) if source is None else load(source))
    assert {key: values[key] for key in PUBLISHED} == PUBLISHED


def test_yaml_spells_out_every_key_with_its_default() -> None:
    written, default = flatten(load(PUBLISHED_YAML)), flatten(Config())
    assert written.pop("EXP.OUTPUT_DIR") == str(REPOSITORY / "deeplab" / default["EXP.OUTPUT_DIR"])
    assert written.pop("DATASET.LABELS") == str(VOC_LABELS)
    assert {key: default[key] for key in written} == written
    text = PUBLISHED_YAML.read_text()
    assert all(f"{key.rpartition('.')[2]}:" in text for key in default)


def test_published_location_of_the_weights() -> None:
    folder = REPOSITORY / "deeplab/data/models/voc12/voc12_resnet_v2/train_aug"
    paths = Paths(load(PUBLISHED_YAML))
    assert paths.checkpoint("final") == folder / "checkpoint_final.pth"
    assert paths.checkpoint(5000) == folder / "checkpoint_5000.pth"
    assert paths.state_path.parent == folder


def test_no_two_outputs_share_a_path(tree: Path) -> None:
    paths = Paths(own(tree))
    outputs = [paths.models_dir, paths.logs_dir, paths.report_path, paths.figure_path]
    for split in ("train", "val", "test"):
        outputs.append(paths.logits_dir(split))
        for crf in (False, True):
            outputs += [
                paths.prediction_dir(split, crf),
                paths.scores_path(split, crf),
                paths.submission_path(split, crf),
            ]
    assert len(set(outputs)) == len(outputs)
    assert all((tree / "data") in path.parents for path in outputs)


def test_class_names_of_voc_are_those_of_the_pseudo_masks() -> None:
    assert class_names(Config()) == ("background", *VOC_CLASSES)


def test_own_class_names(tree: Path) -> None:
    config = own(tree, f"DATASET.LABELS={tree / 'labels.txt'}", "DATASET.N_CLASSES=3")
    assert class_names(config) == ("background", "potted plant", "cow")
    (tree / "classes.txt").write_text("potted plant\ncow\n")  # as for run_sample.py
    config = own(tree, f"DATASET.LABELS={tree / 'classes.txt'}", "DATASET.N_CLASSES=3")
    assert class_names(config) == ("background", "potted plant", "cow")


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("0 background\n2 cow\n", "line 2: '2 cow' should be `1 NAME`"),
        ("background\ncow\n", "line 1: 'background' should be `0 NAME`"),
        ("0 background\n1\n", "line 2: '1' should be"),
        ("0 background\n1 cow\n2 cow\n", "line 3: '2 cow' should be"),
        ("0 cow\n", "class 0 must be 'background'"),
        ("", "class 0 must be 'background'"),
    ],
)
def test_unusable_class_names(tree: Path, text: str, reported: str) -> None:
    (tree / "labels.txt").write_text(text)
    assert reported in refusal(tree, f"DATASET.LABELS={tree / 'labels.txt'}")


def test_missing_class_names(tree: Path) -> None:
    assert "none.txt cannot be read" in refusal(tree, f"DATASET.LABELS={tree / 'none.txt'}")


@pytest.mark.parametrize(
    ("overrides", "reported"),
    [
        (["DATASET.N_CLASSES=20"], "DATASET.N_CLASSES is 20 but"),
        (["DATASET.IGNORE_LABEL=0"], "DATASET.IGNORE_LABEL is 0"),
        (["DATASET.SCALES=1,0"], "DATASET.SCALES is [1.0, 0.0]"),
        (["SOLVER.BATCH_SIZE.TEST=4"], "SOLVER.BATCH_SIZE.TEST is 4; set it to 1"),
        (["MODEL.N_BLOCKS=1,1,1"], "MODEL.N_BLOCKS is [1, 1, 1]"),
        (["MODEL.ATROUS_RATES=0"], "MODEL.ATROUS_RATES is [0]"),
        (["MODEL.NAME=DeepLabV2_Backbone_MSC"], "MODEL.BACKBONE is not set"),
        (["MODEL.BACKBONE=resnet18"], "MODEL.BACKBONE is 'resnet18'"),
        (["MODEL.BACKBONE_ARGS.depth=1"], "MODEL.BACKBONE_ARGS is {'depth': 1}, which"),
        (["MODEL.INIT_MODEL=none", "MODEL.INIT_WEIGHTS=a.pth"], "MODEL.INIT_WEIGHTS is"),
        (["EXP.ID=a/b"], "EXP.ID is 'a/b'"),
        (["MODEL.NAME=DeepLabV3"], "MODEL.NAME is 'DeepLabV3'; expected one of"),
        (["SOLVER.OPTIMIZER=adam"], "SOLVER.OPTIMIZER is 'adam'"),
        (["SOLVER.ITER_SIZE=0"], "SOLVER.ITER_SIZE is 0"),
        (["SOLVER.LR=-1"], "SOLVER.LR is -1"),
        (["CRF.POS_XY_STD=1e-6"], "CRF.POS_XY_STD is 1e-06; it must be at least 0.01"),
        (["CRF.BI_XY_STD=1e-6"], "CRF.BI_XY_STD is 1e-06; it must be at least 0.01"),
        (["CRF.BI_RGB_STD=1e-6"], "CRF.BI_RGB_STD is 1e-06; it must be at least 0.01"),
        (["SOLVER.ITER_MX=1"], "did you mean SOLVER.ITER_MAX?"),
    ],
)
def test_wrong_values_are_named(tree: Path, overrides: list[str], reported: str) -> None:
    assert reported in refusal(tree, *overrides)


def test_all_inconsistencies_are_told_at_once(tree: Path) -> None:
    message = refusal(tree, "SOLVER.BATCH_SIZE.TEST=4", "DATASET.N_CLASSES=7")
    lines = message.splitlines()
    assert len(lines) == 2 and all(str(tree / "configs" / "own.yaml") in line for line in lines)


def test_initialisation_is_a_word_or_a_file(tree: Path) -> None:
    assert own(tree).MODEL.INIT_MODEL == "imagenet"
    assert own(tree, "MODEL.INIT_MODEL=none").MODEL.INIT_MODEL == "none"
    (tree / "configs" / "own.yaml").write_text("MODEL: {INIT_MODEL: coco.pth}\n")
    init = own(tree).MODEL.INIT_MODEL
    assert init == tree / "coco.pth"


def test_list_files_are_found_from_the_tree_and_from_the_working_folder(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree / "configs")
    for folder in (tree, tree / "configs"):
        (folder / "mine.txt").write_text("a\n")
    (tree / "configs" / "own.yaml").write_text("DATASET: {SPLIT: {TRAIN: mine.txt}}\n")
    of_file = own(tree).DATASET.SPLIT
    assert Path(of_file.TRAIN) == tree / "mine.txt"
    config = own(tree, "DATASET.SPLIT.TRAIN=mine.txt", "DATASET.SPLIT.VAL=voc12/val.txt")
    of_command_line = config.DATASET.SPLIT
    assert Path(of_command_line.TRAIN) == tree / "configs" / "mine.txt"
    assert of_command_line.VAL == "voc12/val.txt"
    assert Paths(config).list_name("train") == "mine" and Paths(config).list_name("val") == "val"


def test_missing_root_says_what_to_do(tree: Path) -> None:
    with pytest.raises(UserError, match=r"DATASET\.ROOT is not set; name the devkit"):
        dataset_root(own(tree))
    assert dataset_root(own(tree, f"DATASET.ROOT={tree}")) == tree


def test_configuration_answers_without_torch() -> None:
    code = "import sys, deeplab.config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
