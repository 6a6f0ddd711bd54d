"""Outputs know what made them: which options count, and what a run does when they changed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
from pipeline import (
    EPOCHS,
    TRAIN_IDS,
    VAL_IDS,
    WEIGHTS,
    copy_of,
    disturb_weights,
    hashes,
    log_of,
    metrics,
    output,
    prepared,
    run,
    times,
    write_list,
)

from misc.provenance import Record, read_record
from step.command_line import build_parser
from step.plan import OUTPUTS
from step.run import Run

RECORDS: dict[str, Callable[[Run], Record]] = {
    "train_cam": OUTPUTS["cam_weights_name"].record,
    "cam": OUTPUTS["cam_out_dir"].record,
    "ir_label": OUTPUTS["ir_label_out_dir"].record,
    "train_irn": OUTPUTS["irn_weights_name"].record,
    "sem_seg": OUTPUTS["sem_seg_out_dir"].record,
    "ins_seg": OUTPUTS["ins_seg_out_dir"].record,
}
WALK = {"sem_seg", "ins_seg"}

# option: (another value, whose records change). What follows from an input's record is not listed.
COUNTS: dict[str, tuple[Any, set[str]]] = {
    "train_list": ("val", {"train_cam", "train_irn"}),
    "init": ("pretrained", {"train_cam", "train_irn"}),
    "seed": (1, {"train_cam", "train_irn"}),
    "precision": ("bfloat16", {"train_cam", "cam", "train_irn", *WALK}),
    "momentum": (0.9, {"train_cam", "train_irn"}),
    "cam_crop_size": (64, {"train_cam"}),
    "cam_long_side": ("40,80", {"train_cam"}),
    "cam_batch_size": (2, {"train_cam"}),
    "cam_num_epoches": (3, {"train_cam"}),
    "cam_learning_rate": (0.2, {"train_cam"}),
    "deit_learning_rate": (0.2, {"train_cam"}),
    "deit_optimiser": ("adamw", {"train_cam"}),
    "cam_weight_decay": (0.0, {"train_cam"}),
    "cam_lambda": (0.2, {"train_cam"}),
    "cam_refine_epoch": (1, {"train_cam"}),
    "cnn": ("resnet34", {"train_cam"}),
    "cnn_args": ("zero_init_last=False", {"train_cam"}),
    "cnn_weights": (__file__, {"train_cam"}),
    "cnn_frozen_stages": (0, {"train_cam"}),
    "fixed_batchnorm": (False, {"train_cam"}),
    "vit": ("deit_small_patch16_224", {"train_cam", "cam"}),
    "vit_args": ("depth=2", {"train_cam", "cam"}),
    "vit_weights": (__file__, {"train_cam"}),
    "num_passes": (1, {"train_cam", "cam"}),
    "tile_size": (16, {"train_cam", "cam"}),
    "tile_stride": (8, {"train_cam", "cam"}),
    "cam_scales": ("1.0", {"cam"}),
    "cam_fusion": ("mean", {"cam"}),
    "deit_weights_name": (__file__, {"cam"}),
    "conf_fg_thres": (0.4, {"ir_label"}),
    "conf_bg_thres": (0.1, {"ir_label"}),
    "crf_iterations": (0, {"ir_label"}),
    "irn_backbone": ("resnet34", {"train_irn", *WALK}),
    "irn_backbone_args": ("zero_init_residual=True", {"train_irn", *WALK}),
    "irn_backbone_weights": (__file__, {"train_irn"}),
    "irn_crop_size": (80, {"train_irn"}),
    "irn_batch_size": (2, {"train_irn"}),
    "irn_num_epoches": (3, {"train_irn"}),
    "irn_learning_rate": (0.2, {"train_irn"}),
    "irn_weight_decay": (0.0, {"train_irn"}),
    "irn_radius": (4, {"train_irn"}),
    "irn_weights_name": (__file__, WALK),
    "irn_min_input": (80, WALK),
    "beta": (3, WALK),
    "exp_times": (2, WALK),
    "walk_radius": (3, WALK),
    "sem_seg_bg_thres": (0.3, {"sem_seg"}),
    "ins_seg_bg_thres": (0.3, {"ins_seg"}),
}
# Where things lie, how fast, what is run, what is only looked at.
DO_NOT_COUNT: dict[str, Any] = {
    "device": "auto",
    "num_workers": 1,
    "val_list": "none",
    "infer_list": "val",  # trained weights serve other lists, too
    "eval_list": "val",
    "cam_tile_batch": 1,
    "cam_eval_thres": 0.3,
    "crf_backend": "pydensecrf",  # equal labels
    "figure_num": 1,
    "report_num": 1,
    "overwrite": True,
    "force": True,
    "log_name": "other",
    "train_cam_pass": False,
    "cam_weights_name": __file__,  # the fusion does not use it
    "cam_out_dir": "elsewhere",
    "ir_label_out_dir": "elsewhere",
}
LEFT_OUT = {
    "preset",
    "estimate",
    "steps",
    "from_step",
    "work_dir",
    "cache_dir",
    "result_dir",
    "edge_out_dir",
}
LEFT_OUT |= {"sem_seg_out_dir", "ins_seg_out_dir", "help"}  # outputs, never inputs of a record
LEFT_OUT |= {"overlays", "overlay_out_dir", "full_size_out_dir"}
DATA = {
    "voc12_root",
    "classes",
    "cls_labels",
    "photos",
    "photos_long_side",
}  # tests of their own below


def fingerprints(sample: Path, work: Path, **options: Any) -> dict[str, str]:
    made = prepared(sample, work, **options)
    return {name: record(made).fingerprint for name, record in RECORDS.items()}


@pytest.fixture(scope="module")
def now(sample: Path, finished: Path) -> dict[str, str]:
    """Fingerprints of the finished run."""
    return fingerprints(sample, finished)


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("option", ["vit", "cnn", "irn_backbone"])
def test_records_tell_how_a_network_wants_its_pictures(
    sample: Path, finished: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tag of other statistics says so; the same name under another timm is another record."""
    name = {"vit": "vit_tiny_patch16_224.augreg_in21k"}.get(option, "tf_efficientnet_lite0.in1k")
    trained = RECORDS["train_irn" if option == "irn_backbone" else "train_cam"]
    before = trained(prepared(sample, finished, **{option: name}))
    half = "mean [0.5, 0.5, 0.5], standard deviation [0.5, 0.5, 0.5]"
    assert before.inputs[f"input of {option}"] == half
    assert not [key for key in trained(prepared(sample, finished)).inputs if "input of" in key]
    config = timm.get_pretrained_cfg(name)
    config.mean = (0.4, 0.4, 0.4)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: config)
    assert trained(prepared(sample, finished, **{option: name})).fingerprint != before.fingerprint


