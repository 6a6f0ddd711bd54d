"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """A mistake in the input that its message explains in one sentence.

    Entry scripts print the message without a traceback and exit with status 2. The message names
    the file or option, the offending value and what to do about it.
    """
