"""How much two label maps of a picture differ, as one number.

Importing this module does not import torch: worker processes that should start in a moment use it.
"""

import numpy as np

from misc.maps_io import BACKGROUND_LABEL, IGNORE_LABEL


def disagreement(first: np.ndarray, second: np.ndarray) -> float:
    """One minus the intersection over union of the foregrounds, where the classes must agree, too.

    Args:
        first: (h, w) integers, 0 background, 255 ignored.
        second: likewise.

    Returns:
        In 0..1: 0 where both name the same class everywhere or neither has any foreground, 1 where
        they share no pixel. Pixels that either ignores are left out.
    """
    counted = (first != IGNORE_LABEL) & (second != IGNORE_LABEL)
    either = counted & ((first != BACKGROUND_LABEL) | (second != BACKGROUND_LABEL))
    if not either.any():
        return 0.0
    return 1.0 - float((either & (first == second)).sum() / either.sum())
