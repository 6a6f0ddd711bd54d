"""Runs on other lists and data: one picture, unusual pictures and ids, own classes."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pipeline import (
    EVAL_STEPS,
    PICTURE_OUTPUTS,
    QUICK,
    TRAIN_IDS,
    VAL_IDS,
    copy_of,
    equal_weights,
    hashes,
    ids_in,
    log_of,
    metrics,
    output,
    run,
    same_list,
    weights,
    write_list,
)

from misc.maps_io import load_cam, load_instances, read_label, save_cam
from voc12.devkit import Devkit


def test_infer_list_may_have_nothing_in_common_with_train_list(
    sample: Path, finished: Path, tmp_path: Path
) -> None:
    work = copy_of(finished, tmp_path / "work", without=["res50_irn.*", *PICTURE_OUTPUTS])
    assert run(sample, work, infer_list="val", irn_num_epoches=1) == 0
    assert equal_weights(work, finished, "cnn", "transformer")
    made = {kind: ids_in(work / "result" / kind) for kind in PICTURE_OUTPUTS}
    assert made == {
        "cam": {*TRAIN_IDS, *VAL_IDS},
        "ir_label": {*TRAIN_IDS},
        "ins_seg": {*VAL_IDS},
        "edge": {*VAL_IDS},
        "sem_seg": {*VAL_IDS},
    }
    for step in EVAL_STEPS:
        result = metrics(work)["steps"][step]
        assert (result["list"], result["pictures"]) == ("val", len(VAL_IDS))


def test_list_of_one_picture_and_a_larger_batch(sample: Path, tmp_path: Path) -> None:
    lists = same_list(write_list(tmp_path / "one.txt", TRAIN_IDS[3:4])) | {"val_list": "none"}
    work = tmp_path / "work"
    assert run(sample, work, cam_batch_size=16, irn_batch_size=32, **QUICK, **lists) == 0
    assert "--cam_batch_size 16 is more than the 1 pictures" in log_of(work)
    assert "--irn_batch_size 32 is more than the 1 pictures" in log_of(work)
    assert ids_in(work / "result" / "sem_seg") == {TRAIN_IDS[3]}
    epochs = metrics(work)["steps"]["train_cam"]["epochs"]
    assert len(epochs) == 1 and epochs[0]["cnn"] > 0
    assert not any(name.startswith("val") for name in epochs[0])


Convert = Callable[[Image.Image], Image.Image]
IRN_MIN_INPUT = 64
UNUSUAL: dict[str, Convert] = {
    "a b": lambda image: image.convert("L"),
    "0007": lambda image: image.convert("CMYK"),
    "x.y": lambda image: image,  # gets an EXIF rotation
    "large": lambda image: image.resize((IRN_MIN_INPUT + 37, IRN_MIN_INPUT + 22)),
    "small": lambda image: image.resize((19, 23)),
    "empty": lambda image: image,  # gets an annotation without objects
}


@pytest.fixture(scope="module")
def unusual_data(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's pictures under other names and in other formats, with fitting masks."""
    source, root = Devkit(sample), tmp_path_factory.mktemp("unusual") / "voc"
    target = Devkit(root)
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"):
        (root / folder).mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    for (name, convert), original in zip(UNUSUAL.items(), TRAIN_IDS, strict=True):
        with Image.open(source.image_path(original)) as image:
            converted = convert(image)
            converted.save(target.image_path(name), **({"exif": exif} if name == "x.y" else {}))
        for folder in ("SegmentationClass", "SegmentationObject"):
            with Image.open(sample / folder / f"{original}.png") as mask:
                fitting = mask.resize(converted.size, Image.Resampling.NEAREST)
                fitting.save(root / folder / f"{name}.png")
        xml = source.annotation_path(original).read_text()
        xml = "<annotation></annotation>" if name == "empty" else xml
        target.annotation_path(name).write_text(xml)
    write_list(root / "mine.txt", list(UNUSUAL))
    return root


