"""`test`, `crf`, `predict` and `report` in several processes leave what one process leaves.

Each list has two or three pictures, so that of three processes some have none.
"""

import functools
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deeplab_runs import (
    command_line,
    copy_of,
    finished_run,
    log_of,
    paths_of,
    run,
    run_commands,
    two_process_run,
)
from PIL import Image
from pipeline import TRAIN_IDS, VAL_IDS, write_list
from processes import run_processes

from deeplab import crf, engine, inference, lineage, prediction
from misc import distributed
from misc.distributed import rank
from misc.errors import UserError
from misc.files import read_json, sha256_file
from misc.maps_io import read_label, write_label
from voc12.devkit import Devkit

COUNTS = (2, 3)
# What is another one in another run, whoever makes it.
OTHER = {"seconds_per_picture", "processes", "config", "created", "command", "host", "argv"}


@functools.cache
def photos(sample: Path) -> Path:
    """A folder of three pictures; read only."""
    folder = sample.parent / "photos"
    folder.mkdir()
    for image_id in VAL_IDS:
        shutil.copy(Devkit(sample).image_path(image_id), folder)
    Image.fromarray(np.full((20, 30), 128, np.uint8)).save(folder / "gray.png")
    return folder


def commands(sample: Path, folder: Path) -> list[list[str]]:
    """Everything that follows a training; one of the training labels is wrong."""
    labels = sample.parent / "labels"
    if not labels.exists():
        shutil.copytree(sample / "SegmentationClass", labels)
        wrong = labels / f"{TRAIN_IDS[0]}.png"
        write_label(wrong, np.zeros_like(read_label(wrong)))
    unlabelled = sample.parent / "unlabelled"
    if not unlabelled.exists():
        shutil.copytree(sample / "JPEGImages", unlabelled / "JPEGImages")
        write_list(sample.parent / "test.txt", VAL_IDS)
    bare = {"DATASET.ROOT": unlabelled, "DATASET.SPLIT.TEST": sample.parent / "test.txt"}
    given = ("--input", str(photos(sample)), "--output", str(folder / "out"), "--crf")
    own = {"IMAGE.SIZE.TEST": "none"}
    return [
        command_line("test", sample, folder),
        command_line("crf", sample, folder),
        command_line("report", sample, folder, values={"DATASET.TRAIN_LABELS": labels}),
        command_line("test", sample, folder, "--split", "test", values=bare),
        command_line("crf", sample, folder, "--split", "test", values=bare),
        command_line("predict", sample, folder, *given, values=own),
    ]


@functools.cache
def made_by(sample: Path, count: int) -> Path:
    """Folder of what a number of processes made of the same weights; read only."""
    folder = copy_of(finished_run(sample), sample.parent / f"deeplab_by_{count}", "models")
    if count == 1:
        run_commands(*commands(sample, folder))
    else:
        run_processes(run_commands, *commands(sample, folder), count=count)
    return folder


def outputs(folder: Path) -> dict[str, bytes]:
    """Content of all files but records and logs, which tell of their run, by path."""
    kinds = {".npy", ".png", ".jpg", ".gz", ".crc"}
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.suffix in kinds}
    return {str(name): path.read_bytes() for name, path in found.items()}


def same_in_any_run(content: dict[str, Any]) -> dict[str, Any]:
    """A JSON file without what tells of its run."""
    model = {key: value for key, value in content["model"].items() if key != "path"}
    rest = {key: value for key, value in content.items() if key not in OTHER}
    if "Class IoU" not in content:  # a report
        rest["scores"] = {title: same_in_any_run(one) for title, one in content["scores"].items()}
    return {**rest, "model": model}


@pytest.mark.parametrize("count", COUNTS)
def test_outputs_are_equal_to_the_last_byte(sample: Path, count: int) -> None:
    one, several = outputs(made_by(sample, 1)), outputs(made_by(sample, count))
    assert one.keys() == several.keys()
    assert [name for name in one if one[name] != several[name]] == []
    names = [Path(name).name for name in one]
    for name, times in {
        f"{VAL_IDS[1]}.npy": 2,  # of two splits
        f"{VAL_IDS[1]}.png": 5,  # both with and without CRF, and predict
        "submission.tar.gz": 1,
        "submission_crf.tar.gz": 1,
        "figure.png": 1,
        "gray_overlay.jpg": 1,
    }.items():
        assert names.count(name) == times, name


