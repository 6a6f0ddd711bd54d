"""Colours of maps and the figure."""

import os
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pipeline import changed

from misc.errors import UserError
from misc.maps_io import load_cam, save_cam, save_instances, voc_palette, write_label
from misc.visualize import (
    FigureRow,
    colour_instances,
    colour_label,
    draw_box,
    edge_picture,
    heat_map,
    overlay_label,
    picture_grid,
    save_figure,
)
from step import make_figure
from step.run import Run, finished_run
from voc12.devkit import Devkit
from voc12.source import DataSource

SIZE = (40, 60)
# Columns that are drawn from files; the others are of the branches.
STORED = {"photo", "ground truth", "CAM", "IR label", "edge map", "pseudo mask", "instances"}


def _photo() -> np.ndarray:
    return np.full((*SIZE, 3), 100, np.uint8)


def test_labels_have_voc_colours_and_an_outline() -> None:
    label = np.zeros(SIZE, np.uint8)
    label[10:30, 10:50], label[:5] = 8, 255
    picture = colour_label(label)
    assert tuple(picture[20, 30]) == tuple(voc_palette()[8]) == (64, 0, 0)
    assert tuple(picture[35, 5]) == (0, 0, 0)
    assert tuple(picture[2, 5]) == tuple(voc_palette()[255])
    assert picture[10, 30].min() > 200


def test_heat_is_red_where_the_strongest_map_is_high() -> None:
    cam = np.zeros((2, *SIZE), np.float32)
    cam[1, :, 30:] = 1
    picture = heat_map(_photo(), cam).astype(int)
    hot, cold = picture[20, 50], picture[20, 10]
    assert hot[0] > hot[2] + 50
    assert cold[2] > cold[0]


def test_heat_map_without_classes_is_cold() -> None:
    nothing = np.zeros((0, *SIZE), np.float32)
    zeros = np.zeros((1, *SIZE), np.float32)
    assert np.array_equal(heat_map(_photo(), nothing), heat_map(_photo(), zeros))


def test_edges_are_dark_and_full_size() -> None:
    edge = np.zeros((10, 15), np.uint8)
    edge[:, 7] = 255
    picture = edge_picture(edge, SIZE)
    assert picture.shape == (*SIZE, 3)
    assert picture[20, 0].tolist() == [255] * 3
    assert picture[20, 30].max() < 64


def test_instances_have_colours_of_their_own() -> None:
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 5:20, 5:25], masks[1, 5:35, 30:55] = True, True
    picture = colour_instances(_photo(), masks)
    colours = {tuple(picture[10, 10]), tuple(picture[20, 40]), tuple(picture[38, 2])}
    assert len(colours) == 3
    assert tuple(picture[38, 2]) == (100, 100, 100)


def test_surest_instance_is_on_top() -> None:
    masks = np.ones((2, *SIZE), bool)
    assert np.array_equal(colour_instances(_photo(), masks), colour_instances(_photo(), masks[:1]))


def test_overlay_tints_classes_and_leaves_the_background() -> None:
    label = np.zeros(SIZE, np.uint8)
    label[10:30, 10:50], label[:5] = 15, 255
    photo = _photo()
    picture = overlay_label(photo, label).astype(int)
    tint = 0.4 * 100 + 0.6 * voc_palette()[15].astype(float)
    assert np.abs(picture[20, 30] - tint).max() <= 1
    assert picture[35, 5].tolist() == [100] * 3
    assert picture[2, 5].min() > 140  # ignored: light
    assert picture[10, 30].min() > 200  # outline
    assert (photo == 100).all()


def test_box_has_inclusive_corners() -> None:
    photo = _photo()
    picture = draw_box(photo, np.array([5, 10, 20, 30]), (255, 0, 0), thickness=1)
    red = (picture == (255, 0, 0)).all(axis=2)
    rim = np.zeros(SIZE, bool)
    rim[10:31, 5:21], rim[11:30, 6:20] = True, False
    assert np.array_equal(red, rim)
    assert (photo == 100).all()


def test_boxes_reach_beyond_the_picture_and_may_be_points() -> None:
    picture = draw_box(_photo(), (-9, -9, 99, 99), (255, 0, 0))
    assert np.array_equal(picture, _photo())
    assert (draw_box(_photo(), (0, 0, 0, 0), (255, 0, 0))[0, 0] == (255, 0, 0)).all()
    turned = draw_box(_photo(), (20, 30, 5, 10), (0, 0, 255))
    assert np.array_equal(turned, draw_box(_photo(), (5, 10, 20, 30), (0, 0, 255)))


