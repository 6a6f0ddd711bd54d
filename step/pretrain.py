"""Make the sample's own miniature of ImageNet weights: `python -m step.pretrain`.

The paper's networks start from ImageNet; those of the built-in sample start from the files that
this command writes. It paints tens of thousands of scenes with other seeds than the sample's and
trains a CNN and a ViT on their image labels alone, as ImageNet classifiers are trained: the CNN
through the mean of its last map, the ViT through its class token. Classifiers are left out of the
files.

Painted scenes are kept and trainings go on after their last epoch: run it again after an
interruption.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from timm.layers import PatchDropout
from torch import Tensor, nn

from misc.arguments import HelpFormatter, non_negative_int, positive_int
from misc.distributed import select_device
from misc.entry import run_entry
from misc.files import atomic_path
from misc.progress import log, progress
from misc.provenance import Record, seal_record, write_record
from misc.schedule import PolyAdamW, PolySGD
from misc.seed import seed_everything
from misc.training import Loss, Training
from net.backbone import build_backbone
from net.resnet_cam import CnnCam
from net.vit import bare_vit, embed, run_blocks
from step.presets import PRESETS, SAMPLE_CNN, SAMPLE_VIT, SAMPLE_WEIGHTS
from voc12.sample.scene_sets import CLASSES, SceneSet, write_array

STEP = "pretrain"
DIGESTS_FILE = "scenes.npy"

NETWORKS = {name: PRESETS["demo"][name] for name in ("cnn", "cnn_args", "vit", "vit_args")}
CROP_SIZE = PRESETS["demo"]["tile_size"]
LONG_SIDE = (96, 180)  # pixels
# Of the patches this share is left out at random. The class token must make do with whatever part
# of an object is left, so that it learns to attend to all of its parts.
PATCH_DROP, ATTENTION_DROP = 0.9, 0.2
MOST_PASSES = 3
_HELD_OUT_PARTS = 1  # scored after every epoch, not trained on
_DEFAULT_PARTS = 24


class ClassTokenClassifier(nn.Module):
    """A ViT whose class token is classified, after one to `most_passes` passes of its blocks.

    ImageNet's DeiT passes its blocks once, and the CAM training gets it used to the recursion of
    `net.deit_cam.DeitCam`. The sample's is too short for that: here every step draws a number of
    passes, so that no number is favoured. Random patches are left out while training.
    """

    def __init__(self, vit: nn.Module, num_classes: int, most_passes: int, drop: float) -> None:
        super().__init__()
        self.vit = vit
        self.drop = PatchDropout(drop)
        self.head = nn.Linear(vit.embed_dim, num_classes)
        self.most_passes = most_passes

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) to logits (B, C)."""
        most = self.most_passes
        passes = int(torch.randint(1, most + 1, ())) if self.training else most
        tokens, rope = embed(self.vit, images)
        tokens = self.drop(tokens)
        for _ in range(passes):
            tokens = tokens + run_blocks(self.vit, tokens, rope)
        return self.head(self.vit.norm(tokens)[:, 0])


class MeanMapClassifier(CnnCam):
    """The CNN branch, classified by the means of its maps as in the CAM training."""

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) to logits (B, C)."""
        return super().forward(images).mean(dim=(2, 3))


def build_cnn() -> MeanMapClassifier:
    """The sample's CNN with random weights."""
    backbone = build_backbone(
        NETWORKS["cnn"], "random", model_args=NETWORKS["cnn_args"], fixed_batchnorm=False
    )
    return MeanMapClassifier(backbone, len(CLASSES), frozen_stages=0)