@pytest.mark.parametrize("count", COUNTS)
def test_scores_are_equal(sample: Path, count: int) -> None:
    one, several = (paths_of(sample, made_by(sample, number)) for number in (1, count))
    for kind in ("val", "crf", "report"):
        files = [
            p.report_path if kind == "report" else p.scores_path("val", crf=kind == "crf")
            for p in (one, several)
        ]
        first, second = (same_in_any_run(read_json(path)) for path in files)
        assert first == second
    labels = read_json(several.report_path)["training_labels"]
    assert 0 < labels["Mean IoU"] < 1  # else its parts would say little
    crf_scores = read_json(several.scores_path("val", crf=True))
    assert crf_scores["processes"] == count and crf_scores["seconds_per_picture"] > 0


@pytest.mark.parametrize("count", COUNTS)
def test_page_shows_the_same_pictures(sample: Path, count: int) -> None:
    seen = []
    for number in (1, count):
        text = paths_of(sample, made_by(sample, number)).page_path.read_text(encoding="utf-8")
        seen.append(re.findall(r'data-name="[^"]*"|data:image/[^"]*|<dd>[^<]* %</dd>', text))
    assert seen[0] == seen[1]
    assert sum(text.startswith("data-name") for text in seen[0]) == len(VAL_IDS)


@pytest.mark.parametrize("count", COUNTS)
def test_log_tells_of_the_pictures_of_all(sample: Path, count: int) -> None:
    folder = made_by(sample, count)
    text = log_of(sample, folder, "predict")
    for name in (*(f"{image_id}.jpg" for image_id in VAL_IDS), "gray.png"):
        assert text.count(f" {name}: ") == 1
    assert text.count("predict: all 3 pictures are done") == 1
    assert "crf: 2 pictures of list val" in log_of(sample, folder, "crf")
    assert f"to do in {count} processes" in log_of(sample, folder, "crf")


def test_one_process_goes_on_from_several_and_the_other_way(sample: Path, tmp_path: Path) -> None:
    folder = copy_of(made_by(sample, 3), tmp_path / "run")
    before = outputs(folder)
    paths = paths_of(sample, folder)
    paths.prediction_dir("val").joinpath(f"{VAL_IDS[1]}.png").unlink()
    paths.prediction_dir("val", crf=True).joinpath(f"{VAL_IDS[0]}.png").unlink()
    argvs = [command_line(command, sample, folder) for command in ("test", "crf")]
    run_processes(run_commands, *argvs)  # in the first command one has a picture, the other none
    assert outputs(folder) == before
    assert "1 pictures to do" in log_of(sample, folder, "test")
    paths.prediction_dir("val").joinpath(f"{VAL_IDS[0]}.png").unlink()
    assert run("test", sample, folder) == 0
    assert "1 pictures to do" in log_of(sample, folder, "test")
    assert outputs(folder) == before


def test_two_processes_test_like_one(sample: Path, tmp_path: Path) -> None:
    copy_of(two_process_run(sample), tmp_path, "models")
    assert run("test", sample, tmp_path) == 0
    one, two = (paths_of(sample, folder) for folder in (tmp_path, two_process_run(sample)))
    for image_id in VAL_IDS:
        names = f"{image_id}.npy", f"{image_id}.png"
        folders = [(p.logits_dir("val"), p.prediction_dir("val")) for p in (one, two)]
        for name, first, second in zip(names, *folders, strict=True):
            assert sha256_file(first / name) == sha256_file(second / name)
    scores = [read_json(paths.scores_path("val")) for paths in (one, two)]
    assert scores[0]["Class IoU"] == scores[1]["Class IoU"]


# ------------------------------------------------------------------------------------------ errors


def fail(*_: object) -> None:
    raise UserError("the disk of the other process is gone; mend it.")


def run_and_fail(folder: Path, *argvs: list[str]) -> None:
    """Run commands of which one process alone has an error; keeps what every process says."""
    if rank() == 1:
        inference.write_label = crf.write_label = prediction.write_label = fail
    for argv in argvs:
        try:
            run_commands(argv)
            said = "nothing"
        except UserError as error:
            said = str(error)
        (folder / f"{argv[0]}_{rank()}.txt").write_text(said)


