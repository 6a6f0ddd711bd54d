"""Several processes on one machine, connected as `torchrun` connects them."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch

from misc.distributed import barrier, join_processes, leave_processes

# Imported once, by the process that the others are forked from: a second each instead of ten. (The
# process of the tests cannot be that one, since it may use CUDA.)
_PRELOADED = ["torch._dynamo", "misc.training", "misc.metrics"]

_KILLED_RUN = """
import os, signal, sys
import {loop} as loop, {script} as script

use, left = loop.to_device, int(sys.argv[1])

def use_or_die(batch, device):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return use(batch, device)

loop.to_device = use_or_die
script.main(sys.argv[2:])
"""


def killed_run(script: str, loop: str) -> str:
    """Code that runs a script until it kills itself in the middle of a training.

    Its first argument counts the batches, from 1, up to the one that is about to be used then; the
    others are the script's.

    Args:
        script: module with `main`.
        loop: module whose `to_device` the training calls for every batch.
    """
    return _KILLED_RUN.format(script=script, loop=loop)


def run_processes(function: Callable[..., None], *arguments: Any, count: int = 2) -> None:
    """Call a top-level function in `count` joined CPU processes; the first error is raised here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.set_forkserver_preload(_PRELOADED)
    torch.multiprocessing.start_processes(
        _start, (count, port, function, arguments), count, start_method="forkserver"
    )


def _start(
    index: int, count: int, port: int, function: Callable[..., None], arguments: tuple
) -> None:
    environment = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in environment.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    join_processes(torch.device("cpu"))
    function(*arguments)
    barrier()
    leave_processes()
