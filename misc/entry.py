"""How an entry script ends: one sentence and an exit status instead of a traceback.

Nothing here imports torch: wrong options are answered in a moment.
"""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable

from misc.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

_SECONDS_FOR_MAIN_PROCESS = 2.0

_NO_SPACE = "free some space or write to another disk"
_NO_PERMISSION = "change the permissions or use another folder"
_NO_FOLDER = "a file is where a folder is needed; move it away or use another folder"
_REMEDIES = {
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EFBIG: _NO_SPACE,
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EROFS: _NO_PERMISSION,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.EISDIR: "a folder is where a file is needed; move it away or use another folder",
}
"""What to do about the errors of the operating system that are no bugs of ours."""


def run_entry(program: str, function: Callable[[], object]) -> int:
    """Call the main function of a script.

    A UserError is told on standard error and in the log file, if `function` opened one, and so is
    what the disk or the GPU refuses. At the end the log file is closed and the processes of
    `torchrun` part.

    Args:
        program: name of the script, in front of the message.
        function: does all of the work, the parsing of the options included.

    Returns:
        The exit status: 0, EXIT_USER_ERROR or EXIT_INTERRUPTED.
    """
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
    except (OSError, RuntimeError) as error:
        sentence = _refusal(error)
        if sentence is None:
            raise
        _tell(program, sentence)
        return EXIT_USER_ERROR
    finally:
        _close_log()
    if "misc.distributed" in sys.modules:  # else nobody can have joined
        from misc.distributed import leave_processes

        leave_processes()
    return 0


def sentence_of(error: UserError) -> str:
    """The message of an error; processes that load data wrap a traceback around it."""
    return str(error).rpartition(f"{UserError.__module__}.{UserError.__name__}: ")[2].strip()


def _refusal(error: OSError | RuntimeError) -> str | None:
    """What the disk or the GPU refused and a remedy; None for an error that is a bug."""
    if isinstance(error, OSError):
        if error.errno not in _REMEDIES:
            return None
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}; {_REMEDIES[error.errno]}."
    out_of_memory = getattr(sys.modules.get("torch"), "OutOfMemoryError", None)
    if out_of_memory is None or not isinstance(error, out_of_memory):
        return None
    reason = str(error).partition(". ")[0]  # advice for programmers comes after it
    return (
        f"{reason}; use a smaller batch, crop or network, end other programs on the GPU, or use "
        "the CPU."
    )


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
