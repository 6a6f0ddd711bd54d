"""Weight files of CNN backbones: incomplete ones and those of other networks are refused."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision

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
    with pytest.raises(UserError, match=rf"w\.pth does not hold .*: 1 of .* first is {missing}"):
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
    with pytest.raises(UserError, match=r"r\.pth does not hold .* a larger one: .* layer1\.2"):
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
    with pytest.raises(UserError, match=r"^w\.pth does not hold the weights of this network"):
        load_backbone(build_backbone("resnet50", init="random"), state, "w.pth")
