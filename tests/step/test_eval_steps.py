"""The evaluation steps on small data sets whose scores are computed by hand."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pipeline import changed, write_list

from misc.errors import UserError
from misc.maps_io import CamMaps, save_cam, save_instances, write_label
from misc.metrics import ThresholdConfusion
from net.pseudo_labels import cam_to_label
from step import eval_cam, eval_ins_seg, eval_sem_seg
from step.run import Run, finished_run
from voc12.devkit import Devkit
from voc12.source import DataSource

SIZE = (4, 8)
TRUTH = {"p.1": np.array([0] * 4 + [1] * 3 + [255]), "2007_000032": np.array([0] * 6 + [2] * 2)}


def _rows(values: np.ndarray) -> np.ndarray:
    """Repeat one row to a full (4, 8) label map."""
    return np.tile(values.astype(np.uint8), (SIZE[0], 1))


@pytest.fixture
def made(tmp_path: Path) -> Run:
    """Two pictures with masks, three classes of which the last never occurs."""
    root = tmp_path / "voc"
    for name, truth in TRUTH.items():
        write_label(root / "SegmentationClass" / f"{name}.png", _rows(truth))
        objects = np.where(truth == 255, 255, truth > 0)
        write_label(root / "SegmentationObject" / f"{name}.png", _rows(objects))
    (root / "mine.txt").write_text("\n".join(TRUTH) + "\n")
    mine = str(root / "mine.txt")
    folders = {f"{kind}_out_dir": tmp_path / kind for kind in ("cam", "sem_seg", "ins_seg")}
    source = DataSource(Devkit(root), ("cat", "dog", "cow"))
    return finished_run(source, tmp_path, eval_list=mine, infer_list=mine, **folders)


def _write_masks(made: Run) -> None:
    # p.1: one background pixel too many is taken for a cat; the last pixel is ignored anyway.
    predictions = {"p.1": [0, 0, 0, 1, 1, 1, 1, 2], "2007_000032": [0] * 5 + [255, 255, 2]}
    for name, values in predictions.items():
        write_label(made.options.sem_seg_out_dir / f"{name}.png", _rows(np.array(values)))


def test_masks_by_hand(made: Run, capsys: pytest.CaptureFixture[str]) -> None:
    _write_masks(made)
    result = eval_sem_seg.run(made)
    iou = {"background": 9 / 11, "cat": 3 / 4, "dog": 1 / 2}
    for name, value in iou.items():
        assert result["iou"][name] == pytest.approx(100 * value)
    assert result["iou"]["cow"] is None
    assert result["miou"] == pytest.approx(100 * sum(iou.values()) / 3)
    assert result["background_fp"] == pytest.approx(100 / 11)
    assert result["background_fn"] == pytest.approx(100 / 11)
    assert result["foreground_fp"] == pytest.approx(100 * (1 / 4 + 0) / 2)
    assert result["foreground_fn"] == pytest.approx(100 * (0 + 1 / 2) / 2)
    # 4 pixels are taken for a cat, 3 of them are; 1 of the dog's 2 pixels is found.
    assert result["precision"] == pytest.approx(
        {"background": 90, "cat": 75, "dog": 100, "cow": None}
    )
    assert result["recall"] == pytest.approx({"background": 90, "cat": 100, "dog": 50, "cow": None})
    assert result["foreground_precision"] == pytest.approx((75 + 100) / 2)
    assert result["foreground_recall"] == pytest.approx((100 + 50) / 2)
    # Together: of the 5 pixels taken for an animal 4 are the right one, of 5 true ones 4 are found.
    assert result["foreground_pixel_precision"] == pytest.approx(100 * 4 / 5)
    assert result["foreground_pixel_recall"] == pytest.approx(100 * 4 / 5)
    assert (result["list"], result["pictures"], result["list_pictures"]) == ("mine", 2, 2)
    json.dumps(result, allow_nan=False)
    line = capsys.readouterr().out
    assert "mIoU 68.94 %" in line
    assert "on 2 of 2 pictures of list mine" in line
    assert "mine.txt" in line


def _write_cams(made: Run) -> None:
    """Cat map rising to the right in p.1; no class at all in the other picture."""
    cat = np.tile(np.array([0, 0, 0.1, 0.2, 0.3, 0.5, 0.9, 0.9], np.float32), (1, SIZE[0], 1))
    save_cam(made.options.cam_out_dir / "p.1.npz", np.array([0]), cat[:, ::4, ::4], cat)
    none = np.zeros((0, *SIZE), np.float32)
    save_cam(
        made.options.cam_out_dir / "2007_000032.npz", np.zeros(0, int), none[:, ::4, ::4], none
    )


def test_seed_by_hand(made: Run, capsys: pytest.CaptureFixture[str]) -> None:
    _write_cams(made)
    result = eval_cam.run(made)
    assert result["iou"] == {
        "background": pytest.approx(100 * 9 / 12),
        "cat": pytest.approx(100 * 3 / 4),
        "dog": 0,
        "cow": None,
    }
    assert result["threshold"] == 0.15
    assert "background score 0.15" in capsys.readouterr().out
    assert eval_cam.run(changed(made, cam_eval_thres=0.25))["iou"]["cat"] == pytest.approx(100)


def test_cam_labels_are_class_indices_plus_one() -> None:
    maps = np.zeros((2, 1, 4), np.float32)
    maps[0, 0], maps[1, 0] = [0.9, 0.1, 0.15, 0.0], [0.2, 0.3, 0.0, 0.0]
    cams = CamMaps(np.array([4, 11]), maps[:, :, ::4], maps)
    # the third pixel only equals the background score: background
    assert cam_to_label(cams, np.float32(0.15)).tolist() == [[5, 12, 0, 0]]
    truth = np.array([[5, 12, 0, 0]], np.uint8)
    confusion = ThresholdConfusion(13, [0.15])
    eval_cam.count_seed(confusion, cams, truth, Path("x.npz"))
    counts = confusion.matrices()[0].counts
    assert np.diag(counts).tolist() == np.bincount(truth[0], minlength=13).tolist()


def test_sweep_prints_every_threshold_and_the_list(
    made: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _write_cams(made)
    paths = {"--voc12_root": made.source.devkit.root, "--cam_out_dir": made.options.cam_out_dir}
    command = [str(part) for pair in paths.items() for part in pair]
    command += ["--eval_list", made.options.eval_list, "--thresholds", "0.15", "0.25"]
    monkeypatch.setattr(sys, "argv", ["eval_cam", *command])
    eval_cam.main()
    lines = capsys.readouterr().out.splitlines()
    assert "mine.txt" in lines[0]
    # mean of background, cat, dog: (9/12 + 3/4 + 0) / 3 and (10/12 + 1 + 0) / 3
    assert lines[1:] == ["  background score 0.15: 50.00 %", "  background score 0.25: 61.11 %"]


def _write_instances(made: Run) -> None:
    cat = _rows(np.array([0, 0, 0, 1, 1, 1, 1, 0]))[None] > 0  # IoU 3/4
    dog = _rows(np.array([0, 0, 0, 0, 1, 1, 1, 1]))[None] > 0  # IoU 1/2
    wrong = _rows(np.array([1, 1, 0, 0, 0, 0, 0, 0]))[None] > 0
    first = np.concatenate((wrong, cat))
    save_instances(
        made.options.ins_seg_out_dir / "p.1.npz", np.array([0.9, 0.8]), np.array([0, 0]), first
    )
    save_instances(
        made.options.ins_seg_out_dir / "2007_000032.npz", np.array([0.5]), np.array([1]), dog
    )


def test_instances_by_hand(made: Run, capsys: pytest.CaptureFixture[str]) -> None:
    _write_instances(made)
    result = eval_ins_seg.run(made)
    assert result["ap"] == {"cat": pytest.approx(50), "dog": pytest.approx(100), "cow": None}
    assert result["ap50"] == pytest.approx(75)
    assert "on 2 of 2 pictures of list mine" in capsys.readouterr().out


def test_ins_seg_class_outside_the_list_is_explained(made: Run) -> None:
    _write_instances(made)
    one_class = replace(made, source=replace(made.source, classes=("cat",)))
    with pytest.raises(UserError, match=r"2007_000032\.npz.*class list"):
        eval_ins_seg.run(one_class)


WRITERS = {eval_cam: _write_cams, eval_sem_seg: _write_masks, eval_ins_seg: _write_instances}
IDS = [step.__name__.rsplit(".", 1)[1] for step in WRITERS]


@pytest.mark.parametrize("step", WRITERS, ids=IDS)
def test_without_any_prediction_there_is_nothing_to_score(made: Run, step: object) -> None:
    for folder in (
        made.options.cam_out_dir,
        made.options.sem_seg_out_dir,
        made.options.ins_seg_out_dir,
    ):
        folder.mkdir(exist_ok=True)
    with pytest.raises(UserError, match=r"has nothing to score: .*mine\.txt.*run make_"):
        step.run(made)


@pytest.mark.parametrize("step", WRITERS, ids=IDS)
def test_pictures_without_mask_are_left_out_and_counted(
    made: Run, capsys: pytest.CaptureFixture[str], step: object
) -> None:
    WRITERS[step](made)
    (made.source.devkit.root / "SegmentationClass" / "2007_000032.png").unlink()
    result = step.run(made)
    assert (result["pictures"], result["list_pictures"]) == (1, 2)
    assert "on 1 of 2 pictures of list mine" in capsys.readouterr().out
    # Of p.1 alone: no true dog is left.
    assert not result.get("iou", result.get("ap"))["dog"]


@pytest.mark.parametrize("step", WRITERS, ids=IDS)
def test_the_inference_list_is_scored_where_the_evaluation_list_has_nothing(
    made: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], step: object
) -> None:
    WRITERS[step](made)
    expected = step.run(made)
    other = write_list(tmp_path / "other.txt", ["absent"])
    capsys.readouterr()
    assert step.run(changed(made, eval_list=str(other))) == expected
    told = capsys.readouterr().out
    assert "list other (1 pictures" in told
    assert "scored is list mine" in told
    assert "on 2 of 2 pictures of list mine" in told


@pytest.mark.parametrize("step", WRITERS, ids=IDS)
def test_mask_of_another_size_is_named(made: Run, step: object) -> None:
    WRITERS[step](made)
    for folder in ("SegmentationClass", "SegmentationObject"):
        write_label(made.source.devkit.root / folder / "p.1.png", np.ones((2, 2), np.uint8))
    with pytest.raises(UserError, match=r"p\.1\.(npz|png): .*\(2, 2\)"):
        step.run(made)


def test_label_outside_the_class_list_is_named(made: Run) -> None:
    _write_masks(made)
    Image.fromarray(np.full(SIZE, 9, np.uint8)).save(made.options.sem_seg_out_dir / "p.1.png")
    with pytest.raises(UserError, match=r"p\.1\.png: the prediction has label 9, outside 0\.\.3"):
        eval_sem_seg.run(made)
