"""Options of the command line: from a schema, or one by one.

A schema is a frozen dataclass of `misc.config`, whose fields become options: the annotation says
how the text is read, the metadata what is allowed and told:

- `help`, `aliases` (more names), `group` (title of the help group that starts with this field)
- `min`, `max`, `positive`: bounds of the number, or of each number of a list
- `choices`, `action`, `metavar`: as argparse has them; `parse` reads the text instead
- `alone`: value of the option where it stands without one
- `text`: the default as it would be typed, where that is told rather than the value
- `exclusive`: any name; of the options that share it only one may be given

The functions are `type=` arguments of argparse: they raise ArgumentTypeError with one sentence.
"""

import argparse
import ast
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST_SEED = 2**32 - 1  # numpy takes no larger one


def add_options(parser: argparse.ArgumentParser, schema: type) -> None:
    """Add an option for every field of a schema; its `dest` is the field's name."""
    place: Any = parser
    exclusive: dict[str, Any] = {}
    for item, annotation in _typed_fields(schema):
        known = item.metadata
        if "group" in known:
            place = parser.add_argument_group(known["group"])
        target, together = place, known.get("exclusive")
        if together is not None:
            if together not in exclusive:
                exclusive[together] = place.add_mutually_exclusive_group()
            target = exclusive[together]
        names = (f"--{item.name}", *known.get("aliases", ()))
        target.add_argument(*names, dest=item.name, **_argument(item, annotation))


def value_type(schema: type, name: str) -> Callable[[str], Any]:
    """How the option of a field reads its text, for another command that takes such values."""
    (found,) = (pair for pair in _typed_fields(schema) if pair[0].name == name)
    return _argument(*found)["type"]


def _typed_fields(schema: type) -> Iterator[tuple[Field, Any]]:
    """The fields with their types, of which None is left out."""
    hints = get_type_hints(schema)
    for item in fields(schema):
        annotation = hints[item.name]
        if get_origin(annotation) in (Union, UnionType):
            (annotation,) = (one for one in get_args(annotation) if one is not type(None))
        yield item, annotation


def _argument(item: Field, annotation: Any) -> dict[str, Any]:
    """What `add_argument` is told about a field."""
    known, default = item.metadata, item.default
    if default is MISSING:
        default = item.default_factory()
    told = {key: known[key] for key in ("help", "choices", "action", "metavar") if key in known}
    if "alone" in known:
        told |= {"nargs": "?", "const": known["alone"]}
    told["default"] = known.get("text", str(default) if isinstance(default, Path) else default)
    if annotation is bool:
        return {"action": BooleanAction, **told}
    if get_origin(annotation) is Literal:
        return {"choices": get_args(annotation), **told}
    return told if "action" in told else {"type": _reader(annotation, known), **told}


def _reader(annotation: Any, known: Any) -> Callable[[str], Any]:
    """What reads the text of a value."""
    if "parse" in known:
        return known["parse"]
    bounds = known.get("min"), known.get("max"), known.get("positive", False)
    if annotation in (int, float):
        return number(annotation, *bounds)
    if get_origin(annotation) is tuple:
        return number_list(number(get_args(annotation)[0], *bounds))
    return keyword_arguments if get_origin(annotation) is dict else annotation


