"""The sweep: equal to runs of the steps at each setting, by hand, and what it leaves alone."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline import TRAIN_IDS, command_line, copy_of, metrics, output, run, write_list

import run_sample
from misc.files import read_json, sha256_file
from misc.maps_io import save_cam, write_label
from misc.progress import set_log_file
from step import sweep, sweep_report
from step.sweep_report import TUNED

TOLERANCE = 0.05  # points: edge maps are stored with eight bits, the run has walked along floats
OWN = {"beta": 10.0, "exp_times": 3, "threshold": 0.25}
SMALL_GRID = ["--cam_thresholds", "0.15", "0.3", "--bg_thresholds", "0.25", "0.4"]
SMALL_GRID += ["--betas", "10", "4", "--exp_times", "3", "1"]


def swept(root: Path, work_dir: Path, target: Path, *flags: str) -> int:
    """Run the command; returns the exit status."""
    options = ["--voc12_root", root, "--work_dir", work_dir, "--output", target, "--device", "cpu"]
    try:
        return sweep.main([*map(str, options), *SMALL_GRID, *flags])
    finally:
        set_log_file(None)


def content(target: Path) -> dict[str, Any]:
    return read_json(target / "sweep.json")


def row_of(rows: list[dict[str, Any]], **setting: float) -> dict[str, Any]:
    """The one row at a setting."""
    (found,) = [row for row in rows if all(row[name] == value for name, value in setting.items())]
    return found


@pytest.fixture(scope="module")
def made(sample: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one sweep over the finished run, which it leaves as it was."""
    before = {path: sha256_file(path) for path in finished.rglob("*") if path.is_file()}
    target = tmp_path_factory.mktemp("swept") / "sweep"
    assert swept(sample, finished, target) == 0
    after = {path: sha256_file(path) for path in finished.rglob("*") if path.is_file()}
    assert before == after
    return target


# --------------------------------------------------------------------------- equal to the steps


def test_own_settings_give_the_scores_of_the_run(made: Path, finished: Path) -> None:
    found, run_scores = content(made), metrics(finished)
    seed, mask = row_of(found["seed"], threshold=0.15), row_of(found["masks"], **OWN)
    assert seed["miou"] == run_scores["seed_miou"]
    assert mask["miou"] == pytest.approx(run_scores["mask_miou"], abs=TOLERANCE)
    for name, value in run_scores["per_class"]["seed"].items():
        assert seed["per_class"]["iou"][name] == value
    assert found["pictures"] == found["mask_pictures"] == len(TRAIN_IDS)
    assert found["run"] == {
        "beta": 10.0,
        "exp_times": 3,
        "walk_radius": 5,
        "sem_seg_bg_thres": 0.25,
    }


def test_another_setting_gives_the_scores_of_that_run(
    sample: Path, finished: Path, made: Path, tmp_path: Path
) -> None:
    other = copy_of(finished, tmp_path / "work", without=["sem_seg", "edge"])
    settings = {"beta": 4, "exp_times": 1, "sem_seg_bg_thres": 0.4, "cam_eval_thres": 0.3}
    steps = "eval_cam,make_sem_seg_labels,eval_sem_seg"
    assert run_sample.main(command_line(sample, other, "--steps", steps, **settings)) == 0
    set_log_file(None)
    found, expected = content(made), metrics(other)
    assert row_of(found["seed"], threshold=0.3)["miou"] == expected["seed_miou"]
    mask = row_of(found["masks"], beta=4, exp_times=1, threshold=0.4)
    assert mask["miou"] == pytest.approx(expected["mask_miou"], abs=TOLERANCE)
    assert abs(mask["miou"] - row_of(found["masks"], **OWN)["miou"]) > TOLERANCE


def test_every_setting_has_a_row_in_rising_order(made: Path) -> None:
    found = content(made)
    assert [row["threshold"] for row in found["seed"]] == [0.15, 0.3]
    settings = [(row["beta"], row["exp_times"], row["threshold"]) for row in found["masks"]]
    assert settings == [(b, e, t) for b in (4, 10) for e in (1, 3) for t in (0.25, 0.4)]
    best = max(found["masks"], key=lambda row: row["miou"])
    assert found["best"]["mask"] == best


def test_worker_processes_count_the_same(
    sample: Path, finished: Path, made: Path, tmp_path: Path
) -> None:
    assert swept(sample, finished, tmp_path / "out", "--num_workers", "1") == 0
    found, expected = content(tmp_path / "out"), content(made)
    assert all(found[name] == expected[name] for name in ("seed", "masks", "best", "pictures"))


