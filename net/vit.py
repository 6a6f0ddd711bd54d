"""Plain vision transformers from timm, run block by block, with the class token's attention row."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from misc.errors import UserError
from net.pretrained import DEIT_SMALL, fetch, require_weights, state_for_timm

# what timm and torch raise for arguments that they do not know or cannot use
_BUILD_ERRORS = (
    TypeError,
    ValueError,
    AssertionError,
    AttributeError,
    RuntimeError,
    LookupError,
    ArithmeticError,
)


def build_vit(
    name: str,
    image_size: int,
    init: str = "pretrained",
    weights: str | None = None,
    model_args: dict[str, Any] | None = None,
) -> VisionTransformer:
    """Build a timm plain ViT without its classifier, for square inputs of `image_size` pixels.

    Args:
        name: timm model name, such as `deit_small_patch16_224`.
        image_size: side of the input in pixels; position embeddings are resized to it.
        init: `pretrained` (ImageNet) or `random`.
        weights: a local weight file that replaces the download.
        model_args: further keyword arguments of the timm model (depth, embed_dim, ...).

    Raises:
        UserError: unknown name, not a plain ViT with a class token and square patches, or weights
            that cannot be had.
    """
    if name not in timm.list_models():
        raise UserError(f"--vit {name} is not a timm model; see timm.list_models('*vit*').")
    options = dict(model_args or {}, num_classes=0, img_size=image_size)
    given = ",".join(f"{key}={value}" for key, value in (model_args or {}).items())
    asked = f"--vit {name} with --vit_args {given}" if given else f"--vit {name}"
    published = weights is None and init == "pretrained" and name == DEIT_SMALL.name
    by_timm = weights is None and init == "pretrained" and not published
    try:
        vit = timm.create_model(name, pretrained=by_timm, **options)
    except (OSError, ConnectionError) as error:
        raise UserError(
            f"the ImageNet weights of {name} could not be downloaded ({type(error).__name__}); "
            "name a local file with --vit_weights or start from --init random."
        ) from None
    except _BUILD_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{asked} cannot be built for {image_size} px tiles: {reason}.") from None
    _require_plain(vit, asked)
    if published:
        _load(vit, fetch(DEIT_SMALL, option="--vit_weights"), DEIT_SMALL.cached)
    elif weights is not None:
        _load(vit, state_for_timm(name, weights, model_args), weights)
    return vit


def _load(vit: VisionTransformer, state: dict[str, Tensor], source: Path | str) -> None:
    """Load all but the classifier; position embeddings are resized to the input's size."""
    own = vit.state_dict()
    require_weights(own, state, source, resized=("pos_embed",))
    kept = {key: value for key, value in state.items() if key in own}
    vit.load_state_dict(checkpoint_filter_fn(kept, vit))


def _require_plain(vit: nn.Module, asked: str) -> None:
    patch = getattr(getattr(vit, "patch_embed", None), "patch_size", (0, 1))
    plain = isinstance(vit, VisionTransformer) and vit.cls_token is not None
    if plain and not len(vit.blocks):
        raise UserError(f"{asked} has no transformer block; give a depth of at least 1.")
    if not plain or patch[0] != patch[1] or not hasattr(vit.blocks[0].attn, "qkv"):
        raise UserError(f"{asked} is not a plain ViT with a class token and square patches.")


def embed(vit: VisionTransformer, images: Tensor) -> Tensor:
    """Images (B, 3, S, S) to tokens with position embeddings (B, prefix + patches, dim)."""
    return vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))


def patch_tokens(vit: VisionTransformer, tokens: Tensor) -> Tensor:
    """Final norm, then the patch tokens as a map (B, dim, S / patch, S / patch)."""
    tokens = vit.norm(tokens)[:, vit.num_prefix_tokens :]
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


@contextmanager
def record_cls_rows(vit: VisionTransformer) -> Iterator[ClsRows]:
    """Record the class token's attention of every block that runs inside the context.

    The blocks keep their fused attention; only the one row softmax(q_cls k^T), averaged over
    heads, is formed on the side, from the queries and keys the block has projected anyway.
    """
    rows = ClsRows()
    prefix = vit.num_prefix_tokens

    def hook(attention: nn.Module) -> Any:
        def record(_: nn.Module, __: Any, qkv: Tensor) -> None:
            rows.add(_cls_row(attention, qkv)[:, prefix:])

        return attention.qkv.register_forward_hook(record)

    handles = [hook(block.attn) for block in vit.blocks]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def _cls_row(attention: nn.Module, qkv: Tensor) -> Tensor:
    """Head-averaged attention of token 0 to all tokens: projected qkv (B, N, 3 D) to (B, N)."""
    batch, tokens, _ = qkv.shape
    heads = qkv.reshape(batch, tokens, 3, attention.num_heads, -1)  # (B, N, 3, heads, d)
    query = attention.q_norm(heads[:, :1, 0].transpose(1, 2))  # (B, heads, 1, d)
    key = attention.k_norm(heads[:, :, 1].transpose(1, 2))  # (B, heads, N, d)
    logits = (query * attention.scale) @ key.transpose(-2, -1)
    return logits.softmax(dim=-1, dtype=torch.float32).mean(dim=1)[:, 0]