class BooleanAction(argparse.Action):
    """`--x`, `--no-x` and, as in the published scripts, `--x True` or `--x False`."""

    _WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}  # noqa: RUF012

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        negative = [f"--no-{option[2:]}" for option in option_strings]
        super().__init__([*option_strings, *negative], dest, nargs="?", metavar="BOOL", **kwargs)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the boolean."""
        negative = bool(option_string and option_string.startswith("--no-"))
        value = True if values is None else self._WORDS.get(str(values).lower())
        if value is None or (negative and values is not None):
            parser.error(f"{option_string} {values}: give True or False, or nothing")
        setattr(namespace, self.dest, value != negative)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to every help line that has one worth saying."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, argparse.SUPPRESS, ""):
            return action.help
        return super()._get_help_string(action)


def number(
    kind: type, least: float | None = None, most: float | None = None, positive: bool = False
) -> Callable[[str], Any]:
    """What reads a finite number.

    Args:
        kind: int or float.
        least: the least value.
        most: the greatest value.
        positive: whether the value must be above 0.
    """

    def read(text: str) -> Any:
        value = kind(text)
        problem = _problem(value, least, most, positive)
        if problem is not None:
            raise argparse.ArgumentTypeError(f"{text if kind is int else f'{value:g}'} {problem}")
        return value

    read.__name__ = _number_name(kind, least, most, positive)
    return read


def _number_name(kind: type, least: float | None, most: float | None, positive: bool) -> str:
    """What argparse calls the number where the text is none at all."""
    if (kind, least, most) == (float, 0, 1):
        return "fraction"
    return f"{'positive' if positive or least == 1 else 'non_negative'}_{kind.__name__}"


def _problem(value: float, least: float | None, most: float | None, positive: bool) -> str | None:
    """What is wrong with a number in words; comparisons with NaN are all false."""
    if isinstance(value, float) and least is not None and most is not None:
        return None if least <= value <= most else f"must lie in {least:g}..{most:g}"
    if positive and not 0 < value < math.inf:
        return "must be above 0"
    if least is not None and not least <= value < math.inf:
        return f"must be at least {least:g}"
    return f"is above {most}" if most is not None and value > most else None


positive_int = number(int, 1)
non_negative_int = number(int, 0)
fraction = number(float, 0, 1)
positive_float = number(float, positive=True)


def number_list(read: Callable[[str], float]) -> Callable[[str], tuple[float, ...]]:
    """What reads `1.0,0.5,2.0`, also in parentheses as the published log shows it.

    Args:
        read: what reads one of the numbers.
    """

    def read_list(text: str) -> tuple[float, ...]:
        numbers = tuple(read(part) for part in text.strip("()").split(",") if part)
        if not numbers:
            raise argparse.ArgumentTypeError("give at least one number")
        return numbers

    read_list.__name__ = "number_list"
    return read_list


def keyword_arguments(text: str) -> dict[str, Any]:
    """Parse `depth=4,qkv_bias=False,channels=(32,64)`.

    Values are integers, floats, True, False, None, lists of these in parentheses or brackets (in
    which texts have quotes), or else text.
    """
    result: dict[str, Any] = {}
    for part in filter(None, _outside_brackets(text)):
        key, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator:
            raise argparse.ArgumentTypeError(f"{part} is not KEY=VALUE")
        result[key] = _read_list(part, value) if value.startswith(("(", "[")) else _read_one(value)
    return result


def keyword_text(arguments: Mapping[str, Any]) -> str:
    """What `keyword_arguments` would read so: `channels=(32,64),stem_width=16`."""
    return ",".join(f"{key}={value}".replace(", ", ",") for key, value in arguments.items())


def _outside_brackets(text: str) -> Iterator[str]:
    """Split at the commas that are in no brackets."""
    part = ""
    for piece in text.split(","):
        part = f"{part},{piece}" if part else piece
        if sum(map(part.count, "([")) <= sum(map(part.count, ")]")):
            yield part
            part = ""
    yield part  # its brackets are never closed


def _read_one(text: str) -> Any:
    words = {"True": True, "False": False, "None": None}
    for convert in (words.__getitem__, int, float):
        try:
            return convert(text)
        except (ValueError, KeyError):
            continue
    return text


def _read_list(part: str, text: str) -> Any:
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        values = None
    if not _is_plain_list(values):
        raise argparse.ArgumentTypeError(f"{part} is not KEY=(NUMBER,NUMBER,..), as size=(32,64)")
    return values


def _is_plain_list(values: Any) -> bool:
    plain = (int, float, str, type(None))
    return isinstance(values, (tuple, list)) and all(
        isinstance(one, plain) or _is_plain_list(one) for one in values
    )
