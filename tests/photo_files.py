"""Photos of noise, made for tests."""

from pathlib import Path

import numpy as np
from PIL import Image

LONG_SIDE = 60


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (24, 20), **options: object) -> Path:
    """Write a picture (width, height) of noise that follows from the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path, **options)
    return path
