"""Draw `result/figure.png`: what every stage made of a few pictures, side by side.

Reads photos and masks of the devkit and whatever is there of `result/cam`, `result/ir_label`,
`result/edge`, `result/sem_seg` and `result/ins_seg`. Run at the end of `run_sample.py`, or alone:
`python -m step.make_figure --voc12_root ROOT`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from misc.errors import UserError
from misc.maps_io import load_cam, load_instances, read_image, read_label
from misc.progress import log, progress
from misc.visualize import (
    FigureRow,
    colour_instances,
    colour_label,
    edge_picture,
    heat_map,
    save_figure,
)
from voc12.devkit import Devkit
from voc12.labels import load_classes
from voc12.lists import resolve_list

PHOTO, TRUTH, CAM, IR_LABEL = "photo", "ground truth", "CAM", "IR label"
EDGE, MASK, INSTANCES = "edge map", "pseudo mask", "instances"
COLUMNS = (PHOTO, TRUTH, CAM, IR_LABEL, EDGE, MASK, INSTANCES)
_FIGURE_NAME = "figure.png"


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Draw `args.figure_num` pictures of `args.infer_list`, spread evenly over the list.

    Returns:
        `figure`, the path as text, or None when there is nothing to draw yet.
    """
    return make_figure(args, args.result_dir / _FIGURE_NAME)


def make_figure(args: argparse.Namespace, target: Path) -> dict[str, Any]:
    """Draw the figure into `target`; see `run`."""
    pictures = resolve_list(args.infer_list, args.voc12_root, args.cache_dir, expect_standard=False)
    drawable = [name for name in pictures.ids if any(p.is_file() for p in _files(args, name))]
    chosen = spread(drawable, args.figure_num)
    if not chosen:
        log(f"No figure: no outputs for pictures of {pictures.source}, or --figure_num is 0.")
        return {"figure": None}
    rows = [draw_picture(args, name) for name in progress(chosen, "make_figure")]
    save_figure(target, rows, COLUMNS, args.class_names)
    log(f"{target} shows {len(rows)} of {len(pictures)} pictures of {pictures.source}.")
    return {"figure": str(target)}


def spread(names: Sequence[str], count: int) -> list[str]:
    """At most `count` of the names, evenly spaced from the first to the last."""
    places = np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)
    return [names[place] for place in places]


def _files(args: argparse.Namespace, name: str) -> tuple[Path, Path, Path, Path, Path]:
    """Where CAM, IR label, edge map, pseudo mask and instances of a picture would lie."""
    return (
        args.cam_out_dir / f"{name}.npz",
        args.ir_label_out_dir / f"{name}.png",
        args.edge_out_dir / f"{name}.png",
        args.sem_seg_out_dir / f"{name}.png",
        args.ins_seg_out_dir / f"{name}.npz",
    )


def draw_picture(args: argparse.Namespace, name: str) -> FigureRow:
    """One row: the columns whose files exist, and the classes of the picture as caption."""
    devkit = Devkit(args.voc12_root)
    image = read_image(devkit.image_path(name))
    cam, ir_label, edge, mask, instances = _files(args, name)
    cells, classes = {PHOTO: image}, set()
    if cam.is_file():
        maps = load_cam(cam)
        cells[CAM], classes = heat_map(image, maps.high_res), {int(key) for key in maps.keys}
    if edge.is_file():
        cells[EDGE] = edge_picture(read_label(edge), image.shape[:2])
    if instances.is_file():
        cells[INSTANCES] = colour_instances(image, load_instances(instances).mask)
    shown = {TRUTH: devkit.mask_path(name), IR_LABEL: ir_label, MASK: mask}
    labels = {t: read_label(path) for t, path in shown.items() if path and path.is_file()}
    cells |= {title: colour_label(label) for title, label in labels.items()}
    values = {int(value) for label in labels.values() for value in np.unique(label)}
    names = ", ".join(args.class_names[key] for key in sorted(classes))
    return FigureRow(f"{name}: {names}" if names else name, cells, values)


def main() -> None:
    """Draw the figure of finished outputs."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--voc12_root", type=Path, required=True, help="VOC devkit root")
    parser.add_argument("--work_dir", type=Path, default=Path(), help="folder that holds result/")
    parser.add_argument("--list", dest="infer_list", default="train", help="a name or a file")
    parser.add_argument("--num", dest="figure_num", type=int, default=6, help="number of pictures")
    parser.add_argument("--classes", type=Path, help="file of class names (default: VOC's 20)")
    parser.add_argument("--output", type=Path, help="default: WORK_DIR/result/figure.png")
    args = parser.parse_args()
    args.result_dir, args.cache_dir = args.work_dir / "result", None
    args.class_names = load_classes(args.classes)
    for kind in ("cam", "ir_label", "edge", "sem_seg", "ins_seg"):
        setattr(args, f"{kind}_out_dir", args.result_dir / kind)
    try:
        make_figure(args, args.output or args.result_dir / _FIGURE_NAME)
    except UserError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
