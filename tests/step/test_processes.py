"""The nine steps in several processes: the same files and scores as in one, whatever happens."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pipeline
import pytest
from pipeline import TRAIN_IDS, copy_of, hashes, log_of, metrics
from processes import run_processes

import run_sample
from misc import entry
from misc.distributed import rank

REPOSITORY = Path(run_sample.__file__).parent
OF_PICTURES = ("cam", "ir_label", "ins_seg", "edge", "sem_seg")
SHARDED = "make_cam,eval_cam,cam_to_ir_label,make_ins_seg_labels,eval_ins_seg"
SHARDED += ",make_sem_seg_labels,eval_sem_seg"


def without_outputs(finished: Path, work_dir: Path) -> Path:
    """A copy of a finished run that has weights, but no file of any picture."""
    copy_of(finished, work_dir)
    for kind in OF_PICTURES:
        shutil.rmtree(work_dir / "result" / kind)
    (work_dir / "result" / "metrics.json").unlink()
    return work_dir


def scores(work_dir: Path) -> dict:
    """What metrics.json says about the results, without times and places."""
    found = metrics(work_dir)
    names = ("seed_miou", "mask_miou", "instance_ap50", "per_class", "steps", "identities")
    return {name: found[name] for name in names}


def _run(root: Path, work_dir: Path, options: dict, status: int = 0) -> None:
    assert pipeline.run(root, work_dir, **options) == status


@pytest.mark.parametrize("count", [2, 3])
def test_steps_leave_what_one_process_leaves(
    sample: Path, finished: Path, tmp_path: Path, count: int
) -> None:
    options = {"steps": SHARDED, "overlays": True, "figure_num": 2, "report_num": 2}
    alone = without_outputs(finished, tmp_path / "alone")
    _run(sample, alone, options)
    together = without_outputs(finished, tmp_path / "together")
    run_processes(_run, sample, together, options, count=count)
    assert hashes(together) == hashes(alone)
    assert scores(together) == scores(alone)
    overlays = sorted(path.stem for path in (together / "result/overlay").glob("*.jpg"))
    assert overlays == sorted(TRAIN_IDS)
    for name in ("figure.png", "report.html"):
        assert (together / "result" / name).is_file()
    steps = metrics(together)["steps"]
    assert all(steps[name]["made"] == len(TRAIN_IDS) for name in ("make_cam", "cam_to_ir_label"))


def test_list_shorter_than_the_processes(sample: Path, finished: Path, tmp_path: Path) -> None:
    one = pipeline.write_list(tmp_path / "one.txt", TRAIN_IDS[:1])
    work_dir = copy_of(finished, tmp_path / "work")
    for kind in ("ins_seg", "edge", "sem_seg"):
        shutil.rmtree(work_dir / "result" / kind)
    made = {"steps": SHARDED.partition("cam_to_ir_label,")[2], "infer_list": one}
    run_processes(_run, sample, work_dir, made, count=3)
    assert hashes(work_dir, ids=TRAIN_IDS[:1]) == hashes(finished, ids=TRAIN_IDS[:1])
    assert metrics(work_dir)["steps"]["eval_sem_seg"]["pictures"] == 1


def test_other_numbers_of_processes_go_on(sample: Path, finished: Path, tmp_path: Path) -> None:
    work_dir = without_outputs(finished, tmp_path / "work")
    options = {"steps": SHARDED}
    run_processes(_run, sample, work_dir, {**options, "infer_list": "val"}, count=2)
    for image_id in TRAIN_IDS[::2]:
        for kind in ("cam", "ir_label"):
            pipeline.output(work_dir, kind, image_id).unlink()
    run_processes(_run, sample, work_dir, options, count=3)
    _run(sample, work_dir, options)
    assert hashes(work_dir) == hashes(finished)


def _fail_on_one_picture(root: Path, work_dir: Path) -> None:
    """Every process ends with the sentence of the one that has the broken picture."""
    entry._SECONDS_FOR_MAIN_PROCESS = 0  # this process ends with the test
    _run(root, work_dir, {"steps": "cam_to_ir_label"}, status=2)
    (work_dir / f"ended_{rank()}").touch()


def test_error_in_one_process_ends_all(sample: Path, finished: Path, tmp_path: Path) -> None:
    work_dir = copy_of(finished, tmp_path / "work")
    broken = pipeline.output(work_dir, "cam", TRAIN_IDS[1])  # of the second process
    broken.write_bytes(b"no archive")
    run_processes(_fail_on_one_picture, sample, work_dir)
    assert {path.name for path in work_dir.glob("ended_*")} == {"ended_0", "ended_1"}
    assert f"stopped: {broken}" in log_of(work_dir)


def _torchrun(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.Popen(
        [*command, str(REPOSITORY / "run_sample.py"), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii")
    return [int(child) for child in text.split()]


def test_wrong_input_is_told_once(sample: Path, tmp_path: Path) -> None:
    refused = _torchrun(*pipeline.command_line(sample, tmp_path, infer_list="nothing.txt"))
    said = refused.communicate(timeout=120)[0]
    assert refused.returncode != 0
    assert said.count("nothing.txt is neither a file nor") == 1 and "UserError" not in said


def test_killed_process_ends_all_and_the_command_goes_on(sample: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / "work"
    steps = {"steps": "train_cam,make_cam,eval_cam", "cam_num_epoches": 20}
    arguments = pipeline.command_line(sample, work_dir, **steps)
    state, cams = work_dir / "sess/train_cam.state.pth", work_dir / "result/cam"
    first = _torchrun(*arguments)
    deadline = time.monotonic() + 120
    while not state.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(_children(first.pid)[-1], signal.SIGKILL)
    said = first.communicate(timeout=120)[0]
    assert first.returncode != 0, said
    again = _torchrun(*arguments)
    said = again.communicate(timeout=120)[0]
    assert again.returncode == 0 and "train_cam: continued after epoch" in said, said
    assert len(list(cams.glob("*.npz"))) == len(TRAIN_IDS)
    assert json.loads((work_dir / "result/metrics.json").read_text())["seed_miou"] is not None
