"""Photos in folders: what is found, which classes and ids it gets, and what is refused."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from photo_files import LONG_SIDE, picture
from PIL import Image

from misc.errors import UserError
from misc.maps_io import read_image
from voc12.devkit import Devkit
from voc12.labels import load_classes, read_cls_labels
from voc12.lists import read_ids
from voc12.photos import files as photo_files
from voc12.photos import folder as photos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes and background, at several depths and in several formats."""
    root = tmp_path / "my photos"
    picture(root / "cat" / "1.jpg", 1)
    picture(root / "cat" / "holidays" / "2024" / "1.webp", 2)
    picture(root / "dog" / "1.png", 3)
    picture(root / "background" / "sky.tif", 4)
    return root


def build(folder: Path, long_side: int = LONG_SIDE) -> Path:
    """Build the data set of a folder beside it; returns its root."""
    target = folder.parent / "set"
    photos.build(folder, target, long_side)
    return target


def labels(root: Path) -> dict[str, tuple[str, ...]]:
    """Class names by id as the steps read them, in the order of the list."""
    table = read_cls_labels(root / "labels.csv")
    return {i: table[i].names for i in read_ids(Devkit(root).list_path("photos"))}


def original(root: Path, image_id: str) -> Path:
    """The file that the picture of an id leads to."""
    return Devkit(root).image_path(image_id).resolve()


# ----------------------------------------------------------------------------- what is found


def test_folders_give_classes_and_ids_at_any_depth(folder: Path) -> None:
    root = build(folder)
    assert load_classes(root / "classes.txt") == ("cat", "dog")
    assert labels(root) == {
        "background_sky": (),
        "cat_1": ("cat",),
        "cat_holidays_2024_1": ("cat",),
        "dog_1": ("dog",),
    }
    assert original(root, "cat_holidays_2024_1") == folder / "cat/holidays/2024/1.webp"
    assert original(root, "background_sky") == folder / "background/sky.tif"


def test_equal_pictures_are_one_with_the_classes_of_all_folders(folder: Path) -> None:
    shutil.copy(folder / "cat" / "1.jpg", folder / "dog" / "other name.jpg")
    shutil.copy(folder / "cat" / "1.jpg", folder / "cat" / "again.jpg")
    found = labels(build(folder))
    assert found["cat_1"] == ("cat", "dog")
    assert len(found) == 4


