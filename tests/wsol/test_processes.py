"""`test_cam.py` and `visualize.py` in several processes leave what one process leaves."""

import functools
import io
import json
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from processes import run_processes
from wsol_runs import CLASSES, SMALL, TEST_PER_CLASS, command_line, log_of, pairs, run_tool

from misc import distributed, entry
from misc.distributed import rank
from misc.errors import UserError
from misc.files import read_json
from wsol import engine, evaluation, figure, lineage
from wsol.config import Paths
from wsol.cub import scan_cub
from wsol.model import Localisation
from wsol.tools_cam import test_cam, train_cam, visualize

test_cam.__test__ = False
COUNTS = (2, 3)
TEST_COUNT = CLASSES * TEST_PER_CLASS
# Two batches and two pictures of the figure: of three processes one has neither.
VALUES = {
    "TEST__BATCH_SIZE": 4,
    "TEST__SAVE_BOXED_IMAGE": True,
    "TEST__REPORT_NUM": 5,
    "MODEL__CAM_THR": 0.5,
}
OTHER = {"seconds_per_picture", "arguments", "created", "command", "host"}


def arguments(birds: Path, folder: Path, *flags: str, **values: object) -> list[str]:
    options = ["--config_file", str(SMALL), "--device", "cpu", *flags]
    return [*options, *pairs(birds, folder, **{**VALUES, **values})]


def run_both(birds: Path, folder: Path, weights: Path) -> None:
    """Evaluate and draw, in a process that is connected to others or not."""
    given = ("--weights", str(weights))
    assert run_tool(test_cam, arguments(birds, folder, *given)) == 0
    assert run_tool(visualize, arguments(birds, folder, *given, "--num", "2")) == 0


@functools.cache
def made_by(birds: Path, trained: Path, count: int) -> Path:
    """Folder of what a number of processes made of the same weights; read only."""
    folder = birds.parent / f"wsol_by_{count}"
    weights = trained / "model_last.pth"
    if count == 1:
        run_both(birds, folder, weights)
    else:
        run_processes(run_joined, run_both, birds, folder, weights, count=count)
    return folder


def run_joined(function: Callable[..., None], *more: object) -> None:
    """Run tools one after the other; the first would part the processes at its end."""
    distributed.leave_processes = lambda: None
    function(*more)


def same_in_any_run(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in OTHER}


@pytest.mark.parametrize("count", COUNTS)
def test_scores_and_pictures_are_equal(birds: Path, trained: Path, count: int) -> None:
    one, several = (Paths(made_by(birds, trained, number)) for number in (1, count))
    first, second = (same_in_any_run(read_json(p.evaluation("test"))) for p in (one, several))
    assert first == second
    assert first["pictures"]["count"] == TEST_COUNT and first["scores"]["gt_known"] > 0
    assert len(first["thresholds"]) == 2 and first["max_box_acc_v2"]["percent"] > 0
    assert one.figure.read_bytes() == several.figure.read_bytes()
    boxed = [
        {path.name: path.read_bytes() for path in p.boxed_images("test").rglob("*.jpg")}
        for p in (one, several)
    ]
    assert boxed[0] == boxed[1] and len(boxed[0]) == TEST_COUNT


@pytest.mark.parametrize("count", COUNTS)
def test_page_shows_the_same_pictures(birds: Path, trained: Path, count: int) -> None:
    seen = []
    for number in (1, count):
        text = Paths(made_by(birds, trained, number)).page("test").read_text(encoding="utf-8")
        seen.append(re.findall(r'data-name="[^"]*"|data:image/[^"]*|<dd>[^<]* %</dd>', text))
    assert seen[0] == seen[1]
    assert sum(text.startswith("data-name") for text in seen[0]) == VALUES["TEST__REPORT_NUM"]


# ------------------------------------------------------------------------------------------ errors


def said(tool: Any, argv: list[str]) -> str:
    """What a tool stops with in this process, the bars aside."""
    with io.StringIO() as stream:
        with redirect_stderr(stream):
            assert run_tool(tool, argv) == 2
        return "\n".join(line for line in stream.getvalue().split("\n") if "it/s" not in line)


