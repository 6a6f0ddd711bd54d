"""Results that are written while the next ones are computed.

Compressing and writing a picture's results takes about as long as a GPU takes to make the next
ones. Packing files releases Python's lock, so threads are enough.
"""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from misc.distributed import local_world_size
from misc.errors import UserError

_MOST_THREADS = 4
_WAITING_PER_THREAD = 2  # results, with those that are being written: they take memory


class BackgroundWriter:
    """Calls functions that write, in a few threads; for a `with` block around the loop that makes.

    However the block ends, what was submitted is written first: nothing that was computed is lost.
    When it ends well, everything has been written or the first error is raised.

    The functions may fetch tensors from a GPU, which then waits for no one. They must not compute
    with tensors on the CPU, since torch would start threads beside those of the network.
    """

    def __init__(self, threads: int | None = None) -> None:
        """Start no thread yet; `threads` is by default at most 4, and this process's CPU cores."""
        self._threads = threads or writing_threads()
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self._threads, "writer")
        return self

    def submit(self, name: str, function: Callable[..., object], *arguments: Any) -> None:
        """Let a function be called soon; waits while twice as many results as threads are waiting.

        Args:
            name: of the picture whose results they are.
            function: writes them whole or not at all, as `misc.files.atomic_path` does.
            arguments: of the function; nobody may change them any more.

        Raises:
            Exception: of an earlier call, the first in the order of submission. A UserError comes
                as it is, any other one with a note that names its picture.
        """
        full = _WAITING_PER_THREAD * self._threads
        while self._waiting and (len(self._waiting) >= full or self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(_call, name, function, arguments))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait until everything is written.

        Raises:
            Exception: see `submit`, unless the block has ended with another one.
        """
        self._pool.shutdown()
        if error is None:
            for one in self._waiting:
                one.result()


def writing_threads() -> int:
    """At most four threads, and no more than this process's part of the CPU cores."""
    cores = (os.cpu_count() or 1) // local_world_size()
    return max(1, min(_MOST_THREADS, cores))


def _call(name: str, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    try:
        function(*arguments)
    except UserError:
        raise
    except Exception as error:
        error.add_note(f"while the results of {name} were written")
        raise
