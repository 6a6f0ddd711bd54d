"""Mean field inference of the dense CRF (Kraehenbuehl and Koltun 2011) with Potts compatibility.

Two Gaussian kernels, of position and of position and colour, each normalised on both sides by
1 / sqrt(K 1), as pydensecrf does by default. Pictures of one size are one call, and several label
maps or probabilities of the same pictures are channels of one filter. Runs on the device of its
inputs, in float32 throughout.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from net.permutohedral import Lattice

_SMALLEST_NORM = 1e-20  # of pydensecrf: for points without any weight
_FAR_FROM_ZERO = 1e-30  # sums of exponentials between it and its inverse are precise in float32
_CACHED_POINTS = 2**19  # larger grids would hold too much memory


class Kernel(Lattice):
    """A Gaussian kernel K between points, as `filter`: w D K D with D = diag(K 1)^-1/2."""

    def __init__(self, features: Tensor, weight: float) -> None:
        """Build the lattice and fold the normalisation into it.

        Args:
            features: (d, pictures, points) float32, see `Lattice`.
            weight: factor of the kernel.
        """
        super().__init__(features)
        ones = features.new_ones(self.num_points, 1)
        norm = (self.filter(ones).squeeze(1) + _SMALLEST_NORM).sqrt_().reciprocal_()
        self.scale(norm, norm * weight)


@torch.inference_mode()
def smoothness_kernel(
    shape: tuple[int, int, int], sxy: float, weight: float, device: torch.device
) -> Kernel:
    """The kernel of position; that of the last few sizes is kept, as it knows no colours.

    Args:
        shape: (pictures, h, w).
        sxy: standard deviation in pixels.
        weight: factor.
        device: where to compute.
    """
    small = shape[0] * shape[1] * shape[2] <= _CACHED_POINTS
    build = _grid_kernel if small else _grid_kernel.__wrapped__
    return build(shape, sxy, weight, device)


@lru_cache(maxsize=4)
def _grid_kernel(
    shape: tuple[int, int, int], sxy: float, weight: float, device: torch.device
) -> Kernel:
    return Kernel(_positions(shape, sxy, device).flatten(2), weight)


@torch.inference_mode()
def appearance_kernel(images: Tensor, sxy: float, srgb: float, weight: float) -> Kernel:
    """The kernel of position and colour.

    Args:
        images: (pictures, h, w, 3) uint8.
        sxy: standard deviation in pixels.
        srgb: standard deviation in grey levels.
        weight: factor.
    """
    positions = _positions(tuple(images.shape[:3]), sxy, images.device)
    colours = images.permute(3, 0, 1, 2).float() / torch.tensor(srgb, device=images.device)
    return Kernel(torch.cat((positions, colours)).flatten(2), weight)


def _positions(shape: tuple[int, int, int], sxy: float, device: torch.device) -> Tensor:
    """(2, pictures, h, w) float32: x and y in standard deviations."""
    pictures, height, width = shape
    scale = torch.tensor(sxy, device=device)  # CUDA multiplies by the reciprocal of a number
    x = torch.arange(width, dtype=torch.float32, device=device) / scale
    y = torch.arange(height, dtype=torch.float32, device=device) / scale
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)))[:, None].expand(
        2, pictures, height, width
    )


@torch.inference_mode()
def mean_field(energies: Tensor, kernels: Sequence[Kernel], iterations: int) -> Tensor:
    """Probabilities of the labels of every point.

    With Potts compatibility only the differences of the messages to two labels count, so what is
    filtered is how far the probability of each label lies above that of the last one: a channel
    less, of two labels only one.

    Args:
        energies: (sets, labels, points) float32 unary energies; every set is a CRF of its own on
            the same pictures. At least 2 labels.
        kernels: over these points.
        iterations: mean field steps; 0 gives the softmax of the negative energies.

    Returns:
        (sets, labels, points) float32.
    """
    by_point = energies.permute(2, 0, 1)  # (points, sets, labels)
    unary, last = by_point[..., :-1].neg().contiguous(), by_point[..., -1:].neg()
    logits = unary
    for _ in range(iterations):
        shares, share, total = _exponentials(logits, last)
        differences = shares.sub_(share).div_(total).flatten(1)
        messages = (kernel.filter(differences).view_as(unary) for kernel in kernels)
        logits = sum(messages, start=unary)
    shares, share, total = _exponentials(logits, last)
    probabilities = torch.cat((shares, share), dim=2).div_(total)
    return probabilities.permute(1, 2, 0).contiguous()


def _exponentials(logits: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp of the logits up to a common factor for each point and set, and its sum.

    Args:
        logits: (points, sets, labels - 1).
        last: (points, sets, 1) logits of the last label.

    Returns:
        The first two of the shape of the arguments, the sum (points, sets, 1).
    """
    shares, share = logits.exp(), last.exp()
    total = shares.sum(dim=2, keepdim=True).add_(share)
    low, high = total.aminmax()
    if low < _FAR_FROM_ZERO or not high < 1 / _FAR_FROM_ZERO:
        largest = torch.maximum(logits.amax(dim=2, keepdim=True), last)
        shares, share = (logits - largest).exp_(), (last - largest).exp_()
        total = shares.sum(dim=2, keepdim=True).add_(share)
    return shares, share, total
