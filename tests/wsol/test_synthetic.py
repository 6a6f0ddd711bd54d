"""The synthetic birds: layout, exact boxes, determinism, and that their boxes are not trivial."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from misc.errors import UserError
from misc.maps_io import read_image
from voc12.sample.scenes import paint_scene
from wsol import synthetic
from wsol.localization import MIN_IOU, iou
from wsol.pictures import ImageSet, Picture, scaled_box
from wsol.preflight import CUB, load_checked
from wsol.synthetic_birds import DRAWERS, SPECIES

SIZES = ((60, 72), (72, 88))
CLASSES, NUM_TRAIN, NUM_TEST = 3, 2, 1
SIDE = 224


def build(root: Path, seed: int = 0, num_train: int = NUM_TRAIN) -> Path:
    return synthetic.build(root, num_train, NUM_TEST, CLASSES, SIZES, seed)


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("synthetic") / "birds")


@pytest.fixture(scope="module")
def image_set(small: Path) -> ImageSet:
    return load_checked(CUB, small, CLASSES)


def test_layout(small: Path, image_set: ImageSet) -> None:
    assert image_set.class_names == (
        "001.Crimson_Barwing",
        "002.Azure_Scaletail",
        "003.Saffron_Spotback",
    )
    assert [p.label for p in image_set.train] == [0, 0, 1, 1, 2, 2]
    assert [p.label for p in image_set.test] == [0, 1, 2]
    names = {f"images/{p.name}" for p in image_set.train + image_set.test}
    tables = ("images", "image_class_labels", "train_test_split", "bounding_boxes", "classes")
    masks = {f"segmentations/{Path(p.name).with_suffix('.png')}" for p in image_set.train}
    masks |= {f"segmentations/{Path(p.name).with_suffix('.png')}" for p in image_set.test}
    expected = names | masks | {f"{table}.txt" for table in tables} | {"synthetic.json"}
    assert set(contents(small)) == expected


def test_boxes_and_masks_are_those_of_the_painted_birds(small: Path, image_set: ImageSet) -> None:
    picture = image_set.train[3]
    rng = np.random.default_rng([0, 1, picture.label, 1])
    scene = paint_scene(("Azure_Scaletail",), SIZES, rng, DRAWERS, synthetic.AREA_RANGE)
    x, y, width, height = map(int, picture.box)
    outside = scene.instances.copy()
    outside[y : y + height, x : x + width] = 0
    inside = scene.instances[y : y + height, x : x + width]
    assert not outside.any()
    assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
    mask = Image.open(small / "segmentations" / Path(picture.name).with_suffix(".png"))
    assert np.array_equal(np.asarray(mask), 255 * (scene.instances > 0))
    stored = read_image(picture.path).astype(np.int64)
    assert stored.shape == scene.image.shape
    assert np.abs(stored - scene.image).mean() < 8  # JPEG


def test_same_parameters_give_the_same_bytes(small: Path, tmp_path: Path) -> None:
    assert contents(build(tmp_path / "again")) == contents(small)


def test_another_seed_gives_other_pictures(
    small: Path, image_set: ImageSet, tmp_path: Path
) -> None:
    first, second = contents(small), contents(build(tmp_path / "other", seed=1))
    for picture in image_set.train + image_set.test:
        assert first[f"images/{picture.name}"] != second[f"images/{picture.name}"]


def test_more_pictures_keep_the_others(image_set: ImageSet, tmp_path: Path) -> None:
    more = load_checked(CUB, build(tmp_path / "more", num_train=NUM_TRAIN + 1), CLASSES)
    before = [p.path.read_bytes() for p in image_set.test]
    assert [p.path.read_bytes() for p in more.test] == before
    assert more.train[1].path.read_bytes() == image_set.train[1].path.read_bytes()


def test_other_parameters_replace_the_folder(small: Path, tmp_path: Path) -> None:
    root = build(tmp_path / "birds", num_train=1)
    assert contents(build(root)) == contents(small)
    assert [path.name for path in tmp_path.iterdir()] == ["birds"]


def test_a_foreign_folder_is_refused_and_kept(tmp_path: Path) -> None:
    note = tmp_path / "birds" / "note.txt"
    note.parent.mkdir()
    note.write_text("mine")
    with pytest.raises(UserError, match=r"synthetic\.json"):
        build(note.parent)
    assert note.read_text() == "mine"


@pytest.mark.parametrize("classes", [0, len(SPECIES) + 1])
def test_the_number_of_species_is_limited(tmp_path: Path, classes: int) -> None:
    with pytest.raises(UserError, match=f"{classes} synthetic species .* 1 to 6"):
        synthetic.build(tmp_path / "birds", 1, 1, classes)


def test_species_differ_in_colour() -> None:
    """The mean colours of two birds are farther apart between species than within one."""
    means = np.array([[_mean_colour(name, seed) for seed in range(4)] for name in SPECIES])
    within = np.linalg.norm(means - means.mean(axis=1, keepdims=True), axis=2).max()
    centres = means.mean(axis=1)
    between = np.linalg.norm(centres[:, None] - centres, axis=2)
    assert between[~np.eye(len(SPECIES), dtype=bool)].min() > within


def _mean_colour(name: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scene = paint_scene((name,), synthetic.DEFAULT_SIZE_RANGE, rng, DRAWERS, synthetic.AREA_RANGE)
    return scene.image[scene.instances > 0].mean(axis=0)


def test_no_fixed_box_finds_the_birds(tmp_path: Path) -> None:
    """Neither the whole picture nor any box around its middle may look like a localisation."""
    image_set = load_checked(CUB, synthetic.build(tmp_path / "birds", 10, 1), len(SPECIES))
    truths = np.stack([_box(picture) for picture in image_set.train])
    whole = np.array([0, 0, SIDE, SIDE])
    assert _gt_known(whole, truths) < 10
    sides = range(SIDE // 4, SIDE, SIDE // 16)
    middle = [
        np.array([SIDE - width, SIDE - height, SIDE + width, SIDE + height]) // 2
        for width in sides
        for height in sides
    ]
    assert (
        max(_gt_known(box, truths) for box in middle) < 35
    )  # the best of 144, chosen by the truth


def _box(picture: Picture) -> np.ndarray:
    height, width = read_image(picture.path).shape[:2]
    return scaled_box(picture.box, (width, height), SIDE)


def _gt_known(box: np.ndarray, truths: np.ndarray) -> float:
    return 100 * float((iou(box, truths) >= MIN_IOU).mean())
