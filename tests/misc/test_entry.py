"""Exit status and last words of an entry script."""

import errno
import os
import signal
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
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"),
            "/x: No such file or directory; it was moved or never made",
        ),
        (OSError(errno.EMFILE, "Too many open files", "/x"), "/x: Too many open files; raise the"),
        (MemoryError("Unable to allocate 9 TiB"), "memory ran out (Unable to allocate 9 TiB); use"),
        (
            RuntimeError("[enforce fail at a.cpp:1] . DefaultCPUAllocator: can't allocate memory"),
            "memory ran out (DefaultCPUAllocator: can't allocate memory); use a smaller",
        ),
        (
            RuntimeError("unable to write to file </torch_1>: No space left on device (28)"),
            "a process that loads pictures was stopped (unable to write to file </torch_1>: No sp",
        ),
        (FileExistsError(errno.EEXIST, "File exists", "/x"), "/x: File exists; a file is where"),
        (
            RuntimeError("[gloo/transport/tcp/pair.cc:538] Read error: Connection reset by peer"),
            "another process of this run has ended, and the rest cannot go on alone",
        ),
        (
            RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:8089"),
            "another process of this run has ended, and the rest cannot go on alone",
        ),
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
        OSError("without a number"),
        RuntimeError("size mismatch"),
        RuntimeError("Connection reset by peer"),
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


class _Failing(Dataset):
    """Whose worker is killed, or meets an error of the operating system."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        if self.path is None:
            os.kill(os.getpid(), signal.SIGKILL)
        self.path.read_bytes()


def test_killed_loader_process_is_a_sentence_with_a_remedy(capsys: Capture) -> None:
    assert run_entry("a.py", lambda: list(DataLoader(_Failing(None), num_workers=1))) == 2
    said = capsys.readouterr().err
    assert said.startswith("a.py: a process that loads pictures was stopped (")
    assert "--num_workers 0" in said and "--shm-size" in said and said.count("\n") == 1


def test_error_of_the_disk_in_a_loader_process_names_the_file(
    capsys: Capture, tmp_path: Path
) -> None:
    loader = DataLoader(_Failing(tmp_path / "it's gone"), num_workers=1)
    assert run_entry("a.py", lambda: list(loader)) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'it'}'s gone: No such file or directory; it was moved" in said.replace(
        '"', ""
    )


_TALKATIVE = """
import sys, time
from misc.entry import run_entry
from misc.progress import log, progress

def talk():
    if "--help" in sys.argv:
        time.sleep(1)
        print("usage")  # stays in a buffer until the end
        sys.exit(0)
    for number in progress(range(100_000), "work"):
        log(f"line {number} " + 200 * "x")

sys.exit(run_entry("a.py", talk))
"""


@pytest.mark.parametrize(("redirect", "flag"), [("", ""), ("2>&1", ""), ("", "--help")])
def test_reader_that_leaves_ends_the_run_quietly(tmp_path: Path, redirect: str, flag: str) -> None:
    script = tmp_path / "talk.py"
    script.write_text(_TALKATIVE)
    command = f'{{ "$0" "$1" {flag} {redirect}; echo $? > status; }} | head -c {0 if flag else 10}'
    answer = subprocess.run(
        ["bash", "-c", command, sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in answer.stderr and "Exception" not in answer.stderr
    assert (tmp_path / "status").read_text().strip() == "141"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-"])
def test_closed_streams_are_no_reason_to_stop(tmp_path: Path, closed: str) -> None:
    script = tmp_path / "talk.py"
    script.write_text(_TALKATIVE.replace("100_000", "3"))
    command = ["bash", "-c", f'"$0" talk.py {closed}', sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    assert answer.returncode == 0, answer.stderr


def test_full_disk_behind_the_console_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text(_TALKATIVE)
    answer = subprocess.run(
        ["bash", "-c", '"$0" talk.py > /dev/full', sys.executable],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 2
    assert answer.stderr.endswith(
        "a.py: No space left on device; free some space or write to another disk.\n"
    )
    assert "Traceback" not in answer.stderr and "Exception" not in answer.stderr


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    code = (
        "import sys; from misc.entry import run_entry; from misc.progress import *\n"
        "def work():\n"
        "    set_log_file('run.log')\n"
        "    log('photo \\udcff\\xe4.jpg')\n"
        "sys.exit(run_entry('a.py', work))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for encoding in ("utf-8", "ascii"):
        answer = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**environment, "PYTHONIOENCODING": encoding},
            capture_output=True,
            timeout=60,
        )
        assert answer.returncode == 0, answer.stderr
        assert b"photo \\udcff" in answer.stdout
    assert "photo \\udcff\u00e4.jpg" in (tmp_path / "run.log").read_text("utf-8")


def test_other_processes_let_the_main_one_speak_first(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(entry.time, "sleep", waited.append)
    monkeypatch.setenv("RANK", "1")
    assert run_entry("a.py", _refuse) == 2
    # on a busy machine torchrun takes seconds to end a process
    assert min(waited) >= 10 and "--x 3" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    assert run_entry("a.py", _refuse) == 2
    assert len(waited) == 1


def test_configurations_are_read_and_refused_without_torch() -> None:
    code = "import misc.config, misc.entry, sys; sys.exit('torch' in sys.modules)"
    folder = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, check=False).returncode == 0
