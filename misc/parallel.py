"""The same function for every picture, in several processes.

Nothing here imports torch at the top: worker processes start in a moment.
"""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from typing import TypeVar

from misc.errors import UserError
from misc.threads import one_thread_each

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_pictures(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_workers: int,
    description: str,
) -> list[Result]:
    """Call `function` on every item behind a progress bar; results in the order of the items.

    The first exception of any call stops the rest and is raised here as it is.

    Args:
        function: a top-level function, or a `functools.partial` of one, as it is pickled.
        items: what to call it on, picklable.
        num_workers: number of processes; 0 works in this one. They are spawned afresh, since
            forking is unsafe beside CUDA and OpenMP threads. Each works with one thread and ends
            when this process is killed.
        description: text before the bar.

    Raises:
        UserError: `num_workers` is negative, or a worker process was killed.
    """
    from misc.progress import progress  # imports torch, which workers should not wait for

    if num_workers < 0:
        raise UserError(f"The number of workers is {num_workers}; use 0 or more.")
    items = list(items)
    if num_workers == 0 or not items:
        return [function(item) for item in progress(items, description)]
    workers = min(num_workers, len(items))
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
        with one_thread_each():
            futures = [pool.submit(function, item) for item in items]
        try:
            for future in progress(as_completed(futures), description, total=len(items)):
                future.result()
        except BrokenProcessPool:
            raise UserError(
                f"A worker process of '{description}' was killed, most likely for want of memory; "
                f"try fewer than {workers} workers."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


def _end_with_parent() -> None:
    """Let this worker end when its parent does, even by a signal that cannot be caught."""

    def watch() -> None:
        connection.wait([parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
