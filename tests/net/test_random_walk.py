"""The random walk against the published results and against explicit matrix powers."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from affinity_reference import dense_walk
from golden.fill import uniform

from misc.errors import UserError
from net import affinity
from net.affinity import power_in_chebyshev, random_walk, random_walks, strongest_map

PUBLISHED_ROUNDING = 1e-4  # of the maximum: float32 squarings of the published code


def sigmoid_edge(key, height, width):
    return torch.sigmoid(4 * torch.from_numpy(uniform(key, (1, height, width))).float() - 1)


def random_maps(count, height, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(height * width + count)
    cam = torch.rand(count, height, width, generator=generator, dtype=dtype)
    edge = torch.sigmoid(6 * torch.rand(1, height, width, generator=generator, dtype=dtype) - 4)
    return cam, edge


@pytest.mark.parametrize("case", range(4))
def test_equals_the_published_walk(golden, case):
    archive = golden("random_walk")
    height, width, count, beta, exp_times = archive[f"param{case}"].tolist()
    cam = torch.from_numpy(np.abs(uniform(f"rw{case}/cam", (count, height, width)))).float()
    edge = sigmoid_edge(f"rw{case}/edge", height, width)
    walked = random_walk(cam, edge, beta=beta, exp_times=exp_times)
    expected = archive[f"case{case}"][:, 0]
    assert walked.dtype == torch.float32
    np.testing.assert_allclose(walked, expected, rtol=0, atol=PUBLISHED_ROUNDING * expected.max())


def test_rows_of_instances_stay_in_order(golden):
    cam = torch.from_numpy(np.abs(uniform("rw_ins/cam", (2, 3, 16, 20)))).float()
    walked = random_walk(cam.flatten(0, 1), sigmoid_edge("rw_ins/edge", 16, 20))
    expected = golden("random_walk")["instances"][:, 0]
    np.testing.assert_allclose(walked, expected, rtol=0, atol=PUBLISHED_ROUNDING * expected.max())


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (2, 3), (4, 4), (13, 22)])
@pytest.mark.parametrize("radius, beta, exp_times", [(5, 10, 8), (2, 1, 5), (8, 4.5, 3), (5, 8, 0)])
def test_equals_explicit_powers(size, radius, beta, exp_times):
    cam, edge = random_maps(2, *size)
    expected = dense_walk(cam, edge, radius, beta, exp_times)
    walked = random_walk(cam, edge, radius, beta, exp_times)
    torch.testing.assert_close(walked, expected, rtol=0, atol=5e-7 * float(expected.max()))


def test_blocks_of_maps_give_the_same_result(monkeypatch):
    cam, edge = random_maps(5, 8, 9, torch.float32)
    whole = random_walk(cam, edge)
    monkeypatch.setattr(affinity, "WALK_BLOCK", 2 * 8 * 9)
    torch.testing.assert_close(random_walk(cam, edge), whole, rtol=0, atol=0)


def test_radius_one_stays_where_it_is():
    cam, edge = random_maps(2, 6, 5)
    torch.testing.assert_close(random_walk(cam, edge, radius=1), cam * (1 - edge))


def test_zero_maps_stay_zero_and_no_map_stays_no_map():
    edge = random_maps(1, 6, 5, torch.float32)[1]
    assert torch.equal(random_walk(torch.zeros(2, 6, 5), edge), torch.zeros(2, 6, 5))
    assert random_walk(torch.zeros(0, 6, 5), edge).shape == (0, 6, 5)


def test_constant_maps_stay_constant_without_edges():
    """To the last bit, although some of these constants round up on the way and some down."""
    constant = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)[:, None, None].expand(7, 11, 8)
    assert torch.equal(random_walk(constant, torch.zeros(1, 11, 8)), constant)


def test_nothing_crosses_a_closed_wall():
    edge = torch.zeros(1, 12, 15)
    edge[:, :, 7] = 1
    cam = torch.zeros(1, 12, 15)
    cam[:, 3, 2] = 1
    walked = random_walk(cam, edge)
    assert (walked[:, :, :7] > 0).all()
    assert (walked[:, :, 7:] == 0).all()


def test_edge_of_another_size_is_named():
    with pytest.raises(UserError, match=r"\(2, 6, 5\) and \(1, 6, 4\)"):
        random_walk(torch.rand(2, 6, 5), torch.rand(1, 6, 4))


@pytest.mark.parametrize("beta, exp_times", [(0, 8), (10, -1)])
def test_unusable_settings_are_named(beta, exp_times):
    with pytest.raises(UserError, match="beta > 0 and exp_times >= 0"):
        random_walk(torch.rand(1, 6, 5), torch.rand(1, 6, 5), beta=beta, exp_times=exp_times)


class _AppleGpu(torch.overrides.TorchFunctionMode):
    """Stands in for a device without float64: tensors of it are tensors of a subclass."""

    class Tensor(torch.Tensor):
        pass

    def __torch_function__(self, function, types, args=(), kwargs=None):
        ours = any(isinstance(arg, self.Tensor) for arg in args)
        if ours and function == torch.Tensor.device.__get__:
            return torch.device("mps")
        if ours and function == torch.Tensor.double:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        if ours and function == torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        if function == torch.Tensor.to and args[1:] == (torch.device("mps"),):
            return args[0].as_subclass(self.Tensor)
        return function(*args, **(kwargs or {}))


def test_a_device_without_float64_leaves_the_walk_to_the_cpu():
    cam, edge = torch.rand(2, 9, 7), torch.rand(1, 9, 7)
    expected = random_walk(cam, edge)
    with _AppleGpu():
        gpu = torch.device("mps")
        walked = random_walk(cam.to(gpu), edge.to(gpu))
        assert walked.device == gpu and walked.dtype == cam.dtype
        assert torch.equal(walked.cpu(), expected)


def test_maps_that_are_not_finite_are_refused_instead_of_all_background():
    maps = torch.rand(2, 3, 3)
    maps[1, 2, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        strongest_map(maps, (12, 12), 0.25)
    edge = torch.rand(1, 3, 3)
    edge[0, 1, 1] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        strongest_map(random_walk(torch.rand(2, 3, 3), edge), (12, 12), 0.25)


def test_coefficients_of_the_walk_are_computed_once():
    assert power_in_chebyshev(2**12) is power_in_chebyshev(2**12)


def test_a_large_map_needs_little_memory():
    """512x512: all points by all points would be 256 GB; the walk may use 1 GB."""
    script = (
        "import torch\n"
        "from net.affinity import random_walk\n"
        "from misc.distributed import peak_memory\n"
        "peak = lambda: peak_memory(torch.device('cpu'))['cpu']\n"
        "random_walk(torch.rand(2, 9, 9), torch.rand(1, 9, 9))\n"
        "before = peak()\n"
        "random_walk(torch.rand(2, 512, 512), torch.rand(1, 512, 512), exp_times=1)\n"
        "print(peak() - before)\n"
    )
    root = affinity.__file__.rsplit("/net/", 1)[0]
    output = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    assert 0 < int(output) < 2**30


@pytest.mark.parametrize("n", [1, 2, 3, 64, 256, 1024])
def test_chebyshev_series_equals_the_power_within_its_tail(n):
    t = np.linspace(-1, 1, 2001)
    for tail in (0, 1e-7, 1e-3):
        coefficients = np.array(power_in_chebyshev(n, tail))
        error = np.abs(np.polynomial.chebyshev.chebval(t, coefficients) - t**n).max()
        assert error <= 2 * tail + 1e-11
        assert (coefficients >= 0).all()
        assert coefficients.sum() == pytest.approx(1, abs=1e-12)


def test_chebyshev_series_is_as_short_as_promised():
    for n in (64, 256, 1024, 4096):
        degree = len(power_in_chebyshev(n, 1e-7)) - 1
        assert degree <= min(n, np.sqrt(2 * n * np.log(2 / 1e-7)))
    assert len(power_in_chebyshev(256)) - 1 < 90
    assert power_in_chebyshev(2, 0) == pytest.approx([0.5, 0, 0.5])  # t^2 = (1 + T_2) / 2


def test_walks_of_several_lengths_share_their_products(monkeypatch):
    cam, edge = random_maps(3, 9, 11, torch.float32)
    single = [random_walk(cam, edge, 4, 7.0, times) for times in (6, 0, 3)]
    products, add_product = [], affinity._WalkStep.add_product

    def counted(step, out, maps, factor):
        products.append(len(maps))
        return add_product(step, out, maps, factor)

    monkeypatch.setattr(affinity._WalkStep, "add_product", counted)
    together = random_walks(cam, edge, (6, 0, 3), 4, 7.0)
    assert together.dtype == torch.float32
    for one, alone in zip(together, single, strict=True):
        assert torch.equal(one, alone)
    # one product for the column sums, then those of the longest walk: its series ends at degree
    # sqrt(2 * 64 * ln(2e7)) = 47 at the latest
    assert products.count(3) <= 47 and len(products) == products.count(3) + 1


def test_walks_of_several_lengths_equal_explicit_powers():
    cam, edge = random_maps(2, 7, 6)
    walked = random_walks(cam, edge, (0, 2, 5), 3, 4.0)
    for one, times in zip(walked, (0, 2, 5), strict=True):
        expected = dense_walk(cam, edge, 3, 4.0, times)
        torch.testing.assert_close(one, expected, rtol=0, atol=5e-7 * float(expected.max()))


def test_several_walks_without_maps():
    edge = random_maps(1, 6, 5, torch.float32)[1]
    assert random_walks(torch.zeros(0, 6, 5), edge, (2, 3)).shape == (2, 0, 6, 5)
    with pytest.raises(UserError, match=r"exp_times >= 0: 10, 3, -1"):
        random_walks(torch.zeros(1, 6, 5), edge, (3, -1))
