"""The report page in Chromium: layers, order, classes, phone, dark, names, console."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import BROWSER, DRIVER, MISSING, Browser, opened_browser
from pipeline import TRAIN_IDS, output, write_list

from misc.maps_io import read_image, read_label, save_cam
from step import make_report
from voc12.labels import VOC_CLASSES, load_image_labels

pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason=MISSING)

LAYERS = ("photo", "CAM", "edge", "mask", "truth", "IR label")
DESKTOP, PHONES = 1200, (390, 320)
LEAST_CONTRAST = 4.5  # of text, by the Web Content Accessibility Guidelines, level AA

# What a person sees in the visible cards, in order: id, badge, and the titles of what is on top.
SEEN = """
return [...document.querySelectorAll('.card')].filter((card) => card.offsetParent).map((card) => ({
  name: card.querySelector('h4').textContent,
  badge: card.querySelector('.badge').textContent,
  over: [...card.querySelectorAll('.over')].filter((one) => one.offsetParent).map((one) => one.alt),
}));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as one:
        yield one


@pytest.fixture
def page(browser: Browser, finished: Path) -> Iterator[Browser]:
    """The page of a finished run, which must leave the console silent."""
    browser.open(finished / "result" / "report.html")
    yield browser
    assert browser.console() == []


def seen(browser: Browser) -> list[dict]:
    return browser.run(SEEN)


def names(browser: Browser) -> list[str]:
    return [card["name"] for card in seen(browser)]


def focused(browser: Browser) -> str:
    """Label of the element that has the focus."""
    return browser.run("return document.activeElement.getAttribute('aria-label')")


def test_masks_are_shown_at_first_and_all_pictures_load(page: Browser) -> None:
    cards = seen(page)
    assert sorted(card["name"] for card in cards) == list(TRAIN_IDS)
    assert all(card["over"] == [f"mask of {card['name']}"] for card in cards)
    broken = "return [...document.images].filter((image) => !image.naturalWidth).length"
    assert page.run(broken) == 0
    assert page.run("return document.images.length") == len(TRAIN_IDS) * len(LAYERS)
    assert (
        page.run("return document.querySelector('.status').textContent") == "6 of 6 pictures, mask"
    )


def test_keys_switch_all_pictures(page: Browser) -> None:
    for number, layer in enumerate(LAYERS, start=1):
        page.press(str(number))
        for card in seen(page):
            expected = [] if layer == "photo" else [f"{layer} of {card['name']}"]
            assert (card["badge"], card["over"]) == (layer, expected)
    page.press("9")
    assert {card["badge"] for card in seen(page)} == {"IR label"}


def test_layer_buttons_switch_all_pictures(page: Browser) -> None:
    page.click(".layers label:nth-of-type(2)")
    assert {card["badge"] for card in seen(page)} == {"CAM"}
    gray = "return getComputedStyle(document.querySelector('.photo')).filter"
    assert page.run(gray) == "grayscale(1)"  # the colours are left to the map
    page.press("ArrowRight")  # a radio button is focused
    assert {card["badge"] for card in seen(page)} == {"edge"}
    assert page.run(gray) == "none"


@pytest.mark.parametrize("how", ["click", "tap"])
def test_a_click_or_tap_switches_one_picture(page: Browser, how: str) -> None:
    before = seen(page)
    getattr(page, how)(".card:nth-child(2) .shot")
    after = seen(page)
    assert after[1]["badge"] == "truth"
    assert [a for n, a in enumerate(after) if n != 1] == [b for n, b in enumerate(before) if n != 1]
    for layer in ("IR label", "photo"):
        getattr(page, how)(".card:nth-child(2) .shot")
        assert seen(page)[1]["badge"] == layer


def test_everything_can_be_done_without_a_mouse(page: Browser) -> None:
    page.run("document.querySelector('.filter').focus()")
    page.press("Tab")
    first, second = names(page)[:2]
    assert focused(page) == f"{first}: mask; press for the next layer"
    page.press("Enter")
    assert focused(page) == f"{first}: truth; press for the next layer"
    page.press("ArrowRight")
    assert focused(page).startswith(second)
    page.press("ArrowLeft", "ArrowLeft")  # there is nothing before the first
    assert focused(page).startswith(first)
    style = "return getComputedStyle(document.activeElement).outlineStyle"
    assert page.run(style) == "solid"


def test_sorting_by_size_is_that_of_the_mask_files(page: Browser, finished: Path) -> None:
    size = page.run(
        "return [...document.querySelectorAll('.sort option')]"
        ".find((option) => option.textContent.includes('mask size')).value"
    )
    page.choose(".sort", size)
    share = {i: (read_label(output(finished, "sem_seg", i)) > 0).mean() for i in TRAIN_IDS}
    assert len({round(value, 3) for value in share.values()}) == len(TRAIN_IDS)
    assert names(page) == sorted(TRAIN_IDS, key=share.get)
    page.choose(".sort", "name")
    assert names(page) == list(TRAIN_IDS)


def test_doubt_falls_from_the_first_picture_on(page: Browser) -> None:
    text = "return [...document.querySelectorAll('.measures .main dd')].map((dd) => dd.textContent)"
    doubts = [float(one.removesuffix(" %")) for one in page.run(text)]
    assert doubts == sorted(doubts, reverse=True) and doubts[0] > doubts[-1]


