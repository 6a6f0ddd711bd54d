"""Typed YAML configurations: nested frozen dataclasses are the schema.

A field's annotation is its type, its default the default value, and its metadata may bound it:

    @dataclass(frozen=True)
    class Solver:
        LR: float = positive(2.5e-4)  # of the backbone

    @dataclass(frozen=True)
    class Config:
        SOLVER: Solver = group(Solver)

    config = load_config(Config, Path("configs/a.yaml"), ["SOLVER.LR=1e-3"])
    config.SOLVER.LR

Types: int, float, bool, str, Path, Literal, `tuple[X, ...]`, `dict[str, Any]` (free content),
dataclasses, and unions of these, of which the first that fits counts; with `X | None` the words
none and null are None. Metadata: `min`, `max` (both inclusive), `positive` (above 0), and
`affects`, the names of the records (see `misc.provenance`) that the value is part of. A field that
says `affects` nowhere is part of all: what is forgotten makes outputs stale, never silently fresh.
Records leave out a field that has the value of its `unrecorded`: those that were written before
there was such a field still hold.

Nothing here imports torch.
"""

import copy
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

import yaml

from misc.config_types import Place, absolute_path, convert, describe, range_problem
from misc.errors import UserError
from misc.files import expand_user

T = TypeVar("T")

CONFIG_FOLDER = "configs"
_COMMAND_LINE = "command line"


def setting(default: Any, *, affects: tuple[str, ...] | None = None, **metadata: Any) -> Any:
    """A schema field.

    Args:
        default: its value where none is given; MISSING when one has to be. Lists and dictionaries
            are copied for every configuration.
        affects: names of the records that the value is part of, `()` for none; None for all of
            them, or what the group says that the field is in.
        metadata: more about the field, for who reads the schema.
    """
    known = _metadata(affects, metadata)
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=known)
    return field(default=default, metadata=known)


def bounded(
    default: Any,
    least: float,
    most: float | None = None,
    *,
    affects: tuple[str, ...] | None = None,
    **metadata: Any,
) -> Any:
    """A setting whose value, or each of whose values, lies in `least`..`most`, inclusive."""
    bounds = {"min": least} if most is None else {"min": least, "max": most}
    return setting(default, affects=affects, **bounds, **metadata)


def positive(default: Any, *, affects: tuple[str, ...] | None = None, **metadata: Any) -> Any:
    """A setting whose value, or each of whose values, is above 0."""
    return setting(default, affects=affects, positive=True, **metadata)


def group(schema: type, *, affects: tuple[str, ...] | None = None, **metadata: Any) -> Any:
    """A field that holds a dataclass of settings; `affects` counts where those say nothing."""
    return field(default_factory=schema, metadata=_metadata(affects, metadata))


def _metadata(affects: tuple[str, ...] | None, more: dict[str, Any]) -> dict[str, Any]:
    if not (affects is None or isinstance(affects, tuple)):
        raise TypeError(f"affects is {affects!r}; it must be a tuple of names of records")
    return more if affects is None else {**more, "affects": affects}


def load_config(
    schema: type[T],
    path: Path,
    overrides: Sequence[str] = (),
    skip: Callable[[str], bool] = lambda key: False,
) -> T:
    """Read a configuration file and the values of the command line that override it.

    Relative paths of the file, and of the schema's defaults, start at the file's tree: the folder
    that holds the nearest folder called `configs` above the file, or else the file's own folder.
    Relative paths of the command line start at the working folder. All paths come out absolute.

    Args:
        schema: dataclass of the whole configuration.
        path: YAML file.
        overrides: `KEY=VALUE` with dotted keys, `SOLVER.LR=1e-3`; the last one of a key counts.
            Lists are written `[1, 2]` or `1,2`; `FREE.key=value` sets one entry of a free dict.
        skip: asked about every key that the schema does not have; True leaves it out.

    Raises:
        UserError: the file is missing or no YAML mapping; a key is unknown or missing; a value has
            the wrong type or is out of range. The message names file or command line, key, value
            and what is expected.
    """
    path = expand_user(path)
    leaves = {leaf.key: leaf for leaf in _leaves(schema)}
    tree = tree_of(path)
    values: dict[str, Any] = {}
    for key, raw in _flat_yaml(_read_yaml(path), "", leaves, path, skip):
        values[key] = _checked(leaves[key], raw, Place(str(path), tree, is_text=False))
    command_line = Place(_COMMAND_LINE, Path.cwd(), is_text=True)
    for text in overrides:
        _apply_override(values, leaves, text, command_line, skip)
    return _build(schema, "", values, leaves, path)


