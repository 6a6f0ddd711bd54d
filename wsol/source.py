"""The pictures of a configuration, checked, and what identifies them."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from misc.distributed import on_main
from misc.files import sha256_file
from misc.progress import log
from wsol import synthetic
from wsol.config import Config, Data
from wsol.pictures import TEST, TRAIN, ImageSet, Picture, TestPictures, TrainPictures
from wsol.preflight import CUB, load_checked

SYNTHETIC = "SYNTHETIC"


def open_pictures(config: Config, splits: Sequence[str] = (TRAIN, TEST)) -> ImageSet:
    """Read the data set of a configuration; the built-in one is made when it is not there.

    Args:
        config: its DATA group.
        splits: whose pictures are looked at before they are needed.

    Raises:
        UserError: there is no data set, or something is wrong with it; all problems are listed.
    """
    return on_main(lambda: _open(config.DATA, splits))


def _open(data: Data, splits: Sequence[str]) -> ImageSet:
    if data.DATASET == SYNTHETIC:
        synthetic.build(data.DATADIR)
    layout = CUB if data.DATASET == SYNTHETIC else data.DATASET
    image_set = load_checked(layout, data.DATADIR, data.NUM_CLASSES, splits)
    counts = ", ".join(f"{len(image_set.split(split))} {split}" for split in splits)
    log(f"{data.DATADIR}: {counts} pictures of {len(image_set.class_names)} classes.")
    return image_set


def fingerprint(pictures: Sequence[Picture]) -> str:
    """SHA-256 over names, labels, boxes and files; the same wherever the data set lies."""
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(sha256_file, [picture.path for picture in pictures])
        lines = [[p.name, p.label, p.box, h] for p, h in zip(pictures, hashes, strict=True)]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def training_pictures(config: Config, image_set: ImageSet) -> TrainPictures:
    """The training split as items."""
    data = config.DATA
    return TrainPictures(
        image_set.train,
        data.RESIZE_SIZE,
        data.CROP_SIZE,
        config.BASIC.SEED,
        data.IMAGE_MEAN,
        data.IMAGE_STD,
    )


def whole_pictures(config: Config, pictures: Sequence[Picture]) -> TestPictures:
    """Pictures as items for evaluation."""
    data = config.DATA
    return TestPictures(pictures, data.CROP_SIZE, data.IMAGE_MEAN, data.IMAGE_STD)
