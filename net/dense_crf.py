"""Mean field inference of the dense CRF (Kraehenbuehl and Koltun 2011) with Potts compatibility.

Two Gaussian kernels, of position and of position and colour, each normalised on both sides by
1 / sqrt(K 1), as pydensecrf does by default. Pictures of one size are one call, and several label
maps or probabilities of the same pictures are channels of one filter. Runs on the device of its
inputs, in float32 throughout.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from net.permutohedral import Lattice

_SMALLEST_NORM = 1e-20  # of pydensecrf: for points without any weight
_FAR_FROM_ZERO = 1e-30  # sums of exponentials between it and its inverse are precise in float32
_BLOCK_BYTES = 2**20
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
    differences, probabilities = torch.empty_like(unary), torch.empty_like(energies)
    for step in range(iterations + 1):
        spread = [kernel.spread(differences.flatten(1)) for kernel in kernels] if step else []
        for rows in _blocks(unary):
            messages = (
                kernel.gather(corners, rows).view_as(unary[rows])
                for kernel, corners in zip(kernels, spread, strict=False)
            )
            logits = sum(messages, start=unary[rows])
            shares, share, total = _exponentials(logits, last[rows])
            if step < iterations:
                torch.div(shares.sub_(share), total, out=differences[rows])
            else:
                labels = torch.cat((shares, share), dim=2).div_(total)
                probabilities[..., rows] = labels.permute(1, 2, 0)
    return probabilities


def _blocks(values: Tensor) -> Iterator[slice]:
    """Ranges of rows that stay in the cache of a CPU from one operation to the next."""
    count, size = len(values), _BLOCK_BYTES * len(values) // max(1, values.nbytes)
    size = max(1, size) if values.is_cpu else count
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


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
