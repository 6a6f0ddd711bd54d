"""Batch norm over the pictures of all processes, as one process with the whole batch computes it.

torch's SyncBatchNorm does the same on GPUs alone, and counts the picture of a process that has
none.
"""

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from misc.distributed import all_reduce_sum, takes_part, world_size
from misc.errors import UserError


def synchronise_batchnorm(network: nn.Module) -> None:
    """Let the batch norms of a network use the statistics of the whole batch in training.

    Names of tensors, fixed batch norms and a plain run stay as they are. Do it when the norms are
    calibrated: in training, all processes must go through the network together afterwards.

    Raises:
        UserError: a batch norm that learns is of a kind that is known for one process alone.
    """
    if world_size() == 1:
        return
    for module in network.modules():
        if type(module) in _SYNCHRONISED:
            module.__class__ = _SYNCHRONISED[type(module)]
    before = network.training
    for name, module in network.train().named_modules():
        other = isinstance(module, _BatchNorm) and type(module) not in _SYNCHRONISED.values()
        if other and module.training:
            raise UserError(
                f"the batch norm {name} ({type(module).__name__}) would learn from the pictures "
                "of each process alone: keep batch norms fixed (--fixed_batchnorm, "
                "MODEL.FIXED_BATCHNORM true), name another network, or train in one process."
            )
    network.train(before)


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over all processes."""

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        return _normalise(self, maps) if self.training else super().forward(maps)


class SynchronisedBatchNormAct(BatchNormAct2d):
    """timm's batch norm with dropout and activation, over all processes."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        return self.act(self.drop(_normalise(self, x))) if self.training else super().forward(x)


_SYNCHRONISED = {
    nn.BatchNorm2d: SynchronisedBatchNorm,
    BatchNormAct2d: SynchronisedBatchNormAct,
}


def _normalise(norm: nn.BatchNorm2d, maps: Tensor) -> Tensor:
    """Normalise (B, C, h, w) by mean and variance over all processes, and track these.

    Two passes, since a mean of squares minus the square of the mean loses digits. Gradients reach
    the maps through both statistics.
    """
    values = maps.to(torch.promote_types(maps.dtype, torch.float32))
    part = float(takes_part())
    own_count = values.new_full((1,), values[:, 0].numel())
    total = all_reduce_sum(part * torch.cat([values.sum(dim=(0, 2, 3)), own_count]))
    count = total[-1].detach()
    mean = total[:-1] / count
    centred = values - mean[:, None, None]
    variance = all_reduce_sum(part * centred.square().sum(dim=(0, 2, 3))) / count
    _track(norm, mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
    scale = (variance + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    result = centred * scale[:, None, None]
    return (result + norm.bias[:, None, None] if norm.affine else result).to(maps.dtype)


@torch.no_grad()
def _track(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Update the running statistics as torch does."""
    if not norm.track_running_stats:
        return
    norm.num_batches_tracked.add_(1)
    momentum = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
    for running, value in ((norm.running_mean, mean), (norm.running_var, variance)):
        running.lerp_(value, momentum)
