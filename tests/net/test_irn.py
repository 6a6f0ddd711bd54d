"""IRNet against the published implementation: inference, losses, gradients."""

from pathlib import Path

import numpy as np
import published
import pytest
import torch
from networks import NUM_CLASSES, golden_irn, picture
from numpy.testing import assert_allclose
from pipeline import changed
from processes import run_processes

from misc.checkpoint import save_checkpoint
from misc.distributed import rank, shard
from misc.errors import UserError
from net.affinity import path_index
from net.backbone import build_backbone
from net.irn import IRNet
from net.losses import irn_losses
from net.resnet_cam import build_cnn_cam
from step import networks
from step.options import CAM_BACKBONE, Options
from step.run import Run
from voc12.devkit import Devkit
from voc12.labels import VOC_CLASSES
from voc12.source import DataSource

RADIUS = 10


@pytest.fixture(scope="module")
def irn() -> IRNet:
    return golden_irn()


def test_edge_and_displacement_equal_published(golden, irn):
    expected = golden("irn")
    irn.mean_shift.running_mean.copy_(torch.tensor([0.3, -0.2]))
    edge, displacement = irn.eval().edge_displacement(picture("irn/infer", 93, 125))
    assert_allclose(edge.numpy(), expected["edge"], atol=1e-5)
    assert_allclose(displacement.numpy(), expected["displacement"], atol=1e-4)


def test_losses_and_gradients_equal_published(golden, irn):
    expected = golden("irn")
    images = torch.stack([picture("irn/train0", 128, 128), picture("irn/train1", 128, 128)])
    irn.train().zero_grad()
    edge, displacement = irn(images)
    labels = torch.from_numpy(expected["seg"])
    losses = irn_losses(edge, displacement, labels, path_index(RADIUS), NUM_CLASSES)
    losses.total().backward()
    values = [loss.item() for loss in (*losses, losses.total())]
    assert_allclose(values, expected["losses"], rtol=1e-4)
    scale = np.abs(expected["grad_fc_edge6"]).max()
    assert_allclose(irn.fc_edge6.weight.grad, expected["grad_fc_edge6"], atol=1e-3 * scale)
    assert_allclose(irn.fc_edge1[0].weight.grad.norm(), expected["grad_fc_edge1"], rtol=1e-3)
    last = irn.fc_dp7[3].weight.grad
    scale = np.abs(expected["grad_fc_dp7"]).max()
    assert_allclose(last, expected["grad_fc_dp7"], atol=1e-3 * scale)
    assert_allclose(irn.fc_dp6[0].weight.grad.norm(), expected["grad_fc_dp6"], rtol=1e-3)
    assert all(p.grad is None for p in irn.backbone.parameters())
    heads = [p for group in irn.parameter_groups() for p in group]
    assert all(p.grad is not None and p.grad.any() for p in heads)
    trainable = {id(p) for p in irn.parameters() if p.requires_grad}
    assert {id(p) for p in heads} == trainable


def share_of_losses(folder: Path, processes: int) -> None:
    """Losses and gradients of this process's share of three pictures."""
    torch.manual_seed(0)
    edge, field = torch.randn(3, 1, 24, 24), torch.randn(3, 2, 24, 24)
    labels = torch.randint(0, 4, (3, 6, 6)).repeat_interleave(4, 1).repeat_interleave(4, 2).byte()
    labels[1, :, :16] = 255  # pictures have unequal numbers of pairs
    own = shard(range(3))
    parts = [maps[own].clone().requires_grad_() for maps in (edge, field)]
    losses = irn_losses(*parts, labels[own], path_index(5), NUM_CLASSES)
    losses.total().backward()
    found = [*(loss.detach() for loss in losses), *(part.grad for part in parts)]
    torch.save(found, folder / f"{processes} {rank()}.pth")


def test_losses_of_two_processes_average_to_those_of_the_whole_batch(tmp_path: Path) -> None:
    run_processes(share_of_losses, tmp_path, 2)
    share_of_losses(tmp_path, 1)
    first, second, whole = (torch.load(tmp_path / f"{name}.pth") for name in ("2 0", "2 1", "1 0"))
    # sums of some thousand terms, in another order: 1e-5 is a hundred roundings of float32
    for parts in zip(first[:4], second[:4], whole[:4], strict=True):
        torch.testing.assert_close((parts[0] + parts[1]) / 2, parts[2], rtol=1e-5, atol=0)
    for gradient, parts in zip(whole[4:], zip(first[4:], second[4:], strict=True), strict=True):
        for index, part in enumerate(parts):
            torch.testing.assert_close(part / 2, gradient[index::2], rtol=1e-5, atol=1e-7)


