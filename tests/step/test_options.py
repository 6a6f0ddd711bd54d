"""Command line: published defaults, presets, switches, and clear answers to wrong options."""

import argparse
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from pipeline import prepared

import run_sample
from misc.errors import UserError
from misc.seed import seed_everything
from net.crf import CrfParameters
from net.strides import GRID_STRIDE, OUTPUT_STRIDE
from step import train_cam, train_irn
from step.command_line import build_parser, parse_args
from step.options import STEP_NAMES, Options, selected_steps, switch_name
from step.presets import PRESETS

ROOT = ("--voc12_root", "/data/voc")
PUBLISHED = {
    "train_list": "voc12/train_aug.txt",
    "infer_list": "voc12/train.txt",
    "init": "pretrained",
    "precision": "float32",
    "momentum": 1e-4,
    # CAM training and networks
    "cam_crop_size": 336,
    "cam_long_side": (210, 420),
    "cam_batch_size": 16,
    "cam_num_epoches": 10,
    "cam_learning_rate": 0.1,
    "deit_learning_rate": 0.1,
    "deit_optimiser": "sgd",
    "cam_weight_decay": 1e-4,
    "cam_lambda": 0.1,
    "cam_refine_epoch": 2,
    "cnn": "resnet152",
    "cnn_args": {},
    "cnn_weights": None,
    "cnn_frozen_stages": 3,
    "fixed_batchnorm": True,
    "vit": "deit_small_patch16_224",
    "vit_weights": None,
    "vit_args": {},
    "num_passes": 3,
    "tile_size": 224,
    "tile_stride": 112,
    # CAMs and IR labels
    "cam_scales": (1.0, 0.5, 1.5, 2.0, 0.75, 1.25, 1.75),
    "cam_fusion": "transformer",
    "cam_eval_thres": 0.15,
    "conf_fg_thres": 0.35,
    "conf_bg_thres": 0.15,
    "crf_iterations": 10,
    # IRNet
    "irn_backbone": "resnet50",
    "irn_backbone_args": {},
    "irn_backbone_weights": None,
    "irn_crop_size": 512,
    "irn_batch_size": 32,
    "irn_num_epoches": 3,
    "irn_learning_rate": 0.1,
    "irn_weight_decay": 1e-4,
    "irn_radius": 10,
    "irn_min_input": 512,
    # random walk and labels
    "walk_radius": 5,
    "beta": 10,
    "exp_times": 8,
    "ins_seg_bg_thres": 0.25,
    "sem_seg_bg_thres": 0.25,
}
PUBLISHED_FILES = {
    "cam_weights_name": "sess/res152_cam.pth",
    "deit_weights_name": "sess/deits_cam.pth",
    "irn_weights_name": "sess/res50_irn.pth",
    "cam_out_dir": "result/cam",
    "ir_label_out_dir": "result/ir_label",
    "sem_seg_out_dir": "result/sem_seg",
    "ins_seg_out_dir": "result/ins_seg",
}
WITHOUT_INSTANCES = tuple(s for s in STEP_NAMES if "ins_seg" not in s)


SHARED_CNN = ("--irn_backbone_weights", "cam", "--cnn", "resnet10t", "--irn_backbone", "resnet10t")


def parse(*argv: str) -> Options:
    return parse_args([*ROOT, *argv])


def actions() -> list[argparse.Action]:
    return [action for action in build_parser()._actions if action.dest != "help"]


# ------------------------------------------------------------------------------------ defaults


@pytest.mark.parametrize(("name", "value"), PUBLISHED.items())
def test_default_is_published(name: str, value: object) -> None:
    assert getattr(parse(), name) == value


@pytest.mark.parametrize(("name", "path"), PUBLISHED_FILES.items())
def test_default_files_are_published_and_lie_in_the_work_dir(name: str, path: str) -> None:
    assert getattr(parse("--work_dir", "/runs/a"), name) == Path("/runs/a") / path
    assert getattr(parse(f"--{name}", "/elsewhere/x"), name) == Path("/elsewhere/x")


def test_defaults_outside_the_parser_are_published() -> None:
    assert train_cam.HEAD_FACTOR == train_irn.DISPLACEMENT_FACTOR == 10
    assert CrfParameters() == CrfParameters(0.7, 3, 3, 50, 5, 10, 10)


def test_steps_on_by_default() -> None:
    assert selected_steps(parse()) == WITHOUT_INSTANCES


def test_training_options_reach_the_cam_training(sample: Path, tmp_path: Path) -> None:
    own = {"cam_crop_size": 64, "cam_long_side": "50,90", "seed": 5, "momentum": 0.5}
    run = prepared(sample, tmp_path, **own, deit_learning_rate=0.02)
    training = train_cam._prepare(run, run.source.id_list("train").ids, "")
    data = training.dataset
    assert (data.crop_size, data.long_side, data.seed, len(data)) == (64, (50, 90), 5, 6)
    assert data[0, 0]["image"].shape == (3, 64, 64)
    assert (training.batch_size, training.units, training.steps_per_unit) == (3, 2, 2)
    rates = {n: [g["lr"] for g in o.param_groups] for n, o in training.optimisers.items()}
    assert rates == {"cnn": [0.1, 1.0], "transformer": [0.02, pytest.approx(0.2)]}
    for optimiser in training.optimisers.values():
        assert optimiser.max_step == 4
        assert {g["momentum"] for g in optimiser.param_groups} == {0.5}
        assert {g["weight_decay"] for g in optimiser.param_groups} == {1e-4}
    deit = training.models["transformer"]
    assert (deit.num_passes, deit.tile_size, deit.tile_stride) == (2, 32, 16)


