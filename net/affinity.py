"""Pixel affinities from an edge map, and the random walk they drive (IRNet, Ahn et al. 2019).

Two grid points are as close as the strongest edge between them is weak: their affinity is one minus
the largest edge probability on the straight path from one to the other. All of it is local, so
nothing here builds a matrix of all points by all points.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from misc.errors import UserError
from net.strides import GRID_STRIDE, LARGEST_RADIUS

Offset = tuple[int, int]

WALK_TAIL = 1e-7  # weight of the Chebyshev terms the random walk leaves out: below float32 rounding
WALK_BLOCK = 2**20  # map elements walked at a time, so that many maps need no more memory than few
_NO_FLOAT64 = ("mps",)
RESIZE_BLOCK = 2**24  # picture elements resized at a time


class PathIndex:
    """The pairs of grid points closer than `radius`, and the points on the way between them.

    Only the forward half plane is listed, since affinities are symmetric. The sources of pairs are
    the grid points from which every listed destination lies on the grid.

    Attributes:
        radius: pairs are strictly closer than this, in grid steps.
        reach: largest |dy| or |dx| of a pair.
        search_dst: (n_pairs, 2) int64, destination minus source as (dy, dx), by path length.
        paths: one (length, 2) int64 array per pair: points (dy, dx) relative to the source that
            lie in the pair's bounding box less than one step from its line, destination first.
    """

    def __init__(self, radius: int) -> None:
        """List the pairs and paths.

        Raises:
            UserError: `radius` is not in 1..64.
        """
        if not 1 <= radius <= LARGEST_RADIUS:
            raise UserError(f"The affinity radius is {radius}; use one in 1..{LARGEST_RADIUS}.")
        self.radius = radius
        self.reach = radius - 1
        self.paths = sorted((_path(*dst) for dst in _half_plane(radius)), key=len)
        self.search_dst = np.array([path[0] for path in self.paths], np.int64).reshape(-1, 2)

    def source_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the sources on an (h, w) grid.

        Raises:
            UserError: the grid is too small for the radius.
        """
        rows, columns = size[0] - self.reach, size[1] - 2 * self.reach
        if rows < 1 or columns < 1:
            raise UserError(
                f"A {size[0]}x{size[1]} grid is too small for affinities of radius {self.radius}; "
                f"it must be at least {self.reach + 1}x{2 * self.reach + 1} (use larger crops)."
            )
        return rows, columns

    def window(self, grid: Tensor, dy: int, dx: int) -> Tensor:
        """View of (..., h, w) `grid` at the sources moved by (dy, dx): (..., rows, columns)."""
        rows, columns = self.source_size(grid.shape[-2:])
        left = self.reach + dx
        return grid[..., dy : dy + rows, left : left + columns]

    def sources(self, grid: Tensor) -> Tensor:
        """Values of (..., h, w) `grid` at the sources, flattened: (..., n_src)."""
        return self.window(grid, 0, 0).flatten(-2)

    def destinations(self, grid: Tensor) -> Tensor:
        """Values of (..., h, w) `grid` at every pair's destination: (..., n_pairs, n_src)."""
        windows = [self.window(grid, dy, dx).flatten(-2) for dy, dx in self.search_dst.tolist()]
        return torch.stack(windows, dim=-2)


@lru_cache(maxsize=8)
def path_index(radius: int) -> PathIndex:
    """The `PathIndex` of a radius, built once."""
    return PathIndex(radius)


def pair_affinity(edge: Tensor, paths: PathIndex) -> Tensor:
    """Affinity of every pair: one minus the largest edge probability on its path.

    Where several points of a path share the maximum, the first one (the one closest to the
    destination) receives the gradient, as in max pooling.

    Args:
        edge: (B, h, w) or (B, 1, h, w) float edge probabilities in [0, 1].
        paths: the pairs.

    Returns:
        (B, n_pairs, n_src) affinities in [0, 1] in the type of `edge`.

    Raises:
        UserError: the grid is too small for the radius of `paths`.
    """
    if edge.dim() == 4:
        edge = edge.squeeze(1)
    return 1 - _PathMaximum.apply(edge, paths)


