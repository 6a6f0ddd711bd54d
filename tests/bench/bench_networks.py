"""The networks on one core: as the product runs them against straightforward forms.

    python tests/bench/bench_networks.py [--rounds 3] [--rows cam_cnn,irn]

Every row alternates, in one process on random weights, between the reference, ours in float32 and
ours in bfloat16. References are the same networks without what is done for speed: planes in
memory, batch norms as they are, every map computed, one scale and one tile or picture at a time;
of training steps there is one form. Seconds are
those of the processor; ratios, reference by ours, are medians over the rounds. The rows are those
of a Markdown table.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from deeplab.config import Config as DeepLabConfig
from deeplab.model import build_model, msc_loss
from misc.precision import BFLOAT16, FLOAT32, autocast
from net.affinity import path_index
from net.backbone import build_backbone
from net.deit_cam import DeitCam, build_deit_cam
from net.folding import fold_batch_norms
from net.irn import IRNet
from net.losses import irn_losses
from net.resnet_cam import CnnCam, build_cnn_cam
from net.vit import build_vit
from wsol.model import TsCam

Call = Callable[[], object]
CPU = torch.device("cpu")
PICTURE = (375, 500)
SCALES = (1.0, 0.5, 1.5)
HEADER = "| what | s reference | s float32 | s bfloat16 | ratio float32 | ratio bfloat16 |"


def cam_cnn() -> tuple[str, Call, Call]:
    """ResNet152's CAM of a picture and its mirror image."""
    reference, ours = (build_cnn_cam("resnet152", 20, "random").eval() for _ in range(2))
    fold_batch_norms(ours)
    image = torch.randn(3, *PICTURE)
    return "ResNet152 CAM, 375x500", lambda: _plain_cam(reference, image), lambda: ours.cam(image)


@torch.no_grad()
def _plain_cam(model: CnnCam | DeitCam, image: Tensor) -> Tensor:
    first, second = model(torch.stack([image, image.flip(-1)])).relu()
    return first + second.flip(-1)


def cam_deit() -> tuple[str, Call, Call]:
    """DeiT-S's CAMs of some scales of a picture."""
    model = build_deit_cam("deit_small_patch16_224", 20, init="random").eval()
    images = [torch.randn(3, *(round(side * scale) for side in PICTURE)) for scale in SCALES]
    return (
        f"DeiT-S CAMs, 375x500 at {', '.join(map(str, SCALES))}",
        lambda: [model.cams([image], tile_batch=1) for image in images],
        lambda: model.cams(images),
    )


def irn() -> tuple[str, Call, Call]:
    """IRNet's edges of a picture, as the masks need them."""
    reference, ours = (IRNet(build_backbone("resnet50", "random")).eval() for _ in range(2))
    fold_batch_norms(ours.backbone)
    image, pair = torch.randn(3, *PICTURE), torch.randn(2, 3, 512, 512)

    @torch.no_grad()
    def both() -> object:
        return reference(pair)

    return (
        "IRNet edges, 375x500 in 512x512",
        both,
        lambda: ours.edge_displacement(image, with_displacement=False),
    )


def train_cnn() -> tuple[str, Call, Call]:
    """A training step of ResNet152; the gradient stops after layer2."""
    model, images = build_cnn_cam("resnet152", 20, "random").train(), torch.randn(2, 3, 336, 336)
    return "ResNet152 CAM step, 2 of 336", *_steps(model, images)


def train_deit() -> tuple[str, Call, Call]:
    """A training step of DeiT-S in three passes over four tiles."""
    model = build_deit_cam("deit_small_patch16_224", 20, init="random").train()
    return "DeiT-S CAM step, 1 of 336", *_steps(model, torch.randn(1, 3, 336, 336))


def _steps(model: torch.nn.Module, images: Tensor) -> tuple[Call, Call]:
    def step() -> None:
        model.zero_grad()
        model(images).float().square().mean().backward()

    return step, step


def irn_step() -> tuple[str, Call, Call]:
    """IRNet's losses and their gradient; no graph is kept of the frozen backbone."""
    paths = path_index(10)
    model, images = IRNet(build_backbone("resnet50", "random")).train(), torch.randn(2, 3, 320, 320)
    labels = torch.randint(0, 3, (2, 80, 80))

    def step() -> None:
        model.zero_grad()
        edge, displacement = model(images)
        irn_losses(edge.float(), displacement.float(), labels, paths, 20).total().backward()

    return "IRNet step, 2 of 320", step, step


def deeplab_test() -> tuple[str, Call, Call]:
    """DeepLab's logits of a picture over its scales."""
    reference, ours = (build_model(DeepLabConfig()).eval() for _ in range(2))
    fold_batch_norms(ours.base)
    image = torch.randn(1, 3, *PICTURE)

    def of(network: torch.nn.Module) -> Call:
        return torch.no_grad()(lambda: network(image))

    return "DeepLab test, 375x500, four scales", of(reference), of(ours)


def deeplab_step() -> tuple[str, Call, Call]:
    """DeepLab's loss over its scales and its gradient."""
    model, images = build_model(DeepLabConfig()).train(), torch.randn(1, 3, 321, 321)
    labels = torch.randint(0, 21, (1, 321, 321))

    def step() -> None:
        model.zero_grad()
        msc_loss([one.float() for one in model.forward_all(images)], labels)[0].backward()

    return "DeepLab step, 1 of 321, four scales", step, step


def wsol_eval() -> tuple[str, Call, Call]:
    """TS-CAM's maps of a batch, with fused attention."""
    vit = build_vit("deit_small_patch16_224", 224, "random")
    model, images = TsCam(vit, 200).eval(), torch.randn(8, 3, 224, 224)
    one = torch.no_grad()(lambda: [model.maps_and_attention(image[None]) for image in images])
    return "WSOL maps, 8 of 224", one, torch.no_grad()(lambda: model.maps_and_attention(images))


ROWS = {
    row.__name__: row
    for row in (
        cam_cnn,
        cam_deit,
        irn,
        train_cnn,
        train_deit,
        irn_step,
        deeplab_test,
        deeplab_step,
        wsol_eval,
    )
}


def main() -> None:
    """Print a row per network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", default=",".join(ROWS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(HEADER, "|---|---|---|---|---|---|", sep="\n")
    for name in args.rows.split(","):
        what, reference, ours = ROWS[name]()
        forms = ((reference, FLOAT32), (ours, FLOAT32), (ours, BFLOAT16))
        rounds = list(_rounds(forms, args.rounds))
        seconds = [f"{median(column):.3f}" for column in zip(*rounds, strict=True)]
        ratios = [f"{median(r[0] / r[form] for r in rounds):.2f}" for form in (1, 2)]
        print("|", " | ".join([what, *seconds, *ratios]), "|", flush=True)


def _rounds(forms: tuple[tuple[Call, str], ...], rounds: int) -> Iterator[list[float]]:
    """Seconds of every form, round by round."""
    for number in range(rounds + 1):
        seconds = []
        for call, precision in forms:
            start = time.process_time()
            with autocast(CPU, precision):
                call()
            seconds.append(time.process_time() - start)
        if number:  # the first round warms up
            yield seconds


if __name__ == "__main__":
    main()
