"""CNN branches on one core: channels side by side in memory against one after the other.

    python tests/bench/bench_cnns.py [--rounds 5]

In every round a pass and a training step run in either order of the memory, alternately, on random
weights. Seconds are those of the processor, so that other programs count little; the ratio is the
median over the rounds. The rows are those of a Markdown table.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from net.resnet_cam import CnnCam, build_cnn_cam

NARROW = {"channels": (32, 64, 128, 256), "stem_width": 16}
# name, arguments, pictures, side in pixels, frozen stages
NETWORKS = (
    ("resnet152", None, 2, 336, 3),
    ("resnet50", None, 2, 512, 3),
    ("resnet10t", NARROW, 8, 128, 0),
    ("resnet26", None, 2, 224, 0),
    ("tf_efficientnet_lite0", None, 2, 224, 0),
    ("regnety_002", None, 2, 224, 0),
    ("convnext_atto", None, 2, 224, 0),
)
HEADER = "| name | pictures | what | s in planes | s pixel by pixel | ratio |"


def main() -> None:
    """Print two rows per network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(HEADER, "|---|---|---|---|---|---|", sep="\n")
    for name, arguments, count, side, frozen in NETWORKS:
        model = build_cnn_cam(name, 20, "random", None, arguments, frozen)
        images = torch.randn(count, 3, side, side)
        for what, run in (("pass", _infer), ("training step", _train)):
            planes, pixels = _seconds(run, model, images, rounds)
            ratio = median(b / a for a, b in zip(planes, pixels, strict=True))
            print(
                f"| `{name}` | {count} of {side} | {what} | {median(planes):.3f} | "
                f"{median(pixels):.3f} | {ratio:.2f} |",
                flush=True,
            )


def _seconds(
    run: Callable[[CnnCam, Tensor], None], model: CnnCam, images: Tensor, rounds: int
) -> tuple[list[float], list[float]]:
    """Of every round, in planes and pixel by pixel."""
    orders = (images, images.contiguous(memory_format=torch.channels_last))
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for seconds, ordered in zip(found, orders, strict=True):
            start = time.process_time()
            run(model, ordered)
            if number:  # the first round warms up
                seconds.append(time.process_time() - start)
    return found


@torch.no_grad()
def _infer(model: CnnCam, images: Tensor) -> None:
    model.eval()(images)


def _train(model: CnnCam, images: Tensor) -> None:
    model.train().zero_grad()
    model(images).square().mean().backward()


if __name__ == "__main__":
    main()
