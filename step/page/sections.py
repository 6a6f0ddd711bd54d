"""What metrics.json says about a run, as sections of the report: scores, curves, costs, origin."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from misc.config import flatten
from misc.errors import UserError
from misc.page.document import (
    Chart,
    Column,
    Facts,
    Section,
    Table,
    Tile,
    argument_facts,
    origin_facts,
    split_by_default,
)
from misc.tables import show
from step.command_line import parse_args
from step.options import STEP_NAMES
from step.report import pictures_of
from voc12.labels import VOC_CLASSES

Metrics = Mapping[str, Any]

_SCORES = {"eval_cam": "seed", "eval_sem_seg": "mask"}
_CHARTS = {
    "train_cam": {
        "Classification losses": ("cnn", "val_cnn", "transformer", "val_transformer"),
        "Refinement loss between the branches": ("l1",),
    },
    "train_irn": {
        "IRNet, affinity losses": ("positive", "negative"),
        "IRNet, displacement losses": ("displacement_foreground", "displacement_background"),
    },
}
"""Losses on one scale share a chart; those that a history has beside them get one of their own."""

_GIB = 2**30
_OWN = ("voc12_root", "work_dir")
"""Arguments that have no default."""


def duration(seconds: float) -> str:
    """Seconds in words, such as `1 h 05 min`, `7 min 03 s` or `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def summary(metrics: Metrics, path: Path) -> tuple[list[Tile], list[Section]]:
    """The headline numbers, and all sections but the pictures.

    Args:
        metrics: content of metrics.json; empty where there is none.
        path: of that file, for the message.

    Raises:
        UserError: it is not what the pipeline writes.
    """
    if not metrics:
        nothing = f"There is no {path} of these data: nothing is known about the run."
        return [], [Section("Scores", (), nothing)]
    try:
        origin = [*_costs(metrics), *_origin(metrics)]
        parts = [_scores(metrics), _curves(metrics), Section("Cost and origin", origin)]
        return _tiles(metrics), parts
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not what this program writes ({type(error).__name__}: {error}); move it "
            "away."
        ) from error


def _tiles(metrics: Metrics) -> list[Tile]:
    """The headline numbers."""
    named = {
        "seed mIoU": metrics.get("seed_miou"),
        "mask mIoU": metrics.get("mask_miou"),
        "instance AP at 0.5": metrics.get("instance_ap50"),
    }
    found = [Tile(name, f"{show(v, 1)} %") for name, v in named.items() if v is not None]
    if seconds := metrics.get("seconds"):
        found.append(Tile("all steps", duration(sum(seconds.values()))))
    return found


def _numbers(values: Iterable[Any]) -> list[float | None]:
    """What should be numbers or None."""
    return [None if value is None else float(value) for value in values]


# ---------------------------------------------------------------------------------------- scores


def _scores(metrics: Metrics) -> Section:
    """A table for every set of pictures that was scored."""
    steps = metrics["steps"]
    scored = {_SCORES[step]: steps[step] for step in _SCORES if steps.get(step)}
    names = ["background", *metrics["arguments"]["class_names"]]
    tables = []
    for pictures in dict.fromkeys(map(pictures_of, scored.values())):
        same = {title: one for title, one in scored.items() if pictures_of(one) == pictures}
        tables.append(_score_table(names, same))
    if steps.get("eval_ins_seg"):
        tables.append(_instance_table(names[1:], steps["eval_ins_seg"]))
    return Section("Scores", tables, "" if tables else "Nothing was scored.")


def _score_table(names: list[str], scored: Mapping[str, Metrics]) -> Table:
    """IoU of seed and masks, and how precise and complete the last of them are."""
    used = [name for name in names if any(one["iou"].get(name) is not None for one in _of(scored))]
    columns = [
        Column(f"{title} IoU", _numbers([*map(one["iou"].get, used), one["miou"]]), bars=True)
        for title, one in scored.items()
    ]
    last, one = list(scored.items())[-1]
    for part in ("precision", "recall"):
        if part in one:  # the metrics.json of an older version has none
            values = _numbers([*map(one[part].get, used), one[f"foreground_{part}"]])
            columns.append(Column(f"{last} {part}", values))
    title = f"IoU by class in %, list {one['list']}"
    of = f"{one['pictures']} of {one['list_pictures']} pictures of the list were scored."
    note = f"{of} The mean of precision and recall leaves the background out."
    return Table(title, "class", [*used, "mean"], columns, sums=1, note=note)


def _of(scored: Mapping[str, Metrics]) -> list[Metrics]:
    return list(scored.values())


def _instance_table(names: list[str], one: Metrics) -> Table:
    used = [name for name in names if one["ap"].get(name) is not None]
    values = _numbers([*map(one["ap"].get, used), one["ap50"]])
    title = f"Instances: average precision at IoU 0.5 in %, list {one['list']}"
    column = Column("AP", values, bars=True)
    return Table(title, "class", [*used, "mean"], [column], sums=1)


# ---------------------------------------------------------------------------------------- curves


def _curves(metrics: Metrics) -> Section:
    charts = [
        chart
        for step, groups in _CHARTS.items()
        for chart in _charts(groups, metrics["steps"].get(step, {}).get("epochs") or [])
    ]
    nothing = "No training of this run or of the runs that it goes on from is recorded."
    return Section("Trainings", charts, "" if charts else nothing)


def _charts(groups: Mapping[str, tuple[str, ...]], epochs: list[Metrics]) -> Iterator[Chart]:
    """The charts of a training; `epochs` holds the losses of each by name."""
    names = list(dict.fromkeys(name for epoch in epochs for name in epoch))
    grouped = {name for group in groups.values() for name in group}
    others = {name: (name,) for name in names if name not in grouped}
    for title, group in {**groups, **others}.items():
        known = [name for name in group if name in names]
        series = {n: [float(epoch.get(n, math.nan)) for epoch in epochs] for n in known}
        if series:
            yield Chart(title, "epochs", range(1, len(epochs) + 1), series)


# ----------------------------------------------------------------------------------- cost, origin


def _costs(metrics: Metrics) -> list[Table]:
    """Time and memory of the steps; nothing where none ran."""
    seconds, memory = metrics["seconds"], metrics["peak_memory_bytes"]
    steps = [step for step in STEP_NAMES if step in seconds]
    devices = sorted({device for step in steps for device in memory.get(step, {})})
    total = sum(seconds[step] for step in steps)
    columns = [Column("seconds", [*(seconds[s] for s in steps), total], bars=True, full=total)]
    for device in devices:
        used = [memory.get(step, {}).get(device) for step in steps]
        shown = [None if one is None else one / _GIB for one in used]
        greatest = max((one for one in shown if one is not None), default=None)
        columns.append(Column(f"peak GiB, {device}", [*shown, greatest], decimals=2))
    kept = [step for step in metrics.get("carried_over", []) if step in steps]
    note = f"Of an earlier run whose outputs are used: {', '.join(kept)}." if kept else ""
    names = [*steps, "all steps"]
    return [Table("Time and memory", "step", names, columns, 1, note)] if steps else []


def _origin(metrics: Metrics) -> list[Facts]:
    """Command, code, machine, and the arguments, those that are not the defaults first."""
    unusual, usual = split_arguments(metrics["arguments"])
    return [origin_facts(metrics), argument_facts(unusual, usual)]


def split_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recorded arguments that differ from the defaults of the published run, and the others."""
    words = ["--voc12_root", "ROOT", "--work_dir", str(arguments.get("work_dir", "."))]
    defaults = flatten(parse_args(words))
    defaults |= {"class_names": list(VOC_CLASSES), "num_classes": len(VOC_CLASSES)}
    for name in _OWN:
        defaults.pop(name)
    return split_by_default(arguments, defaults)
