"""Folded networks compute what they computed, and others are left alone."""

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from net.backbone import build_backbone
from net.folding import fold_batch_norms


def with_statistics(network: nn.Module) -> nn.Module:
    """Batch norms that differ from the identity, in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                for tensor in (module.running_var, module.weight):
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
                for tensor in (module.running_mean, module.bias):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) / 10)
    return network.eval()


def outputs(network: nn.Module) -> list[Tensor]:
    images = torch.randn(2, 3, 80, 112, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = network(images)
    return [found] if isinstance(found, Tensor) else found


def norms_in(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_one_by_hand() -> None:
    """Weight 2; mean 1, variance 4 - eps, weight 6, bias 5 of the norm: 6 (2x - 1) / 2 + 5."""
    conv, norm = nn.Conv2d(3, 1, 1, bias=False), nn.BatchNorm2d(1)
    network = nn.Sequential(conv, norm).eval()
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([2.0, 0, 0]).view(1, 3, 1, 1))
        norm.running_mean.fill_(1), norm.running_var.fill_(4 - norm.eps)
        norm.weight.fill_(6), norm.bias.fill_(5)
    assert fold_batch_norms(network) == 1
    torch.testing.assert_close(conv.weight.flatten(), torch.tensor([6.0, 0, 0]))
    torch.testing.assert_close(conv.bias, torch.tensor([2.0]))  # -3 + 5
    assert isinstance(network[1], nn.Identity)


@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("resnet18", 20),  # torchvision's: 1 + 16 convolutions and 3 shortcuts
        ("resnet50", 53),
        ("resnet10t", 14),  # timm's: 3 in the stem, 8 in the blocks and 3 shortcuts
        ("tf_efficientnet_lite0", 48),  # norms with an activation; the map ends before conv_head
    ],
)
def test_backbones_compute_the_same(name: str, norms: int) -> None:
    backbone = with_statistics(build_backbone(name, "random"))
    before = outputs(backbone)
    assert norms_in(backbone) == norms
    assert fold_batch_norms(backbone) == norms and norms_in(backbone) == 0
    for one, other in zip(before, outputs(backbone), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5 * float(one.abs().max()))


@pytest.mark.parametrize(
    "network",
    [
        torchvision.models.densenet121(weights=None),  # norms of what several layers made
        timm.create_model("resnetv2_50", num_classes=0),  # norms before the convolutions
    ],
    ids=["densenet", "pre-activation"],
)
def test_other_orders_compute_the_same(network: nn.Module) -> None:
    with_statistics(network)
    before = outputs(network)[0]
    fold_batch_norms(network)
    scale = float(before.abs().max())
    torch.testing.assert_close(outputs(network)[0], before, rtol=0, atol=1e-4 * scale)


class Branching(nn.Module):
    """The output of the convolution is used beside its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return self.norm(maps) + maps


class Twice(Branching):
    """The convolution runs twice, its norm once."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.norm(self.conv(images)), self.conv(images + 1)])


@pytest.mark.parametrize("kind", [Branching, Twice])
def test_what_would_change_is_left_alone(kind: type[Branching]) -> None:
    network = with_statistics(kind())
    before, state = outputs(network)[0], {k: v.clone() for k, v in network.state_dict().items()}
    assert fold_batch_norms(network) == 0
    assert torch.equal(outputs(network)[0], before)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_weights_that_are_not_finite_are_left_alone() -> None:
    network = with_statistics(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)))
    with torch.no_grad():
        network[0].weight[0] = torch.nan
    assert fold_batch_norms(network) == 0


def test_the_random_generators_stay_where_they_are() -> None:
    network = with_statistics(build_backbone("resnet18", "random"))
    state = torch.get_rng_state()
    assert fold_batch_norms(network) == 20
    assert torch.equal(torch.get_rng_state(), state)
