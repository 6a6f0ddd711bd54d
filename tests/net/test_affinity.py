"""Pairs, paths, affinities and pair labels against the published tables and definitions."""

import numpy as np
import pytest
import torch
from affinity_reference import gathered_affinity

from misc.errors import UserError
from net.affinity import PathIndex, pair_affinity, pair_labels

NUM_CLASSES = 20
GOLDEN_GRID = (32, 40)


@pytest.mark.parametrize("radius", [5, 10])
def test_paths_equal_the_published_ones(golden, radius):
    expected = golden("affinity_paths")
    paths = PathIndex(radius)
    rows = [[pair, *point] for pair, points in enumerate(paths.paths) for point in points]
    np.testing.assert_array_equal(paths.search_dst, expected[f"search_dst_r{radius}"])
    np.testing.assert_array_equal(rows, expected[f"paths_r{radius}"])


@pytest.mark.parametrize("radius", [5, 10])
def test_sources_and_destinations_equal_the_published_tables(golden, radius):
    expected = golden("affinity_paths")
    paths = PathIndex(radius)
    grid = torch.arange(np.prod(GOLDEN_GRID)).view(GOLDEN_GRID)
    destinations = paths.destinations(grid)
    assert destinations.shape == tuple(expected[f"n_dst_r{radius}"])
    np.testing.assert_array_equal(destinations[:, 0], expected[f"dst_first_col_r{radius}"])
    np.testing.assert_array_equal(paths.sources(grid)[:50], expected[f"src_head_r{radius}"])


@pytest.mark.parametrize("size", [(3, 5), (5, 9), (17, 12)])
def test_affinities_and_gradients_equal_gathering_and_pooling(size):
    paths = PathIndex(3)
    generator = torch.Generator().manual_seed(0)
    edge = torch.rand(2, *size, generator=generator)
    weight = torch.rand(2, len(paths.paths), np.prod(paths.source_size(size)), generator=generator)
    results = []
    for compute in (pair_affinity, gathered_affinity):
        leaf = edge.clone().requires_grad_()
        affinity = compute(leaf, paths)
        (affinity * weight).sum().backward()
        results.append((affinity.detach(), leaf.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=0)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-6)


def test_equal_maxima_send_the_gradient_to_the_first_point_only():
    paths = PathIndex(5)
    edge = torch.randint(0, 3, (1, 9, 14), generator=torch.Generator().manual_seed(1)) / 2
    grads = []
    for compute in (pair_affinity, gathered_affinity):
        leaf = edge.clone().requires_grad_()
        compute(leaf, paths).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=0)


def test_a_channel_dimension_of_one_is_accepted():
    edge = torch.rand(2, 1, 6, 9)
    assert torch.equal(pair_affinity(edge, PathIndex(4)), pair_affinity(edge[:, 0], PathIndex(4)))


def test_affinity_of_a_wall_by_hand():
    edge = torch.zeros(1, 2, 5)
    edge[0, :, 3] = 0.75  # a wall right of the middle; sources of radius 2 are columns 1..3
    paths = PathIndex(2)
    right = paths.search_dst.tolist().index([0, 1])
    down = paths.search_dst.tolist().index([1, 0])
    affinity = pair_affinity(edge, paths)
    assert affinity[0, right].tolist() == [1, 0.25, 0.25]
    assert affinity[0, down].tolist() == [1, 1, 0.25]


@pytest.mark.parametrize("size", [(9, 40), (40, 18)])
def test_a_grid_too_small_for_the_radius_is_named(size):
    with pytest.raises(UserError, match=f"{size[0]}x{size[1]} .* radius 10.* 10x19"):
        pair_affinity(torch.rand(1, *size), PathIndex(10))


@pytest.mark.parametrize("radius", [0, -3, 65])
def test_an_unusable_radius_is_named(radius):
    with pytest.raises(UserError, match=f"radius is {radius}"):
        PathIndex(radius)


def test_pair_label_sums_equal_the_published_ones(golden):
    expected = golden("irn")
    labels = pair_labels(torch.from_numpy(expected["seg"]), PathIndex(10), NUM_CLASSES)
    assert [float(label.sum()) for label in labels] == expected["label_sums"].tolist()
    assert all(label.dtype == torch.float32 for label in labels)


def test_pair_labels_by_hand():
    label = torch.tensor([[[0, 0, 1, 1, 2, 3, 2, 255]]], dtype=torch.uint8)
    paths = PathIndex(2)
    right = paths.search_dst.tolist().index([0, 1])
    label = torch.cat([label, torch.full_like(label, 255)], dim=1)
    background, foreground, negative = (
        mask[0, right].tolist() for mask in pair_labels(label, paths, num_classes=2)
    )
    # Sources are columns 1..6 of row 0; class 3 is beyond num_classes, so ignored like 255.
    assert background == [0, 0, 0, 0, 0, 0]
    assert foreground == [0, 1, 0, 0, 0, 0]
    assert negative == [1, 0, 1, 0, 0, 0]
