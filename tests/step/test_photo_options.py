"""The command line of a run on a folder of photos."""

from pathlib import Path

import pytest
from photo_files import LONG_SIDE, picture

from misc.errors import UserError
from step.command_line import parse_args
from step.presets import PRESETS
from voc12.photos import folder as photos


def test_photos_take_their_preset_and_lists_by_themselves(tmp_path: Path) -> None:
    folder = ["--photos", str(tmp_path / "f")]
    args = parse_args(folder)
    assert (args.preset, args.voc12_root) == ("photos", None)
    assert {args.train_list, args.infer_list, args.eval_list} == {"photos"}
    assert args.val_list == "none"
    assert not args.eval_cam_pass and not args.eval_sem_seg_pass and args.overlays
    assert args.cnn == PRESETS["photos"]["cnn"] != parse_args(["--voc12_root", "x"]).cnn
    explicit = parse_args([*folder, "--cam_crop_size", "448", "--infer_list", "mine.txt"])
    assert (explicit.cam_crop_size, explicit.infer_list) == (448, "mine.txt")
    paper = parse_args([*folder, "--preset", "paper"])
    assert (paper.cnn, paper.train_list, paper.overlays) == ("resnet152", "photos", True)


def test_random_weights_freeze_nothing(tmp_path: Path) -> None:
    folder = ["--photos", str(tmp_path / "f")]
    assert parse_args(folder).cnn_frozen_stages == 3
    args = parse_args([*folder, "--init=random"])
    assert (args.cnn_frozen_stages, args.fixed_batchnorm) == (0, False)
    assert (
        parse_args([*folder, "--init", "random", "--cnn_frozen_stages", "1"]).cnn_frozen_stages == 1
    )


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--photos", ""], "--photos is empty"),
        (["--voc12_root", "x"], "leave out --voc12_root"),
        (["--classes", "x", "--cls_labels", "y"], "leave out --classes, --cls_labels"),
        (["--work_dir", "{f}/out"], "--work_dir .*/f/out lies in --photos"),
        (["--work_dir", "{f}"], "--work_dir .*/f lies in --photos"),
        (["--cam_out_dir", "{f}/cat"], "--cam_out_dir .*/f/cat lies in --photos"),
    ],
)
def test_options_that_do_not_go_with_photos(tmp_path: Path, argv: list[str], told: str) -> None:
    folder = tmp_path / "f"
    words = [word.replace("{f}", str(folder)) for word in argv]
    with pytest.raises(UserError, match=told):
        parse_args(["--photos", str(folder), *words])


def test_the_folder_may_lie_in_the_work_folder_but_not_in_ours(tmp_path: Path) -> None:
    picture(tmp_path / "f" / "cat" / "1.jpg")
    photos.build(tmp_path / "f", tmp_path / "sess" / "photos", LONG_SIDE)
    with pytest.raises(UserError, match="which this program makes"):
        photos.build(
            tmp_path / "sess" / "photos" / "JPEGImages", tmp_path / "sess" / "photos", LONG_SIDE
        )