def run_and_fail(birds: Path, broken: Path, folder: Path, weights: Path) -> None:
    """Run both tools while the second of two processes finds maps that are not finite."""
    localise = evaluation.localise

    def spoiled(*more: object) -> Localisation:
        found = localise(*more)
        found.cams[0].view(-1)[0] = float("nan")
        return found

    entry._SECONDS_FOR_MAIN_PROCESS = 0
    if rank() == 1:
        evaluation.localise = figure.localise = spoiled
    given = ("--weights", str(weights))
    sentences = [said(tool, arguments(birds, folder, *given)) for tool in (test_cam, visualize)]
    sentences.append(said(test_cam, arguments(broken, folder, *given, TEST__SPLIT="train")))
    (folder / f"{rank()}.json").write_text(json.dumps(sentences))


def test_error_of_one_process_stops_all(birds: Path, trained: Path, tmp_path: Path) -> None:
    copy, folder = Path(shutil.copytree(birds, tmp_path / "CUB")), tmp_path / "run"
    for picture in scan_cub(copy)[0].train[:2]:
        picture.path.write_bytes(b"no picture")
    folder.mkdir()
    run_processes(run_and_fail, birds, copy, folder, trained / "model_last.pth")
    first, second = (json.loads((folder / f"{index}.json").read_text()) for index in (0, 1))
    assert first == second
    tested, drawn, refused = first
    for tool, sentence in (("test_cam", tested), ("visualize", drawn)):
        assert re.match(rf"{tool}\.py: the class scores or the map of \S+ are not fin", sentence)
    assert "Nothing was started, 2 problems:" in refused and "unreadable picture (2)" in refused
    assert not Paths(folder).evaluation("test").exists() and not Paths(folder).figure.exists()


def refuse_own_folders(birds: Path, folder: Path, weights: Path) -> None:
    """Run every tool in a folder that no other process sees; keeps what each process says."""
    entry._SECONDS_FOR_MAIN_PROCESS = distributed._SECONDS_TO_APPEAR = 0
    own, given = folder / f"own_of_{rank()}", ("--weights", str(weights))
    argv = arguments(birds, own, *given)
    sentences = [said(tool, argv) for tool in (test_cam, visualize)]
    sentences.append(said(train_cam, command_line(birds, own)))
    (folder / f"{rank()}.json").write_text(json.dumps(sentences))


def test_folders_that_not_all_processes_see_are_refused(
    birds: Path, trained: Path, tmp_path: Path
) -> None:
    run_processes(refuse_own_folders, birds, tmp_path, trained / "model_last.pth")
    for index in range(2):
        sentences = json.loads((tmp_path / f"{index}.json").read_text())
        wrong = f"BASIC.SAVE_DIR {tmp_path}/own_of_{index} on "
        assert [wrong in sentence for sentence in sentences] == [True] * 3, sentences
        assert not list((tmp_path / f"own_of_{index}").rglob("*.pth"))


def fail(*_: object) -> None:
    raise UserError("the disk of the other process is gone; mend it.")


def train_and_let_the_main_process_decide(birds: Path, folder: Path) -> None:
    """Train while the other process fails when it looks for itself, then when it has no weights."""
    entry._SECONDS_FOR_MAIN_PROCESS = 0
    if rank() == 1:
        lineage.training = lineage.require_own_weights = lineage.require_same_run = fail
    argv = command_line(birds, folder, SOLVER__NUM_EPOCHS=1)
    for flags in ([], [], ["--overwrite"]):
        assert run_tool(train_cam, [*argv, *flags]) == 0
    before = Paths(folder).last.read_bytes()
    if rank() == 1:
        engine.build_transformer = fail
    sentence = said(train_cam, [*argv, "--overwrite"])
    assert "train_cam.py: the disk of the other process is gone; mend it." in sentence
    assert Paths(folder).last.read_bytes() == before


def test_main_process_decides_about_trainings(birds: Path, tmp_path: Path) -> None:
    run_processes(run_joined, train_and_let_the_main_process_decide, birds, tmp_path)
    assert log_of(tmp_path).count("epoch 1/1") == 2
