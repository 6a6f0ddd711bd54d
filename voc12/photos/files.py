"""The pictures below a folder: found, read once, and remembered by size and time of change.

A picture whose long side is above a bound is worked on in a smaller copy, kept by content; the
folder itself is only ever read.
"""

import hashlib
import io
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from misc.checks import MAX_THREADS
from misc.errors import UserError
from misc.files import atomic_path
from misc.maps_io import read_image
from misc.progress import progress
from voc12.devkit import IMAGE_SUFFIXES
from voc12.preflight import is_upright

_SYSTEM_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"})
_COPY_QUALITY = 95  # of JPEG, without chroma subsampling: no loss that a network would see


@dataclass
class Found:
    """What lies below a folder; paths are relative, as text with `/`, sorted by name.

    Attributes:
        pictures: where every file with a picture's suffix is.
        folders: names of the folders at the top, hidden ones left out.
        skipped: other files, and links to a folder that they lie in.
        problems: as `kind: what and remedy`.
    """

    pictures: dict[str, Path] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class PhotoFacts(NamedTuple):
    """What is known of a picture's file after it was decoded once.

    Attributes:
        size: of the file, bytes.
        mtime_ns: time of change of the file.
        sha256: hex, of the file's content.
        crc: CRC-32 of the file that is worked on.
        height: of the picture, pixels.
        width: of the picture, pixels.
        upright: whether it is stored as it is meant to be seen (EXIF).
        copy: name of the smaller copy that is worked on; empty for the picture itself.
    """

    size: int
    mtime_ns: int
    sha256: str
    crc: int
    height: int
    width: int
    upright: bool
    copy: str


def find_pictures(folder: Path) -> Found:
    """Look through a folder at any depth; links are followed, hidden names are left out."""
    found = Found()
    _walk(folder, "", (folder.resolve(),), found)
    return found


def _walk(folder: Path, prefix: str, ancestors: tuple[Path, ...], found: Found) -> None:
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        found.problems.append(f"unreadable folder: {str(folder)!r} ({error.strerror})")
        return
    for name in names:
        if name.startswith(".") or name.lower() in _SYSTEM_NAMES:
            continue
        path, relative = folder / name, f"{prefix}{name}"
        if path.is_dir():
            found.folders += [] if prefix else [name]
            if (real := path.resolve()) in ancestors:
                found.skipped.append(relative)
            else:
                _walk(path, f"{relative}/", (*ancestors, real), found)
        elif path.suffix.lower() not in IMAGE_SUFFIXES:
            found.skipped.append(relative)
        elif path.is_file():
            found.pictures[relative] = path
        else:
            found.problems.append(f"unreadable picture: {str(path)!r} is a link to nothing")


def read_facts(
    pictures: Mapping[str, Path],
    known: Mapping[str, PhotoFacts],
    copies: Path,
    long_side: int,
    facts: dict[str, PhotoFacts],
) -> list[str]:
    """Decode every picture that is new or has changed, in threads.

    Args:
        pictures: see `Found`.
        known: facts of earlier times; those of an unchanged file are taken over.
        copies: folder of smaller copies, written as needed.
        long_side: pixels above which a picture is worked on in a smaller copy.
        facts: gets the facts of every readable picture, one after the other, so that the work is
            not lost when it is interrupted.

    Returns:
        Problems as `kind: what and remedy`, none if all is well.
    """

    def read(relative: str) -> PhotoFacts | str:
        try:
            return _facts(pictures[relative], known.get(relative), copies, long_side)
        except UserError as error:
            return f"unreadable picture: {error}"

    problems = []
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        results = progress(pool.map(read, pictures), "reading photos", total=len(pictures))
        for relative, result in zip(pictures, results, strict=True):
            if isinstance(result, str):
                problems.append(result)
            else:
                facts[relative] = result
    return problems


def _facts(path: Path, known: PhotoFacts | None, copies: Path, long_side: int) -> PhotoFacts:
    status = path.stat()
    stamp = (status.st_size, status.st_mtime_ns)
    if known is not None and stamp == known[:2] and _copy_is_right(known, copies, long_side):
        return known
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error.strerror}).") from None
    image, sha256 = read_image(path), hashlib.sha256(data).hexdigest()
    facts = PhotoFacts(
        *stamp, sha256, zlib.crc32(data), *image.shape[:2], upright=is_upright(path), copy=""
    )
    if max(image.shape[:2]) <= long_side:
        return facts
    copy = Image.fromarray(image)
    copy.thumbnail((long_side, long_side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    copy.save(stream, "JPEG", quality=_COPY_QUALITY, subsampling=0)
    facts = facts._replace(copy=_copy_name(sha256, long_side), crc=zlib.crc32(stream.getvalue()))
    with atomic_path(copies / facts.copy) as temporary:
        temporary.write_bytes(stream.getvalue())
    return facts


def _copy_name(sha256: str, long_side: int) -> str:
    return f"{sha256}-{long_side}.jpg"


def _copy_is_right(known: PhotoFacts, copies: Path, long_side: int) -> bool:
    """Whether what is worked on has the size that is asked for now, and is there."""
    if max(known.height, known.width) <= long_side:
        return not known.copy
    return known.copy == _copy_name(known.sha256, long_side) and (copies / known.copy).is_file()
