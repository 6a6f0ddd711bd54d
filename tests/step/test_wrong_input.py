"""Wrong input is answered with one sentence and status 2; habits that led to trouble are gone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from pipeline import (
    TRAIN_IDS,
    copy_of,
    output,
    run,
)

import run_sample

REPOSITORY = Path(run_sample.__file__).parent


# ------------------------------------------------------------------------------- the source code


@pytest.mark.parametrize("habit", [".cuda(", "allow_pickle=True", "weights_only=False", "np.save("])
def test_source_is_free_of_habits_of_the_published_code(habit: str) -> None:
    folders = ("misc", "net", "step", "voc12")
    sources = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    assert len(sources) > 30
    assert [path.name for path in sources if habit in path.read_text(encoding="utf-8")] == []


# --------------------------------------------------------------------------------- from outside


def outside(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Start run_sample.py as a person does, from a folder that is not the repository."""
    command = [sys.executable, str(REPOSITORY / "run_sample.py"), *argv]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--voc12_root", "nowhere", "--device", "cpu"], "nowhere (--voc12_root) does not exist"),
        (["--voc12_root", ".", "--steps", "train_cam,walk"], "walk is not a step"),
    ],
)
def test_bad_input_gives_a_sentence_and_status_2(
    tmp_path: Path, argv: list[str], told: str
) -> None:
    answer = outside(*argv, cwd=tmp_path)
    assert answer.returncode == 2
    assert told in answer.stderr
    assert "Traceback" not in answer.stderr + answer.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"train_list": "nolist"}, "nolist"),
        ({"classes": "/missing/classes.txt"}, "/missing/classes.txt does not exist"),
        ({"cls_labels": "/missing/labels.csv"}, "/missing/labels.csv does not exist"),
        ({"cnn": "resnet1"}, "resnet1 is neither a torchvision ResNet nor a timm model"),
        ({"cnn": "dla34"}, "dla34 has no feature maps down to stride 16 in timm: it cannot be dil"),
        ({"cnn": "resnet50.a9"}, "timm has no weights a9 of resnet50; give resnet50, resnet50.a1_"),
        ({"vit": "vit_1"}, "vit_1 is not a timm model"),
        ({"vit": "pit_ti_224", "vit_args": None}, "pit_ti_224 cannot be built|is not a plain ViT"),
        ({"vit": "hiera_tiny_224", "vit_args": None}, "hiera_tiny_224 is not a plain ViT"),
        ({"vit": "vit_base_patch16_siglip_224"}, "no class token, its patches are pooled"),
        ({"vit": "deit_tiny_patch16_224.dino"}, "no weights dino of .*; give .*224.fb_in1k"),
        ({"vit_args": "depht=1"}, "depht"),
        ({"tile_stride": 4}, "--tile_stride 4 must .* multiple of the patch size 8"),
    ],
    ids=str,
)
def test_wrong_options_give_a_sentence_and_write_no_weights(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: dict, told: str
) -> None:
    assert run(sample, tmp_path, "--steps", "train_cam", **options) == 2
    error = capsys.readouterr().err
    assert re.search(told, error)
    assert not list(tmp_path.rglob("*.pth"))


def test_several_processes_that_nobody_started(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(sample, tmp_path) == 2
    error = capsys.readouterr().err
    assert "WORLD_SIZE is 2 but RANK is not set: start several processes with torchrun" in error


def test_work_dir_that_cannot_be_written(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert run(sample, tmp_path / "file") == 2
    assert f"--work_dir {tmp_path / 'file'} cannot be written" in capsys.readouterr().err


def test_error_in_a_loader_process_is_still_one_sentence(
    sample: Path, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    work = copy_of(finished, tmp_path / "work", without=["res50_irn.*"])
    last = output(work, "ir_label", TRAIN_IDS[-1])
    Image.new("P", (9, 7)).save(last)
    assert run(sample, work, "--steps", "train_irn", num_workers=1) == 2
    error = capfd.readouterr().err
    assert f"run_sample.py: {last} is 9x7 but its picture" in error
    assert "Traceback" not in error
