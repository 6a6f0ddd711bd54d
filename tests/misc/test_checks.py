"""Problems are collected as sentences and told all at once."""

import pytest

from misc.checks import attempt, problems_of_each, require_no_problems
from misc.errors import UserError


def test_nothing_is_said_without_problems() -> None:
    require_no_problems([])


def test_message_counts_groups_and_numbers_the_problems() -> None:
    problems = [f"missing mask: m{i}" for i in range(30)] + ["unreadable picture: p"]
    with pytest.raises(UserError) as caught:
        require_no_problems(problems)
    lines = str(caught.value).splitlines()
    assert lines[0] == "Nothing was started, 31 problems:"
    assert lines[1:3] == ["missing mask (30):", "  1. m0"]
    assert lines[11:] == ["  10. m9", "  .. and 20 more", "unreadable picture (1):", "  11. p"]


def test_message_shows_everything_of_a_few() -> None:
    with pytest.raises(UserError, match=r"1 problem:\nmissing mask \(1\):\n  1\. x: y$"):
        require_no_problems(["missing mask: x: y"])


def test_attempt_gives_a_value_or_a_problem() -> None:
    def fail() -> int:
        raise UserError("a.txt is empty; fill it.")

    problems = ["missing file: b.txt"]
    assert attempt("unusable list", lambda: 3, problems) == 3
    assert attempt("unusable list", fail, problems) is None
    assert attempt("unusable list", fail, problems) is None  # told once
    assert problems == ["missing file: b.txt", "unusable list: a.txt is empty; fill it."]


def test_attempt_leaves_other_errors_alone() -> None:
    problems: list[str] = []
    with pytest.raises(ZeroDivisionError):
        attempt("unusable list", lambda: 1 / 0, problems)
    assert problems == []


def test_problems_of_many_items_keep_their_order() -> None:
    items = list(range(100))
    found = problems_of_each(lambda item: [f"odd: {item}", "x: y"] if item % 2 else [], items)
    assert found == [text for item in range(1, 100, 2) for text in (f"odd: {item}", "x: y")]
