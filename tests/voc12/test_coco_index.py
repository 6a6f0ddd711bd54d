"""Reading COCO's annotation files piece by piece."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import coco_files as coco
import numpy as np
import pytest

from misc.errors import UserError
from voc12.coco import index as coco_index
from voc12.coco.index import AnnotationIndex, Element, read_elements, read_index

CONTENT: dict[str, Any] = {
    "info": {"url": 'a "quoted" \\ [{', "version": -1.5e3, "list": [[], {}]},
    "empty": [],
    "numbers": [1, -2.25, 3e5, True, None],
    "images": [{"id": 1, "name": "café 猫 ]}"}, {"id": 2, "nested": [[1, 2], {"a": []}]}],
    "year": 2014,
}


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 22])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("indent", [None, 3])
def test_elements_are_those_of_json_whatever_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, ascii_only: bool, indent: Any
) -> None:
    monkeypatch.setattr(coco_index, "CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(CONTENT, ensure_ascii=ascii_only, indent=indent), "utf-8-sig")
    elements = list(read_elements(path))
    arrays = {key: value for key, value in CONTENT.items() if isinstance(value, list)}
    assert [(e.key, e.value) for e in elements] == [(k, v) for k in arrays for v in arrays[k]]
    data = path.read_bytes()
    assert [json.loads(data[e.start : e.end]) for e in elements] == [e.value for e in elements]


def test_object_without_arrays_has_no_elements(tmp_path: Path) -> None:
    for text in ("{}", " { } ", '{"a": 1, "b": {"c": []}}'):
        (tmp_path / "a.json").write_text(text)
        assert list(read_elements(tmp_path / "a.json")) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "[1, 2]",
        "nonsense",
        '{"a"}',
        '{"a": [1 2]}',
        '{"a": [1,]}',
        '{"a": [{"b": 1]}',
        '{"a": [1, 2]',
        '{"a": [{"b": "c',
        '{"a": [1]; "b": [2]}',
        '{"a": ' + "[" * 100_000,
        "\x1f\x8b\x08\x00",
        '{"a": ["\xff"]}',
    ],
    ids=range(14),
)
def test_broken_files_are_named_with_the_place(tmp_path: Path, text: str) -> None:
    path = tmp_path / "instances_a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"instances_a\.json is not a JSON object .*\(byte \d+: "):
        list(read_elements(path))


def test_element_that_never_ends_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco_index, "CHUNK", 1 << 10)
    monkeypatch.setattr(coco_index, "MAX_ELEMENT", 1 << 16)
    path = tmp_path / "a.json"
    path.write_text('{"a": ["' + "x" * (1 << 22))
    tracemalloc.start()
    with pytest.raises(UserError, match="Unterminated string"):
        list(read_elements(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_memory_does_not_grow_with_the_polygons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco_index, "CHUNK", 1 << 14)
    polygon = [[float(f"{n}.25") for n in range(4000)]]
    annotations = [coco.annotation(n, 9, 1, polygon) for n in range(100)]
    path = coco.write_json(tmp_path, "train2014", coco.TRAIN_IMAGES, annotations)
    assert path.stat().st_size > 3_000_000
    tracemalloc.start()
    read_index(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 4


# ------------------------------------------------------------------------------------------ index


def read(root: Path, **parts: Any) -> AnnotationIndex:
    """Index of a file; `parts` replace its arrays."""
    content = {"images": coco.TRAIN_IMAGES, "annotations": coco.TRAIN_ANNOTATIONS, **parts}
    return read_index(coco.write_json(root, "train2014", **content))


def test_categories_are_in_the_order_of_their_ids(tmp_path: Path) -> None:
    index = read(tmp_path)
    assert list(index.categories.items()) == [(1, "person"), (2, "bicycle"), (13, "stop sign")]


def test_annotations_are_found_by_picture_in_the_order_of_the_file(tmp_path: Path) -> None:
    index = read(tmp_path)
    data = index.path.read_bytes()
    ids = []
    for row in range(len(index.pictures)):
        spans = index.spans[index.first[row] : index.first[row + 1]]
        ids.append([json.loads(data[start:end])["id"] for start, end in spans])
    assert ids == [[1, 3, 4], [2], [5, 6, 7, 8], []]
    assert [index.names_of(row) for row in range(4)] == [
        ["person", "bicycle", "stop sign"],  # the crowd of bicycles counts
        ["person"],
        ["person", "bicycle", "stop sign"],
        [],
    ]
    assert [index.is_annotated(row) for row in range(4)] == [True, True, True, False]
    assert [p.image_id for p in index.pictures] == [
        coco.name_of("train2014", number) for number in (9, 25, 30, 34)
    ]
    assert index.pictures[0][1:] == ("COCO_train2014_000000000009.jpg", coco.HEIGHT, coco.WIDTH)


def test_order_of_the_arrays_and_of_the_pictures_does_not_matter(tmp_path: Path) -> None:
    expected = read(tmp_path)
    content = json.loads(expected.path.read_text())
    content["images"].reverse()
    turned = {key: content[key] for key in ("annotations", "categories", "images")}
    expected.path.write_text(json.dumps(turned))
    index = read_index(expected.path)
    assert index.pictures == expected.pictures
    assert index.categories == expected.categories
    assert np.array_equal(index.first, expected.first)
    assert np.array_equal(index.category, expected.category)


def test_ids_of_pictures_may_be_text_and_names_may_have_folders(tmp_path: Path) -> None:
    images = [{**coco.TRAIN_IMAGES[0], "id": "naïve", "file_name": "b/c.d.png"}]
    annotations = [{**coco.TRAIN_ANNOTATIONS[3], "image_id": "naïve"}]
    index = read(tmp_path, images=images, annotations=annotations)
    assert index.pictures[0].image_id == "b/c.d"
    assert index.names_of(0) == ["person"]


def test_annotations_of_pictures_that_are_not_named_are_left_out(tmp_path: Path) -> None:
    index = read(tmp_path, images=coco.TRAIN_IMAGES[1:])
    assert index.orphans == 3
    assert index.first.tolist() == [0, 1, 5, 5]
    assert len(index.spans) == len(index.category) == 5


IMAGE, ANNOTATION, CATEGORY = coco.TRAIN_IMAGES[0], coco.TRAIN_ANNOTATIONS[1], coco.GAP


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"images": []}, "has no 'images'"),
        ({"categories": []}, "has no 'categories'"),
        ({"images": ["x"]}, r"'images' at byte \d+ has no 'id'"),
        ({"images": [{**IMAGE, "id": 1.5}]}, "with id 1.5 has no 'id' that is a whole number or"),
        ({"images": [{**IMAGE, "file_name": None}]}, "id 9 has no 'file_name' that is text"),
        ({"images": [{**IMAGE, "file_name": "/etc/a.jpg"}]}, "file_name '/etc/a.jpg', which is no"),
        ({"images": [{**IMAGE, "file_name": "../a.jpg"}]}, r"file_name '\.\./a.jpg', which is no"),
        ({"images": [{**IMAGE, "file_name": "a.pdf"}]}, "which is no .jpg, .jpeg, .png file"),
        ({"images": [{**IMAGE, "height": 0}]}, "has the size 10x0"),
        ({"images": [{**IMAGE, "width": 10**9}]}, "has the size 1000000000x8"),
        ({"images": [{**IMAGE, "width": "10"}]}, "has no 'width' that is a whole number"),
        ({"images": [{**IMAGE, "width": True}]}, "has no 'width' that is a whole number"),
        ({"images": [IMAGE, IMAGE]}, "has the id of another picture"),
        ({"images": [IMAGE, {**IMAGE, "id": 7}]}, "pictures 'COCO_.*9' more than once"),
        ({"images": [IMAGE, {**IMAGE, "id": 7, "height": 9}]}, "pictures 'COCO_.*9' more than"),
        ({"annotations": [{**ANNOTATION, "image_id": None}]}, "has no 'image_id'"),
        ({"annotations": [{**ANNOTATION, "category_id": 12}]}, "category_id '12', which its"),
        ({"annotations": [{**ANNOTATION, "category_id": 2**70}]}, "has no 'category_id' that is"),
        ({"categories": [{**CATEGORY, "id": "13"}]}, "has no 'id' that is a whole number"),
        ({"categories": [CATEGORY, CATEGORY]}, "has the id 13 of another category"),
        ({"categories": [CATEGORY, {"id": 1, "name": "stop sign"}]}, "'stop sign' more than once"),
        ({"categories": [{"id": 1, "name": "background"}]}, "names 'background'"),
        ({"categories": [{"id": 1, "name": "a;b"}]}, "has a class name with ';'"),
        ({"categories": [{"id": 1, "name": "a\nb"}]}, r"has the name 'a\\nb', which is not one"),
        ({"categories": [{"id": 1, "name": " "}]}, "has the name '', which is not one line"),
        ({"categories": [{"id": n, "name": f"c{n}"} for n in range(1, 257)]}, "256 classes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_entries_that_cannot_be_are_refused_with_their_place(
    tmp_path: Path, parts: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=rf"instances_train2014\.json.*{told}"):
        read(tmp_path, **parts)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.json cannot be read \(No such file"):
        read_index(tmp_path / "nowhere.json")


def test_element_says_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images":[ {"id":1}]}')
    assert list(read_elements(tmp_path / "a.json")) == [Element("images", {"id": 1}, 12, 20)]
