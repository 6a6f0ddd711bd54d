"""What made an output: a small JSON record beside every folder and weight file.

A folder carries `made_by.json`, a file `NAME.json` next to it. A step compares the record of its
input with what the current arguments would have made, so that a stage never goes on from another
list, other weights or other thresholds without saying so.
"""

import hashlib
import json
import shlex
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

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
        content = {"step": self.step, "arguments": self.arguments, "inputs": self.inputs}
        return json.loads(json.dumps(content, default=_plain))

    def differences(self, recorded: "Record") -> list[str]:
        """One text per argument or input whose recorded value is another one."""
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
        "command": shlex.join(sys.argv),
    }
    write_json(record_path(target), json.loads(json.dumps(content, default=_plain)))


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
            f"{'; '.join(differences)}. Redo it with {_redo(expected, redo)}, "
            f"{'or ' if redo else ''}repeat the arguments that made it"
            f"{'' if redo else ', or use it as it is with --force'}."
        )


def require_outputs(folder: Path, suffix: str, ids: Collection[str], maker: str) -> None:
    """Stop when a folder lacks outputs of some pictures.

    Args:
        folder: holds ID and suffix.
        suffix: of the files, such as `.png`.
        ids: of the pictures.
        maker: the step or command that makes them, for the message.

    Raises:
        UserError: counts the missing files and names the first.
    """
    missing = [image_id for image_id in ids if not (folder / f"{image_id}{suffix}").is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(ids)} files are missing in {folder}, the first is "
            f"{missing[0]}{suffix}; run step {maker} for this list."
        )


