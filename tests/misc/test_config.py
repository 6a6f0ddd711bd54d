"""Typed YAML configurations: types, defaults, overrides, paths, and what is said about mistakes."""

# ruff: noqa: SIM300 - keys in capitals are no constants

import json
import re
from dataclasses import FrozenInstanceError, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from misc.config import (
    bounded,
    flatten,
    group,
    identifying,
    load_config,
    pairs_to_overrides,
    plain,
    positive,
    setting,
)
from misc.errors import UserError


@dataclass(frozen=True)
class Size:
    BASE: int | None = None
    TRAIN: int = field(default=321, metadata={"min": 1})


@dataclass(frozen=True)
class Image:
    SIZE: Size = field(default_factory=Size)


@dataclass(frozen=True)
class Solver:
    LR: float = field(default=2.5e-4, metadata={"positive": True})
    MOMENTUM: float = field(default=0.9, metadata={"min": 0, "max": 1})
    LR_STEPS: tuple[int, ...] = (30,)
    SCALES: tuple[float, ...] = field(default=(0.5, 1.0), metadata={"positive": True})
    OPTIMIZER: Literal["sgd", "adamw"] = "sgd"


@dataclass(frozen=True)
class Model:
    ARCH: str = "deit_small"
    FIXED: bool = True
    INIT: Literal["imagenet", "none"] | Path = "imagenet"
    ARGS: dict[str, Any] = field(default_factory=dict)
    NAMES: tuple[str, ...] = ()
    WEIGHTS: Path | None = None
    FOLDER: Path = Path("data")


@dataclass(frozen=True)
class Config:
    IMAGE: Image = field(default_factory=Image)
    SOLVER: Solver = field(default_factory=Solver)
    MODEL: Model = field(default_factory=Model)


def _load(folder: Path, text: str = "", *overrides: str) -> Config:
    path = folder / "a.yaml"
    path.write_text(text)
    return load_config(Config, path, overrides)


def _refusal(folder: Path, text: str = "", *overrides: str) -> str:
    with pytest.raises(UserError) as raised:
        _load(folder, text, *overrides)
    return str(raised.value)


# ---------------------------------------------------------------------------------------- values


def test_file_gives_typed_values_and_the_schema_the_rest(tmp_path: Path) -> None:
    text = """
    # a comment
    IMAGE: {SIZE: {TRAIN: 65}}
    SOLVER:
      LR: 5e-4
      MOMENTUM: 0
      LR_STEPS: [10, 20]
      SCALES: [1, 2.5]
    MODEL:
      FIXED: false
      ARGS: {depth: 4, name: x}
      NAMES: [a, b]
    """
    config = _load(tmp_path, text)
    assert config.IMAGE == Image(Size(None, 65))
    assert config.SOLVER == Solver(5e-4, 0.0, (10, 20), (1.0, 2.5), "sgd")
    assert isinstance(config.SOLVER.MOMENTUM, float)
    assert config.MODEL.FIXED is False
    assert (config.MODEL.ARGS, config.MODEL.NAMES) == ({"depth": 4, "name": "x"}, ("a", "b"))
    with pytest.raises(FrozenInstanceError):
        config.SOLVER.LR = 1


@pytest.mark.parametrize("text", ["", "# nothing but a comment", "SOLVER:\n"])
def test_defaults_alone(tmp_path: Path, text: str) -> None:
    config = _load(tmp_path, text)
    assert config.SOLVER == Solver()
    assert config.MODEL.ARGS == {}
    assert config.MODEL.ARGS is not _load(tmp_path).MODEL.ARGS


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("IMAGE.SIZE.BASE=none", None),
        ("IMAGE.SIZE.BASE=7", 7),
        ("SOLVER.LR=1e-3", 1e-3),
        ("SOLVER.LR=1", 1.0),
        ("SOLVER.LR_STEPS=[1, 2]", (1, 2)),
        ("SOLVER.LR_STEPS=1,2", (1, 2)),
        ("SOLVER.LR_STEPS=30", (30,)),
        ("SOLVER.LR_STEPS=[]", ()),
        ("SOLVER.SCALES=0.5", (0.5,)),
        ("SOLVER.OPTIMIZER=adamw", "adamw"),
        ("MODEL.ARCH=007", "007"),
        ("MODEL.ARCH=a=b", "a=b"),
        ("MODEL.NAMES=['a', b]", ("a", "b")),
        ("MODEL.FIXED=False", False),
        ("MODEL.INIT=none", "none"),
        ("MODEL.ARGS={depth: 4}", {"depth": 4}),
        ("MODEL.ARGS.depth=6", {"depth": 6, "name": "x"}),
        ("MODEL.WEIGHTS=None", None),
    ],
)
def test_command_line_overrides(tmp_path: Path, override: str, value: object) -> None:
    config: Any = _load(tmp_path, "MODEL: {ARGS: {name: x}, WEIGHTS: w.pth}", override)
    for name in override.partition("=")[0].split("."):
        if isinstance(config, dict):
            break
        config = getattr(config, name)
    assert config == value and type(config) is type(value)


