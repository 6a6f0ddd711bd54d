"""Draw `result/figure.png`: what every stage made of a few pictures, side by side.

Reads photos and masks of the devkit and whatever is there of `result/cam`, `result/ir_label`,
`result/edge`, `result/sem_seg` and `result/ins_seg`. Run at the end of `run_sample.py`, which adds
the maps of the single branches, or alone: `python -m step.make_figure --voc12_root ROOT`.
"""

import argparse
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from misc.arguments import positive_int
from misc.entry import run_entry
from misc.errors import UserError
from misc.files import sha256_file, up_to_date
from misc.maps_io import load_cam, load_cam_origin, load_instances, read_image, read_label
from misc.progress import log, progress
from misc.provenance import Record, read_record, seal_record, write_record
from misc.visualize import (
    FigureRow,
    colour_instances,
    colour_label,
    edge_picture,
    heat_map,
    save_figure,
    spread,
)
from step.run import Run, finished_run
from voc12.devkit import Devkit
from voc12.labels import load_classes
from voc12.source import DataSource

PHOTO, TRUTH, CAM, IR_LABEL = "photo", "ground truth", "CAM", "IR label"
BRANCHES = {"cnn": "CNN", "transformer": "transformer"}
EDGE, MASK, INSTANCES = "edge map", "pseudo mask", "instances"
COLUMNS = (PHOTO, TRUTH, *BRANCHES.values(), CAM, IR_LABEL, EDGE, MASK, INSTANCES)
_FUSED = {
    "transformer": "CRT: maps x attention",
    "cnn": "CAM: CNN alone",
    "mean": "CAM: mean of both",
    "max": "CAM: greater of both",
}
_FIGURE_NAME = "figure.png"
_UNKNOWN = 0  # hash of the picture in a CAM file that names none


def run(run: Run) -> dict[str, Any]:
    """Draw `--figure_num` pictures of the inference list, spread evenly over it.

    The maps of the branches that this run has trained are made for it, see `step.branch_maps`; a
    figure that shows the same already is kept.

    Returns:
        `figure`, the path as text, or None when there is nothing to draw yet.
    """
    from step.branch_maps import known_branches  # loads timm, which nothing else here needs

    target, branches = run.options.result_dir / _FIGURE_NAME, known_branches(run)
    record = _record(run, branches)
    recorded = read_record(target) if target.is_file() else None
    if recorded is not None and recorded.fingerprint == record.fingerprint:
        log(f"{target} shows these outputs already.")
        return {"figure": str(target)}
    result = make_figure(run, target, tuple(branches))
    if result["figure"] is not None:
        write_record(target, record)
        seal_record(target)
    return result


def make_figure(run: Run, target: Path, branches: Sequence[str] = ()) -> dict[str, Any]:
    """Draw the figure into `target`, with the maps of some `BRANCHES` alone; see `run`."""
    pictures, chosen = run.source.id_list(run.options.infer_list), chosen_pictures(run)
    if not chosen:
        log(f"No figure: no outputs for pictures of {pictures.source}, or --figure_num is 0.")
        return {"figure": None}
    rows = {name: draw_picture(run, name) for name in progress(chosen, "make_figure")}
    for branch in branches:
        draw_branch(run, branch, rows)
    columns = [fused_title(run) if title == CAM else title for title in COLUMNS]
    save_figure(target, list(rows.values()), columns, run.class_names)
    log(f"{target} shows {len(rows)} of {len(pictures)} pictures of {pictures.source}.")
    return {"figure": str(target)}


def chosen_pictures(run: Run) -> list[str]:
    """Ids of the pictures that are drawn: of those that have outputs."""
    ids = run.source.id_list(run.options.infer_list).ids
    drawable = [name for name in ids if any(p.is_file() for p in output_files(run, name))]
    return spread(drawable, run.options.figure_num)


def _record(run: Run, branches: Mapping[str, str]) -> Record:
    """What the figure shows: hashes of all files, and of what makes the maps of the branches."""
    chosen = chosen_pictures(run)
    files = {f"{title} of {name}": p for name in chosen for title, p in _shown(run, name).items()}
    hashes = {what: sha256_file(path) for what, path in files.items()}
    arguments = {"pictures": chosen, "class_names": run.class_names, "fused": fused_title(run)}
    return Record("make_figure", arguments, {**hashes, **branches})


def _shown(run: Run, name: str) -> dict[str, Path]:
    """The files of a picture that are there and current, by column."""
    photo, truth = run.source.devkit.image_path(name), run.source.devkit.mask_path(name)
    known = {PHOTO: photo} if truth is None else {PHOTO: photo, TRUTH: truth}
    return known | current_files(run, name, photo)


def fused_title(run: Run) -> str:
    """Title of the column of the CAMs, which tells how they were fused where that is recorded."""
    folder = run.options.cam_out_dir
    recorded = read_record(folder) if folder.is_dir() else None
    fusion = None if recorded is None else recorded.arguments.get("cam_fusion")
    return _FUSED.get(str(fusion), CAM)


