"""The shell scripts from any folder, and the sentences that they and the tools stop with."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from wsol_runs import (
    SMALL,
    WSOL,
    command_line,
    epoch_lines,
    pairs,
    run_tool,
    weights,
)

from misc.files import read_json
from wsol.config import Paths
from wsol.tools_cam import test_cam, train_cam, visualize

test_cam.__test__ = False
ROOT = WSOL.parent
KIND = ("deit", "small", "224")


def bash(folder: Path, script: str, *arguments: object, **environment: str):
    """Run a script in `folder` as a user would; standard error without progress bars."""
    words = ["bash", script, *map(str, arguments)]
    variables = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(
        words, cwd=folder, env=variables, capture_output=True, text=True, timeout=180
    )


def refused(done: subprocess.CompletedProcess) -> str:
    """The one sentence that a script stopped with."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_training_from_the_root_and_evaluation_from_wsol(
    birds: Path, trained: Path, tmp_path: Path
):
    options = [*pairs(birds, tmp_path), "SOLVER.NUM_EPOCHS", "1", "--lr", "1e-3", "--overwrite"]
    done = bash(ROOT, "wsol/train_val_cub.sh", "cpu", *KIND, *options)
    assert done.returncode == 0, done.stderr
    assert epoch_lines(tmp_path) == epoch_lines(trained)[:1]
    options = [*pairs(birds, tmp_path), "TEST.SPLIT", "train"]
    model = tmp_path / "model_last.pth"
    done = bash(WSOL, "val_cub.sh", "cpu", *KIND, model, *options, PATH=os.environ["PATH"])
    assert done.returncode == 0, done.stderr
    assert read_json(Paths(tmp_path).evaluation("train"))["weights"]["path"] == str(model)
    assert "GT-known" in done.stdout
    assert len(list(Paths(tmp_path).boxed_images("train").rglob("*.jpg"))) == 12


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train_val_cub.sh", ("0,1", "deit", "small"), "GPUS FAMILY SCALE SIZE"),
        ("val_cub.sh", ("0", *KIND), "GPU FAMILY SCALE SIZE MODEL_PATH"),
        ("train_val_cub.sh", ("cpu", "deit", "huge", "224"), "deit_tscam_huge_patch16_224.yaml"),
        ("val_cub.sh", ("cpu", "swin", "tiny", "224", "x.pth"), "swin_tscam_tiny_patch16_224.yaml"),
        ("train_val_cub.sh", ("gpu0", *KIND), "GPUS is 'gpu0'; give GPU ids such as 0 or 0,1"),
        ("train_val_cub.sh", ("cpu", *KIND, "MODEL.CAM", "vit"), "MODEL.CAM is 'vit'"),
        ("train_val_cub.sh", ("cpu", *KIND, "MODEL.CAM_THR"), "MODEL.CAM_THR has no value"),
    ],
)
def test_wrong_arguments_are_one_sentence(script: str, arguments: tuple, message: str):
    assert message in refused(bash(WSOL, script, *arguments))


def test_missing_configuration_names_those_that_exist():
    error = refused(bash(ROOT, "wsol/train_val_cub.sh", "cpu", "deit", "huge", "224"))
    for scale in ("tiny", "small", "base"):
        assert f"deit_tscam_{scale}_patch16_224.yaml" in error


def test_interpreter_that_is_missing_is_told():
    done = bash(ROOT, "wsol/train_val_cub.sh", "cpu", *KIND, PYTHON="/nowhere/python")
    assert "there is no /nowhere/python" in refused(done)


def test_missing_data_set_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture):
    absent = tmp_path / "CUB_200_2011"
    assert run_tool(train_cam, command_line(absent, tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert f"train_cam.py: DATA.DATADIR {absent} does not exist" in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "run").glob("*.pth"))


def fake_python(folder: Path) -> Path:
    """An interpreter that tells how it is called."""
    path = folder / "python"
    path.write_text('#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES|$@"\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("gpus", "visible", "launcher", "device"),
    [
        ("3", "3", "", "cuda"),
        ("0,2", "0,2", f"{WSOL}/tools_cam/launch.py 2 ", "cuda"),
        ("cpu", "", "", "cpu"),
        ("cpu,cpu", "", f"{WSOL}/tools_cam/launch.py 2 ", "cpu"),
    ],
)
def test_devices_become_processes(
    tmp_path: Path, gpus: str, visible: str, launcher: str, device: str
):
    python = str(fake_python(tmp_path))
    done = bash(tmp_path, f"{WSOL}/train_val_cub.sh", gpus, *KIND, "A", "b c", PYTHON=python)
    script = f"{WSOL}/tools_cam/train_cam.py"
    options = f"--device {device} --config_file {SMALL} --lr 5e-5 MODEL.CAM_THR 0.1 A b c"
    assert done.stdout == f"{visible}|{launcher}{script} {options}\n"
    assert done.returncode == 0


def test_scripts_work_from_a_folder_with_blanks_and_leave_path_alone(tmp_path: Path):
    copy = tmp_path / "my code" / "wsol"
    shutil.copytree(WSOL, copy, ignore=shutil.ignore_patterns("data", "ckpt", "__pycache__"))
    fake_python(tmp_path)
    variables = {"PYTHON": "python", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = bash(copy, "val_cub.sh", "cpu", *KIND, "a model.pth", **variables)
    assert f"--config_file {copy}/configs/CUB/" in done.stdout
    assert "--resume a model.pth" in done.stdout


@pytest.mark.parametrize("tool", [test_cam, visualize])
def test_missing_checkpoint_is_one_sentence(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture, tool: object
):
    options = ["--config_file", str(SMALL), "--device", "cpu", *pairs(birds, tmp_path)]
    assert run_tool(tool, [*options, "--weights", str(tmp_path / "no.pth")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/no.pth does not exist" in error
    assert error.count("\n") == 1


def test_missing_configuration_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture):
    absent = tmp_path / "absent.yaml"
    assert run_tool(train_cam, ["--config_file", str(absent)]) == 2
    assert f"{absent} does not exist" in capsys.readouterr().err


def test_help_answers_without_torch():
    for tool in ("train_cam", "test_cam", "visualize"):
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['{tool}.py', '--help']\n"
            f"from wsol.tools_cam import {tool}\n"
            f"try:\n    {tool}.main()\nfinally:\n    assert 'torch' not in sys.modules\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "--config_file" in done.stdout


def test_flags_may_stand_among_the_pairs(birds: Path, trained: Path, tmp_path: Path):
    argv = [*command_line(birds, tmp_path), "--overwrite", "SOLVER.NUM_EPOCHS", "1"]
    assert run_tool(train_cam, argv) == 0
    assert epoch_lines(tmp_path) == epoch_lines(trained)[:1]
    loaded = weights(tmp_path / "model_last.pth")
    assert all(torch.isfinite(value).all() for value in loaded.values())
