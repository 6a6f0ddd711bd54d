"""The command on a tiny sample: what is kept, made and failed, and what it writes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pipeline import TRAIN_IDS, command_line, copy_of, metrics

from misc.files import read_json, sha256_file
from misc.maps_io import load_cam, read_label
from misc.progress import set_log_file
from step.ablation import __main__ as command
from step.ablation import schedule

ROWS = "walk_off,crf_off"
MASK_THRESHOLD = 0.25


def ablate(sample: Path, work_dir: Path, *flags: str) -> int:
    """Run the command with the options of the tiny run; returns the exit status."""
    words = command_line(sample, work_dir, preset="paper")  # as the finished run
    try:
        return command.main(["--work_dir", str(work_dir), "--seeds", "0", *flags, "--", *words])
    finally:
        set_log_file(None)


def folder(work_dir: Path, row: str) -> Path:
    return work_dir / "sess" / "ablation" / row / "seed0"


@pytest.fixture(scope="module")
def work(sample: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run as CRT, and a file in the way of the row without CRF."""
    work_dir = tmp_path_factory.mktemp("ablation")
    copy_of(finished, folder(work_dir, "crt"))
    foreign = folder(work_dir, "crf_off") / "result" / "ir_label" / f"{TRAIN_IDS[0]}.png"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"somebody's own")
    return work_dir


@pytest.fixture(scope="module")
def status(sample: Path, work: Path) -> int:
    """Exit status of the first call."""
    before = {path: sha256_file(path) for path in _files(folder(work, "crt"))}
    found = ablate(sample, work, "--rows", ROWS)
    assert {path: sha256_file(path) for path in _files(folder(work, "crt"))} == before
    return found


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def content(work: Path, status: int) -> dict[str, Any]:
    return read_json(work / "result" / "ablation.json")


def seed_miou(sample: Path, work: Path, threshold: float) -> float:
    """mIoU of the CAMs of CRT as masks, in percent, counted here."""
    hits, truths, made = (np.zeros(21) for _ in range(3))
    for name in TRAIN_IDS:
        truth = read_label(sample / "SegmentationClass" / f"{name}.png")
        maps = load_cam(folder(work, "crt") / "result" / "cam" / f"{name}.npz")
        best = maps.high_res.max(axis=0)
        label = np.where(best > threshold, maps.keys[maps.high_res.argmax(axis=0)] + 1, 0)
        valid = truth != 255
        for value in range(21):
            is_true, is_made = (truth == value) & valid, (label == value) & valid
            hits[value] += (is_true & is_made).sum()
            truths[value] += is_true.sum()
            made[value] += is_made.sum()
    union = truths + made - hits
    return float(100 * (hits[union > 0] / union[union > 0]).mean())


def test_what_is_finished_is_kept_and_a_failed_row_named(
    work: Path, status: int, content: dict[str, Any]
) -> None:
    assert status == 1
    lines = (work / "result" / "ablation.log").read_text()
    assert "crt/seed0: seed" in lines and "(kept)" in lines
    assert "crf_off/seed0: failed with exit status 2" in lines
    assert "have no record of what made them and are left alone" in lines  # the end of its log
    assert "1 of 3 runs have no scores: crf_off/seed0." in lines
    assert content["rows"]["crf_off"]["runs"] == {}
    table = (work / "result" / "ablation.md").read_text()
    assert "| no CRF | - | - | - | - | - | - | - |" in table


def test_without_the_walk_the_cams_are_the_masks(
    sample: Path, work: Path, content: dict[str, Any]
) -> None:
    found = content["rows"]["walk_off"]["runs"]["0"]["scores"]
    crt = metrics(folder(work, "crt"))
    assert found["mask"]["miou"] == pytest.approx(seed_miou(sample, work, MASK_THRESHOLD))
    assert crt["steps"]["eval_cam"].items() <= found["seed"].items()
    best = max(seed_miou(sample, work, step / 50) for step in range(1, 50))
    assert found["seed"]["best_miou"] == pytest.approx(best)
    at_best = seed_miou(sample, work, found["seed"]["best_threshold"])
    assert at_best == pytest.approx(best)
    assert found["mask"]["miou"] != pytest.approx(crt["mask_miou"])
    assert [path.name for path in _files(folder(work, "walk_off")) if path.suffix == ".npz"] == []


def test_the_json_says_how_every_number_came_about(content: dict[str, Any]) -> None:
    run = content["rows"]["walk_off"]["runs"]["0"]
    assert run["command"].endswith("--steps eval_cam")
    assert run["made_by"] == {"train_cam": "crt/seed0", "make_cam": "crt/seed0"}
    assert run["versions"]["torch"] and run["seconds"]["eval_cam"] > 0 and "commit" in run
    assert content["seeds"] == [0] and "--preset paper" in content["base"]
    assert [group["title"] for group in content["groups"]] == ["Random walk", "IR labels"]
    json.dumps(content, allow_nan=False)


def test_the_figure_shows_the_maps_that_are_there(work: Path, status: int) -> None:
    with Image.open(work / "result" / "ablation.png") as picture:
        assert picture.width > 600 and picture.height > 800  # 3 columns, 5 pictures


def test_again_nothing_is_started(
    sample: Path, work: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "start", lambda run: pytest.fail(f"{run.name} is started"))
    assert ablate(sample, work, "--rows", "walk_off") == 0


def test_scores_of_other_options_are_not_kept(
    sample: Path, work: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def start(run: Any) -> subprocess.Popen:
        started.append(run.name)
        run.log_path.write_text("no\n")
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(2)"])

    monkeypatch.setattr(command, "start", start)
    words = command_line(sample, work, preset="paper", cam_lambda=0.3)
    argv = ["--work_dir", str(work), "--seeds", "0", "--rows", "walk_off", "--", *words]
    assert command.main(argv) == 1
    assert started == ["crt/seed0"]  # what reads its weights is left out
    assert "walk_off/seed0: left out" in (work / "result" / "ablation.log").read_text()


def test_an_interrupt_ends_the_runs(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = []

    def start(run: Any) -> subprocess.Popen:
        children.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return children[-1]

    class Clock:
        perf_counter = staticmethod(schedule.time.perf_counter)

        @staticmethod
        def sleep(seconds: float) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(command, "start", start)
    monkeypatch.setattr(schedule, "time", Clock)
    assert ablate(sample, tmp_path, "--jobs", "2") == 130
    assert [child.returncode for child in children] == [-15, -15]