def test_counts_need_no_more_room_for_more_pictures(sample: Path, finished: Path) -> None:
    grid = sweep.Grid((0.15,), (0.25, 0.4), (10.0,), (1, 3), 5)
    files = sweep.Files(sample, finished / "result/cam", finished / "result/edge")
    few, many = (
        sweep.count(ids, grid, files, 20, torch.device("cpu")) for ids in (TRAIN_IDS[:1], TRAIN_IDS)
    )
    assert few.walked == 1 and many.walked == len(TRAIN_IDS)
    for one, other in zip(few.masks.values(), many.masks.values(), strict=True):
        assert one.counts.shape == other.counts.shape == (21, 21, 3)
        assert one.counts.sum() < other.counts.sum()


# --------------------------------------------------------------------------- by hand


def test_scores_by_hand(tmp_path: Path) -> None:
    """A picture of 4 x 8 pixels, a cat on the right half but for one ignored column.

    Without edges two cells mix fully in one step, so the walked map is constant: all cat.
    """
    root, cam_dir = tmp_path / "voc", tmp_path / "result/cam"
    truth = np.tile(np.array([0, 0, 0, 0, 1, 1, 1, 255], np.uint8), (4, 1))
    write_label(root / "SegmentationClass/a.png", truth)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    write_list(root / "ImageSets/Segmentation/mine.txt", ["a"])
    classes = write_list(tmp_path / "classes.txt", ["cat", "dog"])
    cat = np.tile(np.array([0, 0, 0, 0.2, 0.2, 0.5, 0.9, 0.9], np.float32), (1, 4, 1))
    save_cam(cam_dir / "a.npz", np.array([0]), np.array([[[0.2, 0.6]]]), cat)
    (tmp_path / "result/edge").mkdir()
    Image.fromarray(np.zeros((1, 2), np.uint8)).save(tmp_path / "result/edge/a.png")
    flags = ("--list", "mine", "--classes", str(classes))
    assert swept(root, tmp_path, tmp_path / "out", *flags) == 0
    found = content(tmp_path / "out")
    low, high = found["seed"]
    # at 0.15: 12 of the 16 cat pixels are right, 4 background pixels are taken for it
    assert low["per_class"]["precision"] == {
        "background": 100,
        "cat": pytest.approx(75),
        "dog": None,
    }
    assert low["per_class"]["recall"]["background"] == pytest.approx(75)
    assert low["per_class"]["iou"]["cat"] == pytest.approx(75)
    assert low["miou"] == pytest.approx(75)
    # at 0.3: two of the three columns of the cat
    assert (high["precision"], high["recall"]) == (100, pytest.approx(200 / 3))
    for row in found["masks"]:
        assert (row["precision"], row["recall"]) == (pytest.approx(300 / 7), 100)
        assert row["miou"] == pytest.approx(100 * (0 + 3 / 7) / 2)


# --------------------------------------------------------------------------- lists and files


