"""Score seeds and pseudo masks over background scores, beta and exp_times, from stored files.

Reads `result/cam`, the edge maps of `result/edge` and the masks of any list; writes a table, JSON
and a plot to `result/sweep` and touches no file of the run. A picture is read once and walked once
per beta: the walks of all `--exp_times` share their products, and one walk serves all background
scores. `python -m step.sweep --voc12_root ROOT`.

Edge maps are stored with 8 bits while step 8 walks along floats. On the built-in sample that
changes 0.03 % of the pixels of the masks and 0.001 points of their mIoU at its own settings, 0.06 %
and 0.02 points at `--exp_times 8`.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from misc.arguments import (
    HelpFormatter,
    fraction,
    non_negative_int,
    positive_float,
    value_type,
)
from misc.distributed import select_device
from misc.entry import run_entry
from misc.errors import UserError
from misc.files import expand_user, write_json
from misc.maps_io import CamMaps, load_cam, read_label
from misc.metrics import ThresholdConfusion, fitting, nan_mean
from misc.parallel import map_pictures
from misc.progress import log, progress, set_log_file
from misc.provenance import read_record
from misc.seed import run_facts
from misc.tables import by_class, percent
from net.pseudo_labels import strongest_labels
from step.eval_cam import STEP as SEED_STEP
from step.eval_cam import SWEEP_THRESHOLDS, count_seed
from step.options import Options
from step.run import Run, finished_run
from step.scoring import Scored, scored_pictures
from step.sweep_report import TUNED, Row, best_of, draw, log_tables
from voc12.devkit import Devkit
from voc12.labels import load_recorded_classes
from voc12.source import open_source

TITLE = "sweep"
JSON_NAME, PLOT_NAME, LOG_NAME = "sweep.json", "sweep.png", "sweep.log"
_BG_THRESHOLDS = (0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40, 0.45)
_BETAS = (5.0, 10.0, 20.0)
_EXP_TIMES = (4, 5, 6, 8)
_PARTS_PER_WORKER = 8
_RUN_SETTINGS = ("beta", "exp_times", "walk_radius", "sem_seg_bg_thres")

Walk = tuple[float, int]
"""Beta and exp_times."""


class Grid(NamedTuple):
    """What is scored; every sequence rises.

    Attributes:
        cam_thresholds: background scores of the seed, in the units of the CAMs.
        bg_thresholds: background scores of the masks, relative to the largest walked value.
        betas: exponents of the affinity.
        exp_times: binary logarithms of the number of steps.
        walk_radius: reach of a step, in cells of 4 pixels.
    """

    cam_thresholds: tuple[float, ...]
    bg_thresholds: tuple[float, ...]
    betas: tuple[float, ...]
    exp_times: tuple[int, ...]
    walk_radius: int


class Files(NamedTuple):
    """Where the pictures' files lie: devkit, CAMs, edge maps."""

    root: Path
    cam: Path
    edge: Path


class Counts:
    """Pixels counted so far; its size does not depend on how many pictures were counted."""

    def __init__(self, grid: Grid, num_classes: int) -> None:
        """Start with zeros; `num_classes` counts the foreground."""
        total = num_classes + 1
        self.walked = 0
        self.seed = ThresholdConfusion(total, grid.cam_thresholds)
        self.masks: dict[Walk, ThresholdConfusion] = {
            (beta, times): ThresholdConfusion(total, grid.bg_thresholds)
            for beta in grid.betas
            for times in grid.exp_times
        }

    def merge(self, other: "Counts") -> None:
        """Add another part of the pictures."""
        self.walked += other.walked
        self.seed.merge(other.seed)
        for walk, confusion in self.masks.items():
            confusion.merge(other.masks[walk])


