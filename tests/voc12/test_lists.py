"""Lists of ids: files, names, derivation and the standard lists of VOC 2012."""

import hashlib
import os
import warnings
from pathlib import Path

import pytest

from misc.errors import UserError
from voc12 import lists
from voc12.lists import IdList, StandardList, read_ids, resolve_list, standard_difference

pytestmark = pytest.mark.filterwarnings("ignore:The list")


def write_lines(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def devkit_root(tmp_path: Path) -> Path:
    """A devkit with train (a, b) and val (c)."""
    root = tmp_path / "devkit" / "VOC2012"
    write_lines(root / "ImageSets/Segmentation/train.txt", "a", "b")
    write_lines(root / "ImageSets/Segmentation/val.txt", "c")
    return root


def add_masks(root: Path, *ids: str) -> None:
    for image_id in ids:
        write_lines(root / "SegmentationClassAug" / f"{image_id}.png", "")


def test_a_file_wins_over_a_name(devkit_root: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.txt", "z", "", "  y  ")
    found = resolve_list(str(path), devkit_root)
    assert (found.name, found.ids, found.source) == ("train", ("z", "y"), str(path))


@pytest.mark.parametrize("name", ["train", "train.txt", "voc12/train.txt"])
def test_names_are_looked_up_in_the_devkit(
    devkit_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = resolve_list(name, devkit_root, tmp_path / "cache")
    assert (found.name, found.ids) == ("train", ("a", "b"))
    assert found.source == str(devkit_root / "ImageSets/Segmentation/train.txt")
    assert (tmp_path / "cache/train.txt").read_text() == "a\nb\n"


def test_list_names_may_have_dots(devkit_root: Path) -> None:
    write_lines(devkit_root / "ImageSets/Segmentation/split.v2.txt", "d")
    assert resolve_list("split.v2", devkit_root).name == "split.v2"
    assert resolve_list("split.v2.txt", devkit_root).ids == ("d",)


def test_falling_back_from_a_path_to_its_name_is_said(devkit_root: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"typo/train\.txt does not exist; using .*VOC2012"):
        resolve_list(tmp_path / "typo/train.txt", devkit_root)


@pytest.mark.parametrize(
    ("line", "image_id"),
    [
        ("2007_000032", "2007_000032"),
        ("7", "7"),
        ("0012", "0012"),
        ("Über den Wolken.v2", "Über den Wolken.v2"),
        ("trip/day 1/IMG-3", "trip/day 1/IMG-3"),
        ("/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png", "2007_000032"),
        ("JPEGImages/a.b c.JPEG", "a.b c"),
        ("/JPEGImages/x.png", "x"),
    ],
)
def test_ids_are_strings_of_any_form(tmp_path: Path, line: str, image_id: str) -> None:
    assert read_ids(write_lines(tmp_path / "list.txt", line)) == (image_id,)


def test_byte_order_mark_and_windows_line_ends_are_no_part_of_ids(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa\r\n\r\nb\r\n")
    assert read_ids(tmp_path / "list.txt") == ("a", "b")


def test_duplicates_are_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "list.txt", "a", "b", "a", "/JPEGImages/b.jpg /x/b.png", "c")
    with pytest.raises(UserError, match=r"list\.txt names 'a', 'b' more than once"):
        read_ids(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n  \n", "is empty"),
        (b"\xff\xfe\x00a", "cannot be read as text"),
        (b"../../etc/x\n", "lead out of the folder"),
        (b"/etc/x\n", "lead out of the folder"),
        (b"a\n" + 251 * b"x", "has a line that is no file name: 'xxxxx.*at most 250 bytes"),
        ("ü".encode() * 126, "has a line that is no file name: 'üüü"),
        (b"a\0b", "has a line that is no file name: "),
    ],
)
def test_useless_files_are_errors(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"list\.txt .*{message}"):
        read_ids(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "id,name\na,cat"),
        ("labels.CSV", "a;cat"),
        ("labels.tsv", "a\tcat"),
        ("labels.json", '{"a": ["cat"]}'),
        ("labels.json", '["a"]'),
    ],
)
def test_tables_are_no_lists(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name} is a table; write a text file .*--cls_labels"):
        read_ids(tmp_path / name)


