"""Options from a schema: names, types, bounds, groups, and what is said about wrong values."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from misc.arguments import (
    HelpFormatter,
    add_options,
    keyword_arguments,
    keyword_text,
    number,
    value_type,
)
from misc.config import bounded, positive, setting


@dataclass(frozen=True)
class Schema:
    """A bit of everything."""

    name: str | None = setting(None, group="first things", help="of it", aliases=("--title",))
    rate: float = positive(0.5, help="per step")
    share: float = bounded(0.25, 0, 1, help="of all")
    count: int = bounded(3, 0, 9, help="at most nine")
    some: int | None = bounded(None, 2, alone=8, help="eight where no number is given")
    kind: Literal["a", "b"] = setting("a", help="which", group="second things")
    is_on: bool = setting(True, help="switch")
    folder: Path = setting(Path("x/y"), help="where")
    sides: tuple[float, ...] = positive((1.0, 2.0), text="1,2", max=4, help="two of them")
    more: dict[str, Any] = setting({}, help="for somebody else")
    steps: tuple[str, ...] | None = setting(
        None, parse=lambda text: tuple(text), exclusive="which", help="letters"
    )
    start: str | None = setting(None, choices=("a", "b"), exclusive="which", help="letter")


def build() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="x", formatter_class=HelpFormatter)
    add_options(parser, Schema)
    return parser


def parse(*words: str) -> Schema:
    return Schema(**vars(build().parse_args(words)))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (
            "channels=(32,64,128,256),stem_width=16",
            {"channels": (32, 64, 128, 256), "stem_width": 16},
        ),
        ("a=(1, 2.5), b=[3,(4,None)],c=('x',),", {"a": (1, 2.5), "b": [3, (4, None)], "c": ("x",)}),
        ("a=1,,act_layer=gelu,b=1e-3,a=2", {"a": 2, "act_layer": "gelu", "b": 1e-3}),
        ("", {}),
    ],
)
def test_keyword_arguments_may_be_lists(text: str, values: dict[str, Any]) -> None:
    assert keyword_arguments(text) == values
    assert keyword_arguments(keyword_text(values)) == values


def test_keyword_arguments_are_told_as_they_are_typed() -> None:
    values = {"channels": (32, 64), "one": (1,), "act_layer": "gelu", "bias": False}
    assert keyword_text(values) == "channels=(32,64),one=(1,),act_layer=gelu,bias=False"


@pytest.mark.parametrize(
    "part", ["a=(1,2", "a=(1)", "a=(1j,)", "a=(gelu,x)", "a=[b'x']", "a=(f(),)"]
)
def test_lists_that_are_none_are_refused(part: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        keyword_arguments(f"b=(1,2),{part}")
    assert str(caught.value) == f"{part} is not KEY=(NUMBER,NUMBER,..), as size=(32,64)"


def test_defaults_are_those_of_the_schema() -> None:
    assert parse() == Schema()
    assert parse().more is not parse().more


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--title", "t"], "name", "t"),
        (["--rate", "1e-3"], "rate", 1e-3),
        (["--count", "9"], "count", 9),
        (["--kind", "b"], "kind", "b"),
        (["--no-is_on"], "is_on", False),
        (["--is_on", "0"], "is_on", False),
        (["--folder", "z"], "folder", Path("z")),
        (["--sides", "(4,0.5)"], "sides", (4.0, 0.5)),
        (["--more", "a=1,b=x,c=None"], "more", {"a": 1, "b": "x", "c": None}),
        (["--steps", "ab"], "steps", ("a", "b")),
    ],
)
def test_text_gets_the_type_of_the_field(words: list[str], name: str, value: object) -> None:
    found = getattr(parse(*words), name)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rate", "0"], "argument --rate: 0 must be above 0"),
        (["--rate", "inf"], "inf must be above 0"),
        (["--rate", "nan"], "nan must be above 0"),
        (["--share", "1.5"], "1.5 must lie in 0..1"),
        (["--share", "x"], "invalid fraction value: 'x'"),
        (["--count", "-1"], "-1 must be at least 0"),
        (["--count", "10"], "10 is above 9"),
        (["--count", "1.5"], "invalid non_negative_int value: '1.5'"),
        (["--kind", "c"], "invalid choice: 'c'"),
        (["--sides", "1,5"], "5 is above 4"),
        (["--sides", ""], "give at least one number"),
        (["--more", "a"], "a is not KEY=VALUE"),
        (["--steps", "a", "--start", "b"], "not allowed with argument --steps"),
    ],
)
def test_wrong_values_are_named(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(*words)
    assert told in capsys.readouterr().err


def test_help_has_groups_and_defaults_as_they_are_typed() -> None:
    text = build().format_help().partition("\n\n")[2]  # without the usage
    first, second = text.index("first things:"), text.index("second things:")
    assert first < text.index("--rate") < second < text.index("--folder")
    assert "two of them (default: 1,2)" in text and "where (default: x/y)" in text
    assert "letters\n" in text  # no default is worth telling where it is None


def test_other_commands_read_the_values_of_a_field_alike() -> None:
    assert value_type(Schema, "count")("7") == 7
    with pytest.raises(argparse.ArgumentTypeError, match="10 is above 9"):
        value_type(Schema, "count")("10")


@pytest.mark.parametrize(("text", "least"), [("0.5", 1), ("-inf", 0), ("inf", 0), ("nan", 0)])
def test_numbers_are_finite_and_not_below_the_least(text: str, least: float) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"{text} must be at least {least}"):
        number(float, least)(text)


def test_option_may_stand_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert [parse(*words).some for words in ([], ["--some"], ["--some", "3"])] == [None, 8, 3]
    assert parse("--some", "--count", "4").count == 4
    with pytest.raises(SystemExit):
        parse("--some", "1")
    assert "1 must be at least 2" in capsys.readouterr().err
