"""Writes what a COCO data set says in the layout of `voc12.devkit`.

Nothing is written before everything has been read and found usable, and nothing that this command
did not write itself is replaced.
"""

import csv
import hashlib
import io
import os
import shlex
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from misc.errors import UserError
from misc.files import atomic_path, sha256_file
from misc.outputs import remove_outputs
from misc.parallel import map_pictures
from misc.progress import log, progress, set_log_file
from misc.provenance import Record, read_facts, read_record, write_record
from voc12.coco import SPLITS
from voc12.coco.index import AnnotationIndex, read_index
from voc12.coco.masks import RULES, MaskJob, Tally, make_masks, require_pycocotools
from voc12.devkit import IMAGE_FOLDER, LIST_FOLDER, MASK_FOLDER
from voc12.labels import SEPARATOR
from voc12.lists import IdList, some_of
from voc12.source import NO_LIST

STEP = "voc12.coco"
CLASSES_FILE, CATEGORIES_FILE, LABELS_FILE = "classes.txt", "categories.csv", "labels.csv"
LOG_FILE = "coco.log"
PICTURES_PER_JOB = 64
MAX_SHOWN = 20
_UNANNOTATED, _MISSING = "unannotated", "missing"


class Split(NamedTuple):
    """A part of the data set.

    Attributes:
        name: such as `train2014`.
        index: its annotations.
        sha256: of the annotation file.
        folders: for each picture of the index where its file lies; None where it is not there.
    """

    name: str
    index: AnnotationIndex
    sha256: str
    folders: tuple[Path | None, ...]

    def rows(self) -> Iterator[int]:
        """Numbers of the pictures that are there."""
        return (row for row, folder in enumerate(self.folders) if folder is not None)

    def ids(self, annotated: bool) -> tuple[str, ...]:
        """The pictures that are there with, or without, any annotation."""
        return tuple(
            self.index.pictures[row].image_id
            for row in self.rows()
            if self.index.is_annotated(row) == annotated
        )

    def missing(self) -> tuple[str, ...]:
        """The pictures that are not there."""
        pairs = zip(self.index.pictures, self.folders, strict=True)
        return tuple(picture.image_id for picture, folder in pairs if folder is None)


def convert(
    root: Path,
    output: Path,
    splits: Sequence[str],
    *,
    num_workers: int = 0,
    skip_missing: bool = False,
) -> None:
    """Write lists, classes, image labels, links to the pictures, and index masks.

    Args:
        root: folder with `annotations/instances_SPLIT.json` and `SPLIT/*.jpg`.
        output: the devkit to write; may be `root`.
        splits: names of the parts.
        num_workers: processes that draw masks.
        skip_missing: leave out pictures that are not there.

    Raises:
        UserError: something is missing or unusable, or in the way, and nothing was written; or
            annotations cannot be understood, and only their pictures have no mask.
    """
    require_pycocotools()
    _require_splits(root, splits)
    parts = [_read_split(root, output, name) for name in splits]
    _require_one_data_set(parts)
    _require_pictures(root, parts, skip_missing)
    record, texts = _record(parts), _texts(parts)
    _require_ours(output, record, texts)
    set_log_file(output / LOG_FILE)
    _link_pictures(output, parts)
    for name, text in texts.items():
        _write_text(output / name, text)
    _remove_outdated(output, parts, record)
    _write_record(output, parts, record, texts)
    _tell(output, parts)
    _draw(output, parts, num_workers)
    log(f"next: {_next_command(output, splits)}")


# ---------------------------------------------------------------------------------------- reading


def _require_splits(root: Path, splits: Sequence[str]) -> None:
    """Name all missing annotation files before any is read."""
    twice = [name for name, count in Counter(splits).items() if count > 1]
    if twice:
        raise UserError(f"--splits names {some_of(twice)} more than once; name each once.")
    missing = [name for name in splits if not _annotation_path(root, name).is_file()]
    if missing:
        paths = ", ".join(str(_annotation_path(root, name)) for name in missing)
        inner = sorted(root.glob("*/annotations/instances_*.json"))
        hint = f"; did you mean {inner[0].parent.parent}?" if inner else ""
        raise UserError(
            f"{paths} is not there; unpack COCO's annotations_trainval2014.zip into {root}, or "
            f"name other parts with --splits{hint or '.'}"
        )


