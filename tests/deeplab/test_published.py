"""What the published README, scripts and configurations of CRT and deeplab-pytorch say to type.

Configurations and commands are those of the published repositories; only the place of the data is
ours.
"""

import shlex
import shutil
from pathlib import Path

import pytest
import torch
from deeplab_runs import REPOSITORY, run_apart
from PIL import Image
from pipeline import VAL_IDS
from published_deeplab import coco_state, final_state

from deeplab import demo, main
from deeplab.config import FINAL, Config, Paths, load
from deeplab.model import build_model
from misc.checkpoint import save_checkpoint
from misc.files import read_json
from misc.maps_io import read_image, read_label
from misc.progress import set_log_file
from voc12.devkit import Devkit

CRT = """\
EXP:
    ID: voc12_resnet_v2
    OUTPUT_DIR: data

DATASET:
    NAME: vocaug
    ROOT: {root}
    LABELS: ./data/datasets/voc12/labels.txt
    N_CLASSES: 21
    IGNORE_LABEL: 255
    SCALES: [0.5, 0.75, 1.0, 1.25, 1.5]
    SPLIT:
        TRAIN: train_aug
        VAL: val
        TEST: test

DATALOADER:
    NUM_WORKERS: 0

IMAGE:
    MEAN:
        R: 122.675
        G: 116.669
        B: 104.008
    SIZE:
        BASE: # None
        TRAIN: 321
        TEST: 513

MODEL:
    NAME: DeepLabV2_ResNet101_MSC
    N_BLOCKS: [3, 4, 23, 3]
    ATROUS_RATES: [6, 12, 18, 24]
    INIT_MODEL: ./pretrained/deeplabv1_resnet101-coco.pth

SOLVER:
    BATCH_SIZE:
        TRAIN: 5
        TEST: 1
    ITER_MAX: 20000
    ITER_SIZE: 2
    ITER_SAVE: 5000
    ITER_TB: 100
    LR_DECAY: 10
    LR: 2.5e-4
    MOMENTUM: 0.9
    OPTIMIZER: sgd
    POLY_POWER: 0.9
    WEIGHT_DECAY: 5.0e-4
    AVERAGE_LOSS: 20

CRF:
    ITER_MAX: 10
    POS_W: 3
    POS_XY_STD: 1
    BI_W: 4
    BI_XY_STD: 67
    BI_RGB_STD: 3
"""
CONFIG = "configs/voc12_resnet_dplv2.yaml"
MODEL = "data/models/voc12/voc12_resnet_v2/train_aug/checkpoint_final.pth"
SMALL = "MODEL.N_BLOCKS=1,1,1,1 IMAGE.SIZE.TRAIN=33 SOLVER.ITER_MAX=1 SOLVER.ITER_SIZE=1"
"""Overrides that let the published run end in a test; the file stays as it is published."""


