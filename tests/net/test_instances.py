"""Centroids, clusters and instances: published results, closed forms and hand-made cases."""

import numpy as np
import pytest
import torch

from net.instances import (
    cluster_centroids,
    detect_instances,
    find_centroids,
    instances_from_maps,
)


def test_centroids_and_clusters_equal_the_published_ones(golden):
    archive = golden("ins_seg")
    centroids = find_centroids(archive["displacement"])
    assert centroids.dtype == np.int32
    np.testing.assert_array_equal(centroids, archive["centroids"])
    clusters = cluster_centroids(centroids, archive["displacement"])
    np.testing.assert_array_equal(clusters, archive["instance_map"])


@pytest.mark.parametrize("iterations", [1, 2, 3, 300])
def test_centroids_of_a_field_that_pulls_to_one_point_in_closed_form(iterations: int) -> None:
    """d(p) = (c - p) / 2 is linear, so it is read exactly: p_n = c + (p_0 - c) / 2^n."""
    grid, centre = np.indices((9, 14)).astype(np.float64), np.array([6, 4])[:, None, None]
    expected = np.round(centre + (grid - centre) / 2.0**iterations)
    field = ((centre - grid) / 2).astype(np.float32)
    np.testing.assert_array_equal(find_centroids(field, iterations), expected)


def test_centroids_stop_at_the_border() -> None:
    """A constant field moves every pixel by n d, but not out of the map."""
    field = np.empty((2, 5, 11), np.float32)
    field[0], field[1] = 0.75, -2.5
    rows, columns = np.indices((5, 11))
    expected = np.stack((np.minimum(rows + 2.25, 4), np.maximum(columns - 7.5, 0))).round()
    np.testing.assert_array_equal(find_centroids(field, iterations=3), expected)


def test_fields_are_read_bilinearly_between_the_cells() -> None:
    """The first step ends at 0.75, where a quarter of the left cell counts."""
    field = np.zeros((2, 1, 6), np.float32)
    field[1, 0, :2] = 0.75, 2.25  # second step 0.25 * 0.75 + 0.75 * 2.25 = 1.875, so to 2.625
    assert find_centroids(field, iterations=2)[1, 0, 0] == 3


def test_pixels_outside_weak_regions_form_the_first_cluster():
    displacement = np.zeros((2, 3, 6), np.float32)
    displacement[0, :, 2] = 2.5  # not below the threshold: splits the map
    centroids = np.indices((3, 6), np.int32)
    clusters = cluster_centroids(centroids, displacement)
    assert clusters.shape == (3, 3, 6)
    expected = [np.arange(6) == 2, np.arange(6) < 2, np.arange(6) > 2]
    for cluster, columns in zip(clusters, expected, strict=True):
        np.testing.assert_array_equal(cluster, np.tile(columns, (3, 1)))


def test_weak_regions_are_4_connected():
    displacement = np.full((2, 2, 2), 9, np.float32)
    displacement[:, [0, 1], [0, 1]] = 0
    centroids = np.indices((2, 2), np.int32)
    assert len(cluster_centroids(centroids, displacement)) == 3


def test_instances_equal_the_published_ones(golden):
    archive = golden("ins_seg")
    found = instances_from_maps(
        torch.from_numpy(archive["cams"]),
        torch.from_numpy(archive["edge"]),
        archive["displacement"],
        archive["keys"],
        tuple(archive["size"].tolist()),
        bg_thres=0.25,
    )
    shape = archive["mask_shape"]
    mask = np.unpackbits(archive["mask"])[: shape.prod()].reshape(shape)
    np.testing.assert_allclose(found.score, archive["score"], atol=1e-4)
    np.testing.assert_array_equal(found.class_id, archive["cls"])
    np.testing.assert_array_equal(found.mask, mask)


def test_fragments_and_scores_by_hand():
    winner = np.array([[1, 1, 0, 2, 2], [0, 0, 2, 0, 0], [1, 0, 0, 0, 3]])
    score = np.arange(15, dtype=np.float32).reshape(3, 5) / 15
    found = detect_instances(winner, score, np.array([4, 4, 9]), smallest=2)
    assert found.class_id.tolist() == [4, 4, 4, 4, 9]
    np.testing.assert_allclose(found.score, np.array([1, 0, 4, 0, 0], np.float32) / 15)
    assert found.mask.sum((1, 2)).tolist() == [2, 1, 2, 1, 1]
    np.testing.assert_array_equal(found.mask.any(0), winner > 0)
    assert (found.score.dtype, found.class_id.dtype, found.mask.dtype) == ("f4", "i8", "?")


@pytest.mark.parametrize("classes", [0, 2])
def test_no_activation_means_no_instance(classes):
    found = instances_from_maps(
        torch.zeros(classes, 5, 6),
        torch.rand(1, 5, 6),
        np.ones((2, 5, 6), np.float32),
        np.arange(classes),
        (20, 23),
        bg_thres=0.25,
    )
    assert found.score.shape == found.class_id.shape == (0,)
    assert found.mask.shape == (0, 20, 23)


def test_two_instances_of_one_class_are_told_apart():
    columns = np.arange(24, dtype=np.float32)
    centre = np.where(columns < 12, 5.0, 18.0)
    displacement = np.zeros((2, 12, 24), np.float32)
    displacement[1] = centre - columns
    found = instances_from_maps(
        torch.ones(1, 12, 24),
        torch.zeros(1, 12, 24),
        torch.from_numpy(displacement),
        [7],
        (48, 96),
        bg_thres=0.25,
        exp_times=1,
    )
    assert found.class_id.tolist() == [7, 7]
    assert found.mask[0, :, :40].all()
    assert found.mask[1, :, 56:].all()
    assert (found.mask.sum(0) == 1).all()


def test_fragments_below_one_percent_of_the_picture_score_zero():
    """Spots of 1 and 3x3 map points cover about 20 and 120 of 4608 pixels."""
    cam = torch.zeros(1, 12, 24)
    cam[0, 2, 3] = 1
    cam[0, 6:9, 15:18] = 1
    found = instances_from_maps(
        cam, torch.zeros(1, 12, 24), np.zeros((2, 12, 24)), [0], (48, 96), 0.25, radius=1
    )
    assert found.score.tolist() == [0, 1]
    assert found.mask[0].sum() < 46 < found.mask[1].sum()
