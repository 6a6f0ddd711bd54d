"""The one exception that is meant for the person at the keyboard."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in the input that its message explains in one sentence.

    Entry scripts print the message without a traceback and exit with status 2. The message names
    the file or option, the offending value and what to do about it.
    """


@contextmanager
def translated_options(names: Mapping[str, str]) -> Iterator[None]:
    """Let a UserError raised inside name the caller's options instead of those of run_sample.py.

    Args:
        names: what to write for each text of a message, such as `--init random`.
    """
    try:
        yield
    except UserError as error:
        message = str(error)
        for text, replacement in names.items():
            message = message.replace(text, replacement)
        raise UserError(message) from None
