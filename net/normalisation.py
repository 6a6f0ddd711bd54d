"""Pictures in the normalisation that a timm network was trained with."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

_IMAGENET = {"mean": tuple(IMAGENET_DEFAULT_MEAN), "std": tuple(IMAGENET_DEFAULT_STD)}


class InputConversion(nn.Module):
    """Convert pictures with ImageNet mean and standard deviation to those of a timm network.

    Nothing of it enters a state dict. A network with ImageNet's values gets its pictures as they
    are.

    Args:
        config: the network's `default_cfg`; ImageNet's values stand in for absent ones.
    """

    def __init__(self, config: Mapping[str, Any] | None) -> None:
        super().__init__()
        config = config or {}
        own = [tuple(config.get(key, value)) for key, value in _IMAGENET.items()]
        self._needed = own != list(_IMAGENET.values())
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in own)
        old_mean, old_std = (torch.tensor(values).view(3, 1, 1) for values in _IMAGENET.values())
        self.register_buffer("scale", old_std / std, persistent=False)
        self.register_buffer("shift", (old_mean - mean) / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) in ImageNet's normalisation to the same in the network's."""
        return images * self.scale + self.shift if self._needed else images


def input_statistics(name: str) -> str | None:
    """What a timm network converts its pictures to, in words for records.

    Args:
        name: timm's name; the tag of its weights decides, without one timm's first choice.

    Returns:
        Mean and standard deviation; None for those of ImageNet and for unknown names.
    """
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag, which building the network explains
        return None
    if config is None or all(tuple(getattr(config, k)) == v for k, v in _IMAGENET.items()):
        return None
    return f"mean {list(config.mean)}, standard deviation {list(config.std)}"
