"""Whole runs of DeepLab in seconds: tiny pictures, a tiny network, a few iterations.

The ground truth masks of the sample stand in for pseudo masks.
"""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from processes import run_processes

from deeplab import main
from deeplab.config import Config, Paths, load
from misc.checkpoint import load_checkpoint
from misc.progress import set_log_file

REPOSITORY = Path(main.__file__).parent.parent
CONFIG = REPOSITORY / "deeplab/configs/voc12_resnet_dplv2.yaml"
ITERATIONS = 6
Values = Mapping[str, Any]

# Intervals that do not divide each other, so that mixing them up shows.
TINY: dict[str, Any] = {
    "EXP.ID": "tiny",
    "DATASET.SPLIT.TRAIN": "train",
    "DATALOADER.NUM_WORKERS": 0,
    "IMAGE.SIZE.TRAIN": 40,
    "MODEL.NAME": "DeepLabV2_Backbone_MSC",
    "MODEL.BACKBONE": "test_resnet",
    "MODEL.ATROUS_RATES": "1,2",
    "MODEL.INIT_MODEL": "none",
    "SOLVER.BATCH_SIZE.TRAIN": 2,
    "SOLVER.ITER_MAX": ITERATIONS,
    "SOLVER.ITER_SIZE": 2,
    "SOLVER.ITER_SAVE": 3,
    "SOLVER.ITER_STATE": 2,
    "SOLVER.ITER_TB": 2,
    "SOLVER.LR_DECAY": 2,
    "SOLVER.LR": 1e-5,
    "SOLVER.AVERAGE_LOSS": 3,
    "CRF.N_JOBS": 0,
}


def overrides(sample: Path, folder: Path, values: Values | None = None) -> list[str]:
    """KEY=VALUE of a tiny run below `folder`; `values` replace or extend those of `TINY`."""
    values = {
        **TINY,
        "DATASET.ROOT": sample,
        "DATASET.TRAIN_LABELS": sample / "SegmentationClass",
        "EXP.OUTPUT_DIR": folder,
        **(values or {}),
    }
    return [f"{key}={value}" for key, value in values.items()]


def command_line(
    command: str, sample: Path, folder: Path, *flags: str, values: Values | None = None
) -> list[str]:
    """Arguments of main.py for a tiny run."""
    device = [] if command in ("crf", "report") else ["--cpu"]
    given = overrides(sample, folder, values)
    return [command, "--config-path", str(CONFIG), *device, *flags, *given]


def run(command: str, sample: Path, folder: Path, *flags: str, values: Values | None = None) -> int:
    """Run a command in this process; returns the exit status."""
    try:
        return main.main(command_line(command, sample, folder, *flags, values=values))
    finally:
        set_log_file(None)


def run_apart(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess:
    """Run `python ARGUMENTS` in a process of its own, without help from PYTHONPATH."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )


def run_commands(*argvs: list[str]) -> None:
    """Run commands one after the other, in a process that is connected to others or not."""
    for argv in argvs:
        main.run_command(main.parse_args(argv))


def config_of(sample: Path, folder: Path, values: Values | None = None) -> Config:
    """Configuration of a tiny run."""
    return load(CONFIG, overrides(sample, folder, values))


def paths_of(sample: Path, folder: Path) -> Paths:
    """Where a tiny run keeps its files."""
    return Paths(config_of(sample, folder))


@functools.cache
def finished_run(sample: Path) -> Path:
    """Folder of a run of train, test and crf; read only, see `copy_of`."""
    folder = sample.parent / "deeplab"
    for command in ("train", "test", "crf"):
        assert run(command, sample, folder) == 0
    return folder


@functools.cache
def two_process_run(sample: Path) -> Path:
    """Folder of a run of train and test by two processes; read only."""
    folder = sample.parent / "deeplab_two"
    commands = [command_line(command, sample, folder) for command in ("train", "test")]
    run_processes(run_commands, *commands)
    return folder


def copy_of(folder: Path, target: Path, *kinds: str) -> Path:
    """Copy the folders of some kinds (models, features, scores, logs), all by default."""
    for kind in kinds or ("models", "features", "scores"):
        shutil.copytree(folder / kind, target / kind)
    return target


def log_of(sample: Path, folder: Path, command: str) -> str:
    """Text of the log file of a command."""
    return (paths_of(sample, folder).logs_dir / f"{command}.log").read_text(encoding="utf-8")


def equal_weights(first: Path, second: Path) -> bool:
    """Whether two checkpoints are equal to the last bit."""
    one, two = load_checkpoint(first), load_checkpoint(second)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
