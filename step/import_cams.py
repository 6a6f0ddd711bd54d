"""Instead of steps 1 and 2: take over the class activation maps that another method made.

Reads SRC (see `step.exchange.cam_layouts` for what it may hold) and writes `result/cam/ID.npz` as
`make_cam` does, so that `run_sample.py --from_step eval_cam` goes on from there:

python -m step.import_cams SRC --voc12_root VOCdevkit/VOC2012
"""

import argparse
import hashlib
import os
import sys
import warnings
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from misc.arguments import HelpFormatter, non_negative_int
from misc.entry import run_entry
from misc.errors import UserError
from misc.maps_io import opened_image, save_cam
from misc.outputs import prepare_output
from misc.parallel import map_pictures
from misc.progress import log, progress
from misc.provenance import Record, read_facts, read_record, write_record
from step.cam_origins import cam_origins
from step.exchange.cam_layouts import AUTO, BACKGROUNDS
from step.exchange.cam_sources import (
    SUFFIXES,
    PictureSource,
    find_files,
    format_of,
    require_agreement,
)
from step.exchange.seed_maps import MAXIMUM, NORMALISATIONS, Mended, seed_maps
from step.options import Options
from step.plan import IMPORT_STEP
from voc12.devkit import IMAGE_FOLDER, Devkit
from voc12.lists import some_of
from voc12.source import DataSource, open_source

STEP = IMPORT_STEP
SUFFIX = ".npz"
_DESCRIPTION = "Take over class activation maps of another method, for the steps from eval_cam on."


class Settings(NamedTuple):
    """What an import does with the maps of every picture; see `build_parser`."""

    devkit: Devkit
    classes: tuple[str, ...]
    out_dir: Path
    background: str
    normalise: str
    stretch: bool


class Imported(NamedTuple):
    """What there is to say about a picture.

    Attributes:
        image_id: of the picture.
        mended: see `step.exchange.seed_maps.Mended`.
        agrees: whether the classes of the maps are those of the image labels, as far as known.
    """

    image_id: str
    mended: Mended
    agrees: bool


