"""State-dict keys of the published networks and of torchvision, renamed to ours and back."""

from collections.abc import Iterable, Mapping
from typing import Literal

from torch import Tensor

from misc.checkpoint import StateDict

Kind = Literal["cnn", "transformer", "irn"]

_BACKBONE, _PUBLISHED_BACKBONE = "backbone.", "resnet50."
_VIT = "vit."
_VIT_HEAD = "head."
# The published modules register the same tensors several times; `resnet50.*`, `classifier`, `fc_*`
# and `mean_shift` are the names to keep.
_DUPLICATES = ("stage", "backbone.", "newly_added.", "edge_layers.", "dp_layers.", "fc_dp7.4.")
# ImageNet classifier that some files carry along, and tables of IRNet's published training class
_UNUSED = ("resnet50.fc.", "path_indices", "disp_target")
_UNITS = ("reduce", "conv3x3", "increase")  # of DeepLab's published blocks: their convolutions


def from_published(state: Mapping[str, Tensor], kind: Kind) -> StateDict:
    """Rename a published state dict to our keys, each tensor once; our own keys stay."""
    if not _is_published(state, kind):
        return dict(state)
    if kind == "transformer":
        return {k if k.startswith(_VIT_HEAD) else _VIT + k: v for k, v in state.items()}
    return {
        _swap_prefix(key, _PUBLISHED_BACKBONE, _BACKBONE): value
        for key, value in state.items()
        if not key.startswith(_DUPLICATES + _UNUSED)
    }


def to_published(state: Mapping[str, Tensor], kind: Kind) -> StateDict:
    """Rename our state dict to the published keys, each tensor once.

    The published networks load the result with `strict=False`: their duplicate names share the
    tensors of the names given here.
    """
    old, new = (_VIT, "") if kind == "transformer" else (_BACKBONE, _PUBLISHED_BACKBONE)
    return {_swap_prefix(key, old, new): value for key, value in state.items()}


def _is_published(names: Iterable[str], kind: Kind) -> bool:
    """Whether keys are those of the published implementation.

    `backbone.` is a prefix of ours and of a published duplicate, so it decides nothing: the
    published networks are told by `resnet50.` and by a `cls_token` without prefix.
    """
    if kind == "transformer":
        return "cls_token" in names
    return any(name.startswith(_PUBLISHED_BACKBONE) for name in names)


def _swap_prefix(key: str, old: str, new: str) -> str:
    return new + key.removeprefix(old) if key.startswith(old) else key


def torchvision_to_deeplab(state: Mapping[str, Tensor]) -> StateDict:
    """Rename a torchvision ResNet with bottlenecks, without its `fc`, to DeepLab's published keys.

    `layer1.0.conv2.weight` becomes `layer2.block1.conv3x3.conv.weight`.
    """
    return {_deeplab_key(key): value for key, value in state.items()}


def _deeplab_key(key: str) -> str:
    stage, *inner, leaf = key.split(".")
    if not inner:  # conv1 or bn1
        return f"layer1.conv1.{stage[:-1]}.{leaf}"
    block, layer, *index = inner
    unit, part = (
        ("shortcut", ("conv", "bn")[int(index[0])])
        if layer == "downsample"
        else (_UNITS[int(layer[-1]) - 1], layer[:-1])
    )
    return f"layer{int(stage[-1]) + 1}.block{int(block) + 1}.{unit}.{part}.{leaf}"