@pytest.fixture(scope="module")
def unusual(unusual_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folder of a run on unusual pictures, none of which is in a list of the devkit."""
    work = tmp_path_factory.mktemp("unusual") / "work"
    lists = same_list(unusual_data / "mine.txt")
    assert run(unusual_data, work, cam_batch_size=99, irn_batch_size=99, **QUICK, **lists) == 0
    return work


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_pictures_get_outputs_of_their_stored_size(
    unusual: Path, unusual_data: Path, name: str
) -> None:
    with Image.open(Devkit(unusual_data).image_path(name)) as image:
        width, height = image.size
    for kind in ("ir_label", "sem_seg"):
        assert read_label(output(unusual, kind, name)).shape == (height, width)
    assert load_cam(output(unusual, "cam", name)).high_res.shape[1:] == (height, width)
    edge = read_label(output(unusual, "edge", name))
    assert edge.shape == (-(-height // 4), -(-width // 4))


def test_pictures_larger_than_the_irn_input_have_edges_everywhere(unusual: Path) -> None:
    edge = read_label(output(unusual, "edge", "large"))
    beyond = edge[IRN_MIN_INPUT // 4 :], edge[:, IRN_MIN_INPUT // 4 :]
    assert all(part.size and part.std() > 0 for part in beyond)


def test_picture_without_class_becomes_background(unusual: Path) -> None:
    assert len(load_cam(output(unusual, "cam", "empty")).keys) == 0
    for kind in ("ir_label", "sem_seg"):
        assert not read_label(output(unusual, kind, "empty")).any()
    assert len(load_instances(output(unusual, "ins_seg", "empty")).score) == 0


def test_all_zero_cams_become_background(sample: Path, finished: Path, tmp_path: Path) -> None:
    work = copy_of(finished, tmp_path / "work", without=["ir_label", "ins_seg", "sem_seg"])
    zero, other = TRAIN_IDS[:2]
    maps = load_cam(output(work, "cam", zero))
    save_cam(output(work, "cam", zero), maps.keys, 0 * maps.cam, 0 * maps.high_res)
    steps = "cam_to_ir_label,make_ins_seg_labels,make_sem_seg_labels"
    # The changed file belongs to the folder as far as its record tells, so nothing is refused.
    assert run(sample, work, "--steps", steps, "--force") == 0
    for kind in ("ir_label", "sem_seg"):
        assert not read_label(output(work, kind, zero)).any()
    assert not load_instances(output(work, "ins_seg", zero)).mask.any()
    assert hashes(work, "sem_seg", ids=[other]) == hashes(finished, "sem_seg", ids=[other])


# -------------------------------------------------------------------------------------- own data

OWN_CLASSES = ("zebra", "ant", "crab")


@pytest.fixture(scope="module")
def own_data(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, a class list and CSV labels; no masks, annotations or lists."""
    root = tmp_path_factory.mktemp("own")
    (root / "JPEGImages").mkdir()
    rows = ["id,names"]
    for number, original in enumerate(TRAIN_IDS[:4]):
        with Image.open(sample / "JPEGImages" / f"{original}.jpg") as image:
            image.save(root / "JPEGImages" / f"photo {number}.png")
        names = OWN_CLASSES[number % 3 :][:2] if number < 3 else ()
        rows.append(f"photo {number},{';'.join(names)}")
    (root / "classes.txt").write_text("\n".join(OWN_CLASSES) + "\n")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    write_list(root / "all.txt", [f"photo {number}" for number in range(4)])
    return root


def own_options(root: Path) -> dict:
    own = {"classes": root / "classes.txt", "cls_labels": root / "labels.csv"}
    return {**QUICK, **same_list(root / "all.txt"), **own, "figure_num": 1, "report_num": 6}


def test_own_classes_and_labels_end_to_end(
    own_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(own_data, tmp_path, **own_options(own_data)) == 0
    text = log_of(tmp_path)
    for step in ("eval_cam", "eval_ins_seg", "eval_sem_seg"):
        assert re.search(rf"no SegmentationClass folder: .*{step}.* left out", text)
        assert f"{step}: off" not in text
    assert "not the standard one" not in text
    content = metrics(tmp_path)
    assert content["seed_miou"] is None and content["mask_miou"] is None
    assert content["arguments"]["num_classes"] == len(OWN_CLASSES)
    assert weights(tmp_path, "cnn")["classifier.weight"].shape[0] == len(OWN_CLASSES)
    keys = [load_cam(output(tmp_path, "cam", f"photo {i}")).keys.tolist() for i in range(4)]
    assert keys == [[0, 1], [1, 2], [2], []]
    labels = read_label(output(tmp_path, "sem_seg", "photo 2"))
    assert set(np.unique(labels).tolist()) <= {0, 3}
    assert (tmp_path / "result" / "figure.png").is_file()


def test_steps_named_explicitly_are_not_left_out(
    own_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(own_data, tmp_path, "--steps", "eval_cam", **own_options(own_data)) == 2
    assert "SegmentationClass" in capsys.readouterr().err
