"""DeepLab v2: golden values, parameter groups, frozen batch norm, loss."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import fill
from networks import golden_deeplab
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import deeplab.model
from deeplab.config import BACKBONE, Config, Mean, Model
from deeplab.model import (
    Aspp,
    BackboneDeepLab,
    DeepLabV2,
    MultiScale,
    build_model,
    msc_loss,
    resize_labels,
)
from misc.checkpoint import load_checkpoint, save_checkpoint, state_dict_of
from misc.transforms import normalise, to_chw
from net.backbone import build_backbone

BGR = Mean().bgr
GOLDEN_SCALE = 60  # golden pictures are divided by it
N_CLASSES = 5
ONE_BLOCK, RATES = (1, 1, 1, 1), (1, 2)
LITE = "tf_efficientnet_lite0"


def backbone_deeplab(name: str = "resnet18") -> MultiScale:
    """Network on another CNN, with random weights."""
    torch.manual_seed(0)
    backbone = build_backbone(name, init="random")
    return MultiScale(BackboneDeepLab(backbone, N_CLASSES, RATES, BGR))


def published(n_classes: int = N_CLASSES) -> MultiScale:
    """Published network with one block per stage, random weights."""
    torch.manual_seed(0)
    return MultiScale(DeepLabV2(n_classes, ONE_BLOCK, RATES))


def pictures(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Network input: BGR minus mean, grey levels."""
    generator = torch.Generator().manual_seed(seed)
    return 255 * torch.rand(count, 3, height, width, generator=generator) - 120


# ------------------------------------------------------------------------------------------ golden


@pytest.fixture(scope="module")
def net() -> MultiScale:
    return golden_deeplab()


@pytest.fixture(scope="module")
def image() -> Tensor:
    bgr = fill.image("deeplab/a", 65, 97)[..., ::-1].astype(np.float64) - BGR
    return torch.from_numpy(to_chw((bgr / GOLDEN_SCALE).astype(np.float32)))[None]


def test_golden_logits_losses_and_gradients(net: MultiScale, image: Tensor, golden) -> None:
    expected = golden("deeplab")
    net.zero_grad()
    outputs = net.forward_all(image)
    close = {"rtol": 1e-4, "atol": 1e-4}
    assert_close(outputs[0], expected["single"], **close)
    assert_close(outputs[-1], expected["msc_eval"], **close)
    assert [tuple(one.shape[-2:]) for one in outputs] == [(9, 13), (5, 7), (7, 10), (9, 13)]
    total, losses = msc_loss(outputs, torch.from_numpy(expected["label"]))
    assert_close(torch.stack(losses), expected["losses"], rtol=1e-4, atol=0)
    assert_close(total, expected["losses"].sum(), rtol=1e-4, atol=0)
    total.backward()
    gradient = net.base.aspp.c0.weight.grad.norm()
    assert_close(gradient, expected["grad_aspp_c0"], rtol=1e-3, atol=0)
    gradient = net.base.layer5.block1.reduce.conv.weight.grad.norm()
    assert_close(gradient, expected["grad_layer5"], rtol=1e-3, atol=0)


def test_golden_parameter_groups(net: MultiScale, golden) -> None:
    groups = net.parameter_groups()
    counts = [[len(group), sum(p.numel() for p in group)] for group in groups]
    assert counts == golden("deeplab")["param_groups"].tolist()


def assert_close(actual: Tensor, expected: np.ndarray, **tolerance: float) -> None:
    torch.testing.assert_close(
        actual.detach(), torch.as_tensor(expected, dtype=torch.float32), **tolerance
    )


