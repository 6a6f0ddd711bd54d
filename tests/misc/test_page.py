"""The page as HTML: what is escaped, what is loaded, the order of pictures, axes of curves."""

import base64
import hashlib
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from misc.page.document import (
    Chart,
    Column,
    Facts,
    Gallery,
    Item,
    Layer,
    Measure,
    Page,
    Section,
    Table,
    Tile,
    argument_facts,
    origin_facts,
    render,
    split_by_default,
    write_page,
)
from misc.page.svg_plot import plot, ticks

HOSTILE = "<b>\"&'</script><img src=x onerror=alert(1)>"
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def item(name: str, *measures: float | None, classes: tuple[int, ...] = (0,)) -> Item:
    return Item(name, PIXEL, (3, 4), {"mask": Layer((PIXEL,))}, classes, measures, ("a remark",))


def gallery(*items: Item, rising: bool = False, names: tuple[str, ...] = ("cat", "dog")) -> Gallery:
    measures = [Measure(f"measure {n}", rising) for n in range(len(items[0].measures))]
    return Gallery(items, ("photo", "mask"), "mask", measures, names, hidden={"left": [HOSTILE]})


def page_with(text: str) -> Page:
    """A page that shows a text wherever text can stand."""
    one = gallery(item(text, 0.5), names=(text, text))
    table = Table(text, text, [text], [Column(text, [1.0], bars=True)], note=text)
    chart = Chart(text, text, [1, 2], {text: [1.0, 2.0]})
    facts = Facts(text, [(text, text)], text, [(text, text)])
    return Page(text, text, [Tile(text, text, text)], [Section(text, [table, chart, facts, one])])


