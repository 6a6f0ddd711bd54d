"""Same command, same numbers; and what has to be written down to know which command and machine."""

import functools
import os
import platform
import random
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "pillow",
    "pydensecrf2",
    "opencv-python-headless",
    "tensorboard",
    "pyyaml",
    "pycocotools",
)
_REPOSITORY = Path(__file__).resolve().parent.parent


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, and ask torch for deterministic kernels.

    The same command then gives the same numbers on the same machine. An operation that has no
    deterministic kernel warns instead of stopping the run.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries draw from the global generator
    torch.manual_seed(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def seed_random_layers(seed: int, iteration: int, rank: int) -> None:
    """Let dropout and the like draw what depends on (seed, iteration, process) alone.

    A training that goes on from any iteration then draws what an uninterrupted one does.
    """
    state = np.random.SeedSequence([seed, iteration, rank]).generate_state(1)
    torch.manual_seed(int(state[0]))


def run_facts(device: torch.device | None = None) -> dict[str, Any]:
    """What a result depends on besides the arguments, ready for JSON.

    Args:
        device: the device of the run, named in the result; left out when None.

    Returns:
        `versions` (Python and packages; None where one is absent), `commit` (None outside a git
        checkout), `dirty` (uncommitted changes to tracked files) and `host` (system, CPU cores,
        device).
    """
    host = {"system": platform.platform(), "cpu_count": os.cpu_count()}
    if device is not None:
        host["device"] = _device_name(device)
    return {"versions": _versions(), **_git_state(), "host": host}


@functools.cache
def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


@functools.cache
def _git_state() -> dict[str, Any]:
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": False}
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def _git(*arguments: str) -> str | None:
    """Output of a git command in the repository, None when there is no git or no repository."""
    command = ["git", "-C", str(_REPOSITORY), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
