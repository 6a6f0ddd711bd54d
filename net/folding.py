"""Batch norms folded into the convolutions before them, for networks that only infer.

A batch norm in evaluation mode is a scale and a shift per channel, as is a convolution's weight and
bias; one convolution does both, and the norm's pass over memory is saved (`tests/bench`).
"""

from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_EXAMPLE_SHAPE = (1, 3, 64, 64)
_TOLERANCE = 1e-4  # of the greatest output: rounding stays far below, anything else far above


@torch.no_grad()
def fold_batch_norms(network: nn.Module) -> int:
    """Fold what can be folded, in place; the network computes the same up to float rounding.

    A norm is folded where it is given the very output of a convolution, as one pass shows. Where
    that output goes elsewhere, too, the network would compute something else: then, as a second
    pass shows, everything is left as it was.

    Args:
        network: in evaluation mode; it takes (B, 3, h, w) and returns a tensor or several.

    Returns:
        The number of norms that are folded.
    """
    device = next(network.parameters()).device
    example = torch.rand(_EXAMPLE_SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
    pairs, before = _pairs(network, example)
    kept = [(conv, conv.weight, conv.bias) for conv, _ in pairs]
    places = {
        child: (parent, name)
        for parent in network.modules()
        for name, child in parent.named_children()
    }
    for conv, norm in pairs:
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        setattr(*places[norm], _remainder(norm))
    if _agree(before, _tensors(network(example))):
        return len(pairs)
    for (conv, weight, bias), (_, norm) in zip(kept, pairs, strict=True):
        conv.weight, conv.bias = weight, bias
        setattr(*places[norm], norm)
    return 0


def _pairs(
    network: nn.Module, example: Tensor
) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], list[Tensor]]:
    """Convolutions with the norms that follow them, and the output of the network."""
    made_by: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensors live on: their ids are theirs
    calls: list[tuple[nn.Conv2d | None, nn.BatchNorm2d]] = []
    used: list[nn.Module] = []

    def after_convolution(module: nn.Conv2d, _: Any, output: Tensor) -> None:
        used.append(module)
        made_by[id(output)] = module, output

    def before_norm(module: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        used.append(module)
        calls.append((made_by.get(id(inputs[0]), (None,))[0], module))

    handles = []
    for module in network.modules():
        if type(module) in (nn.Conv2d, Conv2dSame):  # others may change their weight on the way
            handles.append(module.register_forward_hook(after_convolution))
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(before_norm))
    try:
        output = _tensors(network(example))
    finally:
        for handle in handles:
            handle.remove()
    once = {module for module in used if used.count(module) == 1}
    return [(conv, norm) for conv, norm in calls if conv in once and norm in once], output


def _remainder(norm: nn.BatchNorm2d) -> nn.Module:
    """What is left of a norm: timm's have an activation."""
    if isinstance(norm, BatchNormAct2d):
        return nn.Sequential(norm.drop, norm.act)
    return nn.Identity()


def _tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


def _agree(before: list[Tensor], after: list[Tensor]) -> bool:
    """Whether outputs are equal up to rounding; never where they are not finite."""
    return all(
        bool((one - other).abs().max() <= _TOLERANCE * one.abs().max())
        for one, other in zip(before, after, strict=True)
    )
