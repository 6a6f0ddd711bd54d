"""What is exported and kept, and what bad input says."""

import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from export_runs import IDS, build, command_line, components, instances, label_map, run
from PIL import Image
from pipeline import write_list

from misc.files import read_json, write_json
from misc.maps_io import save_instances, write_label
from misc.provenance import Record, write_record
from step import export
from step.exchange.export_formats import COPY, FORMATS, Export, MaskObject, Picture
from voc12.labels import VOC_CLASSES

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished masks of six pictures; read only."""
    return build(sample, tmp_path_factory.mktemp("export"))


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy of `folder` to spoil."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


# ----------------------------------------------------------------------- what is exported, and why


def objects_of(output: Path) -> list[dict]:
    return read_json(output / "instances.json")["annotations"]


def test_small_regions_and_unsure_instances_are_left_out(folder: Path, tmp_path: Path) -> None:
    everything = [
        (class_id, score, part.sum())
        for image_id in IDS
        for class_id, score, mask in zip(
            instances(folder, image_id).class_id,
            instances(folder, image_id).score,
            instances(folder, image_id).mask,
            strict=True,
        )
        for part in components(mask)
    ]
    assert run(folder, "coco", min_area=20, output=tmp_path / "area") == 0
    area = sum(one["area"] for one in objects_of(tmp_path / "area"))
    assert area == sum(pixels for _, _, pixels in everything if pixels >= 20)
    assert area < sum(pixels for _, _, pixels in everything)
    assert run(folder, "coco", min_score=0.5, output=tmp_path / "score") == 0
    area = sum(one["area"] for one in objects_of(tmp_path / "score"))
    assert area == sum(pixels for _, score, pixels in everything if score >= 0.5) > 0


@pytest.mark.parametrize("format_name", FORMATS)
def test_instances_are_exported_where_they_are_complete(
    copied: Path, format_name: str, capsys: Capture
) -> None:
    """VOC's layout has no instances, so there the label maps come first."""
    usual, other = ("sem_seg", "ins_seg") if format_name == "voc" else ("ins_seg", "sem_seg")
    assert run(copied, format_name) == 0
    assert str(copied / "result" / usual) in capsys.readouterr().out
    next((copied / "result" / usual).glob("d.*")).unlink()
    assert run(copied, format_name, output=copied / "other") == 0
    assert str(copied / "result" / other) in capsys.readouterr().out


def test_class_names_are_those_that_the_masks_were_made_for(copied: Path, tmp_path: Path) -> None:
    names = [f"kind {number}" for number in range(1, 21)]
    record = Record("make_ins_seg_labels", {"class_names": names})
    write_record(copied / "result" / "ins_seg", record)
    assert run(copied, "coco") == 0
    categories = read_json(copied / "out" / "instances.json")["categories"]
    assert [one["name"] for one in categories] == names
    recorded = read_json(copied / "out" / "made_by.json")
    assert recorded["facts"]["made_by"] == record.fingerprint


def test_record_says_what_was_exported(folder: Path, tmp_path: Path) -> None:
    assert run(folder, "coco", output=tmp_path / "out") == 0
    record = read_json(tmp_path / "out" / "made_by.json")
    assert record["step"] == "export" and record["lists"]["list"]["count"] == len(IDS)
    assert record["arguments"]["source"] == "ins_seg" and record["arguments"]["format"] == "coco"
    assert record["facts"]["masks"] == str(folder / "result" / "ins_seg")


def test_what_a_tool_cannot_show_is_told(copied: Path, capsys: Capture) -> None:
    photo = copied / "data/JPEGImages/d.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photo) as image:
        image.save(photo, exif=exif)
    assert run(copied, "coco", source="sem_seg") == 0
    out = capsys.readouterr().out
    assert "1 photos carry an EXIF rotation" in out
    assert re.search(r"[45] pictures have pixels of label 255", out)


# ----------------------------------------------------------------------------- nothing is lost


