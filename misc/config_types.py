"""How the value of a configuration key gets the type of its annotation; see `misc.config`."""

import math
import os
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml

_NONE_WORDS = ("none", "null", "~", "")
_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    Any: "a value in YAML",
}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts", Path: "paths"}


class Place(NamedTuple):
    """Where a value was written.

    Attributes:
        name: file, or command line, for messages.
        folder: start of relative paths.
        is_text: the value is text of the command line rather than what YAML read.
    """

    name: str
    folder: Path
    is_text: bool


def convert(raw: Any, annotation: Any, place: Place) -> Any:
    """Give a value the type of an annotation.

    Raises:
        ValueError: it does not fit. The caller knows how to say it.
        TypeError: the annotation is none of the supported ones.
    """
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _convert_union(raw, get_args(annotation), place)
    if origin is Literal:
        return _convert_literal(raw, get_args(annotation), place)
    if origin is tuple:
        return _convert_tuple(raw, get_args(annotation)[0], place)
    if annotation is str:
        return _require(raw, str)
    if annotation is Path:
        return absolute_path(Path(_require(raw, str)), place.folder)
    if annotation is float:
        return _convert_float(raw)
    if annotation is int:
        return int(raw) if place.is_text else _require(raw, int)
    if annotation is bool or annotation is Any or origin is dict:
        value = _parse(raw) if place.is_text else raw
        return value if annotation is Any else _require(value, origin or bool)
    raise TypeError(f"{annotation} is no type of a configuration value")


def absolute_path(path: Path, folder: Path) -> Path:
    """The path without `~` and `..`, seen from the folder where it is relative; links are kept."""
    return Path(os.path.abspath(folder / path.expanduser()))  # noqa: PTH100 - resolve follows links


def _parse(text: str) -> Any:
    """What YAML reads in a text of the command line."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(text) from None


def _require(value: Any, kind: type) -> Any:
    """The value if it is of this very kind; True is no number, and text is not empty."""
    if type(value) is not kind or value == "":
        raise ValueError(value)
    return value


def _convert_float(value: Any) -> float:
    """YAML reads 5e-4, which has no point, as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(value)
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _convert_union(raw: Any, members: tuple, place: Place) -> Any:
    """The first member that fits, None before all others."""
    if type(None) in members and _is_none(raw):
        return None
    for member in members:
        if member is not type(None):
            try:
                return convert(raw, member, place)
            except ValueError:
                continue
    raise ValueError(raw)


def _is_none(raw: Any) -> bool:
    return raw is None or (isinstance(raw, str) and raw.strip().lower() in _NONE_WORDS)


def _convert_literal(raw: Any, choices: tuple, place: Place) -> Any:
    for choice in choices:
        same = raw == str(choice) if place.is_text else (type(raw), raw) == (type(choice), choice)
        if same:
            return choice
    raise ValueError(raw)


def _convert_tuple(raw: Any, member: Any, place: Place) -> tuple:
    """A YAML list; on the command line also `1,2` and a single value."""
    if place.is_text:
        text = raw.strip().removeprefix("[").removesuffix("]")
        parts = [part.strip().strip("'\"") for part in text.split(",")]
        raw = [] if raw.strip() == "[]" else parts
    if not isinstance(raw, (list, tuple)):
        raise ValueError(raw)
    return tuple(convert(item, member, place) for item in raw)


def describe(annotation: Any) -> str:
    """What values an annotation takes, in words."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        known = [describe(member) for member in members if member is not type(None)]
        return " or ".join([*known, *(["none"] if type(None) in members else [])])
    if origin is Literal:
        return f"one of {', '.join(str(choice) for choice in members)}"
    if origin is tuple:
        return f"a list of {_PLURALS.get(members[0], describe(members[0]))}"
    if origin is dict:
        return "a mapping of keys to values"
    return _NAMES.get(annotation, str(annotation))


def range_problem(value: Any, metadata: Mapping[str, Any]) -> str | None:
    """What a number, or one of a list of numbers, must be and is not; None when all is well."""
    numbers = value if isinstance(value, tuple) else (value,)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        if metadata.get("positive") and number <= 0:
            return "above 0"
        if "min" in metadata and number < metadata["min"]:
            return f"at least {metadata['min']}"
        if "max" in metadata and number > metadata["max"]:
            return f"at most {metadata['max']}"
    return None
