"""First weights of DeepLab: key layouts, the input they expect, what is said about them."""

from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from deeplab_weights import (
    ASPP_TENSORS,
    LITE,
    N_CLASSES,
    RATES,
    RESNET50,
    config_of,
    same,
    start,
    trained,
    vary_norms,
    without_counters,
)
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from deeplab import initialisation
from deeplab.config import IMAGENET, NO_INIT, Config, Mean
from deeplab.initialisation import from_torchvision, initialise, load_trained
from deeplab.model import ASPP, DeepLabV2, build_model
from misc.checkpoint import save_checkpoint
from misc.errors import UserError
from misc.files import sha256_file
from misc.transforms import IMAGENET_MEAN, IMAGENET_STD
from net import backbone, pretrained
from net.pretrained import WeightFile

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
