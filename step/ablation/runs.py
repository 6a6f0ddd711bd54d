"""The runs behind the rows: their commands, what they share, and whether they are finished.

A run makes only what no earlier run of the same seed makes from the same options: weights, CAMs, IR
labels and masks of others are read where they lie, and their records prove that they fit.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misc.config import plain
from misc.threads import one_thread_each
from step.ablation.rows import Row, changes_of
from step.command_line import parse_args
from step.options import Options
from step.plan import STEPS, is_made_as_now
from step.report import identity, read_metrics
from step.run import prepare_data
from step.scoring import SCORING_STEPS

FOLDER = Path("sess/ablation")
LOG_NAME = "output.log"
SEED_STEP, MASK_STEP = "eval_cam", "eval_sem_seg"
_PROGRAM = Path(__file__).resolve().parents[2] / "run_sample.py"
_WITHOUT_WALK = ("train_cam", "make_cam", SEED_STEP)
_STEPS = (*_WITHOUT_WALK, "cam_to_ir_label", "train_irn", "make_sem_seg_labels", MASK_STEP)
# Nothing to look at, and no instances: only scores are wanted.
_QUIET = ("--figure_num", "0", "--report_num", "0", "--no-overlays")


@dataclass(frozen=True)
class RowRun:
    """One row with one seed.

    Attributes:
        row: what differs from CRT.
        seed: of every random choice.
        options: all of them; outputs of other runs are among the paths.
        words: behind `run_sample.py`.
        steps: that are run.
        owners: name of the run that makes the outputs of a step, by step; itself or an earlier one.
    """

    row: Row
    seed: int
    options: Options
    words: tuple[str, ...]
    steps: tuple[str, ...]
    owners: Mapping[str, str]

    @property
    def name(self) -> str:
        """Row and seed."""
        return name_of(self.row, self.seed)

    @property
    def needs(self) -> frozenset[str]:
        """Names of the runs that have to be finished first."""
        return frozenset(self.owners.values()) - {self.name}

    @property
    def command(self) -> list[str]:
        """As it is started."""
        return [sys.executable, str(_PROGRAM), *self.words]

    @property
    def log_path(self) -> Path:
        """What it says."""
        return self.options.work_dir / LOG_NAME


def name_of(row: Row, seed: int) -> str:
    """Of a run: row and seed."""
    return f"{row.name}/seed{seed}"


def plan_runs(
    base: Sequence[str], work_dir: Path, rows: Sequence[Row], seeds: Sequence[int]
) -> dict[str, RowRun]:
    """The runs of all rows, seed by seed, each behind those that it needs.

    Args:
        base: the command line of CRT.
        work_dir: the runs have their folders below.
        rows: in order; of several that share an output the first makes it.
        seeds: one run each.

    Raises:
        UserError: options contradict each other.
    """
    runs: dict[str, RowRun] = {}
    makers: dict[str, str] = {}
    for seed in seeds:
        for row in rows:
            run = _plan_run(base, work_dir, row, seed, runs, makers)
            runs[run.name] = run
    return runs


def _plan_run(
    base: Sequence[str],
    work_dir: Path,
    row: Row,
    seed: int,
    runs: Mapping[str, RowRun],
    makers: dict[str, str],
) -> RowRun:
    """One run; `makers` tells who makes what, and learns what this one makes."""
    name = name_of(row, seed)
    words = [*base, *changes_of(row, parse_args(base)), *_QUIET, "--seed", str(seed)]
    words += ["--work_dir", str(work_dir / FOLDER / name)]
    options, steps, owners, so_far = parse_args(words), [], {}, ""
    for step in _STEPS if row.walks else _WITHOUT_WALK:
        if step in SCORING_STEPS:
            steps.append(step)
            continue
        so_far += f"{step} {_decisive(step, options)}\n"
        owner = owners[step] = makers.setdefault(so_far, name)
        if owner == name:
            steps.append(step)
            continue
        for output in STEPS[step].writes:
            words += [output.option, str(getattr(runs[owner].options, output.name))]
    words += ["--steps", ",".join(steps)]
    return RowRun(row, seed, parse_args(words), tuple(words), tuple(steps), owners)


def _decisive(step: str, options: Options) -> dict[str, Any]:
    """What the outputs of a step follow from, besides those of the steps before it."""
    data = {
        name: getattr(options, name) for name in (*STEPS[step].lists, *STEPS[step].first_weights)
    }
    recorded = {output.name: output.arguments(options) for output in STEPS[step].writes}
    return plain({"data": data, "recorded": recorded})


def with_needs(runs: Mapping[str, RowRun], rows: Sequence[str]) -> list[RowRun]:
    """The runs of some rows and those that they read from, in order."""
    wanted = {name for name, run in runs.items() if run.row.name in rows}
    while more := {need for name in wanted for need in runs[name].needs} - wanted:
        wanted |= more
    return [run for name, run in runs.items() if name in wanted]


def start(run: RowRun) -> subprocess.Popen:
    """Start a run with one thread; what it says is appended to its log."""
    run.log_path.parent.mkdir(parents=True, exist_ok=True)
    with run.log_path.open("ab") as stream, one_thread_each():
        return subprocess.Popen(
            run.command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )


def last_lines(run: RowRun, count: int) -> str:
    """The end of what a run said."""
    text = run.log_path.read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.rstrip().splitlines()[-count:])


def is_finished(run: RowRun) -> bool:
    """Whether the scores of a run are there, and are those of what its options make now."""
    metrics = metrics_of(run)
    if not set(run.steps) <= metrics.get("identities", {}).keys():
        return False
    now = prepare_data(run.options)
    outputs = [output.name for step in run.owners for output in STEPS[step].writes]
    if not all(is_made_as_now(name, now) for name in outputs):
        return False
    return all(metrics["identities"][step] == identity(now, step) for step in run.steps)


def metrics_of(run: RowRun) -> dict[str, Any]:
    """The metrics.json of a run; empty when there is none."""
    return read_metrics(run.options.result_dir / "metrics.json")


def scores_of(run: RowRun, runs: Mapping[str, RowRun]) -> dict[str, dict[str, Any]]:
    """What `step.scoring.report_segmentation` says of seed and mask of a finished run.

    Args:
        run: the run.
        runs: all by name; without a walk the seed is that of the run whose CAMs these are.
    """
    steps = metrics_of(run)["steps"]
    if run.row.walks:
        return {"seed": steps[SEED_STEP], "mask": steps[MASK_STEP]}
    maker = runs[run.owners["make_cam"]]
    return {"seed": metrics_of(maker)["steps"][SEED_STEP], "mask": steps[SEED_STEP]}
