"""Training losses of the CAM branches and of IRNet (CRT, section 3; IRNet, section 4)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from misc.distributed import all_reduce_sum, world_size
from net.affinity import PathIndex, pair_affinity, pair_labels

_EPSILON = 1e-5


class CamLosses(NamedTuple):
    """Scalars: classification losses of both branches and their mean absolute difference."""

    cnn: Tensor
    transformer: Tensor
    refinement: Tensor

    def total(self, cam_lambda: float) -> Tensor:
        """Sum with the refinement weighted by `cam_lambda`; 0 leaves it out."""
        classification = self.cnn + self.transformer
        return classification + cam_lambda * self.refinement if cam_lambda else classification


def classification_loss(maps: Tensor, labels: Tensor) -> Tensor:
    """Multi-label soft margin loss of spatially averaged raw maps.

    Args:
        maps: (B, C, h, w).
        labels: (B, C) of 0 and 1.
    """
    return F.multilabel_soft_margin_loss(maps.float().mean(dim=(2, 3)), labels)


def refinement_loss(first: Tensor, second: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean absolute difference of two branches' maps (B, C, *, *), both resized to `size`."""

    def upsample(maps: Tensor) -> Tensor:
        return F.interpolate(maps.float(), size=size, mode="bilinear", align_corners=True)

    return (upsample(first) - upsample(second)).abs().mean()


def cam_losses(cnn_maps: Tensor, transformer_maps: Tensor, labels: Tensor, crop: int) -> CamLosses:
    """The three losses of one CAM training step; gradients reach both branches.

    Args:
        cnn_maps: (B, C, h, w) raw maps of the CNN.
        transformer_maps: (B, C, h', w') raw maps of the transformer.
        labels: (B, C) of 0 and 1.
        crop: side in pixels at which the maps are compared.
    """
    return CamLosses(
        classification_loss(cnn_maps, labels),
        classification_loss(transformer_maps, labels),
        refinement_loss(cnn_maps, transformer_maps, (crop, crop)),
    )


class IrnLosses(NamedTuple):
    """Scalars of one IRNet step."""

    positive: Tensor
    negative: Tensor
    displacement_foreground: Tensor
    displacement_background: Tensor

    def total(self) -> Tensor:
        """Half the affinity losses plus half the displacement losses."""
        displacement = self.displacement_foreground + self.displacement_background
        return (self.positive + self.negative) / 2 + displacement / 2


def irn_losses(
    edge: Tensor, displacement: Tensor, labels: Tensor, paths: PathIndex, num_classes: int
) -> IrnLosses:
    """Affinity and displacement losses over all pairs of cells within the radius.

    Args:
        edge: (B, 1, h, w) logits.
        displacement: (B, 2, h, w) in cells, (dy, dx).
        labels: (B, h, w) uint8; 0 background, 1..num_classes, anything else ignored.
        paths: pair geometry.
        num_classes: number of foreground classes.

    The means run over the pairs of all processes: averaged over the processes, as data parallel
    training averages gradients, losses and gradients are those of one process that has the whole
    batch.
    """
    background, foreground, different = pair_labels(labels, paths, num_classes)
    counts = torch.stack([pairs.sum() for pairs in (background, foreground, different)])
    in_background, in_foreground, in_different = all_reduce_sum(counts)
    affinity = pair_affinity(torch.sigmoid(edge.float()), paths)  # (B, pairs, sources)
    same = -torch.log(affinity + _EPSILON)
    positive = (_mean(background, same, in_background) + _mean(foreground, same, in_foreground)) / 2
    negative = _mean(different, -torch.log(1.0 + _EPSILON - affinity), in_different)
    pair = pair_displacement(displacement.float(), paths)  # (B, 2, pairs, sources)
    offsets = torch.as_tensor(paths.search_dst, dtype=pair.dtype)
    offsets = offsets.to(pair.device, non_blocking=True)
    to_offset = (pair - offsets.T[None, :, :, None]).abs().sum(dim=1)
    return IrnLosses(
        positive,
        negative,
        _mean(foreground, to_offset, 2 * in_foreground),
        _mean(background, pair.abs().sum(dim=1), 2 * in_background),
    )


def _mean(weight: Tensor, value: Tensor, terms: Tensor) -> Tensor:
    """This process's part of a weighted mean over `terms` terms of all processes."""
    return world_size() * (weight * value).sum() / (terms + _EPSILON)


def pair_displacement(displacement: Tensor, paths: PathIndex) -> Tensor:
    """Source minus destination displacement: (B, 2, h, w) to (B, 2, pairs, sources)."""
    return paths.sources(displacement)[:, :, None] - paths.destinations(displacement)
