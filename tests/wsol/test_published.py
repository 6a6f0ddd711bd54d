"""Commands, configurations and checkpoints of the published WSOL code, and what each becomes here.

Facts of github.com/huodongjian0603/crt (wsol/backup) and of TS-CAM, on which it builds: the lines
of the shell scripts, the flags of the parser, the keys and values of the YAML files, and the names
and shapes in a checkpoint, written down here or made by rule.
"""

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from wsol_runs import CLASSES, SMALL, WSOL, config_of, log_of, pairs, run, run_tool

from misc.config import flatten
from misc.errors import UserError
from misc.files import read_json
from wsol import config as wsol_config
from wsol import engine, testing
from wsol.config import Config, Paths
from wsol.model import CNN, TRANSFORMER, Networks, build_cnn, build_transformer, load_networks
from wsol.optimisation import build_optimisers
from wsol.tools_cam import test_cam, train_cam

test_cam.__test__ = False

CUB_SMALL: dict[str, Any] = {
    "BASIC": {"SEED": 26, "BACKUP_CODES": True, "BACKUP_LIST": ["lib", "tools_cam", "configs"]},
    "MODEL": {"ARCH": "deit_tscam_small_patch16_224", "CAM_THR": 0.1, "TOP_K": 1},
    "DATA": {
        "DATASET": "CUB",
        "DATADIR": "data/CUB_200_2011",
        "NUM_CLASSES": 200,
        "RESIZE_SIZE": 256,
        "CROP_SIZE": 224,
        "IMAGE_MEAN": [0.485, 0.456, 0.406],
        "IMAGE_STD": [0.229, 0.224, 0.225],
    },
    "TRAIN": {"BATCH_SIZE": 64},
    "TEST": {"BATCH_SIZE": 64, "SAVE_BOXED_IMAGE": False},
    "SOLVER": {
        "START_LR": 0.0005,
        "LR_STEPS": [30],
        "NUM_EPOCHS": 60,
        "LR_FACTOR": 0.1,
        "MUMENTUM": 0.9,
        "WEIGHT_DECAY": 0.0005,
    },
    "CUDNN": {"BENCHMARK": False, "DETERMINISTIC": True, "ENABLE": True},
}
UNUSED = (
    *("BASIC.BACKUP_CODES", "BASIC.BACKUP_LIST"),
    *("SOLVER.START_LR", "SOLVER.WEIGHT_DECAY", "SOLVER.MUMENTUM", "CUDNN"),
)
OTHER_BATCHES = {"TRAIN": {"BATCH_SIZE": 128}, "TEST": {"BATCH_SIZE": 128}}
# keys of the published lib/config/default.py that no YAML file sets
DEFAULTS = {
    "BASIC": {"TIME": "2022-05-01-19-15", "GPU_ID": [0], "DISP_FREQ": 10, "ROOT_DIR": ""},
    "MODEL": {"LOCALIZER_DIR": ""},
    "DATA": {"SCALE_SIZE": 196, "SCALE_LENGTH": 15},
    "TRAIN": {"ALPHA": 1.0, "BETA": 1.0},
    "TEST": {"CKPT_DIR": "", "TEN_CROPS": False, "SAVE_CAMS": False},
}

# flag and value of the published parser, in its order
FLAGS = """
    --model deit_base_patch16_224 --input-size 224 --drop 0.0 --drop-path 0.1 --no-model-ema
    --model-ema --model-ema-decay 0.99996 --model-ema-force-cpu --opt adamw --opt-eps 1e-8
    --opt-betas 0.9 0.999 --clip-grad 1.0 --momentum 0.9 --weight-decay 0.05 --sched cosine
    --lr-noise 0.4 0.9 --lr-noise-pct 0.67 --lr-noise-std 1.0 --warmup-lr 1e-6 --min-lr 1e-5
    --decay-epochs 30 --warmup-epochs 5 --cooldown-epochs 10 --patience-epochs 10
    --decay-rate 0.1 --dr 0.1 --color-jitter 0.4 --aa rand-m9-mstd0.5-inc1 --smoothing 0.1
    --train-interpolation bicubic --repeated-aug --no-repeated-aug --reprob 0.25 --remode pixel
    --recount 1 --resplit --mixup 0.8 --cutmix 1.0 --cutmix-minmax 0.2 0.8 --mixup-prob 1.0
    --mixup-switch-prob 0.5 --mixup-mode batch --teacher-model regnety_160 --teacher-path x.pth
    --distillation-type none --distillation-alpha 0.5 --distillation-tau 1.0 --finetune x.pth
    --data-path /datasets01/imagenet_full_size/061417/ --data-set IMNET --inat-category name
    --output_dir out --device cuda --seed 0 --start_epoch 0
"""
WITH_EFFECT = {"--drop", "--drop-path", "--weight-decay", "--opt", "--opt-eps", "--opt-betas"}


