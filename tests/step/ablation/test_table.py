"""Means, spreads and the table, by hand."""

import json
import math
from typing import Any

import pytest

from step.ablation.table import Summary, content_of, markdown, shown, summarise
from step.command_line import parse_args

CRT = parse_args(["--preset", "demo", "--num_passes", "3"])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([60.0, 62.0, 64.0], (62.0, 2.0, 3)),  # squares 4 + 0 + 4 over 2
        ([1.0, 2.0], (1.5, math.sqrt(0.5), 2)),
        ([5.0], (5.0, None, 1)),
        ([None, 5.0, 7.0], (6.0, math.sqrt(2), 2)),
        ([], (None, None, 0)),
        ([None], (None, None, 0)),
    ],
)
def test_mean_and_spread(values: list[float | None], expected: tuple) -> None:
    assert summarise(values) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("summary", "text"),
    [
        (Summary(61.26, 0.84, 3), "61.3 ± 0.8"),
        (Summary(61.26, 0.84, 2), "61.3 ± 0.8 (2 of 3)"),
        (Summary(61.26, None, 1), "61.3 (1 of 3)"),
        (Summary(None, None, 0), "-"),
    ],
)
def test_a_cell_says_how_many_seeds_are_missing(summary: Summary, text: str) -> None:
    assert shown(summary, 3) == text


def test_a_cell_of_one_seed_has_no_spread() -> None:
    assert shown(Summary(61.26, None, 1), 1) == "61.3"


def scores(seed: tuple[float | None, ...], mask: tuple[float | None, ...]) -> dict[str, Any]:
    names = ("miou", "foreground_pixel_precision", "foreground_pixel_recall", "best_miou")
    scored = {"list": "train", "pictures": 5, "list_pictures": 6}
    seed, mask = ({**dict(zip(names, v, strict=False)), **scored} for v in (seed, mask))
    return {"scores": {"seed": seed, "mask": mask}, "command": "x"}


RUNS = {
    "crt": {
        0: scores((50.0, 60.0, 70.0, 55.0), (60.0, 70.0, 80.0)),
        1: scores((52.0, 60.0, 74.0, 56.0), (61.0, 70.0, None)),
    },
    "passes1": {0: scores((40.0, 50.0, 60.0, 44.0), (30.0, None, 0.0))},
    "passes2": {},  # both seeds failed
}
TABLE = """\
## Passes

How often the tokens pass the same blocks of the transformer.

{header}
| --- | --- | --- | --- | --- | --- | --- | --- |
| 1 pass | 40.0{one} | 44.0{one} | 50.0{one} | 60.0{one} | 30.0{one} | - | 0.0{one} |
| 2 passes | - | - | - | - | - | - | - |
| 3 passes (CRT) | 51.0 ± 1.4 | 55.5 ± 0.7 | 60.0 ± 0.0 | 72.0 ± 2.8 | {mask} |
""".format(
    header="|  | seed mIoU | seed best mIoU | seed precision | seed recall "
    "| mask mIoU | mask precision | mask recall |",
    one=" (1 of 2)",
    mask="60.5 ± 0.7 | 70.0 ± 0.0 | 80.0 (1 of 2)",
)


def test_the_table_repeats_crt_and_shows_gaps() -> None:
    content = content_of(RUNS, CRT, [0, 1])
    text = markdown(json.loads(json.dumps(content, allow_nan=False)))
    introduction, _, table = text.partition("\n\n## ")
    assert f"## {table}" == TABLE  # groups without another row than CRT are left out
    assert "on 5 of 6 pictures of list `train`; seeds 0, 1: mean ± standard" in introduction


def test_the_numbers_of_every_seed_are_kept() -> None:
    rows = content_of(RUNS, CRT, [0, 1])["rows"]
    assert rows["crt"]["runs"]["1"] == RUNS["crt"][1]
    assert rows["crt"]["summary"]["seed"]["miou"] == pytest.approx(
        {"mean": 51.0, "deviation": math.sqrt(2), "count": 2}
    )
    assert rows["passes2"]["runs"] == {}


def test_nothing_finished_is_still_a_table() -> None:
    text = markdown(content_of({"crt": {}, "whole": {}}, CRT, [0]))
    assert text.count("| - | - | - | - | - | - |") == 2
    assert "seed 0: no spread" in text