def test_finished_export_is_kept_and_another_refused(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "out"
    assert run(folder, "yolo", output=output) == 0
    (output / "data.yaml").write_text("edited")
    assert run(folder, "yolo", output=output) == 0
    assert "is finished and is kept" in capsys.readouterr().out
    assert run(folder, "yolo", output=output, min_area=5) == 2
    assert "is another export: min_area is 5 now and was 1" in capsys.readouterr().err
    assert (output / "data.yaml").read_text() == "edited"


def test_masks_made_again_are_another_export(copied: Path, capsys: Capture) -> None:
    assert run(copied, "coco") == 0
    found = instances(copied, "d")
    path = copied / "result/ins_seg/d.npz"
    save_instances(path, found.score / 2, found.class_id, found.mask)
    assert run(copied, "coco") == 2
    assert "input ins_seg is" in capsys.readouterr().err


@pytest.mark.parametrize("format_name", FORMATS)
def test_failure_in_the_middle_leaves_nothing(
    copied: Path, format_name: str, capsys: Capture
) -> None:
    for file in (copied / "result").glob("*/shapes.*"):
        file.write_bytes(file.read_bytes()[:60])
    before = sorted(copied.rglob("*"))
    assert run(copied, format_name) == 2
    assert "shapes" in capsys.readouterr().err
    assert sorted(copied.rglob("*")) == before


@pytest.mark.parametrize("format_name", FORMATS)
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path, format_name: str) -> None:
    """A picture that is kept weighs 3.2 KB in masks alone; the directory of a zip needs 1.8 KB."""
    mask = np.zeros((40, 40), bool)
    mask[5:30, 8:33] = True
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"photo")

    def pictures(count: int) -> Iterator[Picture]:
        for number in range(1, count + 1):
            objects = (MaskObject(3, mask.copy(), 0.5), MaskObject(4, ~mask, 0.25))
            yield Picture(number, f"picture {number}", photo, mask.shape, objects)

    def peak(count: int) -> int:
        target = tmp_path / f"{format_name}{count}"
        target.mkdir()
        export = Export(target, VOC_CLASSES, "train", COPY)
        tracemalloc.start()
        FORMATS[format_name].write(export, pictures(count))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(2)  # imports and caches
    few, many = peak(20), peak(140)
    assert many - few < 120 * 2500


def test_command_starts_without_torch() -> None:
    code = "import sys, step.export; sys.exit('torch' in sys.modules)"
    repository = Path(export.__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=repository, timeout=60).returncode == 0


# ----------------------------------------------------------------------------------- bad input


