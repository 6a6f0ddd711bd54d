"""Several jobs at once, each when those that it needs are done."""

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

_PAUSE = 0.2  # seconds between looks at the running ones
_PATIENCE = 10.0  # seconds that a job has to end by itself when all is interrupted

Outcome = Literal["made", "kept", "failed", "left out"]


class Child(Protocol):
    """A started job, such as a `subprocess.Popen`."""

    def poll(self) -> int | None:
        """The exit status; None while it runs."""

    def terminate(self) -> None:
        """Ask it to end."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended."""

    def kill(self) -> None:
        """End it."""


@dataclass(frozen=True)
class Job:
    """Something to do.

    Attributes:
        name: of its own.
        needs: names of jobs that have to be done first.
        is_done: whether nothing is left to do; asked when those that it needs are done.
        start: starts it.
    """

    name: str
    needs: frozenset[str]
    is_done: Callable[[], bool]
    start: Callable[[], Child]


@dataclass(frozen=True)
class End:
    """How a job ended.

    Attributes:
        name: of the job.
        outcome: `made`; `kept`, as it was done already; `failed`; `left out`, as one that it needs
            is not done.
        seconds: from its start to its end.
        status: its exit status, where it was started.
    """

    name: str
    outcome: Outcome
    seconds: float = 0.0
    status: int | None = None


class _Running:
    """Jobs that were started and have not ended."""

    def __init__(self) -> None:
        self._children: dict[str, tuple[Child, float]] = {}

    def __len__(self) -> int:
        return len(self._children)

    def start(self, job: Job) -> None:
        self._children[job.name] = job.start(), time.perf_counter()

    def ended(self) -> Iterator[End]:
        for name, (child, start) in list(self._children.items()):
            status = child.poll()
            if status is not None:
                del self._children[name]
                seconds = time.perf_counter() - start
                yield End(name, "failed" if status else "made", seconds, status)

    def stop(self) -> None:
        """End all of them."""
        children = [child for child, _ in self._children.values()]
        for child in children:
            child.terminate()
        for child in children:
            try:
                child.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def run_jobs(jobs: Sequence[Job], at_once: int, pause: float = _PAUSE) -> Iterator[End]:
    """Do jobs in their order as far as what they need is done, and tell each end as it comes.

    However this is left, by an interrupt for example, no job goes on running: close the generator.

    Args:
        jobs: those that a job needs are among them, before it.
        at_once: how many run at a time.
        pause: seconds between looks at the running ones.

    Raises:
        ValueError: what a job needs does not stand before it.
    """
    for number, job in enumerate(jobs):
        if missing := job.needs - {one.name for one in jobs[:number]}:
            raise ValueError(f"{job.name} needs {sorted(missing)}, which do not stand before it")
    waiting, done, lost, running = list(jobs), set(), set(), _Running()
    try:
        while waiting or len(running):
            for end in running.ended():
                (lost if end.outcome == "failed" else done).add(end.name)
                yield end
            for job in list(waiting):
                if job.needs & lost:
                    waiting.remove(job)
                    lost.add(job.name)
                    yield End(job.name, "left out")
                elif job.needs <= done and len(running) < at_once:
                    waiting.remove(job)
                    if job.is_done():
                        done.add(job.name)
                        yield End(job.name, "kept")
                    else:
                        running.start(job)
            if len(running):
                time.sleep(pause)
    finally:
        running.stop()