def test_ids_may_be_long_and_have_commas(tmp_path: Path) -> None:
    ids = ("Paris, France", "x" * 250, f"{200 * 'a'}/{200 * 'b'}")
    assert read_ids(write_lines(tmp_path / "list.txt", *ids)) == ids
    assert read_ids(write_lines(tmp_path / "list.csv", "a", "b")) == ("a", "b")


def test_masks_whose_names_are_not_utf8_are_named(devkit_root: Path) -> None:
    add_masks(devkit_root, "a", "b")
    with open(os.fsencode(devkit_root) + b"/SegmentationClassAug/caf\xe9.png", "w"):  # noqa: PTH123
        pass
    with pytest.raises(UserError, match=r"not UTF-8: 'caf\\udce9'; rename these files"):
        resolve_list("train_aug", devkit_root)


def test_train_aug_of_the_devkit_comes_first(devkit_root: Path) -> None:
    write_lines(devkit_root / "ImageSets/Segmentation/train_aug.txt", "q")
    add_masks(devkit_root, "a", "b")
    assert resolve_list("train_aug", devkit_root).ids == ("q",)


def test_train_aug_from_masks_is_all_but_val(devkit_root: Path, tmp_path: Path) -> None:
    add_masks(devkit_root, "s.2", "a", "c", "b", ".hidden")
    found = resolve_list("voc12/train_aug.txt", devkit_root, tmp_path / "cache")
    assert found.ids == ("a", "b", "s.2")
    assert "SegmentationClassAug" in found.source
    assert (tmp_path / "cache/train_aug.txt").read_text() == "a\nb\ns.2\n"
    add_masks(devkit_root, "new")
    assert "new" in resolve_list("train_aug", devkit_root, tmp_path / "cache").ids


@pytest.mark.parametrize("folder", ["SBD", "../SBD", "../benchmark_RELEASE/dataset"])
def test_train_aug_from_sbd(devkit_root: Path, folder: str) -> None:
    write_lines(devkit_root / folder / "train.txt", "d", "c", "a")
    write_lines(devkit_root / folder / "val.txt", "e")
    assert resolve_list("train_aug", devkit_root).ids == ("a", "b", "d", "e")


def test_half_an_sbd_does_not_count(devkit_root: Path) -> None:
    write_lines(devkit_root / "SBD/train.txt", "d")
    with pytest.raises(UserError, match="train_aug is neither a file nor"):
        resolve_list("train_aug", devkit_root)


def test_underivable_lists_say_what_to_do(devkit_root: Path) -> None:
    with pytest.raises(UserError, match=r"train_aug.*SegmentationClassAug.*SBD.*one id per line"):
        resolve_list("train_aug", devkit_root)
    with pytest.raises(UserError, match=r"voc12/test\.txt .*test archive.*one id per line"):
        resolve_list("voc12/test.txt", devkit_root)
    with pytest.raises(UserError, match=r"mine\.txt is neither a file nor .*one id per line"):
        resolve_list("mine.txt", devkit_root)


