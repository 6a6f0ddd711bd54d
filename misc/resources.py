"""Peak memory of parts of a run."""

import resource
from pathlib import Path

import torch

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"
_BYTES_PER_KIB = 1024


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement (on Linux; elsewhere the peak is that of the process so far).

    Args:
        device: the device of the run.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError:
        return


def peak_memory(device: torch.device) -> dict[str, int]:
    """Largest resident memory of this process since the reset, in bytes, by device.

    Worker processes are not counted.

    Args:
        device: the device of the run; a GPU counts as `cuda`, the main memory as `cpu`.
    """
    peak = {"cpu": _peak_resident()}
    if device.type == "cuda":
        peak["cuda"] = torch.cuda.max_memory_allocated(device)
    return peak


def _peak_resident() -> int:
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * _BYTES_PER_KIB
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_PER_KIB