def test_grid_pads_with_white_to_equal_cells() -> None:
    small, tall = np.zeros((2, 5, 3), np.uint8), np.full((6, 3, 3), 9, np.uint8)
    grid = picture_grid([[small, tall], [tall]])
    gap = grid.shape[0] - 12
    assert grid.shape == (12 + gap, 10 + gap, 3) and 0 < gap < 10
    assert (grid[:2, :5] == 0).all()
    assert (grid[:6, 5 + gap : 8 + gap] == 9).all()
    assert (grid[6 + gap :, :3] == 9).all()
    pictures = 2 * 5 + 2 * 6 * 3
    assert (grid != 255).any(axis=2).sum() == pictures


def _figure_size(path: Path, columns: list[str]) -> tuple[int, int]:
    row = FigureRow("a: cat", {"photo": _photo(), "CAM": _photo()}, {0, 8, 255})
    save_figure(path, [row, row], columns, ["cat"] * 20)
    with Image.open(path) as image:
        return image.size


def test_columns_that_no_row_has_are_left_out(tmp_path: Path) -> None:
    two = _figure_size(tmp_path / "a.png", ["photo", "CAM"])
    assert _figure_size(tmp_path / "b.png", ["photo", "edge map", "CAM"]) == two
    assert _figure_size(tmp_path / "c.png", ["photo"])[0] < two[0]


@pytest.mark.parametrize("size", [(2400, 6), (6, 2400)])
def test_extreme_pictures_make_no_endless_figure(tmp_path: Path, size: tuple[int, int]) -> None:
    cell = np.full((*size, 3), (255, 0, 0), np.uint8)
    save_figure(tmp_path / "a.png", [FigureRow("a", {"photo": cell})], ["photo"], [])
    with Image.open(tmp_path / "a.png") as image:
        assert image.width < 400 and 50 < image.height < 1000
        if size[0] > size[1]:  # shrunk, not squeezed: a thin line from top to bottom
            pixels = np.asarray(image.convert("RGB")).astype(int)
            red = pixels[..., 0] - pixels[..., 1] > 60
            assert red.any(axis=1).sum() > 500 and red.any(axis=0).sum() < 10


@pytest.mark.parametrize(("name", "kind"), [("fig", "PNG"), ("a.b.PNG", "PNG"), ("a.jpg", "JPEG")])
def test_suffix_chooses_the_format(tmp_path: Path, name: str, kind: str) -> None:
    row = FigureRow("a: cat", {"photo": _photo()})
    save_figure(tmp_path / name, [row], ["photo"], [])
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with Image.open(tmp_path / name) as image:
        assert image.format == kind


def test_unknown_format_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.xyz: a figure cannot be xyz; use one of .*png"):
        save_figure(tmp_path / "a.xyz", [FigureRow("a", {"photo": _photo()})], ["photo"], [])
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------- the step