def build_parser() -> argparse.ArgumentParser:
    """The parser; options that `run_sample.py` has as well mean the same here."""
    parser = argparse.ArgumentParser(
        prog="python -m step.import_cams",
        description=_DESCRIPTION,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("source", type=Path, metavar="SRC", help="folder with the maps of the other method")
    add("--voc12_root", type=Path, required=True, help="devkit folder with JPEGImages")
    add(
        "--format",
        default=AUTO,
        choices=(AUTO, *SUFFIXES),
        help="irn: ID.npy, dictionaries or arrays; npz: ID.npz; png: gray ID_CLASS.png or "
        "ID/CLASS.png, CLASS a number from 0 or a name; auto: what there is",
    )
    add(
        "--background",
        default=AUTO,
        choices=BACKGROUNDS,
        help="first: class 0 and its map are the background; none: class 0 is the first class; "
        "auto: as the layout tells, else none",
    )
    add(
        "--normalise",
        default=MAXIMUM,
        choices=NORMALISATIONS,
        help="max: every map by its maximum, as make_cam does; none: values in 0..1 as they are",
    )
    add("--stretch", action="store_true", help="accept maps of another aspect than the picture's")
    add("--prefix", default="", help="put before the ids of SRC, such as COCO_train2014_")
    add("--list", nargs="+", help="import these lists only (names or files)")
    add("--classes", type=Path, help="own class names, one per line (default: VOC's 20)")
    add("--cls_labels", type=Path, help="image labels instead of XML, see run_sample.py")
    add("--work_dir", type=Path, default=Path(), help="folder of everything that is written")
    add("--cam_out_dir", type=Path, default=Path("result/cam"), help="target, in --work_dir")
    add(
        "--num_workers", type=non_negative_int, default=(os.cpu_count() or 2) // 2, help="processes"
    )
    add("--overwrite", action="store_true", help="import again what is already there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Import the maps; returns the exit status."""
    return run_entry(STEP, lambda: run(build_parser().parse_args(argv)))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write the CAM of every picture that has maps in `args.source`.

    Returns:
        `pictures`, and `made`, the number of those that were not there already.

    Raises:
        UserError: the maps or options do not fit, or the target holds something else.
    """
    warnings.showwarning = lambda message, *_: log(f"warning: {message}")
    _settle(args)
    source = open_source(
        args.voc12_root, args.classes, args.cls_labels, args.work_dir / Options.cache_dir
    )
    sources = _find_sources(args, source)
    require_agreement(sources, source.classes, args.background)
    checksums = {
        one.image_id: one.checksum() for one in progress(sources, f"reading {args.source}")
    }
    _prepare(args, source.classes, checksums)
    left = _left(args, sources, source)
    settings = Settings(
        source.devkit,
        source.classes,
        args.cam_out_dir,
        args.background,
        args.normalise,
        args.stretch,
    )
    log(f"{STEP}: {len(left)} of {len(sources)} pictures")
    _tell(map_pictures(partial(import_picture, settings), left, args.num_workers, STEP))
    log(
        f"the maps are in {args.cam_out_dir}; go on with run_sample.py --from_step eval_cam and "
        f"--train_list and --infer_list {args.list}"
    )
    return {"pictures": len(sources), "made": len(left)}


def _settle(args: argparse.Namespace) -> None:
    """Make paths absolute and refuse folders that cannot be meant."""
    args.work_dir = args.work_dir.expanduser().resolve()
    args.cam_out_dir = args.work_dir / args.cam_out_dir.expanduser()
    args.source = args.source.expanduser().resolve()
    if not args.source.is_dir():
        raise UserError(f"{args.source} is no folder; name the one with the maps.")
    target = args.cam_out_dir.resolve()
    if target == args.source or target in args.source.parents or args.source in target.parents:
        raise UserError(
            f"--cam_out_dir {target} and {args.source} lie in each other; choose another folder."
        )
    if not (args.voc12_root / IMAGE_FOLDER).is_dir():
        raise UserError(
            f"{args.voc12_root} (--voc12_root) has no folder {IMAGE_FOLDER}; name the folder that "
            "holds it."
        )


def _find_sources(args: argparse.Namespace, source: DataSource) -> list[PictureSource]:
    """The pictures to import, with their files and image labels."""
    kind = format_of(args.source) if args.format == AUTO else args.format
    files, lost = find_files(
        args.source, SUFFIXES[kind], source.devkit, source.classes, args.prefix
    )
    if lost:
        names = [str(path.relative_to(args.source)) for path in lost]
        log(f"{len(lost)} files belong to no picture of {source.devkit.root}: {some_of(names)}.")
    if not files:
        raise UserError(
            f"{args.source} holds no {SUFFIXES[kind]} file of a picture of {source.devkit.root}; "
            "files are named by the pictures (--prefix adds to their names)."
        )
    listed = source.ids_of(*args.list) if args.list else tuple(files)
    labels = _known_labels(source, listed)
    sources = [PictureSource(i, files.get(i, {}), labels.get(i)) for i in listed]
    missing = [one.image_id for one in sources if not one.is_known()]
    if missing:
        log(f"{len(missing)} of {len(listed)} listed pictures have no maps: {some_of(missing)}.")
    return [one for one in sources if one.is_known()]


def _known_labels(source: DataSource, ids: Sequence[str]) -> Mapping[str, np.ndarray]:
    try:
        return source.image_labels(ids)
    except UserError as error:
        if source.cls_labels is not None:
            raise
        log(f"the classes of the maps are not compared with image labels: {error}")
        return {}


def _prepare(
    args: argparse.Namespace, classes: Sequence[str], checksums: Mapping[str, int]
) -> None:
    """Make the target ready; maps whose files changed since they were imported are removed.

    Raises:
        UserError: the target holds something else, or comes from another folder.
    """
    folder, facts = args.cam_out_dir, _recorded_facts(args.cam_out_dir)
    before = facts.get("sources", {}) if facts.get("folder") == str(args.source) else {}
    kept = {i: crc for i, crc in before.items() if (folder / f"{i}{SUFFIX}").is_file()}
    settings = {name: getattr(args, name) for name in ("background", "normalise", "stretch")}
    hashes = {"source": _hash({**kept, **checksums})}
    expected = Record(STEP, {**settings, "class_names": classes}, hashes)
    new_facts = {"folder": str(args.source), "sources": {**kept, **checksums}}
    if before and _only_the_source_differs(expected, folder) and not args.overwrite:
        changed = [i for i, crc in checksums.items() if kept.get(i, crc) != crc]
        if changed:
            log(f"{len(changed)} pictures have other maps since they were imported: redone.")
        for image_id in changed:
            (folder / f"{image_id}{SUFFIX}").unlink()
        write_record(folder, expected, facts=new_facts)
    prepare_output(
        folder,
        expected,
        SUFFIX,
        checksums.keys(),
        overwrite=args.overwrite,
        option="--cam_out_dir",
        redo="--overwrite",
    )
    write_record(folder, expected, facts=new_facts)


def _recorded_facts(folder: Path) -> Mapping[str, Any]:
    recorded = read_record(folder) if folder.is_dir() else None
    return read_facts(folder) if recorded is not None and recorded.step == STEP else {}


def _only_the_source_differs(expected: Record, folder: Path) -> bool:
    recorded = read_record(folder)
    same = recorded is not None and recorded.inputs.keys() == expected.inputs.keys()
    return same and recorded.content()["arguments"] == expected.content()["arguments"]


def _hash(checksums: Mapping[str, int]) -> str:
    text = "".join(f"{image_id}\t{crc}\n" for image_id, crc in sorted(checksums.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _target(folder: Path, one: PictureSource) -> Path:
    return folder / f"{one.image_id}{SUFFIX}"


def _left(
    args: argparse.Namespace, sources: Sequence[PictureSource], source: DataSource
) -> list[PictureSource]:
    """Those whose maps are not there, or are of another picture than now."""
    paths = {one.image_id: _target(args.cam_out_dir, one) for one in sources}
    hashes = source.picture_hashes([i for i, path in paths.items() if path.is_file()])
    with cam_origins(source.cache_dir, args.cam_out_dir) as origins:
        done = {i for i, crc in hashes.items() if origins.of(paths[i]).picture == crc}
    return [one for one in sources if one.image_id not in done]


def import_picture(settings: Settings, one: PictureSource) -> Imported:
    """Write the CAM of a picture.

    Raises:
        UserError: its maps are unusable.
    """
    picture = settings.devkit.image_path(one.image_id)
    with opened_image(picture) as image:
        width, height = image.size
    stored = one.read(settings.classes, settings.background)
    where = one.where if one.files else picture
    cam, high_res, mended = seed_maps(
        stored, (height, width), settings.normalise, settings.stretch, where
    )
    crc = zlib.crc32(picture.read_bytes())
    save_cam(_target(settings.out_dir, one), stored.keys, cam, high_res, picture=crc)
    agrees = one.label is None or set(stored.keys) == set(np.flatnonzero(one.label))
    return Imported(one.image_id, mended, agrees)


def _tell(imported: Sequence[Imported]) -> None:
    """Count what was mended, and the pictures whose labels say something else."""
    negative = [one for one in imported if one.mended.lowest < 0]
    if negative:
        lowest = min(one.mended.lowest for one in negative)
        log(f"negative values became 0 in {len(negative)} pictures (down to {lowest:.3g}).")
    undefined = [one.image_id for one in imported if one.mended.undefined]
    if undefined:
        log(f"maps that are NaN everywhere became 0 in {some_of(undefined)}.")
    other = [one.image_id for one in imported if not one.agrees]
    if other:
        log(
            f"{len(other)} of {len(imported)} pictures have maps of other classes than their image "
            f"labels, and keep them: {some_of(other)}."
        )


if __name__ == "__main__":
    sys.exit(main())