def test_every_option_is_decided_upon() -> None:
    names = {action.dest for action in build_parser()._actions}
    switches = {name for name in names if name.endswith("_pass")}
    assert names - switches == (set(COUNTS) | set(DO_NOT_COUNT) | LEFT_OUT | DATA) - switches


@pytest.mark.parametrize("option", COUNTS)
def test_option_that_changes_an_output_changes_its_record(
    sample: Path, finished: Path, now: dict[str, str], option: str
) -> None:
    value, expected = COUNTS[option]
    after = fingerprints(sample, finished, **{option: value})
    if option == "cam_learning_rate":  # the transformer's follows
        assert prepared(sample, finished, **{option: value}).options.deit_learning_rate == value
    assert changed(now, after) == expected


@pytest.mark.parametrize("option", DO_NOT_COUNT)
def test_other_options_leave_the_records_alone(
    sample: Path, finished: Path, now: dict[str, str], option: str
) -> None:
    after = fingerprints(sample, finished, **{option: DO_NOT_COUNT[option]})
    assert changed(now, after) == set()


def test_fusion_decides_which_weights_count(sample: Path, finished: Path) -> None:
    names = {
        fusion: set(RECORDS["cam"](prepared(sample, finished, cam_fusion=fusion)).inputs)
        for fusion in ("transformer", "cnn", "mean", "max")
    }
    both = {"cam_weights", "deit_weights"}
    assert names == {"transformer": {"deit_weights"}, "cnn": {"cam_weights"}} | dict.fromkeys(
        ("mean", "max"), both
    )


def test_class_names_count_everywhere(
    sample: Path, finished: Path, tmp_path: Path, now: dict[str, str]
) -> None:
    labels = "".join(f"{image_id},one\n" for image_id in TRAIN_IDS)
    (tmp_path / "labels.csv").write_text(labels)
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    own = {"classes": tmp_path / "classes.txt", "cls_labels": tmp_path / "labels.csv"}
    assert changed(now, fingerprints(sample, finished, **own)) == set(RECORDS)


