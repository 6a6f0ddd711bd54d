"""Device, its memory, rank and sharding: the only place that knows how many processes there are.

A plain `python` call is one process. Under `torchrun` the variables RANK, WORLD_SIZE and LOCAL_RANK
say which part of the work is ours, before and after the process group exists.
"""

import os
import resource
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from misc.errors import UserError
from misc.refusals import refusal

T = TypeVar("T")

_DEVICE_TYPES = ("cpu", "cuda", "mps")
# The others may wait long while one process looks at all of the data; torchrun ends those that wait
# for a process that died.
_PATIENCE = timedelta(days=2)
_OF_TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_SECONDS_TO_APPEAR = 20.0  # of a new file, for another machine that has the folder mounted
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


def local_world_size() -> int:
    """Number of processes on this machine, 1 for a plain run."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


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


def gather_shards(share: Sequence[T]) -> list[T]:
    """Inverse of `shard`: what every process made of its part, in the order of all items."""
    rounds = zip_longest(*([(item,) for item in part] for part in all_gather(share)), fillvalue=())
    return list(chain.from_iterable(chain.from_iterable(rounds)))


@contextmanager
def together() -> Iterator[None]:
    """Wait at the end of a block like `barrier`, and let an error of one process stop all.

    The others stop with its sentence instead of waiting for it. No process may wait for another
    inside the block.
    """
    failure = None
    try:
        yield
    except Exception as error:
        if world_size() == 1:
            raise
        failure = error
    sentences = all_gather(None if failure is None else _sentence(failure))
    if failure is not None:
        raise failure
    for sentence in filter(None, sentences):
        raise UserError(sentence)


def _sentence(error: Exception) -> str:
    """What the other processes say of an error of this one."""
    if isinstance(error, UserError):
        return str(error)
    system = isinstance(error, OSError | RuntimeError | MemoryError)
    what = refusal(error) if system else None
    return what or f"process {rank()} failed: {type(error).__name__}: {error}"


def on_main(function: Callable[[], T]) -> T:
    """Call a function in the main process alone and give its result to all.

    For what all must agree on, and for files that one process writes: the others wait.

    Args:
        function: what it returns, or the UserError that it raises, is pickled for the others.

    Raises:
        UserError: in every process, when the main one fails; there it may be another exception.
        RuntimeError: several processes were started but never joined.
    """
    _require_group()
    if not _has_group():
        return function()
    outcome: list[Any] = [None, None]
    if is_main_process():
        try:
            outcome[0] = function()
        except Exception as error:
            known = isinstance(error, UserError)
            outcome[1] = error if known else UserError(f"the main process stopped: {error!r}")
            dist.broadcast_object_list(outcome)
            raise
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def require_shared(folder: Path, option: str) -> None:
    """Make sure that all processes see one folder; it is created when needed.

    Args:
        folder: as every process names it.
        option: that names it, for the message.

    Raises:
        UserError: some machine has another folder of that name.
    """
    if world_size() == 1:
        return
    mark = folder / f".tmp-{on_main(lambda: uuid.uuid4().hex)}"
    on_main(lambda: _leave_mark(mark))
    deadline = time.monotonic() + _SECONDS_TO_APPEAR
    while not (seen := mark.exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    blind = [host for host, sees in all_gather((socket.gethostname(), seen)) if not sees]
    on_main(lambda: mark.unlink(missing_ok=True))
    if blind:
        raise UserError(
            f"{option} {folder} on {blind[0]} is not the folder that the main process has: all "
            f"machines must see one; name a folder on a disk that they share with {option}."
        )


def _leave_mark(mark: Path) -> None:
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def join_processes(device: torch.device) -> None:
    """Connect the processes that `torchrun` started; does nothing in a plain run.

    Raises:
        UserError: the environment speaks of several processes, but nothing has started them.
    """
    if world_size() > 1 and not _has_group():
        if missing := [name for name in _OF_TORCHRUN if name not in os.environ]:
            raise UserError(
                f"WORLD_SIZE is {world_size()} but {missing[0]} is not set: start several "
                "processes with torchrun, or unset WORLD_SIZE to run one."
            )
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)


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


def select_device(name: str, option: str = "--device ") -> torch.device:
    """Turn `--device` into a device.

    Args:
        name: `auto` (a GPU when there is one, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`. A CUDA
            device without index is this process's own GPU under `torchrun`, else the first.
        option: what stands in front of the name on the command line, for messages.

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
            f"{option}{name} is not a device to run on; use auto, cpu, cuda, cuda:INDEX or mps."
        )
    if device.type != "cuda" and device.index:
        raise UserError(f"{option}{name}: there is one such device; use {device.type}.")
    if device.type == "cuda":
        return _cuda_device(device, option)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"{option}{name}: this machine has no Apple GPU; use {option}cpu.")
    return torch.device(device.type)


def _cuda_device(device: torch.device, option: str) -> torch.device:
    if not torch.cuda.is_available():
        raise UserError(
            f"{option}{device}: PyTorch {torch.__version__} sees no CUDA GPU on this machine; "
            f"use {option}cpu or auto, or install a CUDA build of PyTorch and the driver."
        )
    index = local_rank() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise UserError(
            f"{option}cuda:{index}: this machine has {torch.cuda.device_count()} CUDA GPU(s), "
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
    """Largest resident memory since the reset, in bytes, by device; the largest of all processes.

    Loader and worker processes are not counted.

    Args:
        device: the device of the run; a GPU counts as `cuda`, the main memory as `cpu`.
    """
    peak = {"cpu": _peak_resident()}
    if device.type == "cuda":
        peak["cuda"] = torch.cuda.max_memory_allocated(device)
    everywhere = all_gather(peak)
    return {name: max(one[name] for one in everywhere) for name in peak}


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
