"""The dense CRF, both backends: published label maps and direct calls of pydensecrf."""

import sys

import numpy as np
import pytest

from misc.errors import UserError
from misc.parallel import map_pictures
from net.crf import CrfParameters, DenseCrf


def direct_crf(pydensecrf, image, energy, settings):
    """A fresh pydensecrf with its own lattices: (num_labels, h, w) probabilities."""
    height, width = image.shape[:2]
    crf = pydensecrf.DenseCRF2D(width, height, len(energy))
    crf.setUnaryEnergy(energy)
    crf.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=settings.bilateral_sxy,
        srgb=settings.bilateral_srgb,
        rgbim=image,
        compat=settings.bilateral_compat,
    )
    return np.array(crf.inference(settings.iterations)).reshape(-1, height, width)


def test_labels_equal_the_published_ones(golden, crf_backend):
    expected = golden("crf_label")
    image, labels = expected["image"], expected["labels"]
    binary = (labels > 0).astype(np.uint8)
    refined = DenseCrf(image, 3, backend=crf_backend).refine_labels(labels)
    assert refined.dtype == np.uint8
    np.testing.assert_array_equal(refined, expected["refined"])
    refined_binary = DenseCrf(image, 2, backend=crf_backend).refine_labels(binary)
    np.testing.assert_array_equal(refined_binary, expected["refined_binary"])
    assert (refined != labels).any()


def test_shared_lattices_equal_separate_ones(golden, crf_backend, pydensecrf):
    from pydensecrf.utils import unary_from_labels

    archive = golden("crf_label")
    image, first = archive["image"], archive["labels"]
    second = np.roll(first, 9, axis=1)
    shared = DenseCrf(image, 3, backend=crf_backend)
    results = [shared.refine_labels(labels) for labels in (first, second, first)]
    for labels, result in zip((first, second, first), results, strict=True):
        energy = unary_from_labels(labels, 3, gt_prob=0.7, zero_unsure=False)
        expected = direct_crf(pydensecrf, image, energy, CrfParameters()).argmax(0)
        np.testing.assert_array_equal(result, expected)
    assert (results[0] != results[1]).any()


def test_probabilities_equal_a_direct_call(golden, crf_backend, pydensecrf):
    from pydensecrf.utils import unary_from_softmax

    image = golden("crf_label")["image"]
    settings = CrfParameters(0.7, 1, 3, 67, 3, 4, 10)
    probabilities = np.random.default_rng(0).dirichlet([0.05] * 4, image.shape[:2])
    probabilities = np.moveaxis(probabilities, -1, 0).astype(np.float32)
    energy = np.ascontiguousarray(unary_from_softmax(probabilities))
    expected = direct_crf(pydensecrf, image, energy, settings)
    refined = DenseCrf(image, 4, settings, crf_backend).refine_probabilities(probabilities)
    assert refined.dtype == np.float32
    # PyTorch sums in another order: a few float32 roundings, grown over ten steps.
    np.testing.assert_allclose(
        refined, expected, rtol=0, atol=1e-5 if crf_backend == "torch" else 0
    )
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-5)


def test_every_setting_reaches_the_crf(golden, crf_backend):
    archive = golden("crf_label")
    image = archive["image"]
    energy = np.random.default_rng(0).random((3, *image.shape[:2]), np.float32)
    probabilities = np.exp(-energy) / np.exp(-energy).sum(0)
    default = DenseCrf(image, 3, backend=crf_backend).refine_probabilities(probabilities)
    changes = {
        "gaussian_sxy": 1,
        "gaussian_compat": 1,
        "bilateral_sxy": 9,
        "bilateral_srgb": 40,
        "bilateral_compat": 2,
        "iterations": 2,
    }
    for name, value in changes.items():
        other = DenseCrf(image, 3, CrfParameters(**{name: value}), crf_backend)
        assert np.abs(other.refine_probabilities(probabilities) - default).max() > 1e-3, name
    sure, plain = (
        DenseCrf(image, 3, settings, crf_backend).refine_labels(archive["labels"])
        for settings in (CrfParameters(gt_prob=0.999999), None)
    )
    assert (sure != plain).any()


def test_a_picture_that_is_a_view_works(golden, crf_backend):
    archive = golden("crf_label")
    image, labels = archive["image"], archive["labels"]
    image, labels = image[:, ::-1], labels[:, ::-1]
    mirrored = DenseCrf(image, 3, backend=crf_backend).refine_labels(labels)
    copied = DenseCrf(image.copy(), 3, backend=crf_backend).refine_labels(labels.copy())
    np.testing.assert_array_equal(mirrored, copied)


def threads_of_torch(labels):
    """Refine on a black picture; returns the number of threads that PyTorch computes with."""
    DenseCrf(np.zeros((*labels.shape, 3), np.uint8), 2).refine_labels(labels)
    return sys.modules["torch"].get_num_threads()


def test_workers_compute_with_one_thread_each(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert map_pictures(threads_of_torch, [np.eye(6, dtype=np.uint8)] * 2, 2, "crf") == [1, 1]


def test_wrong_inputs_are_named():
    image = np.zeros((6, 8, 3), np.uint8)
    with pytest.raises(UserError, match="float64"):
        DenseCrf(image / 255, 2)
    with pytest.raises(UserError, match="at least 2 labels, got 1"):
        DenseCrf(image, 1)
    crf = DenseCrf(image, 2)
    with pytest.raises(UserError, match=r"\(6, 8\).*\(8, 6\)"):
        crf.refine_labels(np.zeros((8, 6), np.uint8))
    with pytest.raises(UserError, match=r"\(6, 8\).*\(1, 1, 6, 8\)"):
        crf.refine_labels(np.zeros((1, 1, 6, 8), np.uint8))
    with pytest.raises(UserError, match=r"labels 0\.\.1, the map has 0\.\.2"):
        crf.refine_labels(np.eye(6, 8, dtype=np.uint8) * 2)
    with pytest.raises(UserError, match=r"\(2, 6, 8\).*\(3, 6, 8\)"):
        crf.refine_probabilities(np.full((3, 6, 8), 1 / 3))


def test_a_missing_pydensecrf_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(UserError, match="pip install pydensecrf2"):
        DenseCrf(np.zeros((6, 8, 3), np.uint8), 2, backend="pydensecrf")
