"""The command line of DeepLab: entry folders, overrides, and what is said about wrong input."""

import time
from pathlib import Path

import pytest
import torch
from deeplab_runs import (
    CONFIG,
    REPOSITORY,
    command_line,
    copy_of,
    finished_run,
    log_of,
    overrides,
    paths_of,
    run,
    run_apart,
)

from deeplab.main import parse_args
from misc.progress import set_log_file

NO_TORCH = "import sys; sys.modules['torch'] = None; from deeplab import main; main.main({argv})"


@pytest.mark.parametrize(
    ("folder", "script", "config", "command"),
    [
        (REPOSITORY, "deeplab/main.py", "deeplab/configs/voc12_resnet_dplv2.yaml", "train"),
        (REPOSITORY / "deeplab", "main.py", "configs/voc12_resnet_dplv2.yaml", "crf"),
    ],
)
def test_commands_work_from_both_folders(
    sample: Path, tmp_path: Path, folder: Path, script: str, config: str, command: str
) -> None:
    given = overrides(sample, copy_of(finished_run(sample), tmp_path))
    done = run_apart(script, command, "-c", config, *given, cwd=folder)
    assert done.returncode == 0, done.stderr
    kept = {"train": "checkpoint_final.pth is finished and is kept", "crf": "crf: 0 pictures of"}
    assert kept[command] in done.stdout


@pytest.mark.parametrize("command", [[], ["train"], ["predict"]])
def test_help_answers_without_torch(command: list[str]) -> None:
    start = time.perf_counter()
    done = run_apart("-c", NO_TORCH.format(argv=[*command, "--help"]))
    assert done.returncode == 0, done.stderr
    assert "KEY=VALUE" in done.stdout
    assert time.perf_counter() - start < 10


def test_options_and_overrides_may_be_mixed() -> None:
    args = parse_args(["crf", "A.B=1", "-c", "x.yaml", "C=2", "-j", "3", "D.E=[1, 2]"])
    assert (args.config_path, args.n_jobs) == (Path("x.yaml"), 3)
    assert args.overrides == ["A.B=1", "C=2", "D.E=[1, 2]"]


def test_short_and_long_options_are_the_same() -> None:
    long = parse_args(["test", "--config-path", "x.yaml", "--model-path", "m.pth", "--cpu"])
    assert vars(parse_args(["test", "-c", "x.yaml", "-m", "m.pth", "--cpu"])) == vars(long)
    assert parse_args(["test", "-c", "x.yaml"]).device == "auto"
    assert parse_args(["train", "-c", "x.yaml", "--cuda"]).device == "cuda"
    both = parse_args(["train", "-c", "x.yaml", "--cuda", "--cpu"])
    assert both.device == "cpu"  # the last one counts, as published


@pytest.mark.parametrize(
    "argv",
    [
        ["train"],
        ["train", "-c", "x.yaml", "--lr", "3"],
        ["test", "-c", "x.yaml", "--split", "all"],
        ["learn", "-c", "x.yaml"],
    ],
)
def test_wrong_options_end_with_status_2(argv: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_args(argv)
    assert stop.value.code == 2
    assert "usage: deeplab/main.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"SOLVER.LERNING": 1}, "SOLVER.LERNING is not a configuration key"),
        ({"SOLVER.ITER_MAXX": 1}, "did you mean SOLVER.ITER_MAX?"),
        ({"SOLVER.ITER_MAX": "many"}, "SOLVER.ITER_MAX is 'many'; expected"),
        ({"SOLVER.LR": -1}, "SOLVER.LR is -1"),
        ({"EXP.SEED": 2**32}, "EXP.SEED is 4294967296; it must be at most 4294967295"),
        ({"MODEL.NAME": "UNet"}, "MODEL.NAME is 'UNet'"),
        ({"DATASET.N_CLASSES": 7}, "DATASET.N_CLASSES is 7"),
        ({"MODEL.BACKBONE": "resnet9000"}, "resnet9000 is neither"),
        ({"DATASET.ROOT": "nowhere"}, "nowhere"),
    ],
)
def test_wrong_values_are_named(
    sample: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    values: dict[str, object],
    message: str,
) -> None:
    assert run("train", sample, tmp_path, values=values) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert error.startswith("deeplab/main.py: ")


