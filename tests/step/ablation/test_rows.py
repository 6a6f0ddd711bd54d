"""The rows: what each changes, what it makes itself, and whose outputs it reads."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from misc.errors import UserError
from step.ablation import __main__ as command
from step.ablation.rows import CRT, GROUPS, ROWS, filled
from step.ablation.runs import RowRun, plan_runs, with_needs
from step.command_line import parse_args

# The paper's choices at half of its sizes, whatever the preset has.
BASE = ("--preset", "demo", "--voc12_root", "/data/voc", "--cam_fusion", "transformer")
BASE += ("--num_passes", "3", "--cam_lambda", "0.1", "--cam_crop_size", "168")
BASE += ("--tile_size", "112", "--tile_stride", "56", "--vit_args", "patch_size=8")
BASE += ("--conf_fg_thres", "0.35", "--conf_bg_thres", "0.15", "--sem_seg_bg_thres", "0.3")
CHANGES: dict[str, dict[str, Any]] = {
    "crt": {},
    "cnn": {"cam_lambda": 0, "cam_fusion": "cnn"},
    "transformer": {"cam_lambda": 0},
    "passes1": {"num_passes": 1},
    "passes2": {"num_passes": 2},
    "whole": {"tile_size": 168, "tile_stride": 168},
    "lambda0.01": {"cam_lambda": 0.01},
    "lambda1": {"cam_lambda": 1},
    "fusion_cnn": {"cam_fusion": "cnn"},
    "fusion_mean": {"cam_fusion": "mean"},
    "fusion_max": {"cam_fusion": "max"},
    "walk_off": {"cam_eval_thres": 0.3},
    "crf_off": {"crf_iterations": 0},
    "narrow": {"conf_bg_thres": 0.2, "conf_fg_thres": 0.3},
}
TRAINING, MAPS, LABELS, IRN = "train_cam", "make_cam,eval_cam", "cam_to_ir_label", "train_irn"
MASKS = "make_sem_seg_labels,eval_sem_seg"
AFTER_TRAINING = ",".join((MAPS, LABELS, IRN, MASKS))
AFTER_MAPS = ",".join(("eval_cam", LABELS, IRN, MASKS))
ALL = f"{TRAINING},{AFTER_TRAINING}"
# Row: steps that it runs; whose weights and whose CAMs it reads.
SHARING = {
    "crt": (ALL, "crt", "crt"),
    "cnn": (ALL, "cnn", "cnn"),
    "transformer": (AFTER_TRAINING, "cnn", "transformer"),
    "passes1": (ALL, "passes1", "passes1"),
    "passes2": (ALL, "passes2", "passes2"),
    "whole": (ALL, "whole", "whole"),
    "lambda0.01": (ALL, "lambda0.01", "lambda0.01"),
    "lambda1": (ALL, "lambda1", "lambda1"),
    "fusion_cnn": (AFTER_TRAINING, "crt", "fusion_cnn"),
    "fusion_mean": (AFTER_TRAINING, "crt", "fusion_mean"),
    "fusion_max": (AFTER_TRAINING, "crt", "fusion_max"),
    "walk_off": ("eval_cam", "crt", "crt"),
    "crf_off": (AFTER_MAPS, "crt", "crt"),
    "narrow": (AFTER_MAPS, "crt", "crt"),
}
WORK = Path("/runs")


def planned(*extra: str, seeds: tuple[int, ...] = (7,)) -> dict[str, RowRun]:
    return plan_runs((*BASE, *extra), WORK, ROWS, seeds)


def folder(row: str, seed: int = 7) -> Path:
    return WORK / "sess/ablation" / row / f"seed{seed}"


def test_the_table_is_the_one_that_was_asked_for() -> None:
    assert [row.name for row in ROWS] == list(CHANGES)
    assert all(group.members()[-1][1] is CRT for group in GROUPS)


@pytest.mark.parametrize("name", CHANGES)
def test_a_row_changes_nothing_but_what_it_says(name: str) -> None:
    runs = planned()
    crt, own = (asdict(runs[f"{row}/seed7"].options) for row in ("crt", name))
    placed = {option for option, value in crt.items() if isinstance(value, Path)} | {"steps"}
    found = {o: v for o, v in own.items() if v != crt[o] and o not in placed}
    assert found == CHANGES[name]
    base = asdict(parse_args(BASE))
    quiet = {"seed": 7, "figure_num": 0, "report_num": 0}
    assert {o: v for o, v in crt.items() if v != base[o] and o not in placed} == quiet


@pytest.mark.parametrize("name", SHARING)
def test_nothing_is_made_twice(name: str) -> None:
    steps, weights, cams = SHARING[name]
    run = planned()[f"{name}/seed7"]
    assert ",".join(run.options.steps) == ",".join(run.steps) == steps
    assert run.options.work_dir == folder(name)
    assert run.options.cam_weights_name == folder(weights) / "sess/res152_cam.pth"
    assert run.options.deit_weights_name == folder(weights) / "sess/deits_cam.pth"
    assert run.options.cam_out_dir == folder(cams) / "result/cam"
    assert run.options.result_dir == folder(name) / "result"
    assert run.needs == {f"{row}/seed7" for row in (weights, cams)} - {run.name}


def test_a_row_that_is_crt_only_scores() -> None:
    run = planned("--num_passes", "2")["passes2/seed7"]
    assert run.steps == ("eval_cam", "eval_sem_seg")
    assert run.options.sem_seg_out_dir == folder("crt") / "result/sem_seg"


def test_the_preset_fits_every_row() -> None:
    base = ("--preset", "demo", "--voc12_root", "/data/voc")
    runs = plan_runs(base, WORK, ROWS, (0,))
    assert [run.row for run in runs.values()] == list(ROWS)
    whole = runs["whole/seed0"].options
    assert whole.tile_size == whole.tile_stride == whole.cam_crop_size


def test_seeds_share_nothing() -> None:
    runs = planned(seeds=(1, 2))
    assert [run.options.seed for run in runs.values()] == [1] * len(ROWS) + [2] * len(ROWS)
    for run in runs.values():
        assert all(need.endswith(f"/seed{run.seed}") for need in run.needs)
        assert run.options.work_dir == folder(run.row.name, run.seed)


def test_what_a_chosen_row_reads_from_is_done_too() -> None:
    runs = planned(seeds=(1, 2))
    chosen = with_needs(runs, ["transformer"])
    names = ["cnn/seed1", "transformer/seed1", "cnn/seed2", "transformer/seed2"]
    assert [run.name for run in chosen] == names


def test_titles_say_what_crt_has() -> None:
    crt = parse_args(BASE)
    found = {group.title: filled(group.members()[-1][0], crt) for group in GROUPS}
    assert found == {
        "Branches": "both with refinement (CRT)",
        "Passes": "3 passes (CRT)",
        "Tiles": "tiles of 112 pixels every 56 (CRT)",
        "Refinement": "lambda 0.1 (CRT)",
        "Fusion": "transformer (CRT)",
        "Random walk": "on (CRT)",
        "IR labels": "CRF of 10 steps, background scores 0.15 and 0.35 (CRT)",
    }


def test_options_that_no_row_can_take_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--cam_crop_size 100"):
        planned("--cam_crop_size", "100")
    with pytest.raises(SystemExit):
        command.main(["--rows", "crt,walk"])
    assert "walk is no row; rows: crt, cnn" in capsys.readouterr().err


def test_photos_without_masks_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--work_dir", str(tmp_path), "--", "--preset", "photos", "--photos", "mine"]
    assert command.main(argv) == 2
    assert "mine has no masks to score with" in capsys.readouterr().err


def test_the_rows_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list_rows", "--", *BASE]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  whole        whole crop of 168 pixels: --tile_size 168 --tile_stride 168" in lines
    assert sum("no changes" in line for line in lines) == len(GROUPS)
