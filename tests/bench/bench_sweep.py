"""Speed of a sweep of the masks against one run of the walk per setting, on a finished run's files.

    python tests/bench/bench_sweep.py --voc12_root ROOT --work_dir DIR [--pictures 10 --threads 1]

3 betas, 4 exp_times and 8 background scores: 96 settings. Both ways start from CAMs and edge maps
in memory, count the same pixels in this process and must agree exactly. Times are those of the
processor, so that other work on the machine does not count.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from misc.maps_io import CamMaps, load_cam, read_label
from misc.metrics import ConfusionMatrix, ThresholdConfusion
from net.pseudo_labels import propagate_to_label, strongest_labels
from voc12.devkit import Devkit
from voc12.labels import VOC_CLASSES

BETAS, EXP_TIMES = (5.0, 10.0, 20.0), (4, 5, 6, 8)
THRESHOLDS = (0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40, 0.45)
LABELS = len(VOC_CLASSES) + 1

Counts = dict[tuple[float, int, float], np.ndarray]
"""Confusion matrix by beta, exp_times and background score."""


class Item(NamedTuple):
    """Everything about one picture."""

    maps: CamMaps
    cam: torch.Tensor
    edge: torch.Tensor
    truth: np.ndarray


def load(root: Path, work_dir: Path, count: int) -> list[Item]:
    """The first pictures of a run with a true mask."""
    devkit, items = Devkit(root), []
    for path in sorted((work_dir / "result/edge").glob("*.png")):
        mask = devkit.mask_path(path.stem)
        if mask is not None and len(items) < count:
            maps = load_cam(work_dir / "result/cam" / f"{path.stem}.npz")
            edge = torch.from_numpy(read_label(path)[None].astype(np.float32) / 255)
            items.append(Item(maps, torch.from_numpy(maps.cam), edge, read_label(mask)))
    return items


def together(items: list[Item]) -> Counts:
    """As `step.sweep` counts: one walk per beta."""
    counts: Counts = {}
    for beta in BETAS:
        confusions = [ThresholdConfusion(LABELS, THRESHOLDS) for _ in EXP_TIMES]
        for maps, cam, edge, truth in items:
            size = maps.high_res.shape[1:]
            walks = strongest_labels(cam, edge, maps.keys, size, beta, EXP_TIMES)
            for confusion, (labels, score) in zip(confusions, walks, strict=True):
                confusion.update(labels, score, truth)
        for times, confusion in zip(EXP_TIMES, confusions, strict=True):
            for threshold, matrix in zip(THRESHOLDS, confusion.matrices(), strict=True):
                counts[beta, times, threshold] = matrix.counts
    return counts


def one_by_one(items: list[Item]) -> Counts:
    """A walk for every setting."""
    counts: Counts = {}
    for beta in BETAS:
        for times in EXP_TIMES:
            for threshold in THRESHOLDS:
                confusion = ConfusionMatrix(LABELS)
                for maps, cam, edge, truth in items:
                    size = maps.high_res.shape[1:]
                    label = propagate_to_label(cam, edge, maps.keys, size, threshold, beta, times)
                    confusion.update(label, truth)
                counts[beta, times, threshold] = confusion.counts
    return counts


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--voc12_root", type=Path, required=True, help="devkit folder")
    parser.add_argument("--work_dir", type=Path, required=True, help="folder that holds result/")
    parser.add_argument("--pictures", type=int, default=10, help="number of pictures")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    items = load(args.voc12_root, args.work_dir, args.pictures)
    together(items[:1])
    start = time.process_time()
    ours = together(items)
    middle = time.process_time()
    single = one_by_one(items)
    end = time.process_time()
    assert all(np.array_equal(ours[setting], single[setting]) for setting in single)
    print(
        f"{len(single)} settings on {len(items)} pictures: sweep {middle - start:.2f} s, "
        f"single walks {end - middle:.1f} s, ratio {(end - middle) / (middle - start):.1f}, equal"
    )


if __name__ == "__main__":
    main()
