"""Scenes with image labels alone: what is painted, what is kept, what an item is."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from voc12.sample import scene_sets
from voc12.sample.scene_sets import CLASSES, SIZE, SceneSet, digest, multi_hot, paint

COUNT = 5


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_sets, "PART", COUNT)


def scene_set(folder: Path, parts: int = 2, seed: int = 3) -> SceneSet:
    return SceneSet(folder, parts, seed, crop_size=32, long_side=(40, 60))


def test_a_label_names_the_classes_that_are_painted() -> None:
    scenes = list(paint(seed=1, part=0))
    assert [scene.image.shape for scene in scenes] == [(*SIZE, 3)] * COUNT
    for scene in scenes:
        named = {CLASSES[index] for index in np.flatnonzero(multi_hot(scene))}
        assert named == set(scene.classes)
        assert scene.instances.max() == len(scene.classes)


def test_seeds_and_parts_have_their_own_scenes() -> None:
    found = {
        digest(scene.image) for seed in (1, 2) for part in (0, 1) for scene in paint(seed, part)
    }
    assert len(found) == 4 * COUNT


def test_a_digest_is_the_start_of_a_hash_of_size_and_pixels() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    expected = hashlib.sha256(b"(2, 2, 3)" + bytes(range(12))).hexdigest()[:16]
    assert f"{digest(image):016x}" == expected
    assert digest(image) != digest(image.reshape(4, 1, 3))
    assert digest(image[:, ::-1]) == digest(np.ascontiguousarray(image[:, ::-1]))


def test_parts_that_are_there_are_kept_and_cut_off_ones_painted_again(tmp_path: Path) -> None:
    first = scene_set(tmp_path)
    labels = tmp_path / "labels_001.npy"
    kept = tmp_path / "images_000.npy"
    before, time = labels.read_bytes(), kept.stat().st_mtime_ns
    labels.unlink()  # it comes last: a killed process leaves a part without it
    again = scene_set(tmp_path)
    assert labels.read_bytes() == before and kept.stat().st_mtime_ns == time
    assert np.array_equal(first.digests(), again.digests())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "images_000.npy",
        "images_001.npy",
        "labels_000.npy",
        "labels_001.npy",
    ]


def test_items_are_crops_that_depend_on_the_key_alone(tmp_path: Path) -> None:
    scenes = scene_set(tmp_path)
    assert len(scenes) == 2 * COUNT
    item = scenes[4, COUNT + 1]
    assert item["image"].shape == (3, 32, 32) and item["image"].dtype == torch.float32
    (third, fourth) = list(paint(seed=3, part=1))[:2]
    assert item["label"].tolist() == multi_hot(fourth).tolist() != multi_hot(third).tolist()
    assert torch.equal(item["image"], scenes[4, COUNT + 1]["image"])
    assert not torch.equal(item["image"], scenes[5, COUNT + 1]["image"])


def test_digests_are_those_of_all_scenes(tmp_path: Path) -> None:
    expected = sorted(digest(scene.image) for part in (0, 1) for scene in paint(3, part))
    assert scene_set(tmp_path).digests().tolist() == expected
