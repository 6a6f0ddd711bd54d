"""The one exception that is meant for the person at the keyboard."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """A mistake in the input that its message explains in one sentence.

    Entry scripts print the message without a traceback and exit with status 2. The message names
    the file or option, the offending value and what to do about it.
    """


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Let errors of the operating system inside the block name the file that they are about.

    A write to an open file knows no name, and a temporary name would mean nothing to anybody.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        refused = os_error_in(error)
        if refused is not None and refused.filename in (None, str(temporary), temporary):
            refused.filename, refused.filename2 = str(path), None
        raise


def os_error_in(error: BaseException | None) -> OSError | None:
    """The error of the operating system behind an error: torch wraps its own around a full disk."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
