"""What a WSOL run does with an earlier one in its folder, and with files that are not its own."""

import shutil
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from PIL import Image
from wsol_runs import WEIGHTS, epoch_lines, run

from misc.checkpoint import load_checkpoint, save_checkpoint
from misc.files import read_json
from misc.provenance import read_record, record_path
from wsol.config import Paths

TAG = 32 * "a"  # of a temporary file


def test_resume_without_a_run_is_refused(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert run(birds, tmp_path, "--resume") == 2
    error = capsys.readouterr().err
    assert "--resume" in error
    assert "training.state.pth does not exist" in error
    assert "leave --resume out" in error


def test_other_settings_are_refused_until_overwritten(
    birds: Path, trained_copy: Path, capsys: pytest.CaptureFixture
):
    assert run(birds, trained_copy, SOLVER__CNN_LR=0.02) == 2
    error = capsys.readouterr().err
    assert "holds a training run with other settings" in error
    assert "SOLVER.CNN_LR is 0.02 now and was 0.005" in error
    assert "--overwrite" in error
    # what the weights do not depend on may change
    assert run(birds, trained_copy, TEST__BATCH_SIZE=2) == 0
    assert run(birds, trained_copy, "--overwrite", SOLVER__CNN_LR=0.02, SOLVER__NUM_EPOCHS=1) == 0
    assert [row["epoch"] for row in epoch_lines(trained_copy)] == [1]


def contents(folder: Path) -> dict[str, bytes]:
    """The weights of a run, its state, and what tells about them."""
    return {path.name: path.read_bytes() for path in folder.glob("*.*") if path.suffix != ".log"}


@pytest.mark.parametrize(
    ("flags", "values", "sentence"),
    [
        (["--overwrite"], {"MODEL__CNN": "resnet51"}, "resnet51 is neither"),
        (["--overwrite"], {"MODEL__INIT": "pretrained"}, "MODEL.INIT random"),
        (["--overwrite"], {"MODEL__CNN_WEIGHTS": "absent.pth"}, "absent.pth does not exist"),
        (["--overwrite"], {"DATA__NUM_CLASSES": 2}, "DATA.NUM_CLASSES is 2"),
        (["--overwrite", "--resume"], {}, "--resume goes on with a run and --overwrite deletes it"),
    ],
)
def test_a_finished_run_is_not_deleted_for_one_that_cannot_start(
    birds: Path,
    trained_copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    flags: list[str],
    values: dict[str, object],
    sentence: str,
):
    def offline(*_: object) -> None:
        raise URLError("offline")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    before = contents(trained_copy)
    assert run(birds, trained_copy, *flags, MODEL__VIT_ARGS="{}", **values) == 2
    assert sentence in capsys.readouterr().err
    assert contents(trained_copy) == before


def test_missing_tensorboard_deletes_no_run(
    birds: Path, trained_copy: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    before = contents(trained_copy)
    assert run(birds, trained_copy, "--overwrite") == 2
    assert contents(trained_copy) == before


def test_weights_whose_state_was_removed_are_not_replaced(
    birds: Path, trained_copy: Path, capsys: pytest.CaptureFixture
):
    paths = Paths(trained_copy)
    paths.state.unlink()
    before = contents(trained_copy)
    assert run(birds, trained_copy, SOLVER__CNN_LR=0.02) == 2
    assert "SOLVER.CNN_LR is 0.02 now and was 0.005" in capsys.readouterr().err
    assert run(birds, trained_copy) == 2
    error = capsys.readouterr().err
    assert f"model_last.pth is there, but not {paths.state}" in error
    assert "--overwrite" in error
    assert contents(trained_copy) == before
    assert run(birds, trained_copy, "--overwrite", SOLVER__NUM_EPOCHS=1) == 0
    assert load_checkpoint(paths.last)["epoch"] == 1


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_weights_of_somebody_else_are_not_replaced(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture, flags: tuple[str, ...]
):
    (tmp_path / "model_best.pth").write_bytes(b"a download")
    assert run(birds, tmp_path, *flags) == 2
    error = capsys.readouterr().err
    assert "model_best.pth has no record of a training that made it" in error
    assert "move it away" in error
    assert (tmp_path / "model_best.pth").read_bytes() == b"a download"


def test_finished_run_of_an_earlier_version_is_finished(
    birds: Path, trained: Path, trained_copy: Path, capsys: pytest.CaptureFixture
):
    paths = Paths(trained_copy)
    state = load_checkpoint(paths.state)
    extra = {"history": state["extra"]["history"]}
    rest = {key: value for key, value in state.items() if key not in ("finished", "extra")}
    save_checkpoint(paths.state, {**rest, "epoch": state["finished"], "extra": extra})
    paths.results.unlink()
    assert run(birds, trained_copy) == 0
    assert read_json(paths.results)["history"] == read_json(Paths(trained).results)["history"]
    save_checkpoint(paths.state, {**rest, "epoch": 1, "extra": extra})
    capsys.readouterr()
    assert run(birds, trained_copy) == 2
    error = capsys.readouterr().err
    assert f"{paths.state} was written by an earlier version of this program" in error
    assert "start afresh with --overwrite" in error


def test_every_weight_file_has_a_record(trained: Path):
    state = read_record(Paths(trained).state)
    for name in WEIGHTS:
        assert read_record(trained / name) == state
        facts = read_json(record_path(trained / name))["facts"]
        assert facts["epoch"] == load_checkpoint(trained / name)["epoch"]


def test_leftovers_of_killed_runs_are_removed_at_the_next_start(birds: Path, trained_copy: Path):
    left = [trained_copy / f".tmp-{TAG}-{name}" for name in ("training.state.pth", *WEIGHTS)]
    others = [
        trained_copy / f".tmp-{TAG}-other.pth",
        trained_copy / f"x.tmp-{TAG}-training.state.pth",
    ]
    for path in (*left, *others):
        path.write_bytes(b"half")
    assert run(birds, trained_copy) == 0
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


def test_replaced_pictures_are_another_run(
    birds: Path, trained_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    copy = Path(shutil.copytree(birds, tmp_path / "CUB"))
    assert run(copy, trained_copy) == 0  # the same pictures elsewhere
    (picture, *_) = sorted((copy / "images").rglob("*.jpg"))
    with Image.open(picture) as image:
        size = image.size
    Image.new("RGB", size, "red").save(picture)
    assert run(copy, trained_copy) == 2
    assert "input pictures is" in capsys.readouterr().err
