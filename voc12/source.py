"""The data a run works on: devkit, class names, lists and image labels behind the options."""

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from misc.file_memory import FileMemory
from voc12.devkit import Devkit
from voc12.labels import load_classes, load_image_labels
from voc12.lists import IdList, resolve_list
from voc12.photos.folder import Photo
from voc12.sample.devkit import RECORD_NAME as SYNTHETIC_RECORD

NO_LIST = "none"


@dataclass(frozen=True)
class DataSource:
    """Everything about the data that the options name.

    Attributes:
        devkit: the folder with pictures, masks and annotations.
        classes: foreground class names, in label order.
        cls_labels: file with image labels that replaces the XML annotations.
        cache_dir: where derived lists and what was read of unchanged files are kept.
        expect_standard: lists called train, val or train_aug should be VOC's; others are warned of.
        photos: the pictures of --photos by id, which were decoded and hashed when they were found.
    """

    devkit: Devkit
    classes: tuple[str, ...]
    cls_labels: Path | None = None
    cache_dir: Path | None = None
    expect_standard: bool = True
    photos: Mapping[str, Photo] = field(default_factory=dict)
    _lists: dict[str, IdList] = field(default_factory=dict, compare=False, repr=False)
    _hashes: dict[str, int] = field(default_factory=dict, compare=False, repr=False)

    def id_list(self, name: str) -> IdList:
        """Resolve a list by file or name, once; `none` is an empty list."""
        if name == NO_LIST:
            return IdList(NO_LIST, (), "no list")
        if name not in self._lists:
            self._lists[name] = resolve_list(
                name, self.devkit.root, self.cache_dir, expect_standard=self.expect_standard
            )
        return self._lists[name]

    def ids_of(self, *names: str) -> tuple[str, ...]:
        """Ids of several lists, each once, in order."""
        return tuple(dict.fromkeys(i for name in names for i in self.id_list(name).ids))

    def image_labels(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Multi-hot (C,) float32 vector of every id."""
        return load_image_labels(
            ids, self.devkit.root, self.classes, self.cls_labels, self.cache_dir
        )

    def picture_hashes(self, ids: Sequence[str]) -> dict[str, int]:
        """CRC-32 of the files of pictures, read once and again only where they changed since."""
        unknown = [i for i in ids if i not in self.photos and i not in self._hashes]
        if unknown:
            with FileMemory(self.cache_dir, "hashes", self.devkit.root, _crc, int) as memory:
                for image_id in unknown:
                    self._hashes[image_id] = memory.of(self.devkit.image_path(image_id))
        return {i: self.photos[i].crc if i in self.photos else self._hashes[i] for i in ids}

    def fingerprint(self, ids: Sequence[str]) -> str:
        """Hash over ids, image labels and pictures: tells data sets apart."""
        labels, hashes = self.image_labels(ids), self.picture_hashes(ids)
        digest = hashlib.sha256()
        for image_id in sorted(ids):
            picture, present = hashes[image_id], labels[image_id].astype(int).tolist()
            digest.update(f"{image_id}\t{picture}\t{present}\n".encode())
        return digest.hexdigest()


def _crc(path: Path) -> int:
    return zlib.crc32(path.read_bytes())


def open_source(
    root: Path,
    classes: Path | None = None,
    cls_labels: Path | None = None,
    cache_dir: Path | None = None,
    photos: Mapping[str, Photo] | None = None,
) -> DataSource:
    """The data in a devkit folder; lists called train and so on are VOC's where classes are.

    Args:
        root: the devkit folder.
        classes: file of class names; None for VOC's.
        cls_labels: see `DataSource`, like the others.
        cache_dir: see `DataSource`.
        photos: see `DataSource`.
    """
    is_sample = (root / SYNTHETIC_RECORD).is_file()
    return DataSource(
        Devkit(root),
        load_classes(classes),
        cls_labels,
        cache_dir,
        expect_standard=classes is None and not is_sample,
        photos=photos or {},
    )
