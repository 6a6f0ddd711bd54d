"""The maps of the CNN alone, of the transformer alone and of CRT, side by side."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from misc.maps_io import load_cam, read_image, read_label
from misc.visualize import FigureRow, colour_label, heat_map, save_figure, spread
from step.ablation.rows import CNN, CRT, TRANSFORMER
from step.ablation.runs import RowRun
from step.make_figure import PHOTO, TRUTH, require_named
from step.run import Run, prepare_data

COLUMNS = {CNN.name: CNN.title, TRANSFORMER.name: TRANSFORMER.title, CRT.name: CRT.title}
_PICTURES = 5


def draw(path: Path, runs: Mapping[str, RowRun]) -> bool:
    """Draw pictures that are spread evenly over the list.

    Args:
        path: target.
        runs: by name of their row; those of `COLUMNS` are drawn, as far as they are there.

    Returns:
        Whether there was anything to draw.
    """
    prepared = {row: prepare_data(runs[row].options) for row in COLUMNS if row in runs}
    if not prepared:
        return False
    first = next(iter(prepared.values()))
    names = spread(first.source.id_list(first.options.infer_list).ids, _PICTURES)
    rows = [_picture(name, prepared) for name in names]
    save_figure(path, rows, (PHOTO, TRUTH, *COLUMNS.values()), first.class_names)
    return True


def _picture(name: str, prepared: Mapping[str, Run]) -> FigureRow:
    first = next(iter(prepared.values()))
    devkit, cells, keys = first.source.devkit, {}, set()
    cells[PHOTO] = image = read_image(devkit.image_path(name))
    labels: set[int] = set()
    truth = devkit.mask_path(name)
    if truth is not None:
        label = read_label(truth)
        cells[TRUTH], labels = colour_label(label), set(map(int, np.unique(label)))
    for row, run in prepared.items():
        maps_path = run.options.cam_out_dir / f"{name}.npz"
        maps = load_cam(maps_path)
        require_named(run, maps.keys.tolist(), maps_path)
        cells[COLUMNS[row]] = heat_map(image, maps.high_res)
        keys.update(maps.keys.tolist())
    classes = ", ".join(first.class_names[key] for key in sorted(keys))
    return FigureRow(f"{name}: {classes}" if classes else name, cells, labels)
