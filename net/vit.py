"""Plain vision transformers from timm, run block by block, with the class token's attention row.

Two classes of timm are meant: `VisionTransformer` (ViT, DeiT, DINO, DINOv2, CLIP, ..) and `Eva`
(EVA, EVA-02, DINOv3, ..), whose blocks also get rotary position embeddings.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope, PatchEmbed
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from misc.errors import UserError
from net.model_arguments import ModelArgs, described, explained, require_free
from net.option_names import ARGUMENTS, OptionNames
from net.pretrained import require_timm_name
from net.vit_weights import load_initial

Vit = VisionTransformer | Eva

_MODULES = ("vision_transformer", "eva", "deit")  # of timm, where both classes are built
_ATTENTIONS = (Attention, AttentionRope, EvaAttention)  # softmax(q k^T) over all tokens


def build_vit(
    name: str,
    image_size: int,
    init: str = "pretrained",
    weights: str | None = None,
    model_args: ModelArgs = None,
    names: OptionNames = ARGUMENTS,
) -> Vit:
    """Build a timm plain ViT without its classifier, for square inputs of `image_size` pixels.

    Args:
        name: timm model name with or without a tag, such as `deit_small_patch16_224` or
            `vit_small_patch14_dinov2.lvd142m`. The tag chooses the weights, and the mean and
            standard deviation of the input.
        image_size: side of the input in pixels; position embeddings are resized to it.
        init: `pretrained` (the published weights of the tag) or `random`.
        weights: a local weight file that replaces the download.
        model_args: further keyword arguments of the timm model (depth, embed_dim, ...).
        names: of the options, for messages.

    Raises:
        UserError: unknown name, not a plain ViT with a class token and square patches, a size that
            its patches do not fill, or weights that cannot be had.
    """
    vit = bare_vit(name, image_size, model_args, names)
    load_initial(vit, name, init, weights, model_args, names)
    return vit


def bare_vit(
    name: str,
    image_size: int,
    model_args: ModelArgs = None,
    names: OptionNames = ARGUMENTS,
) -> Vit:
    """Build the network of `build_vit` with random weights.

    Raises:
        UserError: unknown name or arguments, or not a plain ViT with a class token.
    """
    require_timm_name(name, names, "see timm.list_models('*vit*')")
    asked = names.asked(name)
    if name.split(".")[0] not in timm.list_models(module=_MODULES):
        raise _not_plain(asked, "it is neither a VisionTransformer nor an Eva of timm")
    require_free(asked, model_args)
    built = described(asked, model_args, names)
    failed = f"{built} cannot be built for {image_size} px tiles"
    with explained(failed):
        vit = timm.create_model(name, **model_args or {}, num_classes=0, img_size=image_size)
    _require_plain(vit, asked)
    if vit.attn_pool is not None:  # a classifier's, which nothing here would train
        vit.reset_classifier(0, "token")
    for block in vit.blocks:
        block.attn.fused_attn = True  # whatever TIMM_FUSED_ATTN says: see `record_cls_rows`
    _require_whole_patches(vit, name, image_size, names)
    if not len(vit.blocks):
        raise UserError(f"{built} has no transformer block; give a depth of at least 1.")
    with explained(failed):
        _try_first_block(vit, image_size)
    return vit


def _require_whole_patches(vit: Vit, name: str, image_size: int, names: OptionNames) -> None:
    patch = vit.patch_embed.patch_size[0]
    if image_size % patch:
        below = image_size // patch * patch
        raise UserError(
            f"{names.size} {image_size} is not a multiple of the patch size {patch} of {name}; "
            f"give {below or patch} or {below + patch}."
        )


@torch.no_grad()
def _try_first_block(vit: Vit, image_size: int) -> None:
    """Fail now where sizes do not fit that timm does not look at, such as those of heads."""
    vit.eval()
    tokens, rope = embed(vit, torch.zeros(1, 3, image_size, image_size))
    vit.blocks[0](tokens, **_rotary(vit, rope, 0))
    vit.train()


def _require_plain(vit: nn.Module, asked: str) -> None:
    """Refuse networks whose maps or whose class token's attention would not be what they seem."""
    if not isinstance(vit, Vit):
        raise _not_plain(asked, f"timm builds a {type(vit).__name__}")
    if vit.cls_token is None:
        raise _not_plain(asked, "it has no class token, its patches are pooled")
    if type(vit.patch_embed) is not PatchEmbed or len(set(vit.patch_embed.patch_size)) > 1:
        raise _not_plain(asked, "its patches are not square pieces of the picture")
    if not all(isinstance(getattr(block, "attn", None), _ATTENTIONS) for block in vit.blocks):
        raise _not_plain(asked, "its blocks have another attention")
    if not isinstance(vit.patch_drop, nn.Identity | None):
        raise UserError(f"{asked} must keep all patches; leave patch_drop_rate out.")