# ------------------------------------------------------------------------------------- presets


def test_presets_name_options_only_and_differ_from_the_defaults() -> None:
    defaults = {action.dest: action.default for action in actions()}
    for preset in PRESETS.values():
        assert all(defaults[name] != value for name, value in preset.items())
    assert PRESETS["paper"] == {}


def arguments(preset: dict) -> list[str]:
    """A preset as somebody would type it."""
    words = []
    for name, value in preset.items():
        if isinstance(value, dict):
            value = ",".join(f"{key}={number}" for key, number in value.items())
        words += [f"--{name}", str(value)]
    return words


def test_steps_and_from_step_exclude_each_other(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_args(["--preset", "demo", "--steps", "eval_cam", "--from_step", "make_cam"])
    assert "not allowed with" in capsys.readouterr().err


def test_preset_replaces_defaults_and_explicit_options_win() -> None:
    demo = parse_args(["--preset", "demo"])
    written_out = vars(parse_args(["--voc12_root", "x", *arguments(PRESETS["demo"])]))
    for name in PRESETS["demo"]:
        assert getattr(demo, name) == written_out[name], name
    assert selected_steps(demo) == STEP_NAMES
    explicit = parse_args(["--init", "pretrained", "--preset=demo", "--no-make_ins_seg_pass"])
    assert explicit.init == "pretrained"
    assert not explicit.make_ins_seg_pass
    assert explicit.cam_crop_size == demo.cam_crop_size


def test_only_the_demo_needs_no_data() -> None:
    assert parse_args(["--preset", "demo"]).voc12_root is None
    with pytest.raises(SystemExit):
        parse_args([])


def test_options_that_follow_others() -> None:
    args = parse("--infer_list", "val", "--cam_learning_rate", "0.03")
    assert (args.eval_list, args.deit_learning_rate) == ("train", 0.03)
    assert parse("--infer_list", "val", "--chainer_eval_set", "train").eval_list == "train"


# -------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("step", STEP_NAMES)
@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--{}"], True),
        (["--{}", "True"], True),
        (["--{}", "1"], True),
        (["--{}", "False"], False),
        (["--{}=no"], False),
        (["--no-{}"], False),
    ],
)
def test_switches_do_what_they_say(step: str, words: list[str], value: bool) -> None:
    switch = switch_name(step)
    args = parse(*(word.format(switch) for word in words))
    assert getattr(args, switch) is value
    assert (step in selected_steps(args)) is value


