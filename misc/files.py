"""Files that are either whole or absent: write to a temporary name, then rename."""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from misc.errors import UserError, naming

_LONGEST_TAG = 200  # bytes; with it a temporary name stays below the 255 that file systems allow
_LONGEST_SUFFIX = 16  # characters; no format has a longer one


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path` and rename it to `path` on success.

    The temporary file keeps the suffix of `path`, because PIL and numpy choose formats by it. A
    killed process may leave a `.tmp-*` file behind, never half a result under the real name; see
    `remove_leftovers`. Errors of the operating system name `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}-{_temporary_tag(path.name)}")
    with naming(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove temporary files that killed writers of `path` left beside it.

    Only for where this process is the only writer of `path`: another one would lose what it is
    about to rename.
    """
    ours = re.compile(rf"\.tmp-[0-9a-f]{{32}}-{re.escape(_temporary_tag(path.name))}")
    for other in path.parent.iterdir() if path.parent.is_dir() else ():
        if ours.fullmatch(other.name):
            other.unlink(missing_ok=True)


def _temporary_tag(name: str) -> str:
    """What ends the temporary names of a file: its name, or where that is too long its hash."""
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST_TAG:
        return name
    return hashlib.sha256(encoded).hexdigest() + Path(name).suffix[-_LONGEST_SUFFIX:]


def expand_user(path: Path | str) -> Path:
    """The path with `~` and `~NAME` replaced by the home folder.

    Raises:
        UserError: there is no user of that name.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"{path}: there is no user {Path(path).parts[0][1:]} here; write the path in full."
        ) from None


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yield an empty folder beside `path` and rename it to `path` on success.

    `path` must be absent or an empty folder. On failure nothing is left; a killed process may leave
    a `.tmp-*` folder behind, never half a result under the real name.
    """
    path = Path(path).absolute()
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}-{_temporary_tag(path.name)}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented, key-sorted JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); mend or remove it.") from None


def read_json_object(path: Path | str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        UserError: the file is missing, is not JSON, or holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(
            f"{path} holds a {type(value).__name__} instead of names with values; mend or remove "
            "it."
        )
    return value


def up_to_date(output: Path, *inputs: Path) -> bool:
    """Whether a file is there and at least as new as every file it was made from."""
    if not output.is_file():
        return False
    made = output.stat().st_mtime_ns
    return all(path.stat().st_mtime_ns <= made for path in inputs)


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes; a file that has not changed since is not read again."""
    path = Path(path)
    status = path.stat()
    return _sha256_once(path, status.st_mtime_ns, status.st_size, status.st_ino)


def file_hash(path: Path | str | None) -> str:
    """Hex SHA-256 of a file for a record: `none` where none is named, `(missing)` where none is.

    A missing file differs from whatever was recorded; what needs the file itself says so.
    """
    if path is None:
        return "none"
    return sha256_file(path) if Path(path).is_file() else "(missing)"


@lru_cache(maxsize=32)
def _sha256_once(path: Path, *_: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
