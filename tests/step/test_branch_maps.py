"""The figure of a run: what each branch sees alone, beside the CAM."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline import (
    TRAIN_IDS,
    WEIGHTS,
    copy_of,
    disturb_weights,
    log_of,
    prepared,
    run,
    weights,
    write_list,
)

from misc.checkpoint import save_checkpoint
from misc.maps_io import load_cam, read_image
from misc.provenance import read_record, seal_record
from misc.visualize import FigureRow, heat_map
from step import make_figure
from step.branch_maps import known_branches
from step.run import Run

CRT = "CRT: maps x attention"
ROUNDING = 4  # of CAMs to float16, in colours
DIFFERENT = 40  # in colours
CELL = 2.02 * 110  # pixels between the columns of the figure: 1.9 inches and a margin of 0.12


def rows_of(run: Run, *branches: str) -> dict[str, FigureRow]:
    """Rows of two pictures with the maps of some branches."""
    rows = {name: make_figure.draw_picture(run, name) for name in TRAIN_IDS[:2]}
    for branch in branches:
        make_figure.draw_branch(run, branch, rows)
    return rows


def replace_weights(work: Path, name: str, state: Mapping[str, torch.Tensor]) -> Path:
    """Put other weights of a network in the place of those that the run has trained."""
    path = work / "sess" / WEIGHTS[name]
    save_checkpoint(path, state)
    seal_record(path)
    return path


def greatest_difference(one: np.ndarray, other: np.ndarray) -> int:
    """Of two pictures of uint8."""
    return int(np.abs(one.astype(int) - other).max())


def columns_in(path: Path) -> int:
    """Number of columns by the width of a figure."""
    with Image.open(path) as image:
        return int(image.width / CELL)


def test_figure_of_a_run_has_a_column_for_each_branch(finished: Path, sample: Path) -> None:
    assert columns_in(finished / "result" / "figure.png") == len(make_figure.COLUMNS) == 9
    rows = rows_of(prepared(sample, finished), "cnn", "transformer")
    titles = {"photo", "ground truth", "CNN", "transformer", CRT}
    titles |= {"IR label", "edge map", "pseudo mask", "instances"}
    assert [set(row.cells) for row in rows.values()] == [titles] * 2


def test_cnn_column_is_the_cam_that_make_cam_writes_of_the_cnn(
    finished: Path, sample: Path, tmp_path: Path
) -> None:
    work, folder = copy_of(finished, tmp_path / "work"), tmp_path / "cnn"
    options = {"cam_fusion": "cnn", "cam_out_dir": folder}
    assert run(sample, work, "--steps", "make_cam", **options) == 0
    made = prepared(sample, work)
    for name, row in rows_of(made, "cnn").items():
        image = read_image(made.source.devkit.image_path(name))
        maps = load_cam(folder / f"{name}.npz").high_res
        assert greatest_difference(row.cells["CNN"], heat_map(image, maps)) <= ROUNDING
        assert greatest_difference(row.cells["CNN"], row.cells[CRT]) > DIFFERENT


@pytest.mark.parametrize("factor", [0, 100])
def test_transformer_column_is_the_crt_map_where_attention_is_uniform(
    finished: Path, sample: Path, tmp_path: Path, factor: float
) -> None:
    """Without queries all patches get the same attention, which normalisation divides away."""
    work = copy_of(finished, tmp_path / "work", without=["cam"])
    state = weights(finished, "transformer")
    for key in (key for key in state if ".attn.qkv." in key):
        state[key][: len(state[key]) // 3] *= factor
    replace_weights(work, "transformer", state)
    assert run(sample, work, "--steps", "make_cam") == 0
    for name, row in rows_of(prepared(sample, work), "transformer").items():
        difference = greatest_difference(row.cells["transformer"], row.cells[CRT])
        assert difference <= ROUNDING if factor == 0 else difference > DIFFERENT, name


def test_second_run_keeps_the_figure_until_something_in_it_changes(
    finished: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = copy_of(finished, tmp_path / "work")
    figure = work / "result" / "figure.png"
    steps = ("--from_step", "make_sem_seg_labels")
    first = figure.stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr("step.branch_maps.infer", lambda *_, **__: pytest.fail("made maps"))
        assert run(sample, work, *steps, figure_num=2) == 0
    assert figure.stat().st_mtime_ns == first
    assert "shows these outputs already" in log_of(work)
    assert run(sample, work, *steps, figure_num=1) == 0
    assert read_record(figure).arguments["pictures"] == [TRAIN_IDS[0]]
    mask = work / "result" / "sem_seg" / f"{TRAIN_IDS[0]}.png"
    before, hashed = figure.stat().st_mtime_ns, read_record(figure).inputs
    Image.open(mask).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mask)
    assert run(sample, work, *steps, figure_num=1) == 0
    assert figure.stat().st_mtime_ns > before
    changed = {k for k, value in read_record(figure).inputs.items() if hashed[k] != value}
    assert changed == {f"pseudo mask of {TRAIN_IDS[0]}"}


def test_branches_that_the_arguments_did_not_train_are_left_out(
    finished: Path, sample: Path, tmp_path: Path
) -> None:
    assert set(known_branches(prepared(sample, finished))) == {"cnn", "transformer"}
    assert known_branches(prepared(sample, finished, cam_num_epoches=7)) == {}
    assert known_branches(prepared(sample, finished, train_list=tmp_path / "gone.txt")) == {}
    few = write_list(tmp_path / "few.txt", TRAIN_IDS[:1])
    assert known_branches(prepared(sample, finished, train_list=few)) == {}
    without = copy_of(finished, tmp_path / "without", without=[WEIGHTS["cnn"]])
    assert set(known_branches(prepared(sample, without))) == {"transformer"}
    assert run(sample, without, "--steps", "make_sem_seg_labels", figure_num=2) == 0
    assert columns_in(without / "result" / "figure.png") == 8
    other = copy_of(finished, tmp_path / "other", without=["*.pth"])
    save_checkpoint(other / "sess" / WEIGHTS["cnn"], weights(finished, "cnn"))
    disturb_weights(other / "sess" / WEIGHTS["cnn"])
    assert known_branches(prepared(sample, other)) == {}


def test_weights_of_no_use_cost_the_figure_one_column(
    finished: Path, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    work = copy_of(finished, tmp_path / "work")
    large = {k: v * 1e30 if v.is_floating_point() else v for k, v in weights(work, "cnn").items()}
    path = replace_weights(work, "cnn", large)
    rows = rows_of(prepared(sample, work), "cnn", "transformer")
    assert not any("CNN" in row.cells for row in rows.values())
    assert all("transformer" in row.cells for row in rows.values())
    said = capsys.readouterr().out
    assert f"does not show what the cnn sees alone: {TRAIN_IDS[0]}" in said and str(path) in said


def test_figure_alone_has_no_maps_that_it_would_have_to_make(
    finished: Path, sample: Path, tmp_path: Path
) -> None:
    target = tmp_path / "figure.png"
    command = ["--voc12_root", str(sample), "--work_dir", str(finished), "--output", str(target)]
    assert make_figure.main(command) == 0
    assert columns_in(target) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


@pytest.mark.parametrize(
    ("fusion", "title"),
    [("cnn", "CAM: CNN alone"), ("mean", "CAM: mean of both"), ("max", "CAM: greater of both")],
)
def test_title_tells_how_the_cam_was_fused(
    finished: Path, sample: Path, tmp_path: Path, fusion: str, title: str
) -> None:
    few = write_list(tmp_path / "few.txt", TRAIN_IDS[:1])
    work = copy_of(finished, tmp_path / "work")
    options = {"cam_fusion": fusion, "cam_out_dir": tmp_path / fusion, "infer_list": few}
    assert run(sample, work, "--steps", "make_cam", **options) == 0
    made = prepared(sample, work, cam_out_dir=tmp_path / fusion)
    assert make_figure.fused_title(made) == title
    (tmp_path / fusion / "made_by.json").unlink()
    assert make_figure.fused_title(made) == "CAM"
