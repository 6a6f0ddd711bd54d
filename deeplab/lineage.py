"""What every output of DeepLab is made from, in the terms of `misc.provenance`.

The keys of a record are those that `affects` of `deeplab.config` gives it. Image lists count by
their ids and data by its content, so that a moved devkit is still the same.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from deeplab.config import (
    CRF,
    FINAL,
    IMAGENET,
    NO_INIT,
    PREDICT,
    TEST,
    TRAIN,
    Config,
    Paths,
    Split,
    class_names,
    dataset_root,
)
from deeplab.data import files_fingerprint, training_label_path
from misc.config import identifying
from misc.errors import UserError
from misc.files import atomic_path, sha256_file
from misc.precision import FLOAT32
from misc.provenance import (
    Record,
    check_record,
    read_facts,
    read_lists,
    read_record,
    write_record,
)
from voc12.devkit import Devkit
from voc12.lists import IdList, some_of

REDO = "--overwrite"

_ARGS = "MODEL.BACKBONE_ARGS"
_MEAN = "IMAGE.MEAN."  # which only the official picture of the CRF depends on
_CRC_SUFFIX = ".crc"
_UNKNOWN = "unknown: there is no record beside these weights"


def training(config: Config, pictures: IdList) -> Record:
    """Weights trained on a list.

    Raises:
        UserError: the file of the first weights does not exist.
    """
    images = image_paths(config, pictures.ids)
    labels = {image_id: training_label_path(config, image_id) for image_id in pictures.ids}
    return Record(
        TRAIN,
        {**identifying(config, TRAIN), "classes": class_names(config)},
        {
            "train_list": pictures.sha256,
            "pictures": _content_hash(images),
            "labels": _content_hash(labels),
            **_first_weights(config),
        },
    )


def logits(config: Config, model_hash: str, precision: str = FLOAT32) -> Record:
    """Logits and predictions of whole pictures.

    Args:
        config: configuration.
        model_hash: SHA-256 of the weights.
        precision: in which they are computed; float32 is left out of the record.
    """
    arguments = {**identifying(config, TEST), "classes": class_names(config)}
    if precision != FLOAT32:
        arguments["precision"] = precision
    return Record(TEST, arguments, {"model": model_hash})


def require_same_network(config: Config, model_path: Path) -> None:
    """Make sure that weights were trained as the network, with the classes and the input of now.

    Weights without record (the user's own, or made by the published code) are used as they are.

    Raises:
        UserError: names every value that differs from the record beside the weights.
    """
    recorded = read_record(model_path)
    if recorded is None or recorded.step != TRAIN:
        return
    empty = {_ARGS: {}}  # which records leave out
    now, then = ({**empty, **r.content()["arguments"]} for r in (logits(config, ""), recorded))
    differences = [
        f"{key} is {json.dumps(now[key])} now and was {json.dumps(then[key])}"
        for key in {**identifying(config, TEST), **empty}
        if key in then and then[key] != now[key]
    ]
    names = then.get("classes", now["classes"])
    differences += [
        f"class {index} is {name or 'absent'} now and was {before or 'absent'}"
        for index, (name, before) in enumerate(
            zip_longest(now["classes"], names if isinstance(names, list) else [names])
        )
        if name != before
    ]
    if differences:
        raise UserError(
            f"{model_path} does not fit this network, it was trained with another configuration: "
            f"{'; '.join(differences)}. Use the configuration and KEY=VALUE of the training "
            "(DATASET.LABELS names the classes), or other weights with -m."
        )


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
    model = read_facts(folder).get("model")
    named = Path(str(model.get("path", ""))) if isinstance(model, Mapping) else Path()
    path = model_path or next((p for p in (named, final) if p.is_file()), named)
    model_hash = sha256_file(path) if path.is_file() else recorded.inputs.get("model", "")
    precision = recorded.arguments.get("precision", FLOAT32)  # any will do
    check_record(folder, logits(config, model_hash, precision), redo=redo)
    return recorded, {"path": str(path), "sha256": model_hash}


def refinement(config: Config, logits_record: Record) -> Record:
    """Predictions after the CRF."""
    return Record(CRF, _crf_arguments(config), {"logits": logits_record.fingerprint})


def _crf_arguments(config: Config) -> dict[str, Any]:
    arguments = identifying(config, CRF)
    if config.CRF.IMAGE == "official":
        return arguments
    return {key: value for key, value in arguments.items() if not key.startswith(_MEAN)}


def prediction(config: Config, model_hash: str, crf: bool) -> Record:
    """Label maps that `predict` makes of any pictures."""
    arguments = {**identifying(config, PREDICT), "classes": class_names(config), "crf": crf}
    return Record(
        PREDICT, arguments | (_crf_arguments(config) if crf else {}), {"model": model_hash}
    )


def update_record(
    folder: Path, record: Record, pictures: IdList, facts: Mapping[str, Any], making: bool
) -> None:
    """Write the record of a folder that `prepare_output` made ready.

    A record that has its facts stays as it is unless outputs are about to be made.
    """
    if making or not facts.keys() <= read_facts(folder).keys():
        write_record(folder, record, {**read_lists(folder), **list_facts(pictures)}, facts)


def picture_hash(path: Path) -> str:
    """CRC-32 of a picture's file, which tells whether outputs are still its own."""
    return f"{zlib.crc32(path.read_bytes()):08x}"


def recorded_picture(folder: Path, image_id: str) -> str | None:
    """Hash of the picture that the outputs of an id were made from; None if that is unknown."""
    path = _picture_record(folder, image_id)
    return path.read_text(encoding="ascii", errors="replace").strip() if path.is_file() else None


def record_picture(folder: Path, image_id: str, picture: str) -> None:
    """Record that all outputs of an id are made, from the picture of this hash."""
    with atomic_path(_picture_record(folder, image_id)) as temporary:
        temporary.write_text(f"{picture}\n", encoding="ascii")


def forget_picture(folder: Path, image_id: str) -> None:
    """Record that the outputs of an id are about to change."""
    _picture_record(folder, image_id).unlink(missing_ok=True)


def require_same_pictures(folder: Path, images: Mapping[str, Path], redo: str) -> None:
    """Stop when logits were made from other pictures than those that are there now.

    Raises:
        UserError: counts and names the pictures.
    """
    changed = [i for i, path in images.items() if recorded_picture(folder, i) != picture_hash(path)]
    if changed:
        raise UserError(
            f"the logits of {len(changed)} of {len(images)} pictures in {folder} were made from "
            f"other pictures than those of now, or were not finished: {some_of(changed)}; run "
            f"{redo}, which makes just these again."
        )


def _picture_record(folder: Path, image_id: str) -> Path:
    return folder / f"{image_id}{_CRC_SUFFIX}"


def list_facts(pictures: IdList) -> dict[str, dict[str, Any]]:
    """The facts of a list by its name, for a person who reads the record."""
    return {pictures.name: pictures.facts()}


def training_facts(model_path: Path) -> dict[str, Any]:
    """What the record beside trained weights says of their origin, to go beside their scores.

    Returns:
        `initialisation` and `training_labels`; texts that say so where nothing is known.
    """
    facts = read_facts(model_path)
    names = ("initialisation", "training_labels")
    return {name: facts.get(name, _UNKNOWN) for name in names}


def image_paths(config: Config, ids: Sequence[str]) -> dict[str, Path]:
    """The picture of every id."""
    devkit = Devkit(dataset_root(config))
    return {image_id: devkit.image_path(image_id) for image_id in ids}


def _first_weights(config: Config) -> dict[str, str]:
    init, weights = config.MODEL.INIT_MODEL, config.MODEL.INIT_WEIGHTS
    if init == NO_INIT:
        return {"first_weights": NO_INIT}
    if init == IMAGENET:
        which = "published" if weights is None else _weights_hash("MODEL.INIT_WEIGHTS", weights)
        return {"first_weights": f"{IMAGENET} {which}"}
    return {"first_weights": _weights_hash("MODEL.INIT_MODEL", Path(init))}


def _weights_hash(key: str, path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{key} is {path}, which does not exist; name the file with the weights.")
    return sha256_file(path)


def _content_hash(paths: Mapping[str, Path]) -> str:
    missing = next((path for path in paths.values() if not path.is_file()), None)
    return "incomplete" if missing is not None else files_fingerprint(paths)
