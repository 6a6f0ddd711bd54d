"""Every published command of run_sample.py: what each value becomes, or the sentence that tells.

The commands are those of the README, and one with every option at its published default. The
expectations are written down by hand.
"""

import shlex
from pathlib import Path

import pytest

from misc.errors import UserError
from step.command_line import parse_args
from step.options import STEP_NAMES, Options, selected_steps

ROOT = "$downloaded_dataset_path/VOCdevkit/VOC2012"
README = f"python run_sample.py --voc12_root {ROOT}"
README_FOR_DEEPLAB = f"{README} --infer_list voc12/train_aug.txt"
# Every option but --cam_crop_size, as `vars(args)` of the published log has it.
ALL = f"""python run_sample.py --num_workers 8 --voc12_root {ROOT}
    --train_list voc12/train_aug.txt --val_list voc12/val.txt --infer_list voc12/train.txt
    --chainer_eval_set train
    --cam_network_branch1 net.resnet50_cam --cam_network_branch2 net.deit_cam
    --cam_batch_size 16 --cam_num_epoches 10 --cam_learning_rate 0.1
    --cam_weight_decay 0.0001 --cam_eval_thres 0.15
    --cam_scales '(1.0, 0.5, 1.5, 2.0, 0.75, 1.25, 1.75)' --cam_lambda 0.1
    --conf_fg_thres 0.35 --conf_bg_thres 0.15
    --irn_network net.resnet50_irn --irn_crop_size 512 --irn_batch_size 32 --irn_num_epoches 3
    --irn_learning_rate 0.1 --irn_weight_decay 0.0001
    --beta 10 --exp_times 8 --ins_seg_bg_thres 0.25 --sem_seg_bg_thres 0.25
    --log_name sample_train_eval --cam1_weights_name sess/res152_cam.pth
    --cam2_weights_name sess/deits_cam.pth --irn_weights_name sess/res50_irn.pth
    --cam_out_dir result/cam --ir_label_out_dir result/ir_label
    --sem_seg_out_dir result/sem_seg --ins_seg_out_dir result/ins_seg
    --train_cam_pass True --make_cam_pass True --eval_cam_pass True
    --cam_to_ir_label_pass True --train_irn_pass True --make_ins_seg_pass False
    --eval_ins_seg_pass False --make_sem_seg_pass True --eval_sem_seg_pass True"""
DEFAULTS = {
    "voc12_root": ROOT,
    "train_list": "voc12/train_aug.txt",
    "val_list": "voc12/val.txt",
    "infer_list": "voc12/train.txt",
    "cnn": "resnet152",
    "vit": "deit_small_patch16_224",
    "cam_crop_size": 336,
    "cam_batch_size": 16,
    "cam_num_epoches": 10,
    "cam_learning_rate": 0.1,
    "deit_learning_rate": 0.1,
    "cam_weight_decay": 1e-4,
    "cam_eval_thres": 0.15,
    "cam_scales": (1.0, 0.5, 1.5, 2.0, 0.75, 1.25, 1.75),
    "cam_lambda": 0.1,
    "conf_fg_thres": 0.35,
    "conf_bg_thres": 0.15,
    "irn_backbone": "resnet50",
    "irn_crop_size": 512,
    "irn_batch_size": 32,
    "irn_num_epoches": 3,
    "irn_learning_rate": 0.1,
    "irn_weight_decay": 1e-4,
    "beta": 10,
    "exp_times": 8,
    "ins_seg_bg_thres": 0.25,
    "sem_seg_bg_thres": 0.25,
    "log_name": "sample_train_eval",
}
FILES = {
    "cam_weights_name": "sess/res152_cam.pth",
    "deit_weights_name": "sess/deits_cam.pth",
    "irn_weights_name": "sess/res50_irn.pth",
    "cam_out_dir": "result/cam",
    "ir_label_out_dir": "result/ir_label",
    "sem_seg_out_dir": "result/sem_seg",
    "ins_seg_out_dir": "result/ins_seg",
}
STEPS = tuple(step for step in STEP_NAMES if "ins_seg" not in step)


def parse(command: str) -> Options:
    return parse_args(shlex.split(command)[2:])


@pytest.mark.parametrize(
    ("command", "changed"),
    [
        (README, {}),
        (README_FOR_DEEPLAB, {"infer_list": "voc12/train_aug.txt"}),
        (ALL, {"num_workers": 8, "eval_list": "train"}),
        (f"{ALL} --cam_crop_size 336", {}),
    ],
)
def test_published_commands_do_what_they_did(command: str, changed: dict) -> None:
    args = parse(command)
    expected = DEFAULTS | changed
    assert {name: getattr(args, name) for name in expected} == expected
    assert {name: getattr(args, name) for name in FILES} == {
        name: Path.cwd() / path for name, path in FILES.items()
    }
    assert selected_steps(args) == STEPS


def test_published_crop_is_explained() -> None:
    with pytest.raises(UserError, match=r"--cam_crop_size 512 .* 512 as its default .* ran 336\."):
        parse(f"{ALL} --cam_crop_size 512")


def test_every_published_option_is_fed() -> None:
    """The published parser has 45 options; --cam_crop_size is in a command of its own."""
    options = [word for word in shlex.split(ALL) if word.startswith("--")]
    assert len(options) == len(set(options)) == 44


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--cam_network_branch1 net.resnet50_cam", "cnn", "resnet152"),
        ("--cnn net.resnet50_cam", "cnn", "resnet152"),
        ("--cam_network net.resnet50_cam", "cnn", "resnet50"),  # of IRNet, where it is one
        ("--cam_network net.resnet101_cam", "cnn", "resnet101"),
        ("--cam_network_branch1 resnet50", "cnn", "resnet50"),
        ("--cam_network_branch2 net.deit_cam", "vit", "deit_small_patch16_224"),
        ("--cam_network_branch2 deit_tiny_patch16_224", "vit", "deit_tiny_patch16_224"),
        ("--irn_network net.resnet50_irn", "irn_backbone", "resnet50"),
        ("--cam1_weights_name a/b.pth", "cam_weights_name", Path.cwd() / "a/b.pth"),
        ("--cam2_weights_name a/b.pth", "deit_weights_name", Path.cwd() / "a/b.pth"),
        ("--make_ins_seg_pass True", "make_ins_seg_pass", True),
        ("--train_cam_pass False", "train_cam_pass", False),
        ("--cam_scales 1.0,0.5", "cam_scales", (1.0, 0.5)),
    ],
)
def test_published_options_and_their_values(words: str, name: str, value: object) -> None:
    assert getattr(parse(f"{README} {words}"), name) == value


def test_irn_commands_are_accepted() -> None:
    """IRNet's README runs its own script with these names."""
    command = f"{README} --cam_network net.resnet50_cam --cam_weights_name sess/res50_cam.pth"
    args = parse(f"{command} --irn_network net.resnet50_irn --cam_batch_size 16")
    assert (args.cnn, args.irn_backbone) == ("resnet50", "resnet50")
    assert args.cam_weights_name == Path.cwd() / "sess/res50_cam.pth"


def test_values_of_presets_are_kept_beside_published_names() -> None:
    args = parse("python run_sample.py --preset demo --cam_network_branch2 net.deit_cam")
    assert (args.cnn, args.vit) == ("resnet10t", "deit_small_patch16_224")
