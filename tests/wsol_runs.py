"""Whole runs of WSOL in seconds: tiny pictures of birds, tiny networks, two epochs."""

import json
from pathlib import Path
from typing import Any

import torch

import wsol
from misc.checkpoint import load_checkpoint, state_dict_of
from misc.files import read_json
from misc.progress import set_log_file
from wsol import config as wsol_config
from wsol import synthetic
from wsol.config import Config, Paths
from wsol.tools_cam import train_cam

WSOL = Path(wsol.__file__).parent
SMALL = WSOL / "configs/CUB/deit_tscam_small_patch16_224.yaml"
SIDE = 64  # pixels
CLASSES, TRAIN_PER_CLASS, TEST_PER_CLASS = 3, 4, 2
EPOCHS, STEPS_PER_EPOCH, TEST_BATCHES = 2, 3, 2
RATE = 1e-3
WEIGHTS = ("model_last.pth", "model_best_top1_loc.pth", "model_best.pth")

# The L1 loss acts in epoch 1 and not in epoch 2, in which the rate falls.
TINY: dict[str, Any] = {
    "BASIC.SEED": 4,  # with it some box is right after so few steps
    "BASIC.NUM_WORKERS": 0,
    "MODEL.ARCH": "deit_tiny_patch16_224",
    "MODEL.VIT_ARGS": "{depth: 2, embed_dim: 48, num_heads: 2}",
    "MODEL.CNN": "resnet18",
    "MODEL.INIT": "random",
    "MODEL.CNN_FROZEN_STAGES": 1,
    "DATA.NUM_CLASSES": CLASSES,
    "DATA.RESIZE_SIZE": 72,
    "DATA.CROP_SIZE": SIDE,
    "TRAIN.BATCH_SIZE": 5,  # the last batch of an epoch has two pictures
    "TEST.BATCH_SIZE": CLASSES * TEST_PER_CLASS // TEST_BATCHES,
    "TEST.THRESHOLDS": "0.2,0.5",
    "SOLVER.NUM_EPOCHS": EPOCHS,
    "SOLVER.LR_STEPS": EPOCHS,
    "SOLVER.REFINE_EPOCHS": 1,
}


def build_birds(root: Path) -> Path:
    """Twelve training and six test pictures in the layout of CUB."""
    sizes = ((60, 70), (60, 72))
    return synthetic.build(root, TRAIN_PER_CLASS, TEST_PER_CLASS, CLASSES, sizes)


def pairs(data: Path, folder: Path, **values: Any) -> list[str]:
    """`KEY VALUE` pairs of a tiny run; `values` replace or extend `TINY`, `__` stands for dots."""
    given = {key.replace("__", "."): value for key, value in values.items()}
    values = {**TINY, "DATA.DATADIR": data, "BASIC.SAVE_DIR": folder, **given}
    return [text for key, value in values.items() for text in (key, str(value))]


def command_line(data: Path, folder: Path, *flags: str, **values: Any) -> list[str]:
    """Arguments of train_cam.py for a tiny run."""
    options = ["--config_file", str(SMALL), "--lr", str(RATE), "--device", "cpu", *flags]
    return [*options, *pairs(data, folder, **values)]


def run(data: Path, folder: Path, *flags: str, **values: Any) -> int:
    """Train in this process; returns the exit status."""
    return run_tool(train_cam, command_line(data, folder, *flags, **values))


def run_tool(tool: Any, argv: list[str]) -> int:
    """Run a script of tools_cam in this process; returns the exit status."""
    try:
        return tool.main(argv)
    finally:
        set_log_file(None)


def config_of(data: Path, folder: Path, **values: Any) -> Config:
    """Configuration of a tiny run."""
    words = pairs(data, folder, **values)
    overrides = [f"{key}={value}" for key, value in zip(words[::2], words[1::2], strict=True)]
    return wsol_config.load(SMALL, overrides)


def results(folder: Path) -> dict[str, Any]:
    """Content of results.json."""
    return read_json(Paths(folder).results)


def epoch_lines(folder: Path) -> list[dict[str, float]]:
    """Rows of log.jsonl."""
    return [json.loads(line) for line in Paths(folder).epoch_log.read_text().splitlines()]


def log_of(folder: Path) -> str:
    """Text of the log file."""
    return Paths(folder).log.read_text(encoding="utf-8")


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of both networks of a checkpoint."""
    checkpoint = load_checkpoint(path)
    return {
        f"{entry}.{key}": value
        for entry in ("state_dict", "cnn_state_dict")
        for key, value in state_dict_of(checkpoint[entry]).items()
    }


def equal_weights(first: Path, second: Path, name: str) -> bool:
    """Whether a weight file of two runs is equal to the last bit, its epoch included."""
    one, two = weights(first / name), weights(second / name)
    same_epoch = load_checkpoint(first / name)["epoch"] == load_checkpoint(second / name)["epoch"]
    return (
        same_epoch
        and one.keys() == two.keys()
        and all(torch.equal(one[key], two[key]) for key in one)
    )
