"""Write the CAMs of this pipeline as other methods store theirs, for their tools.

Reads `result/cam` and writes into DST, by `--format`:

- irn: `ID.npy`, the dictionary of IRN: keys (K,) and cam (K, ceil(h/4), ceil(w/4)) as tensors,
  high_res (K, h, w) as an array, float32
- npz: `ID.npz` with the arrays keys, cam, high_res, which `numpy.load` reads without a pickle
- png: gray `ID_CLASS.png` for each class (from 0), 255 is a score of 1, as L2G writes them

python -m step.export_cams DST --work_dir DIR
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from misc.arguments import HelpFormatter, non_negative_int
from misc.entry import run_entry
from misc.errors import UserError
from misc.files import atomic_path, up_to_date
from misc.maps_io import CamMaps, load_cam, load_cam_origin, save_cam
from misc.outputs import prepare_output
from misc.parallel import map_pictures
from misc.progress import log, progress
from misc.provenance import Record, read_record
from step.exchange.cam_sources import SUFFIXES

STEP = "export_cams"
_SUFFIX = ".npz"
_WHITE = 255


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(
        prog="python -m step.export_cams",
        description="Write class activation maps as other methods store theirs.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("target", type=Path, metavar="DST", help="folder to write into")
    add("--format", default="irn", choices=tuple(SUFFIXES), help="ID.npy, ID.npz or ID_CLASS.png")
    add("--work_dir", type=Path, default=Path(), help="folder of the run")
    add("--cam_out_dir", type=Path, default=Path("result/cam"), help="its CAMs, in --work_dir")
    add(
        "--num_workers", type=non_negative_int, default=(os.cpu_count() or 2) // 2, help="processes"
    )
    add("--overwrite", action="store_true", help="write again what is already there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Export the maps; returns the exit status."""
    return run_entry(STEP, lambda: run(build_parser().parse_args(argv)))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write the files of every picture that has a CAM.

    Returns:
        `pictures`, and `made`, the number of those that were not there already.

    Raises:
        UserError: there are no CAMs, or the target holds something else.
    """
    folder = args.work_dir.expanduser().resolve() / args.cam_out_dir.expanduser()
    target = args.target.expanduser().resolve()
    cams = {path.relative_to(folder).with_suffix("").as_posix(): path for path in _cams(folder)}
    if not cams:
        raise UserError(f"{folder} holds no CAM (ID{_SUFFIX}); run make_cam or import_cams first.")
    if folder.resolve() in (target, *target.parents):
        raise UserError(f"{target} lies in {folder}, which holds the CAMs; choose another folder.")
    names = {i: _names(i, path, args.format) for i, path in progress(cams.items(), "reading keys")}
    prepare_output(
        target,
        _record(args.format, folder),
        SUFFIXES[args.format],
        [name for of_one in names.values() for name in of_one],
        overwrite=args.overwrite,
        option="DST",
        redo="--overwrite",
    )
    left = [
        (path, target / i) for i, path in cams.items() if not _done(path, target, names[i], args)
    ]
    log(f"{STEP}: {len(left)} of {len(cams)} pictures")
    map_pictures(partial(export_picture, args.format), left, args.num_workers, STEP)
    log(f"the maps are in {target}")
    return {"pictures": len(cams), "made": len(left)}


def _cams(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob(f"*{_SUFFIX}") if path.name[:5] != ".tmp-")


def _names(image_id: str, path: Path, kind: str) -> list[str]:
    """Names of the files of a picture, without suffix."""
    if kind != "png":
        return [image_id]
    return [f"{image_id}_{key}" for key in load_cam_origin(path)[0]]


def _record(kind: str, folder: Path) -> Record:
    recorded = read_record(folder)
    return Record(STEP, {"format": kind}, {"cam": recorded.fingerprint if recorded else "unknown"})


def _done(path: Path, target: Path, names: Sequence[str], args: argparse.Namespace) -> bool:
    return all(up_to_date(target / f"{name}{SUFFIXES[args.format]}", path) for name in names)


def export_picture(kind: str, work: tuple[Path, Path]) -> None:
    """Write the files of one picture.

    Args:
        kind: the format.
        work: the CAM, and the target without suffix.
    """
    path, target = work
    _WRITERS[kind](load_cam(path), target)


def _write_irn(maps: CamMaps, target: Path) -> None:
    content = {
        "keys": torch.from_numpy(maps.keys),
        "cam": torch.from_numpy(maps.cam),
        "high_res": maps.high_res,
    }
    with atomic_path(_with_suffix(target, "irn")) as temporary, temporary.open("wb") as stream:
        # A pickle, because IRN reads nothing else; it is only ever written here.
        np.lib.format.write_array(stream, np.array(content, dtype=object))


def _write_npz(maps: CamMaps, target: Path) -> None:
    save_cam(_with_suffix(target, "npz"), *maps)


def _write_pngs(maps: CamMaps, target: Path) -> None:
    for key, scores in zip(maps.keys, maps.high_res, strict=True):
        gray = np.round(scores * _WHITE).astype(np.uint8)
        with atomic_path(_with_suffix(target, "png", f"_{key}")) as temporary:
            Image.fromarray(gray).save(temporary)


def _with_suffix(target: Path, kind: str, ending: str = "") -> Path:
    """Ids may have dots, so `Path.with_suffix` will not do."""
    return target.with_name(f"{target.name}{ending}{SUFFIXES[kind]}")


_WRITERS: dict[str, Callable[[CamMaps, Path], None]] = {
    "irn": _write_irn,
    "npz": _write_npz,
    "png": _write_pngs,
}


if __name__ == "__main__":
    sys.exit(main())
