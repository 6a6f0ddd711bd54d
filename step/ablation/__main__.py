"""Train the rows of the ablation on the built-in sample, and tell what each choice is worth.

Runs `run_sample.py` once per row and seed in `sess/ablation/ROW/seedN`, several at a time with one
thread each; what is finished is kept. Writes `result/ablation.md`, `.json` and `.png`.
`python -m step.ablation`, or with other data or sizes `python -m step.ablation -- --preset photos
--voc12_root ROOT`.
"""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from misc.arguments import HelpFormatter, number_list, positive_int, value_type
from misc.entry import run_entry
from misc.errors import UserError
from misc.files import atomic_path, expand_user, write_json
from misc.progress import log, progress, set_log_file
from misc.seed import run_facts
from misc.tables import show
from step.ablation import figure
from step.ablation.best import best_seed
from step.ablation.rows import CRT, GROUPS, ROWS, changes_of, filled, row_names
from step.ablation.runs import (
    FOLDER,
    RowRun,
    is_finished,
    last_lines,
    metrics_of,
    plan_runs,
    scores_of,
    start,
    with_needs,
)
from step.ablation.schedule import End, Job, run_jobs
from step.ablation.table import content_of, markdown
from step.command_line import parse_args
from step.options import Options
from step.run import build_sample

TITLE = "ablation"
EXIT_FAILED = 1
_PRESET = ("--preset", "demo")
_SHOWN_LINES = 12  # of a run that failed
_FROM_METRICS = ("commit", "dirty", "versions", "host", "seconds", "peak_memory_bytes")


def ablate(args: argparse.Namespace) -> list[str]:
    """Do the runs that are left and write table, JSON and figure.

    Args:
        args: options of `build_parser`.

    Returns:
        Names of the runs that have no scores, as they or one that they need failed.

    Raises:
        UserError: the options do not fit together, or there is nothing to score with.
    """
    set_log_file(args.work_dir / "result" / f"{TITLE}.log")
    base = _base(args)
    runs = plan_runs(base, args.work_dir, ROWS, args.seeds)
    chosen = with_needs(runs, {CRT.name, *(args.rows or row_names())})
    ends = _run_all(chosen, runs, args.jobs)
    failed = [end.name for end in ends if end.outcome in ("failed", "left out")]
    finished = [run for run in chosen if run.name not in failed]
    _write(args, base, runs, chosen, finished)
    if failed:
        log(f"{len(failed)} of {len(chosen)} runs have no scores: {', '.join(failed)}.")
    return failed


def _base(args: argparse.Namespace) -> tuple[str, ...]:
    """The command line of CRT; the built-in sample is made where no other data is named."""
    base = (*_PRESET, *args.options)
    options = parse_args(base)
    if options.photos is not None:
        raise UserError(
            f"--photos {options.photos} has no masks to score with; name a devkit folder that has "
            "them with --voc12_root."
        )
    if options.voc12_root is None:
        base += ("--voc12_root", str(build_sample(args.work_dir)))
    return base


def _run_all(chosen: Sequence[RowRun], runs: dict[str, RowRun], at_once: int) -> list[End]:
    jobs = [
        Job(run.name, run.needs, partial(is_finished, run), partial(start, run)) for run in chosen
    ]
    log(f"{TITLE}: {len(jobs)} runs of run_sample.py, {at_once} at a time")
    ends = []
    with closing(run_jobs(jobs, at_once)) as ending:
        for end in progress(ending, TITLE, total=len(jobs)):
            log(_told(end, runs))
            ends.append(end)
    return ends


