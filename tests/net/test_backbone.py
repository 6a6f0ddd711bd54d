"""CNN backbones and pretrained weights: strides, freezing, batch norm, loading, offline."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from networks import CNN_OPTIONS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from misc.errors import UserError
from net.backbone import Backbone, ResNetBackbone, build_backbone, calibrate_batchnorm
from net.resnet_cam import build_cnn_cam

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
BACKBONES = {
    "resnet18": (4, 4, 8, 16, 16),
    "resnet50": (4, 4, 8, 16, 16),
    "tf_efficientnet_lite0": (2, 4, 8, 16, 16),
    "convnext_atto": (4, 4, 8, 16, 16),  # no stem map, rounds sizes down
    "resnetv2_50": (2, 4, 8, 16, 16),  # nested stem
    "regnety_002": (2, 4, 8, 16, 16),
}
SMALL = "tf_efficientnet_lite0"
STAGE_NAMES = [["conv1", "bn1"], ["layer1"], ["layer2"], ["layer3"], ["layer4"]]


@pytest.fixture(scope="module")
def built() -> Callable[[str], Backbone]:
    """Backbones with random weights, each built once; to be left as they are."""
    cache: dict[str, Backbone] = {}

    def get(name: str) -> Backbone:
        if name not in cache:
            torch.manual_seed(0)
            cache[name] = build_backbone(name, init="random")
        return cache[name]

    return get


def norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


# ------------------------------------------------------------------------------ maps and strides


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [(64, 96), (50, 71)])
@torch.no_grad()
def test_five_maps_at_the_promised_strides(
    built: Callable[[str], Backbone], name: str, size: tuple[int, int]
) -> None:
    backbone = built(name).eval()
    assert backbone.strides == BACKBONES[name]
    maps = backbone(torch.randn(2, 3, *size))
    assert len(maps) == 5
    for one, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert one.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_last_stage_of_a_resnet_has_stride_1_without_dilation(name: str) -> None:
    backbone = build_backbone(name, init="random").eval()
    original = torchvision.models.get_model(name).eval()
    original.load_state_dict(backbone.state_dict(), strict=False)  # all but fc
    strided = [m for m in original.layer4[0].modules() if getattr(m, "stride", 0) == (2, 2)]
    assert len(strided) == 2
    for convolution in strided:
        convolution.stride = (1, 1)
    images = torch.randn(1, 3, 48, 64)
    features = original.maxpool(original.relu(original.bn1(original.conv1(images))))
    for layer in (original.layer1, original.layer2, original.layer3, original.layer4):
        features = layer(features)
    torch.testing.assert_close(backbone(images)[-1], features)


@torch.no_grad()
def test_pictures_are_converted_to_the_statistics_of_the_network(
    built: Callable[[str], Backbone],
) -> None:
    """EfficientNet-Lite0 was trained on (rgb - 0.5) / 0.5."""
    backbone = built(SMALL).eval()
    rgb = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(IMAGENET[key]).view(3, 1, 1) for key in ("mean", "std"))
    maps = backbone((rgb - mean) / std)
    expected = backbone.features((rgb - 0.5) / 0.5)
    torch.testing.assert_close(maps[-1], expected[-1], rtol=1e-3, atol=1e-4)


def test_networks_without_such_maps_are_refused() -> None:
    for name in ("vgg16", "deit_tiny_patch16_224", "densenet121"):
        with pytest.raises(UserError, match=rf"{name} has no feature maps down to stride 16.*: \w"):
            build_backbone(name, init="random")
    with pytest.raises(UserError, match="resnet1 is neither a torchvision ResNet nor a timm"):
        build_backbone("resnet1", init="random")


@pytest.mark.parametrize(
    ("name", "channels", "strides"),
    [
        ("resnet18.a1_in1k", (64, 64, 128, 256, 512), (2, 4, 8, 16, 16)),
        ("convnext_atto.d2_in1k", (40, 40, 80, 160, 320), (4, 4, 8, 16, 16)),
        ("tf_efficientnet_lite0.in1k", (16, 24, 40, 112, 320), (2, 4, 8, 16, 16)),
    ],
)
def test_tagged_names_build_timms_networks(name: str, channels: tuple, strides: tuple) -> None:
    """Untagged `resnet18` is torchvision's; its stem map is pooled, timm's is not."""
    model = build_cnn_cam(name, 3, init="random", frozen_stages=0).train()
    assert (model.backbone.channels, model.backbone.strides) == (channels, strides)
    maps = model(torch.randn(2, 3, 64, 80))
    assert maps.shape == (2, 3, 4, 5)
    maps.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert isinstance(build_backbone("resnet18", init="random"), ResNetBackbone)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "resnet50.a9",
            r"resnet50\.a9: timm has no weights a9 of resnet50; give resnet50, .*a1_in1k",
        ),
        ("resnet50.", r"resnet50\.: timm has no weights  of resnet50; give "),
        ("convnext_tiny.fb_in22k_ft_in1l", "give convnext_tiny, .*convnext_tiny.fb_in22k_ft_in1k"),
        ("vgg11_bn.tv_in1k", r"no feature maps down to stride 16 in timm: it cannot be dilated to"),
        ("ghostnet_100.in1k", r"stride 16 in timm: only output_stride==32 is valid"),
        ("botnet26t_256", r"botnet26t_256 does not take pictures of any size.*\."),
    ],
)
def test_tags_and_networks_that_do_not_fit_get_one_sentence(name: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        build_backbone(name, init="random")


@pytest.mark.parametrize(
    ("name", "model_args", "channels"),
    [
        ("resnet10t", {"channels": (32, 64, 128, 256), "stem_width": 16}, (32, 32, 64, 128, 256)),
        ("resnet10t", {"channels": [8, 16, 32, 64]}, (64, 8, 16, 32, 64)),  # as YAML has them
        ("convnext_atto", {"dims": (8, 16, 24, 32)}, (8, 8, 16, 24, 32)),
        ("resnet50", {"width_per_group": 32}, (64, 256, 512, 1024, 2048)),  # torchvision's
    ],
)
def test_arguments_reach_the_network(name: str, model_args: dict, channels: tuple) -> None:
    backbone = build_backbone(name, "random", None, model_args).eval()
    assert backbone.channels == channels
    maps = backbone(torch.zeros(1, 3, 64, 80))
    assert tuple(one.shape[1] for one in maps) == channels
    assert maps[-1].shape[2:] == (4, 5)
    if name == "resnet50":
        assert backbone.layer1[0].conv2.weight.shape == (32, 32, 3, 3)


@pytest.mark.parametrize(
    ("name", "model_args", "told"),
    [
        ("resnet10t", {"chanels": 3}, "unexpected keyword argument 'chanels'"),
        ("resnet10t", {"channels": (32, 64)}, "list index out of range"),
        ("resnet18", {"width_per_group": 32}, "BasicBlock only supports groups=1"),
        ("resnet50", {"chanels": 3}, "unexpected keyword argument 'chanels'"),
    ],
)
def test_arguments_that_do_not_fit_get_one_sentence(name: str, model_args: dict, told: str) -> None:
    ((key, value),) = model_args.items()
    shown = f"{key}={value}".replace(" ", "")
    with pytest.raises(UserError) as caught:
        build_backbone(name, init="random", model_args=model_args, names=CNN_OPTIONS)
    message = str(caught.value)
    assert message.startswith(f"{name} with --cnn_args {shown} cannot be built: ")
    assert told in message and message.endswith(".") and not message.endswith("..")


@pytest.mark.parametrize("name", ["resnet10t", "resnet50"])
@pytest.mark.parametrize("key", ["in_chans", "checkpoint_path", "replace_stride_with_dilation"])
def test_arguments_of_other_options_are_refused(name: str, key: str) -> None:
    with pytest.raises(UserError, match=f"{name} cannot be built with {key}=1: .* leave it out"):
        build_backbone(name, init="random", model_args={key: 1})


def test_tag_decides_the_input_of_a_cnn() -> None:
    """What a black picture becomes: ImageNet's statistics, or (0 - 0.5) / 0.5."""
    means = {}
    for name in ("efficientnet_b0.ra_in1k", "tf_efficientnet_b0.ap_in1k", "resnet18.a1_in1k"):
        convert = build_backbone(name, init="random").convert_input
        black = convert(
            -torch.tensor(IMAGENET["mean"]).view(3, 1, 1)
            / torch.tensor(IMAGENET["std"]).view(3, 1, 1)
        )
        means[name] = black.flatten().tolist()
    imagenet = [-m / s for m, s in zip(IMAGENET["mean"], IMAGENET["std"], strict=True)]
    assert means["resnet18.a1_in1k"] == pytest.approx(imagenet)
    assert means["tf_efficientnet_b0.ap_in1k"] == pytest.approx([-1, -1, -1], abs=1e-5)
    assert means["efficientnet_b0.ra_in1k"] == pytest.approx(imagenet)


