"""PxAP (Choe et al. 2020): average precision of the pixels of all maps against true masks."""

import numpy as np
import torch

from misc.distributed import all_reduce_sum
from wsol.localization import stretched

BINS = 1000
"""Of the published grid: thresholds in steps of 0.001, and a last bin for 1."""
_BACKGROUND, _OBJECT = 0, 1


class PixelAveragePrecision:
    """Histograms of the scores of object and background pixels, over all pictures together.

    They are as large for many pictures as for few.
    """

    def __init__(self) -> None:
        """Start with zeros."""
        self._masked = np.zeros(1, np.int64)
        self._counts = np.zeros((2, BINS + 1), np.int64)

    def update(self, cam: np.ndarray, mask: np.ndarray) -> None:
        """Add one picture.

        Args:
            cam: (h, w) float map of the true class; it is stretched to [0, 1].
            mask: (S, S) uint8 on the square picture: 1 object, 0 background, 255 ignored.
        """
        bins = (stretched(cam, len(mask)) * BINS).astype(np.int64)
        for kind in (_BACKGROUND, _OBJECT):
            self._counts[kind] += np.bincount(bins[mask == kind], minlength=BINS + 1)
        self._masked += 1

    def reduce(self) -> None:
        """Add up the counts of all processes; every process then holds the total."""
        for name in ("_masked", "_counts"):
            counts = torch.from_numpy(getattr(self, name))
            setattr(self, name, all_reduce_sum(counts).numpy())

    @property
    def masked(self) -> int:
        """Number of pictures."""
        return int(self._masked[0])

    def compute(self) -> float:
        """Area under the steps of the precision-recall curve, 0..1; NaN without any object."""
        background, found = self._counts[:, ::-1].cumsum(axis=1)  # from the highest scores down
        with np.errstate(invalid="ignore"):
            precision = np.nan_to_num(found / (found + background))
            gained = np.diff(found, prepend=0) / found[-1]
        return float((precision * gained).sum())
