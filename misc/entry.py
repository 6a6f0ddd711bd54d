"""How an entry script ends: one sentence and an exit status instead of a traceback.

Nothing here imports torch: wrong options are answered in a moment.
"""

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from misc.errors import UserError
from misc.refusals import refusal

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # as a shell says it of programs that SIGPIPE ended

_SECONDS_FOR_MAIN_PROCESS = 10.0


def run_entry(program: str, function: Callable[[], object]) -> int:
    """Call the main function of a script.

    A UserError is told on standard error and in the log file, if `function` opened one, and so is
    what the disk or the GPU refuses. At the end the log file is closed and the processes of
    `torchrun` part.

    Args:
        program: name of the script, in front of the message.
        function: does all of the work, the parsing of the options included.

    A reader of the output that has left, as in `| head -1`, ends it quietly. What the console
    cannot show, such as file names that are not UTF-8, is escaped.

    Returns:
        The exit status: 0, EXIT_USER_ERROR, EXIT_INTERRUPTED or EXIT_BROKEN_PIPE.
    """
    _prepare_console()
    try:
        try:
            return _run(program, function)
        finally:
            _flush_output()
    except BrokenPipeError:
        broken = [stream for stream in (sys.stdout, sys.stderr) if _reader_left(stream)]
        for stream in broken:
            _discard(stream)
        if not broken:
            raise
        return EXIT_BROKEN_PIPE
    finally:
        _close_log()


def _prepare_console() -> None:
    """Let anything be said, even where `>&-` has closed a stream."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _run(program: str, function: Callable[[], object]) -> int:
    """The status of a function whose output is read to the end."""
    try:
        function()
    except UserError as error:
        _tell(program, sentence_of(error))
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        if _is_main_process():
            again = ", without --overwrite," if "--overwrite" in sys.argv else ""
            message = f"{program}: interrupted; the same command{again} goes on from here."
            print(message, file=sys.stderr)
        return EXIT_INTERRUPTED
    except (OSError, RuntimeError, MemoryError) as error:
        sentence = refusal(error)
        if sentence is None:
            raise
        _tell(program, sentence)
        return EXIT_USER_ERROR
    if "misc.distributed" in sys.modules:  # else nobody can have joined
        from misc.distributed import leave_processes

        leave_processes()
    return 0


def sentence_of(error: UserError) -> str:
    """The message of an error; processes that load data wrap a traceback around it."""
    return str(error).rpartition(f"{UserError.__module__}.{UserError.__name__}: ")[2].strip()


def _flush_output() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError:  # a full disk, which was told where lines were logged
        _discard(sys.stdout)


def _discard(stream: TextIO) -> None:
    """Send the rest of a stream nowhere: Python would complain when it flushes it at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _reader_left(stream: TextIO) -> bool:
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # no stream of the system, or closed
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _tell(program: str, sentence: str) -> None:
    if not _is_main_process():
        # What all processes would say is said by the main one alone: when it has failed, torchrun
        # ends the others before this time is over.
        time.sleep(_SECONDS_FOR_MAIN_PROCESS)
    if "misc.progress" in sys.modules:  # else there is no log file
        from misc.progress import log_to_file

        with contextlib.suppress(OSError):  # a full disk has no room for this line either
            log_to_file(f"stopped: {sentence}")
    print(f"{program}: {sentence}", file=sys.stderr)


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # as misc.distributed says, which imports torch


def _close_log() -> None:
    if "misc.progress" in sys.modules:
        from misc.progress import set_log_file

        set_log_file(None)