# -------------------------------------------------------------------------------------- freezing


@pytest.mark.parametrize("name", BACKBONES)
def test_stages_divide_all_parameters(built: Callable[[str], Backbone], name: str) -> None:
    backbone = built(name)
    in_stages = [id(p) for stage in backbone.stages() for m in stage for p in m.parameters()]
    assert len(backbone.stages()) == 5
    assert sorted(in_stages) == sorted(id(p) for p in backbone.parameters())


@pytest.mark.parametrize("name", ["resnet18", SMALL, "convnext_atto", "resnetv2_50"])
@pytest.mark.parametrize("frozen", [0, 3])
def test_gradient_stops_after_the_frozen_stages(name: str, frozen: int) -> None:
    model = build_cnn_cam(name, 4, init="random", frozen_stages=frozen)
    maps = model.backbone(torch.randn(2, 3, 64, 64))
    assert [one.requires_grad for one in maps] == [number >= frozen for number in range(5)]
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    body, head = model.parameter_groups()
    assert {id(p) for p in (*body, *head)} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(head) == 1


def test_published_freezing_of_a_resnet() -> None:
    model = build_cnn_cam("resnet18", 4, init="random")
    trained = {key.split(".")[1] for key, p in model.named_parameters() if p.requires_grad}
    assert trained == {"layer3", "layer4", "weight"}
    stages = ResNetBackbone(torchvision.models.resnet18()).stages()
    assert [len(stage) for stage in stages] == [len(names) for names in STAGE_NAMES]


