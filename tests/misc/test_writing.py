"""Writing in the background: order, how much waits, and whose error is raised when."""

import os
import threading

import pytest

from misc.errors import UserError
from misc.writing import BackgroundWriter, writing_threads

SECONDS = 20  # a test that waits longer hangs
MOMENT = 0.2


def fail(error: Exception) -> None:
    raise error


def test_one_thread_writes_in_the_order_of_submission() -> None:
    written: list[int] = []
    with BackgroundWriter(1) as writer:
        for number in range(30):
            writer.submit(str(number), written.append, number)
    assert written == list(range(30))


def test_everything_is_written_by_several_threads() -> None:
    written: set[int] = set()
    with BackgroundWriter(4) as writer:
        for number in range(100):
            writer.submit(str(number), written.add, number)
    assert written == set(range(100))


@pytest.mark.parametrize("threads", [1, 3])
def test_submit_waits_while_two_results_a_thread_wait(threads: int) -> None:
    go, count = threading.Event(), 2 * threads
    returned: list[int] = []

    def submit_one_too_many(writer: BackgroundWriter) -> None:
        for number in range(count + 1):
            writer.submit(str(number), go.wait, SECONDS)
            returned.append(number)

    with BackgroundWriter(threads) as writer:
        caller = threading.Thread(target=submit_one_too_many, args=(writer,))
        caller.start()
        caller.join(MOMENT)
        assert caller.is_alive() and returned == list(range(count))
        go.set()
        caller.join(SECONDS)
        assert returned == list(range(count + 1))


def test_error_is_raised_by_the_next_submit_with_its_picture() -> None:
    failed, written = threading.Event(), []

    def write() -> None:
        try:
            raise OSError("disk full")
        finally:
            failed.set()

    def loop() -> None:
        with BackgroundWriter(1) as writer:
            writer.submit("cat", write)
            failed.wait(SECONDS)
            for number in range(3):  # the first may come before the thread has put the error away
                writer.submit(str(number), written.append, number)
            pytest.fail("nothing was raised")

    with pytest.raises(OSError, match="disk full") as caught:
        loop()
    assert caught.value.__notes__ == ["while the results of cat were written"]
    assert written == list(range(len(written))) and len(written) < 3
    assert "write" in [entry.name for entry in caught.traceback]  # where it came from


def test_first_picture_with_an_error_is_named_whichever_fails_first() -> None:
    later_failed = threading.Event()

    def write_late() -> None:
        later_failed.wait(SECONDS)
        raise ValueError("of the first")

    def write_early() -> None:
        later_failed.set()
        raise ValueError("of the second")

    with pytest.raises(ValueError, match="of the first") as caught, BackgroundWriter(2) as writer:
        writer.submit("a", write_late)
        writer.submit("b", write_early)
    assert caught.value.__notes__ == ["while the results of a were written"]


def test_sentences_for_people_stay_as_they_are() -> None:
    with pytest.raises(UserError) as caught, BackgroundWriter() as writer:
        writer.submit("a", fail, UserError("a: not finite; train again."))
    assert str(caught.value) == "a: not finite; train again."
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError, ZeroDivisionError])
def test_what_was_computed_is_written_when_the_loop_ends_early(error: type) -> None:
    go, written = threading.Event(), []

    def write(number: int) -> None:
        go.wait(SECONDS)
        written.append(number)

    with pytest.raises(error, match="of the loop"), BackgroundWriter(1) as writer:
        writer.submit("a", write, 1)
        writer.submit("b", write, 2)
        go.set()
        raise error("of the loop")
    assert written == [1, 2]


def test_rest_is_written_after_an_error() -> None:
    go, written = threading.Event(), []
    with pytest.raises(OSError, match="a bad sector"), BackgroundWriter(2) as writer:
        writer.submit("a", go.wait, SECONDS)  # so that the error waits behind it
        writer.submit("b", fail, OSError("a bad sector"))
        writer.submit("c", written.append, 3)
        go.set()
    assert written == [3]


@pytest.mark.parametrize(
    ("cores", "processes", "expected"), [(1, 1, 1), (2, 1, 2), (64, 1, 4), (16, 8, 2), (4, 8, 1)]
)
def test_threads_share_the_cores_with_other_processes(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, expected: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert writing_threads() == expected
