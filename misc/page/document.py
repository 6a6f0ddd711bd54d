"""One self-contained HTML page about a run: scores, curves, facts and a gallery of pictures.

Knows no data set and no step: it takes plain values, and escapes all of them. Style and script are
part of the file and nothing else is ever loaded, which a content security policy makes sure of.
Importing this module does not import torch: worker processes that should start in a moment use it.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from misc.files import atomic_path
from misc.maps_io import voc_palette
from misc.page.svg_plot import Plot, plot

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_ESCAPED = "backslashreplace"  # of names that are not UTF-8
_HUNDRED = 100


@dataclass(frozen=True)
class Tile:
    """A number at the top of the page, and what it is."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
        title: its heading.
        values: one per row; None where there is nothing to say.
        bars: draw bars beside the numbers, from 0 to `full`.
        full: value of the longest possible bar; None for the greatest of the values.
        decimals: digits after the point.
    """

    title: str
    values: Sequence[float | None]
    bars: bool = False
    full: float | None = _HUNDRED
    decimals: int = 1

    def cells(self) -> list[tuple[str, float]]:
        """Text and length of the bar in percent of each row."""
        known = [value for value in self.values if value is not None]
        full = self.full or max(known, default=0) or 1
        return [
            ("-", 0) if value is None else (f"{value:.{self.decimals}f}", _HUNDRED * value / full)
            for value in self.values
        ]


@dataclass(frozen=True)
class Table:
    """Numbers by name.

    Attributes:
        title: heading.
        head: heading of the names.
        names: one per row.
        columns: of numbers.
        sums: how many rows at the end are means or totals.
        note: what a reader has to know.
    """

    title: str
    head: str
    names: Sequence[str]
    columns: Sequence[Column]
    sums: int = 0
    note: str = ""
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Chart:
    """Curves over the epochs or iterations of a training.

    Attributes:
        title: heading.
        x_title: what the horizontal axis counts.
        xs: positions, rising.
        series: values by name, one per position.
    """

    title: str
    x_title: str
    xs: Sequence[float]
    series: Mapping[str, Sequence[float]]
    kind: ClassVar[str] = "chart"

    def drawn(self) -> Plot:
        """The curves as lines of an SVG."""
        return plot(self.xs, self.series)


@dataclass(frozen=True)
class Facts:
    """Names and values; those of `more` are folded up below `more_title`; `wide` needs room."""

    title: str
    rows: Sequence[tuple[str, str]]
    more_title: str = ""
    more: Sequence[tuple[str, str]] = ()
    wide: bool = False
    kind: ClassVar[str] = "facts"


def origin_facts(content: Mapping[str, Any]) -> Facts:
    """What a result depends on besides its arguments.

    Args:
        content: of `misc.seed.run_facts`, and where known `command` and `seed`.
    """
    commit = content.get("commit")
    run = {
        "command": content.get("command"),
        "commit": f"{commit} and uncommitted changes" if content.get("dirty") else commit,
        "seed": content.get("seed"),
        **content.get("host", {}),
    }
    versions = content.get("versions", {})
    known = ({name: v for name, v in values.items() if v is not None} for values in (run, versions))
    rows, more = map(_texts, known)
    return Facts("What made it", rows, "Versions", more)


def split_by_default(
    values: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values that differ from their defaults or have none, and the others."""
    usual = {n: value for n, value in values.items() if n in defaults and defaults[n] == value}
    return {name: value for name, value in values.items() if name not in usual}, usual


def argument_facts(unusual: Mapping[str, Any], usual: Mapping[str, Any]) -> Facts:
    """Arguments: those that differ from the defaults first, the others folded up."""
    title, more_title = "Arguments that differ", f"{len(usual)} arguments at their defaults"
    return Facts(f"{title} from the defaults", _texts(unusual), more_title, _texts(usual), True)


def _texts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, _text(value)) for name, value in values.items()]


