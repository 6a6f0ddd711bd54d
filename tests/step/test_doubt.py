"""How doubtful the mask of a picture is, on pictures whose parts are counted by hand."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from misc.errors import UserError
from misc.maps_io import save_cam, write_label
from step.page import doubt
from step.page.doubt import CAM, EDGE, IR_LABEL, MASK, TRUTH, Doubt, Task

SIZE = (10, 20)


def label(*columns: tuple[int, int, int]) -> np.ndarray:
    """A label map with values in ranges of columns, each (value, first, end)."""
    values = np.zeros(SIZE, np.uint8)
    for value, first, end in columns:
        values[:, first:end] = value
    return values


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """Twenty columns: the CAM says columns 0 to 9, the mask 5 to 14, the truth 5 to 18."""
    Image.new("RGB", SIZE[::-1], "gray").save(tmp_path / "photo.png")
    cam = np.zeros((1, *SIZE), np.float32)
    cam[0, :, :10] = 0.5
    cam[0, :, 10:] = 0.125  # below the background score
    save_cam(tmp_path / "cam.npz", np.array([2]), cam[:, ::4, ::4], cam)
    write_label(tmp_path / "mask.png", label((3, 5, 15)))
    write_label(tmp_path / "truth.png", label((3, 5, 19), (255, 19, 20)))
    write_label(tmp_path / "ir.png", label((3, 0, 4), (255, 4, 10)))
    Image.fromarray(np.zeros((3, 5), np.uint8)).save(tmp_path / "edge.png")
    names = {CAM: "cam.npz", MASK: "mask.png", TRUTH: "truth.png", IR_LABEL: "ir.png"}
    files = {title: tmp_path / name for title, name in {**names, EDGE: "edge.png"}.items()}
    return Task("a", tmp_path / "photo.png", files, 0.15)


def test_parts_and_their_mean(task: Task) -> None:
    item = doubt.draw(task)
    unsure, disagreement, odd = 6 / 20, 1 - 5 / 15, 0
    mean = (unsure + disagreement + odd) / 3
    assert item.measures == pytest.approx((mean, unsure, disagreement, 10 / 20, 1 - 10 / 14))
    assert (item.name, item.classes, item.remarks, item.size) == ("a", [2], (), SIZE)
    assert set(item.layers) == {CAM, EDGE, MASK, TRUTH, IR_LABEL}
    assert [title for title, layer in item.layers.items() if layer.gray] == [CAM]


def test_the_background_score_of_the_seed_counts(task: Task) -> None:
    item = doubt.draw(task._replace(threshold=0.1))
    assert item.measures[2] == pytest.approx(1 - 10 / 20)  # now the CAM is everywhere


def test_the_truth_has_no_part_in_doubt(task: Task) -> None:
    with_truth = doubt.draw(task)
    del task.files[TRUTH]
    without = doubt.draw(task)
    assert without.measures == (*with_truth.measures[:4], None)


def test_pictures_outside_the_training_list_have_fewer_parts(task: Task) -> None:
    del task.files[IR_LABEL]
    item = doubt.draw(task)
    assert item.measures[:2] == (pytest.approx((1 - 5 / 15 + 0) / 2), None)
    for title in (CAM, MASK):
        del task.files[title]
    item = doubt.draw(task)
    assert item.measures == (None,) * 5
    assert item.classes == [2]  # as the truth says
    assert doubt.draw(task._replace(files={})).classes == []


@pytest.mark.parametrize(
    ("columns", "remarks"),
    [
        ([(3, 0, 20)], ("full frame",)),
        ([(3, 0, 19)], ()),  # 95 % is not more than 95 %
        ([], ("tiny mask",)),
    ],
)
def test_odd_sizes_raise_doubt(task: Task, columns: list, remarks: tuple[str, ...]) -> None:
    write_label(task.files[MASK], label(*columns))
    item = doubt.draw(task)
    assert item.remarks == remarks
    odd = 3 * item.measures[0] - item.measures[1] - item.measures[2]
    assert odd == pytest.approx(len(remarks))


def test_pictures_without_class_may_have_an_empty_mask(task: Task) -> None:
    none = np.zeros((0, *SIZE), np.float32)
    save_cam(task.files[CAM], np.zeros(0, int), none[:, ::4, ::4], none)
    write_label(task.files[MASK], label())
    write_label(task.files[IR_LABEL], label())
    assert doubt.draw(task).remarks == ()
    assert doubt.draw(task).measures[0] == 0


@pytest.mark.parametrize(
    ("share", "has_class", "words"),
    [
        (0.0099, True, "tiny mask"),
        (0.01, True, None),
        (0, False, None),
        (0.951, False, "full frame"),
    ],
)
def test_what_is_odd(share: float, has_class: bool, words: str | None) -> None:
    assert doubt.odd_size(share, has_class) == words


def test_nothing_known_is_no_doubt() -> None:
    assert Doubt(None, None, None).total() is None
    assert Doubt(None, 0.5, 1.0).total() == 0.75


def test_a_mask_of_another_size_is_shown_but_not_compared(task: Task) -> None:
    write_label(task.files[MASK], np.ones((4, 4), np.uint8))
    item = doubt.draw(task)
    assert MASK in item.layers and item.measures[2] is None is item.measures[4]


def test_files_that_cannot_be_read_are_named(task: Task) -> None:
    task.files[MASK].write_text("no picture")
    with pytest.raises(UserError, match=r"mask\.png cannot be read as a picture"):
        doubt.draw(task)


@pytest.mark.parametrize("module", ["step.page.doubt", "deeplab.page"])
def test_workers_start_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
    )
