"""Masks as run lengths, in the two encodings that annotation tools read.

COCO counts pixels column by column and writes the counts as text; Label Studio counts bytes row by
row and packs the counts as bits.
"""

from typing import Any

import numpy as np

_CHANNELS = 4
"""Label Studio's brush is an RGBA picture, so every pixel is four bytes of one value."""
_OPAQUE = 255
_WORD_BITS = 8
_COUNT_BITS = (3, 4, 8, 16)
"""Sizes of a count in Label Studio's encoding; two bits in front of each count choose one."""


def run_lengths(flat: np.ndarray) -> np.ndarray:
    """Lengths of the runs of equal values.

    Args:
        flat: (n,) of any dtype, n >= 1.

    Returns:
        (runs,) int64 that sum to n.
    """
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return np.diff(np.concatenate(([0], starts, [len(flat)])))


def coco_rle(mask: np.ndarray) -> dict[str, Any]:
    """Compressed run-length encoding of COCO, as pycocotools reads it.

    Args:
        mask: (h, w) bool.

    Returns:
        `size` [h, w] and `counts`, text that stands for the run lengths of the columns, zeros
        first.
    """
    flat = mask.ravel(order="F")
    counts = run_lengths(flat).tolist()
    return {"size": list(mask.shape), "counts": _coco_text([0, *counts] if flat[0] else counts)}


def _coco_text(counts: list[int]) -> str:
    """Counts as text: from the fourth on as difference to the last count of the same value.

    A number is cut into groups of five bits, lowest first, until the rest is nothing but its sign;
    bit 5 says that more follow, and 48 is added to get a printable character.
    """
    text = []
    for place, count in enumerate(counts):
        rest = count - counts[place - 2] if place > 2 else count
        more = True
        while more:
            group, rest = rest & 31, rest >> 5
            more = rest != (-1 if group & 16 else 0)
            text.append(chr(48 + group + 32 * more))
    return "".join(text)


def brush_rle(mask: np.ndarray) -> list[int]:
    """Run-length encoding of a brush region of Label Studio.

    A bit stream: the number of values (32 bits), the bits per value less one (5), the four sizes
    of counts less one (4 each); then for every run a one, the index of the size (2), the length
    less one and the value. Zeros fill the last byte.

    Args:
        mask: (h, w) bool.

    Returns:
        Bytes, 0..255.
    """
    flat = mask.ravel()
    bits = [f"{flat.size * _CHANNELS:032b}", f"{_WORD_BITS - 1:05b}"]
    bits += [f"{size - 1:04b}" for size in _COUNT_BITS]
    value = _OPAQUE * int(flat[0])
    for length in (run_lengths(flat) * _CHANNELS).tolist():
        bits += _brush_run(length, f"{value:0{_WORD_BITS}b}")
        value = _OPAQUE - value
    stream = np.frombuffer("".join(bits).encode("ascii"), np.uint8) - ord("0")
    return np.packbits(stream).tolist()


def _brush_run(length: int, value: str) -> list[str]:
    """Bits of one run, in pieces where the largest count is too small for it."""
    pieces, largest = [], 1 << _COUNT_BITS[-1]
    while length > 0:
        piece = min(length, largest)
        index = next(i for i, size in enumerate(_COUNT_BITS) if piece <= 1 << size)
        pieces.append(f"1{index:02b}{piece - 1:0{_COUNT_BITS[index]}b}{value}")
        length -= piece
    return pieces