def _text(value: Any) -> str:
    """A plain value for readers: lists with commas, no superfluous zeros."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


@dataclass(frozen=True)
class Layer:
    """Pictures that lie over a photo, as data URIs; `gray` leaves the colours to them."""

    images: tuple[str, ...]
    gray: bool = False


@dataclass(frozen=True)
class Item:
    """A picture of the gallery.

    Attributes:
        name: its id.
        photo: as data URI.
        size: height and width of the photo as it is shown, in pixels.
        layers: by title; one may be absent.
        classes: indices of its classes.
        measures: one per measure of the gallery, as share in 0..1; None where it is not known.
        remarks: a few words each.
    """

    name: str
    photo: str
    size: tuple[int, int]
    layers: Mapping[str, Layer]
    classes: Sequence[int] = ()
    measures: Sequence[float | None] = ()
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Measure:
    """A share by which pictures are sorted.

    Attributes:
        title: what it is.
        rising: whether the pictures with the smallest share come first.
    """

    title: str
    rising: bool = False


@dataclass(frozen=True)
class Gallery:
    """Pictures with layers, sorted and filtered.

    Attributes:
        items: the pictures, in the order of the list they come from.
        layers: titles in the order of the keys 1, 2, ..; the first is the photo alone.
        first: the layer that is shown at first.
        measures: what they can be sorted by; at first by the first one.
        class_names: by index.
        coloured: whether class i has the colour i + 1 of the VOC palette in the layers.
        note: what the measures are.
        hidden: ids that are not shown, by the reason.
    """

    items: Sequence[Item]
    layers: Sequence[str]
    first: str
    measures: Sequence[Measure]
    class_names: Sequence[str]
    coloured: bool = True
    note: str = ""
    hidden: Mapping[str, Sequence[str]] = field(default_factory=dict)
    kind: ClassVar[str] = "gallery"

    def known_measures(self) -> list[tuple[int, Measure]]:
        """The measures that any picture has, with their indices."""
        return [
            (index, measure)
            for index, measure in enumerate(self.measures)
            if any(item.measures[index] is not None for item in self.items)
        ]

    def sorted_items(self) -> list[Item]:
        """The pictures as they stand at first; those without the share last."""
        if not (known := self.known_measures()):
            return list(self.items)
        index, measure = known[0]

        def key(item: Item) -> tuple[bool, float]:
            share = item.measures[index] or 0.0
            return item.measures[index] is None, share if measure.rising else -share

        return sorted(self.items, key=key)

    def class_counts(self) -> list[tuple[int, str, int]]:
        """Index and name of every class that occurs, and how many pictures have it."""
        counts = [sum(index in item.classes for item in self.items) for index in self._indices()]
        named = zip(self._indices(), counts, strict=True)
        return [(index, self.class_names[index], count) for index, count in named if count]

    def _indices(self) -> range:
        return range(len(self.class_names))

    def colour(self, index: int) -> str:
        """CSS colour of a class."""
        red, green, blue = voc_palette()[index + 1]
        return f"rgb({red} {green} {blue})"


Block = Table | Chart | Facts | Gallery


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading; `note` stands where it has no blocks."""

    title: str
    blocks: Sequence[Block]
    note: str = ""


@dataclass(frozen=True)
class Page:
    """Everything that the page shows."""

    title: str
    subtitle: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]


def render(page: Page) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    script, style = (_part(name) for name in ("page.js", "page.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.get_template("page.html")
    return template.render(page=page, script=script, style=style, script_hash=f"sha256-{digest}")


def _part(name: str) -> Markup:
    """A file of our own that becomes part of the page as it is."""
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


def _percent(share: float | None) -> str:
    """A share as percent; below ten with a decimal, as masks below one percent matter."""
    if share is None:
        return "-"
    value = _HUNDRED * share
    return f"{value:.1f}" if 0.05 <= value < 9.95 else f"{value:.0f}"


def write_page(path: Path, page: Page) -> None:
    """Write the page, whole or not at all."""
    text = render(page)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=_ESCAPED)
