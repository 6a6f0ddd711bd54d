"""Log lines and bars."""

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from misc.progress import log, progress, set_log_file, watched


@pytest.fixture(autouse=True)
def no_log_file() -> Iterator[None]:
    yield
    set_log_file(None)


def test_log_reaches_console_and_file_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "run.log"
    set_log_file(path)
    log("first")
    assert path.read_text().endswith(" first\n")
    log("two\nlines")
    lines = path.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \w", line) for line in lines)
    assert [line.split(" ", 2)[2] for line in lines] == ["first", "two", "lines"]
    assert capsys.readouterr().out == "first\ntwo\nlines\n"


def test_log_appends_to_an_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    path.write_text("old\n")
    set_log_file(path)
    log("new")
    assert path.read_text().startswith("old\n")


def test_other_processes_are_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    set_log_file(tmp_path / "run.log")
    log("hidden")
    assert list(progress(range(3), "hidden")) == [0, 1, 2]
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    assert not (tmp_path / "run.log").exists()


def test_bar_in_a_log_is_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    bar = progress(range(500), "train")
    for step in bar:
        bar.set_postfix(loss=step)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert "\r" not in stream.getvalue()
    assert "500/500" in lines[1]
    assert "loss=499" in lines[1]


def test_total_of_a_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    list(progress((i for i in range(4)), "x", total=4))
    assert "4/4" in stream.getvalue()


def test_bars_within_a_bar_are_lines_without_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    for _ in progress(range(2), "train"):
        list(progress(range(3), "validate"))
    lines = stream.getvalue().splitlines()
    assert "\x1b" not in stream.getvalue()
    assert [re.sub(r"%.*\| ", " ", line.split(" [")[0]) for line in lines] == [
        "train:   0 0/2",
        *["validate:   0 0/3", "validate: 100 3/3"] * 2,
        "train: 100 2/2",
    ]


def test_watched_loops_have_the_time_of_every_round(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A round lasts from asking for its item to asking for the next, the device's work included."""
    now = [100.0]
    monkeypatch.setattr("misc.progress.time.perf_counter", lambda: now[0])

    def items() -> Iterator[int]:
        for number in (1, 2, 3):
            now[0] += 10  # to load it
            yield number

    def finish() -> None:
        now[0] += 0.5

    with watched(finish) as loops:
        for number in progress(items(), "outer"):
            now[0] += number
            for _ in progress(range(number - 1), "inner"):
                now[0] += 4
            log("hidden")
    log("shown")
    assert list(progress(range(2), "later")) == [0, 1]
    assert [loop.description for loop in loops] == ["outer", "inner", "inner", "inner"]
    assert [loop.seconds for loop in loops] == [[11.5, 17, 22.5], [], [4.5], [4.5, 4.5]]
    assert capsys.readouterr().out == "shown\n"


def test_a_loop_that_fails_is_watched_no_longer() -> None:
    with pytest.raises(ZeroDivisionError), watched() as loops:
        for _ in progress(range(2), "fails"):
            1 / 0  # noqa: B018
    assert loops[0].seconds == []
    list(progress(range(2), "not watched"))
    assert len(loops) == 1
