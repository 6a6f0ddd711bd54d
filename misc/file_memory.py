"""What was learned from files, kept from one start to the next by their size and time of change.

A file of the same size and time counts as the same. What is kept is JSON, written whole or not at
all, and only a cache: one that is absent, damaged, foreign or cannot be written costs time, not
the run.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from misc.errors import UserError
from misc.files import read_json, write_json

Fact = TypeVar("Fact")
_SPOILT = (TypeError, ValueError, KeyError, IndexError, AttributeError)


class FileMemory(Generic[Fact]):
    """Facts of files below a folder; several threads may ask at once.

    As a context it keeps on leaving, however that comes, what was learned inside.

    Args:
        cache_dir: gets KIND_KEY.json, with a key of the folder's own; None keeps nothing.
        kind: of the facts, in a word.
        root: the folder.
        read: learns the fact of a file; None, and whatever it raises, is not kept.
        restore: the fact from what JSON makes of it; raises what conversions do if it is none.
    """

    def __init__(
        self,
        cache_dir: Path | None,
        kind: str,
        root: Path,
        read: Callable[[Path], Fact],
        restore: Callable[[Any], Fact],
    ) -> None:
        self._read, self._restore = read, restore
        self._prefix = f"{Path(root)}{os.sep}"
        self._path: Path | None = None
        self._rows: dict[str, list] = {}
        self._has_news = False
        if cache_dir is not None:
            key = hashlib.sha256(os.fsencode(Path(root).resolve())).hexdigest()[:12]
            self._path = Path(cache_dir) / f"{kind}_{key}.json"
            self._rows = _rows_of(self._path)

    def of(self, path: Path) -> Fact:
        """The fact of a file, which is read unless it is known as it is."""
        stamp = _stamp(path)
        known = self._known(path, stamp)
        if known is not None:
            return known
        fact = self._read(path)
        self._keep(path, stamp, fact)
        return fact

    def known(self, path: Path) -> Fact | None:
        """The fact of a file as it is; None if that is yet to be read."""
        return self._known(path, _stamp(path))

    def learn(self, path: Path, fact: Fact) -> None:
        """Take the fact of a file that was just written."""
        self._keep(path, _stamp(path), fact)

    def save(self) -> None:
        """Write what is new; a folder that cannot be written is told in the log."""
        if self._path is None or not self._has_news:
            return
        self._has_news = False
        try:
            write_json(self._path, self._rows)
        except OSError as error:
            from misc.progress import log  # imports torch, which workers should not wait for

            log(f"{self._path} is not kept, the next start reads again: {error.strerror}.")

    def __enter__(self) -> "FileMemory[Fact]":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.save()

    def _known(self, path: Path, stamp: list[int] | None) -> Fact | None:
        row = self._rows.get(self._key(path))
        if stamp is None or row is None or row[:2] != stamp:
            return None
        try:
            return self._restore(row[2])
        except _SPOILT:
            return None

    def _keep(self, path: Path, stamp: list[int] | None, fact: Fact | None) -> None:
        if stamp is not None and fact is not None:
            self._rows[self._key(path)] = [*stamp, fact]
            self._has_news = True

    def _key(self, path: Path) -> str:
        """The path below the folder, or a path elsewhere as it is."""
        return str(path).removeprefix(self._prefix)


def _stamp(path: Path) -> list[int] | None:
    """Size in bytes and time of change in ns; None if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _rows_of(path: Path) -> dict[str, list]:
    """[size, mtime_ns, fact] by path, as an earlier start left them."""
    try:
        content = read_json(path)
    except (UserError, OSError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: row for key, row in content.items() if isinstance(row, list) and len(row) == 3}
