"""Peak memory is that of the device the run was told to use."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from misc.distributed import peak_memory, reset_peak_memory

MIB = 2**20


def test_memory_of_the_chosen_gpu_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    by_index = {0: 10 * MIB, 1: 20 * MIB}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    monkeypatch.setattr(
        torch.cuda, "max_memory_allocated", lambda device=None: by_index[device.index]
    )
    second = torch.device("cuda", 1)
    reset_peak_memory(second)
    assert asked == [second]
    assert peak_memory(second)["cuda"] == 20 * MIB
    assert set(peak_memory(torch.device("cpu"))) == {"cpu"}


def test_main_memory_is_measured_from_the_reset_on() -> None:
    """In a process of its own: a long one has freed memory that it would use again."""
    script = (
        "import torch\n"
        "from misc.distributed import peak_memory, reset_peak_memory\n"
        "cpu, mib = torch.device('cpu'), 2**20\n"
        "torch.ones(64 * mib)\n"
        "reset_peak_memory(cpu)\n"
        "before = peak_memory(cpu)['cpu']\n"
        "torch.ones(16 * mib)\n"
        "print(peak_memory(cpu)['cpu'] - before)\n"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", script]
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert 48 * MIB < int(answer.stdout) < 128 * MIB
