"""What a run says while it runs: bars on the console, time-stamped lines in a log file."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from misc.distributed import is_main_process, unless_another_failed, world_size
from misc.errors import naming

_ESCAPED = "backslashreplace"  # of characters that cannot be written, as in some file names
_SECONDS_BETWEEN_LINES = 30.0  # a bar that goes to a file or a pipe


class RunLog:
    """A text file that gets one line at a time, each with a time stamp and flushed at once."""

    def __init__(self, path: Path | str) -> None:
        """Append to `path`; its folder is created."""
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, message: str) -> None:
        """Append `message`; every line of it gets the time stamp.

        Names that are not UTF-8 are escaped.
        """
        stamp = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        with naming(self.path), self.path.open("a", encoding="utf-8", errors=_ESCAPED) as stream:
            stream.writelines(f"{stamp} {line}\n" for line in message.split("\n"))


@dataclass(frozen=True)
class Loop:
    """What was seen of a loop with a bar.

    Attributes:
        description: the text before its bar.
        seconds: that each finished round took, from asking for its item to asking for the next.
    """

    description: str
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Watch:
    """The loops that `watched` has seen so far."""

    finish_round: Callable[[], object]
    loops: list[Loop] = field(default_factory=list)

    def over(self, items: Iterable[Any], description: str) -> Iterator[Any]:
        """The items; how long each round takes is written down."""
        loop = Loop(description)
        self.loops.append(loop)
        start = time.perf_counter()
        for item in items:
            yield item
            self.finish_round()
            now = time.perf_counter()
            loop.seconds.append(now - start)
            start = now


_run_log: RunLog | None = None
_watch: _Watch | None = None


def set_log_file(path: Path | str | None) -> None:
    """Send the lines of `log` to this file as well; None sends them to the console only."""
    global _run_log
    _run_log = None if path is None else RunLog(path)


def log(message: str) -> None:
    """Say something: to the console, past any bar, and to the log file. Main process only."""
    if not is_main_process() or _watch is not None:
        return
    encoding = sys.stdout.encoding or "utf-8"
    tqdm.write(message.encode(encoding, _ESCAPED).decode(encoding), file=sys.stdout)
    sys.stdout.flush()
    if _run_log is not None:
        _run_log.write(message)


def log_to_file(message: str) -> None:
    """Add a line to the log file alone, for what the console is told otherwise."""
    if is_main_process() and _run_log is not None:
        _run_log.write(message)


def progress(iterable: Iterable[Any], description: str, total: int | None = None) -> tqdm:
    """Wrap a loop in a bar.

    On a terminal this is the usual bar. Where standard error is a file or a pipe the bar becomes a
    line every half minute, so that logs stay readable. Only the main process shows anything.

    Args:
        iterable: what to loop over.
        description: short text before the bar.
        total: number of items when `iterable` has no length.
    """
    quiet = not is_main_process()
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if world_size() > 1:
        iterable = unless_another_failed(iterable)
    if _watch is not None:
        iterable = _watch.over(iterable, description)
    if sys.stderr.isatty():
        return tqdm(
            iterable, description, total, disable=quiet, dynamic_ncols=True, file=sys.stderr
        )
    return _LineBar(
        iterable,
        description,
        total,
        disable=quiet,
        file=_LineStream(sys.stderr),
        mininterval=_SECONDS_BETWEEN_LINES,
        maxinterval=_SECONDS_BETWEEN_LINES,
        ascii=True,
        ncols=80,
    )


@contextmanager
def watched(finish_round: Callable[[], object] = lambda: None) -> Iterator[list[Loop]]:
    """Measure the rounds of all loops that have a bar; `log` says nothing meanwhile.

    Args:
        finish_round: called before the clock is read, so that a device has done what the round
            gave it to do.

    Yields:
        The loops, in the order in which they begin; more are added as the block goes on.
    """
    global _watch
    before, _watch = _watch, _Watch(finish_round)
    try:
        yield _watch.loops
    finally:
        _watch = before


class _LineStream:
    """Turns the carriage returns of a bar into lines of their own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        line = text.strip()
        return self._stream.write(f"{line}\n") if line else 0

    def flush(self) -> None:
        self._stream.flush()


class _LineBar(tqdm):
    """A bar whose changes of text wait for its next line instead of printing one each."""

    monitor_interval = 0  # tqdm's own thread would repeat the last line of a slow loop

    def moveto(self, n: int) -> None:
        """A bar inside another one has no place below it: its lines come as they are."""

    def set_postfix(self, ordered_dict: Any = None, refresh: bool = True, **kwargs: Any) -> None:
        super().set_postfix(ordered_dict, refresh=False, **kwargs)

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        super().set_postfix_str(s, refresh=False)

    def set_description(self, desc: str | None = None, refresh: bool = True) -> None:
        super().set_description(desc, refresh=False)