def pair_labels(label: Tensor, paths: PathIndex, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which pairs lie in the background, in one class, or across classes.

    Pairs with an end outside 0..num_classes (255 = ignore) are none of the three.

    Args:
        label: (B, h, w) uint8 class map, 0 = background.
        paths: the pairs.
        num_classes: number of foreground classes.

    Returns:
        Background-positive, foreground-positive and negative masks, each (B, n_pairs, n_src) f32.
    """
    source = paths.sources(label).unsqueeze(-2)
    destination = paths.destinations(label)
    valid = (source <= num_classes) & (destination <= num_classes)
    equal = source == destination
    positive = equal & valid
    background = (positive & (source == 0)).float()
    foreground = (positive & (source > 0)).float()
    return background, foreground, (~equal & valid).float()


def random_walk(
    cam: Tensor, edge: Tensor, radius: int = 5, beta: float = 10, exp_times: int = 8
) -> Tensor:
    """Spread class maps along the affinities: (cam * (1 - edge)) T^(2^exp_times).

    T holds affinity^beta of all pairs within the radius, both ways, and 1 on the diagonal, with
    columns normalised to sum one. T is similar to a symmetric matrix with eigenvalues in [-1, 1],
    so its power is a short Chebyshev series (see `power_in_chebyshev`): 84 products with the
    local stencil instead of 256 at exp_times 8, in float64, on the device of `cam` or, where that
    has no float64 (Apple's GPUs), on the CPU.

    Args:
        cam: (K, h, w) float class maps; any K and size, including none and 1x1.
        edge: (1, h, w) float edge probabilities in [0, 1].
        radius: pairs are strictly closer than this.
        beta: sharpens affinities; positive.
        exp_times: binary logarithm of the number of steps.

    Returns:
        (K, h, w) in the type of `cam`. Each map stays within the range of its cam * (1 - edge).

    Raises:
        UserError: `cam` and `edge` differ in size, or `beta` or `exp_times` is out of range.
    """
    return random_walks(cam, edge, (exp_times,), radius, beta)[0]


@torch.no_grad()
def random_walks(
    cam: Tensor, edge: Tensor, exp_times: Sequence[int], radius: int = 5, beta: float = 10
) -> Tensor:
    """`random_walk` with several numbers of steps, for the products of the longest alone.

    Args:
        cam: see `random_walk`.
        edge: likewise.
        exp_times: P binary logarithms of the number of steps, at least one, in any order.
        radius: see `random_walk`.
        beta: likewise.

    Returns:
        (P, K, h, w) in the type of `cam`; each equals its `random_walk` to the last bit.

    Raises:
        UserError: see `random_walk`.
    """
    if cam.dim() != 3 or edge.shape != (1, *cam.shape[1:]):
        raise UserError(
            f"The random walk needs maps (K, h, w) and an edge map (1, h, w) of one size, "
            f"got {tuple(cam.shape)} and {tuple(edge.shape)}."
        )
    if beta <= 0 or min(exp_times) < 0:
        given = f"{beta}, {', '.join(map(str, exp_times))}"
        raise UserError(f"The random walk needs beta > 0 and exp_times >= 0: {given}.")
    if cam.numel() == 0:
        return cam.new_zeros(len(exp_times), *cam.shape)
    if cam.device.type in _NO_FLOAT64:
        walked = random_walks(cam.cpu(), edge.cpu(), exp_times, radius, beta)
        return walked.to(cam.device)
    # float64 inside: Chebyshev recurrences amplify rounding by (number of terms)^2 / 2.
    edge = edge.double()
    step = _WalkStep(edge, radius, beta)
    powers = [power_in_chebyshev(2**times) for times in exp_times]
    block = max(1, WALK_BLOCK // edge.numel())
    walked = [step.series(maps * (1 - edge), powers) for maps in cam.split(block)]
    return torch.cat([maps.to(cam.dtype) for maps in walked], dim=1)


def strongest_map(
    walked: Tensor, size: tuple[int, int], bg_thres: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which walked map is the strongest at every pixel, against a constant background score.

    Maps are resized to the picture (x4, bilinear) and divided by the largest value of them all. A
    map wins where it exceeds the background and all earlier maps. Maps are resized a few at a
    time, twice, so hundreds of them fit in memory.

    Args:
        walked: (K, ceil(h / 4), ceil(w / 4)) non-negative maps.
        size: (h, w) of the picture.
        bg_thres: score of the background in [0, 1].

    Returns:
        (h, w) int64 winner, 0 = background, k + 1 = map k; and the (h, w) float32 winning score.
        Without a map above zero everything is background.

    Raises:
        UserError: the maps are too small for the picture, or not finite.
    """
    if walked.shape[1] * GRID_STRIDE < size[0] or walked.shape[2] * GRID_STRIDE < size[1]:
        raise UserError(
            f"Maps of {walked.shape[1]}x{walked.shape[2]} do not cover a {size[0]}x{size[1]} "
            f"picture at stride {GRID_STRIDE}."
        )
    block = max(1, RESIZE_BLOCK // (size[0] * size[1]))
    score = torch.full(size, bg_thres, dtype=walked.dtype, device=walked.device)
    winner = torch.zeros(size, dtype=torch.long, device=walked.device)
    peak = walked.new_zeros(())
    for maps in walked.split(block):
        peak = peak.maximum(_to_picture(maps, size).max()) if len(maps) else peak
    if not peak.isfinite():
        raise UserError(
            "The maps to choose from are not finite: the class maps, or the edges they walked "
            "along, come from damaged weights or a training that diverged; train again."
        )
    if peak > 0:
        for first, maps in zip(range(0, len(walked), block), walked.split(block), strict=True):
            strongest, index = (_to_picture(maps, size) / peak).max(0)
            better = strongest > score
            score = torch.where(better, strongest, score)
            winner = torch.where(better, index + first + 1, winner)
    return winner.cpu().numpy(), score.float().cpu().numpy()


@lru_cache(maxsize=8)
def power_in_chebyshev(n: int, tail: float = WALK_TAIL) -> tuple[float, ...]:
    """Coefficients c_k of t^n = sum_k c_k T_k(t) on [-1, 1], cut where little is left.

    c_k = 2^(1 - n) binom(n, (n - k) / 2) for k of the parity of n, half of that at k = 0. They are
    the distribution of |sum of n coin flips of +-1|: non-negative, sum one, standard deviation
    sqrt(n). |T_k| <= 1 on [-1, 1], so dropping terms of total weight `tail` costs at most `tail`
    per unit of input (in the norm that makes T symmetric); by Hoeffding's bound this keeps
    k <= sqrt(2 n ln(2 / tail)). The kept ones are scaled to sum one, so constants stay constant.

    Args:
        n: the power, at least 1.
        tail: largest total weight of the dropped terms; 0 keeps all.

    Returns:
        c_0, c_1, .. as floats; at most n + 1 of them.
    """
    order = np.arange(n % 2, n + 1, 2)
    lower = (n - order) // 2
    log_factorial = np.array([math.lgamma(i + 1) for i in range(n + 1)])
    log_binomial = log_factorial[n] - log_factorial[lower] - log_factorial[n - lower]
    weight = np.exp((1 - n) * math.log(2) + log_binomial)
    weight[order == 0] /= 2
    beyond = np.cumsum(weight[::-1])[::-1]  # weight of the terms from k on
    kept = max(1, int(np.count_nonzero(beyond > tail)))
    coefficients = np.zeros(order[kept - 1] + 1)
    coefficients[order[:kept]] = weight[:kept] / weight[:kept].sum()
    return tuple(coefficients.tolist())


class _WalkStep:
    """The symmetric matrix S = D^-1/2 A D^-1/2 of a walk, applied as a stencil of shifted maps.

    A holds affinity^beta, D its column sums, so T = A D^-1 and x T^n = (x D^1/2) S^n D^-1/2. Maps
    are flattened with `reach` zero columns after every row; moving by (dy, dx) is then a shift by
    one flat offset, and moves that leave the picture meet a zero weight.
    """

    def __init__(self, edge: Tensor, radius: int, beta: float) -> None:
        paths = path_index(radius)
        self.size, self.reach = edge.shape[-2:], paths.reach
        outside = (self.reach, self.reach, 0, self.reach)  # left, right, top, bottom
        affinity = pair_affinity(F.pad(edge, outside, value=1.0), paths)
        weights = self.flatten(affinity.pow_(beta).view(-1, *self.size))
        stride, length = self.size[1] + self.reach, weights.shape[1]
        offsets = [dy * stride + dx for dy, dx in paths.search_dst.tolist()]
        self.weights = [
            (offset, weight[: length - offset])
            for offset, weight in zip(offsets, weights, strict=True)
            if offset < length
        ]
        self.diagonal = edge.new_ones(length)
        degree = self.add_product(edge.new_zeros(1, length), edge.new_ones(1, length), 1)[0]
        self.diagonal, self.root = 1 / degree, degree.sqrt()
        for offset, weight in self.weights:
            weight.div_(self.root[: length - offset]).div_(self.root[offset:])

    def flatten(self, maps: Tensor) -> Tensor:
        """(K, h, w) -> (K, h * (w + reach)), zero between rows."""
        return F.pad(maps, (0, self.reach)).flatten(1)

    def unflatten(self, flat: Tensor) -> Tensor:
        """The inverse of `flatten`."""
        return flat.view(flat.shape[0], self.size[0], -1)[..., : self.size[1]]

    def add_product(self, out: Tensor, maps: Tensor, factor: float) -> Tensor:
        """In place out += factor * S maps, on flattened (K, length) maps."""
        out.addcmul_(self.diagonal, maps, value=factor)
        length = maps.shape[1]
        for offset, weight in self.weights:
            out[:, : length - offset].addcmul_(weight, maps[:, offset:], value=factor)
            out[:, offset:].addcmul_(weight, maps[:, : length - offset], value=factor)
        return out

    def series(self, start: Tensor, powers: Sequence[Sequence[float]]) -> Tensor:
        """Powers of the walk, each given by its Chebyshev coefficients c_k.

        (K, h, w) start -> (P, K, h, w) D^-1/2 (sum_k c_k T_k(S)) D^1/2 start, T_k by its recurrence
        up to the largest degree.
        """
        now = self.flatten(start) * self.root
        totals = [coefficients[0] * now for coefficients in powers]
        following = torch.zeros_like(now)
        for order in range(1, max(map(len, powers))):
            previous, now = now, self.add_product(following, now, 1 if order == 1 else 2)
            for total, coefficients in zip(totals, powers, strict=True):
                if order < len(coefficients) and coefficients[order]:
                    total.add_(now, alpha=coefficients[order])
            following = previous.neg()
        walked = torch.stack([self.unflatten(total / self.root) for total in totals])
        # Columns of T sum to one, so a map stays between its extremes: undo the rounding beyond.
        low, high = start.amin((1, 2), keepdim=True), start.amax((1, 2), keepdim=True)
        return walked.maximum(low).minimum(high)


def _to_picture(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(K, h4, w4) -> (K, h, w): x4 bilinear, cropped."""
    large = F.interpolate(
        maps[None], scale_factor=GRID_STRIDE, mode="bilinear", align_corners=False
    )
    return large[0, :, : size[0], : size[1]]


class _PathMaximum(torch.autograd.Function):
    """(B, h, w) -> (B, n_pairs, n_src) largest value on each pair's path.

    A running maximum over views of the map. Gathering all points of all paths and pooling them
    needs 14 times the output at radius 10; this keeps one byte per output for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, edge: Tensor, paths: PathIndex) -> Tensor:
        rows, columns = paths.source_size(edge.shape[-2:])
        shape = (edge.shape[0], len(paths.paths), rows, columns)
        largest = edge.new_empty(shape)
        where = largest.new_empty(shape, dtype=torch.uint8) if ctx.needs_input_grad[0] else None
        # Comparisons write floats: torch is three times slower at writing booleans.
        position, hit = edge.new_empty(2, shape[0], rows, columns)
        for pair, points in enumerate(paths.paths):
            best = largest[:, pair].copy_(paths.window(edge, *points[0].tolist()))
            position.zero_()
            for step, point in enumerate(points[1:].tolist(), start=1):
                value = paths.window(edge, *point)
                if where is not None:
                    torch.maximum(position, torch.gt(value, best, out=hit).mul_(step), out=position)
                torch.maximum(best, value, out=best)
            if where is not None:
                where[:, pair] = position
        ctx.paths, ctx.edge_shape = paths, edge.shape
        ctx.save_for_backward(where)
        return largest.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (where,) = ctx.saved_tensors
        dtype = torch.promote_types(grad.dtype, torch.float32)
        total = grad.new_zeros(ctx.edge_shape, dtype=dtype)
        hit = torch.empty_like(where[:, 0], dtype=dtype)
        for pair, points in enumerate(ctx.paths.paths):
            pair_grad = grad[:, pair].view_as(hit).to(dtype)
            for step, point in enumerate(points.tolist()):
                torch.eq(where[:, pair], step, out=hit)
                ctx.paths.window(total, *point).addcmul_(pair_grad, hit)
        return total.to(grad.dtype), None


def _half_plane(radius: int) -> Iterator[Offset]:
    """Offsets (dy, dx) shorter than `radius` in the forward half plane, row by row."""
    for dx in range(1, radius):
        yield 0, dx
    for dy in range(1, radius):
        for dx in range(1 - radius, radius):
            if dy * dy + dx * dx < radius * radius:
                yield dy, dx


def _path(dy: int, dx: int) -> np.ndarray:
    """(length, 2) points less than one step from the segment (0, 0)..(dy, dx), far end first."""
    points = [
        (y, x)
        for y in range(dy + 1)
        for x in range(min(0, dx), max(0, dx) + 1)
        if (dy * x - dx * y) ** 2 < dy * dy + dx * dx
    ]
    return np.array(sorted(points, key=lambda p: -abs(p[0]) - abs(p[1])), np.int64)
