"""Class lists and image-level labels from XML, CSV and JSON."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from misc.errors import UserError
from voc12.labels import VOC_CLASSES, load_classes, load_image_labels

CLASSES = ("cat", "dog", "ship")


def annotate(root: Path, image_id: str, *names: str) -> Path:
    path = root / "Annotations" / f"{image_id}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(
        f"<object><name>{name}</name><difficult>1</difficult>"
        "<part><name>head</name></part></object>"
        for name in names
    )
    path.write_text(f"<annotation><folder>x</folder>{objects}</annotation>")
    return path


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def labels_of(root: Path, *ids: str, **options: Path) -> dict[str, list[float]]:
    found = load_image_labels(ids, root, CLASSES, **options)
    assert all(label.dtype == np.float32 for label in found.values())
    return {image_id: label.tolist() for image_id, label in found.items()}


def test_voc_classes_are_twenty_in_alphabetical_order() -> None:
    assert load_classes(None) == VOC_CLASSES
    assert len(VOC_CLASSES) == 20 and list(VOC_CLASSES) == sorted(VOC_CLASSES)


def test_own_classes_keep_their_order(tmp_path: Path) -> None:
    path = write(tmp_path / "classes.txt", "\ufeffwhite wolf\n\n  ant \n")
    assert load_classes(path) == ("white wolf", "ant")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", "names no class"),
        ("a\nb\na\n", "'a' more than once"),
        ("background\na\n", "label 0 is always background"),
        ("a;b\n", "rename that class"),
        ("\n".join(f"class {i}" for i in range(255)), "255 classes; 8-bit masks have room for 254"),
    ],
)
def test_impossible_class_lists_are_errors(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"classes\.txt .*{message}"):
        load_classes(write(tmp_path / "classes.txt", text))


def test_missing_class_list_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt does not exist"):
        load_classes(tmp_path / "none.txt")


def test_xml_objects_count_once_difficult_ones_too_and_parts_do_not(tmp_path: Path) -> None:
    annotate(tmp_path, "a", "ship", "cat", "ship")
    annotate(tmp_path, "b")
    assert labels_of(tmp_path, "a", "b") == {"a": [1, 0, 1], "b": [0, 0, 0]}


def test_missing_annotations_are_counted_with_the_remedy(tmp_path: Path) -> None:
    annotate(tmp_path, "a", "cat")
    with pytest.raises(UserError, match=r"2 of 3 pictures .*'x', 'y'.*--cls_labels"):
        labels_of(tmp_path, "a", "x", "y")


def test_unknown_object_in_xml_names_file_value_and_classes(tmp_path: Path) -> None:
    annotate(tmp_path, "a", "cat", "Katze")
    with pytest.raises(UserError, match=r"a\.xml: unknown class 'Katze'; known are cat, dog, ship"):
        labels_of(tmp_path, "a")


@pytest.mark.parametrize(
    "text",
    ["<annotation><object>", "", "<annotation><object><name> </name></object></annotation>"],
)
def test_malformed_xml_names_the_file(tmp_path: Path, text: str) -> None:
    path = annotate(tmp_path, "a", "cat")
    path.write_text(text)
    with pytest.raises(UserError, match=r"a\.xml"):
        labels_of(tmp_path, "a")


def test_cache_serves_unchanged_and_notices_changed_annotations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache = tmp_path / "root", tmp_path / "cache"
    annotate(root, "a", "cat")
    annotate(root, "sub/b", "dog")
    first = labels_of(root, "a", "sub/b", cache_dir=cache)
    (cached,) = cache.iterdir()
    assert json.loads(cached.read_text())["Annotations/a.xml"][2] == ["cat"]

    def no_parsing(path: Path) -> None:
        raise AssertionError(f"{path} was read again")

    with monkeypatch.context() as patch:
        patch.setattr("voc12.labels.read_annotation", no_parsing)
        assert labels_of(root, "a", "sub/b", cache_dir=cache) == first
    annotate(root, "a", "dog")  # of the same length
    os.utime(root / "Annotations/a.xml", ns=(1, 1))
    assert labels_of(root, "a", cache_dir=cache) == {"a": [0, 1, 0]}


def test_cache_does_not_mix_class_lists_roots_or_deleted_files(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    path = annotate(tmp_path / "one", "a", "cat")
    other = annotate(tmp_path / "two", "a", "dog")
    for annotation in (path, other):  # which are of the same size as well
        os.utime(annotation, ns=(1, 1))
    assert labels_of(tmp_path / "one", "a", cache_dir=cache) == {"a": [1, 0, 0]}
    assert labels_of(tmp_path / "two", "a", cache_dir=cache) == {"a": [0, 1, 0]}
    swapped = load_image_labels(["a"], tmp_path / "one", ("ship", "cat"), None, cache)
    assert swapped["a"].tolist() == [0, 1]
    with pytest.raises(UserError, match="unknown class 'cat'"):
        load_image_labels(["a"], tmp_path / "one", ("ship",), None, cache)
    path.unlink()
    with pytest.raises(UserError, match="no image label"):
        labels_of(tmp_path / "one", "a", cache_dir=cache)


@pytest.mark.parametrize("row", ["3", "[1, 2]", '[1, 2, "cat"]'])
def test_spoilt_cache_is_read_again(tmp_path: Path, row: str) -> None:
    annotate(tmp_path / "root", "a", "cat")
    expected = labels_of(tmp_path / "root", "a", cache_dir=tmp_path / "cache")
    (cached,) = (tmp_path / "cache").iterdir()
    cached.write_text(f'{{"Annotations/a.xml": {row}}}')
    assert labels_of(tmp_path / "root", "a", cache_dir=tmp_path / "cache") == expected
    assert json.loads(cached.read_text())["Annotations/a.xml"][2] == ["cat"]


@pytest.mark.parametrize("header", ["", "id,labels\n"])
def test_csv_with_and_without_header(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "l.csv", f"\ufeff{header}a,cat;ship\n\nb.1, dog ;dog\n007,\nmore,ant\n")
    assert labels_of(tmp_path, "a", "b.1", "007", cls_labels=path) == {
        "a": [1, 0, 1],
        "b.1": [0, 1, 0],
        "007": [0, 0, 0],
    }


def test_csv_quotes_allow_commas_in_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", '"a,b",cat\n')
    assert labels_of(tmp_path, "a,b", cls_labels=path) == {"a,b": [1, 0, 0]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,cat\nb,Dog\n", r"line 2: unknown class 'Dog'; known are cat, dog, ship"),
        ("id,label\na,cat\nb,cat,dog\n", r"line 3: 'b,cat,dog' is not of the form id,name;name"),
        ("a\nb,cat\n", r"line 1: 'a' is not of the form"),
        (",cat\n", r"line 1: ',cat' is not of the form"),
        ("a,cat\nb,dog\na,dog\n", r"line 3: 'a' has labels already in .*l\.csv, line 1"),
        ("a,cat\n", r"1 of 2 pictures .*l\.csv: 'b'"),
    ],
)
def test_csv_mistakes_name_file_line_and_value(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "l.csv", text)
    with pytest.raises(UserError, match=message) as caught:
        labels_of(tmp_path, "a", "b", cls_labels=path)
    assert "l.csv" in str(caught.value)


def test_json_lists_and_single_names(tmp_path: Path) -> None:
    path = write(tmp_path / "l.json", '{"a": ["dog", "cat"], "b": "ship", "c": []}')
    assert labels_of(tmp_path, "a", "b", "c", cls_labels=path) == {
        "a": [1, 1, 0],
        "b": [0, 0, 1],
        "c": [0, 0, 0],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ["dgo"]}', r"entry 'a': unknown class 'dgo'; known are cat"),
        ('{"a": 3}', r"entry 'a': 3 is neither"),
        ('{"a": ["dog", 1]}', r"entry 'a': .*is neither"),
        ('["a"]', r"must be a JSON object"),
        ("{", r"is not valid JSON"),
    ],
)
def test_json_mistakes_name_file_entry_and_value(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "l.json", text)
    with pytest.raises(UserError, match=rf"l\.json.*{message}"):
        labels_of(tmp_path, "a", cls_labels=path)


def test_missing_label_file_is_an_error(tmp_path: Path) -> None:
    for name in ("none.csv", "none.json"):
        with pytest.raises(UserError, match=f"{name} does not exist"):
            labels_of(tmp_path, "a", cls_labels=tmp_path / name)


def test_a_root_that_is_not_utf8_can_be_cached(tmp_path: Path) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    (root / "Annotations").mkdir(parents=True)
    text = "<annotation><object><name>cat</name></object></annotation>"
    (root / "Annotations" / "a.xml").write_text(text)
    for _ in range(2):
        labels = load_image_labels(["a"], root, VOC_CLASSES, cache_dir=tmp_path / "cache")
        assert labels["a"].nonzero()[0].tolist() == [7]
