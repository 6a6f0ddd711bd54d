"""A decoder of the run lengths of Label Studio's brush, from the description of the format.

Label Studio uses the format of the JavaScript package @thi.ng/rle-pack, whose readme describes it.
"""

from collections.abc import Sequence

import numpy as np


def decode_brush(data: Sequence[int]) -> np.ndarray:
    """Values of an encoded array.

    Head: number of values (32 bits), bits of a value less one (5), four sizes less one (4 each).
    Then chunks: one bit, set where a value is repeated; two bits that choose a size; so many bits
    with the length less one; the repeated value, or as many values as the length says.
    """
    bits = int.from_bytes(bytes(data), "big")
    left = 8 * len(data)

    def take(count: int) -> int:
        nonlocal left
        left -= count
        assert left >= 0, "the stream is too short"
        return bits >> left & (1 << count) - 1

    total, width = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        repeated = take(1)
        length = take(sizes[take(2)]) + 1
        values += [take(width)] * length if repeated else [take(width) for _ in range(length)]
    assert len(values) == total and left < 8, "the stream has another length than its head says"
    return np.array(values)