def test_image_labels_and_pictures_count_for_the_training(
    sample: Path, finished: Path, tmp_path: Path, now: dict[str, str]
) -> None:
    labels = "".join(f"{image_id},cat\n" for image_id in TRAIN_IDS)
    (tmp_path / "labels.csv").write_text(labels)
    after = fingerprints(sample, finished, cls_labels=tmp_path / "labels.csv")
    assert changed(now, after) == {"train_cam", "train_irn"}


def test_training_with_the_cam_backbone_depends_on_its_weights(
    sample: Path, finished: Path, tmp_path: Path
) -> None:
    work = copy_of(finished, tmp_path / "work")
    made = prepared(sample, work, irn_backbone_weights="cam")
    before = RECORDS["train_irn"](made).fingerprint
    disturb_weights(work / "sess" / WEIGHTS["cnn"])
    assert RECORDS["train_irn"](made).fingerprint != before


def test_records_on_disk_are_those_of_the_arguments(sample: Path, finished: Path) -> None:
    made = prepared(sample, finished)
    targets = {
        "train_cam": made.options.deit_weights_name,
        "cam": made.options.cam_out_dir,
        "ir_label": made.options.ir_label_out_dir,
        "train_irn": made.options.irn_weights_name,
        "sem_seg": made.options.sem_seg_out_dir,
        "ins_seg": made.options.ins_seg_out_dir,
    }
    for name, target in targets.items():
        assert RECORDS[name](made).differences(read_record(target)) == [], name


# --------------------------------------------------------------------------- what a run does then


