"""One training step of both networks, their optimisers, and what changes from epoch to epoch."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from misc.precision import autocast
from net.losses import CamLosses, refinement_loss
from wsol.config import Config
from wsol.model import CNN, TRANSFORMER, Networks, logits_of

CLASSIFIER_FACTOR = 10.0  # learning rate of the CNN's classifier over that of the CNN
_PERCENT = 100.0


def build_optimisers(
    networks: Networks, config: Config, learning_rate: float
) -> dict[str, Optimizer]:
    """AdamW for the transformer, SGD for the CNN, whose classifier learns ten times as fast."""
    solver = config.SOLVER
    decayed, free = networks.transformer.parameter_groups()
    backbone, classifier = networks.cnn.parameter_groups()
    transformer = [
        {"params": decayed, "weight_decay": solver.VIT_WEIGHT_DECAY},
        {"params": free, "weight_decay": 0.0},
    ]
    cnn = [
        {"params": backbone, "lr": solver.CNN_LR},
        {"params": classifier, "lr": CLASSIFIER_FACTOR * solver.CNN_LR},
    ]
    decay = solver.CNN_WEIGHT_DECAY
    return {
        TRANSFORMER: AdamW(transformer, lr=learning_rate),
        CNN: SGD(cnn, lr=solver.CNN_LR, momentum=solver.CNN_MOMENTUM, weight_decay=decay),
    }


def rate_factor(config: Config, epoch: int) -> float:
    """Learning rate over its start in an epoch, from 1: it falls at multiples of LR_STEPS."""
    solver = config.SOLVER
    falls = sum(any(e % step == 0 for step in solver.LR_STEPS) for e in range(1, epoch + 1))
    return solver.LR_FACTOR**falls


def refine_weight(config: Config, epoch: int) -> float:
    """Weight of the L1 loss in an epoch, from 1: off and on in blocks of REFINE_EPOCHS epochs."""
    is_on = (epoch // config.SOLVER.REFINE_EPOCHS) % 2 == 1
    return config.SOLVER.REFINE_WEIGHT if is_on else 0.0


def training_losses(
    models: Mapping[str, nn.Module],
    images: Tensor,
    labels: Tensor,
    l1_weight: float,
    precision: str = "float32",
) -> tuple[CamLosses, Tensor]:
    """Losses of both networks over some pictures.

    Args:
        models: `transformer` and `cnn`, images to raw class maps.
        images: (B, 3, S, S) normalised crops.
        labels: (B,) class indices.
        l1_weight: weight of the L1 loss; with 0 it is only measured.
        precision: `float32` or `bfloat16`.

    Returns:
        Cross entropies and mean absolute difference of the maps; and the share of pictures in
        percent whose best class by the transformer is right.
    """
    with autocast(images.device, precision):
        maps = {name: model(images) for name, model in models.items()}
    logits = {name: logits_of(one) for name, one in maps.items()}
    with torch.set_grad_enabled(l1_weight > 0):
        difference = mean_difference(maps[TRANSFORMER], maps[CNN])
    losses = CamLosses(
        cnn=F.cross_entropy(logits[CNN], labels),
        transformer=F.cross_entropy(logits[TRANSFORMER], labels),
        refinement=difference,
    )
    right = (logits[TRANSFORMER].argmax(dim=1) == labels).float().mean()
    return losses, _PERCENT * right


def mean_difference(first: Tensor, second: Tensor) -> Tensor:
    """Mean absolute difference of raw maps (B, C, h, w); the second ones are resized if need be."""
    if first.shape == second.shape:  # as published; resizing has no deterministic gradient on GPUs
        return F.l1_loss(first.float(), second.float())
    return refinement_loss(first, second, first.shape[-2:])
