"""Affinities and random walk by definition: gathers, and a matrix of all points by all points.

Plain forms for sizes and settings without golden values; the pairs and paths they use are those of
the golden `affinity_paths`.
"""

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from net.affinity import PathIndex


def gathered_affinity(edge: Tensor, paths: PathIndex) -> Tensor:
    """(B, h, w) edges -> (B, n_pairs, n_src): gather all points of all paths, then max pooling."""
    grid = torch.arange(edge[0].numel()).view(edge.shape[1:])
    pairs = [
        torch.stack([paths.window(grid, *point).flatten() for point in points.tolist()])
        for points in paths.paths
    ]
    affinities = []
    for length, group in groupby(pairs, len):
        table = torch.stack(list(group))  # (pairs of this length, length, n_src)
        values = edge.flatten(1)[:, table.flatten()].view(len(edge), *table.shape)
        affinities.append(1 - F.max_pool2d(values, (length, 1)).squeeze(2))
    return torch.cat(affinities, 1)


def dense_walk(
    cam: Tensor, edge: Tensor, radius: int = 5, beta: float = 10, exp_times: int = 8
) -> Tensor:
    """(cam * (1 - edge)) T^(2^exp_times) with T as an (h w, h w) matrix, in the type of `cam`."""
    height, width = cam.shape[1:]
    rows, columns = height + radius, width + 2 * radius
    paths = PathIndex(radius)
    padded = F.pad(edge, (radius, radius, 0, radius), value=1.0)
    affinity = gathered_affinity(padded, paths)[0]
    grid = torch.arange(rows * columns).view(rows, columns)
    matrix = torch.eye(rows * columns, dtype=cam.dtype)
    for values, destination in zip(affinity, paths.destinations(grid), strict=True):
        source = paths.sources(grid)
        matrix[source, destination] = values
        matrix[destination, source] = values
    inside = grid[:height, radius : radius + width].flatten()
    matrix = matrix[inside][:, inside] ** beta
    matrix = matrix / matrix.sum(0, keepdim=True)
    for _ in range(exp_times):
        matrix = matrix @ matrix
    return ((cam * (1 - edge)).flatten(1) @ matrix).view_as(cam)
