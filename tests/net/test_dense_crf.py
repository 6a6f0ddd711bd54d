"""The dense CRF in PyTorch: closed forms, a plain mean field, and equality with pydensecrf."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from misc.errors import UserError
from net.crf import CrfParameters, DenseCrf
from net.dense_crf import Kernel, appearance_kernel, mean_field, smoothness_kernel
from net.permutohedral import Lattice

CPU = torch.device("cpu")
NEEDS_PYDENSECRF = pytest.mark.usefixtures("pydensecrf")

PARITY = 1e-4
"""Of probabilities. Both sides round sums of a dozen float32 logits differently, by about 1e-6;
where two labels are nearly even each of the ten steps multiplies that by up to the compatibility.
Seen: up to 5e-5, with inputs that are noise in every pixel."""


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: soft structures of several sizes, one sharp edge, some noise."""
    rng, image = np.random.default_rng(seed), np.zeros((height, width, 3))
    for cell, contrast in ((64, 90), (16, 50), (4, 20), (1, 8)):
        coarse = rng.random((height // cell + 1, width // cell + 1, 3))
        full = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        image += contrast * full.reshape(height, width, 3)
    image[height // 3 :, : width // 2] += 60
    return np.clip(image, 0, 255).astype(np.uint8)


def rough_labels(image: np.ndarray, num_labels: int) -> np.ndarray:
    """(h, w) labels that follow the brightness, moved by two pixels, one in ten replaced."""
    rng = np.random.default_rng(1)
    bright = np.argsort(np.argsort(image.mean(2).ravel())).reshape(image.shape[:2])
    labels = np.roll(bright * num_labels // bright.size, 2, axis=1)
    replaced = rng.random(labels.shape) < 0.1
    return np.where(replaced, rng.integers(0, num_labels, labels.shape), labels)


def noisy_probabilities(num_labels: int, height: int, width: int) -> np.ndarray:
    """(num_labels, h, w) float32, most of them near 0 or 1 and unlike their neighbours."""
    drawn = np.random.default_rng(2).dirichlet([0.1] * num_labels, (height, width))
    return np.moveaxis(drawn, -1, 0).astype(np.float32)


def assert_equal_to_pydensecrf(
    image: np.ndarray, num_labels: int, settings: CrfParameters, bound: float = PARITY
) -> None:
    """Labels equal in every pixel, probabilities within `bound`."""
    ours, theirs = (
        DenseCrf(image, num_labels, settings, backend) for backend in ("torch", "pydensecrf")
    )
    labels = rough_labels(image, num_labels)
    np.testing.assert_array_equal(ours.refine_labels(labels), theirs.refine_labels(labels))
    noise = noisy_probabilities(num_labels, *image.shape[:2])
    result = ours.refine_probabilities(noise)
    assert result.dtype == np.float32 and result.shape == noise.shape
    np.testing.assert_allclose(result, theirs.refine_probabilities(noise), rtol=0, atol=bound)


# ------------------------------------------------------------------------------ closed forms


class MatrixKernel:
    """A kernel given as a (points, points) matrix."""

    def __init__(self, matrix: np.ndarray) -> None:
        self.matrix = torch.from_numpy(matrix).float()

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        return self.matrix @ values

    def gather(self, spread: torch.Tensor, points: slice) -> torch.Tensor:
        return spread[points]


def plain_mean_field(
    energies: np.ndarray, matrices: list[np.ndarray], iterations: int
) -> np.ndarray:
    """Mean field as the paper writes it, in float64, on (labels, points)."""

    def softmax(logits: np.ndarray) -> np.ndarray:
        exponentials = np.exp(logits - logits.max(0))
        return exponentials / exponentials.sum(0)

    probabilities = softmax(-energies)
    for _ in range(iterations):
        messages = sum(probabilities @ matrix.T for matrix in matrices)
        probabilities = softmax(messages - energies)
    return probabilities


@pytest.mark.parametrize("num_labels", [2, 3, 7])
@pytest.mark.parametrize("weight, bound", [(0.5, 1e-5), (-2.0, 1e-5), (400.0, 1e-3)])
def test_mean_field_equals_the_plain_one(num_labels: int, weight: float, bound: float) -> None:
    """With weights of 400 exponentials of the logits are too large for float32."""
    rng = np.random.default_rng(num_labels)
    energies = rng.random((2, num_labels, 9)).astype(np.float32) * 5
    matrices = [weight * rng.random((9, 9)), rng.random((9, 9))]
    kernels = [MatrixKernel(matrix) for matrix in matrices]
    result = mean_field(torch.from_numpy(energies), kernels, 3)
    assert result.shape == energies.shape
    for one, expected in zip(result, energies, strict=True):
        plain = plain_mean_field(expected.astype(np.float64), matrices, 3)
        np.testing.assert_allclose(one, plain, atol=bound)


@pytest.mark.parametrize("without", [{"iterations": 0}, {"gaussian_compat": 0}])
def test_without_neighbours_the_given_probabilities_stay(without: dict[str, int]) -> None:
    settings = CrfParameters(**{"bilateral_compat": 0, **without})
    given = noisy_probabilities(4, 9, 11).clip(1e-5)
    given /= given.sum(0)
    for image in (photo(9, 11), np.full((9, 11, 3), 90, np.uint8)):
        result = DenseCrf(image, 4, settings).refine_probabilities(given, floor=1e-9)
        np.testing.assert_allclose(result, given, atol=1e-6)


def test_huge_energies_of_all_labels_make_no_difference() -> None:
    """exp(-200) is 0 in float32; only the differences of energies count."""
    energies = torch.rand(1, 3, 6)
    result = mean_field(energies + 200, [MatrixKernel(np.eye(6))], 2)
    torch.testing.assert_close(result, mean_field(energies, [MatrixKernel(np.eye(6))], 2))


@pytest.mark.parametrize("points", [1, 5])
def test_given_energies_are_left_alone(points: int) -> None:
    energies = torch.rand(1, 3, points)
    before = energies.clone()
    mean_field(energies, [MatrixKernel(np.eye(points))], 2)
    assert torch.equal(energies, before)


def test_even_labels_stay_even() -> None:
    result = DenseCrf(photo(20, 30), 5).refine_probabilities(np.full((5, 20, 30), 0.2))
    np.testing.assert_allclose(result, 0.2, atol=1e-6)


def test_no_label_is_special() -> None:
    """The last one stands for the others in the computation."""
    order, given = [2, 0, 3, 1], noisy_probabilities(4, 24, 31)
    crf = DenseCrf(photo(24, 31), 4)
    result, permuted = crf.refine_probabilities(given), crf.refine_probabilities(given[order])
    np.testing.assert_allclose(result.sum(0), 1, atol=1e-6)
    np.testing.assert_allclose(permuted, result[order], atol=1e-5)
    assert np.abs(permuted - result).max() > 0.5


def test_constant_picture_takes_the_label_of_most_pixels() -> None:
    image, labels = np.full((12, 16, 3), 77, np.uint8), np.zeros((12, 16), int)
    labels[3:5, 4:7] = 1
    np.testing.assert_array_equal(DenseCrf(image, 2).refine_labels(labels), 0)


def test_kernel_is_normalised_on_both_sides() -> None:
    features, values = torch.randn(2, 1, 40), torch.rand(40, 3)
    lattice = Lattice(features)
    norm = lattice.filter(torch.ones(40, 1)) ** -0.5
    expected = 2.5 * norm * lattice.filter(norm * values)
    torch.testing.assert_close(Kernel(features, 2.5).filter(values), expected)


# ----------------------------------------------------------------------------------- sharing


def test_label_maps_together_equal_one_by_one() -> None:
    image = photo(33, 45)
    maps = np.stack([np.roll(rough_labels(image, 3), move, axis=0) for move in (0, 9, 20)])
    crf = DenseCrf(image, 3)
    together = crf.refine_labels(maps)
    assert together.shape == maps.shape and (together != maps).any()
    for one, result in zip(maps, together, strict=True):
        np.testing.assert_array_equal(crf.refine_labels(one), result)


def test_pictures_together_equal_one_by_one() -> None:
    """33 * 45 is no multiple of 4: each picture has its own filling."""
    images = [photo(33, 45, seed) for seed in range(3)]
    given = noisy_probabilities(4, 33, 3 * 45).reshape(4, 33, 3, 45).transpose(2, 0, 1, 3)
    kernels = (
        smoothness_kernel((3, 33, 45), 3, 3, CPU),
        appearance_kernel(torch.from_numpy(np.stack(images)), 50, 5, 10),
    )
    energies = -np.log(np.clip(given, 1e-5, 1)).transpose(1, 0, 2, 3).reshape(1, 4, -1)
    together = mean_field(torch.from_numpy(energies), kernels, 10).reshape(4, 3, 33, 45)
    for picture, (image, one) in enumerate(zip(images, given, strict=True)):
        alone = DenseCrf(image, 4).refine_probabilities(one)
        np.testing.assert_allclose(together[:, picture], alone, atol=1e-5)


def test_kept_kernels_are_those_of_their_settings() -> None:
    values = torch.rand(12 * 10, 2)
    first = smoothness_kernel((1, 12, 10), 3, 3, CPU).filter(values)
    for shape, sxy, weight in (((1, 10, 12), 3, 3), ((1, 12, 10), 2, 3), ((2, 12, 5), 3, 3)):
        other = smoothness_kernel(shape, sxy, weight, CPU).filter(values)
        assert (other - first).abs().max() > 1e-2
    twice = smoothness_kernel((1, 12, 10), 3, 6, CPU).filter(values)
    torch.testing.assert_close(twice, 2 * first)
    torch.testing.assert_close(smoothness_kernel((1, 12, 10), 3, 3, CPU).filter(values), first)


# --------------------------------------------------------------------------------- pydensecrf


@NEEDS_PYDENSECRF
@pytest.mark.parametrize("num_labels", [2, 3, 21])
@pytest.mark.parametrize("seed", [0, 1])
def test_photos_equal_pydensecrf(num_labels: int, seed: int) -> None:
    assert_equal_to_pydensecrf(photo(94, 125, seed), num_labels, CrfParameters())


@NEEDS_PYDENSECRF
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (1, 3), (1, 90), (90, 1), (3, 3), (8, 5)])
def test_sizes_equal_pydensecrf(size: tuple[int, int]) -> None:
    assert_equal_to_pydensecrf(photo(*size), 3, CrfParameters())


@NEEDS_PYDENSECRF
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_constant_pictures_equal_pydensecrf(grey: int) -> None:
    assert_equal_to_pydensecrf(np.full((45, 61, 3), grey, np.uint8), 3, CrfParameters())


@NEEDS_PYDENSECRF
def test_white_noise_equals_pydensecrf() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 61, 3), np.uint8)
    assert_equal_to_pydensecrf(image, 3, CrfParameters())


