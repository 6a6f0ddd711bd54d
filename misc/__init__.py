"""What all parts share."""

import misc.threads  # noqa: F401 - before anything can load torch
