"""The table of IoU by class, and texts in columns."""

import pytest

from misc.tables import Column, aligned, clock, iou_table

COLUMNS = {
    "seed": Column({"background": 76.25, "cow": None, "dog": 5.0}, 40.625),
    "DeepLab + CRF": Column({"background": 100.0, "dog": None, "cow": None}, None),
}


def test_classes_that_occur_and_the_means() -> None:
    """`cow` occurs nowhere; the columns are as wide as their heading, or as 100.00."""
    assert iou_table(["background", "cow", "dog"], COLUMNS, decimals=2) == "\n".join(
        [
            "class         seed  DeepLab + CRF",
            "background   76.25         100.00",
            "dog           5.00              -",
            "mean         40.62              -",
        ]
    )


def test_decimals_and_short_names() -> None:
    columns = {"mask": Column({"cow": 100.0}, 33.25)}
    assert iou_table(["cow"], columns, decimals=1) == "\n".join(
        ["class   mask", "cow    100.0", "mean    33.2"]
    )


def test_cells_are_aligned_and_lines_end_with_the_text() -> None:
    rows = [["step", "unit", "units", "s"], ["a", "picture", "7", ""], ["bcdef", "", "12", "0.5"]]
    assert aligned(rows, left=2).splitlines() == [
        "step   unit     units    s",
        "a      picture      7",
        "bcdef              12  0.5",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00:00"),
        (59.4, "0:00:59"),
        (59.6, "0:01:00"),
        (3661, "1:01:01"),
        (360000, "100:00:00"),
    ],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
