"""What the records of all outputs hold, as it was written down before a schema gave it."""

import json
import os
from pathlib import Path

import pytest
from pipeline import TRAIN_IDS, copy_of, prepared

from step.options import STEP_NAMES
from step.plan import OUTPUTS, STEPS, begin

NETWORKS = {"vit", "vit_args", "num_passes", "tile_size", "tile_stride"}
WALKED = {"irn_backbone", "irn_min_input", "beta", "exp_times", "walk_radius", "precision"}
# Output: its step; arguments beside class_names; inputs.
CONTENT: dict[str, tuple[str, set[str], set[str]]] = {
    "cam_out_dir": (
        "make_cam",
        {"cam_scales", "cam_fusion", "precision", *NETWORKS},
        {"deit_weights"},
    ),
    "ir_label_out_dir": ("cam_to_ir_label", {"conf_fg_thres", "conf_bg_thres"}, {"cam"}),
    "irn_weights_name": (
        "train_irn",
        {
            *("irn_backbone", "init", "irn_crop_size", "irn_batch_size", "irn_num_epoches"),
            *("irn_learning_rate", "irn_weight_decay", "irn_radius", "momentum", "precision"),
            "seed",
        },
        {"train_list", "train_data", "ir_label", "irn_backbone_weights"},
    ),
    "sem_seg_out_dir": (
        "make_sem_seg_labels",
        {*WALKED, "sem_seg_bg_thres"},
        {"cam", "irn_weights"},
    ),
    "edge_out_dir": (
        "make_sem_seg_labels",
        {"irn_backbone", "irn_min_input", "precision"},
        {"irn_weights"},
    ),
    "ins_seg_out_dir": (
        "make_ins_seg_labels",
        {*WALKED, "ins_seg_bg_thres"},
        {"cam", "irn_weights"},
    ),
}
TRAINED_WITH = """{"cam_batch_size": 3, "cam_crop_size": 48, "cam_lambda": 0.1,
 "cam_learning_rate": 0.1, "cam_long_side": [40.0, 72.0], "cam_num_epoches": 2,
 "cam_refine_epoch": 2, "cam_weight_decay": 0.0001, "class_names": ["aeroplane", "bicycle", "bird",
 "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike",
 "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"], "cnn": "resnet18",
 "cnn_frozen_stages": 3, "deit_learning_rate": 0.1, "deit_optimiser": "sgd",
 "fixed_batchnorm": true, "init": "random", "momentum": 0.0001, "num_passes": 2,
 "precision": "float32", "seed": 0, "tile_size": 32, "tile_stride": 16,
 "vit": "deit_tiny_patch16_224",
 "vit_args": {"depth": 1, "embed_dim": 48, "num_heads": 2, "patch_size": 8}}"""


@pytest.mark.parametrize("name", CONTENT)
def test_records_hold_what_they_always_held(sample: Path, finished: Path, name: str) -> None:
    """A folder of an earlier version stays fresh only if no name comes or goes."""
    record = OUTPUTS[name].record(prepared(sample, finished))
    step, arguments, inputs = CONTENT[name]
    assert (record.step, set(record.inputs)) == (step, inputs)
    assert set(record.arguments) == {*arguments, "class_names"}


@pytest.mark.parametrize(
    ("fusion", "networks"),
    [("cnn", {"cnn"}), ("mean", {"cnn", *NETWORKS}), ("max", {"cnn", *NETWORKS})],
)
def test_records_of_cams_hold_the_networks_that_the_fusion_uses(
    sample: Path, finished: Path, fusion: str, networks: set[str]
) -> None:
    record = OUTPUTS["cam_out_dir"].record(prepared(sample, finished, cam_fusion=fusion))
    always = {"cam_scales", "cam_fusion", "precision", "class_names"}
    assert set(record.arguments) == always | networks


@pytest.mark.parametrize("name", ["cam_weights_name", "deit_weights_name"])
def test_values_are_recorded_as_they_always_were(sample: Path, finished: Path, name: str) -> None:
    """To the last character: fingerprints are hashes of this text."""
    record = OUTPUTS[name].record(prepared(sample, finished))
    arguments = record.content()["arguments"]
    assert json.dumps(arguments, sort_keys=True) == " ".join(TRAINED_WITH.split())
    assert set(record.inputs) == {"train_list", "train_data", "cnn_weights", "vit_weights"}


def test_left_is_what_lacks_a_file_newer_than_its_cam(
    sample: Path, finished: Path, tmp_path: Path
) -> None:
    run = prepared(sample, copy_of(finished, tmp_path / "work"))
    assert begin("make_sem_seg_labels", run).left == []
    cams, edges = OUTPUTS["cam_out_dir"], OUTPUTS["edge_out_dir"]
    os.utime(cams.file(run, TRAIN_IDS[1]))
    edges.file(run, TRAIN_IDS[4]).unlink()
    work = begin("make_sem_seg_labels", run)
    assert (work.ids, work.left) == (TRAIN_IDS, [TRAIN_IDS[1], TRAIN_IDS[4]])
    assert begin("make_ins_seg_labels", run).left == [TRAIN_IDS[1]]
    assert begin("eval_sem_seg", run) == ((), [], None)
    assert begin("train_cam", run).left == []


def test_steps_read_what_earlier_ones_write() -> None:
    assert tuple(STEPS) == STEP_NAMES
    written: set[str] = set()
    for name, step in STEPS.items():
        assert {one.name for one in step.reads} <= written, name
        assert all(output.step == name for output in step.writes)
        written |= {output.name for output in step.writes}
    assert written == set(OUTPUTS)
