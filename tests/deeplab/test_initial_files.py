"""MODEL.INIT_MODEL names a file: key layouts, what may be missing, what is said about masks."""

from collections.abc import Callable
from pathlib import Path

import published
import pytest
import timm
import torch
import torchvision
from deeplab_weights import (
    ASPP_TENSORS,
    N_CLASSES,
    ONE_BLOCK,
    RATES,
    RESNET50,
    same,
    start,
    trained,
    vary_norms,
    without_counters,
)
from published_deeplab import RESNET101 as WHOLE
from published_deeplab import coco_state, final_state
from safetensors.torch import save_file

from deeplab.config import IMAGENET
from deeplab.model import ASPP, DeepLabV2, MultiScale
from misc.checkpoint import StateDict, save_checkpoint
from misc.errors import UserError
from misc.files import sha256_file
from misc.provenance import Record, write_record
from net.resnet_cam import build_cnn_cam


def strip_base(state: StateDict) -> StateDict:
    return {key.removeprefix("base."): value for key, value in state.items()}


@pytest.mark.parametrize(
    "layout",
    [
        lambda state: state,
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": strip_base(state)},
    ],
    ids=["published", "data parallel", "base alone"],
)
def test_deeplab_files(
    tmp_path: Path, layout: Callable[[StateDict], dict], capsys: pytest.CaptureFixture
) -> None:
    state = final_state(ONE_BLOCK, N_CLASSES, len(RATES))
    save_checkpoint(tmp_path / "w.pth", layout(state))
    net, report = start(tmp_path / "w.pth")
    assert same(net, state)
    assert report.pixel_labels is True
    assert report.sha256 == sha256_file(tmp_path / "w.pth")
    assert report.missing == [] and report.loaded == len(without_counters(state))
    printed = capsys.readouterr().out
    assert "was trained on masks" in printed and "tensors not used" not in printed


