"""Device, its memory, rank and sharding: the only place that knows how many processes there are.

A plain `python` call is one process. Under `torchrun` the variables RANK, WORLD_SIZE and LOCAL_RANK
say which part of the work is ours, before and after the process group exists.
"""

import os
import resource
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from misc.errors import UserError

T = TypeVar("T")

_DEVICE_TYPES = ("cpu", "cuda", "mps")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"
_BYTES_PER_KIB = 1024


def rank() -> int:
    """Index of this process, 0 for a plain run."""
    return dist.get_rank() if _has_group() else int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Index of this process on its machine, which is also the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Number of processes, 1 for a plain run."""
    return dist.get_world_size() if _has_group() else int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """True for the one process that prints and writes shared files."""
    return rank() == 0


def shard(items: Sequence[T]) -> list[T]:
    """This process's part of `items`, dealt out in turn so that the parts differ by at most one."""
    return list(items[rank() :: world_size()])


def barrier() -> None:
    """Wait until every process is here; nothing to wait for in a plain run."""
    if _has_group():
        dist.barrier()


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of `tensor` over all processes, as a new tensor on the same device.

    Gradients pass: the gradient of the sum of all processes' results reaches every part of it.

    Raises:
        RuntimeError: several processes were started but never joined, so that a sum over this
            process alone would pass for the sum of all.
    """
    _require_group()
    return _Sum.apply(tensor) if _has_group() else tensor.clone()


class _Sum(torch.autograd.Function):
    """Sum over the processes; each part of a sum has the gradient of the sum in all processes."""

    @staticmethod
    def forward(context: Any, tensor: torch.Tensor) -> torch.Tensor:
        # NCCL reduces CUDA tensors only.
        on_gpu = dist.get_backend() == dist.Backend.NCCL
        total = tensor.clone(memory_format=torch.contiguous_format)
        total = total.to(torch.device("cuda", local_rank())) if on_gpu else total
        dist.all_reduce(total)
        return total.to(tensor.device)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _Sum.apply(gradient)


def all_reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """Mean of `tensor` over all processes; see `all_reduce_sum`."""
    return all_reduce_sum(tensor) / world_size()


def all_gather(value: T) -> list[T]:
    """`value` of every process, in the order of their ranks; `[value]` in a plain run.

    Raises:
        RuntimeError: several processes were started but never joined.
    """
    _require_group()
    if not _has_group():
        return [value]
    gathered: list[T] = [value] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def join_processes(device: torch.device) -> None:
    """Connect the processes that `torchrun` started; does nothing in a plain run."""
    if world_size() > 1 and not _has_group():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def leave_processes() -> None:
    """Disconnect from the other processes at the end of a run; does nothing in a plain run."""
    if _has_group():
        dist.destroy_process_group()


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a network so that its gradients are averaged over all processes.

    Weights and buffers become those of the main process. Buffers are left alone afterwards: batch
    norms that learn must be those of `net.batchnorm`.

    Args:
        model: the network, already on `device`.
        device: of this process.

    Returns:
        The network itself in a plain run, or when it has nothing to train.

    Raises:
        RuntimeError: several processes were started but never joined.
    """
    _require_group()
    if world_size() == 1 or not any(p.requires_grad for p in model.parameters()):
        return model
    for buffer in model.buffers():
        dist.broadcast(buffer, 0)
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, devices, broadcast_buffers=False)


@contextmanager
def own_gradients(models: Iterable[nn.Module]) -> Iterator[None]:
    """Let what `data_parallel` returned add up gradients without averaging them yet."""
    with ExitStack() as stack:
        for model in models:
            if isinstance(model, DistributedDataParallel):
                stack.enter_context(model.no_sync())
        yield


_takes_part = True


def takes_part() -> bool:
    """Whether the pictures that this process computes count, see `taking_part`."""
    return _takes_part


@contextmanager
def taking_part(has_pictures: bool) -> Iterator[None]:
    """Say whether this process has a picture of the current batch.

    A process without one computes a picture that does not count, so that no other waits for it.
    Sums over the processes have to leave it out; a batch norm learns that from `takes_part`.
    """
    global _takes_part
    before, _takes_part = _takes_part, has_pictures
    try:
        yield
    finally:
        _takes_part = before


def select_device(name: str) -> torch.device:
    """Turn `--device` into a device.

    Args:
        name: `auto` (a GPU when there is one, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`. A CUDA
            device without index is this process's own GPU under `torchrun`, else the first.

    Raises:
        UserError: the name is unknown or this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in _DEVICE_TYPES:
        raise UserError(
            f"--device {name} is not a device to run on; use auto, cpu, cuda, cuda:INDEX or mps."
        )
    if device.type != "cuda" and device.index:
        raise UserError(f"--device {name}: there is one such device; use {device.type}.")
    if device.type == "cuda":
        return _cuda_device(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {name}: this machine has no Apple GPU; use --device cpu.")
    return torch.device(device.type)


def _cuda_device(device: torch.device) -> torch.device:
    if not torch.cuda.is_available():
        raise UserError(
            f"--device {device}: PyTorch {torch.__version__} sees no CUDA GPU on this machine; "
            "use --device cpu or auto, or install a CUDA build of PyTorch and the driver."
        )
    index = local_rank() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise UserError(
            f"--device cuda:{index}: this machine has {torch.cuda.device_count()} CUDA GPU(s), "
            "numbered from 0; choose one of these."
        )
    return torch.device("cuda", index)


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


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _require_group() -> None:
    if world_size() > 1 and not _has_group():
        raise RuntimeError("call join_processes before combining results of several processes")
