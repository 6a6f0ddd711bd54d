"""The table of IoU by class."""

from misc.tables import Column, iou_table

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
