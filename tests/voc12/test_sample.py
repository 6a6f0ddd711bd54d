"""The synthetic data set: layout, agreement of its files, determinism, interrupted builds."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from misc.errors import UserError
from misc.maps_io import voc_palette
from voc12.labels import VOC_CLASSES
from voc12.sample import devkit as synthetic
from voc12.sample import scenes as synthetic_scenes
from voc12.sample.scenes import paint_scene, plan_classes
from voc12.sample.shapes import DRAWERS

SIZES = ((60, 72), (72, 88))
NUM_TRAIN, NUM_VAL = 12, 6


def build(root: Path, seed: int = 0, num_train: int = NUM_TRAIN) -> Path:
    return synthetic.build(root, num_train, NUM_VAL, SIZES, seed)


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def read_png(root: Path, folder: str, name: str) -> np.ndarray:
    return np.asarray(Image.open(root / folder / f"{name}.png"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("synthetic") / "voc")


@pytest.fixture(scope="module")
def names(small: Path) -> list[str]:
    return (small / "ImageSets/Segmentation/trainval.txt").read_text().split()


def test_same_parameters_give_the_same_bytes(small: Path, tmp_path: Path) -> None:
    assert contents(build(tmp_path / "again")) == contents(small)


def test_another_seed_gives_other_pictures(small: Path, names: list[str], tmp_path: Path) -> None:
    first, second = contents(small), contents(build(tmp_path / "other", seed=1))
    assert first.keys() == second.keys()
    for name in names:
        key = f"JPEGImages/{name}.jpg"
        assert first[key] != second[key]


def test_layout(small: Path, names: list[str]) -> None:
    lists = small / "ImageSets/Segmentation"
    train, val = ((lists / f"{split}.txt").read_text().split() for split in ("train", "val"))
    assert (len(train), len(val)) == (NUM_TRAIN, NUM_VAL)
    assert train + val == names and len(set(names)) == len(names)
    for folder, suffix in synthetic.PICTURE_FOLDERS.items():
        assert {path.name for path in (small / folder).iterdir()} == {n + suffix for n in names}


def test_sizes_agree_and_masks_carry_the_voc_palette(small: Path, names: list[str]) -> None:
    for name in names:
        image = Image.open(small / "JPEGImages" / f"{name}.jpg")
        size = ElementTree.parse(small / "Annotations" / f"{name}.xml").find("size")
        assert image.mode == "RGB"
        assert (int(size.findtext("width")), int(size.findtext("height"))) == image.size
        for (low, high), length in zip(SIZES, image.size[::-1], strict=True):
            assert low <= length <= high
        for folder in ("SegmentationClass", "SegmentationObject"):
            mask = Image.open(small / folder / f"{name}.png")
            assert mask.mode == "P" and mask.size == image.size
            palette = np.array(mask.getpalette()).reshape(-1, 3)
            assert np.array_equal(palette, voc_palette()[: len(palette)])


def test_masks_agree_with_the_annotation(small: Path, names: list[str]) -> None:
    for name in names:
        labels = read_png(small, "SegmentationClass", name)
        objects = read_png(small, "SegmentationObject", name)
        items = ElementTree.parse(small / "Annotations" / f"{name}.xml").findall("object")
        assert set(np.unique(objects)) == {0, synthetic.BOUNDARY, *range(1, len(items) + 1)}
        for value in (0, synthetic.BOUNDARY):
            assert np.array_equal(labels == value, objects == value)
        for number, item in enumerate(items, start=1):
            label = VOC_CLASSES.index(item.findtext("name")) + 1
            assert set(labels[objects == number]) == {label}
            rows, columns = np.nonzero(objects == number)
            box = [int(item.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
            assert box == [columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1]


def test_a_thin_boundary_parts_all_regions(small: Path, names: list[str]) -> None:
    for name in names:
        objects = read_png(small, "SegmentationObject", name)
        ring = objects == synthetic.BOUNDARY
        for first, second in ((objects[1:], objects[:-1]), (objects[:, 1:], objects[:, :-1])):
            touching = (first != second) & (first != 255) & (second != 255)
            assert not touching.any()
        thick = np.ones_like(ring[2:, 2:])
        for row in range(3):
            for column in range(3):
                thick &= ring[row : row + thick.shape[0], column : column + thick.shape[1]]
        assert thick.mean() < 0.002


def test_plan_holds_all_classes_and_enough_pairs() -> None:
    plan = plan_classes(96, np.random.default_rng(0))
    first = Counter(classes[0] for classes in plan)
    assert len(first) >= 6 and set(first) <= set(VOC_CLASSES)
    assert max(first.values()) - min(first.values()) <= 1
    two_classes = sum(len(set(classes)) == 2 for classes in plan) / len(plan)
    twins = sum(len(classes) == 2 and len(set(classes)) == 1 for classes in plan)
    assert 0.25 <= two_classes <= 0.30
    assert twins > 0


@pytest.mark.parametrize("name", sorted(DRAWERS))
def test_object_covers_the_promised_share(name: str) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        scene = paint_scene((name,), synthetic.DEFAULT_SIZE_RANGE, rng)
        assert scene.image.dtype == np.uint8 and scene.image.shape == (*scene.instances.shape, 3)
        assert 0.03 < (scene.instances == 1).mean() < 0.40


@pytest.mark.parametrize("occluder_share", [0.0, 1.0])
def test_pictures_show_what_the_mask_says(
    monkeypatch: pytest.MonkeyPatch, occluder_share: float
) -> None:
    """The rim of an object, also where clutter hides a part of it, is an edge in the picture."""
    monkeypatch.setattr(synthetic_scenes, "OCCLUDER_SHARE", occluder_share)
    at_rim, elsewhere = [], []
    for seed, name in enumerate(sorted(DRAWERS)):
        scene = paint_scene((name,), synthetic.DEFAULT_SIZE_RANGE, np.random.default_rng(seed))
        step = np.abs(np.diff(scene.image.astype(np.float64).mean(axis=2), axis=1))
        rim = np.diff((scene.instances > 0).astype(np.int64), axis=1) != 0
        outside = (scene.instances[:, 1:] == 0) & (scene.instances[:, :-1] == 0)
        at_rim.append(step[rim].mean())
        elsewhere.append(step[outside].mean())
    assert np.mean(at_rim) > 2 * np.mean(elsewhere)


def test_clutter_before_an_object_is_background(monkeypatch: pytest.MonkeyPatch) -> None:
    painted = []
    paint = synthetic_scenes._paint_distractor

    def recorded(*args: object) -> np.ndarray:
        painted.append(paint(*args))
        return painted[-1]

    monkeypatch.setattr(synthetic_scenes, "_paint_distractor", recorded)
    monkeypatch.setattr(synthetic_scenes, "OCCLUDER_SHARE", 1.0)
    scene = paint_scene(("car",), synthetic.DEFAULT_SIZE_RANGE, np.random.default_rng(0))
    assert painted[-1].any() and not scene.instances[painted[-1]].any()


def test_a_finished_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = build(tmp_path / "voc")
    monkeypatch.setattr(synthetic, "_fill", lambda *_: pytest.fail("built again"))
    assert build(root) == root


def test_other_parameters_replace_the_folder(small: Path, tmp_path: Path) -> None:
    root = build(tmp_path / "voc", num_train=2)
    assert contents(build(root)) == contents(small)
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_a_damaged_folder_is_built_again(small: Path, tmp_path: Path, damage: str) -> None:
    root = build(tmp_path / "voc")
    victim = root / "SegmentationClass" / "sample_000003.png"
    victim.unlink() if damage == "missing" else victim.write_bytes(b"")
    assert contents(build(root)) == contents(small)


@pytest.mark.parametrize("earlier", [False, True])
def test_an_interrupted_build_leaves_no_half_filled_folder(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    root = tmp_path / "voc"
    before = contents(build(root, num_train=2)) if earlier else {}
    write = synthetic._write_scene

    def interrupted(folder: Path, name: str, scene: object) -> None:
        if name == "sample_000004":
            raise KeyboardInterrupt
        write(folder, name, scene)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "_write_scene", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(root)
    assert (contents(root) if root.exists() else {}) == before
    assert contents(build(root)) == contents(small)
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


def test_leftovers_of_a_killed_exchange_are_cleared(small: Path, tmp_path: Path) -> None:
    for end in synthetic.LEFTOVERS:
        folder = tmp_path / f".voc.{end}" / "JPEGImages"
        folder.mkdir(parents=True)
        (folder / "stale.jpg").write_bytes(b"stale")
    assert contents(build(tmp_path / "voc")) == contents(small)
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


_SLOW_BUILD = """
import sys, time
from pathlib import Path
from voc12.sample import devkit as synthetic

