"""One function for every picture: order, errors and stopping, with and without processes."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from misc.errors import UserError
from misc.parallel import map_pictures

SOME = (0, 2)  # numbers of workers


def square(item):
    time.sleep(0.01 * (item % 3))
    return item * item, os.getpid()


def fail_at_three(item):
    if item == 3:
        raise UserError("picture 3 is broken.")
    return item


def mark_or_fail(folder, item):
    if item == 0:
        raise ValueError("first")
    time.sleep(0.05)
    (folder / str(item)).touch()


def threads(item):
    return [os.environ.get(f"{name}_NUM_THREADS") for name in ("OMP", "OPENBLAS")]


def sleep_long(folder, item):
    (folder / f"{os.getpid()}").touch()
    time.sleep(300)


def die(item):
    os._exit(1)


@pytest.mark.parametrize("num_workers", SOME)
def test_results_come_in_the_order_of_the_items(num_workers):
    results = map_pictures(square, range(12), num_workers, "squares")
    assert [result for result, _ in results] == [i * i for i in range(12)]
    assert (os.getpid() in {process for _, process in results}) == (num_workers == 0)


@pytest.mark.parametrize("num_workers", SOME)
def test_the_exception_of_a_picture_arrives_as_it_is(num_workers):
    with pytest.raises(UserError, match=r"^picture 3 is broken\.$"):
        map_pictures(fail_at_three, range(8), num_workers, "failing")


@pytest.mark.parametrize("num_workers", SOME)
def test_an_exception_stops_the_rest(num_workers, tmp_path):
    with pytest.raises(ValueError, match="first"):
        map_pictures(partial(mark_or_fail, tmp_path), range(200), num_workers, "failing")
    assert len(list(tmp_path.iterdir())) < 100


def test_a_killed_worker_is_reported():
    with pytest.raises(UserError, match="'dying' was killed"):
        map_pictures(die, range(3), 2, "dying")


@pytest.mark.parametrize("num_workers", SOME)
def test_no_picture_is_no_result(num_workers):
    assert map_pictures(square, [], num_workers, "nothing") == []


def test_a_negative_number_of_workers_is_named():
    with pytest.raises(UserError, match="-1"):
        map_pictures(square, [1], -1, "negative")


def test_workers_have_one_thread_each_and_the_parent_as_many_as_before(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert map_pictures(threads, range(4), 2, "threads") == [["1", "1"]] * 4
    assert threads(0) == ["7", None]


def _alive(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_workers_end_when_their_parent_is_killed(tmp_path):
    code = (
        "import sys; from functools import partial; from pathlib import Path\n"
        "from misc.parallel import map_pictures; from test_parallel import sleep_long\n"
        "map_pictures(partial(sleep_long, Path(sys.argv[1])), range(4), 2, 'sleeping')"
    )
    folders = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": folders}
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(workers) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while any(map(_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [worker for worker in workers if _alive(worker)]
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert left == []
