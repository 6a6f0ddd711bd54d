"""The scores of all runs as JSON, and from that the table that is read.

Precision and recall are those of the foreground, over the pixels of all foreground classes
together: of the pixels that are given any class, and of those that have one, the share that is
given the right class. Low precision is over-activation, low recall under-activation.
"""

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from step.ablation.rows import GROUPS, ROWS, Group, filled
from step.options import Options

_FOREGROUND = {
    "foreground_pixel_precision": "precision",
    "foreground_pixel_recall": "recall",
}
MEASURES = {
    "seed": {"miou": "mIoU", "best_miou": "best mIoU", **_FOREGROUND},
    "mask": {"miou": "mIoU", **_FOREGROUND},
}
"""Names of scores and their titles, by kind."""
_GAP = "-"

Scores = Mapping[str, Mapping[str, Any]]
"""Scores in percent by kind and name, those of `MEASURES` among them."""


class Summary(NamedTuple):
    """What is said of the scores of several seeds.

    Attributes:
        mean: None without any.
        deviation: standard deviation with n - 1 in the denominator; None of fewer than two.
        count: how many there are.
    """

    mean: float | None
    deviation: float | None
    count: int


def summarise(values: Sequence[float | None]) -> Summary:
    """Mean and spread of the scores that are defined."""
    known = [value for value in values if value is not None]
    if not known:
        return Summary(None, None, 0)
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Summary(statistics.fmean(known), deviation, len(known))


def content_of(
    runs: Mapping[str, Mapping[int, Mapping[str, Any]]], crt: Options, seeds: Sequence[int]
) -> dict[str, Any]:
    """What is known, for JSON.

    Args:
        runs: by row and seed what is known of a finished run; `scores` (see `Scores`) are part of
            it. Rows without a run are no part of the table.
        crt: the options that titles stand for.
        seeds: that every row should have.
    """
    return {
        "seeds": list(seeds),
        "groups": [_group(group, runs, crt) for group in GROUPS if _is_shown(group, runs)],
        "rows": {
            row.name: {
                "runs": {str(seed): dict(run) for seed, run in runs[row.name].items()},
                "summary": _summaries([run["scores"] for run in runs[row.name].values()]),
            }
            for row in ROWS
            if row.name in runs
        },
    }


def _is_shown(group: Group, rows: Collection[str]) -> bool:
    """Whether there is anything to compare CRT with."""
    return any(row.name in rows for row in group.rows)


def _group(group: Group, rows: Collection[str], crt: Options) -> dict[str, Any]:
    members = [(title, row) for title, row in group.members() if row.name in rows]
    return {
        "title": group.title,
        "shows": group.shows,
        "rows": [
            {
                "row": row.name,
                "title": filled(title, crt),
                "changes": {name: filled(value, crt) for name, value in row.changes.items()},
            }
            for title, row in members
        ],
    }


def _summaries(scores: Sequence[Scores]) -> dict[str, dict[str, Any]]:
    def of(kind: str, name: str) -> dict[str, Any]:
        return summarise([one[kind][name] for one in scores])._asdict()

    return {kind: {name: of(kind, name) for name in names} for kind, names in MEASURES.items()}


# ---------------------------------------------------------------------------------- as it is read


def markdown(content: Mapping[str, Any]) -> str:
    """The table of `content_of`, with what has to be known to read it."""
    parts = [_introduction(content), *(_group_text(one, content) for one in content["groups"])]
    return "\n\n".join(parts) + "\n"


def _introduction(content: Mapping[str, Any]) -> str:
    seeds = content["seeds"]
    listed = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    spread = "mean ± standard deviation (n - 1)" if len(seeds) > 1 else "no spread"
    return (
        f"# Ablation\n\nIn %{_told_list(content)}; {listed}: {spread}. Every row differs from CRT "
        "in what its title says. The seed is the CAM at its background score, the mask what the "
        "random walk makes of it. Precision and recall: of the pixels that are given any class, "
        "and of those that have one, the share that is given the right class. Background scores "
        "are CRT's in every row and tuned for none, but for best mIoU: there every row has the one "
        "that suits its CAMs best, chosen on the truth. Differences within the spread say nothing."
    )


def _told_list(content: Mapping[str, Any]) -> str:
    runs = [run for row in content["rows"].values() for run in row["runs"].values()]
    if not runs:
        return ""
    seed = runs[0]["scores"]["seed"]
    return f" on {seed['pictures']} of {seed['list_pictures']} pictures of list `{seed['list']}`"


def _group_text(group: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    columns = [f"{kind} {title}" for kind, names in MEASURES.items() for title in names.values()]
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    for row in group["rows"]:
        summary = content["rows"][row["row"]]["summary"]
        cells = [summary[kind][name] for kind, names in MEASURES.items() for name in names]
        lines.append([row["title"], *(shown(Summary(**c), len(content["seeds"])) for c in cells)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {group['title']}\n\n{group['shows']}\n\n{table}"


def shown(summary: Summary, seeds: int) -> str:
    """A cell: `61.3 ± 0.8`, with `(2 of 3)` where seeds are missing, or a dash."""
    if summary.mean is None:
        return _GAP
    spread = "" if summary.deviation is None else f" ± {summary.deviation:.1f}"
    missing = "" if summary.count == seeds else f" ({summary.count} of {seeds})"
    return f"{summary.mean:.1f}{spread}{missing}"
