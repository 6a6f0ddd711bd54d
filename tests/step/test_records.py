"""What the records of all outputs hold, as it was written down before a schema gave it."""

import json
import os
from pathlib import Path

import pytest
from pipeline import TRAIN_IDS, copy_of, prepared

from step.options import STEP_NAMES
from step.plan import OUTPUTS, STEPS, begin

NETWORKS = {"vit", "vit_args", "num_passes", "tile_size", "tile_stride"}
_CLASSES = """"class_names": ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car",
 "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant",
 "sheep", "sofa", "train", "tvmonitor"]"""
_VIT = """"vit": "deit_tiny_patch16_224",
 "vit_args": {"depth": 1, "embed_dim": 48, "num_heads": 2, "patch_size": 8}"""
_TRAINED = (
    "train_cam",
    f"""{{"cam_batch_size": 3, "cam_crop_size": 48, "cam_lambda": 0.1, "cam_learning_rate": 0.1,
 "cam_long_side": [40.0, 72.0], "cam_num_epoches": 2, "cam_refine_epoch": 2,
 "cam_weight_decay": 0.0001, {_CLASSES}, "cnn": "resnet18", "cnn_frozen_stages": 3,
 "deit_learning_rate": 0.1, "deit_optimiser": "sgd", "fixed_batchnorm": true, "init": "random",
 "momentum": 0.0001, "num_passes": 2, "precision": "float32", "seed": 0, "tile_size": 32,
 "tile_stride": 16, {_VIT}}}""",
    {"train_list", "train_data", "cnn_weights", "vit_weights"},
)
# Output: its step; arguments, as they were recorded before there was one schema; inputs.
CONTENT: dict[str, tuple[str, str, set[str]]] = {
    "cam_weights_name": _TRAINED,
    "deit_weights_name": _TRAINED,
    "cam_out_dir": (
        "make_cam",
        f"""{{"cam_fusion": "transformer", "cam_scales": [1.0, 0.5], {_CLASSES},
 "num_passes": 2, "precision": "float32", "tile_size": 32, "tile_stride": 16, {_VIT}}}""",
        {"deit_weights"},
    ),
    "ir_label_out_dir": (
        "cam_to_ir_label",
        f"""{{{_CLASSES}, "conf_bg_thres": 0.15, "conf_fg_thres": 0.35}}""",
        {"cam"},
    ),
    "irn_weights_name": (
        "train_irn",
        f"""{{{_CLASSES}, "init": "random", "irn_backbone": "resnet18", "irn_batch_size": 3,
 "irn_crop_size": 64, "irn_learning_rate": 0.1, "irn_num_epoches": 2, "irn_radius": 5,
 "irn_weight_decay": 0.0001, "momentum": 0.0001, "precision": "float32", "seed": 0}}""",
        {"train_list", "train_data", "ir_label", "irn_backbone_weights"},
    ),
    "sem_seg_out_dir": (
        "make_sem_seg_labels",
        f"""{{"beta": 10.0, {_CLASSES}, "exp_times": 3, "irn_backbone": "resnet18",
 "irn_min_input": 64, "precision": "float32", "sem_seg_bg_thres": 0.25, "walk_radius": 5}}""",
        {"cam", "irn_weights"},
    ),
    "edge_out_dir": (
        "make_sem_seg_labels",
        f"""{{{_CLASSES}, "irn_backbone": "resnet18", "irn_min_input": 64,
 "precision": "float32"}}""",
        {"irn_weights"},
    ),
    "ins_seg_out_dir": (
        "make_ins_seg_labels",
        f"""{{"beta": 10.0, {_CLASSES}, "exp_times": 3, "ins_seg_bg_thres": 0.25,
 "irn_backbone": "resnet18", "irn_min_input": 64, "precision": "float32", "walk_radius": 5}}""",
        {"cam", "irn_weights"},
    ),
}


@pytest.mark.parametrize("name", CONTENT)
def test_records_hold_what_they_always_held(sample: Path, finished: Path, name: str) -> None:
    """To the last character, of which a fingerprint is a hash: earlier folders stay fresh."""
    record = OUTPUTS[name].record(prepared(sample, finished))
    step, arguments, inputs = CONTENT[name]
    assert (record.step, set(record.inputs)) == (step, inputs)
    found = json.dumps(record.content()["arguments"], sort_keys=True)
    assert found == " ".join(arguments.split())


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