@pytest.fixture
def tree(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published deeplab folder, which is the working folder, with data and first weights."""
    root = Path(shutil.copytree(sample, tmp_path / "VOCdevkit/VOC2012"))
    lists = root / "ImageSets/Segmentation"
    shutil.copy(lists / "train.txt", lists / "train_aug.txt")
    shutil.copytree(root / "SegmentationClass", root / "pseudo_seg_labels")
    tree = tmp_path / "deeplab"
    for path in ("configs", "pretrained", "data/datasets"):
        (tree / path).mkdir(parents=True)
    shutil.copytree(REPOSITORY / "deeplab/data/datasets/voc12", tree / "data/datasets/voc12")
    (tree / CONFIG).write_text(CRT.format(root=root))
    save_checkpoint(tree / "pretrained/deeplabv1_resnet101-coco.pth", coco_state((1, 1, 1, 1)))
    monkeypatch.chdir(tree)
    return tree


def typed(command: str) -> int:
    """Exit status of `python PROGRAM ...`, run in this process."""
    python, program, *arguments = shlex.split(command)
    assert python == "python"
    try:
        return {"main.py": main.main, "demo.py": demo.main}[program](arguments)
    finally:
        set_log_file(None)


def test_published_configuration_is_read_unchanged(tree: Path) -> None:
    unused: list[str] = []
    config = load(tree / CONFIG, (), unused)
    assert unused == []
    assert config.IMAGE.SIZE.BASE is None and config.IMAGE.SIZE.TEST == 513
    assert config.DATALOADER.NUM_WORKERS == 0
    assert str(config.MODEL.INIT_MODEL) == f"{tree}/pretrained/deeplabv1_resnet101-coco.pth"
    assert Paths(config).checkpoint(FINAL) == tree / MODEL


@pytest.mark.parametrize("word", ["", "null", "none", "None", "~"])
def test_sizes_may_be_none(tree: Path, word: str) -> None:
    path = tree / CONFIG
    path.write_text(path.read_text().replace("TEST: 513", f"TEST: {word}"))
    assert load(path).IMAGE.SIZE.TEST is None
    path.write_text(path.read_text().replace("BASE: # None", f"BASE: {word}"))
    assert load(path).IMAGE.SIZE.BASE is None
    assert load(path, ["IMAGE.SIZE.TEST=none"]).IMAGE.SIZE.TEST is None


def test_published_commands_train_test_and_refine(
    tree: Path, capsys: pytest.CaptureFixture
) -> None:
    """The commands of CRT's README, with a smaller network and one iteration."""
    assert typed(f"python main.py train --config-path {CONFIG} {SMALL}") == 0
    printed = capsys.readouterr().out
    assert "was trained on masks" in printed and "not used:" not in printed
    assert (tree / MODEL).is_file()
    assert typed(f"python main.py test --config-path {CONFIG} --model-path {MODEL} {SMALL}") == 0
    assert typed(f"python main.py crf --config-path {CONFIG} {SMALL}") == 0
    assert typed(f"python main.py crf -c {CONFIG} --n-jobs 0 {SMALL}") == 0
    elsewhere = "data/models/voc12/deeplabv2_resnet101_msc/train_aug/checkpoint_final.pth"
    capsys.readouterr()
    assert typed(f"python main.py test -c {CONFIG} -m {elsewhere} {SMALL}") == 2  # deeplab-pytorch
    assert f"there are checkpoint_final.pth in {(tree / MODEL).parent}" in capsys.readouterr().err
    for name in ("scores", "scores_crf"):
        scores = read_json(tree / f"data/scores/voc12/voc12_resnet_v2/val/{name}.json")
        assert scores["initialisation"]["pixel_labels"] is True


def test_published_commands_start_from_inside_deeplab(tree: Path) -> None:
    """Without overrides and in processes of their own, up to what is missing."""
    (tree / "pretrained/deeplabv1_resnet101-coco.pth").unlink()
    program = str(REPOSITORY / "deeplab/main.py")
    for command, said in (
        ("train", "MODEL.INIT_MODEL is"),
        (f"test --model-path {MODEL}", "has no weights yet; run train"),
        ("crf", "there are no logits of test in"),
    ):
        name, *rest = command.split()
        done = run_apart(program, name, "--config-path", CONFIG, *rest, cwd=tree)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_keys_of_older_configurations_are_named_once_as_unused(
    tree: Path, capsys: pytest.CaptureFixture
) -> None:
    """deeplab-pytorch's configs/voc12.yaml before it had EXP."""
    path = tree / CONFIG
    text = path.read_text().replace(
        "    N_BLOCKS", "    SAVE_DIR: ./a\n    RESULT_DIR: b\n    N_BLOCKS"
    )
    path.write_text(text.replace("    MOMENTUM", "    LOG_DIR: runs/voc12\n    MOMENTUM"))
    assert typed(f"python main.py report -c {CONFIG}") == 2
    printed = capsys.readouterr()
    line = "not used: MODEL.SAVE_DIR, MODEL.RESULT_DIR, SOLVER.LOG_DIR; "
    assert printed.out.count(line) == 1 and "run `test --split val` first" in printed.err
    path.write_text(text.replace("MOMENTUM", "MOMENTUMS"))
    assert typed(f"python main.py report -c {CONFIG}") == 2
    assert "did you mean SOLVER.MOMENTUM?" in capsys.readouterr().err


def test_demo_says_what_replaced_it_and_that_works(
    tree: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tree / CONFIG
    path.write_text(path.read_text().replace("[3, 4, 23, 3]", "[1, 1, 1, 1]").replace("513", "65"))
    save_checkpoint(tree / "voc aug.pth", final_state((1, 1, 1, 1)))
    Image.new("RGB", (40, 30), (90, 20, 200)).save(tree / "image.jpg")
    given = f"--config-path {CONFIG} --model-path 'voc aug.pth' --image-path image.jpg --crf --cpu"
    assert typed(f"python demo.py single {given}") == 2
    command = capsys.readouterr().err.partition(" with: ")[2].strip()
    assert command == f"python main.py predict {given} --output FOLDER"
    assert typed(command) == 0
    assert read_label(tree / "FOLDER/image.png").shape == (30, 40)
    assert typed(f"python demo.py live {given}") == 2
    assert "live is not built" in capsys.readouterr().err


def test_demo_answers_as_a_script() -> None:
    done = run_apart("demo.py", "single", "-i", "a.jpg", cwd=REPOSITORY / "deeplab")
    assert done.returncode == 2 and "main.py predict -i a.jpg --output FOLDER" in done.stderr


# ------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_final_weights_load(tree: Path, prefix: str) -> None:
    """The scores are those of these very weights: they segment as torch's own loading does."""
    state = final_state((1, 1, 1, 1))
    (tree / MODEL).parent.mkdir(parents=True)
    save_checkpoint(tree / MODEL, {prefix + key: value for key, value in state.items()})
    assert typed(f"python main.py test --config-path {CONFIG} --model-path {MODEL} {SMALL}") == 0
    config = load(tree / CONFIG, SMALL.split())
    network = build_model(config)
    network.load_state_dict(state)
    for image_id in VAL_IDS:
        image = read_image(Devkit(config.DATASET.ROOT).image_path(image_id))
        bgr = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1).float()
        bgr -= torch.tensor([104.008, 116.669, 122.675]).view(3, 1, 1)
        with torch.no_grad():
            scores = network.eval()(bgr[None])
            full = torch.nn.functional.interpolate(
                scores, image.shape[:2], mode="bilinear", align_corners=False
            )
        label = read_label(Paths(config).prediction_dir("val") / f"{image_id}.png")
        assert torch.equal(torch.from_numpy(label), full[0].argmax(0).byte())
        assert len(set(label.flat)) > 1


def test_names_and_shapes_are_those_of_the_whole_published_network() -> None:
    """Both files, at full depth: nothing is missing, nothing is left over."""
    with torch.device("meta"):
        own = build_model(Config()).state_dict()
        final, coco = final_state(), coco_state()
    shapes = {key: value.shape for key, value in own.items()}
    assert {key: value.shape for key, value in final.items()} == shapes
    left = {key: shape for key, shape in shapes.items() if "aspp" not in key}
    assert {f"base.{k}": v.shape for k, v in coco.items() if not k.startswith("fc.")} == left


def test_weights_put_where_ours_go_are_not_replaced_by_a_training(
    tree: Path, capsys: pytest.CaptureFixture
) -> None:
    (tree / MODEL).parent.mkdir(parents=True)
    save_checkpoint(tree / MODEL, final_state((1, 1, 1, 1)))
    before = (tree / MODEL).read_bytes()
    for flag in ("", "--overwrite"):
        assert typed(f"python main.py train --config-path {CONFIG} {flag} {SMALL}") == 2
        error = capsys.readouterr().err
        assert "no record of what made it, so it is not replaced" in error
        assert "--overwrite" not in error
    assert (tree / MODEL).read_bytes() == before
