"""Reading `.npy` and `.npz` files of others: arrays, and dictionaries without unpickling them.

`numpy.save` stores a dictionary as a pickle inside an array of objects without axes. Such files are
read by `misc.formats.safe_pickle`, so that no file can run code or claim more memory than it has
bytes.
"""

import io
import math
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from misc.errors import UserError
from misc.formats.pickled_arrays import RefusedPickle, checked_shape
from misc.formats.safe_pickle import loads

MAX_BYTES = 2**31
"""Of one file, unpacked."""

_KINDS = "biuf"  # booleans, integers, floats
_HEADER_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    SyntaxError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError)


def read_npy(path: Path) -> Any:
    """The array of a `.npy` file, or the object that `numpy.save` was given instead of one.

    Returns:
        An array of numbers, or plain data as `misc.formats.safe_pickle.loads` returns it.

    Raises:
        UserError: the file is missing, broken, too large, or asks for more than data.
    """
    return _parse(_content(path), path)


def read_npz(path: Path) -> dict[str, Any]:
    """Every array of an `.npz` file by name; see `read_npy`.

    Raises:
        UserError: the file is missing, broken, too large, or asks for more than data.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(_content(path))) as archive:
            parts = [part for part in archive.infolist() if part.filename.endswith(".npy")]
            _require_size(path, sum(part.file_size for part in parts))
            content = {part.filename.removesuffix(".npy"): archive.read(part) for part in parts}
    except _ZIP_ERRORS as error:
        raise UserError(f"{path} is not an npz file ({error}); write it again.") from None
    return {name: _parse(part, path) for name, part in content.items()}


def _content(path: Path) -> bytes:
    try:
        _require_size(path, path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None


def _require_size(path: Path, size: int) -> None:
    if size > MAX_BYTES:
        raise UserError(
            f"{path} holds {size / 2**30:.1f} GiB, more than the {MAX_BYTES / 2**30:.0f} GiB that "
            "a file of one picture or of image labels can need; write it in parts."
        )


def _parse(content: bytes, path: Path) -> Any:
    try:
        shape, fortran, dtype, data = _header(content)
        if dtype.kind == "O" and shape == ():
            return loads(data)
        if dtype.kind not in _KINDS:
            raise RefusedPickle(f"it has an array of type {dtype} and shape {shape}")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise RefusedPickle(f"it has {len(data)} bytes for an array of shape {shape}")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    except RefusedPickle as error:
        raise UserError(
            f"{path} is not read: {error}. Files of arrays, or of one dictionary of numbers, text, "
            "lists and arrays, are; write it again as one of these."
        ) from None


def _header(content: bytes) -> tuple[tuple[int, ...], bool, np.dtype, bytes]:
    """Shape, Fortran order and type of an array, and the bytes after its header."""
    stream = io.BytesIO(content)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that Python 2 wrote the file
            version = np.lib.format.read_magic(stream)
            shape, fortran, dtype = readers[version](stream)
    except _HEADER_ERRORS as error:
        raise RefusedPickle(f"it has no header of an npy file ({error})"[:160]) from None
    return checked_shape(shape), fortran, dtype, content[stream.tell() :]