def test_last_override_counts(tmp_path: Path) -> None:
    assert _load(tmp_path, "", "SOLVER.LR=1", "SOLVER.LR=2").SOLVER.LR == 2
    arguments = _load(tmp_path, "", "MODEL.ARGS.a=1", "MODEL.ARGS.b=[2]", "MODEL.ARGS.a=x").MODEL
    assert arguments.ARGS == {"a": "x", "b": [2]}


def test_pairs_and_assignments_mix() -> None:
    assert pairs_to_overrides(["A.B", "1", "C=2", "D", "x=y"]) == ["A.B=1", "C=2", "D=x=y"]
    assert pairs_to_overrides([]) == []
    with pytest.raises(UserError, match=r"command line: C has no value"):
        pairs_to_overrides(["A", "1", "C"])


def test_flat_values_are_json(tmp_path: Path) -> None:
    flat = flatten(_load(tmp_path, "MODEL: {ARGS: {depth: 4}}"))
    assert json.loads(json.dumps(flat)) == flat
    assert flat["SOLVER.SCALES"] == [0.5, 1.0]
    assert flat["IMAGE.SIZE.TRAIN"] == 321
    assert flat["MODEL.FOLDER"] == str(tmp_path / "data")
    assert flat["MODEL.ARGS"] == {"depth": 4}
    assert flat["MODEL.WEIGHTS"] is None


# --------------------------------------------------------------------------------------- records


@dataclass(frozen=True)
class Network:
    name: str = setting("cnn")  # says nothing, nor does its group
    rates: tuple[int, ...] = bounded((6, 12), 1, affects=("train",))
    extra: dict[str, Any] = setting({"depth": 4}, affects=("train", "test"), help="for timm")


@dataclass(frozen=True)
class Shown:
    folder: Path = setting(Path("out"))
    every: int = positive(5, affects=("test",), help="pictures")
    forced: bool = setting(False, affects=())


@dataclass(frozen=True)
class Options:
    network: Network = group(Network)
    shown: Shown = group(Shown, affects=())
    copies: Shown = group(Shown, affects=("copy",))
    seed: int = bounded(0, 0)
    newer: dict[str, Any] = setting({}, affects=("train",), unrecorded={})
    plain_field: float = 0.5


FORGOTTEN = {"network.name": "cnn", "seed": 0, "plain_field": 0.5}
"""What says `affects` nowhere."""


@pytest.mark.parametrize(
    ("record", "more"),
    [
        ("train", {"network.rates": [6, 12], "network.extra": {"depth": 4}}),
        ("test", {"network.extra": {"depth": 4}, "shown.every": 5, "copies.every": 5}),
        ("copy", {"copies.folder": "out"}),
        ("another", {}),
        ("tra", {}),  # names are compared as a whole
    ],
)
def test_a_record_has_what_affects_it_and_what_says_nothing(record: str, more: dict) -> None:
    found = identifying(Options(), record)
    assert found == FORGOTTEN | more
    assert json.loads(json.dumps(found)) == found


def test_a_record_is_silent_about_the_value_that_ran_before_there_was_the_field() -> None:
    @dataclass(frozen=True)
    class Extended(Network):
        steps: int = bounded(7, 0, affects=("train",), unrecorded=7)

    assert identifying(Extended(), "train") == identifying(Network(), "train")
    changed = identifying(Extended(steps=0), "train")
    assert changed == {**identifying(Network(), "train"), "steps": 0}
    assert flatten(Extended())["steps"] == 7


def test_records_take_the_values_that_are_set(tmp_path: Path) -> None:
    made = Options(Network(rates=(1,), extra={"at": Path("a")}), seed=3)
    assert identifying(made, "train") == {
        "network.name": "cnn",
        "network.rates": [1],
        "network.extra": {"at": "a"},
        "seed": 3,
        "plain_field": 0.5,
    }
    newer = Options(newer={"depth": 4})
    assert identifying(newer, "train") == {**identifying(Options(), "train"), "newer": {"depth": 4}}
    assert identifying(newer, "test") == identifying(Options(), "test")
    (tmp_path / "a.yaml").write_text("network: {rates: [3]}")
    read = load_config(Options, tmp_path / "a.yaml", ["seed=2", "network.extra.width=1"])
    assert read.network == Network(rates=(3,), extra={"depth": 4, "width": 1})
    assert identifying(read, "another") == FORGOTTEN | {"seed": 2}


