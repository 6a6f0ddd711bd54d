"""MaxBoxAccV2 and PxAP: values computed by hand, closed forms, and what test_cam.py makes of them.

Maps have the size of their picture, so that enlarging them changes nothing.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from wsol_runs import (
    CLASSES,
    SIDE,
    SMALL,
    TEST_PER_CLASS,
    config_of,
    epoch_lines,
    pairs,
    results,
    run_tool,
)

from misc.errors import UserError
from misc.files import read_json
from wsol import box_accuracy, evaluation, pixel_precision, testing
from wsol.box_accuracy import LEVELS, MaxBoxAccuracy, best_overlaps, contour_boxes
from wsol.config import Paths
from wsol.folders import scan_folders
from wsol.localization import iou
from wsol.masks import mask_path, require_usable, square_mask
from wsol.model import Localisation
from wsol.pictures import Picture
from wsol.pixel_precision import PixelAveragePrecision
from wsol.source import open_pictures
from wsol.tools_cam import test_cam

test_cam.__test__ = False
TEST_COUNT = CLASSES * TEST_PER_CLASS


def filled(size: int, *regions: tuple[slice, slice, float]) -> np.ndarray:
    """A square map of zeros with values in some rows and columns."""
    cam = np.zeros((size, size), np.float32)
    for rows, columns, value in regions:
        cam[rows, columns] = value
    return cam


# --------------------------------------------------------------------------- boxes of contours


def test_overlap_of_two_boxes_by_hand() -> None:
    """5 x 5 and 2 x 5 pixels share 2 x 4 of them."""
    assert iou(np.array([1, 2, 5, 6]), np.array([3, 1, 4, 5])) == pytest.approx(8 / 27)


def test_every_contour_has_a_box_that_ends_behind_it_but_in_the_picture() -> None:
    mask = filled(12, (slice(2, 5), slice(2, 5), 1), (slice(6, 10), slice(7, 12), 1)) > 0
    found = contour_boxes(mask)
    assert sorted(found.tolist()) == [[2, 2, 5, 5], [7, 6, 11, 10]]
    assert contour_boxes(np.zeros((3, 4), bool)).tolist() == [[0, 0, 0, 0]]
    assert contour_boxes(np.ones((3, 4), bool)).tolist() == [[0, 0, 3, 2]]


def test_a_hole_has_a_contour_too() -> None:
    """The contour of a hole runs on the pixels around it."""
    mask = filled(9, (slice(0, 8), slice(0, 8), 1)) > 0
    mask[3:5, 3:6] = False
    assert sorted(contour_boxes(mask).tolist()) == [[0, 0, 8, 8], [2, 2, 7, 6]]


def test_boxes_are_those_of_the_connected_regions() -> None:
    """Against scipy: one box a region, diagonals connect, and one more for every hole."""
    rng = np.random.default_rng(0)
    for share in (0.2, 0.4, 0.6):
        mask = rng.random((20, 24)) < share
        labels, _ = ndimage.label(mask, np.ones((3, 3)))
        regions = [
            [columns.start, rows.start, min(columns.stop, 23), min(rows.stop, 19)]
            for rows, columns in ndimage.find_objects(labels)
        ]
        outside = np.pad(~mask, 1, constant_values=True)
        holes = ndimage.label(outside)[1] - 1
        boxes = contour_boxes(mask).tolist()
        assert len(boxes) == len(regions) + holes
        for region in regions:
            boxes.remove(region)


def test_overlaps_at_every_level_by_hand() -> None:
    """The smaller region counts, although the other one is larger."""
    heat = np.zeros((12, 12), np.uint8)
    heat[2:5, 2:5], heat[6:10, 6:12] = 100, 255
    best = best_overlaps(heat, np.array([[2, 2, 5, 5]]))
    assert best.shape == (LEVELS,)
    assert (best[:100] == 1).all() and (best[100:] == 0).all()
    both = best_overlaps(heat, np.array([[2, 2, 5, 5], [6, 6, 11, 10]]))
    assert (both == 1).all()


def test_levels_are_those_of_the_published_grid() -> None:
    """Thresholds 0, 0.001, .. 0.999 of a heat map whose maximum is 255."""
    assert {int(t * 255) for t in np.arange(0, 1, 0.001)} == set(range(LEVELS))


@pytest.mark.parametrize("value", [0.0, 3.5, np.nan])
@pytest.mark.filterwarnings("error")
def test_a_map_without_contrast_has_no_box(value: float) -> None:
    scores = MaxBoxAccuracy()
    scores.update(np.full((9, 9), value), np.array([0, 0, 8, 8]), 9)
    assert (scores.compute().accuracy == 0).all()


# --------------------------------------------------------------------------- MaxBoxAccV2


WHOLE, CORE, WIDE = [0, 0, 10, 10], [2, 2, 6, 6], [0, 0, 9, 6]


def counted(truths: Sequence[Sequence[int]]) -> MaxBoxAccuracy:
    """A map of a core within a half as strong square, once per true box.

    Cut below level 127 it gives WHOLE (121 pixels), above CORE (25 pixels). They overlap with IoU
    25 / 121 = 0.21, WIDE (70 pixels) with WHOLE by 70 / 121 = 0.58, with CORE by 25 / 70 = 0.36.
    """
    cam = filled(12, (slice(0, 10), slice(0, 10), 0.5), (slice(2, 6), slice(2, 6), 1))
    scores = MaxBoxAccuracy()
    for truth in truths:
        scores.update(cam, np.array(truth), 12)
    return scores


def test_best_threshold_of_each_overlap_by_hand() -> None:
    result = counted([WHOLE, CORE, CORE, WIDE]).compute()
    assert result.boxed == 4
    # low levels: WHOLE and, up to an IoU of 0.5, WIDE; high ones: both COREs and, at 0.3, WIDE
    assert result.at(0.1).tolist() == [50, 50, 25]
    assert result.at(0.9).tolist() == [75, 50, 50]
    assert result.best.tolist() == [75, 50, 50]
    assert result.mean == pytest.approx(175 / 3)
    assert result.best_thresholds.tolist() == [127 / 255, 0, 127 / 255]


def test_an_overlap_that_is_just_reached_counts() -> None:
    """CORE has 25 pixels, 50 of the true box contain it: an IoU of 0.5 itself."""
    assert counted([[2, 2, 6, 11]]).compute().at(0.9).tolist() == [100, 100, 0]


def test_several_true_boxes_count_by_the_best() -> None:
    scores = MaxBoxAccuracy()
    scores.update(filled(12, (slice(2, 6), slice(2, 6), 1)), np.array([WHOLE, CORE]), 12)
    assert scores.compute().mean == 100


def test_without_boxes_nothing_is_scored() -> None:
    result = MaxBoxAccuracy().compute()
    assert result.boxed == 0 and np.isnan(result.mean)


def test_box_counts_of_several_processes_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = counted([WHOLE, CORE]), counted([CORE, WIDE])
    others = iter([torch.from_numpy(counts) for counts in (second._boxed, second._hits)])
    monkeypatch.setattr(box_accuracy, "all_reduce_sum", lambda tensor: tensor + next(others))
    first.reduce()
    whole = counted([WHOLE, CORE, CORE, WIDE]).compute()
    assert first.compute().boxed == 4
    assert first.compute().accuracy.tolist() == whole.accuracy.tolist()


# --------------------------------------------------------------------------- PxAP


def precision_of(*pictures: tuple[list[float], list[int]]) -> PixelAveragePrecision:
    """Square pictures, given as scores and mask, row by row."""
    pixels = PixelAveragePrecision()
    for scores, mask in pictures:
        side = int(len(mask) ** 0.5)
        cam, truth = np.array(scores, np.float32), np.array(mask, np.uint8)
        pixels.update(cam.reshape(side, side), truth.reshape(side, side))
    return pixels


def test_a_perfect_map_has_precision_one() -> None:
    mask = [0, 1, 1, 0, 0, 1, 0, 0, 0]
    assert precision_of(([0.3 + 5 * value for value in mask], mask)).compute() == 1


@pytest.mark.parametrize("value", [0.0, 0.4, 7.0])
def test_a_constant_map_has_the_share_of_the_object(value: float) -> None:
    assert precision_of(([value] * 4, [0, 1, 0, 0])).compute() == pytest.approx(1 / 4)


def test_average_precision_by_hand() -> None:
    """By falling score: hit, miss, hit, miss; half of the recall at 1, half at 2 / 3."""
    found = precision_of(([1.0, 0.6, 0.3, 0.0], [1, 0, 1, 0]))
    assert found.compute() == pytest.approx((1 + 2 / 3) / 2)
    worst = precision_of(([0.0, 0.6, 0.9, 1.0], [1, 0, 0, 0]))
    assert worst.compute() == pytest.approx(1 / 4)


def test_ignored_pixels_do_not_count_but_for_the_range_of_the_map() -> None:
    scores, mask = [1.0, 0.6, 0.3, 0.0], [1, 0, 1, 0]
    more = [*scores, 0.9, 0.8, 0.2, 1.0, 0.0]
    ignored = precision_of((more, mask + [255] * 5))
    assert ignored.compute() == pytest.approx((1 + 2 / 3) / 2)


def test_pixels_of_all_pictures_are_pooled_by_hand() -> None:
    """Scores of objects 1, 0.5 and of background 0, 0 and 1, 0, 0, 0 -- pooled, not averaged.

    At 1: one of two is right, half of the recall; at 0.5: two of three, the other half.
    """
    first, second = ([1.0, 0.5, 0.0, 0.0], [1, 1, 0, 0]), ([1.0, 0.0, 0.0, 0.0], [0, 0, 0, 0])
    found = precision_of(first, second)
    assert found.masked == 2
    assert found.compute() == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_without_an_object_there_is_no_precision() -> None:
    assert np.isnan(precision_of(([0.0, 1.0, 0.0, 0.5], [0, 0, 0, 255])).compute())


def test_pixel_counts_of_several_processes_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = ([1.0, 0.5, 0.0, 0.0], [1, 1, 0, 0]), ([1.0, 0.0, 0.0, 0.0], [0, 0, 0, 0])
    first, second = (precision_of(picture) for picture in pictures)
    others = iter([torch.from_numpy(counts) for counts in (second._masked, second._counts)])
    monkeypatch.setattr(pixel_precision, "all_reduce_sum", lambda tensor: tensor + next(others))
    first.reduce()
    assert (first.masked, first.compute()) == (2, precision_of(*pictures).compute())


def test_counts_need_no_more_room_for_more_pictures() -> None:
    few, many = counted([CORE]), counted([CORE] * 20)
    assert few._hits.shape == many._hits.shape and many.compute().boxed == 20


# --------------------------------------------------------------------------- true masks


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two classes of one test picture each, 4 x 2 pixels, and one training picture."""
    root = tmp_path / "own"
    for name in ("train/a/1.jpg", "test/a/1.jpg", "train/b/2.jpg", "test/b/2.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 2), "red").save(root / name)
    return root


def write_mask(root: Path, name: str, values: object, mode: str = "L") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)).convert(mode).save(path)
    return path


