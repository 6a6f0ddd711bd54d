"""How a sweep tells its scores: tables for the log, and the plot."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from misc.curves import Curve, save_curves
from misc.progress import log
from misc.tables import Column, iou_table, show

TUNED = "a setting chosen from these scores is tuned on the true masks that they were scored with"

Row = Mapping[str, Any]
"""Scores in percent at one setting, None where undefined.

`threshold`, for masks `beta` and `exp_times`; `miou` over the classes that occur; `precision` and
`recall`, the means over the foreground classes that have one; `per_class` of all three, each by
class name.
"""
_SCORES = ("miou", "precision", "recall")
_TITLES = ("IoU", "precision", "recall")


def best_of(rows: Sequence[Row]) -> Row | None:
    """The row of the highest mIoU, the first of equal ones; None without any."""
    known = [row for row in rows if row["miou"] is not None]
    return max(known, key=lambda row: row["miou"], default=None)


def log_tables(content: Mapping[str, Any]) -> None:
    """Log the scores of a sweep: all settings, the best ones by class, and how to read them."""
    log(f"seed, % on {content['pictures']} pictures\n{_seed_table(content['seed'])}")
    if content["masks"]:
        heading = (
            f"mIoU of the masks, % on {content['mask_pictures']} pictures, by background score"
        )
        log(f"{heading}\n{_mask_table(content['masks'])}")
    for what, row in content["best"].items():
        if row is not None:
            log(f"best {what}: {describe(row)}\n{_class_table(row)}")
    if content["run"]:
        log(_told_run(content))
    log(f"NOTE: {TUNED}; choose on one list and report another.")


def describe(row: Row) -> str:
    """A setting and its mIoU in words."""
    walk = f"beta {row['beta']:g}, exp_times {row['exp_times']}, " if "beta" in row else ""
    return f"{walk}background score {row['threshold']:g}: mIoU {show(row['miou'])} %"


def draw(path: Path, content: Mapping[str, Any]) -> None:
    """Draw mIoU over the background score: a line per walk, and the seed's."""
    curves = {"seed": _curve(content["seed"], None, 0)}
    grid = content["grid"]
    for (beta, times), rows in _by_walk(content["masks"]):
        place = grid["betas"].index(beta), grid["exp_times"].index(times)
        curves[f"mask, beta {beta:g}, exp_times {times}"] = _curve(rows, *place)
    of = f"list {content['list']}, {content['pictures']} of {content['list_pictures']} pictures"
    if content["masks"] and content["mask_pictures"] != content["pictures"]:
        of += f" (masks: {content['mask_pictures']})"
    title = f"Seed and pseudo masks: {of}\n{TUNED.replace(' that ', chr(10) + 'that ')}"
    save_curves(path, curves, title, "background score", "mIoU (%)")


def _curve(rows: Sequence[Row], colour: int | None, style: int) -> Curve:
    return Curve([row["threshold"] for row in rows], [row["miou"] for row in rows], colour, style)


def _by_walk(rows: Sequence[Row]) -> list[tuple[tuple[float, int], list[Row]]]:
    grouped = groupby(rows, key=lambda row: (row["beta"], row["exp_times"]))
    return [(walk, list(group)) for walk, group in grouped]


def _seed_table(rows: Sequence[Row]) -> str:
    lines = [f"{'score':>7}{'mIoU':>10}{'precision':>11}{'recall':>8}"]
    for row in rows:
        miou, precision, recall = (show(row[name]) for name in _SCORES)
        lines.append(f"{row['threshold']:7.3g}{miou:>10}{precision:>11}{recall:>8}")
    return "\n".join(lines)


def _mask_table(rows: Sequence[Row]) -> str:
    """A line per walk: mIoU at every background score, and more about its best one."""
    walks = _by_walk(rows)
    thresholds = "".join(f"{row['threshold']:>7.3g}" for row in walks[0][1])
    lines = [f"{'beta':>6}{'exp_times':>10} {thresholds} | best at  precision  recall"]
    for (beta, times), group in walks:
        mious = "".join(f"{show(row['miou']):>7}" for row in group)
        line = f"{beta:6g}{times:10d} {mious} |"
        if best := best_of(group):
            shares = f"{show(best['precision']):>11}{show(best['recall']):>8}"
            line += f"{best['threshold']:8.3g}{shares}"
        lines.append(line)
    return "\n".join(lines)


def _class_table(row: Row) -> str:
    """IoU, precision and recall by class; the mean of the last two is that of the foreground."""
    parts = zip(_TITLES, row["per_class"].values(), _SCORES, strict=True)
    columns = {title: Column(values, row[score]) for title, values, score in parts}
    return iou_table(list(row["per_class"]["iou"]), columns, decimals=2)


def _told_run(content: Mapping[str, Any]) -> str:
    run, grid = content["run"], content["grid"]
    made = ", ".join(f"{name} {value:g}" for name, value in run.items())
    rows = [
        row
        for row in content["masks"]
        if (row["beta"], row["exp_times"]) == (run["beta"], run["exp_times"])
        and row["threshold"] == run["sem_seg_bg_thres"]
        and grid["walk_radius"] == run["walk_radius"]
    ]
    scored = f"mIoU {show(rows[0]['miou'])} %" if rows else "not in this grid"
    return f"the run's own masks were made with {made}; here, along edge maps of 8 bits: {scored}"