def test_filtering_by_class_shows_the_pictures_with_that_label(page: Browser, sample: Path) -> None:
    labels = load_image_labels(TRAIN_IDS, sample, VOC_CLASSES)
    some = next(c for c in range(20) if 0 < sum(labels[i][c] for i in TRAIN_IDS) < len(TRAIN_IDS))
    expected = [image_id for image_id in TRAIN_IDS if labels[image_id][some]]
    page.choose(".filter", str(some))
    assert sorted(names(page)) == expected
    text = page.run("return document.querySelector('.filter').selectedOptions[0].textContent")
    assert text == f"{VOC_CLASSES[some]} ({len(expected)})"
    status = page.run("return document.querySelector('.status').textContent")
    assert status == f"{len(expected)} of 6 pictures, mask"
    page.choose(".filter", "")
    assert len(names(page)) == len(TRAIN_IDS)


@pytest.mark.parametrize("width", PHONES)
def test_a_phone_shows_one_column_without_scrolling_sideways(
    browser: Browser, finished: Path, width: int
) -> None:
    browser.open(finished / "result" / "report.html", width, 700)
    assert browser.run("return [innerWidth, document.documentElement.scrollWidth]") == [width] * 2
    boxes = browser.run(
        "return [...document.querySelectorAll('.card')].map((card) => card.getBoundingClientRect())"
    )
    assert len({box["left"] for box in boxes}) == 1
    assert all(width - 40 < box["width"] <= width for box in boxes)
    browser.tap(".card:nth-child(3) .shot")
    assert seen(browser)[2]["badge"] == "truth"
    assert browser.console() == []


def colours(browser: Browser) -> dict[str, list[float]]:
    """Red, green, blue of the page, of a card and of all kinds of text on them."""
    return browser.run("""
        const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
        const style = (selector) => getComputedStyle(document.querySelector(selector));
        const of = (selector, name) => rgb(style(selector)[name]);
        const texts = {body: 'body', note: '.note', link: 'nav a', card: '.words h4',
                       tag: '.tags li', measure: '.measures dt', head: 'thead th',
                       summary: 'summary'};
        const found = {page: of('body', 'backgroundColor'), box: of('.card', 'backgroundColor')};
        for (const [key, selector] of Object.entries(texts)) found[key] = of(selector, 'color');
        return found;
    """)


def luminance(rgb: list[float]) -> float:
    """Relative luminance as WCAG defines it."""
    linear = [
        c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_in_light_and_dark(browser: Browser, finished: Path, dark: bool) -> None:
    browser.open(finished / "result" / "report.html", dark=dark)
    found = {name: luminance(rgb[:3]) for name, rgb in colours(browser).items()}
    assert (found["page"] < 0.05) == (found["box"] < 0.05) == dark
    for name, value in found.items():
        for ground in {"page", "box"} - {name}:
            if name not in ("page", "box"):
                bright, deep = sorted((value, found[ground]), reverse=True)
                assert (bright + 0.05) / (deep + 0.05) >= LEAST_CONTRAST, (name, ground)


def test_nothing_moves_and_nothing_is_loaded(page: Browser) -> None:
    moved = page.run("""
        return new Promise((done) => {
          const observer = new PerformanceObserver(() => {});
          observer.observe({type: 'layout-shift', buffered: true});
          requestAnimationFrame(() => setTimeout(() => done(
            observer.takeRecords().reduce((sum, shift) => sum + shift.value, 0)), 100));
        });
    """)
    assert moved == 0
    loaded = page.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []


def test_pictures_and_controls_have_names(page: Browser) -> None:
    unnamed = """
        const nameless = [...document.querySelectorAll('img')].filter((image) => !image.alt);
        for (const one of document.querySelectorAll('button, select, input, [role=region], svg'))
          if (!one.matches('[aria-label], [aria-labelledby]') && !one.labels?.length)
            nameless.push(one);
        for (const one of document.querySelectorAll('[aria-labelledby]'))
          for (const id of one.getAttribute('aria-labelledby').split(' '))
            if (!document.getElementById(id)) nameless.push(one);
        return nameless.map((one) => one.outerHTML);
    """
    assert page.run(unnamed) == []
    ids = "return [...document.querySelectorAll('[id]')].map((one) => one.id)"
    found = page.run(ids)
    assert len(set(found)) == len(found)


def test_hostile_names_are_text(browser: Browser, sample: Path, tmp_path: Path) -> None:
    """A class and an id with everything that HTML and scripts give a meaning."""
    name, image_id = "<b>\"&'</script><script>alert(1)</script>", 'it\'s "a" <i>&amp;<!--'
    photos, result = tmp_path / "data" / "JPEGImages", tmp_path / "result"
    photos.mkdir(parents=True)
    photo = shutil.copy(sample / "JPEGImages" / f"{TRAIN_IDS[0]}.jpg", photos / f"{image_id}.jpg")
    cam = np.ones((1, *read_image(photo).shape[:2]), np.float32)
    save_cam(result / "cam" / f"{image_id}.npz", np.array([0]), cam[:, ::4, ::4], cam)
    classes = write_list(tmp_path / "classes.txt", [name])
    words = ["--voc12_root", photos.parent, "--work_dir", tmp_path, "--classes", classes]
    words += ["--list", write_list(tmp_path / "ids.txt", [image_id])]
    assert make_report.main([str(word) for word in words]) == 0
    browser.open(result / "report.html")
    assert names(browser) == [image_id]
    assert browser.run("return document.querySelector('.tags li').textContent") == name
    browser.choose(".filter", "0")
    browser.press("1")  # also while a menu has the focus
    assert browser.run("return document.querySelector('.filter').value") == "0"
    label = browser.run("return document.querySelector('.shot').getAttribute('aria-label')")
    assert label == f"{image_id}: photo; press for the next layer"
    assert browser.run("return document.querySelectorAll('b, i, script').length") == 1  # ours
    assert browser.console() == []