def tree_of(path: Path) -> Path:
    """Folder at which the relative paths of a configuration file start."""
    absolute = absolute_path(path, Path.cwd())
    for folder in absolute.parents:
        if folder.name == CONFIG_FOLDER:
            return folder.parent
    return absolute.parent


def pairs_to_overrides(tokens: Sequence[str]) -> list[str]:
    """Turn `KEY VALUE KEY VALUE` into `KEY=VALUE` texts; `KEY=VALUE` may be mixed in.

    Raises:
        UserError: the last key has no value.
    """
    overrides, rest = [], list(tokens)
    while rest:
        key = rest.pop(0)
        if "=" in key:
            overrides.append(key)
        elif rest:
            overrides.append(f"{key}={rest.pop(0)}")
        else:
            raise UserError(f"{_COMMAND_LINE}: {key} has no value; write KEY VALUE or KEY=VALUE.")
    return overrides


def flatten(config: Any) -> dict[str, Any]:
    """Plain JSON values of a configuration by dotted key, for logs."""
    return {key: plain(value) for key, value, _ in _values(config)}


def identifying(config: Any, record: str) -> dict[str, Any]:
    """Plain JSON values, by dotted key, of the fields that are part of a record.

    Args:
        config: an instance of a schema, however it was made.
        record: name of the record, as `affects` has it.
    """
    return {
        key: plain(value)
        for key, value, known in _values(config)
        if known.get("affects") is None or record in known["affects"]
        if "unrecorded" not in known or value != known["unrecorded"]
    }


def _values(
    config: Any, prefix: str = "", affects: tuple[str, ...] | None = None
) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Dotted key, value and metadata of every field; groups may hand down `affects`."""
    for item in fields(config):
        key, value = prefix + item.name, getattr(config, item.name)
        known = {"affects": affects, **item.metadata}
        if is_dataclass(value):
            yield from _values(value, f"{key}.", known["affects"])
        else:
            yield key, value, known


def plain(value: Any) -> Any:
    """A value as JSON has it: paths as text, tuples and sets as lists, numpy's as Python's.

    Raises:
        TypeError: JSON has nothing for it.
    """
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value))
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return value.tolist()
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


# ------------------------------------------------------------------------------------ the schema


@dataclass(frozen=True)
class _Leaf:
    """A key that has a value, as opposed to a group of keys."""

    key: str
    annotation: Any
    metadata: Mapping[str, Any]
    default: Any  # MISSING when the file has to name it


def _leaves(schema: type, prefix: str = "", default: Any = MISSING) -> Iterator[_Leaf]:
    """Leaves of a dataclass in order; `default` is an instance whose values are the defaults."""
    hints = get_type_hints(schema)
    for item in fields(schema):
        value = _default_of(item) if default is MISSING else getattr(default, item.name)
        key, annotation = prefix + item.name, hints[item.name]
        if is_dataclass(annotation):
            yield from _leaves(annotation, f"{key}.", value)
        else:
            yield _Leaf(key, annotation, item.metadata, value)


def _default_of(item: Field) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def _build(
    schema: type[T],
    prefix: str,
    values: Mapping[str, Any],
    leaves: Mapping[str, _Leaf],
    path: Path,
) -> T:
    """Make the dataclass from the given values and the defaults of the others."""
    hints = get_type_hints(schema)
    arguments = {}
    for item in fields(schema):
        key, annotation = prefix + item.name, hints[item.name]
        if is_dataclass(annotation):
            arguments[item.name] = _build(annotation, f"{key}.", values, leaves, path)
        elif key in values:
            arguments[item.name] = values[key]
        else:
            arguments[item.name] = _default_value(leaves[key], path)
    return schema(**arguments)


def _default_value(leaf: _Leaf, path: Path) -> Any:
    if leaf.default is MISSING:
        raise UserError(f"{path}: {leaf.key} is missing; add it ({describe(leaf.annotation)}).")
    if isinstance(leaf.default, Path):
        return absolute_path(leaf.default, tree_of(path))
    return copy.deepcopy(leaf.default)


# ---------------------------------------------------------------------------- file, command line


class _Loader(yaml.SafeLoader):
    """The safe loader of PyYAML, which would let the last one of repeated keys win in silence."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        """Make a dictionary of a node whose keys are all different."""
        seen: list[Any] = []
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is there more than once", key.start_mark
                )
            seen.append(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict:
    try:
        with path.open(encoding="utf-8") as stream:
            content = yaml.load(stream, _Loader)
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; name an existing configuration file (.yaml)."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); name a YAML text file.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if content is None:  # empty, or comments alone
        return {}
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds a {type(content).__name__} instead of keys with values; write it as "
            "KEY: VALUE lines."
        )
    return content


def _flat_yaml(
    content: Mapping,
    prefix: str,
    leaves: Mapping[str, _Leaf],
    path: Path,
    skip: Callable[[str], bool],
) -> Iterator[tuple[str, Any]]:
    """Leaf keys of a YAML mapping with the values as YAML reads them."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if key in leaves:
            yield key, value
        elif not _group(key, leaves):
            if not skip(key):
                raise UserError(f"{path}: {_unknown(key, leaves)}")
        elif isinstance(value, Mapping):
            yield from _flat_yaml(value, f"{key}.", leaves, path, skip)
        elif value is not None:  # a group whose keys are all commented out
            raise UserError(f"{path}: {_group_has_no_value(key, value, leaves)}")


