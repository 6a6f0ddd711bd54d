"""Speed of the two CRF passes of a picture with one set of lattices against two.

python tests/bench/bench_crf.py [--height 375 --width 500 --labels 3]
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from golden import fill  # noqa: E402

from net.crf import DenseCrf  # noqa: E402

REPEATS = 3


def shared(image: np.ndarray, passes: list[np.ndarray], num_labels: int) -> list[np.ndarray]:
    """One CRF for all label maps."""
    crf = DenseCrf(image, num_labels)
    return [crf.refine_labels(labels) for labels in passes]


def separate(image: np.ndarray, passes: list[np.ndarray], num_labels: int) -> list[np.ndarray]:
    """A new CRF for every label map, as published."""
    return [DenseCrf(image, num_labels).refine_labels(labels) for labels in passes]


def main() -> None:
    """Time both in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=375, help="rows of the picture")
    parser.add_argument("--width", type=int, default=500, help="columns of the picture")
    parser.add_argument("--labels", type=int, default=3, help="number of labels")
    args = parser.parse_args()
    image = fill.image("bench/crf", args.height, args.width)
    # Quantised brightness, as two label maps that follow the picture.
    brightness = image.mean(2) / (np.iinfo(np.uint8).max + 1)
    passes = [(brightness**power * args.labels).astype(np.uint8) for power in (1, 2)]
    times: dict[str, list[float]] = {"shared": [], "separate": []}
    results = {}
    for _ in range(REPEATS):
        for function in (shared, separate):
            start = time.perf_counter()
            results[function.__name__] = function(image, passes, args.labels)
            times[function.__name__].append(time.perf_counter() - start)
    one, two = min(times["shared"]), min(times["separate"])
    pairs = zip(results["shared"], results["separate"], strict=True)
    differing = sum(int((a != b).sum()) for a, b in pairs)
    print(
        f"CRF of {len(passes)} label maps {args.height}x{args.width}, {args.labels} labels: "
        f"shared lattices {one:.2f} s, separate {two:.2f} s, ratio {two / one:.2f}, "
        f"{differing} differing pixels"
    )


if __name__ == "__main__":
    main()