def test_train_aug_needs_val(devkit_root: Path) -> None:
    add_masks(devkit_root, "a")
    (devkit_root / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(UserError, match=r"train_aug cannot be derived without .*val\.txt"):
        resolve_list("train_aug", devkit_root)


def test_train_aug_without_any_id_is_an_error(devkit_root: Path) -> None:
    add_masks(devkit_root, "c")
    with pytest.raises(UserError, match="is empty"):
        resolve_list("train_aug", devkit_root)


def test_hash_is_of_the_sorted_ids_with_final_newline() -> None:
    # printf 'a\nb\n' | sha256sum
    expected = "911169ddaaf146aff539f58c26c489af3b892dff0fe283c1c264c65ae5aa59a2"
    first, second = IdList("x", ("b", "a"), ""), IdList("y", ("a", "b"), "")
    assert first.sha256 == second.sha256 == expected
    assert first.facts() == {"source": "", "sha256": expected, "count": 2}


def test_other_lists_than_the_standard_ones_warn(devkit_root: Path) -> None:
    with pytest.warns(UserWarning, match=r"The list train .* found 2 ids, standard 1464; sha256"):
        resolve_list("train", devkit_root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve_list("train", devkit_root, expect_standard=False)


def test_own_list_names_never_warn(devkit_root: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve_list(write_lines(tmp_path / "mine.txt", "a"), devkit_root)


def test_right_count_with_other_ids_warns_and_the_standard_list_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    standard = IdList("train", ("a", "b"), "file")
    monkeypatch.setitem(lists.STANDARD_LISTS, "train", StandardList(2, standard.sha256))
    assert standard_difference(standard) is None
    difference = standard_difference(IdList("train", ("a", "c"), "file"))
    assert difference is not None and "found 2 ids, standard 2; sha256" in difference


def test_test_list_is_checked_by_count_only() -> None:
    whole = IdList("test", tuple(map(str, range(1456))), "file")
    assert standard_difference(whole) is None
    difference = standard_difference(IdList("test", whole.ids[1:], "file"))
    assert difference is not None and "found 1455 ids, standard 1456." in difference


# --------------------------------------------------------------------------- the shipped lists

SHIPPED = Path(lists.__file__).parent
# sha256sum of the sorted ids, as the field's repositories ship them
SHIPPED_HASHES = {
    "train": (1464, "aa623bd2c8ce4443a8aaae51c524c0eb165e8e44caf6aa9e3ad33d7b75a3ef20"),
    "val": (1449, "cdc1326d12f69ce5153aa5da04a4d8783e146868d42d19f82f44e74b97ac907d"),
    "train_aug": (10582, "d1326bd532648d73bc4b1bd275434eba81930982dc7401a65a8cecb26c028e24"),
}


@pytest.mark.parametrize("name", SHIPPED_HASHES)
def test_shipped_lists_are_those_of_voc_2012(name: str) -> None:
    lines = sorted((SHIPPED / f"{name}.txt").read_bytes().splitlines(keepends=True))
    found = len(lines), hashlib.sha256(b"".join(lines)).hexdigest()
    assert found == SHIPPED_HASHES[name]


def plain_devkit(root: Path, every: int = 1) -> Path:
    """A devkit with an empty file for every `every`-th picture of train_aug, and no lists."""
    (root / "JPEGImages").mkdir(parents=True)
    for image_id in read_ids(SHIPPED / "train_aug.txt")[::every]:
        (root / "JPEGImages" / f"{image_id}.jpg").touch()
    return root


@pytest.mark.parametrize("in_repository", [True, False])
@pytest.mark.parametrize("name", ["train_aug", "voc12/train_aug.txt", "train", "voc12/train.txt"])
def test_shipped_lists_serve_the_plain_devkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, in_repository: bool
) -> None:
    root = plain_devkit(tmp_path / "VOC2012")
    monkeypatch.chdir(SHIPPED.parent if in_repository else tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = resolve_list(name, root)
    stem = Path(name).stem
    assert (len(found), found.sha256) == SHIPPED_HASHES[stem]
    assert found.source == str(SHIPPED / f"{stem}.txt")


def test_a_damaged_devkit_still_gets_the_whole_list(tmp_path: Path) -> None:
    root = plain_devkit(tmp_path / "VOC2012", every=2)
    assert len(resolve_list("voc12/train_aug.txt", root)) == 10582


@pytest.mark.parametrize("name", ["voc12/train.txt", str(SHIPPED / "train.txt")])
def test_other_data_sets_use_their_own_lists_and_say_so(
    devkit_root: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(SHIPPED.parent)
    with pytest.warns(UserWarning, match=r"train\.txt lists PASCAL VOC 2012, whose pictures are"):
        found = resolve_list(name, devkit_root, expect_standard=False)
    assert found.ids == ("a", "b")


def test_masks_of_sbd_give_way_to_the_shipped_list(tmp_path: Path) -> None:
    root = plain_devkit(tmp_path / "VOC2012")
    add_masks(root, "2007_000032", "stray")
    assert (len(resolve_list("train_aug", root)), len(resolve_list("train", root))) == (10582, 1464)
