"""Outputs follow the pictures and weights they were made from; failures come before the work."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from pipeline import TRAIN_IDS, copy_of, log_of, metrics, output, run, times

from misc.files import up_to_date
from step import cam_origins
from step.checks import readiness_problems
from step.run import finished_run
from voc12.source import open_source

INFERENCE = ("--steps", "make_cam,make_sem_seg_labels,eval_sem_seg")


def test_an_output_older_than_its_input_is_out_of_date(tmp_path: Path) -> None:
    import os

    output_file, input_file = tmp_path / "out", tmp_path / "in"
    assert not up_to_date(output_file, input_file)
    for path, seconds in ((input_file, 10), (output_file, 11)):
        path.touch()
        os.utime(path, (seconds, seconds))
    assert up_to_date(output_file, input_file)
    os.utime(input_file, (12, 12))
    assert not up_to_date(output_file, input_file)


def test_a_changed_picture_is_redone_alone(sample: Path, finished: Path, tmp_path: Path) -> None:
    """Weights from elsewhere (no records): nothing but the picture's file tells the difference."""
    root = Path(shutil.copytree(sample, tmp_path / "voc"))
    work = copy_of(finished, tmp_path / "work", without=["*.pth.json"])
    changed = root / "JPEGImages" / f"{TRAIN_IDS[2]}.jpg"
    ImageOps.invert(Image.open(changed)).save(changed)
    before = times(work)
    assert run(root, work, *INFERENCE) == 0
    redone = {path for path, time in times(work).items() if time != before[path]}
    assert redone == {output(work, kind, TRAIN_IDS[2]) for kind in ("cam", "sem_seg", "edge")}


def test_finished_cams_are_opened_again_only_when_they_changed(
    sample: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, opened = copy_of(finished, tmp_path / "work"), []
    output(work, "cam", TRAIN_IDS[0]).unlink()
    load = cam_origins.load_cam_origin

    def counted(path: Path) -> tuple[np.ndarray, int]:
        opened.append(path)
        return load(path)

    monkeypatch.setattr(cam_origins, "load_cam_origin", counted)
    assert run(sample, work, "--steps", "make_cam") == 0
    assert opened == [output(work, "cam", i) for i in TRAIN_IDS[1:]]
    opened.clear()
    before = times(work)
    assert run(sample, work, "--steps", "make_cam") == 0
    assert opened == []  # not even the one that was written
    assert times(work) == before
    first, second = (output(work, "cam", i) for i in TRAIN_IDS[:2])
    shutil.copyfile(second, first)
    assert run(sample, work, "--steps", "make_cam") == 0
    assert opened == [first]
    assert cam_origins.load_cam_origin(first)[1] != cam_origins.load_cam_origin(second)[1]


def test_missing_edge_maps_are_made_again(sample: Path, finished: Path, tmp_path: Path) -> None:
    work = copy_of(finished, tmp_path / "work")
    output(work, "edge", TRAIN_IDS[0]).unlink()
    assert run(sample, work, "--steps", "make_sem_seg_labels") == 0
    assert output(work, "edge", TRAIN_IDS[0]).is_file()


def test_force_does_not_overwrite_a_branch_from_elsewhere(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    work = copy_of(finished, tmp_path / "work", without=["deits_cam.pth*", "res152_cam.pth.json"])
    kept = (work / "sess" / "res152_cam.pth").read_bytes()
    assert run(sample, work, "--steps", "train_cam", "--force") == 2
    assert "both are trained together" in capsys.readouterr().err
    assert (work / "sess" / "res152_cam.pth").read_bytes() == kept


def test_a_run_of_later_steps_keeps_the_earlier_results(
    sample: Path, finished: Path, tmp_path: Path
) -> None:
    work = copy_of(finished, tmp_path / "work")
    before = metrics(work)
    assert run(sample, work, "--from_step", "eval_sem_seg", sem_seg_bg_thres=0.25) == 0
    after = metrics(work)
    assert after["seed_miou"] == before["seed_miou"] is not None
    assert after["seconds"]["train_cam"] == before["seconds"]["train_cam"]
    assert "eval_cam" in after["carried_over"] and "eval_sem_seg" not in after["carried_over"]
    assert run(sample, work, "--steps", "eval_cam", cam_eval_thres=0.3) == 0
    assert metrics(work)["mask_miou"] is None  # a later result may not belong to this seed


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"irn_backbone": "resnt50"}, "unusable IRNet: resnt50"),
        ({"cnn": "resnt18"}, "unusable CNN branch: resnt18"),
        ({"vit": "resnet18"}, "unusable transformer branch"),
    ],
)
def test_networks_are_tried_before_the_work(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: dict, told: str
) -> None:
    assert run(sample, tmp_path / "work", **options) == 2
    assert told.split(":")[0] in (message := capsys.readouterr().err)
    assert told.rpartition(": ")[2] in message
    assert "stopped: Nothing was started" in log_of(tmp_path / "work")
    assert not (tmp_path / "work" / "sess" / "train_cam.state.pth").exists()


def test_missing_crf_is_told_before_the_work(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    asked, default = (
        finished_run(open_source(sample), tmp_path, **options)
        for options in ({"crf_backend": "pydensecrf"}, {})
    )
    (problem,) = readiness_problems(asked, ("cam_to_ir_label",))
    assert "pip install pydensecrf2" in problem
    assert readiness_problems(default, ("cam_to_ir_label",)) == []


def test_finished_training_needs_no_imagenet_weights(finished: Path) -> None:
    from pipeline import prepared

    args = prepared(finished / "sess", finished, init="pretrained", cnn="resnet34")
    assert readiness_problems(args, ("train_cam",)) == []


def test_root_one_level_up_gets_a_hint(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = tmp_path / "VOCdevkit"
    root.mkdir()
    (root / "VOC2012").symlink_to(sample)
    assert run(root, tmp_path / "work") == 2
    assert f"did you mean --voc12_root {root / 'VOC2012'}" in capsys.readouterr().err
