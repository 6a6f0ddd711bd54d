"""Temporary names, what killed writers leave behind, and the file that an error names."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from misc.errors import UserError, os_error_in
from misc.files import atomic_path, expand_user, file_hash, read_json_object, remove_leftovers

REPOSITORY = Path(__file__).parents[2]
LONGEST = 255  # bytes of a file name on all common file systems
NAMES = [
    "a.npz",
    "x" * 225 + ".npz",
    "ü" * 110 + ".state.pth",
    "a" * 251 + ".png",
    "b." + "s" * 253,
]


def _leftover(path: Path) -> Path:
    """What a writer of `path` leaves behind when it is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        raise ZeroDivisionError
    temporary.write_text("half")
    return temporary


@pytest.mark.parametrize("name", NAMES, ids=len)
def test_temporary_names_are_recognisable_and_never_too_long(tmp_path: Path, name: str) -> None:
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_text("whole")
        assert len(os.fsencode(temporary.name)) <= LONGEST
        assert temporary.name.startswith(".tmp-")
        if len(Path(name).suffix) < 10:
            assert temporary.suffix == Path(name).suffix
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "whole"


@pytest.mark.parametrize("name", NAMES, ids=len)
def test_leftovers_of_this_very_file_are_removed(tmp_path: Path, name: str) -> None:
    ours = _leftover(tmp_path / name)
    others = [_leftover(tmp_path / other) for other in (f"x-{name[2:]}", "y" + name[1:])]
    users = tmp_path / f".tmp-1-{name[-20:]}"
    users.write_text("not ours")
    remove_leftovers(tmp_path / name)
    assert not ours.exists()
    assert all(path.exists() for path in (*others, users))
    remove_leftovers(tmp_path / "no folder" / name)


@pytest.mark.parametrize("failing", [OSError(errno.ENOSPC, "full"), None])
def test_errors_of_the_disk_name_the_file(tmp_path: Path, failing: OSError | None) -> None:
    target = tmp_path / "weights.pth"
    target.mkdir()
    with pytest.raises(OSError) as raised, atomic_path(target) as temporary:
        temporary.write_text("a file cannot replace a folder")
        if failing is not None:
            raise failing
    assert raised.value.filename == str(target)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


def test_an_error_about_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, atomic_path(tmp_path / "a.json"):
        (tmp_path / "input").read_text()
    assert raised.value.filename == str(tmp_path / "input")


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np, torch
from misc.checkpoint import save_checkpoint
from misc.entry import run_entry
from misc.maps_io import write_label

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit, kind, path = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
noise = np.random.default_rng(0).integers(0, 255, (400, 400), dtype=np.uint8)
work = {
    "weights": lambda: save_checkpoint(path, {"a": torch.rand(400, 400)}),
    "label": lambda: write_label(path, noise),
}
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(run_entry("a.py", work[kind]))
"""


@pytest.mark.parametrize("limit", [10, 3000, 70_000])
@pytest.mark.parametrize("kind", ["weights", "label"])
def test_full_disk_is_a_sentence_that_names_the_file(tmp_path: Path, kind: str, limit: int) -> None:
    path = tmp_path / "file.png"
    command = [sys.executable, "-c", _FULL_DISK, str(limit), kind, str(path)]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 2, answer.stderr
    assert (
        answer.stderr
        == f"a.py: {path}: File too large; free some space or write to another disk.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_error_of_the_system_is_found_below_others() -> None:
    inner = OSError(errno.ENOSPC, "full")
    try:
        try:
            raise inner
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904 - as torch does
    except RuntimeError as error:
        assert os_error_in(error) is inner
    assert os_error_in(RuntimeError("alone")) is None


def test_unknown_user_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"~nobody_of_that_name/x: there is no user nobody_of_that"):
        expand_user("~nobody_of_that_name/x")
    assert expand_user("~/x") == Path.home() / "x"


@pytest.mark.parametrize("text", ["[]", "3", "null", '"a"'])
def test_json_of_another_kind_is_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"metrics\.json holds a .*; mend or remove"):
        read_json_object(path)
    path.write_text('{"a": 1}')
    assert read_json_object(path) == {"a": 1}


def test_hash_of_a_file_that_may_be_absent(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert file_hash(None) == "none"
    assert file_hash(path) == file_hash(tmp_path) == "(missing)"
    path.write_bytes(b"abc")
    # printf abc | sha256sum
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_hash(path) == file_hash(str(path)) == expected