def _told(end: End, runs: dict[str, RowRun]) -> str:
    """The line, or lines where it failed, about a run that has ended."""
    run = runs[end.name]
    if end.outcome == "left out":
        return f"{end.name}: left out, as {' or '.join(sorted(run.needs))} has failed"
    if end.outcome == "failed":
        said = last_lines(run, _SHOWN_LINES).replace("\n", "\n    ")
        return (
            f"{end.name}: failed with exit status {end.status}; the end of {run.log_path}:\n"
            f"    {said}\n  if its folder is of other options, move it away: "
            f"{run.options.work_dir}"
        )
    seed, mask = (show(scores["miou"], 1) for scores in scores_of(run, runs).values())
    took = "kept" if end.outcome == "kept" else f"{end.seconds:.0f} s"
    return f"{end.name}: seed {seed}, mask {mask} ({took})"


def _write(
    args: argparse.Namespace,
    base: Sequence[str],
    runs: dict[str, RowRun],
    chosen: Iterable[RowRun],
    finished: Sequence[RowRun],
) -> None:
    """Write JSON, table and figure, and print the table."""
    known: dict[str, dict[int, Any]] = {run.row.name: {} for run in chosen}
    for run in progress(finished, "best background scores"):
        known[run.row.name][run.seed] = _facts(run, runs)
    target = args.work_dir / "result" / TITLE
    content = content_of(known, parse_args(base), args.seeds)
    told = {"command": shlex.join(sys.argv), "base": shlex.join(base), **run_facts()}
    write_json(target.with_suffix(".json"), {**content, **told})
    text = markdown(content)
    with atomic_path(target.with_suffix(".md")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    log(text)
    first = {run.row.name: run for run in reversed(finished)}  # of a row the one of the first seed
    written = f"{target}.md, .json"
    if figure.draw(target.with_suffix(".png"), first):
        written += " and .png"
    log(f"{written} are written.")


def _facts(run: RowRun, runs: dict[str, RowRun]) -> dict[str, Any]:
    """What JSON holds of a finished run."""
    metrics, scores = metrics_of(run), scores_of(run, runs)
    return {
        "scores": {**scores, "seed": {**scores["seed"], **best_seed(run)}},
        "command": shlex.join(run.command),
        "made_by": dict(run.owners),
        **{name: metrics.get(name) for name in _FROM_METRICS},
    }


def list_rows(options: Sequence[str]) -> None:
    """Print the rows by group, with what they change."""
    crt = parse_args((*_PRESET, *options))
    for group in GROUPS:
        log(f"{group.title}: {group.shows}")
        for title, row in group.members():
            changes = " ".join(changes_of(row, crt)) or "no changes"
            log(f"  {row.name:12} {filled(title, crt)}: {changes}")


def row_list(text: str) -> tuple[str, ...]:
    """Parse `cnn,passes1`."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if name not in row_names():
            raise argparse.ArgumentTypeError(f"{name} is no row; rows: {', '.join(row_names())}")
    return names


def build_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        prog=f"python -m step.{TITLE}",
        description="Train the rows of the ablation, each of which differs from CRT in one thing, "
        "and write table, JSON and figure to result/ablation.*; what is finished is kept.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--work_dir", type=expand_user, default=Path(), help="runs lie in its " + str(FOLDER))
    add(
        "--rows",
        type=row_list,
        help="a,b: only these, beside CRT and those whose outputs they use, are run and are in the "
        "table (default: all)",
    )
    add("--list_rows", action="store_true", help="print the rows and end")
    add(
        "--seeds",
        type=number_list(value_type(Options, "seed")),
        default="0,1,2",
        help="every row is trained with each of them",
    )
    add("--jobs", type=positive_int, default=os.cpu_count() or 1, help="runs at a time")
    add(
        "options",
        nargs="*",
        help="behind --: options of run_sample.py for all rows, such as -- --cam_num_epoches 2",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status, 1 where a row failed."""
    failed: list[str] = []

    def run() -> None:
        args = build_parser().parse_args(argv)
        args.work_dir, args.seeds = args.work_dir.resolve(), tuple(dict.fromkeys(args.seeds))
        if args.list_rows:
            list_rows(args.options)
        else:
            failed.extend(ablate(args))

    return run_entry(f"step.{TITLE}", run) or (EXIT_FAILED if failed else 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the runs as well
    sys.exit(main())