def sweep(args: argparse.Namespace) -> dict[str, Any]:
    """Score everything and write JSON and plot.

    Args:
        args: options of `build_parser`.

    Returns:
        The content of the JSON file; scores in percent, None where undefined.

    Raises:
        UserError: there is nothing to score, files do not fit, or there is an earlier sweep.
    """
    start, device, output = time.perf_counter(), select_device(args.device), _prepare(args)
    if args.num_workers and device.type != "cpu":
        raise UserError(f"--num_workers {args.num_workers} is for --device cpu; leave it out here.")
    run, grid = _finished_run(args), _grid(args)
    names, options = ["background", *run.class_names], run.options
    files = Files(args.voc12_root, options.cam_out_dir, options.edge_out_dir)
    scored = scored_pictures(run, SEED_STEP, "--list")
    set_log_file(output / LOG_NAME)
    log(f"{TITLE}: {scored.describe()}")
    counts = count(scored.ids, grid, files, len(names) - 1, device, args.num_workers)
    if not counts.walked:
        log(f"no edge map in {files.edge}: only seeds are scored; make_sem_seg_labels writes them.")
    content = {
        **_scores(counts, grid, scored, names),
        "grid": grid._asdict(),
        "run": _run_settings(options.sem_seg_out_dir),
        "records": {folder.name: _fingerprint(folder) for folder in (files.cam, files.edge)},
        "seconds": round(time.perf_counter() - start, 3),
        **run_facts(device),
    }
    write_json(output / JSON_NAME, content)
    draw(output / PLOT_NAME, content)
    log_tables(content)
    log(f"{output / JSON_NAME} and {output / PLOT_NAME} are written.")
    return content


def count(
    ids: Sequence[str],
    grid: Grid,
    files: Files,
    num_classes: int,
    device: torch.device,
    num_workers: int = 0,
) -> Counts:
    """Count the pixels of pictures, in several processes if asked for."""
    counts = Counts(grid, num_classes)
    if not num_workers:
        for name in progress(ids, TITLE):
            _count_picture(counts, name, grid, files, device)
        return counts
    number = min(len(ids), num_workers * _PARTS_PER_WORKER)
    parts = [ids[start::number] for start in range(number)]
    count_part = partial(
        _count_part, grid=grid, files=files, num_classes=num_classes, device=device
    )
    for part in map_pictures(count_part, parts, num_workers, f"{TITLE} (parts of the list)"):
        counts.merge(part)
    return counts


def _count_part(
    ids: Sequence[str], grid: Grid, files: Files, num_classes: int, device: torch.device
) -> Counts:
    counts = Counts(grid, num_classes)
    for name in ids:
        _count_picture(counts, name, grid, files, device)
    return counts


def _count_picture(
    counts: Counts, name: str, grid: Grid, files: Files, device: torch.device
) -> None:
    cam_path, edge_path = files.cam / f"{name}.npz", files.edge / f"{name}.png"
    maps, truth = load_cam(cam_path), read_label(Devkit(files.root).mask_path(name))
    count_seed(counts.seed, maps, truth, cam_path)
    if not edge_path.is_file():
        return
    counts.walked += 1
    cam, edge = torch.from_numpy(maps.cam).to(device), _read_edge(edge_path, maps).to(device)
    size = maps.high_res.shape[1:]
    for beta in grid.betas:
        walks = strongest_labels(cam, edge, maps.keys, size, beta, grid.exp_times, grid.walk_radius)
        for times, (labels, score) in zip(grid.exp_times, walks, strict=True):
            with fitting(cam_path):
                counts.masks[beta, times].update(labels, score, truth)


def _read_edge(path: Path, maps: CamMaps) -> torch.Tensor:
    """(1, h, w) edge probabilities of a picture with these CAMs.

    Raises:
        UserError: the edge map is of another picture.
    """
    edge = read_label(path)
    if edge.shape != maps.cam.shape[1:]:
        raise UserError(
            f"{path} has size {edge.shape} but the CAMs of this picture have {maps.cam.shape[1:]}; "
            "remove it and run make_sem_seg_labels again."
        )
    return torch.from_numpy(edge[None].astype(np.float32) / 255)


def _scores(counts: Counts, grid: Grid, scored: Scored, names: Sequence[str]) -> dict[str, Any]:
    """Scores at every setting, and the best of them."""
    seed = _rows(counts.seed, grid.cam_thresholds, names)
    masks = [
        row
        for (beta, times), confusion in counts.masks.items()
        if counts.walked
        for row in _rows(confusion, grid.bg_thresholds, names, beta=beta, exp_times=times)
    ]
    return {
        "note": TUNED,
        **scored.facts(),
        "source": scored.pictures.source,
        "mask_pictures": counts.walked,
        "seed": seed,
        "masks": masks,
        "best": {"seed": best_of(seed), "mask": best_of(masks)},
    }


