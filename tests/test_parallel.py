"""One function for every picture: order, errors and stopping, with and without processes."""

import os
import time
from functools import partial

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