write, root, go = synthetic._write_scene, Path(sys.argv[1]), Path(sys.argv[2])

def slow(*arguments):
    time.sleep(0.02)
    write(*arguments)

synthetic._write_scene = slow
print("ready", flush=True)
while not go.exists():
    time.sleep(0.001)
synthetic.build(root, 12, 3, ((48, 56), (64, 72)))
"""


def test_processes_that_build_at_the_same_time_all_end_well(tmp_path: Path) -> None:
    root, go = tmp_path / "a" / "voc", tmp_path / "go"
    command = [sys.executable, "-c", _SLOW_BUILD, str(root), str(go)]
    repository = Path(synthetic.__file__).parents[2]
    builders = [
        subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for builder in builders:
        assert builder.stdout.readline() == b"ready\n"
    go.touch()
    said = [builder.communicate(timeout=120)[1].decode() for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0, 0], said
    alone = synthetic.build(tmp_path / "b" / "voc", 12, 3, ((48, 56), (64, 72)))
    assert contents(root) == contents(alone)
    assert [path.name for path in root.parent.iterdir()] == ["voc"]


def test_a_foreign_folder_is_refused_and_kept(tmp_path: Path) -> None:
    note = tmp_path / "voc" / "note.txt"
    note.parent.mkdir()
    note.write_text("mine")
    with pytest.raises(UserError, match=r"synthetic\.json"):
        build(note.parent)
    assert note.read_text() == "mine"