def _not_plain(asked: str, reason: str) -> UserError:
    return UserError(
        f"{asked} is not a plain ViT with square patches and a class token that attends to "
        f"all of them ({reason}); give for example deit_small_patch16_224 or "
        "vit_small_patch16_dinov3."
    )


def embed(vit: Vit, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Images to tokens, and the rotary embedding that the blocks need.

    Args:
        vit: the network.
        images: (B, 3, S, S).

    Returns:
        Tokens with position embeddings (B, prefix + patches, dim), and the rotary embedding of the
        patches, one per block where timm mixes its frequencies by depth; None without.
    """
    tokens = vit._pos_embed(vit.patch_embed(images))
    if isinstance(vit, Eva):
        tokens, rope = tokens
        return vit.norm_pre(tokens), rope
    return vit.norm_pre(tokens), None


def run_blocks(vit: Vit, tokens: Tensor, rope: Tensor | None) -> Tensor:
    """Run all blocks once: tokens (B, N, dim) to the same; `rope` as of `embed`."""
    for index, block in enumerate(vit.blocks):
        tokens = block(tokens, **_rotary(vit, rope, index))
    return tokens


def _rotary(vit: Vit, rope: Tensor | None, index: int) -> dict[str, Tensor]:
    """The rotary embedding as an argument of a block."""
    if rope is None:
        return {}
    return {"rope": rope[index] if vit.rope_mixed else rope}


def patch_tokens(vit: Vit, tokens: Tensor) -> Tensor:
    """Final norm, then the patch tokens as a map (B, dim, S / patch, S / patch).

    Networks that average their patches before the classifier have their final norm behind the
    average (`fc_norm`); here it is applied to each patch.
    """
    tokens = vit.fc_norm(vit.norm(tokens))[:, vit.num_prefix_tokens :]
    rows, columns = vit.patch_embed.grid_size
    return tokens.transpose(1, 2).reshape(len(tokens), -1, rows, columns)


class ClsRows:
    """Sum over attention layers of the class token's attention to the patches."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(self, row: Tensor) -> None:
        """Add one layer's row (B, patches)."""
        self.total = row if self.total is None else self.total + row

    def as_map(self, grid_size: tuple[int, int]) -> Tensor:
        """The sum as (B, 1, rows, columns)."""
        assert self.total is not None, "no block ran while the rows were recorded"
        return self.total.reshape(-1, 1, *grid_size)


class _Listener(TorchFunctionMode):
    """Adds a row for every call of torch's fused attention, which goes on as it is."""

    def __init__(self, rows: ClsRows, prefix: int) -> None:
        super().__init__()
        self.rows = rows
        self.prefix = prefix

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query, key = args[:2]
            self.rows.add(_cls_row(query, key)[:, self.prefix :])
        return func(*args, **(kwargs or {}))


@contextmanager
def record_cls_rows(vit: Vit) -> Iterator[ClsRows]:
    """Record the class token's attention of every block that runs inside the context.

    The blocks keep their fused attention; only the one row softmax(q_cls k^T), averaged over
    heads, is formed on the side, from the very queries and keys that the fused attention is given:
    projected, normed and rotated as the block does it.
    """
    rows = ClsRows()
    with _Listener(rows, vit.num_prefix_tokens):
        yield rows


def _cls_row(query: Tensor, key: Tensor) -> Tensor:
    """Head-averaged attention of token 0: queries and keys (B, heads, N, d) to (B, N)."""
    scaled = query[:, :, :1] * query.shape[-1] ** -0.5  # (B, heads, 1, d)
    logits = scaled @ key.transpose(-2, -1)
    return logits.softmax(dim=-1, dtype=torch.float32).mean(dim=1)[:, 0]