def _write_bad_npz(**arrays: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.savez(folder / "result/ins_seg/d.npz", **arrays)


def _many_objects(folder: Path) -> None:
    label = np.zeros(label_map(folder, "d").shape, np.uint8)
    mask = np.zeros((300, *label.shape), bool)
    for number in range(300):
        mask[number, number // 40, number % 40] = True
    save_instances(folder / "result/ins_seg/d.npz", np.ones(300), np.zeros(300, int), mask)


SIZE_OF_NOTHING = np.zeros((0, 3, 5), bool)
BAD_INPUT: dict[str, tuple[str, dict, Callable[[Path], object] | None, str]] = {
    "no root": ("coco", {"voc12_root": "/no/root"}, None, r"/no/root \(--voc12_root\) does not"),
    "no list": ("coco", {"list": "nolist"}, None, "image list nolist is neither a file nor"),
    "no results": ("coco", {"work_dir": "/no/work"}, None, "lacks 6, the first is sub/größe 1"),
    "incomplete": (
        "coco",
        {"source": "sem_seg"},
        lambda folder: (folder / "result/sem_seg/d.png").unlink(),
        r"1 of 6 files are missing in .*sem_seg, the first is d\.png; run step make_sem_seg_labels",
    ),
    "no photo": (
        "coco",
        {},
        lambda folder: (folder / "data/JPEGImages/d.jpg").unlink(),
        r"1 of 6 photos are missing, the first is .*d\.jpg; correct --voc12_root or --list",
    ),
    "photo is no photo": (
        "coco",
        {},
        lambda folder: (folder / "data/JPEGImages/d.jpg").write_text("text"),
        r"d\.jpg cannot be read as a picture",
    ),
    "truncated npz": (
        "coco",
        {},
        lambda folder: (folder / "result/ins_seg/d.npz").write_bytes(b"PK\3\4"),
        r"d\.npz is not an npz file with score, class, mask",
    ),
    "masks without height": (
        "yolo",
        {},
        _write_bad_npz(**{"score": np.ones(1), "class": np.ones(1), "mask": np.ones((1, 5))}),
        r"d\.npz: score \(1,\), class \(1,\) and mask \(1, 5\) are not",
    ),
    "score is no number": (
        "labelstudio",
        {},
        _write_bad_npz(
            **{"score": np.array([np.nan]), "class": np.ones(1), "mask": np.ones((1, 3, 5))}
        ),
        r"d\.npz: .* of finite numbers; remove it and make it again",
    ),
    "other size, no object": (
        "coco",
        {},
        _write_bad_npz(**{"score": np.zeros(0), "class": np.zeros(0), "mask": SIZE_OF_NOTHING}),
        r"d\.npz is 5x3 but its photo is \d+x\d+ \(width x height\)",
    ),
    "label map of other size": (
        "cvat",
        {"source": "sem_seg"},
        lambda folder: write_label(folder / "result/sem_seg/d.png", np.zeros((3, 5), np.uint8)),
        r"d\.png is 5x3 but its photo is",
    ),
    "colours": (
        "voc",
        {},
        lambda folder: Image.new("RGB", (9, 9)).save(folder / "result/sem_seg/d.png"),
        r"d\.png is a picture of mode RGB, not a label map",
    ),
    "fewer classes": (
        "coco",
        {},
        lambda folder: (folder / "classes.txt").write_text("bird\ncat\n"),
        r"has class number \d+, but there are 2 names; name the right list with --classes",
    ),
    "no class file": ("coco", {"classes": "/no/classes.txt"}, None, "/no/classes.txt does not"),
    "other classes than recorded": (
        "coco",
        {},
        lambda folder: (
            (folder / "classes.txt").write_text("bird\ncat\n"),
            write_record(folder / "result/ins_seg", Record("x", {"class_names": ["cow", "dog"]})),
        ),
        r"classes\.txt \(--classes\) is not the class list that .* was made for: cow, dog",
    ),
    "broken record": (
        "coco",
        {},
        lambda folder: write_json(folder / "result/ins_seg/made_by.json", ["x"]),
        r"made_by\.json is not a record of what made",
    ),
    "foreign folder": (
        "coco",
        {"output": "data"},
        None,
        "data is there already and is no export; choose another --output or move it away",
    ),
    "output is a file": ("coco", {"output": "list.txt"}, None, "list.txt is there already"),
    "output below a file": ("coco", {"output": "list.txt/out"}, None, "a file is where a folder"),
    "scores of label maps": (
        "coco",
        {"source": "sem_seg", "min_score": 0.5},
        None,
        "--min_score 0.5 needs scores, which sem_seg does not have",
    ),
    "links in a zip": ("cvat", {"images": "link"}, None, "--images link makes no sense in a zip"),
    "colon in a class name": (
        "cvat",
        {},
        lambda folder: (folder / "classes.txt").write_text("a:b\n"),
        "no room for the class name 'a:b'",
    ),
    "id like a comment": (
        "cvat",
        {},
        lambda folder: [
            write_list(folder / "hash.txt", ["#1"]),
            *(
                shutil.copy(folder / kind / f"d{suffix}", folder / kind / f"#1{suffix}")
                for kind, suffix in (("result/ins_seg", ".npz"), ("data/JPEGImages", ".jpg"))
            ),
        ],
        "CVAT takes the id '#1' for a comment",
    ),
    "too many objects": (
        "cvat",
        {},
        _many_objects,
        r"d has 300 objects and its map of objects has room for 254; leave small",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence_and_writes_nothing(
    copied: Path, case: str, capsys: Capture
) -> None:
    format_name, options, spoil, told = BAD_INPUT[case]
    if spoil is not None:
        spoil(copied)
    inside = {name: copied / value for name, value in options.items() if name == "output"}
    if (copied / "hash.txt").exists():
        inside["list"] = copied / "hash.txt"
    if (copied / "classes.txt").exists():
        inside["classes"] = copied / "classes.txt"
    before = sorted(copied.rglob("*"))
    assert run(copied, format_name, **{**options, **inside}) == 2
    error = capsys.readouterr().err.replace("\n", " ")
    assert re.search(told, error)
    assert "Traceback" not in error
    assert sorted(copied.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"format": "pascal"}, "invalid choice: 'pascal'"),
        ({"format": None}, "required: --format"),
        ({"voc12_root": None}, "required: --voc12_root"),
        ({"min_area": 0}, "0 must be at least 1"),
        ({"min_area": "x"}, "invalid positive_int value: 'x'"),
        ({"min_score": 2}, "2 must lie in 0..1"),
        ({"source": "cam"}, "invalid choice: 'cam'"),
        ({"images": "move"}, "invalid choice: 'move'"),
    ],
    ids=str,
)
def test_wrong_options_are_named(folder: Path, options: dict, told: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        export.main(command_line(folder, "coco", **options))
    assert stop.value.code == 2
    assert told in capsys.readouterr().err