class _Tags(HTMLParser):
    """Names and attributes of all elements, and all text outside of style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.values: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.values += [f"{name}={value}" for name, value in attributes]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_names_are_text_wherever_they_stand() -> None:
    plain, hostile = (_Tags(render(page_with(text))) for text in ("a", HOSTILE))
    assert hostile.tags == plain.tags
    assert not [value for value in hostile.values if value.startswith("onerror")]
    assert sum(HOSTILE in text for text in hostile.texts) > 20
    assert f"data-name={HOSTILE}" in hostile.values


def test_nothing_is_loaded_and_only_our_script_runs() -> None:
    html = render(page_with("a"))
    assert not re.search(r"https?://|//[a-z]|url\(|@import", html.replace(PIXEL, ""))
    sources = re.findall(r'(?:src|href)="([^"#][^"]*)"', html)
    assert sources and all(source.startswith("data:") for source in sources)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html and "default-src 'none'" in html


@pytest.mark.parametrize(("rising", "order"), [(False, "bcad"), (True, "acbd")])
def test_pictures_are_sorted_by_the_first_measure_and_unknown_ones_come_last(
    rising: bool, order: str
) -> None:
    shares = {"a": 0.1, "b": 0.9, "c": 0.5, "d": None}
    found = gallery(*(item(name, share) for name, share in shares.items()), rising=rising)
    assert "".join(one.name for one in found.sorted_items()) == order


def test_measures_that_no_picture_has_are_not_offered() -> None:
    found = gallery(item("a", None, 0.2), item("b", None, 0.7))
    assert [(index, measure.title) for index, measure in found.known_measures()] == [
        (1, "measure 1")
    ]
    assert [one.name for one in found.sorted_items()] == ["b", "a"]
    nothing = gallery(item("b", None), item("a", None))
    assert [one.name for one in nothing.sorted_items()] == ["b", "a"]


def test_classes_are_counted_and_those_without_picture_left_out() -> None:
    pictures = item("a", classes=(0, 2)), item("b", classes=(2,)), item("c", classes=())
    found = gallery(*pictures, names=("cat", "dog", "cow"))
    assert found.class_counts() == [(0, "cat", 1), (2, "cow", 2)]
    assert found.colour(0) == "rgb(128 0 0)"  # class 1 of VOC
    assert "without class (1)" in render(Page("", "", (), [Section("", [found])]))


def test_shares_below_ten_percent_have_a_decimal() -> None:
    shares = {
        0.0: "0 %",
        0.0003: "0 %",
        0.004: "0.4 %",
        0.0994: "9.9 %",
        0.0996: "10 %",
        1.0: "100 %",
    }
    html = render(Page("", "", (), [Section("", [gallery(*(item("a", s) for s in shares))])]))
    found = re.findall(r"<dt>measure 0</dt><dd>([^<]*)</dd>", html)
    assert sorted(found) == sorted(shares.values())


def test_cells_have_bars_from_zero_to_full() -> None:
    assert Column("a", [25, None, 100.04]).cells() == [
        ("25.0", 25),
        ("-", 0),
        ("100.0", pytest.approx(100.04)),
    ]
    assert Column("a", [1, 4], full=None, decimals=0).cells() == [("1", 25), ("4", 100)]
    assert Column("a", [0, None], full=None).cells() == [("0.0", 0), ("-", 0)]


@pytest.mark.parametrize(
    ("low", "high", "whole", "expected"),
    [
        (0, 1, False, [0, 0.25, 0.5, 0.75, 1]),
        (0, 0.43, False, [0, 0.2, 0.4, 0.6]),
        (0, 7, False, [0, 2, 4, 6, 8]),
        (1, 2, True, [1, 2]),
        (0, 5e-8, False, [0, 2e-8, 4e-8, 6e-8]),
    ],
)
def test_ticks_are_round(low: float, high: float, whole: bool, expected: list[float]) -> None:
    assert ticks(low, high, 4, whole) == pytest.approx(expected)


def test_curves_rise_from_the_left_to_the_right() -> None:
    drawn = plot([1, 2, 3], {"a": [0, 4, math.nan], "b": [1, 2, 3]})
    left, top, right, bottom = drawn.frame
    first, second = drawn.curves
    assert (
        first.points == f"{left},{bottom} {(left + right) / 2:g},{top}"
    )  # what is no number is left out
    assert second.points.split()[-1] == f"{right},{bottom - 3 / 4 * (bottom - top):g}"
    assert (first.words, second.words) == ("0 to 4", "1 to 3")
    assert [tick.text for tick in drawn.x_ticks] == ["1", "2", "3"]


def test_trainings_of_one_epoch_are_dots() -> None:
    drawn = plot([1], {"a": [0.6], "none": [math.nan]})
    left, top, right, _ = drawn.frame
    assert drawn.curves[0].dots == (((left + right) / 2, top),)  # the axis ends at 0.6
    assert drawn.curves[1].words == "no value"
    assert plot([], {}).curves == ()
    assert "<circle" in render(Page("", "", (), [Section("", [Chart("", "", [1], {"a": [0.5]})])]))


def test_arguments_that_differ_come_first() -> None:
    given = {"a": 1, "b": [1.0, 0.5], "c": None, "new": "x"}
    unusual, usual = split_by_default(given, {"a": 1, "b": [1.0], "c": None, "gone": 2})
    assert (unusual, usual) == ({"b": [1.0, 0.5], "new": "x"}, {"a": 1, "c": None})
    facts = argument_facts(unusual, usual)
    assert facts.rows == [("b", "1, 0.5"), ("new", "x")]
    assert facts.more == [("a", "1"), ("c", "none")]


def test_origin_tells_changes_and_leaves_out_what_is_unknown() -> None:
    content = {"commit": "abc", "dirty": True, "host": {"device": "cpu"}, "versions": {"x": None}}
    facts = origin_facts(content)
    assert facts.rows == [("commit", "abc and uncommitted changes"), ("device", "cpu")]
    assert facts.more == []


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    write_page(tmp_path / "new/page.html", page_with("caf\udce9"))
    assert r"caf\udce9" in (tmp_path / "new/page.html").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
