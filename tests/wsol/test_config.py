"""Configurations of WSOL: published values, places of files, schedules by epoch, bad values."""

from pathlib import Path

import pytest
from wsol_runs import SMALL, WSOL, config_of

from misc.config import flatten
from misc.errors import UserError
from wsol.config import load, paths_of
from wsol.optimisation import rate_factor, refine_weight
from wsol.testing import thresholds_of

PUBLISHED = {
    "BASIC.SEED": 26,
    "MODEL.ARCH": "deit_tscam_small_patch16_224",
    "MODEL.CAM_THR": 0.1,
    "MODEL.TOP_K": 1,
    "DATA.DATASET": "CUB",
    "DATA.DATADIR": str(WSOL / "data/CUB_200_2011"),
    "DATA.NUM_CLASSES": 200,
    "DATA.RESIZE_SIZE": 256,
    "DATA.CROP_SIZE": 224,
    "DATA.IMAGE_MEAN": [0.485, 0.456, 0.406],
    "DATA.IMAGE_STD": [0.229, 0.224, 0.225],
    "TRAIN.BATCH_SIZE": 64,
    "TEST.BATCH_SIZE": 64,
    "TEST.SAVE_BOXED_IMAGE": False,
    "SOLVER.LR_STEPS": [30],
    "SOLVER.NUM_EPOCHS": 60,
    "SOLVER.LR_FACTOR": 0.1,
    "SOLVER.VIT_WEIGHT_DECAY": 0.05,
    "SOLVER.CNN_LR": 0.005,
    "SOLVER.CNN_WEIGHT_DECAY": 1e-4,
    "SOLVER.CNN_MOMENTUM": 0.0,
    "MODEL.CNN": "resnet50",
    "MODEL.DROP_PATH": 0.1,
}


def test_small_configuration_is_the_published_one_and_the_default(tmp_path: Path):
    values = flatten(load(SMALL))
    assert PUBLISHED.items() <= values.items()
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    defaults = flatten(load(empty))
    located = {"DATA.DATADIR", "BASIC.SAVE_DIR"}
    assert {k: v for k, v in defaults.items() if k not in located} == {
        k: v for k, v in values.items() if k not in located
    }


@pytest.mark.parametrize(("scale", "name"), [("tiny", "deit_tiny"), ("base", "deit_base")])
def test_other_scales_differ_in_transformer_and_batch_size(scale: str, name: str):
    values = flatten(load(SMALL.with_name(f"deit_tscam_{scale}_patch16_224.yaml")))
    small = flatten(load(SMALL))
    different = {key for key in values if values[key] != small[key]}
    batches = {"TRAIN.BATCH_SIZE", "TEST.BATCH_SIZE"}
    assert different == {"MODEL.ARCH", "BASIC.SAVE_DIR", *batches}
    assert {values[key] for key in batches} == {128}
    assert values["MODEL.ARCH"] == f"deit_tscam_{scale}_patch16_224"
    assert (
        load(SMALL.with_name(f"deit_tscam_{scale}_patch16_224.yaml")).MODEL.vit
        == f"{name}_patch16_224"
    )


def test_outputs_lie_beside_the_configs_unless_named(tmp_path: Path):
    assert paths_of(load(SMALL)).folder == WSOL / f"ckpt/CUB/{SMALL.stem}"
    assert paths_of(load(WSOL / "configs/demo.yaml")).folder == WSOL / "ckpt/SYNTHETIC/demo"
    named = load(SMALL, [f"BASIC.SAVE_DIR={tmp_path}"])
    assert paths_of(named).last == tmp_path / "model_last.pth"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("MODEL.CAM_THRESHOLD=0.1", r"did you mean MODEL\.CAM_THR\?"),
        ("MODEL.CAM_THR=1.5", r"MODEL\.CAM_THR is 1\.5; it must be at most 1"),
        ("MODEL.TOP_K=5", r"MODEL\.TOP_K is 5; it must be at most 1"),
        ("DATA.DATASET=COCO", r"DATA\.DATASET is 'COCO'; expected one of CUB, FOLDER, SYNTHETIC"),
        ("DATA.DATASET=ImageNet", r"ILSVRC are not read here; give DATA\.DATASET FOLDER"),
        (
            "MODEL.ARCH=conformer_tscam_small_patch16",
            r"Conformer is not built; use deit_",
        ),
        ("MODEL.VIT_ARGS.depth=0", r"MODEL\.VIT_ARGS has depth 0; a transformer has at least 1"),
        ("TEST.TEN_CROPS=True", r"averaging ten crops is not built"),
        ("BASIC.SEED=4294967296", r"BASIC\.SEED is 4294967296; it must be at most 4294967295"),
        ("CUDNN.BENCHMARKS=True", r"CUDNN\.BENCHMARKS is not a configuration key"),
        ("DATA.CROP_SIZE=300", r"DATA\.CROP_SIZE 300 is more than DATA\.RESIZE_SIZE 256"),
        ("DATA.IMAGE_MEAN=0.5,0.5", r"DATA\.IMAGE_MEAN is \[0\.5, 0\.5\]; give 3 numbers"),
        ("SOLVER.NUM_EPOCHS=0", r"SOLVER\.NUM_EPOCHS is 0; it must be at least 1"),
    ],
)
def test_bad_values_are_told_with_key_and_remedy(override: str, message: str):
    with pytest.raises(UserError, match=message):
        load(SMALL, [override])


def test_rate_falls_at_every_multiple_of_the_steps():
    config = load(SMALL)
    factors = [rate_factor(config, epoch) for epoch in range(1, 61)]
    assert factors[:29] == [1.0] * 29
    assert factors[29:59] == pytest.approx([0.1] * 30)
    assert factors[59] == pytest.approx(0.01)
    two = load(SMALL, ["SOLVER.LR_STEPS=2,3", "SOLVER.LR_FACTOR=0.5"])
    assert [rate_factor(two, e) for e in range(1, 7)] == [1, 0.5, 0.25, 0.125, 0.125, 0.0625]


def test_refinement_is_off_and_on_in_blocks_of_five_epochs():
    config = load(SMALL)
    on = [epoch for epoch in range(1, 31) if refine_weight(config, epoch)]
    assert on == [5, 6, 7, 8, 9, 15, 16, 17, 18, 19, 25, 26, 27, 28, 29]
    assert refine_weight(load(SMALL, ["SOLVER.REFINE_WEIGHT=0.3"]), 5) == 0.3


def test_thresholds_start_with_the_configured_one(tmp_path: Path):
    values = {"MODEL__CAM_THR": 0.3, "TEST__THRESHOLDS": "0.5,0.3,0.2"}
    config = config_of(tmp_path, tmp_path, **values)
    assert thresholds_of(config) == [0.3, 0.2, 0.5]
