"""Deterministic pseudo-random values, identical on every platform and library version."""

import zlib

import numpy as np


def uniform(key: str, shape) -> np.ndarray:
    """float64 values in [-1, 1) that depend only on `key` and the position."""
    n = int(np.prod(shape)) if len(shape) else 1
    x = np.arange(n, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(zlib.crc32(key.encode()))
    x &= np.uint64(0xFFFFFFFF)
    x ^= x >> np.uint64(16)
    x = (x * np.uint64(0x45D9F3B)) & np.uint64(0xFFFFFFFF)
    x ^= x >> np.uint64(16)
    x = (x * np.uint64(0x45D9F3B)) & np.uint64(0xFFFFFFFF)
    x ^= x >> np.uint64(16)
    return (x.astype(np.float64) / 2.0**31 - 1.0).reshape(shape)


def value(key: str, shape) -> np.ndarray:
    u = uniform(key, shape)
    if key.endswith("running_mean"):
        return 0.1 * u
    if key.endswith("running_var"):
        return 1.0 + 0.5 * np.abs(u)
    if key.endswith(("cls_token", "pos_embed")):
        return 0.5 * u
    if key.endswith(("bn3.weight", "increase.bn.weight")):
        return 0.2 * (1.0 + 0.1 * u)
    if len(shape) == 1 and key.endswith("weight"):
        return 1.0 + 0.1 * u
    if len(shape) <= 1:
        return 0.1 * u
    fan_in = int(np.prod(shape[1:]))
    return u * np.sqrt(3.0 / fan_in)


def image(key: str, h: int, w: int) -> np.ndarray:
    """uint8 RGB test picture (h, w, 3): soft gradient, two flat shapes, a little noise."""
    yy, xx = np.mgrid[0:h, 0:w]
    base = np.stack(
        [
            xx / max(w - 1, 1) * 120 + 60,
            yy / max(h - 1, 1) * 120 + 40,
            120 + 60 * np.sin(xx / 17.0) * np.cos(yy / 23.0),
        ],
        -1,
    )
    p = uniform(key + "/pos", (8,))
    cy, cx = h * (0.5 + 0.2 * p[0]), w * (0.35 + 0.15 * p[1])
    disk = ((yy - cy) / (0.28 * h)) ** 2 + ((xx - cx) / (0.2 * w)) ** 2 < 1
    base[disk] = (210, 70 + 30 * p[2], 50)
    y0, x0 = int(h * (0.2 + 0.1 * p[3])), int(w * (0.6 + 0.1 * p[4]))
    base[y0 : y0 + h // 3, x0 : x0 + w // 4] = (40, 150 + 40 * p[5], 200)
    base += 6 * uniform(key + "/noise", (h, w, 3))
    return np.clip(np.round(base), 0, 255).astype(np.uint8)
