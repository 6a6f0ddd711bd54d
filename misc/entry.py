"""How an entry script ends: one sentence and an exit status instead of a traceback.

Nothing here imports torch: wrong options are answered in a moment.
"""

import os
import sys
import time
from collections.abc import Callable

from misc.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

_SECONDS_FOR_MAIN_PROCESS = 2.0


def run_entry(program: str, function: Callable[[], object]) -> int:
    """Call the main function of a script.

    A UserError is told on standard error and in the log file, if `function` opened one. At the end
    the log file is closed and the processes of `torchrun` part.

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
            message = f"{program}: interrupted; the same command goes on from here."
            print(message, file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        _close_log()
    if "misc.distributed" in sys.modules:  # else nobody can have joined
        from misc.distributed import leave_processes

        leave_processes()
    return 0


def sentence_of(error: UserError) -> str:
    """The message of an error; processes that load data wrap a traceback around it."""
    return str(error).rpartition(f"{UserError.__module__}.{UserError.__name__}: ")[2].strip()


def _tell(program: str, sentence: str) -> None:
    if not _is_main_process():
        # What all processes would say is said by the main one alone: when it has failed, torchrun
        # ends the others before this time is over.
        time.sleep(_SECONDS_FOR_MAIN_PROCESS)
    if "misc.progress" in sys.modules:  # else there is no log file
        from misc.progress import log_to_file

        log_to_file(f"stopped: {sentence}")
    print(f"{program}: {sentence}", file=sys.stderr)


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # as misc.distributed says, which imports torch


def _close_log() -> None:
    if "misc.progress" in sys.modules:
        from misc.progress import set_log_file

        set_log_file(None)
