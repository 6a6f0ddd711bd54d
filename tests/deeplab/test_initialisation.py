"""First weights of DeepLab: key layouts, the input they expect, what is said about them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import published
import pytest
import timm
import torch
import torchvision
from published_deeplab import RESNET101 as WHOLE
from published_deeplab import coco_state, final_state
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from deeplab import initialisation
from deeplab.config import BACKBONE, IMAGENET, NO_INIT, RESNET101, Config, Dataset, Mean
from deeplab.initialisation import InitReport, from_torchvision, initialise, load_trained
from deeplab.model import ASPP, DeepLabV2, MultiScale, build_model
from misc.checkpoint import StateDict, save_checkpoint
from misc.errors import UserError
from misc.files import sha256_file
from misc.provenance import Record, write_record
from misc.transforms import IMAGENET_MEAN, IMAGENET_STD
from net import backbone, pretrained
from net.pretrained import WeightFile
from net.resnet_cam import build_cnn_cam

ONE_BLOCK, RESNET50, RATES = (1, 1, 1, 1), (3, 4, 6, 3), (1, 2)
N_CLASSES, ASPP_TENSORS = 4, 4
LITE = "tf_efficientnet_lite0"


def config_of(init: object, **model: object) -> Config:
    """Configuration of a small published network, or of what `model` says."""
    keys = {"N_BLOCKS": ONE_BLOCK, "ATROUS_RATES": RATES, "INIT_MODEL": str(init), **model}
    keys["NAME"] = BACKBONE if "BACKBONE" in model else RESNET101
    data = Dataset(N_CLASSES=N_CLASSES)
    return replace(Config(), MODEL=replace(Config().MODEL, **keys), DATASET=data)


def start(init: object, seed: int = 1, **model: object) -> tuple[MultiScale, InitReport]:
    """A new network and what its initialisation reports."""
    torch.manual_seed(seed)
    config = config_of(init, **model)
    net = build_model(config)
    return net, initialise(net, config)


def without_counters(state: StateDict) -> StateDict:
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def trained(n_classes: int = N_CLASSES) -> StateDict:
    """Weights of a trained small network, as in its final checkpoint."""
    torch.manual_seed(0)
    net = MultiScale(DeepLabV2(n_classes, ONE_BLOCK, RATES))
    return vary_norms(net).state_dict()


@torch.no_grad()
def vary_norms(model: nn.Module) -> nn.Module:
    """Give the batch norms statistics and weights as after a training."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.3)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(std=0.3)
    return model


def same(net: MultiScale, state: StateDict, but: str = "-") -> bool:
    """Whether the network has the weights of `state`, `base.` in front, except those named."""
    own = net.state_dict()
    return all(
        torch.equal(own[key], value)
        for key, value in without_counters(state).items()
        if but not in key
    )


# ------------------------------------------------------------------- torchvision's key layout


@pytest.fixture(scope="module")
def resnet() -> ResNet:
    """torchvision network with trained-like norms."""
    torch.manual_seed(0)
    return vary_norms(ResNet(Bottleneck, [1, 2, 1, 1])).eval()


def reference_features(resnet: ResNet, rgb: Tensor) -> Tensor:
    """torchvision's network with the strides, dilations and pooling of DeepLab.

    Args:
        resnet: the network; its layers 2 to 4 are changed.
        rgb: (B, 3, h, w), grey levels.
    """
    for block in resnet.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = (1, 1), (1, 1)
    resnet.layer2[0].conv1.stride = (2, 2)
    resnet.layer3[0].downsample[0].stride = resnet.layer4[0].downsample[0].stride = (1, 1)
    for layer, dilation in ((resnet.layer3, 2), (resnet.layer4, 4)):
        for block in layer:
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    features = resnet.relu(resnet.bn1(resnet.conv1((rgb / 255 - mean) / std)))
    features = nn.functional.max_pool2d(features, 3, 2, 1, ceil_mode=True)
    for layer in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        features = layer(features)
    return features


