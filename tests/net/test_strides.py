"""Strides: those of the networks, and known without torch."""

import subprocess
import sys
from pathlib import Path

import torch

from net.backbone import build_backbone
from net.irn import IRNet
from net.strides import GRID_STRIDE, OUTPUT_STRIDE

ROOT = Path(__file__).resolve().parents[2]
SIDE = 65  # one pixel more than a multiple of both strides


def test_networks_have_the_strides_that_the_options_are_checked_with() -> None:
    irn = IRNet(build_backbone("resnet50", init="random")).eval()
    image = torch.zeros(1, 3, SIDE, SIDE)
    with torch.no_grad():
        deepest = irn.backbone(image)[-1].shape[-2:]
        edge, displacement = irn(image)
    assert deepest == (SIDE // OUTPUT_STRIDE + 1,) * 2 == (5, 5)
    assert edge.shape[-2:] == displacement.shape[-2:] == (SIDE // GRID_STRIDE + 1,) * 2 == (17, 17)


def test_strides_and_names_of_options_do_not_load_torch() -> None:
    code = "import sys, net.option_names, net.strides; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
