"""Pictures that are written while the next are computed: whole files, and the right names."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pipeline import TRAIN_IDS, command_line, copy_of, hashes, ids_in, metrics, output, run

import run_sample
from misc.maps_io import load_cam, load_instances, read_label
from step import make_cam

# Its first argument is the number of the file, from 1, in whose middle the process is killed.
KILLED_RUN = """
import io, os, signal, sys, threading
import numpy as np
import run_sample
from PIL import Image

lock, left = threading.Lock(), int(sys.argv[1])
savez, save = np.savez_compressed, Image.Image.save

def half(stream, write):
    global left
    with lock:
        left -= 1
        if left == 0:
            whole = io.BytesIO()
            write(whole)
            stream.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    write(stream)

def half_npz(stream, **arrays):
    half(stream, lambda target: savez(target, **arrays))

def half_png(image, path, **options):
    with open(path, "wb") as stream:
        half(stream, lambda target: save(image, target, format="PNG"))

np.savez_compressed, Image.Image.save = half_npz, half_png
run_sample.main(sys.argv[2:])
"""
STEPS = {
    "make_cam": (("cam",), load_cam),
    "make_ins_seg_labels": (("ins_seg",), load_instances),
    "make_sem_seg_labels": (("edge", "sem_seg"), read_label),
}
KILLED_AT = 4


@pytest.mark.parametrize("step", STEPS)
def test_killed_writers_leave_whole_files_and_a_second_run_completes_them(
    sample: Path, finished: Path, tmp_path: Path, step: str
) -> None:
    kinds, read = STEPS[step]
    work = copy_of(finished, tmp_path / "work", without=kinds)
    argv = [str(KILLED_AT), *command_line(sample, work, "--steps", step)]
    environment = {**os.environ, "PYTHONPATH": str(Path(run_sample.__file__).parent)}
    command = [sys.executable, "-c", KILLED_RUN, *argv]
    killed = subprocess.run(command, env=environment, capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    folders = [work / "result" / kind for kind in kinds]
    assert [path for folder in folders for path in folder.glob(".tmp-*")]  # it died while it wrote
    there = {kind: [i for i in TRAIN_IDS if output(work, kind, i).exists()] for kind in kinds}
    assert sum(map(len, there.values())) < len(kinds) * len(TRAIN_IDS)
    for kind, ids in there.items():
        for image_id in ids:
            read(output(work, kind, image_id))  # else it is refused
    assert run(sample, work, "--steps", step) == 0
    assert hashes(work, *kinds) == hashes(finished, *kinds)
    complete = set(TRAIN_IDS).intersection(*there.values())
    assert metrics(work)["steps"][step]["made"] == len(TRAIN_IDS) - len(complete)


def test_error_names_its_picture_though_the_next_ones_are_under_way(
    sample: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken, made = TRAIN_IDS[3], []
    original = make_cam.picture_cams

    def sometimes_broken(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        made.append(len(made))
        cam, high_res = original(*arguments)
        return cam, high_res * torch.nan if len(made) == 4 else high_res

    work = copy_of(finished, tmp_path / "work", without=["cam"])
    with monkeypatch.context() as patch:
        patch.setattr(make_cam, "picture_cams", sometimes_broken)
        assert run(sample, work, "--steps", "make_cam") == 2
    said = capsys.readouterr().err
    assert f"run_sample.py: {broken}: the class activation maps are not finite; " in said
    assert len(said.splitlines()[-1]) < 500  # a sentence
    there = ids_in(work / "result" / "cam")
    assert {*TRAIN_IDS[:3]} <= there and broken not in there
    assert run(sample, work, "--steps", "make_cam") == 0
    assert hashes(work, "cam") == hashes(finished, "cam")
