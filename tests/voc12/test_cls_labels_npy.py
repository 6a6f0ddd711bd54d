"""Image labels as `cls_labels.npy` and `cls_labels_onehot.npy` of other methods have them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from old_numpy_files import CLS_LABELS_NPY
from pipeline import TRAIN_IDS, VAL_IDS, prepared, run

from misc.errors import UserError
from voc12.labels import VOC_CLASSES, load_image_labels, read_cls_labels

CLASSES = ("cat", "dog", "ship")


def saved(folder: Path, content: Any) -> Path:
    path = folder / "cls_labels.npy"
    np.save(path, content, allow_pickle=True)
    return path


def labels_of(path: Path, *ids: str) -> dict[str, list[float]]:
    found = load_image_labels(ids, path.parent, CLASSES, path)
    assert all(label.dtype == np.float32 for label in found.values())
    return {image_id: label.tolist() for image_id, label in found.items()}


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.uint8, np.int64, bool])
def test_vectors_of_any_number_type(tmp_path: Path, kind: type) -> None:
    content = {"a": np.array([1, 0, 1], kind), "b": np.zeros(3, kind), "c": [0, 1, 0]}
    path = saved(tmp_path, content)
    assert labels_of(path, "b", "a") == {"b": [0, 0, 0], "a": [1, 0, 1]}
    assert labels_of(path, "c") == {"c": [0, 1, 0]}


@pytest.mark.parametrize(
    ("key", "image_id"),
    [
        (2007000032, "2007_000032"),  # IRN, AMN: VOC ids as integers
        (np.int32(2011003276), "2011_003276"),
        (np.str_("2007_000032"), "2007_000032"),
        ("2007_000032.jpg", "2007_000032"),  # MCTformer looks for both forms
        (9, "COCO_train2014_000000000009"),  # AMN: COCO ids as integers
        (581921, "COCO_val2014_000000581921"),
        (np.int64(9), "000000000009"),
        (7, "7"),
        (20070000321, "20070000321"),
    ],
)
def test_ids_as_text_and_numbers(tmp_path: Path, key: Any, image_id: str) -> None:
    path = saved(tmp_path, {key: np.array([0, 1, 1]), "other": np.array([1, 0, 0])})
    assert labels_of(path, image_id) == {image_id: [0, 1, 1]}


def test_file_of_old_numpy(tmp_path: Path) -> None:
    path = tmp_path / "cls_labels.npy"
    path.write_bytes(CLS_LABELS_NPY)
    table = read_cls_labels(path, VOC_CLASSES)
    assert table["2007_000039"].names == ("tvmonitor",)
    assert table["2007000032"].names == ("aeroplane", "person")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"a": np.ones(4)}, "entry 'a' is not a vector of 3 numbers 0 or 1"),
        ({"a": np.array([0.2, 1, 0])}, "entry 'a' is not a vector"),
        ({"a": np.array([np.nan, 1, 0])}, "entry 'a' is not a vector"),
        ({"a": np.ones((1, 3))}, "entry 'a' is not a vector"),
        ({"a": [10**400, 0, 0]}, "entry 'a' is not a vector"),
        ({5: "cat"}, "entry 5 is not a vector"),
        ({"a": {"cat": 1}}, "entry 'a' is not a vector"),
        ({1.5: np.ones(3)}, "entry 1.5: ids are text or whole numbers"),
        (np.ones((2, 3)), "is not a dictionary of image labels"),
        ([np.ones(3)], "is not a dictionary of image labels"),
        ({"a": {1, 2}}, "is not read: it has the instruction EMPTY_SET"),
    ],
)
def test_bad_files_are_named_with_the_entry(tmp_path: Path, content: Any, told: str) -> None:
    with pytest.raises(UserError, match=rf"cls_labels\.npy.*{told}"):
        read_cls_labels(saved(tmp_path, content), CLASSES)


def test_missing_ids_are_counted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 of 2 pictures .*'b'.*NPY file"):
        labels_of(saved(tmp_path, {"a": np.ones(3)}), "a", "b")


def test_a_run_takes_them_and_the_preflight_looks_at_them(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    xml = prepared(sample, tmp_path / "xml")
    vectors = xml.source.image_labels((*TRAIN_IDS, *VAL_IDS))
    path = saved(tmp_path, vectors)
    own = prepared(sample, tmp_path / "npy", cls_labels=path)
    found = own.source.image_labels(TRAIN_IDS)
    assert all(np.array_equal(found[i], vectors[i]) for i in TRAIN_IDS)
    spoilt = saved(tmp_path, {**vectors, TRAIN_IDS[2]: np.ones(3)})
    assert run(sample, tmp_path / "run", cls_labels=spoilt) == 2
    assert f"entry '{TRAIN_IDS[2]}' is not a vector of 20 numbers" in capsys.readouterr().err