def test_mean_displacement_is_subtracted_in_evaluation_only(irn):
    images = picture("irn/mean", 64, 64)[None]
    irn.mean_shift.running_mean.zero_()
    with torch.no_grad():
        _, without = irn.eval()(images)
        irn.mean_shift.running_mean.copy_(torch.tensor([1.0, -2.0]))
        _, shifted = irn(images)
        _, training = irn.train()(images)
    expected = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(without - shifted, expected.expand_as(without))
    torch.testing.assert_close(training, without)


def test_large_pictures_are_not_cropped(irn):
    edge, displacement = irn.eval().edge_displacement(torch.zeros(3, 50, 550), min_input=512)
    assert edge.shape == (1, 13, 138)
    assert displacement.shape == (2, 13, 138)
    assert (edge >= 0).all() and (edge <= 1).all()


def test_grid_smaller_than_the_radius_is_refused(irn):
    grid = torch.zeros(1, 1, 8, 8)
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match="8x8"):
        irn_losses(grid, grid.expand(1, 2, 8, 8), labels, path_index(RADIUS), NUM_CLASSES)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "convnext_atto"])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (50, 70)])
def test_other_backbones_fit(name, height, width):
    model = IRNet(build_backbone(name, init="random")).train()
    edge, displacement = model(torch.randn(1, 3, height, width))
    assert edge.shape == (1, 1, -(-height // 4), -(-width // 4))
    assert displacement.shape == (1, 2, -(-height // 4), -(-width // 4))
    (edge.sum() + displacement.square().sum()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


@pytest.mark.parametrize("layout", ["ours", "published"])
def test_backbone_of_the_cnn_branch_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """Files without batch counters will do; those of another network are refused."""
    monkeypatch.setattr(networks, "require_input", lambda *_: None)
    cam = build_cnn_cam("resnet18", 4, init="random").state_dict()
    cam = {key: v for key, v in cam.items() if not key.endswith("num_batches_tracked")}
    file = tmp_path / "cam.pth"
    named = {published.name_of(key, "cnn"): value for key, value in cam.items()}
    save_checkpoint(file, cam if layout == "ours" else published.file_of("cnn", named))
    own = Options(irn_backbone="resnet18", irn_backbone_weights=CAM_BACKBONE, cam_weights_name=file)
    run = Run(own, DataSource(Devkit(tmp_path), VOC_CLASSES))
    model = networks.build_irn(run)
    for key, value in model.backbone.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(value, cam[f"backbone.{key}"])
    with pytest.raises(UserError, match=r"cam\.pth does not fit this network: "):
        networks.build_irn(changed(run, irn_backbone="resnet34"))


def test_backbone_with_arguments_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "require_input", lambda *_: None)
    narrow = {"channels": (32, 64, 128, 256), "stem_width": 16}
    own = Options(
        cnn="resnet10t",
        cnn_args=narrow,
        init="random",
        irn_backbone="resnet10t",
        irn_backbone_args=narrow,
        irn_backbone_weights=CAM_BACKBONE,
        cam_weights_name=tmp_path / "cam.pth",
    )
    run = Run(own, DataSource(Devkit(tmp_path), VOC_CLASSES))
    cnn = networks.build_cnn(run)
    save_checkpoint(tmp_path / "cam.pth", cnn.state_dict())
    backbone = networks.build_irn(run).backbone
    assert backbone.channels == (32, 32, 64, 128, 256)
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, cnn.state_dict()[f"backbone.{key}"]), key
    with pytest.raises(UserError, match=r"resnet10t with --irn_backbone_args a=1 cannot be built"):
        networks.build_irn(changed(run, irn_backbone_args={"a": 1}))
    with pytest.raises(UserError, match="resnet10t with --cnn_args a=1 cannot be built"):
        networks.build_cnn(changed(run, cnn_args={"a": 1}))
