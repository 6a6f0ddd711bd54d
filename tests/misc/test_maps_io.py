"""Pictures of every kind, palette PNGs, CAM and instance files."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from golden import fill
from PIL import Image, ImageChops

from misc.errors import UserError
from misc.maps_io import (
    load_cam,
    load_cam_origin,
    load_instances,
    read_image,
    read_label,
    save_cam,
    save_instances,
    voc_palette,
    write_label,
)

EXIF_ORIENTATION = 0x0112
ADOBE_MARKER = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"


@pytest.fixture
def photo() -> np.ndarray:
    return fill.image("maps_io", 24, 36)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
def test_gray_becomes_three_equal_channels(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    gray = Image.fromarray(photo).convert("L")
    path = tmp_path / f"gray{suffix}"
    gray.save(path)
    image = read_image(path)
    assert image.shape == (24, 36, 3) and image.dtype == np.uint8
    assert (image == image[..., :1]).all()
    np.testing.assert_allclose(image[..., 0], np.asarray(gray), atol=12)


def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path: Path, photo: np.ndarray) -> None:
    gray = photo[..., 0]
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png")[..., 1], gray)


def test_cmyk_jpeg_has_the_colours_of_the_photo(tmp_path: Path) -> None:
    """With Adobe's marker inks are stored inverted, without it as they are."""
    flat = np.zeros((32, 48, 3), np.uint8)
    flat[:, :16], flat[:, 16:32], flat[:, 32:] = (220, 40, 30), (20, 200, 60), (250, 250, 250)
    inks = Image.fromarray(flat).convert("CMYK")
    inks.save(tmp_path / "adobe.jpg", quality=95)
    assert ADOBE_MARKER in (tmp_path / "adobe.jpg").read_bytes()
    ImageChops.invert(inks).save(tmp_path / "plain.jpg", quality=95)  # PIL inverts when it saves
    without_marker = (tmp_path / "plain.jpg").read_bytes().replace(ADOBE_MARKER, b"")
    (tmp_path / "plain.jpg").write_bytes(without_marker)
    for name in ("adobe.jpg", "plain.jpg"):
        with Image.open(tmp_path / name) as stored:
            assert stored.mode == "CMYK"
        np.testing.assert_allclose(read_image(tmp_path / name)[:, 4::16], flat[:, 4::16], atol=8)


def test_alpha_and_transparent_palette_are_converted(tmp_path: Path, photo: np.ndarray) -> None:
    alpha = np.full(photo.shape[:2], 99, np.uint8)
    Image.fromarray(np.dstack([photo, alpha])).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), photo)
    indexed = Image.fromarray(photo).quantize(16)
    indexed.save(tmp_path / "palette.png", transparency=bytes(range(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(tmp_path / "palette.png")
    np.testing.assert_array_equal(image, np.asarray(indexed.convert("RGB")))


def test_exif_orientation_is_ignored(tmp_path: Path, photo: np.ndarray) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.fromarray(photo).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), photo)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_truncated_picture_is_an_error_that_names_it(
    tmp_path: Path, photo: np.ndarray, suffix: str
) -> None:
    path = tmp_path / f"cut{suffix}"
    Image.fromarray(photo).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match=f"cut{suffix}"):
        read_image(path)


def test_missing_and_foreign_files_are_errors(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(UserError, match=r"text\.jpg cannot be read as a picture"):
        read_image(tmp_path / "text.jpg")
    with pytest.raises(UserError, match=r"absent\.jpg does not exist"):
        read_image(tmp_path / "absent.jpg")


def test_label_round_trip_keeps_every_index(tmp_path: Path) -> None:
    label = np.arange(256, dtype=np.uint8).reshape(8, 32)
    write_label(tmp_path / "folder" / "label.png", label)
    restored = read_label(tmp_path / "folder" / "label.png")
    assert restored.dtype == np.uint8
    np.testing.assert_array_equal(restored, label)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1)])
def test_label_with_few_values_keeps_indices(tmp_path: Path, size: tuple[int, int]) -> None:
    write_label(tmp_path / "label.png", np.full(size, 3, np.uint8))
    np.testing.assert_array_equal(read_label(tmp_path / "label.png"), np.full(size, 3))


def test_written_label_is_a_palette_png_in_voc_colours(tmp_path: Path) -> None:
    write_label(tmp_path / "label.png", np.array([[0, 1, 15, 255]], np.uint8))
    with Image.open(tmp_path / "label.png") as image:
        assert image.mode == "P"
        colours = np.asarray(image.convert("RGB"))[0].tolist()
    assert colours == [[0, 0, 0], [128, 0, 0], [192, 128, 128], [224, 224, 192]]


def test_palette_against_the_published_colours() -> None:
    palette = voc_palette()
    assert palette.shape == (256, 3) and palette.dtype == np.uint8
    assert palette[7].tolist() == [128, 128, 128]  # car
    assert palette[20].tolist() == [0, 64, 128]  # tvmonitor
    assert len(np.unique(palette, axis=0)) == 256


GRAY, PALETTE = 0, 3  # colour types of the PNG specification