def test_pictures_without_edge_map_count_for_the_seed_alone(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir = copy_of(finished, tmp_path / "work")
    output(work_dir, "edge", TRAIN_IDS[0]).unlink()
    assert swept(sample, work_dir, tmp_path / "out") == 0
    found = content(tmp_path / "out")
    assert (found["pictures"], found["mask_pictures"]) == (len(TRAIN_IDS), len(TRAIN_IDS) - 1)
    shutil.rmtree(work_dir / "result/edge")
    assert swept(sample, work_dir, tmp_path / "seeds") == 0
    seeds = content(tmp_path / "seeds")
    assert seeds["seed"] == found["seed"] and seeds["masks"] == []
    assert seeds["best"]["mask"] is None
    assert "only seeds are scored" in capsys.readouterr().out
    assert (tmp_path / "seeds/sweep.png").is_file()


def test_any_list_can_be_scored(sample: Path, finished: Path, tmp_path: Path) -> None:
    chosen = write_list(tmp_path / "some.txt", [*TRAIN_IDS[2:4], "absent"])
    assert swept(sample, finished, tmp_path / "out", "--list", str(chosen)) == 0
    found = content(tmp_path / "out")
    assert (found["list"], found["pictures"], found["list_pictures"]) == ("some", 2, 3)


def test_default_folder_is_in_the_result_folder(sample: Path, finished: Path, tmp_path: Path):
    work_dir = copy_of(finished, tmp_path / "work")
    command = ["--voc12_root", sample, "--work_dir", work_dir, "--device", "cpu"]
    assert sweep.main([*map(str, command), *SMALL_GRID]) == 0
    set_log_file(None)
    names = {path.name for path in (work_dir / "result/sweep").iterdir()}
    assert names == {"sweep.json", "sweep.png", "sweep.log"}
    assert run(sample, work_dir) == 0  # which still knows all of its outputs


def test_an_earlier_sweep_is_replaced_only_when_asked(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "sweep.png").write_text("mine")
    assert swept(sample, finished, target) == 2
    assert "sweep.png is there already" in capsys.readouterr().err
    assert {path.name for path in target.iterdir()} == {"sweep.png"}
    assert (target / "sweep.png").read_text() == "mine"
    assert swept(sample, finished, target, "--overwrite") == 0
    assert content(target)["pictures"] == len(TRAIN_IDS)


# --------------------------------------------------------------------------- what is told


def test_log_json_and_plot_say_what_is_tuned_on_truth(
    sample: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(sweep_report, "save_curves", lambda *args: drawn.append(args))
    assert swept(sample, finished, tmp_path) == 0
    (_, curves, title, x_label, y_label) = drawn[0]
    found, said = content(tmp_path), capsys.readouterr().out
    assert found["note"] == TUNED and TUNED in " ".join(title.split("\n")) and TUNED in said
    assert TUNED in (tmp_path / "sweep.log").read_text(encoding="utf-8")
    assert "tuned on the true masks" in TUNED
    assert (x_label, y_label) == ("background score", "mIoU (%)")
    assert len(curves) == 1 + 4
    line = curves["mask, beta 4, exp_times 1"]
    expected = [row["miou"] for row in found["masks"][:2]]
    assert (line.x, line.y) == ([0.25, 0.4], expected)
    assert curves["seed"].y == [row["miou"] for row in found["seed"]]
    own = row_of(found["masks"], **OWN)["miou"]
    assert f"sem_seg_bg_thres 0.25; here, along edge maps of 8 bits: mIoU {own:.2f} %" in said
    assert f"{own:7.2f}" in said


def test_the_plot_is_a_picture_with_lines(made: Path) -> None:
    with Image.open(made / "sweep.png") as image:
        assert image.format == "PNG" and min(image.size) > 400
        colours = {tuple(pixel) for pixel in np.asarray(image.convert("RGB")).reshape(-1, 3)}
    assert {(31, 119, 180), (255, 127, 14), (0, 0, 0)} <= colours  # one per beta, and the seed


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--list", "nowhere"], "image list nowhere is neither"),
        (["--list", "none"], "no picture of --list none has both CAM"),
        (["--list", "val"], "name one that has outputs with --list"),
        (["--voc12_root", "nowhere"], "nowhere does not exist; correct --voc12_root"),
        (["--work_dir", "nowhere"], "nowhere/result/cam does not exist; correct --work_dir"),
        (["--classes", "nowhere.txt"], "nowhere.txt does not exist"),
        (["--classes", "{two}"], "is not the class list that"),
        (["--output", "{two}"], "is a file; name a folder"),
        (["--output", "{run}/result/sem_seg"], "holds outputs of a step"),
        (["--device", "tpu"], "--device tpu is not a device"),
        (["--bg_thresholds", "1.5"], "1.5 must lie in 0..1"),
        (["--bg_thresholds", "nan"], "nan must lie in 0..1"),
        (["--cam_thresholds"], "expected at least one argument"),
        (["--cam_thresholds", "x"], "invalid fraction value: 'x'"),
        (["--betas", "0"], "0 must be above 0"),
        (["--exp_times", "17"], "17 is above 16"),
        (["--exp_times", "-1"], "-1 must be at least 0"),
        (["--walk_radius", "65"], "65 is above 64"),
        (["--num_workers", "-1"], "-1 must be at least 0"),
        (["--beta", "10"], "unrecognized arguments: --beta"),
    ],
)
def test_bad_input_is_a_sentence_and_status_2(
    sample: Path,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    told: str,
) -> None:
    two = write_list(tmp_path / "two.txt", ["cat", "dog"])
    flags = [flag.format(two=two, run=finished) for flag in flags]
    try:
        status = swept(sample, finished, tmp_path / "out", *flags)
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    assert status == 2 and told in error and "Traceback" not in error
    assert not (tmp_path / "out/sweep.json").exists()


@pytest.mark.parametrize(
    ("kind", "spoil", "told"),
    [
        ("edge", lambda path: Image.new("L", (3, 2)).save(path), r"has size (2, 3) but the CAMs"),
        ("edge", lambda path: Image.new("RGB", (3, 2)).save(path), "mode RGB"),
        ("edge", lambda path: path.write_bytes(b"x"), "cannot be read as a picture"),
        ("cam", lambda path: path.write_bytes(b"x"), "is not an npz file"),
    ],
)
def test_spoiled_files_are_named(
    sample: Path,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    spoil: Any,
    told: str,
) -> None:
    work_dir = copy_of(finished, tmp_path / "work")
    path = output(work_dir, kind, TRAIN_IDS[1])
    spoil(path)
    assert swept(sample, work_dir, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert str(path) in error and told in error and "Traceback" not in error
