"""What every output of DeepLab is made from, in the terms of `misc.provenance`.

Only what changes a result is listed: folders, workers, intervals of logging are not. Image lists
count by their ids and data by its content, so that a moved devkit is still the same.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deeplab.config import (
    FINAL,
    IMAGENET,
    NO_INIT,
    Config,
    Paths,
    Split,
    class_names,
    dataset_root,
)
from deeplab.data import label_fingerprint, training_label_path
from misc.config import flatten
from misc.errors import UserError
from misc.files import read_json, sha256_file
from misc.provenance import Record, check_record, read_record, record_path
from voc12.devkit import Devkit
from voc12.lists import IdList

TRAIN, TEST, CRF = "train", "test", "crf"
REDO = "--overwrite"

_NETWORK = ("MODEL.NAME", "MODEL.BACKBONE", "MODEL.N_BLOCKS", "MODEL.ATROUS_RATES")
_INPUT = ("IMAGE.MEAN.R", "IMAGE.MEAN.G", "IMAGE.MEAN.B")
_NOT_FOR_TRAINING = (
    "EXP.ID",
    "EXP.OUTPUT_DIR",
    "DATASET.ROOT",
    "DATASET.TRAIN_LABELS",
    "DATASET.LABELS",
    "DATASET.SPLIT.",
    "DATALOADER.",
    "IMAGE.SIZE.TEST",
    "MODEL.INIT_MODEL",
    "MODEL.INIT_WEIGHTS",
    "SOLVER.BATCH_SIZE.TEST",
    "SOLVER.ITER_SAVE",
    "SOLVER.ITER_STATE",
    "SOLVER.ITER_TB",
    "SOLVER.AVERAGE_LOSS",
    "CRF.",
)
_UNKNOWN = "unknown: there is no record beside these weights"


def training(config: Config, pictures: IdList) -> Record:
    """Weights trained on a list.

    Raises:
        UserError: the file of the first weights does not exist.
    """
    images = image_paths(config, pictures.ids)
    labels = {image_id: training_label_path(config, image_id) for image_id in pictures.ids}
    values = flatten(config)
    arguments = {key: value for key, value in values.items() if _trains(key)}
    return Record(
        TRAIN,
        {**arguments, "classes": class_names(config)},
        {
            "train_list": pictures.sha256,
            "pictures": _content_hash(images),
            "labels": _content_hash(labels),
            **_first_weights(config),
        },
    )


def logits(config: Config, model_hash: str) -> Record:
    """Logits and predictions of whole pictures.

    Args:
        config: configuration.
        model_hash: SHA-256 of the weights.
    """
    values = flatten(config)
    arguments = {key: values[key] for key in (*_NETWORK, *_INPUT)}
    return Record(TEST, {**arguments, "classes": class_names(config)}, {"model": model_hash})


def recorded_logits(
    config: Config, split: Split, model_path: Path | None = None
) -> tuple[Record, dict[str, str]]:
    """Make sure that the logits of a split are those of a model.

    Args:
        config: configuration.
        split: whose logits.
        model_path: the weights that should have made them; None for those that the record names
            or, when these are gone, the final ones of the configuration. When there are none at
            all, the record is believed.

    Returns:
        The record of the logits; `path` and `sha256` of the weights that made them.

    Raises:
        UserError: there are no logits, or other weights or another configuration made them.
    """
    folder, final = Paths(config).logits_dir(split), Paths(config).checkpoint(FINAL)
    recorded = read_record(folder) if folder.is_dir() else None
    redo = f"`test --split {split} --overwrite`"
    if recorded is None:
        raise UserError(f"there are no logits of test in {folder}; run `test --split {split}`.")
    model = read_json(record_path(folder)).get("facts", {}).get("model", {})
    named = Path(model.get("path", ""))
    path = model_path or next((p for p in (named, final) if p.is_file()), named)
    model_hash = sha256_file(path) if path.is_file() else recorded.inputs.get("model", "")
    check_record(folder, logits(config, model_hash), redo=redo)
    return recorded, {"path": str(path), "sha256": model_hash}


def refinement(config: Config, logits_record: Record) -> Record:
    """Predictions after the CRF."""
    values = flatten(config)
    arguments = {
        key: value
        for key, value in values.items()
        if key.startswith("CRF.") and key != "CRF.N_JOBS"
    }
    if config.CRF.IMAGE == "official":
        arguments |= {key: values[key] for key in _INPUT}
    return Record(CRF, arguments, {"logits": logits_record.fingerprint})


def list_facts(pictures: IdList) -> dict[str, dict[str, Any]]:
    """Name, hash and number of ids of a list, for a person who reads the record."""
    facts = {"source": pictures.source, "sha256": pictures.sha256, "count": len(pictures)}
    return {pictures.name: facts}


def training_facts(model_path: Path) -> dict[str, Any]:
    """What the record beside trained weights says of their origin, to go beside their scores.

    Returns:
        `initialisation` and `training_labels`; texts that say so where nothing is known.
    """
    path = record_path(model_path)
    facts = read_json(path).get("facts", {}) if path.is_file() else {}
    names = ("initialisation", "training_labels")
    return {name: facts.get(name, _UNKNOWN) for name in names}


def image_paths(config: Config, ids: Sequence[str]) -> dict[str, Path]:
    """The picture of every id."""
    devkit = Devkit(dataset_root(config))
    return {image_id: devkit.image_path(image_id) for image_id in ids}


def _trains(key: str) -> bool:
    return not any(
        key.startswith(other) if other.endswith(".") else key == other
        for other in _NOT_FOR_TRAINING
    )


def _first_weights(config: Config) -> dict[str, str]:
    init, weights = config.MODEL.INIT_MODEL, config.MODEL.INIT_WEIGHTS
    if init == NO_INIT:
        return {"first_weights": NO_INIT}
    if init == IMAGENET:
        which = "published" if weights is None else _file_hash("MODEL.INIT_WEIGHTS", weights)
        return {"first_weights": f"{IMAGENET} {which}"}
    return {"first_weights": _file_hash("MODEL.INIT_MODEL", Path(init))}


def _file_hash(key: str, path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{key} is {path}, which does not exist; name the file with the weights.")
    return sha256_file(path)


def _content_hash(paths: Mapping[str, Path]) -> str:
    missing = next((path for path in paths.values() if not path.is_file()), None)
    return "incomplete" if missing is not None else label_fingerprint(paths)
