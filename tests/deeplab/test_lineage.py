"""What the records of DeepLab hold: the keys of every record are written down here by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deeplab import lineage
from deeplab.config import VOC_LABELS, Config, load, read_class_names
from misc.config import flatten
from misc.errors import UserError
from misc.provenance import Record, read_facts, read_lists, write_record
from voc12.lists import IdList

PICTURES = IdList("train", ("a", "b"), "by hand")
NETWORK = {
    "MODEL.NAME": "DeepLabV2_ResNet101_MSC",
    "MODEL.BACKBONE": None,
    "MODEL.N_BLOCKS": [3, 4, 23, 3],
    "MODEL.ATROUS_RATES": [6, 12, 18, 24],
}
INPUT = {"IMAGE.MEAN.R": 122.675, "IMAGE.MEAN.G": 116.669, "IMAGE.MEAN.B": 104.008}
TRAINING = {
    **NETWORK,
    **INPUT,
    "EXP.SEED": 0,
    "DATASET.NAME": "vocaug",
    "DATASET.N_CLASSES": 21,
    "DATASET.IGNORE_LABEL": 255,
    "DATASET.SCALES": [0.5, 0.75, 1.0, 1.25, 1.5],
    "IMAGE.SIZE.BASE": None,
    "IMAGE.SIZE.TRAIN": 321,
    "SOLVER.BATCH_SIZE.TRAIN": 5,
    "SOLVER.ITER_MAX": 20000,
    "SOLVER.ITER_SIZE": 2,
    "SOLVER.LR_DECAY": 10,
    "SOLVER.LR": 2.5e-4,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.OPTIMIZER": "sgd",
    "SOLVER.POLY_POWER": 0.9,
    "SOLVER.WEIGHT_DECAY": 5e-4,
    "SOLVER.PRECISION": "float32",
}
REFINEMENT = {
    "CRF.ITER_MAX": 10,
    "CRF.POS_W": 3,
    "CRF.POS_XY_STD": 1,
    "CRF.BI_W": 4,
    "CRF.BI_XY_STD": 67,
    "CRF.BI_RGB_STD": 3,
    "CRF.IMAGE": "rgb",
}
IN_NO_RECORD = {
    *("EXP.ID", "EXP.OUTPUT_DIR", "DATASET.ROOT", "DATASET.TRAIN_LABELS", "DATASET.LABELS"),
    *("DATASET.SPLIT.TRAIN", "DATASET.SPLIT.VAL", "DATASET.SPLIT.TEST", "DATALOADER.NUM_WORKERS"),
    *("MODEL.INIT_MODEL", "MODEL.INIT_WEIGHTS", "SOLVER.BATCH_SIZE.TEST", "SOLVER.ITER_SAVE"),
    *("SOLVER.ITER_STATE", "SOLVER.ITER_TB", "SOLVER.AVERAGE_LOSS", "CRF.N_JOBS"),
    "CRF.BACKEND",
}
CLASSES = {"classes": list(read_class_names(VOC_LABELS))}


def _config(folder: Path, *overrides: str) -> Config:
    path = folder / "a.yaml"
    path.write_text(f"DATASET: {{ROOT: {folder}}}\nMODEL: {{INIT_MODEL: none}}\n")
    return load(path, overrides)


def _official(config: Config) -> Config:
    return replace(config, CRF=replace(config.CRF, IMAGE="official"))


def test_a_training_follows_from_all_but_places_and_intervals(tmp_path: Path) -> None:
    content = lineage.training(_config(tmp_path), PICTURES).content()
    assert content["step"] == "train"
    assert content["arguments"] == TRAINING | CLASSES
    assert content["inputs"] == {
        # printf 'a\nb\n' | sha256sum
        "train_list": "911169ddaaf146aff539f58c26c489af3b892dff0fe283c1c264c65ae5aa59a2",
        "pictures": "incomplete",
        "labels": "incomplete",
        "first_weights": "none",
    }


def test_logits_follow_from_network_and_input() -> None:
    content = lineage.logits(Config(), "abc").content()
    arguments = NETWORK | INPUT | CLASSES
    assert content == {"step": "test", "arguments": arguments, "inputs": {"model": "abc"}}


def test_refined_predictions_follow_from_the_crf_and_its_picture() -> None:
    source = Record("test", {}, {"model": "abc"})
    for config, arguments in (
        (Config(), REFINEMENT),
        (_official(Config()), REFINEMENT | INPUT | {"CRF.IMAGE": "official"}),
    ):
        content = lineage.refinement(config, source).content()
        assert (content["step"], content["arguments"]) == ("crf", arguments)
        assert content["inputs"] == {"logits": source.fingerprint}


@pytest.mark.parametrize("crf", [False, True])
def test_label_maps_of_any_pictures_follow_from_their_size_as_well(crf: bool) -> None:
    content = lineage.prediction(Config(), "abc", crf).content()
    arguments = NETWORK | INPUT | CLASSES | {"IMAGE.SIZE.TEST": 513, "crf": crf}
    assert content == {
        "step": "predict",
        "arguments": arguments | (REFINEMENT if crf else {}),
        "inputs": {"model": "abc"},
    }


def test_every_key_is_in_a_record_or_known_to_be_in_none() -> None:
    others = {"IMAGE.SIZE.TEST", "MODEL.BACKBONE_ARGS"}
    assert set(flatten(Config())) == {*TRAINING, *REFINEMENT, *others, *IN_NO_RECORD}


def _narrow(config: Config) -> Config:
    model = replace(config.MODEL, BACKBONE_ARGS={"channels": (32, 64)})
    return replace(config, MODEL=model)


def test_arguments_of_the_backbone_are_in_records_where_there_are_any() -> None:
    content = lineage.logits(_narrow(Config()), "abc").content()
    given = {"MODEL.BACKBONE_ARGS": {"channels": [32, 64]}}
    assert content["arguments"] == NETWORK | INPUT | CLASSES | given


def test_weights_fit_the_arguments_that_they_were_trained_with(tmp_path: Path) -> None:
    plain, narrow = _config(tmp_path), _narrow(_config(tmp_path))
    weights = tmp_path / "w.pth"
    for trained, now, differs in (
        (plain, narrow, 'is {"channels": [32, 64]} now and was {}'),
        (narrow, plain, 'is {} now and was {"channels": [32, 64]}'),
    ):
        write_record(weights, lineage.training(trained, PICTURES))
        weights.write_bytes(b"weights")
        lineage.require_same_network(trained, weights)
        with pytest.raises(UserError) as caught:
            lineage.require_same_network(now, weights)
        assert f"MODEL.BACKBONE_ARGS {differs}." in str(caught.value)


@pytest.mark.parametrize(
    ("override", "differs"),
    [
        ("IMAGE.MEAN.R=100", "IMAGE.MEAN.R is 100.0 now and was 122.675"),
        ("MODEL.ATROUS_RATES=6,12", "MODEL.ATROUS_RATES is [6, 12] now and was [6, 12, 18, 24]"),
        ("SOLVER.LR=1", None),
        ("IMAGE.SIZE.TRAIN=100", None),
    ],
)
def test_weights_fit_the_network_and_the_input_that_they_were_trained_with(
    tmp_path: Path, override: str, differs: str | None
) -> None:
    weights = tmp_path / "w.pth"
    write_record(weights, lineage.training(_config(tmp_path), PICTURES))
    weights.write_bytes(b"weights")
    now: Any = _config(tmp_path, override)
    if differs is None:
        lineage.require_same_network(now, weights)
        return
    with pytest.raises(UserError) as caught:
        lineage.require_same_network(now, weights)
    assert f"another configuration: {differs}. Use the configuration" in str(caught.value)


def test_facts_are_renewed_when_outputs_are_made(tmp_path: Path) -> None:
    record, others = Record("test", {}, {"model": "abc"}), {"val": {"count": 3}}
    write_record(tmp_path, record, others, {"model": "first"})
    lineage.update_record(tmp_path, record, PICTURES, {"model": "second"}, making=False)
    assert (read_facts(tmp_path)["model"], read_lists(tmp_path)) == ("first", others)
    lineage.update_record(tmp_path, record, PICTURES, {"model": "second"}, making=True)
    assert (read_facts(tmp_path)["model"], set(read_lists(tmp_path))) == (
        "second",
        {"val", "train"},
    )
    lineage.update_record(tmp_path, record, PICTURES, {"device": "cpu"}, making=False)
    assert read_facts(tmp_path)["device"] == "cpu"  # not known before