def test_masks_of_folders_are_label_maps(folders: Path, tmp_path: Path) -> None:
    config = config_of(folders, tmp_path, DATA__DATASET="FOLDER", DATA__CROP_SIZE=4)
    path = write_mask(folders, "masks/test/a/1.png", [[0, 1, 7, 255], [0, 0, 0, 0]])
    first, second = scan_folders(folders)[0].test
    assert (mask_path(config, first), mask_path(config, second)) == (path, None)
    rows = [[0, 1, 1, 255], [0, 0, 0, 0]]
    assert square_mask(config, first).tolist() == [rows[0], rows[0], rows[1], rows[1]]
    assert square_mask(config, second) is None
    require_usable(config, [first, second])


def test_masks_of_cub_are_what_half_of_the_annotators_saw(tmp_path: Path) -> None:
    picture = Picture(tmp_path / "images/x/1.jpg", 0, None, "x/1.jpg")
    config = config_of(tmp_path, tmp_path, DATA__CROP_SIZE=4)
    for mode in ("L", "LA", "RGB", "P"):
        write_mask(
            tmp_path, "segmentations/x/1.png", [[0, 51, 102, 127], [128, 153, 204, 255]], mode
        )
        rows = [[0, 0, 0, 0], [1, 1, 1, 1]]
        assert square_mask(config, picture).tolist() == [rows[0], rows[0], rows[1], rows[1]]


