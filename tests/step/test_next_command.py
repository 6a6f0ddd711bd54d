"""The DeepLab command that a run's masks are enough for: told before and after, and true."""

import re
import shlex
from pathlib import Path

import pytest
from pipeline import TRAIN_IDS, VAL_IDS, copy_of, log_of, prepared, run, write_list

from deeplab.config import load
from deeplab.main import parse_args as parse_deeplab
from deeplab.preflight import check_training
from step.command_line import parse_args
from step.next_command import deeplab_advice, deeplab_command
from step.run import prepare_data


def deeplab_reads(command: str) -> list[str]:
    """Ids that DeepLab would train on, all of which it finds usable."""
    program, script, *argv = shlex.split(command)
    assert (program, Path(script).name) == ("python", "main.py")
    args = parse_deeplab(argv)
    pictures, _ = check_training(load(args.config_path, args.overrides))
    return list(pictures.ids)


def test_command_is_told_before_and_after_and_deeplab_accepts_it(
    sample: Path, finished: Path
) -> None:
    commands = re.findall(r"enough for: (.*?)(?: \(the published|\n)", log_of(finished))
    assert len(commands) == 2 and commands[0] == commands[1]
    assert tuple(deeplab_reads(commands[0])) == TRAIN_IDS


def test_arguments_of_the_cnn_are_handed_over(sample: Path, finished: Path) -> None:
    assert "BACKBONE_ARGS" not in deeplab_command(prepared(sample, finished))
    given = {"cnn": "resnet10t", "cnn_args": "channels=(32,64,128,256),stem_width=16"}
    _, _, *argv = shlex.split(deeplab_command(prepared(sample, finished, **given)))
    args = parse_deeplab(argv)
    model = load(args.config_path, args.overrides).MODEL
    assert model.BACKBONE == "resnet10t"
    assert str(model.INIT_MODEL) == f"{finished}/sess/res152_cam.pth"
    assert model.BACKBONE_ARGS == {"channels": [32, 64, 128, 256], "stem_width": 16}


def test_masks_of_another_list_are_named(sample: Path, finished: Path, tmp_path: Path) -> None:
    work = copy_of(finished, tmp_path / "work")
    both = write_list(tmp_path / "both.txt", VAL_IDS)
    steps = ("--steps", "make_cam,make_sem_seg_labels")
    assert run(sample, work, *steps, infer_list=both) == 0
    command = deeplab_command(prepared(sample, work, infer_list=both))
    assert f"DATASET.SPLIT.TRAIN={both}" in command
    assert tuple(deeplab_reads(command)) == VAL_IDS


def test_runs_without_masks_name_no_command(sample: Path, finished: Path, tmp_path: Path) -> None:
    work = copy_of(finished, tmp_path / "work")
    assert run(sample, work, "--steps", "eval_cam") == 0
    assert "enough for" not in log_of(work)


@pytest.mark.parametrize(("infer_list", "missing"), [("train", 2), ("voc12/train_aug.txt", 0)])
def test_published_training_needs_train_aug(tmp_path: Path, infer_list: str, missing: int) -> None:
    root = tmp_path / "VOC2012"
    lists = {"train": ["a"], "train_aug": ["a", "b", "c"], "val": ["d"]}
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for name, ids in lists.items():
        write_list(root / f"ImageSets/Segmentation/{name}.txt", ids)
    argv = ["--voc12_root", str(root), "--work_dir", str(tmp_path), "--infer_list", infer_list]
    advice = deeplab_advice(prepare_data(parse_args(argv)))
    assert ("DATASET.SPLIT.TRAIN=train" in advice) is bool(missing)
    assert (f"of which {missing} pictures would have no mask" in advice) is bool(missing)
    assert ("--infer_list voc12/train_aug.txt" in advice) is bool(missing)


def test_own_classes_are_handed_over(tmp_path: Path) -> None:
    (tmp_path / "voc").mkdir()
    (tmp_path / "classes.txt").write_text("apple\npear tree\n")
    one = write_list(tmp_path / "mine.txt", ["a"])
    own = {"voc12_root": tmp_path / "voc", "classes": tmp_path / "classes.txt", "infer_list": one}
    argv = [text for name, value in own.items() for text in (f"--{name}", str(value))]
    words = shlex.split(deeplab_command(prepare_data(parse_args(argv))))
    assert {f"DATASET.LABELS={tmp_path / 'classes.txt'}", "DATASET.N_CLASSES=3"} <= set(words)