@torch.no_grad()
@pytest.mark.parametrize("published_mean", [True, False])
def test_torchvision_weights_give_torchvision_features(
    resnet: ResNet, published_mean: bool
) -> None:
    """With the published mean zero padding is another colour, so the border differs."""
    mean_bgr = Mean().bgr if published_mean else tuple(255 * m for m in IMAGENET_MEAN[::-1])
    state = {k: v for k, v in resnet.state_dict().items() if not k.startswith("fc.")}
    net = DeepLabV2(N_CLASSES, (1, 2, 1, 1), RATES).eval()
    renamed = from_torchvision(state, mean_bgr)
    assert set(renamed) == {key for key in net.state_dict() if not key.startswith(ASPP)}
    net.load_state_dict(renamed, strict=False)
    rgb = 255 * torch.rand(1, 3, 201, 225, generator=torch.Generator().manual_seed(0))
    bgr = rgb.flip(1) - torch.tensor(mean_bgr).view(3, 1, 1)
    actual, expected = net.features(bgr), reference_features(resnet, rgb)
    inside = (..., slice(10, -10), slice(10, -10)) if published_mean else ...
    assert expected[inside].numel() > 2048 * 30
    torch.testing.assert_close(actual[inside], expected[inside], rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------- imagenet


@pytest.fixture(scope="module")
def resnet50_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.manual_seed(0)
    save_checkpoint(path, torchvision.models.resnet50().state_dict())
    return path


@pytest.fixture
def cached(resnet50_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is torchvision's, already downloaded."""
    digest = sha256_file(resnet50_file)
    published = WeightFile("resnet50", f"https://x.org/{resnet50_file.name}", digest[:8])
    monkeypatch.setattr(WeightFile, "cached", resnet50_file)
    for module in (initialisation, backbone):
        monkeypatch.setattr(module, "torchvision_file", lambda name: published)


def test_downloaded_imagenet_weights(
    resnet50_file: Path, cached: None, capsys: pytest.CaptureFixture
) -> None:
    net, report = start(IMAGENET, N_BLOCKS=RESNET50)
    own = without_counters(net.base.state_dict())
    assert report.pixel_labels is False
    assert report.source == "resnet50.pth"
    assert report.sha256 == sha256_file(resnet50_file)
    assert report.loaded == len(own) - ASPP_TENSORS
    assert report.missing == [key for key in own if key.startswith(ASPP)]
    raw = torch.load(resnet50_file, weights_only=True)
    block = net.base.layer4.block6
    assert torch.equal(block.increase.conv.weight, raw["layer3.5.conv3.weight"])
    printed = capsys.readouterr().out
    assert "the first weights are those of resnet50 on ImageNet (resnet50.pth)" in printed
    assert "no pixel label was ever seen" in printed
    assert f"{report.loaded} of {len(own)} tensors loaded, 4 (aspp.c0.weight, " in printed


def test_local_imagenet_weights(resnet50_file: Path, cached: None) -> None:
    """Told from other files by torchvision's hash."""
    keys = {"N_BLOCKS": RESNET50, "INIT_WEIGHTS": resnet50_file}
    assert start(IMAGENET, **keys)[1].pixel_labels is False


@torch.no_grad()
def test_mean_of_the_configuration_is_part_of_the_first_convolution(resnet50_file: Path) -> None:
    """Whatever mean is subtracted from a picture, its features are the same inside."""
    rgb = 255 * torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = []
    for mean in (Mean(), Mean(R=10.0, G=200.0, B=60.0)):
        config = config_of(IMAGENET, N_BLOCKS=RESNET50, INIT_WEIGHTS=resnet50_file)
        config = replace(config, IMAGE=replace(config.IMAGE, MEAN=mean))
        net = build_model(config)
        initialise(net, config)
        bgr = rgb.flip(1) - torch.tensor(mean.bgr).view(3, 1, 1)
        features.append(net.base.layer1.conv1(bgr)[..., 3:-3, 3:-3])
    assert features[0].std() > 0.1
    torch.testing.assert_close(features[0], features[1], rtol=1e-3, atol=1e-3)


def test_local_weights_of_unknown_origin(resnet50_file: Path) -> None:
    _, report = start(IMAGENET, N_BLOCKS=RESNET50, INIT_WEIGHTS=resnet50_file)
    assert report.pixel_labels is None
    assert report.source == str(resnet50_file)
    assert "weakly supervised only if it never saw pixel labels" in report.what


@pytest.mark.parametrize("name", ["resnet18", LITE])
def test_imagenet_weights_of_other_backbones(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    source = torchvision.models.resnet18() if name == "resnet18" else timm.create_model(name)
    save_checkpoint(tmp_path / "w.pth", source.state_dict())
    net, report = start(IMAGENET, BACKBONE=name, INIT_WEIGHTS=tmp_path / "w.pth")
    body = net.base.backbone
    expected = source.conv1 if name == "resnet18" else source.conv_stem
    first = body.conv1 if name == "resnet18" else body.features.conv_stem
    assert torch.equal(first.weight, expected.weight)
    assert report.loaded == len(without_counters(body.state_dict()))
    assert report.missing == [key for key in net.base.state_dict() if key.startswith(ASPP)]
    again, _ = start(tmp_path / "w.pth", seed=2, BACKBONE=name)
    assert same(again, net.state_dict(), but=ASPP)


def test_offline_message_names_our_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError) as raised:
        start(IMAGENET, N_BLOCKS=RESNET50)
    message = str(raised.value)
    assert "resnet50-0676ba61.pth" in message and "--init" not in message
    assert "MODEL.INIT_WEIGHTS=FILE" in message and "MODEL.INIT_MODEL=none" in message


def test_published_network_starts_from_torchvisions_first_resnet101() -> None:
    name = initialisation._backbone_name(Config())
    assert pretrained.torchvision_file(name).cached.name == "resnet101-63fe2227.pth"


def test_no_imagenet_weights_for_other_block_numbers() -> None:
    with pytest.raises(UserError, match=r"N_BLOCKS is \[1, 1, 1, 1\].*\[3, 4, 23, 3\] \(resnet101"):
        start(IMAGENET)


# ---------------------------------------------------------------------------------------- files


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
    assert "has no layer2.block1.shortcut.conv.weight but layer2.block1.proj.conv.weight" in message
    assert "20 of this network's tensors and 20 of its own have no counterpart" in message


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
        with pytest.raises(UserError, match=r"has no backbone\.layer3\.0\.conv1\.weight but class"):
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
    with pytest.raises(UserError, match=r"w\.pth has 65 of the 85 .*76%.*layer5\.block1\.reduce"):
        start(tmp_path / "w.pth")


def test_weights_of_other_depths_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "w.pth", MultiScale(DeepLabV2(4, (1, 2, 1, 1), RATES)).state_dict())
    with pytest.raises(UserError, match=r"larger network, layer3\.block2.* first of 6 .*N_BLOCKS"):
        start(tmp_path / "w.pth")
    save_checkpoint(tmp_path / "w.pth", trained())
    with pytest.raises(UserError, match=r"of the .* at least 90% are needed\), layer3\.block2"):
        start(tmp_path / "w.pth", N_BLOCKS=(1, 3, 1, 1))
    save_checkpoint(tmp_path / "w.pth", torchvision.models.resnet18().state_dict())
    with pytest.raises(UserError, match=r"does not hold the weights of this network"):
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


def test_weights_of_the_pipeline_saw_no_pixel_labels(tmp_path: Path) -> None:
    path = tmp_path / "res152_cam.pth"
    save_checkpoint(path, build_cnn_cam("resnet18", 3, "random").state_dict())
    _, unknown = start(path, BACKBONE="resnet18")
    assert unknown.pixel_labels is None
    write_record(path, Record("train_cam"))
    _, known = start(path, BACKBONE="resnet18")
    assert known.pixel_labels is False
    assert "image labels only" in known.what


# --------------------------------------------------------------------------------------- random


@torch.no_grad()
@pytest.mark.parametrize("keys", [{}, {"BACKBONE": "resnet18"}], ids=["published", "resnet18"])
def test_random_weights_are_calibrated(keys: dict, capsys: pytest.CaptureFixture) -> None:
    torch.manual_seed(0)
    config = config_of(NO_INIT, **keys)
    net = build_model(config).train()
    images = 255 * torch.rand(2, 3, 64, 64) - 120
    report = initialise(net, config, [images])
    assert (report.loaded, report.missing, report.sha256) == (0, [], None)
    assert report.pixel_labels is False
    assert 0.1 < net.base.features(images).std() < 10
    assert "random, so no pixel label was ever seen" in capsys.readouterr().out
    norm = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.running_mean.abs().sum() > 0 and not norm.training


def test_random_residual_branches_are_open() -> None:
    """timm starts them shut, and frozen batch norms would keep them so."""
    net = build_model(config_of(NO_INIT, BACKBONE="resnet10t"))
    initialise(net, config_of(NO_INIT, BACKBONE="resnet10t"), [torch.rand(1, 3, 64, 64)])
    net(255 * torch.rand(1, 3, 64, 64)).sum().backward()
    body = net.parameter_groups().body
    assert all(weight.grad is not None and weight.grad.any() for weight in body)


def test_batches_are_for_random_weights_only(tmp_path: Path) -> None:
    def untouched() -> object:
        raise AssertionError
        yield

    save_checkpoint(tmp_path / "w.pth", trained())
    config = config_of(tmp_path / "w.pth")
    net = build_model(config)
    initialise(net, config, untouched())
    assert same(net, trained())


# -------------------------------------------------------------------------------------- trained


@pytest.mark.parametrize("prefix", ["", "module."])
def test_trained_weights_are_loaded_whole(tmp_path: Path, prefix: str) -> None:
    state = {prefix + key: value for key, value in without_counters(trained()).items()}
    save_checkpoint(tmp_path / "w.pth", state)
    net = build_model(config_of(NO_INIT))
    load_trained(net, tmp_path / "w.pth")
    assert same(net, trained())
    del state[f"{prefix}base.aspp.c1.bias"]
    save_checkpoint(tmp_path / "w.pth", state)
    with pytest.raises(UserError, match=r"w\.pth .* 1 missing \(base\.aspp\.c1\.bias\)"):
        load_trained(net, tmp_path / "w.pth")


def test_trained_weights_of_other_classes_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "w.pth", trained(21))
    with pytest.raises(UserError, match=r"aspp\.c0\.weight is \(21, .* \(4, .* in the network"):
        load_trained(build_model(config_of(NO_INIT)), tmp_path / "w.pth")