@pytest.fixture(scope="module")
def work(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run for commands that should be refused; checked to be untouched at the end."""
    work = copy_of(finished, tmp_path_factory.mktemp("refused") / "work")
    before = times(work)
    yield work
    assert times(work) == before


REFUSED = [
    # outputs that are there already
    ("train_cam", {"seed": 1}, ["seed is 1 now and was 0", "--cam_weights_name"]),
    ("make_cam", {"cam_scales": "1.0"}, ["cam_scales is [1.0] now and was [1.0, 0.5]"]),
    ("train_irn", {"irn_radius": 4}, ["irn_radius is 4 now", "--irn_weights_name"]),
    ("make_ins_seg_labels", {"beta": 3}, ["beta is 3.0 now and was 10.0", "--ins_seg_out_dir"]),
    ("make_sem_seg_labels", {"sem_seg_bg_thres": 0.3}, ["sem_seg_bg_thres", "--sem_seg_out_dir"]),
    # inputs of the step
    ("make_cam", {"cam_num_epoches": 9}, ["deits_cam.pth", f"is 9 now and was {EPOCHS}"]),
    ("make_cam", {"train_list": "val"}, ["deits_cam.pth", "input train_list"]),
    ("make_cam", {"cam_fusion": "cnn", "cam_lambda": 0.2}, ["res152_cam.pth", "cam_lambda"]),
    ("cam_to_ir_label", {"cam_scales": "1.0"}, ["result/cam was made by", "cam_scales"]),
    ("train_irn", {"conf_fg_thres": 0.5}, ["result/ir_label was made by", "conf_fg_thres"]),
    ("make_ins_seg_labels", {"irn_radius": 4}, ["res50_irn.pth was made by", "irn_radius"]),
    ("make_sem_seg_labels", {"cam_fusion": "max"}, ["result/cam was made by", "cam_fusion"]),
    # inputs of scoring
    ("eval_cam", {"cam_scales": "1.0"}, ["result/cam was made by", "cam_scales"]),
    ("eval_ins_seg", {"beta": 3}, ["result/ins_seg was made by", "beta"]),
    ("eval_sem_seg", {"beta": 3}, ["result/sem_seg was made by", "beta"]),
]


@pytest.mark.parametrize(("step", "options", "told"), REFUSED)
def test_step_whose_input_or_output_came_from_something_else_stops(
    sample: Path,
    work: Path,
    capsys: pytest.CaptureFixture,
    step: str,
    options: dict,
    told: list[str],
) -> None:
    assert run(sample, work, "--steps", step, **options) == 2
    error = capsys.readouterr().err
    for text in [*told, "--overwrite", "--force"]:
        assert text in error


def test_other_weights_stop_the_steps_that_used_them(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    work = copy_of(finished, tmp_path / "work")
    disturb_weights(work / "sess" / WEIGHTS["transformer"])
    disturb_weights(work / "sess" / WEIGHTS["irn"])
    for step, told in (
        ("make_cam", "input deit_weights is"),
        ("cam_to_ir_label", "input deit_weights is"),
        ("eval_cam", "input deit_weights is"),
        ("eval_sem_seg", "input irn_weights is"),
    ):
        assert run(sample, work, "--steps", step) == 2
        assert told in capsys.readouterr().err


def test_force_goes_on_with_other_inputs_and_says_so(
    sample: Path, finished: Path, tmp_path: Path
) -> None:
    work = copy_of(finished, tmp_path / "work", without=["sem_seg"])
    steps = ("--steps", "make_cam,make_sem_seg_labels,eval_sem_seg", "--force")
    assert run(sample, work, *steps, cam_scales="1.0") == 0
    assert hashes(work, "cam", "sem_seg") == hashes(finished, "cam", "sem_seg")
    text = log_of(work)
    assert (
        "--force: 6 *.npz in" in text
        and "cam is used although input mixed_with is (absent) now" in text
    )


def test_overwrite_redoes_with_the_new_arguments(
    sample: Path, finished: Path, tmp_path: Path
) -> None:
    work = copy_of(finished, tmp_path / "work")
    options = {"cam_scales": "1.0"}
    assert run(sample, work, "--steps", "make_cam", "--overwrite", **options) == 0
    assert metrics(work)["steps"]["make_cam"]["made"] == len(TRAIN_IDS)
    redone, original = hashes(work, "cam"), hashes(finished, "cam")
    assert all(redone[name] != original[name] for name in original)
    assert read_record(work / "result" / "cam").arguments["cam_scales"] == [1.0]
    # What was made from the old CAMs is out of date now.
    assert run(sample, work, "--steps", "make_sem_seg_labels", **options) == 2
    assert run(sample, work, "--steps", "make_sem_seg_labels", "--overwrite", **options) == 0


def test_other_output_folder_keeps_both(sample: Path, finished: Path, tmp_path: Path) -> None:
    work = copy_of(finished, tmp_path / "work")
    options = {"beta": 3, "sem_seg_out_dir": "result/beta_3"}
    steps = ("--steps", "make_sem_seg_labels,eval_sem_seg")
    assert run(sample, work, *steps, **options) == 0
    assert len(list((work / "result" / "beta_3").glob("*.png"))) == len(TRAIN_IDS)
    assert hashes(work, "sem_seg") == hashes(finished, "sem_seg")


def test_missing_weights_matter_only_where_they_are_used(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    work = copy_of(finished, tmp_path / "work", without=["deits_cam.pth", "ir_label"])
    assert run(sample, work, "--steps", "cam_to_ir_label") == 2
    assert "input deit_weights is (missing) now" in capsys.readouterr().err
    assert run(sample, work, "--steps", "cam_to_ir_label", "--force") == 0
    assert hashes(work, "ir_label") == hashes(finished, "ir_label")
    assert run(sample, work, "--steps", "make_cam", "--force") == 2
    assert "deits_cam.pth does not exist" in capsys.readouterr().err


def test_lists_are_written_into_the_record_with_their_hash(
    sample: Path, finished: Path, tmp_path: Path
) -> None:
    from misc.files import read_json
    from voc12.lists import resolve_list

    content = read_json(finished / "result" / "cam" / "made_by.json")
    expected = resolve_list("train", sample, expect_standard=False)
    assert content["lists"]["train"]["sha256"] == expected.sha256
    assert content["lists"]["train"]["count"] == len(TRAIN_IDS)
    assert set(content["inputs"]) == {"deit_weights"}


def test_more_pictures_are_added_to_the_same_folder(
    sample: Path, finished: Path, tmp_path: Path
) -> None:
    work = copy_of(finished, tmp_path / "work")
    before = times(work)
    assert run(sample, work, infer_list="val") == 0
    assert times(work) == before
    for kind in ("cam", "ins_seg", "edge", "sem_seg"):
        assert all(output(work, kind, i).is_file() for i in VAL_IDS), kind
    assert not output(work, "ir_label", VAL_IDS[0]).exists()
    lists = {step["list"] for step in metrics(work)["steps"].values() if "list" in step}
    assert lists == {"val"}  # which has no picture of the default list


def test_missing_outputs_of_the_step_before_are_counted(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    work = copy_of(finished, tmp_path / "work", without=[f"{TRAIN_IDS[1]}.npz", "ir_label"])
    assert run(sample, work, "--steps", "cam_to_ir_label") == 2
    error = capsys.readouterr().err
    assert "1 of 6 files are missing" in error and f"{TRAIN_IDS[1]}.npz; run step make_cam" in error
    fewer = write_list(tmp_path / "fewer.txt", TRAIN_IDS[2:])
    steps = ("--steps", "cam_to_ir_label", "--force")
    assert run(sample, work, *steps, train_list=fewer) == 0
