"""Peak memory is that of the device the run was told to use."""

import pytest
import torch

from misc.resources import peak_memory, reset_peak_memory

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
    cpu = torch.device("cpu")
    torch.ones(64 * MIB)
    reset_peak_memory(cpu)
    before = peak_memory(cpu)["cpu"]
    torch.ones(16 * MIB)
    assert 48 * MIB < peak_memory(cpu)["cpu"] - before < 128 * MIB
