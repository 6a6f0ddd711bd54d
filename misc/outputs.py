"""Outputs of a step: kept where an equal run has made them, removed only where they are ours.

What made them is in their records, see `misc.provenance`.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from misc.errors import UserError
from misc.files import remove_leftovers
from misc.progress import log
from misc.provenance import (
    FOLDER_RECORD,
    Record,
    read_lists,
    read_record,
    record_path,
    redo_with,
    write_record,
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
    others = len(_others(folder, suffix, ids))
    equal = _require_ours(what, expected, recorded, force, option, redo, others)
    _renew_record(folder, expected, lists, None if equal else recorded)
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
    changed = bool(expected.differences(recorded))
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


def require_own(paths: Iterable[Path], made: str, remedy: str) -> None:
    """Stop before files are replaced that no run of ours has made.

    Args:
        paths: that are about to be written; they may be absent.
        made: what ours have a record of, in words.
        remedy: what the reader can do.

    Raises:
        UserError: names the first.
    """
    for path in paths:
        if path.exists() and read_record(path) is None:
            raise UserError(f"{path} has no record of {made}, so it is not replaced: {remedy}.")


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
    """Remove a file, its record and what killed writers left; returns how many files there were."""
    there = path.is_file()
    for one in (path, record_path(path)):
        one.unlink(missing_ok=True)
    remove_leftovers(path)
    return int(there)


def _mixed(expected: Record, recorded: Record | None) -> Record:
    """Record of a folder that holds outputs of `expected` beside others."""
    before = "unknown" if recorded is None else recorded.fingerprint
    return replace(expected, inputs={**expected.inputs, "mixed_with": before})


def _renew_record(
    folder: Path,
    expected: Record,
    lists: Mapping[str, Mapping[str, Any]] | None,
    other: Record | None,
) -> None:
    """Add lists that a folder was made for since, or say that something else made a part of it."""
    recorded = read_lists(folder)
    if other is not None:
        write_record(folder, _mixed(expected, other), lists)
    elif any(recorded.get(name) != entry for name, entry in (lists or {}).items()):
        write_record(folder, expected, {**recorded, **(lists or {})})


def _require_ours(
    what: str,
    expected: Record,
    recorded: Record | None,
    force: bool,
    option: str,
    redo: str | None,
    others: int,
) -> bool:
    """`_require_equal` for the outputs in a folder, some of which may belong to other lists."""
    if recorded is None:
        raise UserError(
            f"{what} have no record of what made them and are left alone; move them away or choose "
            f"another {option}."
        )
    if others:
        redo = f"{redo_with(expected, redo)} once {others} files of other lists are moved away"
    return _require_equal(what, expected, recorded, force, option, redo)


def _require_equal(
    what: str,
    expected: Record,
    recorded: Record | None,
    force: bool,
    option: str,
    redo: str | None,
) -> bool:
    """True when an output is what the arguments would make, False when it is kept by force."""
    unknown = ["there is no record of what made it"] if recorded is None else []
    differences = unknown or expected.differences(recorded)
    if differences and force:
        log(f"--force: {what} is kept although {'; '.join(differences)}.")
    elif differences:
        again = f"Redo it with {redo_with(expected, redo)}, " if recorded is not None else ""
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