def _annotation_path(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def _read_split(root: Path, output: Path, name: str) -> Split:
    path = _annotation_path(root, name)
    index = read_index(path)
    candidates = (root / name, output / IMAGE_FOLDER)
    folders = tuple(
        next((folder for folder in candidates if (folder / picture.file_name).is_file()), None)
        for picture in progress(index.pictures, f"looking for the pictures of {name}")
    )
    return Split(name, index, sha256_file(path), folders)


def _require_one_data_set(parts: Sequence[Split]) -> None:
    """All parts must have the same classes, and no picture may be in two of them."""
    first = parts[0]
    for part in parts[1:]:
        if part.index.categories != first.index.categories:
            differing = dict(part.index.categories.items() ^ first.index.categories.items())
            number = min(differing)
            raise UserError(
                f"{part.index.path} and {first.index.path} name different categories (first "
                f"difference: id {number} is {part.index.categories.get(number)!r} and "
                f"{first.index.categories.get(number)!r}); use files of one data set."
            )
    ids = Counter(picture.image_id for part in parts for picture in part.index.pictures)
    shared = [image_id for image_id, count in ids.items() if count > 1]
    if shared:
        raise UserError(
            f"the pictures {some_of(shared)} are in more than one of {', '.join(_names(parts))}; "
            "give them names of their own, or name one part with --splits."
        )


def _names(parts: Sequence[Split]) -> list[str]:
    return [part.name for part in parts]


def _require_pictures(root: Path, parts: Sequence[Split], skip_missing: bool) -> None:
    for part in parts:
        missing, total = part.missing(), len(part.folders)
        if len(missing) == total or (missing and not skip_missing):
            rest = "" if len(missing) == total else ", or leave them out with --skip_missing"
            raise UserError(
                f"{len(missing)} of {total} pictures of {part.index.path} are not in "
                f"{root / part.name}: {some_of(missing)}; unpack {part.name}.zip into "
                f"{root}{rest}."
            )


# ---------------------------------------------------------------------------------------- writing


def _texts(parts: Sequence[Split]) -> dict[str, str]:
    """Content of every text file by its path in the output folder."""
    texts = {
        CLASSES_FILE: _lines(parts[0].index.categories.values()),
        CATEGORIES_FILE: _categories(parts),
        LABELS_FILE: _csv(("id", "names"), _label_rows(parts)),
    }
    for part in parts:
        lists = {part.name: part.ids(annotated=True)}
        lists[f"{part.name}_{_UNANNOTATED}"] = part.ids(annotated=False)
        if missing := part.missing():
            lists[f"{part.name}_{_MISSING}"] = missing
        texts |= {f"{LIST_FOLDER}/{name}.txt": _lines(ids) for name, ids in lists.items()}
    return texts


def _lines(words: Iterator[str] | Sequence[str]) -> str:
    return "".join(f"{word}\n" for word in words)


def _csv(header: Sequence[str], rows: Iterator[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _label_rows(parts: Sequence[Split]) -> Iterator[tuple[str, str]]:
    for part in parts:
        for row in part.rows():
            names = part.index.names_of(row)
            yield part.index.pictures[row].image_id, SEPARATOR.join(names)


def _categories(parts: Sequence[Split]) -> str:
    """What each label of a mask means, and how often it occurs."""
    objects: Counter[int] = Counter()
    for part in parts:
        objects.update(part.index.category.tolist())
    rows = (
        (label, name, number, objects[number])
        for label, (number, name) in enumerate(parts[0].index.categories.items(), start=1)
    )
    return _csv(("label", "name", "category_id", "objects"), rows)


def _record(parts: Sequence[Split]) -> Record:
    """What decides the masks."""
    names = list(parts[0].index.categories.values())
    arguments = {"class_names": names, "rules": RULES}
    return Record(STEP, arguments, {part.name: part.sha256 for part in parts})


def _require_ours(output: Path, record: Record, texts: Mapping[str, str]) -> None:
    """Refuse to replace what this command has not written, and to forget parts that it has."""
    masks = output / MASK_FOLDER
    recorded = read_record(masks) if masks.is_dir() else None
    if masks.is_dir() and (recorded is None or recorded.step != STEP):
        if (found := next(masks.rglob("*.png"), None)) is not None:
            raise UserError(
                f"{found} was not made by this command; move {masks} away or choose another "
                "--output."
            )
        recorded = None
    forgotten = sorted(set(recorded.inputs) - set(record.inputs)) if recorded else []
    if forgotten:
        raise UserError(
            f"{output} was also made from {', '.join(forgotten)}; name all parts with --splits, or "
            "choose another --output."
        )
    written = read_facts(masks).get("files", {}) if recorded else {}
    for name, text in texts.items():
        path = output / name
        known = written.get(name), _sha256(text)
        if path.exists() and not (path.is_file() and sha256_file(path) in known):
            raise UserError(
                f"{path} is not as this command writes it; move it away or choose another --output."
            )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode())


def _remove_outdated(output: Path, parts: Sequence[Split], record: Record) -> None:
    """Remove masks of parts whose annotation file, or whose rules, have changed."""
    folder = output / MASK_FOLDER
    recorded = read_record(folder) if folder.is_dir() else None
    if recorded is None or recorded.step != STEP:
        return
    same_rules = recorded.content()["arguments"] == record.content()["arguments"]
    for part in parts:
        if same_rules and recorded.inputs.get(part.name) == part.sha256:
            continue
        count = remove_outputs(folder, ".png", [p.image_id for p in part.index.pictures])
        if count:
            what = part.index.path.name if same_rules else "how masks are made"
            log(f"{what} has changed: {count} masks of {part.name} are made again.")


def _write_record(
    output: Path, parts: Sequence[Split], record: Record, texts: Mapping[str, str]
) -> None:
    lists = {part.name: IdList(part.name, part.ids(annotated=True), "") for part in parts}
    (output / MASK_FOLDER).mkdir(parents=True, exist_ok=True)
    write_record(
        output / MASK_FOLDER,
        record,
        {name: {"sha256": one.sha256, "count": len(one)} for name, one in lists.items()},
        {"files": {name: _sha256(text) for name, text in texts.items()}},
    )


# ------------------------------------------------------------------------------------------ links


def _link_pictures(output: Path, parts: Sequence[Split]) -> None:
    """Make every picture appear in JPEGImages without copying it."""
    folder = (output / IMAGE_FOLDER).resolve()
    for part in parts:
        real = {place: place.resolve() for place in set(part.folders) if place is not None}
        for row in progress(list(part.rows()), f"linking the pictures of {part.name}"):
            name = part.index.pictures[row].file_name
            link_picture(real[part.folders[row]] / name, folder / name)


def link_picture(source: Path, link: Path) -> None:
    """Let `link` lead to `source`: by a relative symbolic link, else by a hard link.

    A file that is already there under that name is kept; a link to something else is replaced.

    Args:
        source: absolute path of a file.
        link: absolute path.

    Raises:
        UserError: the file system has neither kind of link.
    """
    target = os.path.relpath(source, link.parent)
    is_link = link.is_symlink()
    if link == source or (is_link and str(link.readlink()) == target):
        return
    if link.exists() and not is_link:
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".tmp-{uuid.uuid4().hex}-{link.name}")
    try:
        _make_link(source, target, temporary)
        temporary.replace(link)
    except OSError as error:
        raise UserError(
            f"{link.parent} cannot hold links to pictures ({error.strerror}); choose an --output "
            f"on another disk, or move the pictures from {source.parent} to {link.parent}."
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _make_link(source: Path, target: str, link: Path) -> None:
    try:
        link.symlink_to(target)
    except OSError:  # not allowed, or not known to the file system
        link.hardlink_to(source)


# ------------------------------------------------------------------------------------------ masks


def _draw(output: Path, parts: Sequence[Split], num_workers: int) -> None:
    problems: list[str] = []
    for part in parts:
        jobs = list(_jobs(output / MASK_FOLDER, part))
        title = f"masks of {part.name}, {PICTURES_PER_JOB} pictures at a time"
        drawn = Tally.total(map_pictures(make_masks, jobs, num_workers, title))
        kept = sum(1 for _ in part.rows()) - drawn.pictures - len(drawn.problems)
        log(
            f"{part.name}: {drawn.pictures} masks drawn in {output / MASK_FOLDER}, {kept} were "
            f"there; {drawn.objects} annotations in the new ones, of which {drawn.crowds} are "
            f"crowds (255) and {drawn.invisible} have no pixel in the picture (they are image "
            "labels all the same)."
        )
        problems += [f"unusable annotation: {part.index.path}: {one}" for one in drawn.problems]
    if problems:
        shown = "\n  ".join(problems[:MAX_SHOWN])
        raise UserError(f"{len(problems)} pictures have no mask:\n  {shown}")


def _jobs(folder: Path, part: Split) -> Iterator[MaskJob]:
    index, rows = part.index, list(part.rows())
    labels = {number: label for label, number in enumerate(index.categories, start=1)}
    for start in range(0, len(rows), PICTURES_PER_JOB):
        chosen = rows[start : start + PICTURES_PER_JOB]
        yield MaskJob(
            index.path,
            folder,
            labels,
            [index.pictures[row] for row in chosen],
            [index.spans[index.first[row] : index.first[row + 1]] for row in chosen],
        )


def _tell(output: Path, parts: Sequence[Split]) -> None:
    """Say what the labels mean and what became of every picture."""
    categories = list(parts[0].index.categories.items())
    shown = ", ".join(
        f"{label} {categories[label - 1][1]} (category {categories[label - 1][0]})"
        for label in _telling_labels([number for number, _ in categories])
    )
    log(
        f"{len(categories)} classes in {output / CLASSES_FILE}; labels of masks are contiguous, "
        f"not COCO's category ids: {shown}; all of them in {CATEGORIES_FILE}."
    )
    for part in parts:
        _tell_of_pictures(part)


def _tell_of_pictures(part: Split) -> None:
    without, missing = part.ids(annotated=False), part.missing()
    log(
        f"list {part.name}: {len(part.ids(annotated=True))} pictures; {len(without)} without any "
        f"annotation are left out ({part.name}_{_UNANNOTATED}.txt names them; they have no class "
        f"in {LABELS_FILE} and masks of background)."
    )
    if missing:
        log(
            f"list {part.name}: {len(missing)} pictures that are not there are left out, too "
            f"({part.name}_{_MISSING}.txt names them); results do not compare with published ones."
        )
    if part.index.orphans:
        log(
            f"{part.index.path.name}: {part.index.orphans} annotations are of pictures that the "
            "file does not name; they are left out."
        )


def _next_command(output: Path, splits: Sequence[str]) -> str:
    """The run that these lists are for; the first one is trained on, the second validated."""
    words = ["python", "run_sample.py", "--preset", "coco", "--voc12_root", str(output)]
    if tuple(splits) != SPLITS:
        first, second = (*splits, NO_LIST)[:2]
        words += ["--train_list", first, "--val_list", second]
        words += ["--infer_list", first, "--eval_list", first]
    return shlex.join(words)


def _telling_labels(numbers: Sequence[int]) -> list[int]:
    """First and last label, and the first one that differs from its category id."""
    differing = [label for label, number in enumerate(numbers, start=1) if label != number]
    return sorted({1, *differing[:1], len(numbers)})
