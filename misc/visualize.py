"""Pictures of maps, labels and instances, and the grid that shows them side by side."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image, ImageDraw
from scipy import ndimage

from misc.errors import UserError
from misc.files import atomic_path
from misc.maps_io import BACKGROUND_LABEL, IGNORE_LABEL, voc_palette

_CELL_INCHES = 1.9
_GREATEST_CELL_RATIO = 3  # height to width; taller pictures get empty sides
_CAPTION_INCHES = 0.32
_LEGEND_INCHES = 0.25
_LEGEND_LINE_INCHES = 0.21
_LEGEND_ENTRY_INCHES = 1.4
_TITLE_INCHES = 0.3
_MARGIN_INCHES = 0.12
_DPI = 110
_FONT_SIZE = 10
_CHARACTERS_PER_INCH = 12
HEAT_COLOURS = "turbo"  # dark blue is 0, red is 1
HEAT_WEIGHT = 0.55  # of the colours over the photo
_INSTANCE_WEIGHT = 0.6
_INSTANCE_COLOURS = "tab10"
OUTLINE_GRAY = 215  # round classes, some of which are nearly black in the VOC palette
_OUTLINE_SHARE = 1 / 200  # thickness by width of the picture
_FRAME_COLOUR = "0.75"
LABEL_WEIGHT = 0.6  # of the colours over the photo
_BOX_SHARE = 1 / 100  # thickness by width of the picture
_GRID_GAP = 4  # pixels between the cells of a grid
_WHITE = 255

Box = tuple[int, int, int, int] | Sequence[int] | np.ndarray
Colour = tuple[int, int, int]
Item = TypeVar("Item")


def colour_label(label: np.ndarray) -> np.ndarray:
    """Paint a label map in the VOC palette, classes outlined: (h, w) uint8 -> (h, w, 3) uint8."""
    picture = voc_palette()[label]
    _outline_classes(picture, label)
    return picture


def _outline_classes(picture: np.ndarray, label: np.ndarray) -> None:
    """Draw the rim of every class into a picture."""
    for value in np.unique(label):
        if value not in (BACKGROUND_LABEL, IGNORE_LABEL):
            picture[outline(label == value)] = OUTLINE_GRAY


def overlay_label(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Tint the classes of a photo in the colours of the VOC palette and outline them.

    Args:
        image: (h, w, 3) uint8.
        label: (h, w) uint8; where it is background the photo is left alone.

    Returns:
        (h, w, 3) uint8.
    """
    labelled = (label != BACKGROUND_LABEL)[..., None]
    tinted = (1 - LABEL_WEIGHT) * image + LABEL_WEIGHT * voc_palette()[label]
    picture = _to_bytes(np.where(labelled, tinted, image))
    _outline_classes(picture, label)
    return picture


def draw_box(
    image: np.ndarray, box: Box, colour: Colour, thickness: int | None = None
) -> np.ndarray:
    """Draw a rectangle.

    Args:
        image: (h, w, 3) uint8, left as it is.
        box: x1, y1, x2, y2 in pixels, corners included; what lies outside the picture is not seen.
        colour: red, green, blue, 0..255.
        thickness: in pixels, to the inside of the box; None suits the width of the picture.

    Returns:
        (h, w, 3) uint8.
    """
    x1, y1, x2, y2 = (int(value) for value in box)
    corners = [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]
    picture = Image.fromarray(image)
    width = thickness or max(1, round(image.shape[1] * _BOX_SHARE))
    ImageDraw.Draw(picture).rectangle(corners, outline=tuple(colour), width=width)
    return np.array(picture)