@pytest.mark.parametrize(
    ("values", "mode", "told"),
    [
        ([[0, 1]], "L", r"mask of another size.*masks/test/a/1\.png is 2x1, its picture 4x2"),
        ([[0, 255, 0, 0], [0] * 4], "L", r"1\.png has no object: 255 means not scored; write 1"),
        ([[0, 1, 0, 0], [0] * 4], "RGB", r"1\.png is a picture of mode RGB"),
    ],
)
def test_unusable_masks_are_listed(
    folders: Path, tmp_path: Path, values: list[list[int]], mode: str, told: str
) -> None:
    config = config_of(folders, tmp_path, DATA__DATASET="FOLDER")
    write_mask(folders, "masks/test/a/1.png", values, mode)
    broken = folders / "masks/test/b/2.png"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"x")
    with pytest.raises(UserError, match=f"(?s)2 problems.*{told}") as caught:
        require_usable(config, scan_folders(folders)[0].test)
    assert str(broken) in str(caught.value)


def test_the_folder_of_masks_is_no_class(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/1.jpg"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (4, 2)).save(tmp_path / name)
    write_mask(tmp_path, "masks/a/1.png", [[0, 1, 0, 0], [0] * 4])
    image_set, problems = scan_folders(tmp_path)
    assert (image_set.class_names, problems) == (("a", "b"), [])
    Image.new("RGB", (4, 2)).save(tmp_path / "masks/1.jpg")
    assert scan_folders(tmp_path)[0].class_names == ("a", "b", "masks")


# --------------------------------------------------------------------------- test_cam.py


def evaluated(data: Path, folder: Path, **values: Any) -> dict[str, Any]:
    """What test_cam.py writes."""
    options = ["--config_file", str(SMALL), "--device", "cpu", *pairs(data, folder, **values)]
    assert run_tool(test_cam, options) == 0
    return read_json(Paths(folder).evaluation("test"))


def test_both_scores_stand_beside_the_others(
    birds: Path, trained_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, said = evaluated(birds, trained_copy), capsys.readouterr().out
    box, pixels = found["max_box_acc_v2"], found["pxap"]
    parts = [part["percent"] for part in box["by_iou"]]
    assert box["percent"] == pytest.approx(sum(parts) / 3)
    assert [part["iou"] for part in box["by_iou"]] == [0.3, 0.5, 0.7]
    assert parts == sorted(parts, reverse=True)
    for row in found["thresholds"]:
        at = [row[f"box_acc_{percent}"] for percent in (30, 50, 70)]
        assert all(one <= best for one, best in zip(at, parts, strict=True))
    assert pixels["pictures"] == TEST_COUNT and 0 < pixels["percent"] < 100
    assert f"MaxBoxAccV2 {box['percent']:.1f} (IoU 0.3: {parts[0]:.1f} at" in said
    assert "best thresholds on the boxes that are scored" in said
    assert f"PxAP {pixels['percent']:.1f} on {TEST_COUNT} of {TEST_COUNT} pictures" in said
    assert "Box@.3" in said and "tuned on test boxes" in said


def test_true_masks_as_maps_score_perfectly(
    birds: Path, trained_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(birds, trained_copy)
    masks = iter([square_mask(config, picture) for picture in open_pictures(config).test])

    def perfect(_: object, images: torch.Tensor, labels: torch.Tensor, __: str) -> Localisation:
        cams = torch.from_numpy(np.stack([next(masks) for _ in images])).float()
        assert cams.shape[1:] == (SIDE, SIDE)
        return Localisation(torch.eye(CLASSES)[labels], cams)

    monkeypatch.setattr(evaluation, "localise", perfect)
    found = evaluated(birds, trained_copy)
    assert (found["pxap"]["percent"], found["max_box_acc_v2"]["percent"]) == (100, 100)


def test_without_masks_or_boxes_the_scores_are_left_out(
    birds: Path, trained_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "CUB"
    shutil.copytree(birds, plain, ignore=shutil.ignore_patterns("segmentations"))
    found = evaluated(plain, trained_copy)
    assert found["pxap"] is None and found["max_box_acc_v2"]["percent"] >= 0
    assert "PxAP" not in capsys.readouterr().out
    own = tmp_path / "own"
    for split in ("train", "test"):
        shutil.copytree(birds / "images", own / split)
    found = evaluated(own, trained_copy, DATA__DATASET="FOLDER")
    assert found["pxap"] is None and found["max_box_acc_v2"] is None


def test_a_bad_mask_is_told_before_anything_is_evaluated(
    birds: Path,
    trained_copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoiled = Path(shutil.copytree(birds, tmp_path / "CUB"))
    picture = open_pictures(config_of(spoiled, trained_copy)).test[0]
    mask = (spoiled / "segmentations" / picture.name).with_suffix(".png")
    Image.new("L", (3, 3)).save(mask)
    monkeypatch.setattr(testing, "evaluate", None)  # would fail if called
    options = ["--config_file", str(SMALL), "--device", "cpu", *pairs(spoiled, trained_copy)]
    assert run_tool(test_cam, options) == 2
    error = capsys.readouterr().err
    assert "mask of another size" in error and str(mask) in error and "Traceback" not in error


def test_training_scores_what_it_scored_before(trained: Path) -> None:
    for row in (*epoch_lines(trained), *results(trained)["history"]):
        assert {"loc_top1", "gt_known"} <= set(row)
        assert not [name for name in row if "box_acc" in name or "pxap" in name]