def test_makers_bound_and_describe_their_fields(tmp_path: Path) -> None:
    metadata = {item.name: dict(item.metadata) for item in fields(Network)}
    assert metadata == {
        "name": {},
        "rates": {"min": 1, "affects": ("train",)},
        "extra": {"affects": ("train", "test"), "help": "for timm"},
    }
    assert dict(fields(Shown)[1].metadata) == {
        "positive": True,
        "affects": ("test",),
        "help": "pictures",
    }
    path = tmp_path / "a.yaml"
    for text, message in {
        "network: {rates: [0]}": "network.rates is [0]; it must be at least 1",
        "shown: {every: 0}": "shown.every is 0; it must be above 0",
    }.items():
        path.write_text(text)
        with pytest.raises(UserError, match=re.escape(message)):
            load_config(Options, path)


def test_free_dictionaries_are_not_shared() -> None:
    Network().extra["depth"] = 5
    assert Network().extra == {"depth": 4}


def test_affects_is_a_tuple() -> None:
    """A bare text would be looked through letter by letter."""
    with pytest.raises(TypeError, match="affects is 'train'; it must be a tuple"):
        setting(0, affects="train")
    with pytest.raises(TypeError, match="affects is 'train'; it must be a tuple"):
        group(Shown, affects="train")


def test_plain_values_are_those_of_json() -> None:
    value = {1: (Path("a"), {2.5, 1.5}), "b": np.float32(0.5), "c": [np.arange(2), None, True]}
    assert plain(value) == {"1": ["a", [1.5, 2.5]], "b": 0.5, "c": [[0, 1], None, True]}
    with pytest.raises(TypeError, match="object has no JSON form"):
        plain([object()])


# ----------------------------------------------------------------------------------------- paths


def test_paths_of_a_file_start_at_its_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configs" / "tree" / "configs" / "CUB"
    folder.mkdir(parents=True)
    text = "MODEL: {WEIGHTS: ./data/w.pth, INIT: w/coco.pth}"
    tree = tmp_path / "configs" / "tree"
    monkeypatch.chdir(folder)
    for where in (folder, Path(), Path("../CUB")):
        model = _load(where, text).MODEL
        assert model.WEIGHTS == tree / "data" / "w.pth"
        assert model.INIT == tree / "w" / "coco.pth"
        assert model.FOLDER == tree / "data"


def test_paths_of_a_lone_file_start_beside_it(tmp_path: Path) -> None:
    assert _load(tmp_path, "MODEL: {WEIGHTS: w.pth}").MODEL.WEIGHTS == tmp_path / "w.pth"


def test_paths_of_the_command_line_start_at_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    overrides = ("MODEL.WEIGHTS=w.pth", "MODEL.FOLDER=~/x", "MODEL.INIT=/coco.pth")
    model = _load(tmp_path, "MODEL: {WEIGHTS: other}", *overrides).MODEL
    assert model.WEIGHTS == tmp_path / "work" / "w.pth"
    assert model.FOLDER == tmp_path / "home" / "x"
    assert model.INIT == Path("/coco.pth")