def picture_grid(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Put pictures side by side, padded with white to the size of the greatest.

    Args:
        rows: at least one picture, (h, w, 3) uint8 each; rows may differ in length.

    Returns:
        (H, W, 3) uint8.
    """
    pictures = [picture for row in rows for picture in row]
    height = max(picture.shape[0] for picture in pictures)
    width = max(picture.shape[1] for picture in pictures)
    across, down = width + _GRID_GAP, height + _GRID_GAP
    columns = max(len(row) for row in rows)
    grid = np.full(
        (len(rows) * down - _GRID_GAP, columns * across - _GRID_GAP, 3), _WHITE, np.uint8
    )
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            top, left = y * down, x * across
            grid[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return grid


def heat_map(image: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """Lay a class activation map over its photo.

    Args:
        image: (h, w, 3) uint8.
        cam: (K, h, w) in [0, 1]; the strongest class is shown. K may be 0.

    Returns:
        (h, w, 3) uint8; dark blue is 0, red is 1.
    """
    strongest = cam.max(axis=0) if len(cam) else np.zeros(image.shape[:2])
    colours = matplotlib.colormaps[HEAT_COLOURS](np.clip(strongest, 0, 1))[..., :3]
    gray = image.mean(axis=2, keepdims=True)  # a gray photo leaves the colours to the map
    return _to_bytes((1 - HEAT_WEIGHT) * gray + HEAT_WEIGHT * 255 * colours)


def edge_picture(edge: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boundary probabilities as dark lines on white.

    Args:
        edge: (h', w') uint8, 0..255 for probability 0..1, at any resolution.
        size: height and width of the result.

    Returns:
        (h, w, 3) uint8.
    """
    full = Image.fromarray(edge).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.repeat(255 - np.asarray(full)[..., None], 3, axis=2)


def colour_instances(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Tint every instance of a photo in a colour of its own and outline it.

    Args:
        image: (h, w, 3) uint8.
        masks: (n, h, w) bool; where masks overlap the first, the surest, is on top.

    Returns:
        (h, w, 3) uint8.
    """
    colours = np.array(matplotlib.colormaps[_INSTANCE_COLOURS].colors) * 255
    gray = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    picture = gray.copy()
    for index in reversed(range(len(masks))):
        mask, colour = masks[index], colours[index % len(colours)]
        picture[mask] = (1 - _INSTANCE_WEIGHT) * gray[mask] + _INSTANCE_WEIGHT * colour
        picture[outline(mask)] = colour
    return _to_bytes(picture)


def outline(mask: np.ndarray) -> np.ndarray:
    """Rim of a mask (h, w) bool; the frame of the picture is no rim."""
    thickness = max(1, round(mask.shape[1] * _OUTLINE_SHARE))
    return mask & ~ndimage.binary_erosion(mask, iterations=thickness, border_value=1)


def _to_bytes(picture: np.ndarray) -> np.ndarray:
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


@dataclass
class FigureRow:
    """One picture of the figure.

    Attributes:
        caption: line under the pictures.
        cells: (h, w, 3) uint8 pictures by column title; a column may be absent.
        labels: label values that occur, for the legend.
    """

    caption: str
    cells: dict[str, np.ndarray]
    labels: set[int] = field(default_factory=set)


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, evenly spaced from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]


def save_figure(
    path: Path | str, rows: Sequence[FigureRow], columns: Sequence[str], class_names: Sequence[str]
) -> None:
    """Write rows of pictures with column titles, captions and a legend of label colours.

    Args:
        path: target; its suffix chooses the format, without one it is PNG.
        rows: at least one.
        columns: titles in order; one that no row has is left out.
        class_names: foreground names, for the legend.

    Raises:
        UserError: no format has this suffix.
    """
    columns = [title for title in columns if any(title in row.cells for row in rows)]
    heights = [_row_inches(row) for row in rows]
    width = len(columns) * (_CELL_INCHES + _MARGIN_INCHES) + _MARGIN_INCHES
    labels = sorted(set().union(*(row.labels for row in rows)))
    entries_per_line = max(1, int(width / _LEGEND_ENTRY_INCHES))
    lines = -(-len(labels) // entries_per_line)
    height = _TITLE_INCHES + sum(heights) + _LEGEND_INCHES + lines * _LEGEND_LINE_INCHES
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    kind = _figure_format(path, figure)
    top = height - _TITLE_INCHES
    for number, (row, row_height) in enumerate(zip(rows, heights, strict=True)):
        _draw_row(figure, row, columns, top, with_titles=number == 0)
        top -= row_height
    _draw_legend(figure, labels, class_names, entries_per_line)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=kind)


def _figure_format(path: Path | str, figure: Figure) -> str:
    kind, known = Path(path).suffix[1:].lower() or "png", figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise UserError(
            f"{path}: a figure cannot be {kind}; use one of {', '.join(sorted(known))}."
        )
    return kind


def _row_inches(row: FigureRow) -> float:
    return _picture_inches(row) + _CAPTION_INCHES


def _picture_inches(row: FigureRow) -> float:
    ratio = max(cell.shape[0] / cell.shape[1] for cell in row.cells.values())
    return _CELL_INCHES * min(ratio, _GREATEST_CELL_RATIO)


def _draw_row(
    figure: Figure, row: FigureRow, columns: Sequence[str], top: float, with_titles: bool
) -> None:
    """Draw one row whose upper edge lies `top` inches above the bottom of the figure."""
    width, height = figure.get_size_inches()
    cell_height = _picture_inches(row)
    for index, title in enumerate(columns):
        left = _MARGIN_INCHES + index * (_CELL_INCHES + _MARGIN_INCHES)
        box = (left / width, (top - cell_height) / height)
        axes = figure.add_axes((*box, _CELL_INCHES / width, cell_height / height))
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color(_FRAME_COLOUR)
        if title in row.cells:
            rows, across = row.cells[title].shape[:2]
            margin = max(0, rows / _GREATEST_CELL_RATIO - across) / 2
            axes.imshow(row.cells[title], interpolation="lanczos", aspect="auto")
            axes.set_xlim(-0.5 - margin, across - 0.5 + margin)  # pixel centres are whole numbers
        else:
            axes.spines[:].set_visible(False)
        if with_titles:
            axes.set_title(title, fontsize=_FONT_SIZE, pad=4)
    room = int((width - 2 * _MARGIN_INCHES) * _CHARACTERS_PER_INCH)
    figure.text(
        _MARGIN_INCHES / width,
        (top - cell_height - 0.05) / height,
        textwrap.shorten(row.caption, room, placeholder=" ..."),
        fontsize=_FONT_SIZE,
        va="top",
    )


def _draw_legend(
    figure: Figure, labels: Sequence[int], class_names: Sequence[str], entries_per_line: int
) -> None:
    names = {BACKGROUND_LABEL: "background", IGNORE_LABEL: "ignored"}
    names |= {index: name for index, name in enumerate(class_names, start=1)}
    handles = [
        Patch(
            facecolor=voc_palette()[label] / 255,
            edgecolor=_FRAME_COLOUR,
            label=names.get(label, str(label)),
        )
        for label in labels
    ]
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=max(1, min(len(handles), entries_per_line)),
        fontsize=_FONT_SIZE,
        frameon=False,
        handlelength=1.2,
        columnspacing=1.2,
    )
