"""Importing again, out and in again, and the steps that go on from imported CAMs."""

import os
import shutil
from pathlib import Path

import numpy as np
import other_methods
import pytest
import torch
from other_methods import (
    FLOAT16,
    PICTURES,
    assert_maps,
    build_devkit,
    cam,
    exported,
    imported,
    save_all,
    save_npy,
    scores,
)
from PIL import Image
from pipeline import TRAIN_IDS, copy_of, hashes, log_of, metrics, run

from misc.files import read_json
from misc.maps_io import load_cam

FIRST, SECOND = PICTURES


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A devkit with the two pictures of `other_methods`; read only."""
    return build_devkit(tmp_path_factory.mktemp("seeds") / "VOC2012")


# ----------------------------------------------------------------------------- again, and changed


def times_of(work: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (work / "result/cam").glob("*.npz")}


def test_only_what_changed_is_imported_again(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    maps = save_all(tmp_path / "src", other_methods.irn)
    assert imported(devkit, tmp_path / "src", tmp_path) == 0
    before, record = times_of(tmp_path), read_json(tmp_path / "result/cam/made_by.json")
    for path in (tmp_path / "src").iterdir():
        os.utime(path)  # a copy has another time and the same content
    assert imported(devkit, tmp_path / "src", tmp_path) == 0
    assert times_of(tmp_path) == before
    again = read_json(tmp_path / "result/cam/made_by.json")
    assert again["fingerprint"] == record["fingerprint"]

    other = scores(SECOND, 1, seed=5)
    path = save_npy(tmp_path / "src", SECOND, other_methods.irn(SECOND, other))
    os.utime(path, ns=(1, 1))  # older than what was imported
    capsys.readouterr()
    assert imported(devkit, tmp_path / "src", tmp_path) == 0
    assert "1 pictures have other maps since they were imported" in capsys.readouterr().out
    after = times_of(tmp_path)
    assert after[f"{FIRST}.npz"] == before[f"{FIRST}.npz"]
    assert_maps(tmp_path, {FIRST: maps[FIRST], SECOND: other})
    changed = read_json(tmp_path / "result/cam/made_by.json")
    assert changed["fingerprint"] != record["fingerprint"]

    cam(tmp_path, FIRST).unlink()  # as if the import had been killed before it
    path.unlink()  # and what is imported needs its source no more
    assert imported(devkit, tmp_path / "src", tmp_path) == 0
    assert_maps(tmp_path, {FIRST: maps[FIRST], SECOND: other})
    kept = read_json(tmp_path / "result/cam/made_by.json")
    assert kept["fingerprint"] == changed["fingerprint"]


def test_another_method_does_not_replace_the_first(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    maps = save_all(tmp_path / "src", other_methods.irn)
    assert imported(devkit, tmp_path / "src", tmp_path) == 0
    other = {image_id: one[:, ::-1].copy() for image_id, one in maps.items()}
    for image_id, one in other.items():
        save_npy(tmp_path / "other", image_id, other_methods.psa(image_id, one))
    for source, options, told in (
        ("other", (), "input source is"),
        ("src", ("--normalise", "none"), "normalise is none now and was max"),
    ):
        assert imported(devkit, tmp_path / source, tmp_path, *options) == 2
        error = capsys.readouterr().err
        assert told in error and "Redo it with --overwrite" in error
        assert_maps(tmp_path, maps)
    assert imported(devkit, tmp_path / "other", tmp_path, "--overwrite") == 0
    assert_maps(tmp_path, other)


def test_a_changed_picture_or_label_is_imported_again(tmp_path: Path) -> None:
    root = build_devkit(tmp_path / "voc")
    everything = np.stack([scores(FIRST, 1, seed)[0] for seed in range(20)])
    save_npy(tmp_path / "src", FIRST, everything)
    assert imported(root, tmp_path / "src", tmp_path) == 0
    (root / f"Annotations/{FIRST}.xml").write_text(
        "<annotation><object><name>bird</name></object></annotation>"
    )
    assert imported(root, tmp_path / "src", tmp_path) == 0
    found = load_cam(cam(tmp_path, FIRST))
    assert found.keys.tolist() == [2]
    np.testing.assert_allclose(found.high_res[0], everything[2], atol=FLOAT16)
    Image.new("RGB", (60, 40)).save(root / f"JPEGImages/{FIRST}.jpg")
    assert imported(root, tmp_path / "src", tmp_path) == 0
    assert load_cam(cam(tmp_path, FIRST)).high_res.shape == (1, 40, 60)


def test_files_of_unknown_origin_are_left_alone(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_all(tmp_path / "src", other_methods.psa)
    mine = cam(tmp_path, FIRST)
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    for options in ((), ("--overwrite",)):
        assert imported(devkit, tmp_path / "src", tmp_path, *options) == 2
        assert mine.read_text() == "mine"
        assert "no record of what made" in capsys.readouterr().err


# --------------------------------------------------------------------------------- out and in again


@pytest.mark.parametrize("kind", ["irn", "npz", "png"])
def test_maps_of_a_run_go_out_and_come_back(
    sample: Path, finished: Path, tmp_path: Path, kind: str
) -> None:
    assert exported(finished, tmp_path / "out", "--format", kind) == 0
    assert imported(sample, tmp_path / "out", tmp_path, "--normalise", "none") == 0
    for image_id in TRAIN_IDS:
        before, after = load_cam(cam(finished, image_id)), load_cam(cam(tmp_path, image_id))
        assert before.keys.tolist() == after.keys.tolist()
        if kind == "png":
            np.testing.assert_allclose(after.high_res, before.high_res, atol=0.5 / 255 + FLOAT16)
        else:
            np.testing.assert_array_equal(after.cam, before.cam)
            np.testing.assert_array_equal(after.high_res, before.high_res)


def test_what_is_written_for_irn_is_what_irn_reads(finished: Path, tmp_path: Path) -> None:
    assert exported(finished, tmp_path / "out") == 0
    loaded = np.load(tmp_path / "out" / f"{TRAIN_IDS[0]}.npy", allow_pickle=True).item()
    expected = load_cam(cam(finished, TRAIN_IDS[0]))
    assert isinstance(loaded["keys"], torch.Tensor) and isinstance(loaded["cam"], torch.Tensor)
    np.testing.assert_array_equal(loaded["keys"].numpy(), expected.keys)
    np.testing.assert_array_equal(loaded["cam"].numpy(), expected.cam)
    np.testing.assert_array_equal(loaded["high_res"], expected.high_res)


def test_export_keeps_what_is_there_and_what_is_not_its_own(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    work, out = copy_of(finished, tmp_path / "work"), tmp_path / "out"
    assert exported(work, out) == 0
    first = {path: path.stat().st_mtime_ns for path in out.glob("*.npy")}
    assert len(first) == len(TRAIN_IDS)
    assert exported(work, out) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.npy")} == first
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / f"{TRAIN_IDS[0]}.npy").write_text("mine")
    capsys.readouterr()
    for target, told in (
        (tmp_path / "mine", "no record of what made them"),
        (work / "result/cam/deeper", "choose another folder"),
    ):
        assert exported(work, target) == 2
        assert told in capsys.readouterr().err
    assert exported(tmp_path / "nowhere", out) == 2
    assert "holds no CAM" in capsys.readouterr().err


# ----------------------------------------------------------------------------- the steps after it


def test_the_steps_go_on_from_imported_maps(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The finished run's own CAMs, exported and imported, give its labels, network and masks."""
    work = tmp_path / "work"
    assert exported(finished, tmp_path / "out") == 0
    assert imported(sample, tmp_path / "out", work, "--normalise", "none") == 0
    assert run(sample, work, "--from_step", "eval_cam") == 0
    assert hashes(work, "ir_label", "sem_seg") == hashes(finished, "ir_label", "sem_seg")
    assert metrics(work)["seed_miou"] == metrics(finished)["seed_miou"]
    assert metrics(work)["mask_miou"] == metrics(finished)["mask_miou"]
    assert "--force" not in log_of(work)
    assert "MODEL.INIT_MODEL=none" in log_of(work)  # there are no weights of a CNN

    # make_cam does not mix its own into that folder
    for path in (finished / "sess").glob("*_cam.pth*"):
        shutil.copy(path, work / "sess")
    before = hashes(work, "cam")
    for flags in ((), ("--overwrite",)):
        assert run(sample, work, "--steps", "make_cam", *flags) == 2
        assert "import_cams" in capsys.readouterr().err
        assert hashes(work, "cam") == before

    # other classes would be mixed up
    classes = tmp_path / "classes.txt"
    names = read_json(work / "result/cam/made_by.json")["arguments"]["class_names"]
    classes.write_text("\n".join([*names[1:], names[0]]))
    assert run(sample, work, "--steps", "eval_cam", classes=classes) == 2
    assert "class_names is" in capsys.readouterr().err

    # a changed source makes what came from it out of date
    path = tmp_path / "out" / f"{TRAIN_IDS[0]}.npy"
    content = np.load(path, allow_pickle=True).item()
    content["high_res"] = content["high_res"][:, ::-1].copy()
    np.save(path, content, allow_pickle=True)
    assert imported(sample, tmp_path / "out", work, "--normalise", "none") == 0
    assert run(sample, work, "--steps", "eval_cam") == 0
    capsys.readouterr()
    for step in ("cam_to_ir_label", "make_sem_seg_labels", "eval_sem_seg"):
        assert run(sample, work, "--steps", step) == 2
        assert "input cam is" in capsys.readouterr().err
    assert run(sample, work, "--from_step", "cam_to_ir_label", "--overwrite") == 0


def test_missing_maps_are_asked_of_the_import(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert exported(finished, tmp_path / "out") == 0
    (tmp_path / "out" / f"{TRAIN_IDS[1]}.npy").unlink()
    assert imported(sample, tmp_path / "out", tmp_path) == 0
    assert run(sample, tmp_path, "--steps", "cam_to_ir_label") == 2
    assert f"{TRAIN_IDS[1]}.npz; run step import_cams for this list" in capsys.readouterr().err