def _png(label: np.ndarray, depth: int, colour_type: int) -> bytes:
    """A PNG by hand, from the specification."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        length, checksum = struct.pack(">I", len(data)), zlib.crc32(kind + data)
        return length + kind + data + struct.pack(">I", checksum)

    height, width = label.shape
    bits = ((label[..., None] >> np.arange(depth)[::-1]) & 1).reshape(height, -1)
    lines = b"".join(b"\0" + row.tobytes() for row in np.packbits(bits, axis=1))
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(3 * 2**depth))[: 3 * 2**depth]) if depth < 8 else b""
    parts = [chunk(b"IHDR", header)]
    parts += [palette] if colour_type == PALETTE else []
    parts += [chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(("depth", "colour_type"), [(8, GRAY), *((d, PALETTE) for d in (1, 2, 4))])
def test_gray_and_small_palette_labels_are_read_as_indices(
    tmp_path: Path, depth: int, colour_type: int
) -> None:
    label = (np.arange(15) % 2**depth).reshape(3, 5).astype(np.uint8)
    (tmp_path / "label.png").write_bytes(_png(label, depth, colour_type))
    np.testing.assert_array_equal(read_label(tmp_path / "label.png"), label)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_gray_of_few_bits_is_refused(tmp_path: Path, depth: int) -> None:
    label = (np.arange(15) % 2**depth).reshape(3, 5).astype(np.uint8)
    (tmp_path / "label.png").write_bytes(_png(label, depth, GRAY))
    with pytest.raises(UserError, match=r"label\.png is gray of less than 8 bits.*8-bit gray PNG"):
        read_label(tmp_path / "label.png")


def test_one_bit_tiff_is_refused(tmp_path: Path) -> None:
    Image.new("1", (4, 3)).save(tmp_path / "label.tiff")
    with pytest.raises(UserError, match=r"label\.tiff is gray of less than 8 bits"):
        read_label(tmp_path / "label.tiff")


def test_maps_that_are_not_finite_are_not_read(tmp_path: Path) -> None:
    maps = {"cam": np.full((1, 1, 1), np.nan, np.float32), "high_res": np.ones((1, 2, 2), "f4")}
    np.savez(tmp_path / "a.npz", keys=np.array([3]), picture=0, **maps)
    with pytest.raises(UserError, match=r"a\.npz has class activation maps that are not finite"):
        load_cam(tmp_path / "a.npz")


def test_colour_picture_is_no_label(tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).save(tmp_path / "colours.png")
    with pytest.raises(UserError, match=r"colours\.png is a picture of mode RGB"):
        read_label(tmp_path / "colours.png")


@pytest.mark.parametrize("label", [np.zeros((2, 2), np.int64), np.zeros((2, 2, 3), np.uint8)])
def test_only_index_maps_are_written(tmp_path: Path, label: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        write_label(tmp_path / "label.png", label)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("num_keys", [0, 1, 3])
def test_cam_round_trip(tmp_path: Path, num_keys: int) -> None:
    cam = np.abs(fill.uniform("cam", (num_keys, 4, 3)))
    high_res = np.abs(fill.uniform("high", (num_keys, 13, 10)))
    save_cam(tmp_path / "a.b.npz", np.arange(num_keys) * 2, cam, high_res)
    maps = load_cam(tmp_path / "a.b.npz")
    assert maps.keys.dtype == np.int64 and maps.cam.dtype == maps.high_res.dtype == np.float32
    assert maps.keys.tolist() == [0, 2, 4][:num_keys]
    np.testing.assert_array_equal(maps.cam, cam.astype(np.float32))
    np.testing.assert_array_equal(maps.high_res, high_res.astype(np.float16))


def test_origin_is_read_without_the_maps(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", keys=np.array([3, 11]), picture=np.uint32(2**32 - 1))
    keys, picture = load_cam_origin(tmp_path / "x.npz")
    assert keys.dtype == np.int64 and keys.tolist() == [3, 11]
    assert picture == 2**32 - 1
    with pytest.raises(UserError, match=r"y\.npz does not exist"):
        load_cam_origin(tmp_path / "y.npz")


def test_cams_that_cannot_be_right_are_not_written(tmp_path: Path) -> None:
    cam, high_res = np.zeros((1, 4, 3)), np.zeros((1, 13, 10))
    with pytest.raises(ValueError, match="do not fit"):
        save_cam(tmp_path / "x.npz", np.array([1]), cam[:, :3], high_res)
    with pytest.raises(ValueError, match="do not fit"):
        save_cam(tmp_path / "x.npz", np.array([1, 2]), cam, high_res)
    with pytest.raises(ValueError, match="not finite"):
        save_cam(tmp_path / "x.npz", np.array([1]), cam * np.nan, high_res)
    assert list(tmp_path.iterdir()) == []


def test_instances_round_trip(tmp_path: Path) -> None:
    mask = fill.uniform("mask", (2, 5, 6)) > 0
    save_instances(tmp_path / "x.npz", np.array([0.5, 0.25]), np.array([3, 0]), mask)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        assert set(archive.files) == {"score", "class", "mask"}
    found = load_instances(tmp_path / "x.npz")
    assert (found.score.dtype, found.class_id.dtype, found.mask.dtype) == (
        np.float32,
        np.int64,
        np.bool_,
    )
    assert found.score.tolist() == [0.5, 0.25] and found.class_id.tolist() == [3, 0]
    np.testing.assert_array_equal(found.mask, mask)


def test_broken_or_foreign_npz_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(UserError, match=r"x\.npz does not exist"):
        load_cam(path)
    save_instances(path, np.zeros(0), np.zeros(0, int), np.zeros((0, 2, 2), bool))
    with pytest.raises(UserError, match=r"x\.npz is not an npz file with keys"):
        load_cam(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"x\.npz is not an npz file with score"):
        load_instances(path)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "x.npz", keys=objects, cam=objects, high_res=objects)
    with pytest.raises(UserError, match=r"x\.npz"):
        load_cam(tmp_path / "x.npz")
