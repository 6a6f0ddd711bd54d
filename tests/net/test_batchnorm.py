"""Batch norm over processes against torch's own on the whole batch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.utils.data import Dataset

from misc.checkpoint import load_checkpoint
from misc.distributed import rank, shard, taking_part, world_size
from misc.errors import UserError
from misc.training import Loss, Training
from net.backbone import Backbone
from net.batchnorm import synchronise_batchnorm


def assert_alike(found: Tensor, expected: Tensor) -> None:
    """Compare by the greatest value of a tensor: the terms of a gradient cancel.

    Means over parts that are summed first differ by rounding errors of float32, about 1e-7; the
    smallest standard deviation is a sixth of its mean, which multiplies them.
    """
    bound = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)


KINDS = {
    "torch": lambda: nn.BatchNorm2d(3, eps=1e-3, momentum=0.2),
    "timm": lambda: BatchNormAct2d(3, act_layer=nn.SiLU, inplace=False),
    "cumulative": lambda: nn.BatchNorm2d(3, momentum=None),
    "plain": lambda: nn.BatchNorm2d(3, affine=False),
}


def pictures(count: int) -> Tensor:
    """(count, 3, 4, 5) of different means and sizes."""
    generator = torch.Generator().manual_seed(count)
    return (
        3
        + torch.randn(count, 3, 4, 5, generator=generator)
        * torch.tensor([0.5, 1, 4])[:, None, None]
    )


def passes(kind: str, count: int) -> dict[str, Tensor]:
    """Outputs, gradients and state of two updates; this process's part of them."""
    torch.manual_seed(0)
    norm = KINDS[kind]()
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    synchronise_batchnorm(norm)
    own = shard(range(count))
    whole = pictures(count)
    images = whole[own or [0]].clone().requires_grad_()
    for step in range(2):
        with taking_part(bool(own)):
            outputs = norm(images * (step + 1))
            # a sum that no constant of a channel drops out of
            loss = (outputs * whole[own or [0]].cos()).square().sum() * bool(own)
            loss.backward()
    found = {key: value.clone() for key, value in norm.state_dict().items()}
    found |= {f"gradient of {name}": p.grad for name, p in norm.named_parameters()}
    norm.eval()
    found["evaluated"] = norm(whole).detach()
    if own:
        found |= {"outputs": outputs.detach(), "gradients": images.grad}
    return found


def save_passes(folder: Path, count: int) -> None:
    for kind in KINDS:
        torch.save(passes(kind, count), folder / f"{kind} {rank()}.pth")


@pytest.mark.parametrize(("count", "processes"), [(4, 2), (5, 2), (2, 3), (1, 2)])
def test_equals_torch_on_the_whole_batch(tmp_path: Path, count: int, processes: int) -> None:
    run_processes(save_passes, tmp_path, count, count=processes)
    for kind in KINDS:
        expected = passes(kind, count)
        found = [torch.load(tmp_path / f"{kind} {index}.pth") for index in range(processes)]
        for index, part in enumerate(found[:count]):
            for name in ("outputs", "gradients"):
                assert_alike(part.pop(name), expected[name][index::processes])
        for name in found[0]:
            parts = [part[name] for part in found]
            if name.startswith("gradient of"):  # data parallel training adds them up
                assert_alike(sum(parts), expected[name])
            else:
                for part in parts:
                    assert_alike(part, expected[name])


def test_plain_run_keeps_torchs_own() -> None:
    assert world_size() == 1
    norm = nn.BatchNorm2d(3)
    synchronise_batchnorm(norm)
    assert type(norm) is nn.BatchNorm2d


def test_half_precision_keeps_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, maps = nn.BatchNorm2d(3), pictures(2).bfloat16()
    expected = norm(maps)
    monkeypatch.setenv("WORLD_SIZE", "2")
    synchronise_batchnorm(norm)
    monkeypatch.delenv("WORLD_SIZE")
    found = norm(maps)
    assert type(norm) is not nn.BatchNorm2d and found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.01, atol=0.01)


class OtherBatchNorm(nn.BatchNorm2d):
    """A kind that nobody here knows."""


@pytest.mark.parametrize("other", [OtherBatchNorm, nn.BatchNorm1d, nn.BatchNorm3d])
def test_other_batch_norms_do_not_learn_in_several_processes(
    monkeypatch: pytest.MonkeyPatch, other: type[nn.Module]
) -> None:
    def network(fixed_batchnorm: bool) -> nn.Module:
        backbone = Backbone(fixed_batchnorm)
        backbone.body = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(other(3)))
        return backbone.eval()

    synchronise_batchnorm(network(fixed_batchnorm=False))  # one process may
    monkeypatch.setenv("WORLD_SIZE", "2")
    fixed = network(fixed_batchnorm=True)
    synchronise_batchnorm(fixed)
    assert not any(module.training for module in fixed.modules())
    told = rf"batch norm body\.1\.0 \({other.__name__}\) .*--fixed_batchnorm.*in one process"
    with pytest.raises(UserError, match=told):
        synchronise_batchnorm(network(fixed_batchnorm=False))


# --------------------------------------------------------------------------------- whole trainings

UPDATES = 6
# Every update through batch norms that learn multiplies the rounding errors of the one before: in
# float32 a ResNet leaves any useful bound after a few (1e-7 becomes 1e-5 to 1e-1, by its learning
# rate), whatever the shares. In float64 they stay at 1e-15, and wrong weights or counts at 1e-3.
EXACT = {"rtol": 1e-12, "atol": 1e-12}


class Noise(Dataset):
    """Seven pictures of float64, of different means and sizes; batches of 5 and of 2 of them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(7, 3, 8, 8, generator=generator, dtype=torch.float64)
        self.images = (
            noise * torch.arange(1, 8)[:, None, None, None] + torch.arange(3)[:, None, None]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        return {"image": self.images[key[1]]}


def train_network(path: Path) -> None:
    """Train a small network with both kinds of batch norm in float64; its state is written."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, stride=2, bias=False),
        BatchNormAct2d(4, act_layer=nn.SiLU),
        nn.Conv2d(4, 2, 1),
    ).double()
    synchronise_batchnorm(network)

    def step(models: Mapping[str, nn.Module], batch: dict[str, Any], unit: int) -> Loss:
        scores = models["net"](batch["image"]).mean(dim=(2, 3))
        loss = batch["weight"] * (scores - batch["image"].mean(dim=(2, 3))[:, :2]).square().mean()
        return Loss(loss, {"loss": loss.detach()})

    Training(
        title="noise",
        dataset=Noise(),
        batch_size=5,
        units=UPDATES // 2,
        seed=0,
        models={"net": network},
        optimisers={"net": torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.5)},
        step=step,
        device=torch.device("cpu"),
        state_path=path,
        fingerprint="",
        drop_last=False,
    ).run()


@pytest.mark.parametrize("processes", [2, 3])
def test_uneven_shares_train_as_the_whole_batch_does(tmp_path: Path, processes: int) -> None:
    """Shares of 3 and 2, then 1 and 1; of 2, 2 and 1, then 1, 1 and none."""
    train_network(tmp_path / "one.pth")
    run_processes(train_network, tmp_path / "all.pth", count=processes)
    expected, found = (
        load_checkpoint(tmp_path / name)["models"]["net"] for name in ("one.pth", "all.pth")
    )
    assert expected["1.num_batches_tracked"] == UPDATES
    assert (expected["4.running_var"] - 1).abs().min() > 1e-2
    torch.testing.assert_close(found, expected, **EXACT)
