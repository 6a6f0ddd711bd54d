"""--overwrite removes what this run makes again, never anything else, and nothing too early."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pipeline import (
    TRAIN_IDS,
    VAL_IDS,
    WEIGHTS,
    copy_of,
    disturb_weights,
    hashes,
    log_of,
    output,
    outputs,
    run,
    times,
    write_list,
)

from misc.errors import UserError
from step.command_line import parse_args

AGAIN = ("--steps", "make_sem_seg_labels", "--overwrite")


def files_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys: pytest.CaptureFixture, sample: Path, work: Path, *flags: str, **options) -> str:
    """Run, expect status 2 and every file but the log as it was; returns what was said."""
    before = files_below(work)
    assert run(sample, work, *flags, **options) == 2
    after = {path: content for path, content in files_below(work).items() if path.suffix != ".log"}
    assert after == {path: text for path, text in before.items() if path.suffix != ".log"}
    return capsys.readouterr().err


def test_masks_of_the_user_are_never_removed(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    work = copy_of(finished, tmp_path / "work")
    mine = tmp_path / "mine"
    shutil.copytree(sample / "SegmentationClass", mine)
    before = files_below(mine)
    error = refused(capsys, sample, work, *AGAIN, sem_seg_out_dir=mine)
    assert f"{mine} has no record of what made it" in error
    assert "choose another --sem_seg_out_dir" in error and "--overwrite" not in error
    assert run(sample, work, "--steps", "make_sem_seg_labels", sem_seg_out_dir=mine) == 2
    assert "--overwrite" not in capsys.readouterr().err
    assert files_below(mine) == before


def test_weights_from_elsewhere_are_never_removed(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    work = copy_of(finished, tmp_path / "work", without=["res152_cam.pth.json"])
    error = refused(capsys, sample, work, "--overwrite")
    assert "res152_cam.pth would be replaced" in error and "--cam_weights_name" in error


def test_masks_of_other_lists_stay(sample: Path, finished: Path, tmp_path: Path) -> None:
    work = copy_of(finished, tmp_path / "work")
    assert run(sample, work, infer_list="val") == 0
    before = times(work)
    assert run(sample, work, *AGAIN, infer_list="val") == 0
    assert times(work) == before
    assert "removed 2 file(s) of make_sem_seg_labels" in log_of(work)


def test_masks_of_other_lists_must_not_become_stale(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    work = copy_of(finished, tmp_path / "work")
    assert run(sample, work, infer_list="val") == 0
    error = refused(capsys, sample, work, *AGAIN, infer_list="val", sem_seg_bg_thres=0.4)
    assert f"sem_seg also holds {len(TRAIN_IDS)} files of other lists" in error
    assert "move them away" in error and "remove" not in error  # some may be the user's own
    # The same when an earlier step of the run changes what is made.
    error = refused(capsys, sample, work, "--overwrite", cam_scales="1.0", infer_list="train")
    assert f"cam also holds {len(VAL_IDS)} files of other lists" in error


def test_only_what_a_changed_argument_makes_counts_as_changed(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The background score of the masks says nothing about the edges beside them."""
    work = copy_of(finished, tmp_path / "work")
    assert run(sample, work, infer_list="val") == 0
    error = refused(capsys, sample, work, *AGAIN, infer_list="val", sem_seg_bg_thres=0.4)
    assert "--sem_seg_out_dir" in error and "--edge_out_dir" not in error


def test_masks_of_other_lists_must_not_outlive_the_weights(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """On a GPU weights differ in their last digits when they are trained again."""
    work = copy_of(finished, tmp_path / "work")
    assert run(sample, work, infer_list="val") == 0
    error = refused(capsys, sample, work, "--from_step", "train_irn", "--overwrite")
    assert f"sem_seg also holds {len(VAL_IDS)} files of other lists" in error
    assert "cam also holds" not in error


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()  # it may be a link
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("spoil", "steps", "told"),
    [
        (lambda work: truncate(work / "sess" / WEIGHTS["irn"]), "make_sem_seg_labels", "res50_irn"),
        (lambda work: truncate(work / "sess" / WEIGHTS["transformer"]), "make_cam", "deits_cam"),
    ],
)
def test_outputs_stay_when_the_weights_are_damaged(
    sample: Path,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    spoil: Callable[[Path], None],
    steps: str,
    told: str,
) -> None:
    work = copy_of(finished, tmp_path / "work")
    spoil(work)
    error = refused(capsys, sample, work, "--steps", steps, "--overwrite", "--force")
    assert f"{told}.pth cannot be read" in error


