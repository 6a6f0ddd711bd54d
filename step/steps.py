"""The nine steps by name, and one of them run with its time and memory measured."""

import time
from types import ModuleType
from typing import Any, NamedTuple

from misc.distributed import peak_memory, reset_peak_memory, select_device
from step import (
    cam_to_ir_label,
    eval_cam,
    eval_ins_seg,
    eval_sem_seg,
    make_cam,
    make_ins_seg_labels,
    make_sem_seg_labels,
    train_cam,
    train_irn,
)
from step.run import Run

_MODULES = (train_cam, make_cam, eval_cam, cam_to_ir_label, train_irn)
_MODULES += (make_ins_seg_labels, eval_ins_seg, make_sem_seg_labels, eval_sem_seg)
MODULES: dict[str, ModuleType] = {module.STEP: module for module in _MODULES}
"""Each has `run`, which takes a `Run` and returns the step's entry of metrics.json."""


class Measured(NamedTuple):
    """A step that has run.

    Attributes:
        result: what it returned; may be empty.
        seconds: wall time.
        memory: peak in bytes by device, see `misc.distributed.peak_memory`.
    """

    result: dict[str, Any]
    seconds: float
    memory: dict[str, int]


def run_measured(name: str, run: Run) -> Measured:
    """Run a step, whatever the options say about it."""
    device = select_device(run.options.device)
    reset_peak_memory(device)
    start = time.perf_counter()
    result = MODULES[name].run(run)
    return Measured(result or {}, time.perf_counter() - start, peak_memory(device))