def draw_branch(run: Run, branch: str, rows: Mapping[str, FigureRow]) -> None:
    """Add the maps of a branch alone to the rows, by id, of those pictures that have a CAM.

    Whatever is wrong with the weights is told: the rest of the figure can do without them.
    """
    from step.branch_maps import branch_maps  # loads timm, too

    files = {name: _shown(run, name) for name in rows}
    keys = {name: load_cam_origin(shown[CAM])[0] for name, shown in files.items() if CAM in shown}
    try:
        for name, maps in branch_maps(run, branch, keys):
            cells = rows[name].cells
            cells[BRANCHES[branch]] = heat_map(cells[PHOTO], maps)
    except UserError as error:
        log(f"the figure does not show what the {branch} sees alone: {error}")


def output_files(run: Run, name: str) -> tuple[Path, Path, Path, Path, Path]:
    """Where CAM, IR label, edge map, pseudo mask and instances of a picture would lie."""
    options = run.options
    return (
        options.cam_out_dir / f"{name}.npz",
        options.ir_label_out_dir / f"{name}.png",
        options.edge_out_dir / f"{name}.png",
        options.sem_seg_out_dir / f"{name}.png",
        options.ins_seg_out_dir / f"{name}.npz",
    )


def draw_picture(run: Run, name: str) -> FigureRow:
    """One row: the columns whose files are there and current, the classes as caption.

    Raises:
        UserError: the CAM has a class that the class list does not name.
    """
    files = _shown(run, name)
    image = read_image(files[PHOTO])
    cells, classes = {PHOTO: image}, ""
    if CAM in files:
        maps = load_cam(files[CAM])
        cells[fused_title(run)] = heat_map(image, maps.high_res)
        require_named(run, maps.keys.tolist(), files[CAM])
        classes = ", ".join(run.class_names[key] for key in sorted(maps.keys.tolist()))
    if EDGE in files:
        cells[EDGE] = edge_picture(read_label(files[EDGE]), image.shape[:2])
    masks = load_instances(files[INSTANCES]).mask if INSTANCES in files else None
    if masks is not None and masks.shape[1:] == image.shape[:2]:
        cells[INSTANCES] = colour_instances(image, masks)
    labels = {t: read_label(files[t]) for t in (TRUTH, IR_LABEL, MASK) if t in files}
    cells |= {title: colour_label(label) for title, label in labels.items()}
    values = {int(value) for label in labels.values() for value in np.unique(label)}
    return FigureRow(f"{name}: {classes}" if classes else name, cells, values)


def current_files(run: Run, name: str, picture: Path) -> dict[str, Path]:
    """Outputs of a picture by column, without those of an earlier picture of the same name."""
    cam, *made = output_files(run, name)
    inputs = [cam] if cam.is_file() else []
    if inputs and load_cam_origin(cam)[1] not in (_UNKNOWN, zlib.crc32(picture.read_bytes())):
        return {}
    columns = zip((IR_LABEL, EDGE, MASK, INSTANCES), made, strict=True)
    current = {title: path for title, path in columns if up_to_date(path, *inputs)}
    return current | ({CAM: cam} if inputs else {})


def require_named(run: Run, classes: Sequence[int], what: object) -> None:
    """Make sure that every class of a picture, counted from 0, has a name.

    Raises:
        UserError: the class list is too short.
    """
    known, greatest = len(run.class_names), max(classes, default=-1)
    if greatest >= known:
        raise UserError(
            f"{what} has class {greatest + 1} but only {known} classes are named; give the list "
            "it was made with by --classes."
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the figure of finished outputs; returns the exit status."""
    parser = argparse.ArgumentParser(prog="step.make_figure", description=main.__doc__)
    parser.add_argument("--voc12_root", type=Path, required=True, help="VOC devkit root")
    parser.add_argument("--work_dir", type=Path, default=Path(), help="folder that holds result/")
    parser.add_argument("--list", dest="infer_list", default="train", help="a name or a file")
    parser.add_argument(
        "--num", "--figure_num", dest="figure_num", type=positive_int, default=6, help="of pictures"
    )
    parser.add_argument("--classes", type=Path, help="file of class names (default: VOC's 20)")
    parser.add_argument("--output", type=Path, help="default: WORK_DIR/result/figure.png")
    return run_entry(parser.prog, lambda: _draw_alone(parser.parse_args(argv)))


def _draw_alone(args: argparse.Namespace) -> None:
    classes = load_classes(args.classes)
    source = DataSource(Devkit(args.voc12_root), classes, expect_standard=False)
    chosen = {"infer_list": args.infer_list, "figure_num": args.figure_num}
    run = finished_run(source, args.work_dir, **chosen)
    make_figure(run, args.output or run.options.result_dir / _FIGURE_NAME)


if __name__ == "__main__":
    sys.exit(main())
