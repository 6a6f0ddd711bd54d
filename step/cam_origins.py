"""Which picture and classes the CAMs in a folder are of, kept between starts."""

from pathlib import Path
from typing import Any, NamedTuple

from misc.file_memory import FileMemory
from misc.maps_io import load_cam_origin


class CamOrigin(NamedTuple):
    """What CAMs were made of.

    Attributes:
        keys: class indices from 0.
        picture: CRC-32 of the picture's file.
    """

    keys: tuple[int, ...]
    picture: int


def cam_origins(cache_dir: Path | None, folder: Path) -> FileMemory[CamOrigin]:
    """Origins of the CAMs in a folder, by their path; see `load_cam_origin`."""
    return FileMemory(cache_dir, "cams", folder, _read, _restore)


def _read(path: Path) -> CamOrigin:
    keys, picture = load_cam_origin(path)
    return CamOrigin(tuple(keys.tolist()), picture)


def _restore(row: Any) -> CamOrigin:
    keys, picture = row
    return CamOrigin(tuple(map(int, keys)), int(picture))
