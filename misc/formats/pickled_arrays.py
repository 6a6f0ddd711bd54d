"""Numpy arrays as a pickle describes them, made from their bytes by plain checked calls.

`misc.formats.safe_pickle` puts these in the place of numpy's own functions and classes, whose
unpickling trusts what the file says of types and shapes.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

MAX_DIMENSIONS = 16
MAX_SIZE = 2**40
"""Of one axis; an axis may be longer than the file where another one has no length."""

_OBJECT = "O"
_NUMBERS = re.compile(r"b1|[iu][1248]|f[248]")
_TEXT = re.compile(r"[US]\d{1,5}")


class RefusedPickle(ValueError):
    """What is no data in a file, or is broken; the message says so in a few words."""


def checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of an array as a tuple of plain numbers.

    Raises:
        RefusedPickle: no array has such a shape.
    """
    sizes = tuple(shape)
    plain = all(type(size) is int and 0 <= size < MAX_SIZE for size in sizes)
    if len(sizes) > MAX_DIMENSIONS or not plain:
        raise RefusedPickle("it has an array of an impossible shape")
    return sizes


class PickledDtype:
    """A number, text or object type; its byte order comes after it."""

    def __init__(self, code: str, align: Any = False, copy: Any = False) -> None:
        code = str(code).replace("O8", _OBJECT)
        if not (code == _OBJECT or _NUMBERS.fullmatch(code) or _TEXT.fullmatch(code)):
            raise RefusedPickle(f"it has an array of type {code[:40]!r}")
        self.code, self.order = code, "="

    def build(self, state: tuple) -> None:
        """Take over the byte order; fields and subarrays are refused."""
        order, *structure = state[1:5]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in structure):
            raise RefusedPickle("it has an array with fields")
        self.order = order

    def numpy(self) -> np.dtype:
        """The type of plain values."""
        if self.code == _OBJECT:
            raise RefusedPickle("it has an array of objects inside")
        return np.dtype(self.code).newbyteorder(self.order)


class PickledArray:
    """An array whose content comes after it.

    Attributes:
        value: the array, or the one object of an array of objects without axes.
    """

    def __init__(self, kind: Any, shape: Any, code: Any) -> None:
        self.value: Any = None

    def build(self, state: tuple) -> None:
        """Make the array from its version, shape, type, order and bytes."""
        _, shape, dtype, fortran, content = state
        if dtype.code == _OBJECT:
            if shape != () or len(content) != 1:
                raise RefusedPickle(f"it has an array of objects of shape {shape}")
            self.value = content[0]
        else:
            self.value = make_array(content, dtype, shape, "F" if fortran else "C")


def make_array(
    content: bytes | str, dtype: PickledDtype, shape: Sequence[int], order: str
) -> np.ndarray:
    """An array of exactly these bytes, so that none is larger than the file."""
    shape, kind, content = checked_shape(shape), dtype.numpy(), plain_bytes(content)
    if math.prod(shape) * kind.itemsize != len(content):
        raise RefusedPickle(f"it has {len(content)} bytes for an array of shape {shape}")
    return np.frombuffer(content, kind).reshape(shape, order=order)


def plain_bytes(content: Any) -> bytes:
    """Bytes as any protocol stores them.

    Raises:
        RefusedPickle: they are something else.
    """
    if isinstance(content, str):  # as Python 2 wrote bytes
        return content.encode("latin-1")
    if not isinstance(content, bytes | bytearray):
        raise RefusedPickle("it has an array without bytes")
    return bytes(content)


def from_buffer(
    content: Any, dtype: PickledDtype, shape: Any, order: str, axes: Any = None
) -> np.ndarray:
    """An array as protocol 5 stores it."""
    if order == "K" and axes is not None:
        return make_array(content, dtype, shape, "C").transpose(axes)
    return make_array(content, dtype, shape, order if order in ("C", "F") else "C")


def scalar(dtype: PickledDtype, content: Any) -> Any:
    """A number or text of numpy as one of Python."""
    return make_array(content, dtype, (), "C").item()