def build_vit() -> ClassTokenClassifier:
    """The sample's ViT with random weights, regularised for this training alone."""
    vit = bare_vit(NETWORKS["vit"], CROP_SIZE, NETWORKS["vit_args"])
    for block in vit.blocks:
        block.attn.attn_drop.p = ATTENTION_DROP
    return ClassTokenClassifier(vit, len(CLASSES), MOST_PASSES, PATCH_DROP)


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Attributes:
        file: of its weights.
        build: makes the classifier.
        weights: the part of the classifier that is kept.
        epochs: number of epochs.
        batch_size: scenes per step.
        optimiser: made of the parameters and `max_step`.
    """

    file: str
    build: Callable[[], nn.Module]
    weights: Callable[[Any], nn.Module]
    epochs: int
    batch_size: int
    optimiser: Callable[..., torch.optim.Optimizer]


RECIPES = {
    "cnn": Recipe(
        SAMPLE_CNN.name,
        build_cnn,
        lambda classifier: classifier.backbone.features,
        3,
        32,
        partial(PolySGD, lr=0.1, weight_decay=1e-4, momentum=0.9),
    ),
    "transformer": Recipe(
        SAMPLE_VIT.name,
        build_vit,
        lambda classifier: classifier.vit,
        10,
        64,
        partial(PolyAdamW, lr=1e-3, weight_decay=0.05),
    ),
}


def pretrain(args: argparse.Namespace) -> None:
    """Paint, train one network after the other, write weights, records and digests."""
    dataset, held_out = _scenes(args)
    for name in args.networks:
        train(name, dataset, held_out, args)
    write_array(args.output / DIGESTS_FILE, dataset.digests())
    log(f"wrote {args.output / DIGESTS_FILE}")


def _scenes(args: argparse.Namespace) -> tuple[SceneSet, SceneSet]:
    """What is trained on, and what is scored."""
    folder, options = _folder(args), (CROP_SIZE, LONG_SIDE, args.num_workers)
    return (
        SceneSet(folder / "scenes", args.parts, args.seed, *options),
        SceneSet(folder / "held_out", _HELD_OUT_PARTS, args.seed + 1, *options),
    )


def _folder(args: argparse.Namespace) -> Path:
    return args.work_dir / f"seed{args.seed}"


def train(name: str, dataset: SceneSet, held_out: SceneSet, args: argparse.Namespace) -> None:
    """Train one network of `RECIPES` and write its weights with their record."""
    recipe, device = RECIPES[name], select_device(args.device)
    seed_everything(args.seed)
    model, epochs = recipe.build().to(device), args.epochs or recipe.epochs
    record = _record(name, dataset, epochs)
    steps = len(dataset) // recipe.batch_size * epochs

    def step(networks: Mapping[str, nn.Module], batch: dict[str, Any], _: int) -> Loss:
        logits = networks[name](batch["image"])
        loss = F.multilabel_soft_margin_loss(logits, batch["label"])
        return Loss(loss, {name: loss.detach()})

    training = Training(
        title=f"{STEP} {name}",
        dataset=dataset,
        batch_size=recipe.batch_size,
        units=epochs,
        seed=args.seed,
        models={name: model},
        optimisers={name: recipe.optimiser(model.parameters(), max_step=steps)},
        step=step,
        device=device,
        state_path=_folder(args) / f"{name}.state.pth",
        fingerprint=record.fingerprint,
        measure=lambda _: score(model, held_out, device, recipe.batch_size),
    )
    training.run()
    _write(args.output / recipe.file, recipe.weights(model), record, training.history)


@torch.no_grad()
def score(
    model: nn.Module, scenes: SceneSet, device: torch.device, batch_size: int
) -> dict[str, float]:
    """Loss over scenes, and the share of labels that are right."""
    model.eval()
    items = iter(progress([scenes[0, place] for place in range(len(scenes))], "score"))
    logits, labels = [], []
    while batch := list(islice(items, batch_size)):
        logits.append(model(torch.stack([item["image"] for item in batch]).to(device)))
        labels.extend(item["label"] for item in batch)
    scores, truth = torch.cat(logits).cpu(), torch.stack(labels)
    right = ((scores > 0) == (truth > 0)).float().mean()
    return {"val": float(F.multilabel_soft_margin_loss(scores, truth)), "val_right": float(right)}


def _record(name: str, dataset: SceneSet, epochs: int) -> Record:
    """What the weights follow from."""
    settings: dict[str, Any] = {**NETWORKS, "crop_size": CROP_SIZE, "long_side": LONG_SIDE}
    if name == "transformer":
        settings |= {"patch_drop": PATCH_DROP, "attention_drop": ATTENTION_DROP}
        settings |= {"most_passes": MOST_PASSES}
    recipe = RECIPES[name]
    settings |= {"batch_size": recipe.batch_size, **recipe.optimiser.keywords}
    facts = {"scenes": len(dataset), "classes": CLASSES, "epochs": epochs, "seed": dataset.seed}
    return Record(f"{STEP} {name}", {**settings, **facts})


def _write(path: Path, part: nn.Module, record: Record, history: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, record, facts={"history": history})
    with atomic_path(path) as temporary:
        temporary.write_bytes(save({name: _half(v) for name, v in part.state_dict().items()}))
    seal_record(path)
    log(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")


def _half(value: Tensor) -> Tensor:
    """Numbers as float16, counters as they are."""
    return (value.half() if value.is_floating_point() else value).cpu().contiguous()


def main(argv: Sequence[str] | None = None) -> int:
    """Pretrain the sample's networks; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="step.pretrain",
        description=__doc__.split("\n\n")[1],
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--work_dir",
        type=Path,
        default=Path("sess/pretrain"),
        help="scenes (61 MB a thousand) and state of the training",
    )
    parser.add_argument(
        "--output", type=Path, default=SAMPLE_WEIGHTS, help="folder of the weight files"
    )
    parser.add_argument(
        "--networks", nargs="+", choices=list(RECIPES), default=list(RECIPES), help="to be trained"
    )
    parser.add_argument(
        "--parts", type=positive_int, default=_DEFAULT_PARTS, help="1000 scenes each"
    )
    parser.add_argument(
        "--epochs", type=positive_int, help="of each network (default: that of its recipe)"
    )
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of scenes and training")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:INDEX")
    parser.add_argument(
        "--num_workers", type=non_negative_int, default=2, help="processes that paint"
    )
    return run_entry(parser.prog, lambda: pretrain(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