def test_missing_configuration_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from deeplab.main import main

    assert main(["train", "-c", str(tmp_path / "a.yaml")]) == 2
    assert f"{tmp_path / 'a.yaml'} does not exist" in capsys.readouterr().err
    assert main(["train", "-c", str(CONFIG), "SOLVER.ITER_MAX"]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err
    set_log_file(None)


def test_missing_checkpoint_names_those_that_there_are(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = copy_of(finished_run(sample), tmp_path, "models")
    assert run("test", sample, folder, "-m", str(tmp_path / "x.pth.pth")) == 2
    error = capsys.readouterr().err
    assert f"the weights {tmp_path / 'x.pth.pth'} do not exist" in error
    assert "checkpoint_3.pth, checkpoint_6.pth, checkpoint_final.pth" in error
    assert run("test", sample, tmp_path / "empty") == 2
    assert "has no weights yet; run train" in capsys.readouterr().err


def test_weights_of_another_network_are_refused(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = paths_of(sample, finished_run(sample)).checkpoint("final")
    values = {"MODEL.ATROUS_RATES": "1,2,3"}
    assert run("test", sample, tmp_path, "-m", str(model), values=values) == 2
    assert "does not fit this network" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "test", "predict"])
def test_cuda_without_a_gpu_falls_back_to_the_cpu(
    sample: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    command: str,
) -> None:
    from deeplab.main import main

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = copy_of(finished_run(sample), tmp_path / "run", "models")
    given = ("--input", str(sample / "JPEGImages"), "--output", str(tmp_path / "out"))
    flags = {"predict": given, "train": ("--overwrite",)}.get(command, ())
    values = {"IMAGE.SIZE.TEST": "none", "SOLVER.ITER_MAX": 1}
    argv = command_line(command, sample, folder, *flags, values=values)
    argv[argv.index("--cpu")] = "--cuda"
    assert main(argv) == 0
    said = f"--cuda: PyTorch {torch.__version__} sees no CUDA GPU, so the CPU is used."
    assert capsys.readouterr().out.count(said) == 1
    assert said in log_of(sample, folder, command)


def test_negative_number_of_pictures_is_refused(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = copy_of(finished_run(sample), tmp_path, "scores")
    assert run("report", sample, folder, "--figure-num", "-1") == 2
    assert "--figure-num -1 is no number of pictures; use 0 or more" in capsys.readouterr().err


def test_negative_number_of_processes_is_refused_before_anything_is_removed(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = copy_of(finished_run(sample), tmp_path)
    predictions = paths_of(sample, folder).prediction_dir("val", crf=True)
    before = sorted(predictions.iterdir())
    assert run("crf", sample, folder, "--overwrite", "-j", "-1") == 2
    assert "-j -1 is no number of processes; use 0 or more" in capsys.readouterr().err
    assert before and sorted(predictions.iterdir()) == before


def test_wrong_root_is_named_before_any_list(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run("train", sample, tmp_path, values={"DATASET.ROOT": tmp_path / "nowhere"}) == 2
    error = capsys.readouterr().err
    assert "nowhere (DATASET.ROOT) does not exist" in error and "DATASET.SPLIT" not in error
    assert run("train", sample, tmp_path, values={"DATASET.ROOT": sample.parent}) == 2
    error = capsys.readouterr().err
    assert "; did you mean DATASET.ROOT=" in error and "DATASET.SPLIT" not in error


def test_unwritable_output_is_named(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert run("train", sample, tmp_path / "file") == 2
    assert "EXP.OUTPUT_DIR cannot be written" in capsys.readouterr().err
