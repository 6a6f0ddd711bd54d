"""Several processes on a folder of photos, and when they make again what is there."""

from pathlib import Path
from typing import Any

import pipeline
from photo_files import picture
from pipeline import QUICK, TRAIN_IDS, WEIGHTS, copy_of, hashes, log_of, metrics, times
from processes import run_processes

from misc.files import sha256_file
from misc.maps_io import read_label

LONG_SIDE = 60
FULL_SIZE = (80, 64)  # width and height of the one large photo
FROM_PHOTOS = dict.fromkeys(("voc12_root", "train_list", "val_list", "infer_list"))
PHOTOS = ("bird_1", "bird_2", "cat_1", "cat_large")


def _start(root: Path, work: Path, *flags: str, **options: Any) -> None:
    assert pipeline.run(root, work, *flags, **options) == 0


def _start_in_process(root: Path, work: Path, flags: tuple[str, ...], options: dict) -> None:
    _start(root, work, *flags, **options)


def test_processes_make_of_photos_what_one_makes(tmp_path: Path) -> None:
    """With the weights of one process: those of several agree to rounding alone."""
    photos, alone = tmp_path / "photos", tmp_path / "alone"
    for number, name in enumerate(PHOTOS):
        size = FULL_SIZE if name == "cat_large" else (56, 48)
        picture(photos / f"{name.replace('_', '/')}.png", number, size)
    options = {**FROM_PHOTOS, **QUICK, "photos": photos, "photos_long_side": LONG_SIDE}
    options |= {"eval_ins_seg_pass": None}
    _start(photos, alone, **options)
    together = copy_of(alone, tmp_path / "together", without=["result", "photos", "cache"])
    run_processes(_start_in_process, photos, together, (), options)
    assert hashes(together, ids=PHOTOS) == hashes(alone, ids=PHOTOS)
    for folder, suffix, names in (
        ("full_size", ".png", ["cat_large"]),
        ("overlay", ".jpg", sorted(PHOTOS)),
    ):
        made, expected = (
            {path.stem: sha256_file(path) for path in (work / "result" / folder).glob(f"*{suffix}")}
            for work in (together, alone)
        )
        assert sorted(made) == names and made == expected
    assert read_label(together / "result/full_size/cat_large.png").shape == FULL_SIZE[::-1]


def test_overwriting_processes_leave_the_same_bytes(
    sample: Path, finished: Path, tmp_path: Path
) -> None:
    """Every picture's files are removed and made again, once; weights stay as they are."""
    work = copy_of(finished, tmp_path / "work")
    before = times(work)
    flags, options = ("--overwrite", "--from_step", "make_cam"), {"train_irn_pass": False}
    run_processes(_start_in_process, sample, work, flags, options)
    kept = {work / "sess" / name for name in WEIGHTS.values()}
    assert {path for path, when in times(work).items() if when == before[path]} == kept
    assert hashes(work) == hashes(finished)
    assert metrics(work)["seed_miou"] == metrics(finished)["seed_miou"]
    for step, folders in (("make_cam", 1), ("make_sem_seg_labels", 2)):
        assert log_of(work).count(f"removed {len(TRAIN_IDS)} file(s) of {step}") == folders
