"""First weights of ViTs: per tag from the hub or by hand, loaded strictly in any layout of timm."""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import torch
from timm.models import eva, vision_transformer
from torch import Tensor, nn

from misc.checkpoint import load_checkpoint, state_dict_of
from misc.errors import UserError
from net.model_arguments import ModelArgs
from net.option_names import ARGUMENTS, OptionNames
from net.pretrained import DEIT_SMALL, Allowed, fetch, fetch_timm, load_strictly

_WRAPPERS = ("model_ema", "module")  # of EVA's training scripts, beside those of `state_dict_of`
_CLASSIFIER = ("head.", "head_dist.", "attn_pool.", "pre_logits.")  # parts that are not needed
_PATCHES = "patch_embed.proj.weight"
# Whose position embeddings timm resizes bilinearly, and of these whose corners it aligns.
_BILINEAR = ("flexivit", "radio")
_ALIGNED = ("base_patch16_radio_v3", "huge_patch16_radio_v3")
_FILTER_ERRORS = (KeyError, IndexError, RuntimeError, ValueError, TypeError, AssertionError)


def load_initial(
    vit: nn.Module,
    name: str,
    init: str = "pretrained",
    weights: str | None = None,
    model_args: ModelArgs = None,
    names: OptionNames = ARGUMENTS,
) -> None:
    """Give a network its first weights; its random ones stay with `init` random and no file.

    Args:
        vit: timm VisionTransformer or Eva without classifier.
        name: its timm name; the tag chooses the published file.
        init: `pretrained` or `random`.
        weights: a local file instead of the published one, in timm's layout or in one that timm
            converts (DeiT III, DINOv2, DINOv3, EVA-02, ..), in any floating-point type.
        model_args: what the network was built with; a `patch_size` allows to resize the patches.
        names: of the options, for messages.

    Raises:
        UserError: the weights cannot be had, or are those of another network.
    """
    if weights is not None:
        checkpoint = load_checkpoint(weights, mapped=True)
        for wrapper in _WRAPPERS:
            if isinstance(checkpoint.get(wrapper), Mapping):
                checkpoint = checkpoint[wrapper]
        state, source = state_dict_of(checkpoint), weights
    elif init != "pretrained":
        return
    elif name == DEIT_SMALL.name:
        state, source = fetch(DEIT_SMALL, names), DEIT_SMALL.cached
    else:
        state, source = fetch_timm(name, names)
    state = {key: v.float() if v.is_floating_point() else v for key, v in state.items()}
    if "patch_size" not in (model_args or {}):
        _require_patches(vit, name, state, source, names)
    _require_used_biases(vit, name, state, source)
    load_strictly(
        vit,
        _converted(vit, name, state, source),
        source,
        Allowed(left_out=_CLASSIFIER),
        called=name,
        remedy=f"give the weights of {name}",
    )


def _converted(
    vit: nn.Module, name: str, state: Mapping[str, Tensor], source: Path | str
) -> dict[str, Tensor]:
    """A state dict in timm's layout, by the filter that timm itself uses for this network."""
    if isinstance(vit, eva.Eva):
        convert = eva.checkpoint_filter_fn
    else:
        convert = partial(vision_transformer.checkpoint_filter_fn, adapt_layer_scale=True)
        if any(part in name for part in _BILINEAR):
            convert = partial(convert, interpolation="bilinear", antialias=False)
        if any(part in name for part in _ALIGNED):
            convert = partial(convert, align_corners=True)
    try:
        with redirect_stdout(io.StringIO()):  # timm prints what it leaves out
            return convert(dict(state), vit)
    except _FILTER_ERRORS:
        raise UserError(
            f"{source} does not fit {name}: timm cannot convert its tensors; give the "
            f"weights of {name}."
        ) from None


def _require_patches(
    vit: nn.Module, name: str, state: Mapping[str, Tensor], source: Path | str, names: OptionNames
) -> None:
    """timm would resize patches of another size without a word."""
    patch = vit.patch_embed.patch_size[0]
    for key, value in state.items():
        if key.endswith(_PATCHES) and value.ndim == 4 and value.shape[-1] != patch:
            raise UserError(
                f"{source} has patches of {value.shape[-1]} pixels, {name} has {patch}: give the "
                f"weights of {name}, or {names.arguments} patch_size={patch} to have them resized."
            )


def _require_used_biases(
    vit: nn.Module, name: str, state: Mapping[str, Tensor], source: Path | str
) -> None:
    """timm leaves out the biases of DINOv3 where its network has none; only zeros may go."""
    if not isinstance(vit, eva.Eva) or "storage_tokens" not in state:
        return
    lacks = getattr(vit.blocks[0].attn, "q_bias", None) is None
    for key, value in state.items():
        if lacks and key.endswith("attn.qkv.bias"):
            query, _, of_values = value.chunk(3)  # keys have none
            if torch.cat([query, of_values]).any():
                raise UserError(
                    f"{source} has biases of queries and values, which {name} does not: give "
                    f"{name.split('.')[0]}_qkvb."
                )
