"""Files that are either whole or absent: write to a temporary name, then rename."""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from misc.errors import UserError


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path` and rename it to `path` on success.

    The temporary file keeps the suffix of `path`, because PIL and numpy choose formats by it. A
    killed process may leave a `.tmp-*` file behind, never half a result under the real name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yield an empty folder beside `path` and rename it to `path` on success.

    `path` must be absent or an empty folder. On failure nothing is left; a killed process may leave
    a `.tmp-*` folder behind, never half a result under the real name.
    """
    path = Path(path).absolute()
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}-{path.name}")
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


def up_to_date(output: Path, *inputs: Path) -> bool:
    """Whether a file is there and at least as new as every file it was made from."""
    if not output.is_file():
        return False
    made = output.stat().st_mtime_ns
    return all(path.stat().st_mtime_ns <= made for path in inputs)


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