def merged(content: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two levels of keys; those of `other` win."""
    return {
        group: {**content.get(group, {}), **other.get(group, {})}
        for group in content.keys() | other.keys()
    }


def write_yaml(folder: Path, content: dict[str, Any]) -> Path:
    """A configuration as the published code has it, in a folder `configs`."""
    path = folder / "configs/CUB/published.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What the scripts hand over to training and evaluation, which do not start."""
    calls: list[tuple] = []
    for module, name in ((engine, "train"), (testing, "test")):
        monkeypatch.setattr(module, name, lambda *values: calls.append(values))
    return calls


def became(called: list[tuple], argv: list[str], tool: Any = train_cam) -> tuple:
    """What a command line became."""
    assert run_tool(tool, argv) == 0
    return called.pop()


# ------------------------------------------------------------------------------- shell scripts


def arguments_of(tmp_path: Path, script: str, *arguments: str) -> list[str]:
    """What a shell script calls a Python script with, its own options for the device left out."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    command = ["bash", str(WSOL / script), *arguments]
    environment = {**os.environ, "PYTHON": str(python)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()
    return words[words.index("--config_file") :]


def test_training_script(tmp_path: Path, called: list[tuple]):
    argv = arguments_of(tmp_path, "train_val_cub.sh", "0,1", "deit", "small", "224")
    published = "--config_file CONFIG --lr 5e-5 MODEL.CAM_THR 0.1"
    assert argv == published.replace("CONFIG", str(SMALL)).split()
    config, rate, *_, notes = became(called, argv)
    assert (rate, notes) == (5e-5, [])
    assert config == wsol_config.load(SMALL)


@pytest.mark.parametrize("scale", ["tiny", "small", "base"])
def test_evaluation_script(tmp_path: Path, called: list[tuple], scale: str):
    argv = arguments_of(tmp_path, "val_cub.sh", "0", "deit", scale, "224", "model_best.pth")
    path = SMALL.with_name(f"deit_tscam_{scale}_patch16_224.yaml")
    published = "--config_file CONFIG --resume model_best.pth TEST.SAVE_BOXED_IMAGE True"
    assert argv == f"{published} MODEL.CAM_THR 0.1".replace("CONFIG", str(path)).split()
    config, weights, _ = became(called, argv, test_cam)
    assert weights == Path("model_best.pth")
    model = config.MODEL
    assert config.TEST.SAVE_BOXED_IMAGE
    assert model.CAM_THR == 0.1
    assert model.ARCH.startswith(f"deit_tscam_{scale}_")


def test_later_words_win_over_those_of_the_scripts(tmp_path: Path, called: list[tuple]):
    more = ("TEST.SAVE_BOXED_IMAGE", "False", "MODEL.CAM_THR", "0.2")
    argv = arguments_of(tmp_path, "val_cub.sh", "0", "deit", "small", "224", "x.pth", *more)
    config = became(called, argv, test_cam)[0]
    assert (config.TEST.SAVE_BOXED_IMAGE, config.MODEL.CAM_THR) == (False, 0.2)


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [
        ("train_val_cub.sh", ("0", "small"), "usage: bash"),  # as TS-CAM's README has it
        ("val_cub.sh", ("0", "small", "x.pth"), "usage: bash"),
        ("train_val_cub.sh", ("0", "conformer", "small", "224"), "there is no configuration"),
        ("val_cub.sh", ("0", "deit", "base", "384", "x.pth"), "there is no configuration"),
    ],
)
def test_what_is_not_there_is_one_sentence(script: str, arguments: tuple, sentence: str):
    command = ["bash", str(WSOL / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


# ---------------------------------------------------------------------------------- YAML files


@pytest.mark.parametrize(
    ("arch", "more"),
    [
        ("deit_tscam_small_patch16_224", {}),
        ("deit_tscam_tiny_patch16_224", {**OTHER_BATCHES, "SOLVER": {"START_LR": 0.001}}),
        ("deit_tscam_base_patch16_224", {**OTHER_BATCHES, "SOLVER": {"START_LR": 0.001}}),
    ],
)
def test_published_yaml_is_our_configuration(
    tmp_path: Path, called: list[tuple], arch: str, more: dict[str, Any]
):
    content = merged(merged(CUB_SMALL, more), {"MODEL": {"ARCH": arch}})
    path = write_yaml(tmp_path, content)
    config, *_, notes = became(called, ["--config_file", str(path)])
    ours = flatten(wsol_config.load(SMALL.with_name(f"{arch}.yaml")))
    places = {
        "BASIC.SAVE_DIR": str(tmp_path / "ckpt/CUB/published"),
        "DATA.DATADIR": str(tmp_path / "data/CUB_200_2011"),
    }
    assert flatten(config) == {**ours, **places}
    (note,) = notes
    start, _, named = note.partition(": ")
    assert start == "without effect here"
    assert sorted(named.split(", ")) == sorted(UNUSED)


def test_every_published_key_is_accepted_and_the_unused_are_named(
    tmp_path: Path, called: list[tuple]
):
    path = write_yaml(tmp_path, merged(merged(CUB_SMALL, DEFAULTS), {"BASIC": {"SAVE_DIR": ""}}))
    config, *_, notes = became(called, ["--config_file", str(path)])
    assert str(config.BASIC.SAVE_DIR) == f"{tmp_path}/ckpt/CUB/published"
    unused = {f"{group}.{key}" for group, keys in DEFAULTS.items() for key in keys}
    unused = (unused | set(UNUSED)) - {"TEST.TEN_CROPS"}
    (note,) = notes
    assert set(note.partition(": ")[2].split(", ")) == unused


def test_unused_keys_may_stand_on_the_command_line(called: list[tuple]):
    keys = ["SOLVER.WEIGHT_DECAY", "5e-4", "CUDNN.BENCHMARK", "True", "BASIC.GPU_ID", "[0,1]"]
    config, *_, notes = became(called, ["--config_file", str(SMALL), *keys])
    assert config == wsol_config.load(SMALL)
    assert notes == [f"without effect here: {', '.join(keys[::2])}"]


def test_unused_keys_are_named_in_the_log_of_a_training(birds: Path, tmp_path: Path):
    values = {"SOLVER__NUM_EPOCHS": 1, "SOLVER__WEIGHT_DECAY": 5e-4, "BASIC__DISP_FREQ": 10}
    assert run(birds, tmp_path, "--warmup-epochs", "5", **values) == 0
    line = "without effect here: --warmup-epochs, SOLVER.WEIGHT_DECAY, "
    assert f"{line}BASIC.DISP_FREQ\n" in log_of(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"MODEL": {"ARCH": "conformer_tscam_small_patch16"}}, "Conformer is not built"),
        ({"DATA": {"DATASET": "ImageNet"}}, "DATA.DATASET ImageNet: the lists and boxes of ILSVRC"),
        ({"TEST": {"TEN_CROPS": True}}, "ten crops is not built"),
        ({"SOLVER": {"MOMENTUMS": 0.9}}, "SOLVER.MOMENTUMS is not a configuration key; did you"),
        ({"TRAIN": {"GAMMA": 1.0}}, "TRAIN.GAMMA is not a configuration key"),
    ],
)
def test_yaml_files_of_what_is_not_built(
    tmp_path: Path, capsys: pytest.CaptureFixture, change: dict[str, Any], sentence: str
):
    path = write_yaml(tmp_path, merged(CUB_SMALL, change))
    assert run_tool(train_cam, ["--config_file", str(path)]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


# --------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize("tool", [train_cam, test_cam])
def test_every_published_flag_at_its_published_value(called: list[tuple], tool: Any, capsys):
    argv = ["--config_file", str(SMALL), *shlex.split(FLAGS), "MODEL.CAM_THR", "0.1"]
    values = became(called, argv, tool)
    assert values[0] == wsol_config.load(SMALL)
    said = values[-1] if tool is train_cam else capsys.readouterr().out.splitlines()
    (note,) = said
    given = {word for word in shlex.split(FLAGS) if word.startswith("--")}
    named = {part.split()[0] for part in note.partition(": ")[2].split(", ")}
    assert named == given - WITH_EFFECT - {"--device", "--dr"}
    assert "--seed (BASIC.SEED)" in note


def optimisers_of(config: Config) -> list[float]:
    """Weight decay of both groups of the transformer."""
    networks = Networks(build_transformer(config, "random"), build_cnn(config, "random"))
    optimisers = build_optimisers(networks, config, 5e-5)
    assert {group["weight_decay"] for group in optimisers[CNN].param_groups} == {1e-4}
    return [group["weight_decay"] for group in optimisers[TRANSFORMER].param_groups]


def test_weight_decay_of_the_flag_and_not_of_the_yaml_reaches_adamw(
    birds: Path, tmp_path: Path, called: list[tuple]
):
    argv = ["--config_file", str(SMALL), *pairs(birds, tmp_path, SOLVER__WEIGHT_DECAY=5e-4)]
    assert optimisers_of(became(called, argv)[0]) == [0.05, 0.0]
    assert optimisers_of(became(called, [*argv, "--weight-decay", "0.1"])[0]) == [0.1, 0.0]
    assert optimisers_of(became(called, [*argv, "--weight-decay", "0"])[0]) == [0.0, 0.0]


def test_drop_path_of_the_flag(called: list[tuple]):
    config = became(called, ["--config_file", str(SMALL), "--drop-path", "0.2"])[0]
    assert config.MODEL.DROP_PATH == 0.2


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--opt sgd", "--opt sgd: the only value is the published adamw"),
        ("--opt-eps 1e-6", "--opt-eps 1e-6: the only value is the published 1e-08"),
        ("--opt-betas 0.9 0.99", "--opt-betas 0.9 0.99: the only value is the published 0.9 0.999"),
        ("--drop 0.1", "set dropout by MODEL.VIT_ARGS"),
        ("--weight-decay -1", "SOLVER.VIT_WEIGHT_DECAY is -1.0; it must be at least 0"),
        ("--drop-path 2", "MODEL.DROP_PATH is 2.0; it must be at most 0.99"),
        ("--resume x.pth", "--resume of train_cam.py takes no file"),
        ("MODEL.CAM_THR 0.1 --resume x.pth", "--resume of train_cam.py takes no file"),
    ],
)
def test_other_values_of_flags_are_one_sentence(
    capsys: pytest.CaptureFixture, flags: str, sentence: str
):
    assert run_tool(train_cam, ["--config_file", str(SMALL), *flags.split()]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


# --------------------------------------------------------------------------------- checkpoints


def published_checkpoint(path: Path, width: int, depth: int, classes: int, side: int) -> Path:
    """A file as the published training saves it: the transformer alone, inside of DataParallel.

    Names and shapes are those of timm 0.3.2's vision transformer with TS-CAM's head, a 3x3
    convolution; the values are made up.
    """
    block = {
        **{f"norm{i}.{name}": (width,) for i in (1, 2) for name in ("weight", "bias")},
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
    }
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + (side // 16) ** 2, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        **{f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in block.items()},
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (classes, width, 3, 3),
        "head.bias": (classes,),
    }
    generator = torch.Generator().manual_seed(0)
    state = {
        f"module.{name}": 0.1 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }
    torch.save({"epoch": 19, "state_dict": state, "best_map": 0.9008}, path)
    return path


def test_published_checkpoint_of_the_paper_loads(tmp_path: Path):
    path = published_checkpoint(tmp_path / "model_best.pth", 384, 12, 200, 224)
    network, cnn = load_networks(wsol_config.load(SMALL), path)
    assert cnn is None
    published = torch.load(path, weights_only=True)["state_dict"]
    loaded = network.state_dict()
    assert len(loaded) == len(published) == 152
    for name, value in published.items():
        key = name.removeprefix("module.")
        assert torch.equal(loaded[key if key.startswith("head.") else f"vit.{key}"], value), name


def test_published_checkpoint_is_scored(birds: Path, tmp_path: Path, capsys):
    path = published_checkpoint(tmp_path / "model_best.pth", 48, 2, CLASSES, 64)
    argv = ["--config_file", str(SMALL), "--device", "cpu", "--resume", str(path)]
    assert run_tool(test_cam, [*argv, *pairs(birds, tmp_path)]) == 0
    found = read_json(Paths(tmp_path).evaluation("test"))
    assert found["weights"]["epoch"] == 19
    assert found["weights"]["chosen"] == "not recorded in the checkpoint"
    assert 0 <= found["scores"]["gt_known"] <= 100
    assert run_tool(test_cam, [*argv, *pairs(birds, tmp_path, MODEL__CAM="cnn")]) == 2
    error = capsys.readouterr().err
    assert f"{path} has no cnn_state_dict, which MODEL.CAM cnn needs" in error


STATE_DICT = r"odd\.pth.*state_dict|state_dict of .*odd\.pth"


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ([1, 2], STATE_DICT),
        ({0: torch.zeros(1)}, STATE_DICT),
        ({"module.cls_token": 3}, STATE_DICT),
        ({}, "does not fit the transformer"),
    ],
)
def test_files_that_only_look_like_a_checkpoint(tmp_path: Path, entry: object, sentence: str):
    torch.save({"state_dict": entry}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=sentence):
        load_networks(config_of(tmp_path, tmp_path), tmp_path / "odd.pth")