def prepare_output(
    folder: Path | str,
    expected: Record,
    suffix: str,
    ids: Collection[str],
    *,
    overwrite: bool = False,
    force: bool = False,
    option: str = "output folder",
    lists: Mapping[str, Mapping[str, Any]] | None = None,
    redo: str | None = None,
) -> int:
    """Make a folder ready for the outputs of a step.

    Outputs of an earlier, equal run stay, so that a killed run goes on where it stopped.

    Args:
        folder: created when needed; gets the record `expected`.
        expected: what makes the outputs now.
        suffix: of the output files, such as `.png`.
        ids: of the pictures that will get an output.
        overwrite: remove the outputs of `ids` that are there; nothing else is ever removed, and
            nothing in a folder without a record of the same step.
        force: keep outputs that something else made, if that is recorded; the record then says that
            the folder is mixed, so that later runs refuse it without `force`.
        option: the option that names the folder, for the message.
        lists: see `write_record`.
        redo: see `check_record`.

    Returns:
        Number of finished outputs that were kept.

    Raises:
        UserError: the folder holds outputs of something else.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    recorded = read_record(folder)
    if overwrite:
        _remove_earlier(folder, expected, recorded, suffix, ids, option)
    finished = _outputs(folder, suffix)
    if not finished:
        write_record(folder, expected, lists)
        return 0
    what = f"{len(finished)} *{suffix} in {folder}"
    if recorded is None:
        raise UserError(
            f"{what} have no record of what made them and are left alone; move them away or choose "
            f"another {option}."
        )
    if others := _others(folder, suffix, ids):
        redo = f"{_redo(expected, redo)} once {len(others)} files of other lists are moved away"
    if _require_equal(what, expected, recorded, force, option, redo):
        _add_lists(folder, expected, lists)
    else:
        write_record(folder, _mixed(expected, recorded), lists)
    log(f"{folder}: {len(finished)} finished outputs are kept (--overwrite redoes them).")
    return len(finished)


def _remove_earlier(
    folder: Path,
    expected: Record,
    recorded: Record | None,
    suffix: str,
    ids: Collection[str],
    option: str,
) -> None:
    """Remove the outputs of the pictures, unless something forbids it; see `check_removal`."""
    changed = recorded is not None and bool(expected.differences(recorded))
    problem = check_removal(folder, expected.step, option, suffix, ids, changed)
    if problem:
        raise UserError(f"{problem}.")
    remove_outputs(folder, suffix, ids)


def keep_file(
    path: Path | str,
    expected: Record,
    *,
    force: bool = False,
    option: str = "output file",
    redo: str | None = None,
) -> bool:
    """Tell whether an output file is finished already, such as the weights of a training step.

    When the answer is False the caller makes the file: first `write_record`, then the file, so that
    a killed run never leaves a file without record.

    Args:
        path: the output file.
        expected: what makes it now.
        force: keep a file that something else made.
        option: the option that names the file, for the message.
        redo: see `check_record`.

    Raises:
        UserError: the file was made by something else.
    """
    path = Path(path)
    if not path.exists():
        return False
    _require_equal(str(path), expected, read_record(path), force, option, redo)
    log(f"{path} is finished and is kept (--overwrite makes it again).")
    return True


def check_removal(
    path: Path,
    step: str,
    option: str,
    suffix: str | None = None,
    ids: Collection[str] | None = None,
    changed: bool = False,
) -> str | None:
    """Tell why outputs must not be removed; None if they may be.

    Args:
        path: a file, or the folder of the outputs of `ids`.
        step: that is going to make them.
        option: the option that names `path`.
        suffix: of the files in the folder; None for a file.
        ids: of the pictures whose files would be removed.
        changed: whether the new outputs come from something else than those that are there.
    """
    if suffix is None:
        doomed, others = [path] if path.is_file() else [], []
    else:
        doomed, others = _files_of(path, suffix, ids), _others(path, suffix, ids)
    recorded = read_record(path)
    made_by = "has no record of what made it" if recorded is None else f"is of {recorded.step}"
    if doomed and (recorded is None or recorded.step != step):
        return (
            f"{doomed[0]} would be replaced, but {path} {made_by}; move it away or choose another "
            f"{option}"
        )
    if others and changed:
        return (
            f"{path} also holds {len(others)} files of other lists, such as "
            f"{others[0].relative_to(path)}, that the new ones would not fit; move them away or "
            f"choose another {option}"
        )
    return None


def remove_outputs(folder: Path, suffix: str, ids: Collection[str]) -> int:
    """Remove the files of the given pictures; returns how many there were."""
    files = _files_of(folder, suffix, ids)
    for file in files:
        file.unlink()
    return len(files)


def remove_file(path: Path) -> int:
    """Remove a file and its record; returns how many files there were."""
    there = path.is_file()
    path.unlink(missing_ok=True)
    if there:
        record_path(path).unlink(missing_ok=True)
    return int(there)


def _mixed(expected: Record, recorded: Record | None) -> Record:
    """Record of a folder that holds outputs of `expected` beside others."""
    before = "unknown" if recorded is None else recorded.fingerprint
    return replace(expected, inputs={**expected.inputs, "mixed_with": before})


def _add_lists(
    folder: Path, expected: Record, lists: Mapping[str, Mapping[str, Any]] | None
) -> None:
    """Add lists that a folder was made for since its record was written."""
    recorded = read_json(record_path(folder)).get("lists")
    recorded = recorded if isinstance(recorded, dict) else {}  # for the reader alone
    if any(recorded.get(name) != entry for name, entry in (lists or {}).items()):
        write_record(folder, expected, {**recorded, **(lists or {})})


def _redo(expected: Record, redo: str | None) -> str:
    return redo or f"--from_step {expected.step} --overwrite"


def _require_equal(
    what: str,
    expected: Record,
    recorded: Record | None,
    force: bool,
    option: str,
    redo: str | None,
) -> bool:
    """True when an output is what the arguments would make, False when it is kept by force."""
    if recorded is None:
        differences = ["there is no record of what made it"]
    else:
        differences = expected.differences(recorded)
    if differences and force:
        log(f"--force: {what} is kept although {'; '.join(differences)}.")
    elif differences:
        again = f"Redo it with {_redo(expected, redo)}, " if recorded is not None else ""
        keep = "" if redo else "keep it with --force, "
        remedy = f"{again}{keep}or choose another {option}."
        raise UserError(
            f"{what} does not come from the current arguments: {'; '.join(differences)}. "
            f"{remedy[0].upper()}{remedy[1:]}"
        )
    return not differences


def _outputs(folder: Path, suffix: str) -> list[Path]:
    files = folder.rglob(f"*{suffix}")  # ids may name subfolders
    return [path for path in files if path.name != FOLDER_RECORD and path.name[:5] != ".tmp-"]


def _others(folder: Path, suffix: str, ids: Collection[str]) -> list[Path]:
    """Outputs in a folder that do not belong to any of the pictures."""
    mine = {folder / f"{image_id}{suffix}" for image_id in ids}
    return [path for path in _outputs(folder, suffix) if path not in mine]


def _files_of(folder: Path, suffix: str, ids: Collection[str]) -> list[Path]:
    """The outputs of the pictures that are there."""
    paths = (folder / f"{image_id}{suffix}" for image_id in ids)
    return [path for path in paths if path.is_file()]


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


def _plain(value: Any) -> Any:
    """JSON form of paths, sets and numpy values."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be part of a record")
