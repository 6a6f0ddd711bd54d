"""The class scores of whole pictures on disk: float16 at the stride of the network.

Nothing here imports torch: the processes of the CRF start in a moment.
"""

import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from misc.errors import UserError
from misc.files import atomic_path

SUFFIX = ".npy"
DTYPE = np.float16

_GREATEST = float(np.finfo(DTYPE).max)
_HEADER_BYTES = 128
_BYTES_PER_MB = 1e6


def save_logits(path: Path, logits: np.ndarray) -> None:
    """Write (C, h', w') class scores as float16, whole or not at all.

    Raises:
        UserError: a score is not finite.
    """
    if not np.isfinite(logits).all():
        raise UserError(
            f"The network gives scores that are not finite for {path.stem}; its weights are "
            "damaged, test another checkpoint."
        )
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.clip(logits, -_GREATEST, _GREATEST).astype(DTYPE), allow_pickle=False)


def load_logits(path: Path, num_classes: int) -> np.ndarray:
    """Read what `save_logits` wrote: (C, h', w') float32.

    Raises:
        UserError: the file is missing, damaged, has another number of classes or holds a score that
            is not finite.
    """
    remedy = "run test for this split"
    try:
        logits = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {remedy}.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read as logits ({error}); remove it and {remedy} again."
        ) from None
    kind = f"{logits.shape} {logits.dtype}" if isinstance(logits, np.ndarray) else "an archive"
    if not _is_map_per_class(logits, num_classes):
        raise UserError(
            f"{path} holds {kind}, not ({num_classes}, h, w) floats; remove it and {remedy} again."
        )
    if not np.isfinite(logits).all():
        raise UserError(
            f"{path} holds scores that are NaN or infinite; remove it and {remedy} again with "
            "other weights."
        )
    return logits.astype(np.float32)


def _is_map_per_class(logits: object, num_classes: int) -> bool:
    if not isinstance(logits, np.ndarray) or logits.dtype.kind != "f" or logits.ndim != 3:
        return False
    return len(logits) == num_classes and logits.size > 0


def expected_bytes(sizes: Iterable[tuple[int, int]], num_classes: int, stride: int) -> int:
    """About how much disk space the logits of pictures of these (height, width) take."""
    cell = num_classes * np.dtype(DTYPE).itemsize
    return sum(
        (height // stride + 1) * (width // stride + 1) * cell + _HEADER_BYTES
        for height, width in sizes
    )


def require_space(folder: Path, size: int) -> None:
    """Stop when `size` bytes would not fit on the disk of `folder`, which need not exist yet.

    Raises:
        UserError: says how much is needed and how much is free.
    """
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise UserError(
            f"The logits need about {megabytes(size)} in {folder}, but only {megabytes(free)} are "
            "free there; make room or choose another folder with EXP.OUTPUT_DIR."
        )


def megabytes(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / _BYTES_PER_MB:.1f} MB"
