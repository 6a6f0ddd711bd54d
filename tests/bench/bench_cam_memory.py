"""Peak memory of the transformer's CAMs: tiles in batches against all tiles at once.

    python tests/bench/bench_cam_memory.py [--height 375 --width 500 --scale 2.0]

Both ways run in this process on the same DeiT-S with random weights and must agree.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from misc.distributed import peak_memory, reset_peak_memory
from net.deit_cam import build_deit_cam

ALL_TILES = 10**6


def main() -> None:
    """Print the peaks above the loaded model, their ratio and the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=375, help="pixels at scale 1")
    parser.add_argument("--width", type=int, default=500, help="pixels at scale 1")
    parser.add_argument("--scale", type=float, default=2.0, help="factor of the picture")
    parser.add_argument("--tile_batch", type=int, default=32, help="tiles per pass")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = build_deit_cam("deit_small_patch16_224", 20, init="random").eval()
    image = torch.randn(3, round(args.height * args.scale), round(args.width * args.scale))
    results, peaks, cpu = [], [], torch.device("cpu")
    for tile_batch in (args.tile_batch, ALL_TILES):
        reset_peak_memory(cpu)
        before = peak_memory(cpu)["cpu"]
        results.append(model.cams([image], tile_batch)[0])
        peaks.append((peak_memory(cpu)["cpu"] - before) / 2**20)
    difference = (results[0] - results[1]).abs().max() / results[1].abs().max()
    print(f"picture {image.shape[1]}x{image.shape[2]}, {args.tile_batch} tiles per pass")
    print(f"peak above the model: {peaks[0]:.0f} MiB, all tiles at once {peaks[1]:.0f} MiB")
    print(f"ratio {peaks[1] / peaks[0]:.1f}, largest relative difference {difference:.1e}")


if __name__ == "__main__":
    main()
