"""Speed and memory of the random walk and of the pair affinities against their plain forms.

    python tests/bench/bench_random_walk.py [--height 48 --width 64 --maps 2 --threads 1]

The plain walk squares a matrix of all by all points, the plain affinities gather all points of all
paths. Times are the best of several runs in one process. At the size of a 375x500 picture
only ours is timed: the dense walk needs gigabytes and many minutes there.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from affinity_reference import dense_walk, gathered_affinity  # noqa: E402

from net.affinity import pair_affinity, path_index, random_walk  # noqa: E402

VOC_MAP = (2, 94, 125)
TRAINING_RADIUS = 10
TRAINING_GRID = (4, 128, 128)


def best_of(repeats: int, function: Callable[[], Any]) -> tuple[float, Any]:
    """Smallest time in seconds of some calls, and the last result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def random_inputs(maps: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Class maps (maps, height, width) and an edge map (1, height, width)."""
    return torch.rand(maps, height, width), torch.sigmoid(4 * torch.rand(1, height, width) - 3)


def compare_walks(height: int, width: int, maps: int) -> None:
    """Print times and the largest difference, as part of the maximum."""
    cam, edge = random_inputs(maps, height, width)
    ours, walked = best_of(5, lambda: random_walk(cam, edge))
    dense, expected = best_of(1, lambda: dense_walk(cam, edge))
    difference = (walked - expected).abs().max() / expected.max()
    print(
        f"random walk {maps}x{height}x{width}: ours {ours:.3f} s, dense {dense:.1f} s, "
        f"ratio {dense / ours:.0f}, difference {difference:.1e} of the maximum"
    )


def time_full_size() -> None:
    """Print the time of our walk at the size of a usual VOC picture."""
    cam, edge = random_inputs(*VOC_MAP)
    seconds, _ = best_of(5, lambda: random_walk(cam, edge))
    print(f"random walk {'x'.join(map(str, VOC_MAP))}: ours {seconds:.3f} s")


def forward_backward(
    compute: Callable[..., torch.Tensor], edge: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Gradient of the weighted sum of the affinities."""
    leaf = edge.clone().requires_grad_()
    (compute(leaf, path_index(TRAINING_RADIUS)) * weight).sum().backward()
    return leaf.grad


def compare_affinities() -> None:
    """Print times of forward and backward and the largest relative gradient difference."""
    paths = path_index(TRAINING_RADIUS)
    edge = torch.rand(TRAINING_GRID)
    weight = torch.rand_like(pair_affinity(edge, paths))
    ours, grad = best_of(3, lambda: forward_backward(pair_affinity, edge, weight))
    gather, expected = best_of(3, lambda: forward_backward(gathered_affinity, edge, weight))
    difference = (grad - expected).abs().max() / expected.abs().max()
    print(
        f"pair affinity {TRAINING_GRID}, radius {TRAINING_RADIUS}, forward and backward: "
        f"ours {ours:.2f} s, gather {gather:.2f} s, ratio {gather / ours:.1f}, "
        f"gradient difference {difference:.1e} of the maximum"
    )


def main() -> None:
    """Parse the sizes and run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=48, help="rows of the map")
    parser.add_argument("--width", type=int, default=64, help="columns of the map")
    parser.add_argument("--maps", type=int, default=2, help="number of maps")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    compare_walks(args.height, args.width, args.maps)
    time_full_size()
    compare_affinities()


if __name__ == "__main__":
    main()
