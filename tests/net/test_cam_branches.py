"""CNN and transformer branches against the published implementation."""

import numpy as np
import pytest
import torch
from networks import NUM_CLASSES, SMALL_VIT, golden_cnn, golden_deit, picture, small_deit
from numpy.testing import assert_allclose
from torch import nn

from net.deit_cam import DeitCam
from net.resnet_cam import build_cnn_cam
from net.tiling import cut_tiles, pad_to_tiles
from net.vit import embed, patch_tokens, record_cls_rows, run_blocks


@pytest.fixture(scope="module")
def deit() -> DeitCam:
    return golden_deit()


def assert_close(actual: torch.Tensor, expected: np.ndarray) -> None:
    """Equal to 1e-4 of the largest value."""
    assert actual.shape == expected.shape
    assert_allclose(
        actual.detach().numpy(), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
    )


def test_cnn_maps_equal_published(golden):
    expected = golden("cam_cnn")
    model = golden_cnn().train()  # batch norm stays fixed in training
    images = torch.stack([picture("cnn/a", 96, 112), picture("cnn/b", 96, 112)])
    with torch.no_grad():
        assert_close(model(images), expected["train_out"])
    assert_close(model.eval().cam(images[0]), expected["infer_out"])


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])  # the latter pads this picture
def test_cams_of_a_cnn_run_pixel_by_pixel(name):
    """Its convolutions see channels side by side in memory; the values are those of a plain run."""
    torch.manual_seed(0)
    model, image = build_cnn_cam(name, 3, init="random").eval(), picture("cnn/a", 90, 100)
    with torch.no_grad():
        first, second = model(torch.stack([image, image.flip(-1)])).relu()
    seen = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    cam = model.cam(image)
    assert len(seen) > 10
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in seen)
    assert all(value.is_contiguous() for value in model.state_dict().values())
    expected = first + second.flip(-1)
    torch.testing.assert_close(cam, expected, rtol=1e-4, atol=1e-4 * float(expected.max()))


def test_deit_training_maps_equal_published(golden, deit):
    with torch.no_grad():
        maps = deit(picture("deit/train", 336, 336)[None])
    assert_close(maps, golden("cam_deit")["train_336"])


@pytest.mark.parametrize(
    ("name", "height", "width"),
    [("deit/infer0", 150, 200), ("deit/infer1", 240, 300), ("deit/infer2", 224, 224)],
)
def test_deit_cam_equals_published(golden, deit, name, height, width):
    (cam,) = deit.cams([picture(name, height, width)], tile_batch=5)
    assert_close(cam, golden("cam_deit")[f"infer_{height}x{width}"])


@torch.no_grad()
def test_cls_row_and_patch_tokens_equal_published(golden, deit):
    expected = golden("cam_deit")
    with record_cls_rows(deit.vit) as rows:
        tokens, rope = embed(deit.vit, picture("deit/tile", 224, 224)[None])
        for _ in range(deit.num_passes):
            tokens = tokens + run_blocks(deit.vit, tokens, rope)
    assert_close(rows.as_map((14, 14))[:, 0], expected["cls_attention_tile"])
    flat = patch_tokens(deit.vit, tokens).flatten(2).transpose(1, 2)
    assert_close(flat[:, ::14, ::16], expected["patch_tokens_tile"])


@torch.no_grad()
def test_cls_rows_equal_full_attention(deit):
    tokens, _ = embed(deit.vit, picture("deit/tile", 224, 224)[None])
    attention, normed = deit.vit.blocks[0].attn, deit.vit.blocks[0].norm1(tokens)
    query, key, _ = attention.qkv(normed).reshape(1, -1, 3, 6, 64).permute(2, 0, 3, 1, 4)
    full = (query @ key.transpose(-2, -1) / 8).softmax(-1).mean(1)  # (1, N, N)
    with record_cls_rows(deit.vit) as rows:
        deit.vit.blocks[0](tokens)
    torch.testing.assert_close(rows.total, full[:, 0, 1:], rtol=1e-5, atol=1e-7)


def test_pictures_in_one_call_equal_pictures_alone(deit):
    pictures = [picture("a", 100, 300), picture("b", 225, 60)]
    together = deit.cams(pictures, tile_batch=7)
    alone = [deit.cams([one], tile_batch=64)[0] for one in pictures]
    for left, right in zip(together, alone, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
    assert together[0].shape == (NUM_CLASSES, 7, 19)


def test_every_trainable_parameter_of_deit_gets_a_gradient(deit):
    deit.zero_grad()
    deit(torch.randn(1, 3, 224, 224)).square().sum().backward()
    missing = [name for name, p in deit.named_parameters() if p.grad is None or not p.grad.any()]
    deit.zero_grad()
    assert missing == []


@torch.no_grad()
def test_tiles_run_alone(deit):
    padded, grid = pad_to_tiles(picture("a", 230, 240)[None], 224, 112)
    tiles = cut_tiles(padded, grid)
    batched = deit.tile_cams(tiles)
    torch.testing.assert_close(batched[2:3], deit.tile_cams(tiles[2:3]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_cams_are_class_maps_times_attention_or_class_maps_alone():
    """Both parts are taken from the network while it runs: queries and keys, and the head."""
    deit, heads = small_deit().eval(), SMALL_VIT["num_heads"]
    tiles, rows, heard = torch.randn(2, 3, 224, 224), [], []

    def hear_attention(_: nn.Module, __: tuple, qkv: torch.Tensor) -> None:
        query, key, _ = qkv.reshape(2, 197, 3, heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, N, d)
        logits = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        rows.append(logits.softmax(-1).mean(1)[:, 0, 1:])

    for block in deit.vit.blocks:
        block.attn.qkv.register_forward_hook(hear_attention)
    deit.head.register_forward_hook(lambda _, __, maps: heard.append(maps))
    cams = deit.tile_cams(tiles)
    assert len(rows) == deit.num_passes * SMALL_VIT["depth"] and len(heard) == 1
    attention = sum(rows).reshape(2, 1, 14, 14)
    torch.testing.assert_close(cams, heard[0] * attention, rtol=1e-4, atol=1e-6)
    deit.use_attention = False
    torch.testing.assert_close(deit.tile_cams(tiles), heard[0], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_class_maps_alone_differ_from_cams_by_uniform_attention_only():
    """Without queries every token attends equally to all 197: each block adds 1 / 197."""
    deit = small_deit().eval()
    for block in deit.vit.blocks:
        block.attn.qkv.weight[: SMALL_VIT["embed_dim"]] = 0
        block.attn.qkv.bias[: SMALL_VIT["embed_dim"]] = 0
    (cam,) = deit.cams([picture("a", 150, 300)])
    deit.use_attention = False
    (maps,) = deit.cams([picture("a", 150, 300)])
    assert maps.min() >= 0 and maps.std() > 0
    layers = deit.num_passes * SMALL_VIT["depth"]
    torch.testing.assert_close(cam, maps * layers / 197, rtol=1e-4, atol=1e-6)
