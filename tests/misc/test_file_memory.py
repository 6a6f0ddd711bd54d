"""Facts of unchanged files are kept between starts; a changed file is read again."""

import json
import os
from pathlib import Path

import pytest

from misc.file_memory import FileMemory


class Lengths:
    """Memories of how long texts are, and which files were read for them."""

    def __init__(self, folder: Path) -> None:
        self.root, self.cache = folder / "root", folder / "cache"
        self.root.mkdir(exist_ok=True)
        self.read: list[str] = []

    def open(self, root: Path | None = None) -> FileMemory[int]:
        """As at another start."""
        return FileMemory(self.cache, "lengths", root or self.root, self._length, int)

    def write(self, name: str, text: str, mtime_ns: int) -> Path:
        """A file of the root with a time of change."""
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        os.utime(path, ns=(mtime_ns, mtime_ns))
        return path

    def _length(self, path: Path) -> int:
        self.read.append(path.name)
        return len(path.read_text().split())


@pytest.fixture
def lengths(tmp_path: Path) -> Lengths:
    return Lengths(tmp_path)


def test_an_unchanged_file_is_read_once(lengths: Lengths) -> None:
    path = lengths.write("sub/a", "x y", 5)
    with lengths.open() as memory:
        assert memory.known(path) is None
        assert [memory.of(path), memory.of(path)] == [2, 2]
    with lengths.open() as memory:
        assert [memory.known(path), memory.of(path)] == [2, 2]
    assert lengths.read == ["a"]
    (kept,) = lengths.cache.iterdir()
    assert json.loads(kept.read_text()) == {"sub/a": [3, 5, 2]}


@pytest.mark.parametrize(("text", "mtime_ns"), [("xyz", 6), ("wxyz", 5)])
def test_another_time_or_size_is_another_file(lengths: Lengths, text: str, mtime_ns: int) -> None:
    with lengths.open() as memory:
        memory.of(lengths.write("a", "x y", 5))
    path = lengths.write("a", text, mtime_ns)
    with lengths.open() as memory:
        assert memory.known(path) is None
        assert memory.of(path) == 1
    with lengths.open() as memory:
        assert memory.of(path) == 1
    assert lengths.read == ["a", "a"]


def test_a_file_that_was_written_needs_no_reading(lengths: Lengths) -> None:
    path = lengths.write("a", "x y", 5)
    with lengths.open() as memory:
        memory.learn(path, 2)
    assert lengths.open().of(path) == 2
    assert lengths.read == []


def test_what_was_learned_before_a_failure_is_kept_and_the_failure_is_not(
    lengths: Lengths,
) -> None:
    path = lengths.write("a", "x y", 5)
    with pytest.raises(FileNotFoundError), lengths.open() as memory:
        memory.of(path)
        memory.of(lengths.root / "absent")
    assert lengths.open().known(path) == 2
    assert lengths.open().known(lengths.root / "absent") is None


def test_folders_do_not_share_what_is_kept(lengths: Lengths, tmp_path: Path) -> None:
    first = lengths.write("a", "x y", 5)
    with lengths.open() as memory:
        memory.of(first)
    other = tmp_path / "other"
    other.mkdir()
    (other / "a").write_text("x z")
    os.utime(other / "a", ns=(5, 5))
    assert lengths.open(other).known(other / "a") is None


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\x80\x04N.", b"[]", b"7", b"[" * 100_000),
        *(b'{"a": 3}', b'{"a": [3, 5]}', b'{"a": [3, 5, "x"]}', b'{"a": [3, 5, null]}'),
        *(b'{"a": [3, 5, [2]]}', b'{"a": {"0": 3, "1": 5, "2": 9}}'),
    ],
)
def test_a_damaged_or_foreign_memory_is_made_again(lengths: Lengths, content: bytes) -> None:
    path = lengths.write("a", "x y", 5)
    with lengths.open() as memory:
        memory.of(path)
    (kept,) = lengths.cache.iterdir()
    sound = kept.read_bytes()
    kept.write_bytes(content)
    with lengths.open() as memory:
        assert memory.of(path) == 2
    assert lengths.read == ["a", "a"]
    assert kept.read_bytes() == sound


def test_a_place_that_cannot_be_written_does_not_fail_the_run(
    lengths: Lengths, capsys: pytest.CaptureFixture
) -> None:
    lengths.cache.write_text("a file where the folder should be")
    path = lengths.write("a", "x y", 5)
    with lengths.open() as memory:
        assert memory.of(path) == 2
    assert "is not kept" in "".join(capsys.readouterr())
    assert lengths.cache.read_text() == "a file where the folder should be"


def test_without_a_place_nothing_is_kept(lengths: Lengths) -> None:
    path = lengths.write("a", "x y", 5)
    with FileMemory(None, "lengths", lengths.root, lengths._length, int) as memory:
        assert [memory.of(path), memory.of(path)] == [2, 2]
    assert lengths.read == ["a"]