def test_published_coco_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A DeepLab v1 without `base.`, whose classifier of 91 classes is left out."""
    state = coco_state(ONE_BLOCK)
    save_checkpoint(tmp_path / "w.pth", state)
    net, report = start(tmp_path / "w.pth")
    body = {f"base.{key}": value for key, value in state.items() if not key.startswith("fc.")}
    assert same(net, body)
    assert report.pixel_labels is True
    assert report.missing == [key for key in net.base.state_dict() if key.startswith(ASPP)]
    assert report.loaded == len(without_counters(body))
    printed = capsys.readouterr().out
    assert "was trained on masks" in printed
    assert "2 (fc.weight, fc.bias) of the file's tensors not used" in printed


def test_classifier_that_is_none_is_left_out(tmp_path: Path) -> None:
    state = final_state(ONE_BLOCK, N_CLASSES, len(RATES)) | {"base.aspp.c0.weight": torch.tensor(1)}
    save_checkpoint(tmp_path / "w.pth", state)
    _, report = start(tmp_path / "w.pth")
    assert len(report.missing) == ASPP_TENSORS


def test_backbone_that_is_partly_renamed_is_refused(tmp_path: Path) -> None:
    """Older converters said `proj` for the shortcut: 4 % of the tensors, which mattered."""
    state = coco_state(WHOLE)
    renamed = {key.replace(".shortcut.", ".proj."): value for key, value in state.items()}
    assert len(state.keys() - renamed.keys()) < 0.1 * len(state)
    save_checkpoint(tmp_path / "w.pth", renamed)
    with pytest.raises(UserError) as raised:
        start(tmp_path / "w.pth", N_BLOCKS=WHOLE)
    message = str(raised.value)
    assert "20 missing (layer2.block1.shortcut.conv.weight, " in message
    assert "20 unexpected (layer2.block1.proj.conv.weight, " in message


def published_cnn(state: StateDict) -> StateDict:
    """The CNN branch as the published code saves it, under all of its names."""
    names = {published.name_of(key, "cnn"): value for key, value in state.items()}
    return published.file_of("cnn", names)


def test_branch_of_the_pipeline_must_be_complete(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = build_cnn_cam("resnet18", 20, init="random").state_dict()
    del state["backbone.layer3.0.conv1.weight"]
    for layout in (state, published_cnn(state)):
        save_checkpoint(tmp_path / "w.pth", layout)
        with pytest.raises(
            UserError, match=r"1 missing \(backbone\.layer3\.0\.conv1\.weight\); 1 unex.* \(class"
        ):
            start(tmp_path / "w.pth", BACKBONE="resnet18")


def test_classifier_of_other_classes_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_checkpoint(tmp_path / "w.pth", trained(n_classes=21))
    net, report = start(tmp_path / "w.pth")
    assert same(net, trained(21), but=ASPP)
    assert len(report.missing) == ASPP_TENSORS
    printed = capsys.readouterr().out
    assert "classifier (ASPP, 21 classes) is left out, this network's has 4" in printed


def test_few_missing_tensors_are_named_and_many_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    state = trained()
    del state["base.layer5.block1.shortcut.conv.weight"]
    save_checkpoint(tmp_path / "w.pth", state)
    _, report = start(tmp_path / "w.pth")
    assert report.missing == ["layer5.block1.shortcut.conv.weight"]
    assert "1 (layer5.block1.shortcut.conv.weight) start random" in capsys.readouterr().out
    some = {key: value for key, value in state.items() if "layer5" not in key}
    save_checkpoint(tmp_path / "w.pth", some)
    with pytest.raises(
        UserError, match=r"w\.pth .*\(layer5\.block1\.reduce.* 65 of 85 .*76%, at least 90%"
    ):
        start(tmp_path / "w.pth")


def test_weights_of_other_depths_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "w.pth", MultiScale(DeepLabV2(4, (1, 2, 1, 1), RATES)).state_dict())
    with pytest.raises(
        UserError, match=r"6 unexpected \(layer3\.block2.* larger network.*N_BLOCKS"
    ):
        start(tmp_path / "w.pth")
    save_checkpoint(tmp_path / "w.pth", trained())
    with pytest.raises(
        UserError, match=r"missing \(layer3\.block2.* tensors fit .* at least 90% are"
    ):
        start(tmp_path / "w.pth", N_BLOCKS=(1, 3, 1, 1))
    save_checkpoint(tmp_path / "w.pth", torchvision.models.resnet18().state_dict())
    with pytest.raises(UserError, match=r"w\.pth does not fit this network: "):
        start(tmp_path / "w.pth", N_BLOCKS=RESNET50)
    with pytest.raises(UserError, match=r"nothing\.pth does not exist"):
        start(tmp_path / "nothing.pth")


def test_a_convolution_as_classifier_tells_of_masks(tmp_path: Path) -> None:
    state = {key: value for key, value in trained().items() if ASPP not in key}
    save_checkpoint(tmp_path / "w.pth", state | {"fc.weight": torch.zeros(91, 8, 3, 3)})
    assert start(tmp_path / "w.pth")[1].pixel_labels is True
    save_checkpoint(tmp_path / "w.pth", state | {"fc.weight": torch.zeros(1000, 8)})
    assert start(tmp_path / "w.pth")[1].pixel_labels is None


@pytest.mark.parametrize("official", [True, False])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_weights_of_the_cnn_branch(tmp_path: Path, name: str, official: bool) -> None:
    """Their input is normalised RGB, in the published network as well as in others."""
    torch.manual_seed(0)
    branch = vary_norms(build_cnn_cam(name, 20, init="random"))
    state = branch.state_dict()
    save_checkpoint(tmp_path / "w.pth", published_cnn(state) if official else state)
    keys = {"N_BLOCKS": RESNET50} if name == "resnet50" else {"BACKBONE": name}
    net, report = start(tmp_path / "w.pth", **keys)
    modules = dict(net.base.named_modules())
    inner = "layer3.block1.conv3x3.conv" if name == "resnet50" else "backbone.layer2.0.conv2"
    assert torch.equal(modules[inner].weight, state["backbone.layer2.0.conv2.weight"])
    assert len(report.missing) == ASPP_TENSORS
    assert report.pixel_labels is None


def test_weights_of_a_cnn_branch_with_arguments(tmp_path: Path) -> None:
    narrow = {"channels": (32, 64, 128, 256), "stem_width": 16}
    branch = vary_norms(build_cnn_cam("resnet10t", 20, "random", None, narrow))
    state = branch.state_dict()
    save_checkpoint(tmp_path / "w.pth", state)
    net, report = start(tmp_path / "w.pth", BACKBONE="resnet10t", BACKBONE_ARGS=narrow)
    assert len(report.missing) == ASPP_TENSORS
    for key, value in net.base.backbone.state_dict().items():
        assert torch.equal(value, state[f"backbone.{key}"]), key
    with pytest.raises(UserError, match=r"w\.pth does not fit this network"):
        start(tmp_path / "w.pth", BACKBONE="resnet10t")
    told = r"resnet10t with MODEL\.BACKBONE_ARGS a=1 cannot be built: .*'a'\."
    with pytest.raises(UserError, match=told):
        start(tmp_path / "w.pth", BACKBONE="resnet10t", BACKBONE_ARGS={"a": 1})


@pytest.mark.parametrize("is_init_model", [True, False])
def test_imagenet_weights_of_a_backbone_with_arguments(tmp_path: Path, is_init_model: bool) -> None:
    narrow = {"channels": (32, 64, 128, 256), "stem_width": 16}
    state = timm.create_model("resnet10t", **narrow).state_dict()
    half = {k: v.half() for k, v in state.items() if v.is_floating_point() and "fc." not in k}
    save_file(half, tmp_path / "w.safetensors")
    keys = {"BACKBONE": "resnet10t", "BACKBONE_ARGS": narrow}
    where = tmp_path / "w.safetensors"
    net, _ = start(where, **keys) if is_init_model else start(IMAGENET, INIT_WEIGHTS=where, **keys)
    own = net.base.backbone.features.state_dict()
    assert len(half) > 50
    for key, value in half.items():
        assert torch.equal(own[key], value.float()), key


def test_weights_of_the_pipeline_saw_no_pixel_labels(tmp_path: Path) -> None:
    path = tmp_path / "res152_cam.pth"
    save_checkpoint(path, build_cnn_cam("resnet18", 3, "random").state_dict())
    _, unknown = start(path, BACKBONE="resnet18")
    assert unknown.pixel_labels is None
    write_record(path, Record("train_cam"))
    _, known = start(path, BACKBONE="resnet18")
    assert known.pixel_labels is False
    assert "image labels only" in known.what
