"""Weight files of CNN backbones: incomplete ones and those of other networks are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from networks import CNN_OPTIONS
from safetensors.torch import save_file
from timm.models import _builder as builder

from misc.checkpoint import save_checkpoint
from misc.errors import UserError
from net.backbone import build_backbone, load_backbone
from net.resnet_cam import build_cnn_cam

SMALL = "tf_efficientnet_lite0"


@pytest.mark.parametrize("missing", ["conv_stem.weight", "blocks.1.0.bn1.running_mean"])
def test_incomplete_timm_weights_are_refused(tmp_path: Path, missing: str) -> None:
    state = timm.create_model(SMALL).state_dict()
    del state[missing]
    save_checkpoint(tmp_path / "w.pth", state)
    with pytest.raises(UserError, match=rf"w\.pth does not fit .*: 1 missing \({missing}\)"):
        build_backbone(SMALL, weights=str(tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["convnext_atto", "resnetv2_50", "regnety_002", "resnet26"])
def test_complete_timm_weights_without_counters_are_loaded(tmp_path: Path, name: str) -> None:
    """Stage names are flattened in the feature network (`stages.0` -> `stages_0`)."""
    state = timm.create_model(name).state_dict()
    state = {key: v for key, v in state.items() if not key.endswith("num_batches_tracked")}
    save_checkpoint(tmp_path / "w.pth", state)
    loaded = build_backbone(name, weights=str(tmp_path / "w.pth")).features.state_dict()
    by_name = {key.replace(".", "_"): value for key, value in state.items()}
    for key, value in loaded.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, by_name[key.replace(".", "_")]), key


def test_weights_of_a_deeper_network_are_refused(tmp_path: Path) -> None:
    """All tensors of ResNet18 and ConvNeXt-T are in ResNet34 and ConvNeXt-S by name and shape."""
    save_checkpoint(tmp_path / "r.pth", torchvision.models.resnet34().state_dict())
    with pytest.raises(
        UserError, match=r"r\.pth does not fit .*: .*\(layer1\.2.* of a larger network"
    ):
        build_backbone("resnet18", weights=str(tmp_path / "r.pth"))
    save_checkpoint(tmp_path / "c.pth", timm.create_model("convnext_small").state_dict())
    with pytest.raises(UserError, match=r"c\.pth holds .* give the weights of convnext_tiny"):
        build_backbone("convnext_tiny", weights=str(tmp_path / "c.pth"))


@pytest.mark.parametrize("name", ["resnet18", SMALL])
def test_backbone_of_a_cnn_branch_is_taken_over(name: str) -> None:
    state = build_cnn_cam(name, 4, init="random").state_dict()
    state = {key: v for key, v in state.items() if not key.endswith("num_batches_tracked")}
    backbone = build_backbone(name, init="random")
    load_backbone(backbone, state, "w.pth")
    for key, value in backbone.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(value, state[f"backbone.{key}"])
    with pytest.raises(UserError, match=r"^w\.pth does not fit this network"):
        load_backbone(build_backbone("resnet50", init="random"), state, "w.pth")


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_local_resnet_weights(tmp_path: Path, prefix: str) -> None:
    state = torchvision.models.resnet18().state_dict()
    state["conv1.weight"] += 1
    save_checkpoint(tmp_path / "w.pth", {f"{prefix}{key}": v for key, v in state.items()})
    backbone = build_backbone("resnet18", weights=str(tmp_path / "w.pth"))
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_weights_of_another_resnet_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "w.pth", torchvision.models.resnet34().state_dict())
    build_backbone("resnet34", weights=str(tmp_path / "w.pth"))
    with pytest.raises(UserError, match=r"w\.pth does not fit this network: .* missing \(layer1"):
        build_backbone("resnet50", weights=str(tmp_path / "w.pth"))


@pytest.mark.parametrize("rename", [str, lambda key: f"net/{hash(key)}"], ids=["names", "position"])
def test_local_timm_weights_by_name_or_position(
    tmp_path: Path, rename: Callable[[str], str], capsys: pytest.CaptureFixture
) -> None:
    state = timm.create_model(SMALL).state_dict()
    state["conv_stem.weight"] += 1
    save_checkpoint(tmp_path / "w.pth", {rename(key): value for key, value in state.items()})
    features = build_backbone(SMALL, weights=str(tmp_path / "w.pth")).features.state_dict()
    assert ("matched by position" in capsys.readouterr().out) == (rename is not str)
    assert len(features) > 100
    for key, value in features.items():
        assert torch.equal(value, state[key]), key


def test_weights_of_another_timm_network_are_refused(tmp_path: Path) -> None:
    state = timm.create_model("regnety_002").state_dict()
    save_checkpoint(tmp_path / "w.pth", state)
    with pytest.raises(UserError, match=rf"holds {len(state)} tensors of which .* {SMALL}"):
        build_backbone(SMALL, weights=str(tmp_path / "w.pth"))


NARROW = {"channels": (32, 64, 128, 256), "stem_width": 16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("has_classifier", [True, False])
def test_weights_of_a_network_with_arguments(
    tmp_path: Path, dtype: torch.dtype, has_classifier: bool
) -> None:
    """Every tensor by name; half precision becomes what the network computes in."""
    torch.manual_seed(0)
    state = timm.create_model("resnet10t", **NARROW).state_dict()
    state["bn1.running_mean"].normal_()
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    own = {key: v for key, v in state.items() if has_classifier or not key.startswith("fc.")}
    assert "layer1.0.conv1.weight" in own and ("fc.weight" in own) == has_classifier
    save_file(own, tmp_path / "w.safetensors")
    path = str(tmp_path / "w.safetensors")
    loaded = build_backbone("resnet10t", weights=path, model_args=NARROW).features.state_dict()
    assert len(loaded) == len([key for key in state if not key.startswith("fc.")])
    for key, value in loaded.items():
        assert torch.equal(value, state[key].to(value.dtype)), key
        assert value.dtype == (torch.float32 if value.is_floating_point() else torch.int64)
    with pytest.raises(
        UserError, match=r"conv1\.0\.weight is \(12, 3.* and \(24, 3.* in the network"
    ):
        build_backbone("resnet10t", weights=path)


def test_published_weights_of_other_arguments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    published = timm.create_model("resnet10t").state_dict()
    monkeypatch.setattr(builder, "load_state_dict_from_hf", lambda *_, **__: published)
    build_backbone("resnet10t", model_args={"drop_rate": 0.1}, names=CNN_OPTIONS)
    with pytest.raises(UserError) as caught:
        build_backbone("resnet10t", model_args={"stem_width": 16}, names=CNN_OPTIONS)
    assert str(caught.value) == (
        "the published weights of resnet10t.c3_in1k do not fit resnet10t with --cnn_args "
        "stem_width=16: name a local file with --cnn_weights, or start from --init random."
    )