@NEEDS_PYDENSECRF
@pytest.mark.parametrize(
    "changes",
    [
        {"bilateral_sxy": 67, "bilateral_srgb": 3, "bilateral_compat": 4, "gaussian_sxy": 1},
        {"bilateral_sxy": 0.01, "bilateral_srgb": 0.01, "gaussian_sxy": 0.01},
        {"bilateral_srgb": 0.01},
        {"bilateral_sxy": 1e4, "bilateral_srgb": 1e4},
        {"gaussian_sxy": 1e4},
        {"gt_prob": 0.999999},
        {"iterations": 50},
        {"gaussian_compat": -3},
    ],
    ids=str,
)
def test_settings_equal_pydensecrf(changes: dict[str, float]) -> None:
    assert_equal_to_pydensecrf(photo(50, 61), 3, CrfParameters(**changes))


@NEEDS_PYDENSECRF
def test_huge_weights_equal_pydensecrf() -> None:
    """Logits of 1000 have steps of 6e-5 in float32."""
    settings = CrfParameters(gaussian_compat=1000, bilateral_compat=1000)
    assert_equal_to_pydensecrf(photo(50, 61), 3, settings, bound=2e-3)


# ------------------------------------------------------------------------------------ backend


def test_unknown_backend_is_named() -> None:
    with pytest.raises(UserError, match="'cuda'; use torch or pydensecrf"):
        DenseCrf(np.zeros((6, 8, 3), np.uint8), 2, backend="cuda")


def test_a_backend_does_not_import_the_other(crf_backend: str) -> None:
    other = {"torch": "pydensecrf", "pydensecrf": "torch"}[crf_backend]
    code = (
        "import sys, numpy as np; import net.crf as crf\n"
        "assert not {'torch', 'pydensecrf'} & set(sys.modules)\n"
        f"made = crf.DenseCrf(np.zeros((6, 8, 3), np.uint8), 2, backend={crf_backend!r})\n"
        "made.refine_labels(np.eye(6, 8, dtype=np.uint8))\n"
        f"sys.exit({other!r} in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