@pytest.fixture
def made(tmp_path: Path) -> Run:
    """Three pictures; `b` has every output, `c` a CAM without classes, `a` nothing."""
    root, result = tmp_path / "voc", tmp_path / "result"
    label = np.zeros(SIZE, np.uint8)
    label[10:30, 10:50] = 3
    for name in "abc":
        (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
        Image.fromarray(_photo()).save(root / "JPEGImages" / f"{name}.jpg")
    write_label(root / "SegmentationClass" / "b.png", label)
    (root / "ids.txt").write_text("a\nb\nc\n")
    cam = np.ones((1, *SIZE), np.float32)
    save_cam(result / "cam" / "b.npz", np.array([2]), cam[:, ::4, ::4], cam)
    save_cam(result / "cam" / "c.npz", np.zeros(0, int), cam[:0, ::4, ::4], cam[:0])
    write_label(result / "ir_label" / "b.png", label)
    write_label(result / "sem_seg" / "b.png", label)
    (result / "edge").mkdir()
    Image.fromarray(np.zeros((10, 15), np.uint8)).save(result / "edge" / "b.png")
    save_instances(result / "ins_seg" / "b.npz", np.ones(1), np.array([2]), label[None] > 0)
    source = DataSource(Devkit(root), ("aeroplane", "bicycle", "bird"), expect_standard=False)
    return finished_run(source, tmp_path, infer_list=str(root / "ids.txt"))


def test_row_has_every_column_whose_file_exists(made: Run) -> None:
    row = make_figure.draw_picture(made, "b")
    assert set(row.cells) == STORED
    assert {cell.shape for cell in row.cells.values()} == {(*SIZE, 3)}
    assert row.caption == "b: bird"
    assert row.labels == {0, 3}
    empty = make_figure.draw_picture(made, "c")
    assert set(empty.cells) == {"photo", "CAM"}
    assert empty.caption == "c"


def test_what_is_older_than_its_cam_is_left_out(made: Run) -> None:
    """As after a picture was replaced: the CAM is new, the rest is of the picture before."""
    cam = made.options.cam_out_dir / "b.npz"
    for folder in (made.options.ins_seg_out_dir, made.options.sem_seg_out_dir):
        old = next(folder.glob("b.*"))
        os.utime(old, ns=(cam.stat().st_mtime_ns - 1,) * 2)
    row = make_figure.draw_picture(made, "b")
    assert set(row.cells) == {"photo", "ground truth", "CAM", "IR label", "edge map"}


def test_outputs_of_another_picture_are_left_out(made: Run) -> None:
    picture = made.source.devkit.root / "JPEGImages" / "b.jpg"
    maps = load_cam(made.options.cam_out_dir / "b.npz")
    save_cam(made.options.cam_out_dir / "b.npz", *maps, picture=zlib.crc32(picture.read_bytes()))
    for kind in ("ir_label", "edge", "sem_seg", "ins_seg"):
        os.utime(next((made.options.result_dir / kind).glob("b.*")))
    assert set(make_figure.draw_picture(made, "b").cells) == STORED
    Image.fromarray(_photo()[:20, :30]).save(picture)
    assert set(make_figure.draw_picture(made, "b").cells) == {"photo", "ground truth"}
    (made.options.cam_out_dir / "b.npz").unlink()
    assert "instances" not in make_figure.draw_picture(made, "b").cells


def test_class_list_that_is_too_short_is_a_sentence(made: Run) -> None:
    made = replace(made, source=replace(made.source, classes=("aeroplane", "bicycle")))
    with pytest.raises(UserError, match=r"b\.npz has class 3 but only 2 classes are named.*--cl"):
        make_figure.draw_picture(made, "b")


@pytest.mark.parametrize("number", ["-1", "0", "many"])
def test_number_of_pictures_is_checked(
    made: Run, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--num", "--figure_num"):
        with pytest.raises(SystemExit) as ended:
            make_figure.main(["--voc12_root", str(made.source.devkit.root), option, number])
        assert ended.value.code == 2
        assert number in capsys.readouterr().err


def test_figure_alone(made: Run, capsys: pytest.CaptureFixture[str]) -> None:
    root, work = str(made.source.devkit.root), str(made.options.result_dir.parent)
    command = ["--voc12_root", root, "--work_dir", work, "--list", made.options.infer_list]
    target = made.options.result_dir / "elsewhere" / "fig"
    assert make_figure.main([*command, "--num", "1", "--output", str(target)]) == 0
    assert "1 of 3 pictures" in capsys.readouterr().out
    assert [path.name for path in target.parent.iterdir()] == ["fig"]
    assert make_figure.main([*command, "--classes", "nowhere.txt"]) == 2
    assert "step.make_figure: nowhere.txt does not exist" in capsys.readouterr().err


def test_step_writes_the_figure(made: Run, capsys: pytest.CaptureFixture[str]) -> None:
    result = make_figure.run(made)
    assert result == {"figure": str(made.options.result_dir / "figure.png")}
    assert "2 of 3 pictures" in capsys.readouterr().out
    with Image.open(result["figure"]) as image:
        assert image.width > 7 * 150


def test_nothing_to_draw_is_said(made: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_figure.run(changed(made, figure_num=0)) == {"figure": None}
    assert "No figure" in capsys.readouterr().out


def test_missing_list_is_explained(made: Run) -> None:
    with pytest.raises(UserError, match=r"nowhere\.txt"):
        make_figure.run(changed(made, infer_list="nowhere.txt"))


def test_pictures_are_spread_over_the_list() -> None:
    names = list("abcdefghi")
    assert make_figure.spread(names, 3) == ["a", "e", "i"]
    assert make_figure.spread(names, 99) == names
    assert make_figure.spread([], 3) == []
    assert make_figure.spread(names, 1) == ["a"]
