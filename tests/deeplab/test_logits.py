"""Logits on disk: what they lose, how large they are, and files that are none."""

from pathlib import Path

import numpy as np
import pytest

from deeplab import logits
from misc.errors import UserError


def test_logits_of_voc_val_stay_below_a_gigabyte() -> None:
    size = logits.expected_bytes([(375, 500)] * 1449, num_classes=21, stride=8)
    assert 150e6 < size < 250e6


@pytest.mark.parametrize("stride", [8, 16])
def test_expected_size_is_close_to_that_of_the_files(tmp_path: Path, stride: int) -> None:
    sizes = [(281, 500), (375, 500), (500, 333)]
    shapes = [(21, -(-height // stride), -(-width // stride)) for height, width in sizes]
    for number, shape in enumerate(shapes):
        logits.save_logits(tmp_path / f"{number}.npy", np.zeros(shape, np.float32))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert logits.expected_bytes(sizes, 21, stride) == pytest.approx(size, rel=0.05)


def test_logits_survive_the_disk(tmp_path: Path) -> None:
    values = np.array([[[1e-3, -7.25]], [[70000.0, 3.0]]], np.float32)
    logits.save_logits(tmp_path / "a.npy", values)
    read = logits.load_logits(tmp_path / "a.npy", 2)
    np.testing.assert_allclose(read, [[[1e-3, -7.25]], [[65504, 3]]], rtol=1e-3)
    with pytest.raises(UserError, match="not finite for b"):
        logits.save_logits(tmp_path / "b.npy", values * np.nan)
    np.save(tmp_path / "b.npy", (values * np.nan).astype(np.float16))  # of an earlier version
    with pytest.raises(UserError, match=r"b\.npy holds scores that are NaN or infinite"):
        logits.load_logits(tmp_path / "b.npy", 2)
    (tmp_path / "b.npy").unlink()
    with pytest.raises(UserError, match="run test for this split"):
        logits.load_logits(tmp_path / "b.npy", 2)
    with pytest.raises(UserError, match="not \\(21, h, w\\)"):
        logits.load_logits(tmp_path / "a.npy", 21)
    for content in (b"no array", b"PK\x03\x04 no archive"):
        (tmp_path / "c.npy").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as logits"):
            logits.load_logits(tmp_path / "c.npy", 2)
    np.savez(tmp_path / "d.npz", values)
    (tmp_path / "d.npz").rename(tmp_path / "d.npy")
    with pytest.raises(UserError, match=r"d\.npy holds an archive"):
        logits.load_logits(tmp_path / "d.npy", 2)


@pytest.mark.parametrize(
    "values", [np.zeros((2, 0, 3), np.float16), np.zeros((2, 1, 1), int), np.full((2, 1, 1), "a")]
)
def test_arrays_that_are_no_logits_are_named(tmp_path: Path, values: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(UserError, match=r"a\.npy holds .*, not \(2, h, w\) floats"):
        logits.load_logits(tmp_path / "a.npy", 2)
