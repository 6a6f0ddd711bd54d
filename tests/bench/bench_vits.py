"""ViTs of today as transformer branch: what each is made of, and seconds per tile on one core.

    python tests/bench/bench_vits.py [NAME ...] [--tile_size 224 --num_passes 3]

Every network is built with random weights; its class maps times attention are timed. The rows are
those of a Markdown table.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from net.deit_cam import DeitCam, build_deit_cam

NAMES = (
    "deit_small_patch16_224",
    "deit3_small_patch16_224.fb_in22k_ft_in1k",
    "vit_small_patch16_224.dino",
    "vit_small_patch16_224.augreg_in21k",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_base_patch14_dinov2.lvd142m",
    "vit_base_patch16_clip_224.openai",
    "vit_small_patch16_dinov3.lvd1689m",
    "vit_small_plus_patch16_dinov3.lvd1689m",
    "vit_base_patch16_dinov3.lvd1689m",
    "eva02_tiny_patch14_224.mim_in22k",
    "eva02_small_patch14_224.mim_in22k",
    "eva02_base_patch14_224.mim_in22k",
    "vit_small_patch16_rope_mixed_224.naver_in1k",
    "vit_pe_core_small_patch16_384.fb",
)
TILES = 4
HEADER = "| name | patch | input | class token + registers | rotary | parameters | s per tile |"


def main() -> None:
    """Print one row per network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help="timm's names")
    parser.add_argument("--tile_size", type=int, default=224, help="pixels")
    parser.add_argument("--num_passes", type=int, default=3, help="over the same blocks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(HEADER, "|---|---|---|---|---|---|---|", sep="\n")
    for name in args.names:
        size, passes = args.tile_size, args.num_passes
        model = build_deit_cam(name, 20, size, size // 2, passes, init="random").eval()
        print(_row(name, model), flush=True)


def _row(name: str, model: DeitCam) -> str:
    vit = model.vit
    rotary = "yes" if getattr(vit, "rope", None) is not None else "no"
    statistics = (
        "ImageNet" if vit.default_cfg["std"][0] == 0.229 else str(vit.default_cfg["std"][0])
    )
    millions = sum(p.numel() for p in vit.parameters()) / 1e6
    return (
        f"| `{name}` | {model.patch_size} | {statistics} | 1 + {vit.num_prefix_tokens - 1} | "
        f"{rotary} | {millions:.1f} M | {_seconds(model):.2f} |"
    )


@torch.no_grad()
def _seconds(model: DeitCam, repeats: int = 3) -> float:
    """Least seconds of a few tries, per tile."""
    tiles = torch.randn(TILES, 3, model.tile_size, model.tile_size)
    tries = []
    for _ in range(repeats):
        start = time.perf_counter()
        model.tile_cams(tiles)
        tries.append(time.perf_counter() - start)
    return min(tries) / TILES


if __name__ == "__main__":
    main()