def test_outputs_stay_when_the_network_is_unknown(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    work = copy_of(finished, tmp_path / "work")
    assert "resnt18" in refused(capsys, sample, work, "--overwrite", cnn="resnt18")


def test_an_interrupted_overwrite_is_gone_on_with(
    sample: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill in the second of the redone steps: the same command without --overwrite."""
    work = copy_of(finished, tmp_path / "work")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("step.cam_to_ir_label.run", killed)
        assert run(sample, work, "--overwrite", cam_scales="1.0") == 130
    assert not any(output(work, "sem_seg", i).exists() for i in TRAIN_IDS)
    assert run(sample, work, cam_scales="1.0") == 0
    assert all(path.is_file() for path in outputs(work).values())
    assert hashes(work, "cam") != hashes(finished, "cam")


def test_an_interrupted_removal_leaves_no_old_output_behind_a_new_one(
    sample: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill while files are removed: the earliest step's are there, or none at all."""
    work = copy_of(finished, tmp_path / "work")
    removed: list[Path] = []

    def killed_at_the_second(folder: Path, *_: object) -> int:
        if removed:
            raise KeyboardInterrupt
        removed.append(folder)
        shutil.rmtree(folder)
        return 0

    with monkeypatch.context() as patch:
        patch.setattr("step.overwrite.remove_outputs", killed_at_the_second)
        steps = ("--steps", "make_cam,cam_to_ir_label", "--overwrite")
        assert run(sample, work, *steps, cam_scales="1.0") == 130
    assert removed == [work / "result" / "ir_label"]
    assert hashes(work, "cam") == hashes(finished, "cam")


@pytest.mark.parametrize(
    "options",
    [
        {"edge_out_dir": "result"},
        {"edge_out_dir": "result/sem_seg"},
        {"cam_out_dir": "result/sem_seg/../ins_seg/deeper"},
        {"deit_weights_name": "sess/res152_cam.pth"},
    ],
)
def test_outputs_must_not_lie_in_each_other(tmp_path: Path, options: dict[str, str]) -> None:
    own = [text for name, value in options.items() for text in (f"--{name}", value)]
    with pytest.raises(UserError, match=r"of its own|its own file"):
        parse_args(["--voc12_root", ".", "--work_dir", str(tmp_path), *own])


def test_scores_are_carried_over_only_with_their_list_and_threshold(
    sample: Path, finished: Path, tmp_path: Path
) -> None:
    from pipeline import metrics

    work = copy_of(finished, tmp_path / "work")
    chosen = write_list(tmp_path / "chosen.txt", TRAIN_IDS)
    late = ("--steps", "eval_sem_seg")
    assert run(sample, work, eval_list=chosen) == 0
    assert run(sample, work, *late, eval_list=chosen) == 0
    assert metrics(work)["seed_miou"] == metrics(finished)["seed_miou"]
    assert run(sample, work, *late, eval_list=chosen, cam_eval_thres=0.3) == 0
    assert metrics(work)["seed_miou"] is None
    assert run(sample, work, eval_list=chosen) == 0
    write_list(chosen, TRAIN_IDS[:3])  # edited, under the same name
    assert run(sample, work, *late, eval_list=chosen) == 0
    assert metrics(work)["seed_miou"] is None
    assert metrics(work)["steps"]["eval_sem_seg"]["pictures"] == 3


@pytest.mark.parametrize("content", ["[]", '{"arguments": [], "steps": 3}'])
def test_damaged_metrics_are_told(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture, content: str
) -> None:
    work = copy_of(finished, tmp_path / "work")
    (work / "result" / "metrics.json").write_text(content)
    assert "metrics.json" in refused(capsys, sample, work, "--steps", "eval_cam")


@pytest.mark.parametrize("folder", ["JPEGImages", "SegmentationClass/mine", "Annotations"])
def test_outputs_do_not_go_among_the_data(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture, folder: str
) -> None:
    work = copy_of(finished, tmp_path / "work")
    before = files_below(sample)
    options = {"ir_label_out_dir": sample / folder}
    assert "among the data" in refused(
        capsys, sample, work, "--steps", "cam_to_ir_label", **options
    )
    assert files_below(sample) == before


def test_weights_put_in_place_of_ours_are_never_removed(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    work = copy_of(finished, tmp_path / "work")
    disturb_weights(work / "sess" / WEIGHTS["cnn"])
    error = refused(capsys, sample, work, "--overwrite")
    assert "res152_cam.pth would be replaced" in error and "has no record" in error
    error = refused(capsys, sample, work, "--steps", "train_cam")
    assert "res152_cam.pth does not come from the current arguments" in error
    assert "--overwrite" not in error
