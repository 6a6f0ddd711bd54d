"""Lists of ids: files, names, derivation and the standard lists of VOC 2012."""

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
