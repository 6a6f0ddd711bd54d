"""Draw `result/figure.png`: what every stage made of a few pictures, side by side.

Reads photos and masks of the devkit and whatever is there of `result/cam`, `result/ir_label`,
`result/edge`, `result/sem_seg` and `result/ins_seg`. Run at the end of `run_sample.py`, or alone:
`python -m step.make_figure --voc12_root ROOT`.
"""

import argparse
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from misc.arguments import positive_int
from misc.entry import run_entry
from misc.errors import UserError
from misc.files import up_to_date
from misc.maps_io import load_cam, load_cam_origin, load_instances, read_image, read_label
from misc.progress import log, progress
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
EDGE, MASK, INSTANCES = "edge map", "pseudo mask", "instances"
COLUMNS = (PHOTO, TRUTH, CAM, IR_LABEL, EDGE, MASK, INSTANCES)
_FIGURE_NAME = "figure.png"
_UNKNOWN = 0  # hash of the picture in a CAM file that names none


def run(run: Run) -> dict[str, Any]:
    """Draw `--figure_num` pictures of the inference list, spread evenly over it.

    Returns:
        `figure`, the path as text, or None when there is nothing to draw yet.
    """
    return make_figure(run, run.options.result_dir / _FIGURE_NAME)


def make_figure(run: Run, target: Path) -> dict[str, Any]:
    """Draw the figure into `target`; see `run`."""
    options = run.options
    pictures = run.source.id_list(options.infer_list)
    drawable = [name for name in pictures.ids if any(p.is_file() for p in output_files(run, name))]
    chosen = spread(drawable, options.figure_num)
    if not chosen:
        log(f"No figure: no outputs for pictures of {pictures.source}, or --figure_num is 0.")
        return {"figure": None}
    rows = [draw_picture(run, name) for name in progress(chosen, "make_figure")]
    save_figure(target, rows, COLUMNS, run.class_names)
    log(f"{target} shows {len(rows)} of {len(pictures)} pictures of {pictures.source}.")
    return {"figure": str(target)}


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
    devkit = run.source.devkit
    image = read_image(devkit.image_path(name))
    files = current_files(run, name, devkit.image_path(name))
    cells, classes = {PHOTO: image}, ""
    if CAM in files:
        maps = load_cam(files[CAM])
        cells[CAM] = heat_map(image, maps.high_res)
        require_named(run, maps.keys.tolist(), files[CAM])
        classes = ", ".join(run.class_names[key] for key in sorted(maps.keys.tolist()))
    if EDGE in files:
        cells[EDGE] = edge_picture(read_label(files[EDGE]), image.shape[:2])
    masks = load_instances(files[INSTANCES]).mask if INSTANCES in files else None
    if masks is not None and masks.shape[1:] == image.shape[:2]:
        cells[INSTANCES] = colour_instances(image, masks)
    shown = {t: files.get(t) for t in (IR_LABEL, MASK)} | {TRUTH: devkit.mask_path(name)}
    labels = {title: read_label(path) for title, path in shown.items() if path is not None}
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
