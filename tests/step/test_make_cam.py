"""Multi-scale CAMs against the published implementation, and their fusion."""

import numpy as np
import pytest
import torch
from networks import golden_cnn, golden_deit
from numpy.testing import assert_allclose

from misc.transforms import normalise, rescale, to_chw
from net.cam_maps import fuse, normalise_maps, strided_size, sum_scales
from step.make_cam import picture_cams

SCALES = (1.0, 0.5, 1.5, 2.0, 0.75, 1.25, 1.75)


@pytest.mark.parametrize(("branch", "build"), [("cnn", golden_cnn), ("deit", golden_deit)])
def test_seven_scales_equal_published(golden, branch, build):
    expected = golden("make_cam")
    image = expected["image"]
    scaled = (image if scale == 1 else rescale(image, scale) for scale in SCALES)
    images = [torch.from_numpy(to_chw(normalise(one))) for one in scaled]
    cam, high_res = picture_cams([build()], images, image.shape[:2], expected["keys"], branch)
    assert_allclose(cam, expected[f"{branch}_cam"], atol=2e-4)
    assert_allclose(high_res, expected[f"{branch}_high_res"].astype(np.float32), atol=1e-3)


def test_sizes_are_rounded_up():
    maps = [torch.rand(2, 3, 4), torch.rand(2, 6, 8)]
    cam, high_res = sum_scales(maps, (37, 50))
    assert cam.shape == (2, *strided_size((37, 50), 4)) == (2, 10, 13)
    assert high_res.shape == (2, 37, 50)


def test_constant_maps_add_up():
    cam, high_res = sum_scales([torch.full((1, 2, 2), 2.0), torch.full((1, 5, 3), 3.0)], (20, 30))
    assert_allclose(cam, 5.0)
    assert_allclose(high_res, 5.0)


def test_all_zero_and_no_maps_stay_finite():
    assert torch.equal(normalise_maps(torch.zeros(2, 3, 3)), torch.zeros(2, 3, 3))
    cam, high_res = sum_scales([torch.zeros(0, 2, 2)], (20, 30))
    assert normalise_maps(cam).shape == (0, 5, 8)
    assert high_res.shape == (0, 20, 30)


def test_fusion_of_two_branches():
    cnn, transformer = torch.tensor([[[0.2, 1.0]]]), torch.tensor([[[0.6, 0.4]]])
    assert_allclose(fuse([cnn, transformer], "mean"), [[[0.4, 0.7]]])
    assert_allclose(fuse([cnn, transformer], "max"), [[[0.6, 1.0]]])
    assert torch.equal(fuse([cnn], "cnn"), cnn)
