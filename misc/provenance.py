"""What made an output: a small JSON record beside every folder and weight file.

A folder carries `made_by.json`, a file `NAME.json` next to it. A step compares the record of its
input with what the current arguments would have made, so that a stage never goes on from another
list, other weights or other thresholds without saying so.
"""

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from misc.config import plain
from misc.errors import UserError
from misc.files import read_json, sha256_file, write_json
from misc.progress import log
from misc.seed import run_facts

FOLDER_RECORD = "made_by.json"
_SHOWN_LENGTH = 40  # of a value in an error message
_ABSENT = "(absent)"
_SEAL = "sha256"


@dataclass(frozen=True)
class Record:
    """What identifies an output.

    Attributes:
        step: name of the step that makes it.
        arguments: the arguments that matter for it. Paths belong here only where they identify
            data; numbers, strings, booleans, sequences and None compare by value.
        inputs: hash or fingerprint of everything it was made from, by name (`train_list`,
            `cam_weights`, `cam`).
    """

    step: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over step, arguments and inputs; independent of the order of the keys."""
        text = json.dumps(self.content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def content(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return plain({"step": self.step, "arguments": self.arguments, "inputs": self.inputs})

    def differences(self, recorded: "Record | None") -> list[str]:
        """One text per argument or input whose recorded value is another one.

        Where nothing is recorded there is nothing to compare with, and no difference.
        """
        if recorded is None:
            return []
        mine, theirs = _flat(self), _flat(recorded)
        pairs = {
            name: (mine.get(name, _ABSENT), theirs.get(name, _ABSENT))
            for name in sorted(mine.keys() | theirs.keys())
        }
        return [_change(name, *pair) for name, pair in pairs.items() if pair[0] != pair[1]]


def record_path(target: Path | str) -> Path:
    """Where the record of a folder or file lies."""
    target = Path(target)
    return target / FOLDER_RECORD if target.is_dir() else target.with_name(f"{target.name}.json")


def write_record(
    target: Path | str,
    record: Record,
    lists: Mapping[str, Mapping[str, Any]] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write the record of an existing folder, or of a file that is about to be written.

    Args:
        target: the folder or file.
        record: what makes it.
        lists: for every list of ids: name, number of ids, SHA-256. For the reader; the hash that
            counts belongs to `record.inputs`.
        facts: more to keep beside versions, commit and host, such as the training history.
    """
    content = {
        **record.content(),
        "fingerprint": record.fingerprint,
        "lists": lists or {},
        "facts": {**run_facts(), **(facts or {})},
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv[1:]),
    }
    write_json(record_path(target), plain(content))


def seal_record(path: Path | str) -> None:
    """Note the hash of a file that is written now in its record, which then vouches for no other.

    A file that is put in its place is one without record: nobody takes it for ours, or removes it.
    """
    content = read_json(record_path(path))
    write_json(record_path(path), {**content, _SEAL: sha256_file(path)})


def read_record(target: Path | str) -> Record | None:
    """The record of a folder or file, None when it has none or a file was replaced since.

    Raises:
        UserError: there is a record that cannot be understood.
    """
    path = record_path(target)
    if not path.is_file():
        return None
    content = read_json(path)
    sealed = isinstance(content, dict) and _SEAL in content and Path(target).is_file()
    if sealed and content[_SEAL] != sha256_file(target):
        return None
    try:
        return Record(content["step"], dict(content["arguments"]), dict(content["inputs"]))
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} is not a record of what made {target}; mend or remove it, then {target} "
            "counts as of unknown origin."
        ) from None


def read_facts(target: Path | str) -> Mapping[str, Any]:
    """The facts in the record of a folder or file; empty where there are none."""
    return _recorded(target, "facts")


def read_lists(target: Path | str) -> Mapping[str, Any]:
    """The lists in the record of a folder or file, by name; empty where there are none."""
    return _recorded(target, "lists")


def _recorded(target: Path | str, part: str) -> Mapping[str, Any]:
    """A part of a record that is for the reader alone, and empty where it is damaged."""
    path = record_path(target)
    content = read_json(path) if path.is_file() else None
    found = content.get(part) if isinstance(content, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def check_record(
    target: Path | str, expected: Record, force: bool = False, redo: str | None = None
) -> None:
    """Stop when an input was made by something else than the current arguments.

    An input without record (the user's own, or made by the published code) is used as it is, and
    the log says so.

    Args:
        target: folder or file that a step is about to read.
        expected: what would make it now.
        force: go on in spite of differences, with a line in the log.
        redo: what follows "Redo it with" in the message of a command that has neither `--from_step`
            nor `--force`.

    Raises:
        UserError: names every argument and input that differs, with both values.
    """
    recorded = read_record(target)
    if recorded is None:
        log(f"{target} has no record of what made it and is used as it is.")
        return
    differences = expected.differences(recorded)
    if differences and force:
        log(f"--force: {target} is used although {'; '.join(differences)}.")
    elif differences:
        raise UserError(
            f"{target} was made by something else than the current arguments: "
            f"{'; '.join(differences)}. Redo it with {redo_with(expected, redo)}, "
            f"{'or ' if redo else ''}repeat the arguments that made it"
            f"{'' if redo else ', or use it as it is with --force'}."
        )


def redo_with(expected: Record, redo: str | None) -> str:
    """How to make an output again: `redo`, or else the options of run_sample.py."""
    return redo or f"--from_step {expected.step} --overwrite"


def _flat(record: Record) -> dict[str, Any]:
    content = record.content()
    inputs = {f"input {name}": value for name, value in content["inputs"].items()}
    return {"step": content["step"], **content["arguments"], **inputs}


def _change(name: str, now: Any, before: Any) -> str:
    """Both values of an argument or input; long ones are cut off, if they still differ then."""
    texts = [value if isinstance(value, str) else json.dumps(value) for value in (now, before)]
    cut = [t if len(t) <= _SHOWN_LENGTH else f"{t[:_SHOWN_LENGTH]}..." for t in texts]
    first, second = texts if cut[0] == cut[1] else cut
    return f"{name} is {first} now and was {second}"
