"""How single option values are parsed: real booleans, numbers with bounds, lists, networks.

The functions are `type=` arguments of argparse: they raise ArgumentTypeError with one sentence.
"""

import argparse
from collections.abc import Sequence
from typing import Any

LARGEST_SEED = 2**32 - 1  # numpy takes no larger one
LARGEST_SCALE = 16
LARGEST_EXP_TIMES = 16  # of the random walk: 65536 steps, far beyond where maps are flat


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


def positive_int(text: str) -> int:
    """Parse an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def non_negative_int(text: str) -> int:
    """Parse an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0")
    return value


def seed(text: str) -> int:
    """Parse a seed in 0..2^32 - 1."""
    return _bounded(text, LARGEST_SEED)


def exp_times(text: str) -> int:
    """Parse the binary logarithm of the number of steps of a walk, in 0..16."""
    return _bounded(text, LARGEST_EXP_TIMES)


def _bounded(text: str, largest: int) -> int:
    value = non_negative_int(text)
    if value > largest:
        raise argparse.ArgumentTypeError(f"{text} is above {largest}")
    return value


def fraction(text: str) -> float:
    """Parse a number in 0..1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} must lie in 0..1")
    return value


# What published modules build where their names do not tell, and the option of IRNet's scripts in
# which the same name is another network.
_PUBLISHED_MODULES = {"net.resnet50_cam": "resnet152", "net.deit_cam": "deit_small_patch16_224"}
_IRN_OPTION = "--cam_network"


class NetworkAction(argparse.Action):
    """A network by its name, or by the module that the published scripts name.

    CRT's `net.resnet50_cam` builds a ResNet152 and its `net.deit_cam` a DeiT-S; `--cam_network` is
    an option of IRNet's scripts, where `net.resnet50_cam` is a ResNet50.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the name of the network."""
        name = values.removeprefix("net.").removesuffix("_cam").removesuffix("_irn")
        if option_string != _IRN_OPTION:
            name = _PUBLISHED_MODULES.get(values, name)
        setattr(namespace, self.dest, name)


def non_negative_float(text: str) -> float:
    """Parse a number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be at least 0")
    return value


def positive_float(text: str) -> float:
    """Parse a number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return value


def number_list(text: str) -> tuple[float, ...]:
    """Parse `1.0,0.5,2.0`, also in parentheses as the published log shows it."""
    numbers = tuple(positive_float(part) for part in text.strip("()").split(",") if part)
    if not numbers:
        raise argparse.ArgumentTypeError("give at least one number")
    return numbers


def scale_list(text: str) -> tuple[float, ...]:
    """Parse `1.0,0.5,2.0`, factors of at most 16: pictures of VOC are 8000 pixels wide then."""
    factors = number_list(text)
    if max(factors) > LARGEST_SCALE:
        raise argparse.ArgumentTypeError(f"{max(factors):g} is above {LARGEST_SCALE}")
    return factors


def keyword_arguments(text: str) -> dict[str, Any]:
    """Parse `depth=4,qkv_bias=False` into integers, floats, True, False, None or strings."""
    words = {"True": True, "False": False, "None": None}
    result: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, separator, value = part.partition("=")
        if not separator:
            raise argparse.ArgumentTypeError(f"{part} is not KEY=VALUE")
        for convert in (words.__getitem__, int, float, str):
            try:
                result[key] = convert(value)
                break
            except (ValueError, KeyError):
                continue
    return result
