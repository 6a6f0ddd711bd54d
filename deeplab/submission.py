"""The archive that the PASCAL VOC evaluation server accepts."""

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from misc.errors import UserError
from misc.files import atomic_path
from misc.maps_io import opened_image, read_label
from misc.progress import log, progress

FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
_FILE_MODE = 0o644


def write_submission(
    path: Path, prediction_dir: Path, image_paths: Mapping[str, Path], num_classes: int
) -> None:
    """Pack the predictions of a list; equal predictions give equal bytes.

    Args:
        path: target `.tar.gz`.
        prediction_dir: holds ID.png.
        image_paths: the picture of every id.
        num_classes: with background; labels must be below.

    Raises:
        UserError: a prediction is missing, has another size than its picture or other labels.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        _pack(stream, prediction_dir, image_paths, num_classes)
    log(
        f"{path} holds {len(image_paths)} predictions as {FOLDER}/ID.png; upload it as comp6 to "
        "the PASCAL VOC evaluation server."
    )


def _pack(
    stream: io.BufferedIOBase,
    prediction_dir: Path,
    image_paths: Mapping[str, Path],
    num_classes: int,
) -> None:
    # No name, no times and no owners: only the predictions make the bytes. GNU takes long names.
    with (
        gzip.GzipFile(filename="", fileobj=stream, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for image_id in progress(sorted(image_paths), "submission"):
            prediction = prediction_dir / f"{image_id}.png"
            _require_valid(prediction, image_paths[image_id], num_classes)
            content = prediction.read_bytes()
            entry = tarfile.TarInfo(f"{FOLDER}/{image_id}.png")
            entry.size, entry.mode = len(content), _FILE_MODE
            archive.addfile(entry, io.BytesIO(content))


def _require_valid(prediction: Path, picture: Path, num_classes: int) -> None:
    label = read_label(prediction)
    with opened_image(picture) as image:
        size = image.size[::-1]
    if label.shape != size:
        raise UserError(
            f"{prediction} is {label.shape} (height, width) but its picture {picture} is {size}; "
            "run test again with --overwrite."
        )
    outside = np.unique(label[label >= num_classes]).tolist()
    if outside:
        raise UserError(
            f"{prediction} has labels {outside}; the server accepts 0..{num_classes - 1}; run test "
            "again with --overwrite."
        )