def test_error_of_one_process_stops_all(sample: Path, tmp_path: Path) -> None:
    folder = copy_of(made_by(sample, 1), tmp_path / "run")
    given = ("--input", str(photos(sample)), "--output", str(tmp_path / "out"))
    argvs = [
        command_line("crf", sample, folder, "--overwrite"),
        command_line("test", sample, folder, "--overwrite"),
        command_line("predict", sample, folder, *given, values={"IMAGE.SIZE.TEST": "none"}),
    ]
    run_processes(run_and_fail, tmp_path, *argvs)
    said = {path.stem: path.read_text() for path in tmp_path.glob("*.txt")}
    assert said.keys() == {f"{argv[0]}_{index}" for argv in argvs for index in (0, 1)}
    assert set(said.values()) == {"the disk of the other process is gone; mend it."}
    assert not paths_of(sample, folder).scores_path("val").exists()  # outputs have changed


def test_broken_pictures_of_all_processes_are_told(sample: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(photos(sample), tmp_path / "photos"))
    for name in ("a.jpg", "z.jpg", "b.jpg"):
        (source / name).write_bytes(b"no picture")
    folder = copy_of(finished_run(sample), tmp_path / "run", "models")
    given = ("--input", str(source), "--output", str(tmp_path / "out"))
    argv = command_line("predict", sample, folder, *given, values={"IMAGE.SIZE.TEST": "none"})
    with pytest.raises(Exception, match=r"3 of 6 files of .*: 'a.jpg', 'b.jpg', 'z.jpg'; the othe"):
        run_processes(run_commands, argv)
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    assert log_of(sample, folder, "predict").count("left out: ") == 3


def refuse_own_folders(sample: Path, pictures: Path, folder: Path, weights: Path) -> None:
    """Run every command in a folder that no other process sees; keeps what each process says."""
    distributed._SECONDS_TO_APPEAR = 0
    own, model = folder / f"own_of_{rank()}", ("-m", str(weights))
    given = ("--input", str(pictures), "--output", str(own / "out"))
    for argv in (
        command_line("train", sample, own),
        command_line("test", sample, own, *model),
        command_line("crf", sample, own, *model),
        command_line("report", sample, own),
        command_line("predict", sample, own, *model, *given, values={"IMAGE.SIZE.TEST": "none"}),
    ):
        with pytest.raises(UserError) as error:
            run_commands(argv)
        (folder / f"{argv[0]}_{rank()}.txt").write_text(str(error.value))


def test_folders_that_not_all_processes_see_are_refused(sample: Path, tmp_path: Path) -> None:
    weights = paths_of(sample, finished_run(sample)).checkpoint("final")
    run_processes(refuse_own_folders, sample, photos(sample), tmp_path, weights)
    for path in tmp_path.glob("*.txt"):
        command, _, index = path.stem.partition("_")
        place = f"own_of_{index}/out" if command == "predict" else f"own_of_{index}"
        option = "--output" if command == "predict" else "EXP.OUTPUT_DIR"
        sentence = f"{option} {tmp_path / place} on "
        assert path.read_text().startswith(sentence), path.read_text()
        assert "is not the folder that the main process has" in path.read_text()
    assert len(list(tmp_path.glob("*.txt"))) == 10


def train_and_let_the_main_process_decide(*argvs: list[str]) -> None:
    """Train while the other processes fail when they look for themselves."""
    if rank() > 0:
        engine.check_training = engine.require_own = engine.keep_file = fail
        lineage.training = engine.remove_file = fail
    run_commands(*argvs)


def test_main_process_decides_about_trainings(sample: Path, tmp_path: Path) -> None:
    argv = command_line("train", sample, tmp_path)
    run_processes(train_and_let_the_main_process_decide, argv, argv, [*argv, "--overwrite"])
    text = log_of(sample, tmp_path, "train")
    assert text.count("iteration 6/6") == 2 and text.count("is finished and is kept") == 1


def break_weights(folder: Path, argv: list[str]) -> None:
    """Train where one process alone cannot have the first weights."""
    if rank() == 1:
        engine.initialise = fail
    with pytest.raises(UserError, match="the disk of the other process is gone"):
        run_commands(argv)
    (folder / f"{rank()}.txt").touch()


def test_process_without_first_weights_stops_a_training(sample: Path, tmp_path: Path) -> None:
    run_processes(break_weights, tmp_path, command_line("train", sample, tmp_path))
    assert len(list(tmp_path.glob("*.txt"))) == 2
