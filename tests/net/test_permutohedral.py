"""The permutohedral lattice against its definition, and against a Gaussian."""

import numpy as np
import pytest
import torch

from net.permutohedral import LANES, Lattice, Simplices, enclosing_simplices


def points(dim: int, count: int, spread: float = 3.0) -> torch.Tensor:
    """(dim, count) float32 around the origin."""
    generator = torch.Generator().manual_seed(dim)
    return torch.randn(dim, count, generator=generator) * spread


def elevation(dim: int) -> np.ndarray:
    """(dim + 1, dim) matrix E of Adams, Baek and Davis, section 3, scaled for a unit deviation."""
    matrix = np.zeros((dim + 1, dim))
    for axis in range(dim):
        column = np.r_[np.ones(axis + 1), -(axis + 1), np.zeros(dim - axis - 1)]
        matrix[:, axis] = column / np.linalg.norm(column)
    return matrix * np.sqrt(2 / 3) * (dim + 1)


def corners(simplices: Simplices) -> np.ndarray:
    """(points, d + 1 corners, d + 1 coordinates) whole numbers."""
    width = len(simplices.corner)
    corner, rank = simplices.corner.T.long().numpy(), simplices.rank.T.numpy()
    return np.stack(
        [width * (corner - (rank > width - 1 - r)) + r for r in range(width)], axis=1
    ).astype(int)


def plain_filter(features: torch.Tensor, values: np.ndarray) -> np.ndarray:
    """Splat, blur and slice in a dictionary of corners: (points, channels) float64."""
    dim, count = features.shape
    filled = torch.cat((features, torch.zeros(dim, -count % LANES)), 1)
    simplices = enclosing_simplices(filled)
    keys = [[tuple(key) for key in simplex] for simplex in corners(simplices).tolist()]
    weights = simplices.weights.T.double().numpy()
    lattice = {key: np.zeros(values.shape[1]) for simplex in keys for key in simplex}
    for simplex, weight, value in zip(keys, weights, values, strict=False):
        for key, part in zip(simplex, weight, strict=True):
            lattice[key] = lattice[key] + part * value
    for axis in range(dim + 1):
        step = np.full(dim + 1, -1)
        step[axis] = dim
        lattice = {
            key: value
            + sum(lattice.get(tuple(np.add(key, sign * step)), 0) for sign in (1, -1)) / 2
            for key, value in lattice.items()
        }
    sums = [
        sum(part * lattice[key] for key, part in zip(simplex, weight, strict=True))
        for simplex, weight in zip(keys[:count], weights, strict=False)
    ]
    return np.array(sums) / (1 + 2.0**-dim)


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_a_point_is_the_weighted_mean_of_its_corners(dim: int) -> None:
    features = points(dim, 500)
    simplices = enclosing_simplices(features)
    found, weights = corners(simplices), simplices.weights.double().numpy()
    assert (found.sum(2) == 0).all()  # on the plane
    assert (found % (dim + 1) == np.arange(dim + 1)[:, None]).all()
    assert np.ptp(found, axis=1).max() <= dim + 1  # one simplex of the lattice
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-5)
    assert weights.min() > -1e-5
    mean = np.einsum("rp,pri->ip", weights, found)
    np.testing.assert_allclose(mean, elevation(dim) @ features.double().numpy(), atol=1e-4)


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 4, 61])
@pytest.mark.parametrize("spread", [0.5, 3.0, 300.0])
def test_filter_equals_the_definition(dim: int, count: int, spread: float) -> None:
    features = points(dim, count, spread)
    values = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    result = Lattice(features[:, None]).filter(values)
    np.testing.assert_allclose(result, plain_filter(features, values.numpy()), atol=1e-5)


def test_corners_too_many_for_a_box_are_told_apart() -> None:
    """With coordinates of 10^5 standard deviations the codes wrap around."""
    far = points(5, 8, 1e5).repeat(1, 12).round()
    features = far + points(5, far.shape[1], 0.5)
    values = torch.randn(far.shape[1], 2, generator=torch.Generator().manual_seed(0))
    result = Lattice(features[:, None]).filter(values)
    np.testing.assert_allclose(result, plain_filter(features, values.numpy()), atol=1e-5)


def test_an_impulse_becomes_a_gaussian() -> None:
    deviation, size = 5.0, 61
    y, x = np.mgrid[:size, :size] - size // 2
    features = torch.from_numpy(np.stack((x, y)).reshape(2, 1, -1) / deviation).float()
    impulse = (torch.from_numpy(x**2 + y**2) == 0).float().reshape(-1, 1)
    response = Lattice(features).filter(impulse).reshape(size, size).double().numpy()
    expected = np.exp(-(x**2 + y**2) / (2 * deviation**2))
    error = response / response.sum() - expected / expected.sum()
    assert np.abs(error).max() < 0.15 * (expected / expected.sum()).max()
    assert np.sqrt((response * x**2).sum() / response.sum()) == pytest.approx(deviation, rel=0.1)
    assert np.sqrt((response * y**2).sum() / response.sum()) == pytest.approx(deviation, rel=0.1)


@pytest.mark.parametrize("count", [35, 36])
def test_pictures_do_not_mix(count: int) -> None:
    features = torch.stack((points(3, count), points(3, count, 1.0), points(3, count)), 1)
    values = torch.randn(3 * count, 2, generator=torch.Generator().manual_seed(0))
    together = Lattice(features).filter(values).split(count)
    for picture, part in enumerate(values.split(count)):
        alone = Lattice(features[:, picture : picture + 1]).filter(part)
        torch.testing.assert_close(together[picture], alone, rtol=0, atol=1e-6)


def test_factors_before_and_behind() -> None:
    features, values = points(2, 50)[:, None], torch.rand(50, 2)
    before, after = torch.rand(50), torch.rand(50)
    plain, scaled = Lattice(features), Lattice(features)
    scaled.scale(before, after)
    expected = plain.filter(values * before[:, None]) * after[:, None]
    torch.testing.assert_close(scaled.filter(values), expected)
