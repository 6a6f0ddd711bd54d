"""The transformer branch: recursive passes, overlapping tiles, class maps times attention."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from net.model_arguments import ModelArgs
from net.normalisation import InputConversion
from net.option_names import ARGUMENTS, OptionNames
from net.tiling import (
    TileGrid,
    cut_tiles,
    each_tile,
    merge_tiles,
    pad_to_tiles,
    padded_grid,
    require_tiles,
)
from net.vit import Vit, bare_vit, embed, patch_tokens, record_cls_rows, run_blocks
from net.vit_weights import load_initial


class DeitCam(nn.Module):
    """Vision transformer whose class maps are merged over overlapping tiles.

    Two progressive ideas of the paper (section 3): the tokens x pass the *same* blocks `num_passes`
    times with an outer residual, x <- x + Blocks(x); and the picture is seen through overlapping
    tiles that run alone and are averaged back.

    Args:
        vit: timm ViT for `tile_size` inputs.
        num_classes: number of foreground classes C.
        num_passes: how often the blocks are run; published 3.
        tile_stride: pixels between tiles, divides the tile and is a multiple of the patch;
            published 112. See `net.tiling.require_tiles`.

    Attributes:
        use_attention: whether CAMs are the class maps times the class token's attention, as
            published, or the class maps alone.
    """

    def __init__(
        self, vit: Vit, num_classes: int, num_passes: int = 3, tile_stride: int = 112
    ) -> None:
        super().__init__()
        self.vit = vit
        self.convert_input = InputConversion(getattr(vit, "default_cfg", None))
        self.head = nn.Conv2d(vit.embed_dim, num_classes, kernel_size=3, padding=1)
        self.num_passes = num_passes
        self.patch_size: int = vit.patch_embed.patch_size[0]
        self.tile_size: int = vit.patch_embed.img_size[0]
        self.tile_stride = tile_stride
        self.use_attention = True

    def _tile_maps(self, tiles: Tensor) -> Tensor:
        """Class maps of tiles: (T, 3, S, S) -> raw head output (T, C, S / patch, S / patch)."""
        tokens, rope = embed(self.vit, self.convert_input(tiles))
        for _ in range(self.num_passes):
            tokens = tokens + run_blocks(self.vit, tokens, rope)
        return self.head(patch_tokens(self.vit, tokens))

    def forward(self, images: Tensor) -> Tensor:
        """Merged raw class maps for training.

        Args:
            images: (B, 3, h, w) whose sides the tiles cover exactly, such as 336 for 224 / 112.

        Returns:
            (B, C, h / patch, w / patch).
        """
        grid = TileGrid(*images.shape[-2:], self.tile_size, self.tile_stride)
        return merge_tiles(self._tile_maps(cut_tiles(images, grid)), grid.scaled(self.patch_size))

    def tile_cams(self, tiles: Tensor) -> Tensor:
        """Class maps times the class token's attention, per tile; see `use_attention`.

        The attention is averaged over heads and summed over blocks and passes.

        Args:
            tiles: (T, 3, S, S).

        Returns:
            (T, C, S / patch, S / patch).
        """
        if not self.use_attention:
            return self._tile_maps(tiles)
        with record_cls_rows(self.vit) as rows:
            maps = self._tile_maps(tiles)
        return rows.as_map(self.vit.patch_embed.grid_size).to(maps.dtype) * maps

    @torch.no_grad()
    def cams(self, images: Sequence[Tensor], tile_batch: int = 32) -> list[Tensor]:
        """CAMs of pictures of any sizes, each averaged with nothing but summed over its flip.

        Tiles have one size whatever the picture, so tiles of all pictures, scales and flips share
        batches of `tile_batch`. They are cut when their batch runs: beside the pictures there are
        only one batch of tiles, the padded pictures it is cut from, and the small class maps.

        Args:
            images: normalised pictures (3, h, w), for example one picture at several scales.
            tile_batch: tiles per forward pass.

        Returns:
            Per picture (C, ceil(h / patch), ceil(w / patch)), non-negative float32.
        """
        tiles, batches = self._tiles_of_pairs(images), []
        while batch := list(islice(tiles, tile_batch)):
            batches.append(self.tile_cams(torch.stack(batch)).float())
        sizes = [image.shape[-2:] for image in images]
        grids = [padded_grid(*size, self.tile_size, self.tile_stride) for size in sizes]
        parts = torch.cat(batches).split([2 * grid.count for grid in grids])
        return [
            self._merge_pair(part, grid, size)
            for part, grid, size in zip(parts, grids, sizes, strict=True)
        ]

    def _tiles_of_pairs(self, images: Sequence[Tensor]) -> Iterator[Tensor]:
        """Tiles (3, S, S) of [picture, flip] of every picture, one pair in memory at a time."""
        for image in images:
            yield from each_tile(
                *pad_to_tiles(
                    torch.stack([image, image.flip(-1)]), self.tile_size, self.tile_stride
                )
            )

    def _merge_pair(self, maps: Tensor, grid: TileGrid, size: tuple[int, int]) -> Tensor:
        """Merge the tiles of [picture, flip], crop the padding, relu, add the flip flipped back."""
        merged = merge_tiles(maps, grid.scaled(self.patch_size))
        rows, columns = (-(-side // self.patch_size) for side in size)
        first, second = merged[..., :rows, :columns].relu()
        return first + second.flip(-1)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Trainable parameters: (transformer, head); the head learns ten times as fast."""
        return [p for p in self.vit.parameters() if p.requires_grad], list(self.head.parameters())


def build_deit_cam(
    name: str,
    num_classes: int,
    tile_size: int = 224,
    tile_stride: int = 112,
    num_passes: int = 3,
    init: str = "pretrained",
    weights: str | None = None,
    model_args: ModelArgs = None,
    names: OptionNames = ARGUMENTS,
) -> DeitCam:
    """Build the transformer branch; see `net.vit.build_vit` for the arguments and errors."""
    vit = bare_vit(name, tile_size, model_args, names)
    require_tiles(vit.patch_embed.patch_size[0], tile_size, tile_stride, names)
    model = DeitCam(vit, num_classes, num_passes, tile_stride)
    load_initial(vit, name, init, weights, model_args, names)
    return model