# ------------------------------------------------------------------------------------ batch norm


def statistics(model: nn.Module) -> list[torch.Tensor]:
    return [norm.running_mean.clone() for norm in norms(model)]


@pytest.mark.parametrize("name", ["resnet18", SMALL])
def test_fixed_batchnorm_uses_running_statistics_and_trains_its_weight(name: str) -> None:
    model = build_cnn_cam(name, 4, init="random", frozen_stages=0).train()
    images = torch.randn(3, 3, 64, 64)
    before = statistics(model)
    maps = model.backbone.features(images) if name == SMALL else model.backbone(images)
    maps[-1].sum().backward()
    torch.testing.assert_close(statistics(model), before, rtol=0, atol=0)
    assert all(norm.weight.grad is not None for norm in norms(model.backbone))
    assert model.training and not any(norm.training for norm in norms(model))
    with torch.no_grad():
        if name == "resnet18":  # no drop path: training equals evaluation
            torch.testing.assert_close(model(images), model.eval()(images))


def test_free_batchnorm_learns_statistics_where_it_is_trained() -> None:
    model = build_cnn_cam("resnet18", 4, init="random", frozen_stages=3, fixed_batchnorm=False)
    backbone = model.train().backbone
    frozen = [norm for stage in backbone.stages()[:3] for m in stage for norm in norms(m)]
    assert frozen and not any(norm.training for norm in frozen)
    before = {id(norm): norm.running_mean.clone() for norm in norms(backbone)}
    model(torch.randn(3, 3, 64, 64))
    moved = {
        key
        for key, norm in ((id(n), n) for n in norms(backbone))
        if not torch.equal(before[key], norm.running_mean)
    }
    assert moved == set(before) - {id(norm) for norm in frozen}
    assert not any(norm.training for norm in norms(model.eval()))


@pytest.mark.parametrize("name", ["resnet18", SMALL])
@pytest.mark.parametrize("training", [True, False])
def test_calibration_gives_norms_the_statistics_of_their_input(name: str, training: bool) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, init="random").train(training)
    weights = [p.clone() for p in backbone.parameters()]
    momenta = [norm.momentum for norm in norms(backbone)]
    modes = [module.training for module in backbone.modules()]
    batches = [3 + 2 * torch.randn(4, 3, 64, 64) for _ in range(3)]
    calibrate_batchnorm(backbone, iter(batches))
    assert [module.training for module in backbone.modules()] == modes
    assert [norm.momentum for norm in norms(backbone)] == momenta
    torch.testing.assert_close(weights, list(backbone.parameters()), rtol=0, atol=0)
    seen: list[torch.Tensor] = []
    first = norms(backbone)[0]
    handle = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for batch in batches:
            backbone.eval()(batch)
    handle.remove()
    means = torch.stack([one.mean(dim=(0, 2, 3)) for one in seen])
    variances = torch.stack([one.var(dim=(0, 2, 3)) for one in seen])
    torch.testing.assert_close(first.running_mean, means.mean(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.running_var, variances.mean(dim=0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_calibration_keeps_the_activations_of_a_deep_network_in_bounds() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("resnet152", init="random").eval()
    images = torch.randn(4, 3, 64, 64)
    assert backbone(images)[-1].std() > 1e3
    calibrate_batchnorm(backbone, iter([images]))
    assert 0.1 < backbone(images)[-1].std() < 100