@pytest.mark.parametrize("words", [["--overwrite", "maybe"], ["--no-overwrite", "True"]])
def test_nonsense_switches_are_refused(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse(*words)
    assert "give True or False" in capsys.readouterr().err


def test_largest_seed_can_be_used() -> None:
    seed_everything(parse("--seed", "4294967295").seed)
    with pytest.raises(ValueError, match="between 0 and"):
        seed_everything(4294967296)
    seed_everything(0)


def test_steps_are_exactly_those_named_in_their_order() -> None:
    args = parse("--steps", "eval_ins_seg, train_cam", "--no-train_cam_pass")
    assert selected_steps(args) == ("train_cam", "eval_ins_seg")


def test_from_step_starts_there_and_respects_switches() -> None:
    args = parse("--from_step", "train_irn", "--no-eval_sem_seg_pass")
    assert selected_steps(args) == ("train_irn", "make_sem_seg_labels")


# -------------------------------------------------------------------------------- wrong options


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--steps", "train_cam,train_cnn"], "train_cnn is not a step"),
        (["--from_step", "train_cnn"], "train_cnn"),
        (["--cam_crop", "336"], "unrecognized arguments: --cam_crop"),
        (["--pres", "demo"], "unrecognized arguments: --pres"),
        (["--preset", "papers"], "papers"),
        (["--cam_batch_size", "0"], "0 must be at least 1"),
        (["--cam_batch_size", "two"], "two"),
        (["--num_workers", "-1"], "-1 must be at least 0"),
        (["--conf_fg_thres", "1.5"], "1.5 must lie in 0..1"),
        (["--beta", "0"], "0 must be above 0"),
        (["--cam_scales", ""], "at least one number"),
        (["--cam_scales", "1.0,-1"], "-1 must be above 0"),
        (["--cam_scales", "1.0,1e9"], "1e+09 is above 16"),
        (["--vit_args", "depth"], "depth is not KEY=VALUE"),
        (["--cnn_args", "channels=(32,64"], "channels=(32,64 is not KEY=(NUMBER,NUMBER,..)"),
        (["--irn_backbone_args", "16"], "argument --irn_backbone_args: 16 is not KEY=VALUE"),
        (["--seed", "4294967296"], "4294967296 is above 4294967295"),
        (["--seed", "-1"], "-1 must be at least 0"),
        (["--exp_times", "17"], "17 is above 16"),
        (["--figure_num", "-1"], "-1 must be at least 0"),
        (["--crf_backend", "cuda"], "invalid choice: 'cuda'"),
    ],
)
def test_wrong_values_exit_with_2(
    argv: list[str], told: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(*argv)
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--work_dir", "~nobody_here/x"], "~nobody_here/x: there is no user nobody_here here"),
        (["--cam_out_dir", "~nobody_here"], "~nobody_here: there is no user nobody_here here"),
        (["--cam_long_side", "420,210"], "--cam_long_side 420,210 is not LEAST,GREATEST"),
        (["--cam_long_side", "420"], "--cam_long_side 420 is not"),
        (["--cam_long_side", "0.5,9"], "--cam_long_side 0.5,9 is not"),
        (["--conf_bg_thres", "0.4"], "--conf_bg_thres 0.4 is above --conf_fg_thres 0.35"),
        (["--cam_crop_size", "300"], "--cam_crop_size 300 .* 224, 336, 448"),
        (["--cam_crop_size", "112"], "--cam_crop_size 112 is not covered"),
        (["--cam_crop_size", "512"], "224, 336, 448 .* 512 as its default but .* ran 336"),
        (["--vit_args", "depth=0"], "--vit_args depth=0 must be an integer of at least 1"),
        (["--vit_args", "depth=-1"], "--vit_args depth=-1 must be an integer"),
        (["--vit_args", "embed_dim=19.2"], "--vit_args embed_dim=19.2 must be an integer"),
        (["--vit_args", "num_heads=0,embed_dim=192"], "--vit_args num_heads=0 must be an integer"),
        (["--vit_args", "num_heads=5,embed_dim=192"], "--vit_args num_heads=5 does not divide"),
        (["--irn_crop_size", "100"], "--irn_crop_size 100 .* multiple of 16"),
        (["--irn_crop_size", "64"], "--irn_crop_size 64 .* at least 80"),
        (["--irn_backbone_weights", "cam"], "--irn_backbone is resnet50 and --cnn is resnet152"),
        (
            [*SHARED_CNN, "--cnn_args", "channels=(32,64),a=1"],
            r"--irn_backbone_args is empty and --cnn_args is channels=\(32,64\),a=1\.",
        ),
        (
            [*SHARED_CNN, "--cnn_args", "a=1", "--irn_backbone_args", "a=2"],
            r"--irn_backbone_args is a=2 and --cnn_args is a=1\.",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(argv: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        parse(*argv)


def test_all_contradictions_are_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        parse("--conf_bg_thres", "0.4", "--cam_crop_size", "300", "--edge_out_dir", "result/cam/x")
    for text in ("--conf_bg_thres 0.4", "--cam_crop_size 300", "lies in --cam_out_dir"):
        assert text in str(caught.value)


def test_options_and_runs_cannot_be_changed(sample: Path, tmp_path: Path) -> None:
    run = prepared(sample, tmp_path)
    with pytest.raises(FrozenInstanceError):
        run.options.seed = 1
    with pytest.raises(FrozenInstanceError):
        run.options = parse()


def test_smallest_irn_crop_has_room_for_the_pairs() -> None:
    from net.affinity import path_index

    for radius in (2, 5, 10):
        crop = -(-(2 * radius - 1) * GRID_STRIDE // OUTPUT_STRIDE) * OUTPUT_STRIDE
        parse("--irn_radius", str(radius), "--irn_crop_size", str(crop))
        assert min(path_index(radius).source_size((crop // GRID_STRIDE,) * 2)) >= 1


def test_keyword_arguments_have_types() -> None:
    args = parse("--vit_args", "depth=4,drop_path_rate=0.1,act_layer=gelu,qkv_bias=False,a=None")
    assert args.vit_args == {
        "depth": 4,
        "drop_path_rate": 0.1,
        "act_layer": "gelu",
        "qkv_bias": False,
        "a": None,
    }
    both = ["--cnn_args", "channels=(32,64)", "--irn_backbone_args", "channels=(32,64)"]
    args = parse(*SHARED_CNN, *both)
    assert args.cnn_args == args.irn_backbone_args == {"channels": (32, 64)}


# ---------------------------------------------------------------------------------------- help


def test_help_groups_and_explains_every_option(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_sample.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for group in ("run", "data", "CAM training", "IRNet", "random walk", "outputs", "steps"):
        assert group in text
    assert all(action.help for action in actions())
    for action in actions():
        assert action.option_strings[0] in text


def test_help_says_defaults_and_the_quirk_of_the_momentum() -> None:
    text = " ".join(build_parser().format_help().split())
    assert "(default: 336)" in text
    assert "(default: resnet152)" in text
    assert "published code passes its weight decay where SGD expects momentum" in text


def test_parsing_has_no_side_effects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parse_args(["--voc12_root", "nowhere", "--work_dir", "runs/new"])
    build_parser()
    assert list(tmp_path.iterdir()) == []
