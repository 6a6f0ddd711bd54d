"""Gaussian filter over points in any number of dimensions, on the permutohedral lattice.

The method is that of Adams, Baek and Davis (2010): every point spreads its values over the corners
of the lattice simplex around it (splat), the corners are blurred along each axis of the lattice,
and every point gathers from its corners again (slice). The three are sparse matrices, made once
and applied to any number of channels.

The geometry is computed in float32, in the order of operations of pydensecrf: float64 would put
points near a face into another simplex, which moves probabilities of a dense CRF by up to 0.04.
Positions for sorting are int64, and the codes of corners where int32 has no room for them.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = 4
"""pydensecrf works on so many points at once and fills up with points at the origin."""

_HASH_FACTOR = 6364136223846793005  # of Knuth's MMIX generator


class SparseRows(NamedTuple):
    """A sparse float32 matrix, row by row.

    Attributes:
        starts: (rows + 1,) int32, where each row begins in the other two.
        columns: (entries,) int32.
        weights: (entries,) float32.
    """

    starts: Tensor
    columns: Tensor
    weights: Tensor

    def times(self, values: Tensor) -> Tensor:
        """The product with a (columns, channels) float32 matrix: (rows, channels)."""
        return F.embedding_bag(
            self.columns,
            values,
            self.starts,
            mode="sum",
            per_sample_weights=self.weights,
            include_last_offset=True,
        )


class Simplices(NamedTuple):
    """Where points lie in the lattice.

    The corners of a simplex are numbered by their remainder: all d + 1 coordinates of corner r are
    r modulo d + 1.

    Attributes:
        corner: (d + 1, points) float32 whole numbers, coordinates of corner 0 divided by d + 1.
        rank: (d + 1, points) int64, how many coordinates of the point exceed those of corner 0 by
            more than this one does; corner r is one less in `corner` where the rank exceeds d - r.
        weights: (d + 1, points) float32 barycentric coordinate of every corner.
    """

    corner: Tensor
    rank: Tensor
    weights: Tensor


class Lattice:
    """The lattice of some points: `filter` is their Gaussian filter with standard deviation 1.

    Attributes:
        splat: (corners, points) matrix.
        blurs: the (corners, corners) matrix of every axis.
        slice: (points, corners) matrix.
    """

    def __init__(self, features: Tensor) -> None:
        """Place the points.

        Args:
            features: (d, pictures, points) float32 coordinates in standard deviations, on any
                device. Pictures do not mix.
        """
        dim, pictures, per_picture = features.shape
        self.num_points = pictures * per_picture
        picture = torch.arange(pictures, device=features.device)
        owner, points = picture.repeat_interleave(per_picture), features.flatten(1)
        if per_picture % LANES:
            owner = torch.cat((owner, picture))
            points = torch.cat((points, points.new_zeros(dim, pictures)), 1)
        corner, rank, weights = enclosing_simplices(points)
        weights[:, self.num_points :] = 0
        codes, steps = _corner_codes(corner, rank, owner)
        del corner, rank, owner, points
        present = self._connect(codes, weights)
        self.blurs = [_blur_along(axis, present, steps) for axis in range(dim + 1)]

    @property
    def num_corners(self) -> int:
        """How many corners hold a value."""
        return len(self.splat.starts) - 1

    def filter(self, values: Tensor) -> Tensor:
        """Filter (pictures * points, channels) float32 values; a matrix of that shape again."""
        return self.gather(self.spread(values), slice(0, self.num_points))

    def spread(self, values: Tensor) -> Tensor:
        """Splat (pictures * points, channels) float32 values and blur: (corners, channels)."""
        corners = self.splat.times(values)
        for blur in self.blurs:
            corners = blur.times(corners)
        return corners

    def gather(self, corners: Tensor, points: slice) -> Tensor:
        """Slice a range of points out of (corners, channels): (points, channels)."""
        starts, columns, weights = self.slice
        width, count = len(self.blurs), points.stop - points.start
        entries = slice(points.start * width, points.stop * width)
        part = SparseRows(starts[: count + 1], columns[entries], weights[entries])
        return part.times(corners)

    def scale(self, before: Tensor, after: Tensor) -> None:
        """Multiply the values of each point by `before` ahead of `filter` and `after` behind it.

        Args:
            before: (pictures * points,) float32 factors.
            after: likewise.
        """
        self.splat.weights.mul_(before[self.splat.columns])
        self.slice.weights.view(len(after), -1).mul_(after[:, None])

    def _connect(self, codes: Tensor, weights: Tensor) -> list[Tensor]:
        """Set splat and slice; return the sorted codes of the corners of every remainder.

        Args:
            codes: (d + 1, points and filling) integer code of every corner of every point.
            weights: its weight.
        """
        present, counts, first = [], [], 0
        corners = torch.empty(codes.shape, dtype=torch.int32, device=codes.device)
        columns, by_corner = torch.empty_like(corners), torch.empty_like(weights)
        for remainder, row in enumerate(codes):
            # Stable: a corner sums its points in their order, as pydensecrf does.
            ordered, order = torch.sort(row, stable=True)
            unique, place, count = torch.unique_consecutive(
                ordered, return_inverse=True, return_counts=True
            )
            corners[remainder].scatter_(0, order, place.add_(first).int())
            columns[remainder] = order
            torch.index_select(weights[remainder], 0, order, out=by_corner[remainder])
            present.append(unique)
            counts.append(count)
            first += len(unique)
        columns.clamp_(max=self.num_points - 1)  # filling weighs nothing
        self.splat = SparseRows(_starts(torch.cat(counts)), columns.flatten(), by_corner.flatten())
        width = len(codes)
        starts = torch.arange(self.num_points + 1, dtype=torch.int32, device=codes.device) * width
        # The factor normalises the blur (Adams et al.).
        gather = weights[:, : self.num_points].T.flatten() * (1 / (1 + 2 ** (1 - width)))
        self.slice = SparseRows(starts, corners[:, : self.num_points].T.flatten(), gather)
        return present


def enclosing_simplices(features: Tensor) -> Simplices:
    """Find the lattice simplex around every point.

    Args:
        features: (d, points) float32 coordinates in standard deviations.
    """
    elevated = _elevate(features)
    width = len(elevated)
    corner = (elevated * (1 / width)).round_()  # half to even
    offset = elevated - corner * width
    rank = corner.sum(0).repeat(width, 1)
    for i in range(width):
        for j in range(i + 1, width):
            less = (offset[i] < offset[j]).float()
            rank[i] += less
            rank[j] += less.neg_().add_(1)
    # Rounding may leave the plane on which the coordinates sum to 0: back to it.
    shift = (rank < 0).float() - (rank >= width).float()
    corner += shift
    rank = rank.add_(shift, alpha=width).long()
    part = (elevated - corner * width) * (1 / width)
    falling = torch.empty_like(part).scatter_(0, rank, part)
    weights = torch.empty_like(part)
    weights[0] = falling[-1] + (1 - falling[0])
    weights[1:] = falling[:-1].flip(0) - falling[1:].flip(0)
    return Simplices(corner, rank, weights)


def _elevate(features: Tensor) -> Tensor:
    """(d, points) -> (d + 1, points) on the plane of the lattice, where coordinates sum to 0."""
    dim, points = features.shape
    elevated, total = features.new_empty(dim + 1, points), features.new_zeros(points)
    for axis in range(dim, 0, -1):
        scaled = features[axis - 1] * _axis_scale(axis, dim)
        torch.sub(total, scaled * axis, out=elevated[axis])
        total += scaled
    elevated[0] = total
    return elevated


def _axis_scale(axis: int, dim: int) -> float:
    """Scale of an axis (from 1) by which the blur of the lattice has standard deviation 1."""
    deviation = torch.tensor(math.sqrt(2 / 3) * (dim + 1)).item()  # rounded to float32
    return deviation / math.sqrt(axis * (axis + 1))


def _corner_codes(corner: Tensor, rank: Tensor, owner: Tensor) -> tuple[Tensor, list[int]]:
    """Number the corners so that a step along a coordinate changes the number by a constant.

    Args:
        corner: see `Simplices`.
        rank: likewise.
        owner: (points,) int64 index of the picture.

    Returns:
        (d + 1, points) integer code of every corner, and the change of the code by a step of d + 1
        along each coordinate, 0 for the last: it follows from the others.
    """
    width = len(corner)
    # Room for the other corners (one less) and for neighbours (one less, one more).
    lowest = corner[:-1].amin(1) - 2
    spans = (corner[:-1].amax(1) - lowest + 2).long().tolist()
    (*steps, per_picture), dtype = _steps(spans, owner[-1].item() + 1)
    steps.append(0)
    codes = torch.empty(rank.shape, dtype=dtype, device=rank.device)
    codes[0] = owner * per_picture
    for row, low, step in zip(corner, lowest, steps, strict=False):
        codes[0].add_((row - low).to(dtype), alpha=step)
    by_rank = torch.tensor(steps, dtype=dtype, device=rank.device)[:, None].expand_as(rank)
    by_rank = torch.empty_like(codes).scatter_(0, rank, by_rank)
    for remainder in range(1, width):
        torch.sub(codes[remainder - 1], by_rank[width - remainder], out=codes[remainder])
    return codes, steps


def _steps(spans: Sequence[int], pictures: int) -> tuple[list[int], torch.dtype]:
    """Factors of the coordinates in a code, and of the picture; and the type of codes.

    Codes count through the box of all coordinates. Where that has too many cells for int64 (with
    a standard deviation of a fraction of a grey level, say) they are hashes that may wrap around:
    two of 10 million corners then share a code with a probability of about 1e-5.
    """
    products = list(accumulate(spans, mul, initial=1))
    cells = products[-1] * pictures
    if cells < 2**63:
        return products, torch.int32 if cells < 2**31 else torch.int64  # the former sorts faster
    powers = (pow(_HASH_FACTOR, power, 2**64) for power in range(1, len(products) + 1))
    return [_wrapped(power) for power in powers], torch.int64


def _blur_along(axis: int, present: Sequence[Tensor], steps: Sequence[int]) -> SparseRows:
    """Each corner plus half of its two neighbours along an axis, where these exist.

    The neighbour one way is d more along the axis and 1 less along all others, which is one less
    in the remainder; the neighbour the other way is the inverse of that.

    Args:
        axis: 0..d.
        present: sorted codes of the corners of every remainder.
        steps: see `_corner_codes`.
    """
    firsts = list(accumulate(map(len, present), initial=0))
    total, device = firsts[-1], present[0].device
    starting, ending = [], []
    for remainder, codes in enumerate(present):
        wrap = sum(steps) if remainder == 0 else 0
        found, place = _matches(codes + _wrapped(steps[axis] - wrap), present[remainder - 1])
        starting.append(found + firsts[remainder])
        ending.append(place + firsts[(remainder - 1) % len(present)])
    one, other = torch.cat(starting), torch.cat(ending)
    counts = torch.ones(total, dtype=torch.int64, device=device)
    counts[one] += 1
    counts[other] += 1
    starts = _starts(counts)
    columns = torch.empty(total + 2 * len(one), dtype=torch.int32, device=device)
    weights = torch.full(columns.shape, 0.5, device=device)
    own = starts[:-1].long()
    columns[own] = torch.arange(total, dtype=torch.int32, device=device)
    weights[own] = 1
    columns[starts[one].long() + 1] = other.int()
    columns[starts[other + 1].long() - 1] = one.int()
    return SparseRows(starts, columns, weights)


def _matches(wanted: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the elements of `wanted` that are in the sorted `present`, and where they are."""
    if wanted.is_cpu:  # NumPy starts from the hit before: three times as fast on sorted codes
        place = torch.from_numpy(present.numpy().searchsorted(wanted.numpy()))
    else:
        place = torch.searchsorted(present, wanted)
    place.clamp_(max=len(present) - 1)
    found = (present[place] == wanted).nonzero().squeeze(1)
    return found, place[found]


def _starts(counts: Tensor) -> Tensor:
    """(rows,) entries of every row -> (rows + 1,) int32 first entry of every row, and the end."""
    return F.pad(counts.cumsum(0), (1, 0)).int()


def _wrapped(number: int) -> int:
    """The int64 that equals `number` modulo 2^64."""
    return (number + 2**63) % 2**64 - 2**63
