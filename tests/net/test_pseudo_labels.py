"""Label maps from class maps: published results, definitions, and pictures without a class."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from misc.errors import UserError
from net import affinity, pseudo_labels
from net.affinity import strongest_map
from net.crf import CrfParameters
from net.pseudo_labels import cam_to_ir_label, propagate_to_label, strongest_labels


@pytest.mark.parametrize("name, fg, bg", [("35_15", 0.35, 0.15), ("30_5", 0.30, 0.05)])
def test_ir_label_equals_the_published_one(golden, name, fg, bg, crf_backend):
    archive = golden("ir_label")
    inputs = archive["image"], archive["keys"], archive["cams"], fg, bg
    label = cam_to_ir_label(*inputs, backend=crf_backend)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, archive[f"ir_label_{name}"])


def test_ir_label_combines_the_two_passes(crf_backend):
    """Without steps of the CRF the label is a plain function of the strongest map."""
    cams = np.array([[[0.9, 0.3, 0.25, 0.2, 0.5]], [[0.1, 0.2, 0.0, 0.6, 0.5]]], np.float32)
    inputs = np.zeros((1, 5, 3), np.uint8), np.array([6, 14]), cams, 0.5, 0.25
    label = cam_to_ir_label(*inputs, CrfParameters(iterations=0), crf_backend)
    assert label.tolist() == [[7, 255, 0, 15, 255]]  # ties go to the background


def test_ir_label_follows_the_given_crf(golden):
    archive = golden("ir_label")
    inputs = archive["image"], archive["keys"], archive["cams"], 0.35, 0.15
    other = cam_to_ir_label(*inputs, CrfParameters(bilateral_srgb=60, iterations=3))
    assert (other != cam_to_ir_label(*inputs)).any()


def test_ir_label_of_a_picture_without_classes_is_background(monkeypatch):
    monkeypatch.setattr(pseudo_labels, "DenseCrf", None)  # would fail if called
    image = np.zeros((5, 7, 3), np.uint8)
    label = cam_to_ir_label(image, np.zeros(0, np.int64), np.zeros((0, 5, 7)), 0.35, 0.15)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, np.zeros((5, 7)))


def test_pseudo_mask_equals_the_published_one(golden):
    archive = golden("sem_seg")
    cam, edge = torch.from_numpy(archive["cam"]), torch.from_numpy(archive["edge"])
    size = tuple(archive["size"].tolist())
    label = propagate_to_label(cam, edge, archive["keys"], size, bg_thres=0.25)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, archive["pseudo_label"])


def test_masks_at_any_background_score_follow_from_one_walk(golden):
    archive = golden("sem_seg")
    cam, edge = torch.from_numpy(archive["cam"]), torch.from_numpy(archive["edge"])
    size, keys = tuple(archive["size"].tolist()), archive["keys"]
    walks = list(strongest_labels(cam, edge, keys, size, 10, (4, 8)))
    labels, score = walks[1]
    np.testing.assert_array_equal(np.where(score > 0.25, labels, 0), archive["pseudo_label"])
    for times, (labels, score) in zip((4, 8), walks, strict=True):
        for threshold in (0, 0.1, 0.5, 1):
            mask = propagate_to_label(cam, edge, keys, size, threshold, exp_times=times)
            np.testing.assert_array_equal(np.where(score > threshold, labels, 0), mask)


@pytest.mark.parametrize("classes", [0, 1, 3])
def test_pseudo_mask_without_activation_is_background(classes):
    cam, edge = torch.zeros(classes, 3, 4), torch.rand(1, 3, 4)
    label = propagate_to_label(cam, edge, np.arange(classes), (10, 15), bg_thres=0.25)
    np.testing.assert_array_equal(label, np.zeros((10, 15)))


def test_pseudo_mask_of_a_tiny_picture():
    label = propagate_to_label(torch.ones(1, 1, 1), torch.zeros(1, 1, 1), [19], (1, 3), 0.25)
    np.testing.assert_array_equal(label, [[20, 20, 20]])


@pytest.mark.parametrize("block", [1, 60 * 41 * 2, 2**24])
def test_strongest_map_is_the_argmax_beside_the_background_score(monkeypatch, block):
    """Pad with the background score and take the argmax, for any number of maps at a time."""
    walked = torch.rand(5, 15, 11, generator=torch.Generator().manual_seed(2)) ** 2
    walked[3] = walked[1]  # an exact tie: the first map wins
    large = F.interpolate(walked[None], scale_factor=4, mode="bilinear", align_corners=False)[0]
    large = large[:, :60, :41]
    large = F.pad(large / large.max(), (0, 0, 0, 0, 1, 0), value=0.45)
    monkeypatch.setattr(affinity, "RESIZE_BLOCK", block)
    winner, score = strongest_map(walked, (60, 41), 0.45)
    np.testing.assert_array_equal(winner, large.argmax(0))
    np.testing.assert_array_equal(score, large.amax(0))
    assert set(np.unique(winner)) == {0, 1, 2, 3, 5}


def test_maps_smaller_than_the_picture_are_named():
    with pytest.raises(UserError, match="3x4 do not cover a 13x16"):
        strongest_map(torch.rand(1, 3, 4), (13, 16), 0.25)


def test_worker_processes_need_not_import_torch():
    script = (
        "import sys, misc.maps_io, misc.parallel, net.crf, net.pseudo_labels\n"
        "sys.exit('torch' in sys.modules)"
    )
    root = affinity.__file__.rsplit("/net/", 1)[0]
    assert subprocess.run([sys.executable, "-c", script], cwd=root).returncode == 0