def _apply_override(
    values: dict[str, Any],
    leaves: Mapping[str, _Leaf],
    text: str,
    place: Place,
    skip: Callable[[str], bool],
) -> None:
    key, separator, raw = text.partition("=")
    key = key.strip()
    if not separator:
        raise UserError(f"{_COMMAND_LINE}: {text!r} is not of the form KEY=VALUE.")
    owner = _free_dict(key, leaves)
    if key in leaves:
        values[key] = _checked(leaves[key], raw, place)
    elif owner is not None:
        entries = values.get(owner.key, {} if owner.default is MISSING else owner.default)
        value = _checked(_Leaf(key, Any, {}, MISSING), raw, place)
        values[owner.key] = {**entries, _end(key): value}
    elif _group(key, leaves):
        raise UserError(f"{_COMMAND_LINE}: {_group_has_no_value(key, raw, leaves)}")
    elif not skip(key):
        raise UserError(f"{_COMMAND_LINE}: {_unknown(key, leaves)}")


def _free_dict(key: str, leaves: Mapping[str, _Leaf]) -> _Leaf | None:
    """The free dictionary that a key like `MODEL.VIT_ARGS.depth` reaches into, if any."""
    owner = leaves.get(key.rpartition(".")[0])
    return owner if owner is not None and get_origin(owner.annotation) is dict else None


def _checked(leaf: _Leaf, raw: Any, place: Place) -> Any:
    try:
        value = convert(raw, leaf.annotation, place)
    except ValueError:
        raise UserError(
            f"{place.name}: {leaf.key} is {raw!r}; expected {describe(leaf.annotation)}."
        ) from None
    except UserError as error:
        raise UserError(f"{place.name}: {leaf.key} is {error}") from None
    problem = range_problem(value, leaf.metadata)
    if problem is not None:
        raise UserError(f"{place.name}: {leaf.key} is {plain(value)}; it must be {problem}.")
    return value


def _group(key: str, leaves: Mapping[str, _Leaf]) -> list[str]:
    """Keys below a group; none when there is no such group."""
    return [name for name in leaves if name.startswith(f"{key}.")]


def _group_has_no_value(key: str, value: Any, leaves: Mapping[str, _Leaf]) -> str:
    return (
        f"{key} is a group of keys and cannot be {value!r}; set one of "
        f"{', '.join(_group(key, leaves))}."
    )


def _unknown(key: str, leaves: Mapping[str, _Leaf]) -> str:
    """Say that there is no such key, and which one may be meant."""
    groups = {name.rpartition(".")[0] for name in leaves} - {""}
    known = {name.lower(): name for name in (*leaves, *sorted(groups))}
    same_end = [name for name in known if _end(name) == _end(key.lower())]
    by_end = {_end(name): name for name in known}
    close = (
        difflib.get_close_matches(key.lower(), same_end, n=1, cutoff=0)
        or difflib.get_close_matches(key.lower(), known, n=1)
        or [by_end[end] for end in difflib.get_close_matches(_end(key.lower()), by_end, n=1)]
    )
    if close:
        return f"{key} is not a configuration key; did you mean {known[close[0]]}?"
    tops = dict.fromkeys(name.partition(".")[0] for name in leaves)
    return f"{key} is not a configuration key; there are {', '.join(tops)}."


def _end(key: str) -> str:
    return key.rpartition(".")[2]