# -------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("SOLVER: {LRR: 1}", "SOLVER.LRR is not a configuration key; did you mean SOLVER.LR?"),
        ("SOLVR: {LR: 1}", "SOLVR is not a configuration key; did you mean SOLVER?"),
        ("lr: 1", "lr is not a configuration key; did you mean SOLVER.LR?"),
        ("MODEL: {LR: 1}", "MODEL.LR is not a configuration key; did you mean SOLVER.LR?"),
        ("7: 1", "7 is not a configuration key; there are IMAGE, SOLVER, MODEL."),
        ("SOLVER: 3", "SOLVER is a group of keys and cannot be 3; set one of SOLVER.LR, "),
        ("SOLVER: {LR: fast}", "SOLVER.LR is 'fast'; expected a number."),
        ("SOLVER: {LR: true}", "SOLVER.LR is True; expected a number."),
        ("SOLVER: {LR: .nan}", "SOLVER.LR is nan; expected a number."),
        ("SOLVER: {LR: }", "SOLVER.LR is None; expected a number."),
        ("IMAGE: {SIZE: {TRAIN: 1.5}}", "IMAGE.SIZE.TRAIN is 1.5; expected a whole number."),
        ("IMAGE: {SIZE: {TRAIN: yes}}", "IMAGE.SIZE.TRAIN is True; expected a whole number."),
        ("IMAGE: {SIZE: {BASE: x}}", "IMAGE.SIZE.BASE is 'x'; expected a whole number or none."),
        ("SOLVER: {LR_STEPS: 30}", "SOLVER.LR_STEPS is 30; expected a list of whole numbers."),
        ("SOLVER: {LR_STEPS: [x]}", "SOLVER.LR_STEPS is ['x']; expected a list of whole numbers."),
        ("SOLVER: {OPTIMIZER: adam}", "SOLVER.OPTIMIZER is 'adam'; expected one of sgd, adamw."),
        ("MODEL: {FIXED: 1}", "MODEL.FIXED is 1; expected true or false."),
        ("MODEL: {FIXED: 'true'}", "MODEL.FIXED is 'true'; expected true or false."),
        ("MODEL: {ARCH: 7}", "MODEL.ARCH is 7; expected text."),
        ("MODEL: {ARGS: [1]}", "MODEL.ARGS is [1]; expected a mapping of keys to values."),
        ("MODEL: {INIT: 7}", "MODEL.INIT is 7; expected one of imagenet, none or a path."),
        ("SOLVER: {LR: 0}", "SOLVER.LR is 0.0; it must be above 0."),
        ("SOLVER: {SCALES: [1, -1]}", "SOLVER.SCALES is [1.0, -1.0]; it must be above 0."),
        ("IMAGE: {SIZE: {TRAIN: 0}}", "IMAGE.SIZE.TRAIN is 0; it must be at least 1."),
        ("SOLVER: {MOMENTUM: 1.1}", "SOLVER.MOMENTUM is 1.1; it must be at most 1."),
        (
            "MODEL: {FOLDER: ~nobody_here/x}",
            "MODEL.FOLDER is ~nobody_here/x: there is no user nobody_here here; write the path",
        ),
        ("- a", "holds a list instead of keys with values"),
        ("a: [", "is not valid YAML"),
        ("x: !!python/object:os.x {}", "is not valid YAML"),
        ("SOLVER: {LR: 1, LR: 2}", "is not valid YAML: the key LR is there more than once"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, text: str, said: str) -> None:
    message = _refusal(tmp_path, text)
    assert str(tmp_path / "a.yaml") in message
    assert said in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("SOLVER.lr=1", "SOLVER.lr is not a configuration key; did you mean SOLVER.LR?"),
        ("SOLVER=1", "SOLVER is a group of keys and cannot be '1'"),
        ("SOLVER.LR", "'SOLVER.LR' is not of the form KEY=VALUE"),
        ("SOLVER.LR=", "SOLVER.LR is ''; expected a number."),
        ("SOLVER.LR=-1", "SOLVER.LR is -1.0; it must be above 0."),
        ("SOLVER.LR_STEPS=", "SOLVER.LR_STEPS is ''; expected a list of whole numbers."),
        ("SOLVER.LR_STEPS=1.5", "SOLVER.LR_STEPS is '1.5'; expected a list of whole numbers."),
        ("IMAGE.SIZE.TRAIN=many", "IMAGE.SIZE.TRAIN is 'many'; expected a whole number."),
        ("MODEL.FIXED=maybe", "MODEL.FIXED is 'maybe'; expected true or false."),
        ("MODEL.ARCH=", "MODEL.ARCH is ''; expected text."),
        ("MODEL.ARGS.a=[1", "MODEL.ARGS.a is '[1'; expected a value in YAML."),
    ],
)
def test_mistakes_on_the_command_line_are_named(tmp_path: Path, override: str, said: str) -> None:
    assert _refusal(tmp_path, "", override).startswith(f"command line: {said}")


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml does not exist"):
        load_config(Config, tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(Config, tmp_path)
    with pytest.raises(UserError, match="there is no user nobody_here here"):
        load_config(Config, Path("~nobody_here/a.yaml"))


def test_key_without_default_must_be_given(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Named:
        NAME: str
        COUNT: int = 1

    path = tmp_path / "a.yaml"
    path.write_text("COUNT: 2")
    assert load_config(Named, path, ["NAME=x"]) == Named("x", 2)
    with pytest.raises(UserError, match=r"a\.yaml: NAME is missing; add it \(text\)"):
        load_config(Named, path)


def test_defaults_of_a_group_may_differ_from_its_class(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Other:
        SOLVER: Solver = Solver(LR=0.1)

    (tmp_path / "a.yaml").write_text("SOLVER: {MOMENTUM: 0.5}")
    assert load_config(Other, tmp_path / "a.yaml").SOLVER == Solver(0.1, 0.5)


def test_unsupported_annotation_is_a_bug_of_the_schema(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Wrong:
        X: complex = 1j

    (tmp_path / "a.yaml").write_text("X: 1")
    with pytest.raises(TypeError, match="complex"):
        load_config(Wrong, tmp_path / "a.yaml")
