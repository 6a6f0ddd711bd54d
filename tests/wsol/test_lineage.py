"""What the record of a WSOL training holds, whose keys are written down here by hand."""

import hashlib
from dataclasses import replace
from pathlib import Path

from misc.config import flatten
from wsol import lineage
from wsol.config import Config
from wsol.pictures import ImageSet

NO_PICTURES = ImageSet(Path("data"), (), (), ())
ARGUMENTS = {
    "--lr": 0.1,
    "BASIC.SEED": 26,
    "MODEL.ARCH": "deit_tscam_small_patch16_224",
    "MODEL.CAM_THR": 0.1,
    "MODEL.TOP_K": 1,
    "MODEL.CNN": "resnet50",
    "MODEL.INIT": "pretrained",
    "MODEL.VIT_ARGS": {},
    "MODEL.DROP_PATH": 0.1,
    "MODEL.CNN_FROZEN_STAGES": 3,
    "MODEL.FIXED_BATCHNORM": True,
    "MODEL.CAM": "transformer",
    "DATA.DATASET": "CUB",
    "DATA.NUM_CLASSES": 200,
    "DATA.RESIZE_SIZE": 256,
    "DATA.CROP_SIZE": 224,
    "DATA.IMAGE_MEAN": [0.485, 0.456, 0.406],
    "DATA.IMAGE_STD": [0.229, 0.224, 0.225],
    "TRAIN.BATCH_SIZE": 64,
    "TEST.REPORT_NUM": 300,
    "TEST.TEN_CROPS": False,
    "SOLVER.LR_STEPS": [30],
    "SOLVER.LR_FACTOR": 0.1,
    "SOLVER.VIT_WEIGHT_DECAY": 0.05,
    "SOLVER.CNN_LR": 0.005,
    "SOLVER.CNN_WEIGHT_DECAY": 1e-4,
    "SOLVER.CNN_MOMENTUM": 0.0,
    "SOLVER.DECAY_CNN": False,
    "SOLVER.REFINE_EPOCHS": 5,
    "SOLVER.REFINE_WEIGHT": 1.0,
    "SOLVER.PRECISION": "float32",
}
NOT_IDENTIFYING = {
    *("BASIC.NUM_WORKERS", "BASIC.SAVE_DIR", "MODEL.VIT_WEIGHTS", "MODEL.CNN_WEIGHTS"),
    *("DATA.DATADIR", "TEST.BATCH_SIZE", "TEST.SAVE_BOXED_IMAGE", "TEST.SPLIT"),
    *("TEST.THRESHOLDS", "SOLVER.NUM_EPOCHS"),
}


def test_a_training_follows_from_all_but_places_and_the_test() -> None:
    content = lineage.training(Config(), 0.1, NO_PICTURES).content()
    assert content["step"] == "train_wsol"
    assert content["arguments"] == ARGUMENTS
    assert content["inputs"] == {
        "pictures": hashlib.sha256(b"[]").hexdigest(),
        # timm's DeiT wants ImageNet's mean and standard deviation, which go without saying
        "weights of the transformer": "deit_small_patch16_224, ImageNet weights (image labels)",
        "weights of the cnn": "resnet50, ImageNet weights (image labels)",
    }


def test_every_key_is_in_the_record_or_known_not_to_be() -> None:
    assert {"--lr", *flatten(Config())} == {*ARGUMENTS, *NOT_IDENTIFYING, "MODEL.CNN_ARGS"}


def test_arguments_of_the_cnn_are_in_the_record_where_there_are_any() -> None:
    config = Config()
    config = replace(config, MODEL=replace(config.MODEL, CNN_ARGS={"channels": (32, 64)}))
    record = lineage.training(config, 0.1, NO_PICTURES)
    assert record.content()["arguments"] == ARGUMENTS | {"MODEL.CNN_ARGS": {"channels": [32, 64]}}


def test_first_weights_count_by_content(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"weights")
    config = Config()
    config = replace(config, MODEL=replace(config.MODEL, CNN_WEIGHTS=path, INIT="random"))
    assert lineage.initialisation(config) == {
        "transformer": "deit_small_patch16_224, random weights",
        "cnn": f"resnet50, file w.pth with SHA-256 {hashlib.sha256(b'weights').hexdigest()}",
    }
