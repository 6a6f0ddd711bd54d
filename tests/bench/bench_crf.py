"""Speed and memory of the dense CRF: PyTorch against pydensecrf.

    python tests/bench/bench_crf.py [--height 375 --width 500 --repeats 3 --images FOLDER]

Needs pip install pydensecrf2==1.1.

Two label maps of 2 and 3 labels (the two passes of `cam_to_ir_label`) and one of 21, with the
settings of that step, and 21 labels with those of DeepLab. Both backends take turns on one thread;
times are the least processor time of all turns, so that other work on the machine counts little.
Memory is the peak above a process that has run on a tiny picture, in a process for each number.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from golden import fill  # noqa: E402

from misc.distributed import peak_memory, reset_peak_memory  # noqa: E402
from misc.maps_io import read_image  # noqa: E402
from net.crf import CrfParameters, DenseCrf  # noqa: E402
from net.dense_crf import _grid_kernel, appearance_kernel, smoothness_kernel  # noqa: E402

BACKENDS = ("torch", "pydensecrf")
CPU = torch.device("cpu")
IR_LABEL, DEEPLAB = CrfParameters(), CrfParameters(0.7, 1, 3, 67, 3, 4, 10)


class Case(NamedTuple):
    """What is refined: number of labels, of label maps, and the settings."""

    labels: int
    maps: int
    settings: CrfParameters


CASES = {
    "cam_to_ir_label, 2 labels": Case(2, 2, IR_LABEL),
    "cam_to_ir_label, 3 labels": Case(3, 2, IR_LABEL),
    "21 labels": Case(21, 1, IR_LABEL),
    "21 labels, DeepLab": Case(21, 1, DEEPLAB),
}


class Turn(NamedTuple):
    """Processor seconds of one backend, and what it made."""

    lattice: float
    iterations: float
    refined: np.ndarray


def label_maps(image: np.ndarray, case: Case) -> np.ndarray:
    """(maps, h, w): quantised brightness, one pixel in twenty replaced."""
    brightness, rng = image.mean(2) / (np.iinfo(np.uint8).max + 1), np.random.default_rng(0)
    maps = np.stack([brightness**power * case.labels for power in range(1, case.maps + 1)])
    replaced = rng.random(maps.shape) < 0.05
    return np.where(replaced, rng.integers(0, case.labels, maps.shape), maps.astype(int))


def refine(image: np.ndarray, case: Case, backend: str) -> Turn:
    """Lattices and inference of one picture."""
    maps, start = label_maps(image, case), time.process_time()
    crf = DenseCrf(image, case.labels, case.settings, backend)
    built = time.process_time()
    refined = crf.refine_labels(maps)
    return Turn(built - start, time.process_time() - built, refined)


def least(turns: list[Turn]) -> tuple[float, float]:
    """Seconds of the lattices and of the iterations."""
    return min(turn.lattice for turn in turns), min(turn.iterations for turn in turns)


def extra_memory(image: np.ndarray, case: Case, backend: str) -> int:
    """Peak of one picture in bytes above the process before it; runs in a process of its own."""
    refine(image[:8, :8], case, backend)
    reset_peak_memory(CPU)
    before = peak_memory(CPU)["cpu"]
    refine(image, case, backend)
    return peak_memory(CPU)["cpu"] - before


def memory_apart(image: np.ndarray, case: Case, backend: str) -> float:
    """`extra_memory` in MB."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(extra_memory, image, case, backend).result() / 1e6


def compare(name: str, case: Case, images: list[np.ndarray], repeats: int) -> None:
    """Print the table row of a case: means over the pictures."""
    rows, differing = [], 0
    for image in images:
        turns: dict[str, list[Turn]] = {key: [] for key in (*BACKENDS, "first of its size")}
        for _ in range(repeats):
            _grid_kernel.cache_clear()
            turns["first of its size"].append(refine(image, case, "torch"))
            for backend in BACKENDS:
                turns[backend].append(refine(image, case, backend))
        rows.append([*least(turns["torch"]), *least(turns["pydensecrf"])])
        rows[-1].append(least(turns["first of its size"])[0])
        results = (turns[backend][0].refined for backend in BACKENDS)
        differing += int(np.not_equal(*results).sum())
    lattice, iterations, their_lattice, their_iterations, first = np.mean(rows, axis=0)
    theirs = their_lattice + their_iterations
    print(
        f"{name}: torch {lattice:.3f} + {iterations:.3f} s (lattices {first:.3f} s for the first "
        f"picture of a size), pydensecrf {their_lattice:.3f} + {their_iterations:.3f} s; ratio "
        f"{(lattice + iterations) / theirs:.2f} ({(first + iterations) / theirs:.2f}), of the "
        f"iterations {iterations / their_iterations:.2f}; {differing} labels differ",
        flush=True,
    )


def corners(image: np.ndarray, settings: CrfParameters) -> tuple[int, int]:
    """Size of the lattices of position and of position and colour."""
    shape = (1, *image.shape[:2])
    grid = smoothness_kernel(shape, settings.gaussian_sxy, 1, CPU)
    sxy, srgb = settings.bilateral_sxy, settings.bilateral_srgb
    return grid.num_corners, appearance_kernel(
        torch.from_numpy(image)[None], sxy, srgb, 1
    ).num_corners


def pictures(args: argparse.Namespace) -> Iterator[np.ndarray]:
    """The JPEGs of the folder, or one made picture."""
    if args.images is None:
        yield fill.image("bench/crf", args.height, args.width)
        return
    for path in sorted(args.images.glob("*.jpg"))[: args.count]:
        yield read_image(path)


def main() -> None:
    """Parse the options and run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=375, help="rows of the made picture")
    parser.add_argument("--width", type=int, default=500, help="columns of the made picture")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each backend")
    parser.add_argument("--images", type=Path, help="folder of JPEGs instead of the made picture")
    parser.add_argument("--count", type=int, default=10, help="how many of them")
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = list(pictures(args))
    print(f"{len(images)} pictures, the first {images[0].shape[0]}x{images[0].shape[1]}")
    for settings in (IR_LABEL, DEEPLAB):
        sizes = np.median([corners(image, settings) for image in images], axis=0).astype(int)
        print(f"corners of the lattices (median): {sizes[0]} + {sizes[1]} for {settings}")
    for name, case in CASES.items():
        compare(name, case, images, args.repeats)
    for name, case in CASES.items():
        ours, theirs = (memory_apart(images[0], case, backend) for backend in BACKENDS)
        print(f"{name}: extra memory {ours:.0f} MB, pydensecrf {theirs:.0f} MB")


if __name__ == "__main__":
    main()
