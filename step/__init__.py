"""The steps of the pipeline and what they share."""

import misc  # noqa: F401 - before a step that runs alone can load torch
