"""Photos in folders as a data set: classes, image labels, ids and links in the devkit's layout.

FOLDER/CLASS/*.jpg, at any depth, gives every picture its class; FOLDER/background holds pictures
without any. A file FOLDER/labels.csv (`id,name[;name]`, the id being a file name or a path below
FOLDER, with or without suffix) takes the place of the folder names. FOLDER is only ever read: the
data set is a folder of links, remade at every start, in which ids stay what they were.
"""

import csv
import io
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from misc.checks import require_no_problems
from misc.errors import UserError
from misc.files import atomic_path, read_json, write_json
from misc.progress import log
from voc12.devkit import IMAGE_FOLDER, Devkit
from voc12.labels import SEPARATOR
from voc12.lists import some_of
from voc12.photos.files import Found, PhotoFacts, find_pictures, read_facts
from voc12.photos.labels import (
    LABELS_NAME,
    Labels,
    class_problems,
    contradictions,
    find_labels,
    normal,
)

LIST_NAME = "photos"
CLASSES_NAME = "classes.txt"
INDEX_NAME = "photos.json"
_COPY_FOLDER = "smaller"
_VERSION = 1
_MAX_ID_BYTES = 200  # file systems allow 255, and a file in the making has a longer name
_ROOM_FOR_NUMBER = 8
_UNSAFE_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")  # control, not text, ends of lines
_UNSAFE_CHARACTERS = frozenset('\\/:*?"<>|')


class Photo(NamedTuple):
    """A picture of the data set.

    Attributes:
        crc: CRC-32 of the file that is worked on.
        full_size: (h, w) of the user's picture where a smaller copy is worked on, else None.
    """

    crc: int
    full_size: tuple[int, int] | None


class _Index(NamedTuple):
    """What is remembered from one start to the next, by path below the user's folder."""

    files: dict[str, PhotoFacts]
    ids: dict[str, str]


def build(folder: Path, target: Path, long_side: int) -> dict[str, Photo]:
    """Make or update the data set of a folder of photos.

    Args:
        folder: the user's, only read.
        target: becomes a devkit with `classes.txt`, `labels.csv` and a list `photos`.
        long_side: pixels above which a picture is worked on in a smaller copy.

    Returns:
        The pictures by id, in the order of the list.

    Raises:
        UserError: the folder cannot be used; all reasons at once.
    """
    folder, target = Path(folder), Path(target)
    _require_folders(folder, target)
    found = find_pictures(folder)
    labels, problems = find_labels(folder, found)
    index = _read_index(target)
    facts: dict[str, PhotoFacts] = {}
    try:
        copies = target / _COPY_FOLDER
        problems += read_facts(found.pictures, index.files, copies, long_side, facts)
    finally:
        _write_index(target, folder, _Index({**index.files, **facts}, index.ids))
    groups: dict[str, list[str]] = defaultdict(list)
    for relative, fact in facts.items():
        groups[fact.sha256].append(relative)
    classes = sorted({name for names in labels.values() for name in names})
    problems += contradictions(groups.values(), labels)
    problems += class_problems(folder, classes) if labels else []
    require_no_problems(found.problems + problems)
    owners = choose_ids(list(groups.values()), index.ids)
    names = {
        image_id: _union(groups[facts[owner].sha256], labels) for owner, image_id in owners.items()
    }
    _write_devkit(target, classes, names)
    links = {image_id: _link(found, facts, owner, target) for owner, image_id in owners.items()}
    _update_links(target, links)
    _write_index(target, folder, _Index(facts, owners))
    _tell(folder, found, facts, names)
    return {image_id: _photo(facts[owner]) for owner, image_id in owners.items()}


def _require_folders(folder: Path, target: Path) -> None:
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise UserError(f"--photos {folder} {what}; name the folder that holds your class folders.")
    if folder.resolve().is_relative_to(target.resolve()):
        raise UserError(
            f"--photos {folder} lies in {target}, which this program makes; name the folder of "
            "your own photos."
        )
    if target.is_dir() and any(target.iterdir()) and not (target / INDEX_NAME).is_file():
        raise UserError(
            f"{target} exists and is not what --photos makes (it has no {INDEX_NAME}); move it "
            "away or choose another --work_dir."
        )


def _read_index(target: Path) -> _Index:
    """What an earlier start left; nothing where it cannot be understood: it can be made again."""
    try:
        content = read_json(target / INDEX_NAME)
        if content["version"] == _VERSION:
            files = {relative: PhotoFacts(*row) for relative, row in content["files"].items()}
            return _Index(files, dict(content["ids"]))
    except (UserError, KeyError, TypeError, AttributeError, ValueError):
        pass
    return _Index({}, {})


def _write_index(target: Path, folder: Path, index: _Index) -> None:
    content = {"version": _VERSION, "folder": str(folder), **index._asdict()}
    write_json(target / INDEX_NAME, content)


def _union(group: Sequence[str], labels: Labels) -> list[str]:
    """The class names of a picture that may lie in several folders."""
    return sorted({name for relative in group for name in labels[relative]})


def _photo(facts: PhotoFacts) -> Photo:
    return Photo(facts.crc, (facts.height, facts.width) if facts.copy else None)


# ------------------------------------------------------------------------------------------- ids