def test_what_is_no_photo_is_left_out_and_named(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    before = set(labels(build(folder)))
    for name in ("Thumbs.db", ".DS_Store", "film.mp4", "text.pdf", ".hidden.jpg", "phone.HEIC"):
        (folder / "cat" / name).write_bytes(b"no picture")
    picture(folder / ".trash" / "x.jpg", 9)
    picture(folder / "__MACOSX" / "x.jpg", 9)
    (folder / "empty").mkdir()
    (folder / "dog" / "loop").symlink_to(folder / "dog")
    (folder / "dog" / "itself").symlink_to("itself")
    capsys.readouterr()
    assert set(labels(build(folder))) == before
    told = capsys.readouterr().out
    assert "no pictures in 'empty'" in told
    assert "1 .pdf" in told and "1 .heic" in told and "'cat/film.mp4'" in told
    assert "Thumbs" not in told and "DS_Store" not in told


def test_links_to_other_places_are_followed(folder: Path, tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "7.jpg", 7)
    (folder / "horse").symlink_to(tmp_path / "elsewhere")
    assert labels(build(folder))["horse_7"] == ("horse",)


def test_nothing_is_written_into_the_folder(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        build(folder)
        build(folder)
        assert {p: p.stat().st_mtime_ns for p in (folder, *folder.rglob("*"))} == before
    finally:
        for path in before:
            path.chmod(0o755)


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(path, size=(24, 20), exif=exif)


def animated(path: Path) -> None:
    frames = [Image.new("RGB", (24, 20), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


FORMATS: dict[str, Callable[[Path], object]] = {
    "cmyk.jpg": lambda path: Image.new("CMYK", (24, 20), (0, 255, 255, 0)).save(path),
    "deep.png": lambda path: Image.fromarray(np.full((20, 24), 51400, np.uint16)).save(path),
    "deep.tif": lambda path: Image.fromarray(np.full((20, 24), 51400, np.uint16)).save(path),
    "moving.gif": animated,
    "rotated.JPG": rotated,
    "plain.bmp": picture,
    "plain.webp": picture,
    "wrong suffix.png": lambda path: picture(path, format="JPEG"),
    "one pixel.png": lambda path: picture(path, size=(1, 1)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_read_as_they_are_stored(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "f" / "a" / name
    path.parent.mkdir(parents=True)
    FORMATS[name](path)
    picture(tmp_path / "f" / "b" / "x.png", 8)
    root = build(tmp_path / "f")
    image = read_image(Devkit(root).image_path(f"a_{path.stem}"))
    assert image.shape == ((1, 1, 3) if name == "one pixel.png" else (20, 24, 3))
    if name.startswith("deep"):
        assert (image == 51400 // 256).all()
    if name in ("moving.gif", "cmyk.jpg"):  # the first frame; full magenta and yellow
        assert (abs(image.astype(int) - (255, 0, 0)) < 5).all()
    told = "1 photos are stored rotated" in capsys.readouterr().out
    assert told == (name == "rotated.JPG")


# ------------------------------------------------------------------------------------------- ids


def test_ids_stay_when_photos_come_move_and_go(folder: Path) -> None:
    build(folder)
    picture(folder / "cat" / "1.png", 11)
    picture(folder / "CAT_1.webp" / "x.jpg", 12).rename(folder / "ant.jpg")
    (folder / "CAT_1.webp").rmdir()
    (folder / "ant").mkdir()
    shutil.move(folder / "ant.jpg", folder / "ant" / "1.jpg")
    shutil.copy(folder / "dog" / "1.png", folder / "ant" / "same as dog.png")
    shutil.move(folder / "cat" / "holidays" / "2024" / "1.webp", folder / "dog" / "h.webp")
    picture(folder / "cat" / "1.jpg", 13)  # replaced
    (folder / "background" / "sky.tif").unlink()
    root = build(folder)
    assert labels(root) == {
        "ant_1": ("ant",),
        "cat_1": ("cat",),
        "cat_1-2": ("cat",),
        "dog_1": ("ant", "dog"),
        "dog_h": ("dog",),
    }
    assert original(root, "cat_1").name == "1.jpg"
    assert original(root, "cat_1-2").name == "1.png"
    links = {path.name for path in (root / "JPEGImages").iterdir()}
    assert links == {"ant_1.jpg", "cat_1.jpg", "cat_1-2.png", "dog_1.png", "dog_h.webp"}


def test_equal_pictures_that_part_get_ids_of_their_own() -> None:
    before = photos.choose_ids([["cat/1.jpg", "dog/1.jpg"]], {})
    assert before == {"cat/1.jpg": "cat_1"}
    after = photos.choose_ids([["cat/1.jpg"], ["dog/1.jpg"]], before)
    assert after == {"cat/1.jpg": "cat_1", "dog/1.jpg": "dog_1"}


@pytest.mark.parametrize(
    ("paths", "ids"),
    [
        (["a/b_c.jpg", "a_b/c.jpg"], {"a_b_c", "a_b_c-2"}),
        (["a/x.jpg", "A/X.jpg"], {"a_x", "A_X-2"}),
        (["a/x.y.jpg"], {"a_x.y"}),
        (["a/ .jpg"], {"a_"}),
        (["  .jpg"], {"photos"}),
        (["a/q?*:<z>.jpg"], {"a_q____z_"}),
        (["a/line\nend\u2028\udcff.jpg"], {"a_line_end__"}),
        (["\u732b/\u30db\u30c6\u30eb.jpg"], {"\u732b_\u30db\u30c6\u30eb"}),
        (["e\u0301/1.jpg"], {"\u00e9_1"}),
    ],
    ids=lambda one: ascii(sorted(one)),
)
def test_ids_are_distinct_file_names_on_any_disk(paths: list[str], ids: set[str]) -> None:
    assert set(photos.choose_ids([[path] for path in paths], {}).values()) == ids


def test_ids_of_long_paths_fit_a_file_name() -> None:
    word = "\u732b" * 80
    paths = [f"{word}/{'x' * 200}{number}.jpg" for number in range(12)]
    ids = list(photos.choose_ids([[path] for path in paths], {}).values())
    assert len(set(ids)) == 12
    assert max(len(image_id.encode()) for image_id in ids) <= 200


# ------------------------------------------------------------------------------------ labels.csv


def with_labels(tmp_path: Path, text: str, *names: str) -> Path:
    for seed, name in enumerate(names):
        picture(tmp_path / "f" / name, seed)
    (tmp_path / "f" / "labels.csv").write_text(text, encoding="utf-8")
    return tmp_path / "f"


def test_a_labels_file_replaces_the_folder_names(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    text = "id,name\na.jpg,dog;cat\nb,\nin/c,cat\nd.webp,dog\nin/d,cat\nnowhere,horse\n"
    names = ("a.jpg", "b.png", "in/c.jpg", "d.webp", "in/d.jpg", "background/e.jpg")
    root = build(with_labels(tmp_path, text, *names))
    assert load_classes(root / "classes.txt") == ("cat", "dog")
    assert labels(root) == {
        "a": ("cat", "dog"),
        "b": (),
        "background_e": (),
        "d": ("dog",),
        "in_c": ("cat",),
        "in_d": ("cat",),
    }
    assert "1 pictures that are not there: 'nowhere'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a,cat\n", "1 are not in .*labels.csv: 'in/b.jpg'"),
        (
            "a,cat\nb,cat\nx,y,z\n",
            "1 problem:\n.*\n.*line 3: 'x,y,z' is not of the form id,name;name",
        ),
        ("a,cat\na,dog\n", "'a' has labels already"),
        ("a,cat\nb,Cat\n", "'Cat' and 'cat' differ in capitals only"),
        ("a,\nb,\n", "all pictures .* are background"),
    ],
)
def test_wrong_labels_are_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        build(with_labels(tmp_path, text, "a.jpg", "in/b.jpg"))


def test_a_name_of_two_pictures_is_told(tmp_path: Path) -> None:
    folder = with_labels(tmp_path, "1,cat\n", "x/1.jpg", "y/1.png")
    with pytest.raises(UserError, match=r"line 1: '1' may be 'x/1.jpg', 'y/1.png'"):
        build(folder)


# ----------------------------------------------------------------------------------- what is told


def spoilt(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\xff\xd8 no picture")


def same_in_background(folder: Path) -> None:
    shutil.copy(folder / "cat" / "1.jpg", folder / "background" / "x.jpg")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "spoilt": (lambda f: spoilt(f, "cat/a.jpg"), "my photos/cat/a.jpg cannot be read"),
    "no picture left": (
        lambda f: (shutil.rmtree(f), spoilt(f, "cat/a.heic")),
        "no picture that Pillow reads .* 'cat/a.heic'",
    ),
    "broken link": (lambda f: (f / "cat/l.jpg").symlink_to("x"), "l.jpg' is a link to nothing"),
    "loose": (lambda f: picture(f / "x.jpg", 5), "1 lie beside the class folders: 'x.jpg'"),
    "semicolon": (lambda f: picture(f / "a;b" / "x.jpg", 5), "'a;b'; rename it without ';'"),
    "line end": (lambda f: picture(f / "a\nb" / "x.jpg", 5), r"'a\\nb'; rename it"),
    "no text": (lambda f: picture(f / "a\udcff" / "x.jpg", 5), r"'a\\udcff'; rename it"),
    "capitals": (lambda f: picture(f / "Cat" / "x.jpg", 5), "'Cat' and 'cat' differ"),
    "no class": (
        lambda f: [shutil.rmtree(f / name) for name in ("cat", "dog")],
        "all pictures .* are background",
    ),
    "background too": (same_in_background, "'background/x.jpg' .* 'cat/1.jpg' are the same"),
    "devkit": (lambda f: picture(f / "JPEGImages" / "x.jpg", 5), "--voc12_root"),
    "many": (
        lambda f: [picture(f / f"c{n}" / "x.png", n, (2, 2)) for n in range(10, 264)],
        "has 256, and masks have room for 254",
    ),
    "missing": (shutil.rmtree, "does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_gives_a_sentence(folder: Path, case: str) -> None:
    spoil, told = BAD[case]
    spoil(folder)
    with pytest.raises(UserError, match=told):
        build(folder)


def test_all_problems_are_told_at_once(folder: Path) -> None:
    for case in ("spoilt", "broken link", "loose", "semicolon", "capitals", "background too"):
        BAD[case][0](folder)
    with pytest.raises(UserError, match="6 problems") as error:
        build(folder)
    assert "\n".join(str(error.value).splitlines()).count("\n  ") == 6
    # mended, what was read before is not read again, and nothing is left of the failure
    for name in ("cat/a.jpg", "cat/l.jpg", "x.jpg", "background/x.jpg", "a;b/x.jpg", "Cat/x.jpg"):
        (folder / name).unlink()
    assert len(labels(build(folder))) == 4


@pytest.mark.parametrize("names", [("1.jpg", "2.png"), ("1.jpg",)])
def test_pictures_without_any_class_are_told_what_to_do(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for seed, name in enumerate(names):
        picture(tmp_path / "f" / name, seed)
    with pytest.raises(UserError, match=r"f/CLASS, or write .*labels\.csv"):
        build(tmp_path / "f")


def test_lists_instead_of_classes_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "f" / "train" / "cat" / "1.jpg", 1)
    picture(tmp_path / "f" / "val" / "cat" / "1.jpg", 2)
    with pytest.raises(UserError, match="divided into train, val instead of classes"):
        build(tmp_path / "f")


def test_one_class_alone_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    picture(tmp_path / "f" / "cat" / "1.jpg")
    assert labels(build(tmp_path / "f")) == {"cat_1": ("cat",)}
    assert "one class and nothing else" in capsys.readouterr().out


def test_unreadable_files_and_folders_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir, read_bytes = os.scandir, Path.read_bytes

    def refuse(path: Path, wanted: str, act: Callable) -> object:
        if Path(path).name == wanted:
            raise PermissionError(13, "Permission denied", str(path))
        return act(path)

    monkeypatch.setattr(os, "scandir", lambda path: refuse(path, "dog", scandir))
    monkeypatch.setattr(Path, "read_bytes", lambda path: refuse(path, "1.jpg", read_bytes))
    with pytest.raises(UserError, match=r"(?s)unreadable folder.*unreadable picture"):
        build(folder)


def test_a_foreign_folder_is_not_taken_over(folder: Path) -> None:
    mine = picture(folder.parent / "set" / "JPEGImages" / "x.jpg")
    with pytest.raises(UserError, match=r"is not what --photos makes"):
        build(folder)
    assert mine.is_file()


# ------------------------------------------------------------------------- large and many photos


def test_large_photos_are_worked_on_in_smaller_copies(folder: Path) -> None:
    large = picture(folder / "cat" / "large.png", 20, (150, 100))
    target = folder.parent / "set"
    photo = photos.build(folder, target, LONG_SIDE)["cat_large"]
    assert photo.full_size == (100, 150)
    assert read_image(Devkit(target).image_path("cat_large")).shape == (40, 60, 3)
    assert read_image(large).shape == (100, 150, 3)
    bound = photos.build(folder, target, 75)["cat_large"]
    assert read_image(Devkit(target).image_path("cat_large")).shape == (50, 75, 3)
    assert bound.crc != photo.crc
    assert photos.build(folder, target, 150)["cat_large"].full_size is None
    assert original(target, "cat_large") == large
    assert list((target / "smaller").iterdir()) == []


def test_unchanged_photos_are_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(folder / "cat" / "large.png", 20, (150, 100))
    build(folder)
    read: list[str] = []

    def counted(path: Path) -> np.ndarray:
        read.append(path.name)
        return read_image(path)

    monkeypatch.setattr(photo_files, "read_image", counted)
    build(folder)
    assert read == []
    picture(folder / "cat" / "new.jpg", 30)
    picture(folder / "dog" / "1.png", 31)
    root = build(folder)
    assert sorted(read) == ["1.png", "new.jpg"]
    shutil.rmtree(root / "smaller")
    build(folder)
    assert read[2:] == ["large.png"]


def test_a_folder_may_move(folder: Path) -> None:
    before = labels(build(folder))
    moved = folder.rename(folder.with_name("moved"))
    root = build(moved)
    assert labels(root) == before
    assert original(root, "cat_1") == moved / "cat" / "1.jpg"


def test_a_spoilt_index_is_made_again(folder: Path) -> None:
    before = labels(build(folder))
    for text in ("{}", "[]", "no json", '{"version": 1, "files": {"a": [1]}, "ids": {}}'):
        (folder.parent / "set" / "photos.json").write_text(text)
        assert labels(build(folder)) == before