def _rows(
    confusion: ThresholdConfusion,
    thresholds: Sequence[float],
    names: Sequence[str],
    **setting: float,
) -> list[Row]:
    """Scores in percent at every background score; see `step.sweep_report.Row`."""
    rows = []
    for threshold, matrix in zip(thresholds, confusion.matrices(), strict=True):
        scores = matrix.compute()
        rows.append(
            {
                **setting,
                "threshold": threshold,
                "miou": percent(scores.miou_of_occurring),
                "precision": percent(nan_mean(scores.precision[1:])),
                "recall": percent(nan_mean(scores.recall[1:])),
                "per_class": {
                    "iou": by_class(names, scores.iou),
                    "precision": by_class(names, scores.precision),
                    "recall": by_class(names, scores.recall),
                },
            }
        )
    return rows


def _grid(args: argparse.Namespace) -> Grid:
    lists = (args.cam_thresholds, args.bg_thresholds, args.betas, args.exp_times)
    return Grid(*(tuple(sorted(set(values))) for values in lists), args.walk_radius)


def _run_settings(folder: Path) -> dict[str, Any] | None:
    """What the pseudo masks of the run were made with, as far as that is recorded."""
    record = read_record(folder)
    known = {} if record is None else record.arguments
    settings = {name: known.get(name) for name in _RUN_SETTINGS}
    return settings if all(isinstance(v, (int, float)) for v in settings.values()) else None


def _fingerprint(folder: Path) -> str | None:
    record = read_record(folder)
    return None if record is None else record.fingerprint


def _finished_run(args: argparse.Namespace) -> Run:
    """The outputs to score, of the classes that the CAMs were made for."""
    cams = args.work_dir / Options.cam_out_dir
    made_by = read_record(cams)
    recorded = made_by.arguments.get("class_names", ()) if made_by else ()
    classes = load_recorded_classes(args.classes, recorded, cams)
    source = replace(open_source(args.voc12_root, args.classes), classes=classes)
    return finished_run(source, args.work_dir, eval_list=args.list, infer_list=args.list)


def _prepare(args: argparse.Namespace) -> Path:
    """Check the folders; returns the one to write to.

    Raises:
        UserError: the folder is none of ours, or has an earlier sweep.
    """
    cams = args.work_dir / Options.cam_out_dir
    for path, option in ((args.voc12_root, "--voc12_root"), (cams, "--work_dir")):
        if not path.is_dir():
            raise UserError(f"{path} does not exist; correct {option}, or run the steps first.")
    output = args.output or args.work_dir / Options.result_dir / TITLE
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; name a folder.")
    if output.is_dir() and read_record(output) is not None:
        raise UserError(f"--output {output} holds outputs of a step; name another folder.")
    earlier = [path for path in (output / JSON_NAME, output / PLOT_NAME) if path.exists()]
    if earlier and not args.overwrite:
        raise UserError(
            f"{earlier[0]} is there already; name another folder with --output, or replace it with "
            "--overwrite."
        )
    return output


def build_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        prog="step.sweep",
        description="Score seeds and pseudo masks over many settings, from stored CAMs and edges.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--voc12_root", type=expand_user, required=True, help="devkit folder with the masks")
    add("--work_dir", type=expand_user, default=Path(), help="folder that holds result/")
    add("--list", default="train", help="list to score: a name or a file")
    add("--classes", type=expand_user, help="file of class names (default: VOC's 20)")
    add("--cam_thresholds", type=fraction, nargs="+", default=SWEEP_THRESHOLDS, help="of the seed")
    add("--bg_thresholds", type=fraction, nargs="+", default=_BG_THRESHOLDS, help="of the masks")
    add("--betas", type=positive_float, nargs="+", default=_BETAS, help="exponents of the affinity")
    add(
        "--exp_times",
        type=value_type(Options, "exp_times"),
        nargs="+",
        default=_EXP_TIMES,
        help="2 to these: steps",
    )
    add(
        "--walk_radius",
        type=value_type(Options, "walk_radius"),
        default=5,
        help="cells of 4 pixels",
    )
    add("--num_workers", type=non_negative_int, default=0, help="processes; 0 for this one alone")
    add("--device", default="auto", help="auto (GPU when there is one), cpu, cuda, cuda:INDEX")
    add("--output", type=expand_user, help="folder (default: WORK_DIR/result/sweep)")
    add("--overwrite", action="store_true", help="replace an earlier sweep in this folder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and sweep; returns the exit status."""

    def start() -> None:
        args = build_parser().parse_args(argv)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: log(f"warning: {message}")
            sweep(args)

    return run_entry(f"step.{TITLE}", start)


if __name__ == "__main__":
    sys.exit(main())
