"""Every kind of ViT as transformer branch: attention, gradients, maps, passes, tiles, input."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from networks import VIT_OPTIONS, update
from pipeline import QUICK, TRAIN_IDS, output, run, weights
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn
from wsol_runs import config_of

from misc.errors import UserError
from misc.maps_io import load_cam
from misc.provenance import read_record
from net.deit_cam import DeitCam, build_deit_cam
from net.resnet_cam import build_cnn_cam
from net.vit import Vit, build_vit, embed, record_cls_rows, run_blocks
from step.train_cam import build_optimiser, training_losses
from wsol.model import TsCam, build_transformer

SMALL = {"depth": 2, "embed_dim": 64, "num_heads": 2}
GROUPED = {"depth": 2, "embed_dim": 64, "num_heads": 4, "num_kv_heads": (1, 2)}
EVERYTHING = {
    "qk_norm": True,
    "qkv_bias": False,
    "init_values": 0.1,
    "reg_tokens": 3,
    "no_embed_class": True,
    "dynamic_img_size": True,
}
# name, arguments beside SMALL, class and register tokens
KINDS: list[tuple[str, dict, int]] = [
    ("deit_small_patch16_224", {}, 1),
    ("deit_tiny_patch16_224", EVERYTHING, 4),
    ("deit_small_distilled_patch16_224", {}, 2),
    ("deit3_small_patch16_224.fb_in22k_ft_in1k", {}, 1),  # layer scale
    ("vit_small_patch8_224.dino", {}, 1),
    ("vit_small_patch14_dinov2.lvd142m", {}, 1),
    ("vit_small_patch14_reg4_dinov2.lvd142m", {}, 5),
    ("vit_base_patch16_clip_224.openai", {}, 1),  # norm before the blocks
    ("flexivit_small", {}, 1),
    ("beit3_base_patch16_224", {}, 1),  # final norm behind the average
    ("vit_base_patch16_radio_v3", {}, 8),
    ("vit_small_patch16_dinov3.lvd1689m", {}, 5),  # rotary, no biases, any picture size
    ("vit_small_patch16_dinov3_qkvb.lvd1689m", {}, 5),
    ("vit_small_plus_patch16_dinov3.lvd1689m", {}, 5),  # SwiGLU
    ("eva02_small_patch14_224.mim_in22k", {}, 1),
    ("eva02_base_patch14_224.mim_in22k", {}, 1),  # separate projections
    ("eva02_enormous_patch14_clip_224", {}, 1),  # norm after attention
    ("eva_giant_patch14_224.clip_ft_in1k", {}, 1),
    ("vit_small_patch16_rope_224.naver_in1k", {}, 1),
    ("vit_small_patch16_rope_mixed_ape_224.naver_in1k", {}, 1),  # rotation by depth
    ("vit_pe_core_small_patch16_384.fb", {}, 1),  # attention pooling
    ("vit_base_patch16_sapiens2", GROUPED, 9),  # grouped keys
]
CLASSES = 3


@pytest.fixture(params=KINDS, ids=lambda kind: kind[0])
def kind(request: pytest.FixtureRequest) -> tuple[str, dict, int]:
    return request.param


def branch(kind: tuple[str, dict, int], num_passes: int = 1) -> DeitCam:
    """A branch whose tiles are 4 x 4 patches every 2 patches."""
    name, model_args, _ = kind
    torch.manual_seed(0)
    patch = int(name.split("patch")[1].split("_")[0]) if "patch" in name else 16
    options = (4 * patch, 2 * patch, num_passes, "random", None, SMALL | model_args)
    return build_deit_cam(name, CLASSES, *options).eval()


@contextmanager
def explicit_attention(vit: Vit) -> Iterator[list[Tensor]]:
    """Let timm form softmax(q k^T) (B, heads, N, N) itself, and collect it before its dropout."""
    seen: list[Tensor] = []
    handles = []
    for block in vit.blocks:
        block.attn.fused_attn = False
        dropout = block.attn.attn_drop
        handles.append(dropout.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])))
    yield seen
    for handle, block in zip(handles, vit.blocks, strict=True):
        handle.remove()
        block.attn.fused_attn = True


@torch.no_grad()
def test_recorded_row_equals_timms_explicit_softmax(kind: tuple[str, dict, int]) -> None:
    model = branch(kind, num_passes=2)
    vit, tiles = model.vit, torch.randn(2, 3, model.tile_size, model.tile_size)
    for parameter in vit.parameters():  # layer scales of 1e-5 would hide what the blocks do
        parameter.add_(0.1 * torch.randn_like(parameter))
    with record_cls_rows(vit) as rows:
        maps = model._tile_maps(tiles)
    with explicit_attention(vit) as seen:
        again = model._tile_maps(tiles)
    torch.testing.assert_close(maps, again, rtol=1e-3, atol=1e-4)
    assert len(seen) == 2 * 2
    assert vit.num_prefix_tokens == kind[2]
    expected = sum(one.mean(dim=1)[:, 0, kind[2] :] for one in seen)
    assert expected.shape == (2, 16)
    torch.testing.assert_close(rows.total, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        model.tile_cams(tiles), expected.reshape(2, 1, 4, 4) * maps, rtol=1e-4, atol=1e-5
    )


def rotated(x: Tensor, sines: Tensor, cosines: Tensor, half: bool) -> Tensor:
    """Turn pairs of entries by an angle: neighbours, or entries half the width apart."""
    width = x.shape[-1] // 2
    first, second = (x[..., :width], x[..., width:]) if half else (x[..., ::2], x[..., 1::2])
    sine, cosine = (one[..., :width] if half else one[..., ::2] for one in (sines, cosines))
    pair = first * cosine - second * sine, second * cosine + first * sine
    return torch.cat(pair, dim=-1) if half else torch.stack(pair, dim=-1).flatten(-2)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "half"),
    [("vit_small_patch16_dinov3", True), ("eva02_small_patch14_224", False)],
)
def test_keys_are_rotated_by_their_patch(name: str, half: bool) -> None:
    """The row by hand, from hooked queries and keys before their rotation."""
    vit = branch((name, {}, 0)).vit
    attention, prefix, seen = vit.blocks[0].attn, vit.num_prefix_tokens, {}
    for key in ("q_norm", "k_norm"):
        getattr(attention, key).register_forward_hook(
            lambda _, __, output, key=key: seen.update({key: output})
        )
    side = vit.patch_embed.img_size[0]
    for parameter in vit.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    tokens, rope = embed(vit, torch.randn(2, 3, side, side))
    with record_cls_rows(vit) as rows:
        vit.blocks[0](tokens, rope=rope)
    sines, cosines = rope.chunk(2, dim=-1)
    patches = rotated(seen["k_norm"][:, :, prefix:], sines, cosines, half)
    torch.testing.assert_close(
        patches, apply_rot_embed_cat(seen["k_norm"][:, :, prefix:], rope, half=half)
    )
    keys = torch.cat([seen["k_norm"][:, :, :prefix], patches], dim=2)
    logits = torch.einsum("bhd,bhnd->bhn", seen["q_norm"][:, :, 0], keys) / 32**0.5
    weights = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
    torch.testing.assert_close(rows.total, weights.mean(dim=1)[:, prefix:], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(patches, seen["k_norm"][:, :, prefix:], rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_nothing_is_recorded_outside() -> None:
    model = branch(KINDS[0])
    tiles = torch.randn(1, 3, 64, 64)
    with record_cls_rows(model.vit) as rows:
        model._tile_maps(tiles)
    before = rows.total.clone()
    model._tile_maps(tiles)
    assert torch.equal(rows.total, before)


def test_every_parameter_gets_a_gradient(kind: tuple[str, dict, int]) -> None:
    model = branch(kind, num_passes=2).train()
    side = model.tile_size + model.tile_stride
    model(torch.randn(1, 3, side, side)).square().sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


@torch.no_grad()
def test_passes_feed_the_residual_of_the_blocks_to_the_same_blocks(
    kind: tuple[str, dict, int],
) -> None:
    model = branch(kind, num_passes=3)
    starts, ends = [], []
    model.vit.blocks[0].register_forward_pre_hook(lambda _, inputs: starts.append(inputs[0]))
    model.vit.blocks[-1].register_forward_hook(lambda _, __, output: ends.append(output))
    model._tile_maps(torch.randn(1, 3, model.tile_size, model.tile_size))
    assert len(starts) == len(ends) == 3
    for before, after, following in zip(starts[:-1], ends[:-1], starts[1:], strict=True):
        torch.testing.assert_close(following, before + after)


@torch.no_grad()
def test_maps_of_tiles_are_merged_and_cams_cover_the_picture(kind: tuple[str, dict, int]) -> None:
    model = branch(kind)
    patch, side = model.patch_size, model.tile_size + model.tile_stride
    images = torch.randn(1, 3, side, side)
    maps, tile = model(images), images[..., : model.tile_size, : model.tile_size]
    assert maps.shape == (1, CLASSES, 6, 6)
    # only the first tile sees the first two patches of either side
    torch.testing.assert_close(
        maps[..., :2, :2], model._tile_maps(tile)[..., :2, :2], rtol=1e-4, atol=1e-5
    )
    (cam,) = model.cams([torch.randn(3, 5 * patch + 1, 2 * patch - 3)], tile_batch=5)
    assert cam.shape == (CLASSES, 6, 2)
    assert cam.min() >= 0
    assert cam.max() > 0


@torch.no_grad()
def test_wsol_maps_stand_on_timms_own_features(kind: tuple[str, dict, int]) -> None:
    vit = branch(kind).vit
    model = TsCam(vit, CLASSES).eval()
    side, prefix = vit.patch_embed.img_size[0], kind[2]
    images = torch.randn(2, 3, side, side)
    features = vit.fc_norm(vit.forward_features(model.convert_input(images)))[:, prefix:]
    expected = model.head(features.transpose(1, 2).reshape(2, -1, 4, 4))
    maps, attention = model.maps_and_attention(images)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)
    assert attention.shape == (2, 1, 4, 4)
    assert attention.min() > 0
    assert (attention.sum(dim=(1, 2, 3)) < 2).all()  # two blocks, patches only


@pytest.mark.parametrize(
    "name", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "eva02_small_patch14_224"]
)
def test_both_branches_train_together(name: str) -> None:
    """Maps of 14-pixel patches and of the CNN's 16-pixel cells are compared at crop size."""
    transformer = branch((name, {}, 0), num_passes=2).train()
    models = {"cnn": build_cnn_cam("resnet18", CLASSES, init="random"), "transformer": transformer}
    optimisers = {key: build_optimiser(one, 0.01, 1e-4, 0.9, 3) for key, one in models.items()}
    crop = transformer.tile_size + transformer.tile_stride
    images, labels = torch.randn(2, 3, crop, crop), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    before = {key: value.clone() for key, value in transformer.state_dict().items()}
    losses = []
    for _ in range(3):
        losses.append(training_losses(models, images, labels))
        update(optimisers, losses[-1].total(0.1))
    assert all(torch.isfinite(torch.stack([*one])).all() for one in losses)
    assert losses[-1].transformer < losses[0].transformer
    after = transformer.state_dict()
    assert [key for key in before if torch.equal(before[key], after[key])] == []