def choose_ids(groups: Sequence[Sequence[str]], before: Mapping[str, str]) -> dict[str, str]:
    """Give every picture an id that says where it lies: `cat/holidays/1.jpg` is cat_holidays_1.

    Args:
        groups: the paths of every picture, several where it lies in several folders.
        before: ids of earlier, by path; a picture that still lies there keeps its id.

    Returns:
        Ids by the path that gave them, sorted by id. They are distinct whatever the capitals; of
        several that would be equal the later ones get a number.
    """
    owners: dict[str, str] = {}
    fresh = []
    for group in groups:
        owner = next((relative for relative in group if relative in before), None)
        if owner is None:
            fresh.append(group[0])
        else:
            owners[owner] = before[owner]
    taken = {image_id.casefold() for image_id in owners.values()}
    for relative in fresh:
        owners[relative] = image_id = _free_id(_id_of(relative), taken)
        taken.add(image_id.casefold())
    return dict(sorted(owners.items(), key=lambda item: item[1]))


def _free_id(wanted: str, taken: Collection[str]) -> str:
    image_id, number = wanted, 1
    while image_id.casefold() in taken:
        number += 1
        image_id = f"{wanted}-{number}"
    return image_id


def _id_of(relative: str) -> str:
    """A file name from a path, without suffix; what not every disk and list allows is replaced."""
    words = (word.strip(" .") for word in Path(relative).with_suffix("").parts)
    text = "".join(
        "_"
        if char in _UNSAFE_CHARACTERS or unicodedata.category(char) in _UNSAFE_CATEGORIES
        else char
        for char in normal("_".join(words))
    )
    data = text.encode()[: _MAX_ID_BYTES - _ROOM_FOR_NUMBER]
    return data.decode(errors="ignore").strip(" .") or LIST_NAME


# ----------------------------------------------------------------------------------------- files


def _write_devkit(target: Path, classes: Iterable[str], names: Mapping[str, Sequence[str]]) -> None:
    """Write the class names, the image labels and the list."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([("id", "names"), *((i, SEPARATOR.join(names[i])) for i in names)])
    _write_text(target / LABELS_NAME, table.getvalue())
    _write_text(target / CLASSES_NAME, "".join(f"{name}\n" for name in classes))
    _write_text(Devkit(target).list_path(LIST_NAME), "".join(f"{i}\n" for i in names))


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _link(
    found: Found, facts: Mapping[str, PhotoFacts], owner: str, target: Path
) -> tuple[str, Path]:
    """Suffix of a picture's link, and the file that it leads to."""
    if facts[owner].copy:
        copy = target / _COPY_FOLDER / facts[owner].copy
        return copy.suffix, copy.absolute()
    path = found.pictures[owner].absolute()
    return path.suffix.lower(), path


def _update_links(target: Path, links: Mapping[str, tuple[str, Path]]) -> None:
    """Let the pictures' folder hold these links and no others, and drop copies without link."""
    folder = target / IMAGE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {f"{image_id}{suffix}": path for image_id, (suffix, path) in links.items()}
    for link in list(folder.iterdir()):
        if link.is_symlink() and link.readlink() != wanted.get(link.name):
            link.unlink()
    there = {link.name for link in folder.iterdir()}
    for name, path in wanted.items():
        if name not in there:
            _make_link(folder / name, path)
    copies = {path.name for _, path in links.values()}
    for copy in (target / _COPY_FOLDER).glob("*"):
        if copy.name not in copies:
            copy.unlink()


def _make_link(link: Path, path: Path) -> None:
    try:
        link.symlink_to(path)
    except (OSError, NotImplementedError) as error:
        raise UserError(
            f"{link} cannot be made a link ({error}); choose a --work_dir on a disk that has "
            "symbolic links."
        ) from None


# ---------------------------------------------------------------------------------------- words


def _tell(
    folder: Path, found: Found, facts: Mapping[str, PhotoFacts], names: Mapping[str, Sequence[str]]
) -> None:
    """Say what was found, and what may surprise."""
    counts = Counter(name for image_id in names for name in names[image_id])
    shown = [f"{name} {counts[name]}" for name in sorted(counts)]
    background = sum(not names[image_id] for image_id in names)
    shown += [f"no class {background}"] if background else []
    log(f"{folder}: {len(names)} pictures: {', '.join(shown)}.")
    if copies := len(facts) - len(names):
        log(f"{copies} files are copies of others; a picture has the classes of all its folders.")
    if smaller := sum(bool(fact.copy) for fact in facts.values()):
        log(f"{smaller} photos are worked on in smaller copies (--photos_long_side).")
    if rotated := sum(not fact.upright for fact in facts.values()):
        log(f"{rotated} photos are stored rotated (EXIF), and so are their masks.")
    if skipped := [relative for relative in found.skipped if relative != LABELS_NAME]:
        log(f"not pictures, skipped: {_kinds(skipped)}.")
    if len(counts) == 1 and not background:
        log(
            "one class and nothing else: the networks have nothing to tell it from, so expect poor "
            f"masks; pictures without it in {folder}/background help."
        )


def _kinds(skipped: Sequence[str]) -> str:
    kinds = Counter(Path(relative).suffix.lower() or "without suffix" for relative in skipped)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return f"{counted} ({some_of(tuple(skipped))})"
