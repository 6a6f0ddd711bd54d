"""ViTs of the transformer branch: weight files, arguments, input normalisation, tile memory."""

from pathlib import Path

import pytest
import timm
import torch
from networks import VIT_OPTIONS
from torch import Tensor

from misc.checkpoint import save_checkpoint
from misc.errors import UserError
from net.deit_cam import DeitCam, build_deit_cam
from net.normalisation import InputConversion
from net.pretrained import state_for_timm
from net.vit import build_vit

DEIT = "deit_tiny_patch16_224"
VIT = "vit_tiny_patch16_224"  # trained with mean and standard deviation 0.5
SMALL = {"depth": 1, "embed_dim": 48, "num_heads": 2}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def tiny(name: str = VIT) -> DeitCam:
    torch.manual_seed(0)
    return build_deit_cam(name, 3, 32, 16, init="random", model_args=SMALL).eval()


# ---------------------------------------------------------------------------------- weight files


def test_local_vit_weights_without_classifier_and_at_another_size(tmp_path: Path) -> None:
    state = timm.create_model(DEIT, **SMALL).state_dict()
    save_checkpoint(tmp_path / "w.pth", {"model": state})
    same = build_vit(DEIT, 224, weights=str(tmp_path / "w.pth"), model_args=SMALL).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in same.items())
    assert not any(key.startswith("head.") for key in same)
    small = build_vit(DEIT, 64, weights=str(tmp_path / "w.pth"), model_args=SMALL)
    assert small.pos_embed.shape == (1, 17, 48)  # resized from 14 x 14 patches
    assert torch.equal(small.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])
    with pytest.raises(UserError, match="give the weights of deit_tiny"):
        state_for_timm(DEIT, tmp_path / "w.pth")


@pytest.mark.parametrize("missing", ["patch_embed.proj.weight", "pos_embed", "norm.bias"])
def test_incomplete_weight_file_is_refused(tmp_path: Path, missing: str) -> None:
    model_args = SMALL | {"depth": 3}  # one tensor is less than a tenth of all
    state = timm.create_model(VIT, **model_args).state_dict()
    del state[missing]
    save_checkpoint(tmp_path / "w.pth", state)
    with pytest.raises(UserError, match=rf"w\.pth does not fit .*: 1 missing \({missing}\)"):
        build_vit(VIT, 224, weights=str(tmp_path / "w.pth"), model_args=model_args)


def test_weights_of_a_deeper_network_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "w.pth", timm.create_model(VIT, **SMALL | {"depth": 2}).state_dict())
    with pytest.raises(
        UserError, match=r"w\.pth does not fit .* unexpected .* give the weights of vit_tiny"
    ):
        build_vit(VIT, 224, weights=str(tmp_path / "w.pth"), model_args=SMALL)


@pytest.mark.parametrize(
    "wrong", [{"depht": 1}, {"depth": "two"}, {"depth": -1.0}, {"num_heads": 0}, {"num_heads": 5}]
)
@pytest.mark.parametrize("with_file", [True, False])
def test_wrong_model_arguments_are_explained(tmp_path: Path, wrong: dict, with_file: bool) -> None:
    save_checkpoint(tmp_path / "w.pth", timm.create_model(VIT, **SMALL).state_dict())
    weights = str(tmp_path / "w.pth") if with_file else None
    with pytest.raises(
        UserError, match=rf"--vit {VIT} with --vit_args .* cannot be built for 224 px tiles: ."
    ) as told:
        build_vit(VIT, 224, "random", weights, SMALL | wrong, VIT_OPTIONS)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("vit_1", "vit_1 is not a timm model"),
        ("swin_tiny_patch4_window7_224", "is not a plain ViT"),
        ("resnet18", "resnet18"),
    ],
)
def test_other_networks_are_no_transformer_branch(name: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        build_vit(name, 224, init="random")


def test_transformer_without_blocks_is_refused() -> None:
    told = rf"--vit {VIT} with --vit_args depth=0 has no transformer block; give a depth"
    with pytest.raises(UserError, match=told):
        build_vit(VIT, 224, "random", model_args={"depth": 0}, names=VIT_OPTIONS)


# --------------------------------------------------------------------------------- normalisation


def test_conversion_of_the_input() -> None:
    rgb = torch.rand(2, 3, 4, 5)
    mean, std = (torch.tensor(IMAGENET[key]).view(3, 1, 1) for key in ("mean", "std"))
    images = (rgb - mean) / std
    half = InputConversion({"mean": (0.5,) * 3, "std": (0.25,) * 3})
    torch.testing.assert_close(half(images), (rgb - 0.5) / 0.25, rtol=1e-4, atol=1e-5)
    assert not half.state_dict()
    for same in (None, {}, {"mean": list(IMAGENET["mean"]), "std": IMAGENET["std"]}):
        assert InputConversion(same)(images) is images


@torch.no_grad()
def test_tiles_are_converted_to_the_statistics_of_the_network() -> None:
    model = tiny()
    rgb = torch.rand(1, 3, 32, 32)
    mean, std = (torch.tensor(IMAGENET[key]).view(3, 1, 1) for key in ("mean", "std"))
    maps, cams = model((rgb - mean) / std), model.tile_cams((rgb - mean) / std)
    model.convert_input = InputConversion(None)
    torch.testing.assert_close(maps, model((rgb - 0.5) / 0.5), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(cams, model.tile_cams((rgb - 0.5) / 0.5), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(maps, model((rgb - mean) / std), rtol=1e-3, atol=1e-4)


def test_deit_gets_its_tiles_as_they_are() -> None:
    model = tiny("deit_tiny_patch16_224")
    tiles = torch.rand(1, 3, 32, 32)
    assert model.convert_input(tiles) is tiles
    assert {key.split(".")[0] for key in model.state_dict()} == {"vit", "head"}


# ------------------------------------------------------------------------------------ tile memory


@pytest.mark.parametrize("tile_batch", [1, 5])
def test_no_more_tiles_at_a_time_than_asked_for(
    monkeypatch: pytest.MonkeyPatch, tile_batch: int
) -> None:
    """Batches cross the borders of pairs and pictures; the maps do not depend on them."""
    model, sizes = tiny(), []
    pictures = [torch.randn(3, 40, 70), torch.randn(3, 20, 33)]
    expected = model.cams(pictures, tile_batch=1000)
    tile_cams = model.tile_cams

    def counted(tiles: Tensor) -> Tensor:
        sizes.append(len(tiles))
        return tile_cams(tiles)

    monkeypatch.setattr(model, "tile_cams", counted)
    cams = model.cams(pictures, tile_batch=tile_batch)
    assert set(sizes[:-1]) == {tile_batch} and sizes[-1] <= tile_batch
    assert sum(sizes) == 2 * (2 * 4 + 1 * 2)
    for cam, one in zip(cams, expected, strict=True):
        torch.testing.assert_close(cam, one, rtol=1e-4, atol=1e-6)


def test_tiles_are_cut_when_their_batch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second picture is padded only after the first one's tiles have run."""
    events = []
    model = tiny()
    tile_cams, pad = model.tile_cams, torch.nn.functional.pad

    def run(tiles: Tensor) -> Tensor:
        events.append("run")
        return tile_cams(tiles)

    def padded(*arguments: object) -> Tensor:
        events.append("pad")
        return pad(*arguments)

    monkeypatch.setattr(model, "tile_cams", run)
    monkeypatch.setattr("net.tiling.F.pad", padded)
    model.cams([torch.randn(3, 20, 20)] * 2, tile_batch=1)
    assert events == ["pad", "run", "run"] * 2
