"""Exit status and last words of an entry script."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from misc import entry
from misc.entry import EXIT_INTERRUPTED, EXIT_USER_ERROR, run_entry
from misc.errors import UserError
from misc.progress import log, log_to_file, set_log_file

Capture = pytest.CaptureFixture[str]


def _refuse() -> None:
    raise UserError("--x 3 is wrong; use 2.")


def test_finished_work_is_status_0(capsys: Capture) -> None:
    assert run_entry("a.py", lambda: "result") == 0
    assert capsys.readouterr().err == ""


def test_user_error_is_one_sentence_and_status_2(capsys: Capture) -> None:
    assert run_entry("a.py", _refuse) == EXIT_USER_ERROR == 2
    assert capsys.readouterr().err == "a.py: --x 3 is wrong; use 2.\n"


def test_other_errors_are_bugs_and_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_entry("a.py", lambda: 1 / 0)


def test_interruption_says_how_to_go_on(capsys: Capture) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert run_entry("a.py", interrupt) == EXIT_INTERRUPTED == 130
    assert capsys.readouterr().err == "a.py: interrupted; the same command goes on from here.\n"


def test_interrupted_overwriting_goes_on_without_it(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["a.py", "--overwrite"])
    assert run_entry("a.py", interrupt) == EXIT_INTERRUPTED
    assert "the same command, without --overwrite, goes on from here." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; free some"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied; change"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/x/y"), "/x/y: Not a directory; a"),
        (FileExistsError(errno.EEXIST, "File exists", "/x"), "/x: File exists; a file is where"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has .."),
            "CUDA out of memory; use a smaller batch",
        ),
    ],
)
def test_refusals_of_disk_and_gpu_are_one_sentence(
    error: Exception, sentence: str, capsys: Capture
) -> None:
    def fail() -> None:
        raise error

    assert run_entry("a.py", fail) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert said.startswith(f"a.py: {sentence}") and said.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        InterruptedError(errno.EINTR, "Interrupted"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"),
        OSError("without a number"),
        RuntimeError("size mismatch"),
    ],
)
def test_other_errors_of_these_kinds_keep_their_traceback(error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        run_entry("a.py", fail)
    assert raised.value is error


def test_full_disk_is_told_although_the_log_has_no_room_either(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("misc.progress.log_to_file", fail)
    assert run_entry("a.py", fail) == EXIT_USER_ERROR
    assert "No space left on device; free some space" in capsys.readouterr().err


def test_open_log_gets_the_sentence_and_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "run.log"

    def work() -> None:
        set_log_file(path)
        log("started")
        _refuse()

    run_entry("a.py", work)
    log_to_file("a later run")
    lines = [line.split(" ", 2)[2] for line in path.read_text().splitlines()]
    assert lines == ["started", "stopped: --x 3 is wrong; use 2."]


class _Refusing(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        _refuse()


def test_error_of_a_loader_process_is_told_without_its_traceback(capsys: Capture) -> None:
    assert run_entry("a.py", lambda: list(DataLoader(_Refusing(), num_workers=1))) == 2
    assert capsys.readouterr().err == "a.py: --x 3 is wrong; use 2.\n"


def test_other_processes_let_the_main_one_speak_first(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(entry.time, "sleep", waited.append)
    monkeypatch.setenv("RANK", "1")
    assert run_entry("a.py", _refuse) == 2
    assert waited and "--x 3" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    assert run_entry("a.py", _refuse) == 2
    assert len(waited) == 1


def test_configurations_are_read_and_refused_without_torch() -> None:
    code = "import misc.config, misc.entry, sys; sys.exit('torch' in sys.modules)"
    folder = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, check=False).returncode == 0