# ------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("build", [published, backbone_deeplab])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_pictures_of_one_pixel_have_outputs(build, size: tuple[int, int]) -> None:
    model, images = build(), pictures(1, *size)
    with torch.no_grad():
        outputs = model.eval().forward_all(images)
    sides = [-(-side // model.output_stride) for side in size]
    assert outputs[-1].shape[-2:] == outputs[0].shape[-2:]
    assert all(abs(a - b) <= 1 for a, b in zip(outputs[0].shape[-2:], sides, strict=True))
    assert all(torch.isfinite(one).all() for one in outputs)


@pytest.mark.parametrize("build", [published, backbone_deeplab])
def test_output_depends_on_the_argument_not_on_the_mode(build) -> None:
    model, images = build(), pictures(2, 48, 65)
    with torch.no_grad():
        outputs = model.train().forward_all(images)
        for mode in (True, False):
            model.train(mode)
            assert torch.equal(model(images), outputs[-1])
            again = model(images, every_output=True)
            assert all(torch.equal(a, b) for a, b in zip(again, outputs, strict=True))
    assert len(outputs) == 4
    stride = model.output_stride
    assert stride == model.base.output_stride == (8 if build is published else 16)
    for output, scale in zip(outputs, (1, 0.5, 0.75, 1), strict=True):
        sides = [int(side * scale) for side in (48, 65)]
        assert abs(output.shape[2] - sides[0] / stride) <= 1, scale
        assert abs(output.shape[3] - sides[1] / stride) <= 1, scale
    larger = [F.interpolate(one, outputs[0].shape[2:], mode="bilinear") for one in outputs[:3]]
    assert torch.equal(outputs[-1], torch.stack(larger).amax(dim=0))


@pytest.mark.parametrize("build", [published, backbone_deeplab])
def test_batch_norm_is_frozen(build) -> None:
    model = build().train()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert norms and model.training and not any(norm.training for norm in norms)
    before = [norm.running_mean.clone() for norm in norms]
    model(pictures(2, 48, 48))
    assert all(torch.equal(a, norm.running_mean) for a, norm in zip(before, norms, strict=True))
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())


@pytest.mark.parametrize("build", [published, backbone_deeplab])
def test_every_trained_parameter_is_in_one_group_and_gets_a_gradient(build) -> None:
    model = build().train()
    groups = model.parameter_groups()
    trained = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    grouped = [id(p) for group in groups for p in group]
    assert sorted(grouped) == sorted(trained)
    assert [trained[id(p)].split(".")[1] for p in groups.aspp_weights] == ["aspp"] * len(RATES)
    assert all(trained[id(p)].endswith("bias") for p in groups.aspp_biases)
    assert not any("aspp" in trained[id(p)] for p in groups.body)
    labels = torch.randint(0, N_CLASSES, (2, 48, 48))
    msc_loss(model.forward_all(pictures(2, 48, 48)), labels)[0].backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
        assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, key


def test_classifier_starts_small_and_sums_its_convolutions() -> None:
    torch.manual_seed(0)
    aspp = Aspp(64, N_CLASSES, RATES)
    assert all(c.bias.eq(0).all() for c in aspp.children())
    assert aspp.c0.weight.std().item() == pytest.approx(0.01, rel=0.1)
    features = torch.randn(1, 64, 9, 7)
    parts = [F.conv2d(features, c.weight, padding=r, dilation=r) for c, r in pairs(aspp)]
    assert [c.dilation for c in aspp.children()] == [(rate, rate) for rate in RATES]
    torch.testing.assert_close(aspp(features), parts[0] + parts[1])


def pairs(aspp: Aspp) -> list[tuple[nn.Conv2d, int]]:
    return list(zip(aspp.children(), RATES, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", LITE])
def test_other_backbones_see_normalised_rgb(name: str) -> None:
    base = backbone_deeplab(name).eval().base
    rgb = fill.image("deeplab/rgb", 48, 65)
    bgr = to_chw((rgb[..., ::-1] - np.array(BGR)).astype(np.float32))
    expected = base.backbone(torch.from_numpy(to_chw(normalise(rgb)))[None])[-1]
    assert_close(base.features(torch.from_numpy(bgr)[None]), expected, rtol=1e-3, atol=1e-4)
    assert base(torch.from_numpy(bgr)[None]).shape == (1, N_CLASSES, 3, 5)


def test_models_of_the_configuration() -> None:
    small = replace(Config().MODEL, N_BLOCKS=ONE_BLOCK, ATROUS_RATES=RATES)
    config = replace(Config(), MODEL=small)
    assert set(build_model(config).state_dict()) == set(published().state_dict())
    assert build_model(config).base.aspp.c1.weight.shape == (21, 2048, 3, 3)
    other = Model(NAME=BACKBONE, BACKBONE="resnet18", ATROUS_RATES=RATES)
    keys = set(build_model(replace(config, MODEL=other)).state_dict())
    assert {key.split(".")[1] for key in keys} == {"backbone", "aspp"}
    assert keys == set(backbone_deeplab().state_dict())


def test_state_dict_survives_a_file(tmp_path: Path) -> None:
    first, second = published(), MultiScale(DeepLabV2(N_CLASSES, ONE_BLOCK, RATES))
    save_checkpoint(tmp_path / "w.pth", first.state_dict())
    second.load_state_dict(state_dict_of(load_checkpoint(tmp_path / "w.pth")))
    images = pictures(1, 40, 40)
    with torch.no_grad():
        assert torch.equal(first.eval()(images), second.eval()(images))


# ------------------------------------------------------------------------------------------ loss


@pytest.mark.parametrize("size", [(9, 13), (41, 41), (1, 2), (65, 97), (100, 30), (21, 33)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_labels_are_resized_like_pil(size: tuple[int, int], dtype: torch.dtype) -> None:
    labels = torch.randint(0, 256, (2, 65, 97), generator=torch.Generator().manual_seed(0))
    resized = resize_labels(labels.to(dtype), size)
    assert resized.dtype == dtype
    for before, after in zip(labels, resized, strict=True):
        picture = Image.fromarray(before.numpy().astype(np.uint8))
        expected = np.asarray(picture.resize(size[::-1], Image.Resampling.NEAREST))
        assert np.array_equal(after.numpy(), expected)


def test_loss_is_the_sum_of_mean_cross_entropies() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [(6, 8), (3, 4), (4, 6), (6, 8)]
    outputs = [torch.randn(2, 3, *size, generator=generator) for size in sizes]
    labels = torch.randint(0, 3, (2, 12, 16), generator=generator)
    labels[0, :5] = 255
    total, losses = msc_loss(outputs, labels)
    for output, loss in zip(outputs, losses, strict=True):
        target = resize_labels(labels, output.shape[-2:])
        expected = F.cross_entropy(output, target, ignore_index=255)
        torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(total, sum(losses))
    half = [output.bfloat16() for output in outputs]
    rounded = [output.float() for output in half]
    assert torch.equal(msc_loss(half, labels)[0], msc_loss(rounded, labels)[0])


def test_loss_by_hand() -> None:
    """One pixel with logits (0, ln 3): probability of class 1 is 3/4; the other is ignored."""
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 1, 0, 0] = np.log(3)
    total, losses = msc_loss([logits, logits], torch.tensor([[[1, 7]]]), ignore=7)
    assert losses[0].item() == pytest.approx(np.log(4 / 3))
    assert total.item() == pytest.approx(2 * np.log(4 / 3))


def test_a_batch_without_labels_has_loss_and_gradient_0() -> None:
    output = torch.randn(2, 3, 4, 5, requires_grad=True)
    total, _ = msc_loss([output], torch.full((2, 8, 10), 255))
    total.backward()
    assert total.item() == 0
    assert torch.equal(output.grad, torch.zeros_like(output))


# -------------------------------------------------------------------------- several processes


def gradients(model: MultiScale, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Losses and gradients of one batch, as one process has them."""
    model.zero_grad()
    total, losses = msc_loss(model.forward_all(images), labels)
    total.backward()
    trained = {key: p.grad.clone() for key, p in model.named_parameters() if p.requires_grad}
    return {**trained, "losses": torch.stack(losses).detach()}


def test_average_over_processes_is_that_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most pixels of the first part are ignored; half of the second part has no labels."""
    model, images = backbone_deeplab().train(), pictures(4, 48, 48)
    labels = torch.randint(0, N_CLASSES, (4, 48, 48), generator=torch.Generator().manual_seed(1))
    labels[:2, 20:] = 255
    labels[2] = 255
    parts = [(images[:2], labels[:2]), (images[2:], labels[2:])]
    expected = gradients(model, images, labels)

    counts: list[Tensor] = []
    monkeypatch.setattr(deeplab.model, "all_reduce_sum", lambda own: counts.append(own) or own)
    alone = [gradients(model, *part) for part in parts]
    monkeypatch.setattr(deeplab.model, "all_reduce_sum", lambda own: counts[0] + counts[1])
    monkeypatch.setattr(deeplab.model, "world_size", lambda: 2)
    together = [gradients(model, *part) for part in parts]

    for key, value in expected.items():
        scale = value.abs().max()
        mean = (together[0][key] + together[1][key]) / 2
        torch.testing.assert_close(mean / scale, value / scale, rtol=0, atol=1e-5)
    naive = (alone[0]["losses"] + alone[1]["losses"]) / 2
    assert (naive - expected["losses"]).abs().max() > 1e-3