def test_wsol_builds_tagged_and_rotary_networks(tmp_path: Path) -> None:
    values = {"MODEL__ARCH": "vit_small_patch14_reg4_dinov2.lvd142m", "DATA__CROP_SIZE": 56}
    model = build_transformer(config_of(tmp_path, tmp_path, **values))
    assert model(torch.randn(1, 3, 56, 56)).shape == (1, 3, 4, 4)
    decayed, free = model.parameter_groups()
    names = {id(p): key for key, p in model.named_parameters()}
    assert {"vit.reg_token", "vit.cls_token", "vit.pos_embed"} <= {names[id(p)] for p in free}
    assert {id(p) for p in (*decayed, *free)} == names.keys()
    build_transformer(config_of(tmp_path, tmp_path, MODEL__ARCH="vit_small_patch16_dinov3"))
    with pytest.raises(
        UserError, match=r"^DATA\.CROP_SIZE 64 is not a multiple of the patch size 14.*56 or 70"
    ):
        build_transformer(config_of(tmp_path, tmp_path, MODEL__ARCH=values["MODEL__ARCH"]))


@pytest.mark.parametrize(
    ("name", "tile"),
    [("vit_small_patch14_reg4_dinov2.lvd142m", 28), ("vit_tiny_patch16_dinov3_qkvb", 32)],
)
def test_pipeline_makes_cams_of_trained_weights(
    sample: Path, tmp_path: Path, name: str, tile: int
) -> None:
    sizes = {"tile_size": tile, "tile_stride": tile // 2, "cam_crop_size": 2 * tile}
    network = {"vit": name, "vit_args": "depth=1,embed_dim=48,num_heads=2"}
    assert run(sample, tmp_path, "--steps", "train_cam,make_cam", **network, **sizes, **QUICK) == 0
    trained = weights(tmp_path, "transformer")
    assert trained["vit.reg_token"].shape == (1, 4, 48)
    assert {key.split(".")[0] for key in trained} == {"vit", "head"}
    cams = [load_cam(output(tmp_path, "cam", image_id)) for image_id in TRAIN_IDS]
    assert all(cam.high_res.max() > 0 for cam in cams)
    record = read_record(tmp_path / "sess/deits_cam.pth")
    assert record.arguments["vit"] == name


# ---------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_base_patch16_siglip_224", "no class token, its patches are pooled"),
        ("vit_medium_patch16_gap_256.sw_in12k_ft_in1k", "no class token, its patches are pooled"),
        ("vit_base_patch16_rope_reg1_gap_256", "no class token, its patches are pooled"),
        ("swin_tiny_patch4_window7_224", "neither a VisionTransformer nor an Eva"),
        ("hiera_tiny_224", "neither a VisionTransformer nor an Eva"),
        ("samvit_base_patch16", "neither a VisionTransformer nor an Eva"),
        ("beit_base_patch16_224", "neither a VisionTransformer nor an Eva"),
        ("vit_tiny_r_s16_p8_224", "neither a VisionTransformer nor an Eva"),
        ("vit_base_patch16_xp_224", "its blocks have another attention"),
        ("vit_small_patch16_18x2_224", "its blocks have another attention"),
        ("resnet18", "neither a VisionTransformer nor an Eva"),
    ],
)
def test_networks_without_such_a_class_token_get_one_sentence(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"^--vit {name} is not a plain ViT .*\(.*{reason}.*\.$"):
        build_vit(
            name,
            224,
            init="random",
            model_args={"depth": 1} if "vit_" in name else None,
            names=VIT_OPTIONS,
        )


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"class_token": False}, "no class token"),
        ({"patch_drop_rate": 0.2}, "must keep all patches; leave patch_drop_rate out"),
        ({"img_size": 64}, "cannot be built with img_size=64: .* leave it out"),
        ({"use_naflex": True}, "timm builds a NaFlexVit"),
        ({"depth": 0}, "has no transformer block; give a depth of at least 1"),
        ({"embed_dim": 66}, "cannot be built for 64 px tiles: The size of tensor"),
    ],
)
def test_arguments_that_no_cam_can_be_made_with(wrong: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        build_vit("vit_small_patch16_dinov3", 64, "random", None, SMALL | wrong, VIT_OPTIONS)


def test_unknown_tag_lists_those_that_exist() -> None:
    with pytest.raises(
        UserError,
        match=r"^--vit vit_small_patch14_dinov2\.lvd: timm has no weights lvd of .*; give "
        r"vit_small_patch14_dinov2, vit_small_patch14_dinov2\.lvd142m\.$",
    ):
        build_vit("vit_small_patch14_dinov2.lvd", 56, init="random", names=VIT_OPTIONS)


def test_attention_is_recorded_whatever_timm_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """TIMM_FUSED_ATTN=0 makes timm leave torch's fused attention, where the rows are heard."""
    monkeypatch.setattr("timm.layers.attention.use_fused_attn", lambda: False)
    model = branch(KINDS[0])
    assert model.tile_cams(torch.randn(1, 3, 64, 64)).shape == (1, CLASSES, 4, 4)


# ------------------------------------------------------------------------------------------ input


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("vit_small_patch16_224.dino", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("vit_small_patch14_dinov2.lvd142m", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("vit_small_patch16_dinov3.lvd1689m", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("vit_large_patch16_dinov3.sat493m", (0.43, 0.411, 0.296), (0.213, 0.156, 0.143)),
        ("vit_small_patch16_224.augreg_in21k", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        (
            "eva02_small_patch14_224.mim_in22k",
            (0.48145466, 0.4578275, 0.40821073),
            (0.26862954, 0.26130258, 0.27577711),
        ),
    ],
)
def test_the_tag_decides_what_the_patches_see(name: str, mean: tuple, std: tuple) -> None:
    model = branch((name, {}, 0))
    seen: list[Tensor] = []
    for network in (model, TsCam(model.vit, CLASSES)):
        seen.clear()
        hook = network.vit.patch_embed.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        rgb = torch.rand(1, 3, model.tile_size, model.tile_size)
        column = lambda values: torch.tensor(values, dtype=torch.float64).view(3, 1, 1)  # noqa: E731
        imagenet = (rgb - column((0.485, 0.456, 0.406))) / column((0.229, 0.224, 0.225))
        network(imagenet.float())
        hook.remove()
        expected = ((rgb - column(mean)) / column(std)).float()
        torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_blocks_that_run_alone_equal_the_whole_network() -> None:
    """The loop over the blocks hands every one its own rotation."""
    vit = branch(("vit_small_patch16_rope_mixed_224", {}, 0)).vit
    for parameter in vit.parameters():  # fresh blocks hardly look at each other's patches
        parameter.add_(0.1 * torch.randn_like(parameter))
    images = torch.randn(1, 3, 64, 64)
    tokens, rope = embed(vit, images)
    assert len(rope) == 2 and not torch.equal(rope[0], rope[1])
    ours = vit.norm(run_blocks(vit, tokens, rope))
    torch.testing.assert_close(ours, vit.forward_features(images))
    assert isinstance(vit.head, nn.Identity)
