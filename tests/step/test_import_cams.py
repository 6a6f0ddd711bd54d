"""CAMs of other methods: every layout arrives as what `make_cam` would have written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import other_methods
import pytest
from other_methods import (
    FLOAT16,
    KEYS,
    LAYOUTS,
    PICTURES,
    assert_maps,
    build_devkit,
    cam,
    imported,
    quarter,
    save_all,
    save_npy,
    scores,
)
from PIL import Image

from misc.maps_io import load_cam
from step import import_cams

FIRST, SECOND = PICTURES


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A devkit with the two pictures of `other_methods`; read only."""
    return build_devkit(tmp_path_factory.mktemp("seeds") / "VOC2012")


# ---------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("name", LAYOUTS)
def test_dictionaries_of_other_methods(devkit: Path, tmp_path: Path, name: str) -> None:
    maps = save_all(tmp_path / "src", LAYOUTS[name])
    assert imported(devkit, tmp_path / "src", tmp_path) == 0
    assert_maps(tmp_path, maps)
    if name in ("IRN", "LPCAM", "AMN", "PuzzleCAM"):  # they store the small maps as well
        np.testing.assert_array_equal(load_cam(cam(tmp_path, FIRST)).cam, quarter(maps[FIRST]))


def test_crf_scores_of_psa_need_to_be_told_of_their_background(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    maps = save_all(tmp_path / "src", other_methods.psa_crf, (FIRST,))
    assert imported(devkit, tmp_path / "src", tmp_path) == 2
    assert "when -1 is added; use --background first" in capsys.readouterr().err
    assert imported(devkit, tmp_path / "src", tmp_path, "--background", "first") == 0
    assert_maps(tmp_path, maps)


def test_background_that_is_not_there_is_noticed(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_npy(tmp_path / "src", FIRST, {14: scores(FIRST, 1)[0], 1: scores(FIRST, 1)[0]})
    assert imported(devkit, tmp_path / "src", tmp_path) == 0  # other classes: counted, see below
    save_all(tmp_path / "two", other_methods.psa, (SECOND,))
    assert imported(devkit, tmp_path / "two", tmp_path / "b", "--background", "first") == 2
    assert "when +1 is added; use --background none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("channels", "background"),
    [
        ("all", "auto"),
        ("all", "none"),
        ("all and background", "auto"),
        ("present", "auto"),
        ("present and background", "first"),
    ],
)
def test_arrays_beside_the_image_labels(
    devkit: Path, tmp_path: Path, channels: str, background: str
) -> None:
    maps = {image_id: scores(image_id, len(KEYS[image_id])) for image_id in PICTURES}
    for image_id, one in maps.items():
        stored = one
        if channels.startswith("all"):
            stored = scores(image_id, 20, seed=1)
            stored[KEYS[image_id]] = one
        if channels.endswith("background"):
            stored = np.concatenate((scores(image_id, 1, seed=2), stored))
        save_npy(tmp_path / "src", image_id, stored)
    assert imported(devkit, tmp_path / "src", tmp_path, "--background", background) == 0
    assert_maps(tmp_path, maps)


@pytest.mark.parametrize("layout", [other_methods.irn, other_methods.sipe])
def test_npz_files(devkit: Path, tmp_path: Path, layout: Any) -> None:
    (tmp_path / "src").mkdir()
    maps = {image_id: scores(image_id, len(KEYS[image_id])) for image_id in PICTURES}
    for image_id, one in maps.items():
        arrays = {name: np.asarray(value) for name, value in layout(image_id, one).items()}
        np.savez_compressed(tmp_path / "src" / f"{image_id}.npz", **arrays)
    assert imported(devkit, tmp_path / "src", tmp_path) == 0
    assert_maps(tmp_path, maps)


@pytest.mark.parametrize("naming", ["L2G", "names", "folders", "16 bit"])
def test_score_pngs(devkit: Path, tmp_path: Path, naming: str) -> None:
    maps = {image_id: scores(image_id, len(KEYS[image_id])) for image_id in PICTURES}
    source = tmp_path / "src"
    for image_id, one in maps.items():
        other_methods.save_l2g(source, image_id, one)
        for key in KEYS[image_id]:
            path = source / f"{image_id}_{key}.png"
            if naming == "names":
                name = PICTURES[image_id][2][KEYS[image_id].index(key)]
                path.rename(source / f"{image_id}_{name}.png")
            elif naming == "folders":
                (source / image_id).mkdir(exist_ok=True)
                path.rename(source / image_id / f"{key}.png")
            elif naming == "16 bit":
                gray = np.asarray(Image.open(path)).astype(np.uint16) * 257
                Image.fromarray(gray).save(path)
    assert imported(devkit, source, tmp_path) == 0
    assert_maps(tmp_path, maps)


def test_ids_with_a_prefix_and_in_folders(tmp_path: Path) -> None:
    root = build_devkit(tmp_path / "coco")
    for folder in ("JPEGImages", "Annotations"):
        (root / folder / "sub").mkdir()
        for path in list((root / folder).glob("2007*")):
            path.rename(path.parent / "sub" / f"COCO_{path.name}")
    maps = save_all(tmp_path / "src", other_methods.psa)
    assert imported(root, tmp_path / "src", tmp_path, "--prefix", "sub/COCO_") == 0
    for image_id, one in maps.items():
        found = load_cam(cam(tmp_path, f"sub/COCO_{image_id}"))
        np.testing.assert_allclose(found.high_res, one, atol=FLOAT16)


# --------------------------------------------------------------------------------- sizes and range


def test_the_size_that_is_missing_is_made_bilinearly(devkit: Path, tmp_path: Path) -> None:
    """A ramp of slope 1/64 at stride 4 has slope 1/256 in the picture, away from its border."""
    ramp = np.broadcast_to(np.arange(8) / 64, (1, 5, 8)).astype(np.float32)
    save_npy(tmp_path / "src", FIRST, {"keys": np.array([0]), "cam": ramp})
    assert imported(devkit, tmp_path / "src", tmp_path, "--normalise", "none") == 0
    found = load_cam(cam(tmp_path, FIRST))
    np.testing.assert_array_equal(found.cam, ramp)
    assert found.high_res.shape == (1, 20, 30)
    # The 8 cells cover the 30 pixels: a pixel is 8/30 of a cell, centres lie half a cell inside.
    cells = (np.arange(30) + 0.5) * 8 / 30 - 0.5
    np.testing.assert_allclose(found.high_res[0, 7, 2:-2], cells[2:-2] / 64, atol=1e-4)


def test_maps_are_divided_by_their_maxima(devkit: Path, tmp_path: Path) -> None:
    maps = scores(FIRST, 2)
    raw = {0: 40 * maps[0], 14: 0.25 * maps[1]}
    save_npy(tmp_path / "src", FIRST, raw)
    assert imported(devkit, tmp_path / "src", tmp_path) == 0
    # each by its own maximum plus 1e-5, as step 2 does
    expected = np.stack([40 * maps[0] / 40.00001, 0.25 * maps[1] / 0.25001])
    found = load_cam(cam(tmp_path, FIRST)).high_res
    np.testing.assert_allclose(found, expected, atol=FLOAT16)
    assert imported(devkit, tmp_path / "src", tmp_path / "b", "--normalise", "none") == 2
    save_npy(tmp_path / "src", FIRST, {0: maps[0], 14: 0.25 * maps[1]})
    assert imported(devkit, tmp_path / "src", tmp_path / "b", "--normalise", "none") == 0
    found = load_cam(cam(tmp_path / "b", FIRST)).high_res
    np.testing.assert_allclose(found, [maps[0], 0.25 * maps[1]], atol=FLOAT16)


def test_negative_and_undefined_maps_become_zero_and_are_counted(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    maps = scores(FIRST, 2)
    negative = maps[0].copy()
    negative[0, 0] = -1e-5  # SEAM subtracts it from maps of zeros
    save_npy(tmp_path / "src", FIRST, {0: negative, 14: np.full_like(maps[1], np.nan)})
    assert imported(devkit, tmp_path / "src", tmp_path) == 0
    found = load_cam(cam(tmp_path, FIRST)).high_res
    assert found[0, 0, 0] == 0 and not found[1].any()
    told = capsys.readouterr().out
    assert "negative values became 0 in 1 pictures (down to -1e-05)" in told
    assert f"NaN everywhere became 0 in '{FIRST}'" in told


def test_stretched_maps_need_an_option(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_npy(tmp_path / "src", FIRST, {"keys": np.array([0]), "cam": np.ones((1, 14, 14))})
    assert imported(devkit, tmp_path / "src", tmp_path) == 2
    assert "maps of 14x14, but the picture is 30x20" in capsys.readouterr().err
    assert imported(devkit, tmp_path / "src", tmp_path, "--stretch") == 0
    assert load_cam(cam(tmp_path, FIRST)).cam.shape == (1, 5, 8)


@pytest.mark.parametrize("shape", [(2, 2), (3, 4), (16, 24), (80, 120), (10, 15)])
def test_maps_rounded_to_cells_are_of_the_same_aspect(
    devkit: Path, tmp_path: Path, shape: tuple[int, int]
) -> None:
    save_npy(tmp_path / "src", FIRST, {0: np.ones(shape)})
    assert imported(devkit, tmp_path / "src", tmp_path) == 0


# ------------------------------------------------------------------------------- which pictures


def test_what_does_not_fit_is_counted(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_all(tmp_path / "src", other_methods.psa, (FIRST,))
    save_npy(tmp_path / "src", SECOND, {3: scores(SECOND, 1)[0]})
    save_npy(tmp_path / "src", "2009_009999", {3: np.ones((4, 4))})
    assert imported(devkit, tmp_path / "src", tmp_path) == 0
    told = capsys.readouterr().out
    assert "1 files belong to no picture" in told and "2009_009999.npy" in told
    assert "1 of 2 pictures have maps of other classes than their image labels" in told
    assert f"and keep them: '{SECOND}'" in told
    assert load_cam(cam(tmp_path, SECOND)).keys.tolist() == [3]


def test_lists_name_what_is_missing_and_pictures_without_class_need_no_maps(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = build_devkit(
        tmp_path / "voc", {**PICTURES, "sky": (8, 12, ("bird",)), "lost": (8, 8, ("cat",))}
    )
    (root / "Annotations/sky.xml").write_text("<annotation></annotation>")
    save_all(tmp_path / "src", other_methods.psa)
    (tmp_path / "some.txt").write_text(f"sky\n{SECOND}\nlost\n")
    assert imported(root, tmp_path / "src", tmp_path, "--list", str(tmp_path / "some.txt")) == 0
    assert "1 of 3 listed pictures have no maps: 'lost'" in capsys.readouterr().out
    assert not cam(tmp_path, FIRST).exists()
    empty = load_cam(cam(tmp_path, "sky"))
    assert (empty.keys.shape, empty.cam.shape, empty.high_res.shape) == (
        (0,),
        (0, 2, 3),
        (0, 8, 12),
    )


def test_own_classes_without_image_labels(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = build_devkit(tmp_path / "data")
    shutil.rmtree(root / "Annotations")
    (tmp_path / "classes.txt").write_text("sky lark\nthe_cat\n")
    source = tmp_path / "src"
    source.mkdir()
    Image.fromarray(np.full((20, 30), 255, np.uint8)).save(source / f"{FIRST}_the_cat.png")
    options = ("--classes", str(tmp_path / "classes.txt"))
    assert imported(root, source, tmp_path, *options) == 0
    assert "are not compared with image labels" in capsys.readouterr().out
    assert load_cam(cam(tmp_path, FIRST)).keys.tolist() == [1]


# -------------------------------------------------------------------------------------- bad input


def _colour_png(folder: Path) -> None:
    Image.new("RGB", (30, 20)).save(folder / f"{FIRST}_0.png")


def _two_pngs(folder: Path) -> None:
    for name in ("0", "aeroplane"):
        Image.new("L", (30, 20)).save(folder / f"{FIRST}_{name}.png")


def _broken_npz(folder: Path) -> None:
    (folder / f"{FIRST}.npz").write_bytes(b"PK\x03\x04 no archive")


def _cut_npy(folder: Path) -> None:
    path = save_npy(folder, FIRST, other_methods.irn(FIRST, scores(FIRST, 2)))
    path.write_bytes(path.read_bytes()[:-100])


def _both_formats(folder: Path) -> None:
    _broken_npz(folder)
    save_npy(folder, FIRST, np.ones((20, 4, 6)))


ONES = np.ones((20, 30), np.float32)
BAD = {
    "a call": (eval, "it asks for"),
    "keys alone": ({"keys": np.array([0])}, "no maps under cam"),
    "maps alone": ({"cam": ONES[None]}, "wanted is a dictionary with keys and maps"),
    "text": ({"keys": "cat", "cam": ONES[None]}, "keys that are no vector of class numbers"),
    "broken numbers": ({"keys": np.array([0.5]), "cam": ONES[None]}, "no vector of class numbers"),
    "three keys, one map": ({"keys": np.array([0, 1, 2]), "cam": ONES[None]}, "3 keys and 1 maps"),
    "two counts": (
        {"keys": np.array([0]), "cam": ONES[None], "high_res": np.stack([ONES, ONES])},
        "another number of maps in each size (1 under cam, 2 under high_res)",
    ),
    "one axis too few": ({"keys": np.array([0]), "cam": ONES}, "have the shape (20, 30)"),
    "text for a map": ({"keys": np.array([0]), "cam": "map"}, "have the shape str"),
    "no pixel": ({0: ONES[:0]}, "no pixel"),
    "class 20": ({20: ONES}, "maps of class 20; there are 20 classes from 0 (aeroplane) to 19"),
    "class 1e30": ({10**30: ONES}, "no vector of class numbers"),
    "a ragged map": ({0: [[1.0], [1.0, 2.0]]}, "maps of the shapes ()"),
    "class 99": ({99: ONES}, "maps of class 99"),
    "class -1": ({"keys": np.array([-1]), "attn_highres": ONES[None]}, "maps of class -1"),
    "a class twice": (
        {"keys": np.array([3, 3]), "cam": np.stack([ONES, ONES])},
        "more than one map",
    ),
    "two shapes": ({0: ONES, 14: ONES[:, :5]}, "maps of the shapes (20, 5), (20, 30)"),
    "transposed": ({0: ONES.T}, "maps of 20x30, but the picture is 30x20; if the method"),
    "some NaN": ({0: np.where(np.eye(20, 30) > 0, np.nan, ONES)}, "values are NaN or infinite"),
    "infinite": ({0: ONES * np.inf}, "values are NaN or infinite"),
    "seven maps": (np.ones((7, 20, 30)), "7 maps; with --background auto, 20 classes and 2 image"),
    "a vector": (np.ones(20), "have the shape (20,)"),
    "no maps": (None, "holds data of type NoneType"),
    "a colour PNG": (_colour_png, "mode RGB, not of gray scores"),
    "two PNGs of a class": (_two_pngs, "are of the same class"),
    "a broken npz": (_broken_npz, "is not an npz file"),
    "a cut npy": (_cut_npy, "is not read: it is broken"),
    "both formats": (_both_formats, "holds files of irn and npz"),
    "nothing": (lambda folder: None, "holds no .npy, .npz or .png file"),
    "another picture": (lambda folder: save_npy(folder, "x", ONES), "no .npy file of a picture"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_maps_are_told_in_one_sentence(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    content, told = BAD[name]
    source = tmp_path / "src"
    source.mkdir()
    if callable(content) and content is not eval:
        content(source)
    else:
        save_npy(source, FIRST, content)
    assert imported(devkit, source, tmp_path) == 2
    error = capsys.readouterr().err
    lines = [
        line
        for line in error.splitlines()
        if not line.startswith(("reading", "import_cams: 0", "import_cams:   0"))
    ]
    assert len(lines) == 1 and told in lines[0] and str(source) in lines[0], error
    assert not list((tmp_path / "result").rglob("*.npz"))


def test_bad_options_are_told(devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = tmp_path / "src"
    save_all(source, other_methods.psa)
    (tmp_path / "labels.csv").write_text(f"{FIRST},unicorn\n{SECOND},cat\n")
    (tmp_path / "bad.npy").write_bytes(b"x")
    attempts = {
        ("--cam_out_dir", "src/deeper"): "lie in each other",
        ("--cls_labels", str(tmp_path / "labels.csv")): "unknown class 'unicorn'",
        ("--cls_labels", str(tmp_path / "bad.npy")): "bad.npy is not read",
        ("--classes", str(tmp_path / "none.txt")): "none.txt does not exist",
        ("--list", "nolist"): "the image list nolist is neither a file nor",
        ("--format", "npz"): "holds no .npz file",
    }
    for options, told in attempts.items():
        assert imported(devkit, source, tmp_path, *options) == 2, options
        assert told in capsys.readouterr().err
    assert imported(tmp_path, source, tmp_path) == 2
    assert "has no folder JPEGImages" in capsys.readouterr().err
    assert imported(devkit, tmp_path / "none", tmp_path) == 2
    assert "is no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        imported(devkit, source, tmp_path, "--background", "last")
    assert stopped.value.code == 2


def test_the_command_answers_with_a_sentence_and_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "step.import_cams", "none", "--voc12_root", "nowhere"]
    environment = {**os.environ, "PYTHONPATH": str(Path(import_cams.__file__).parents[1])}
    answer = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 2 and answer.stdout == ""
    assert (
        answer.stderr == f"import_cams: {tmp_path}/none is no folder; name the one with the maps.\n"
    )
