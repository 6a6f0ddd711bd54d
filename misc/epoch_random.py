"""Random numbers of a data set that depend on (seed, epoch, index) alone.

Not on the number of workers, the order of access, the process or an interruption.
"""

import numpy as np
import torch


class EpochRandom:
    """What a data set with random items needs; set `.epoch` before each pass."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        # In shared memory, so that workers that outlive an epoch see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch, >= 0, that the random numbers of the items belong to."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._epoch.fill_(value)

    def generator(self, index: int) -> np.random.Generator:
        """The random numbers of item `index` in this epoch."""
        return np.random.default_rng([self.seed, self.epoch, index])
