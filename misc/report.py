"""What a run of the pipeline leaves behind: metrics.json and the closing table."""

import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from misc.distributed import is_main_process, select_device
from misc.files import read_json_object, write_json
from misc.options import STEP_NAMES
from misc.progress import log
from misc.seed import run_facts
from voc12.needs import SCORING_STEPS
from voc12.source import open_source

_NOT_ARGUMENTS = ("data_source",)


class Report:
    """Results by step, written to `result/metrics.json` after every step.

    Steps before the first one of this run, whose outputs are the inputs of this run, and steps
    that find everything done keep their entries of the metrics.json that is there; `carried_over`
    names them.

    Args:
        args: the options of the run.
        steps: names of the steps that will run.
    """

    def __init__(self, args: Namespace, steps: Sequence[str]) -> None:
        self.args = args
        self.path: Path = args.result_dir / "metrics.json"
        self._earlier = STEP_NAMES[: STEP_NAMES.index(steps[0])]
        self._previous = self._read_previous()
        self._start = time.perf_counter()
        self._results: dict[str, dict[str, Any]] = {}
        self._seconds: dict[str, float] = {}
        self._memory: dict[str, dict[str, int]] = {}

    def _read_previous(self) -> dict[str, Any]:
        """The metrics.json that is there, if it is of the same evaluation list and classes."""
        if not self.path.is_file():
            return {}
        previous = read_json_object(self.path)
        same = all(
            previous.get("arguments", {}).get(name) == _plain(getattr(self.args, name))
            for name in ("voc12_root", "eval_list", "class_names")
        )
        return previous if same else {}

    def _carried(self, part: str) -> dict[str, Any]:
        """Entries of earlier steps in a part (`steps`, `seconds`, ..) of the previous file."""
        entries = self._previous.get(part, {})
        return {step: entries[step] for step in self._earlier if step in entries}

    def add(
        self, step: str, result: dict[str, Any], seconds: float, memory: dict[str, int]
    ) -> None:
        """Store what a step returned, its wall time and its peak memory in bytes.

        A step that only kept what was there keeps its earlier entry, too.
        """
        made_nothing = not result or result.get("made") == 0
        if made_nothing and step in self._previous.get("steps", {}):
            self._earlier += (step,)
        else:
            self._results[step] = result
            self._seconds[step] = round(seconds, 3)
            self._memory[step] = memory
        if is_main_process():
            write_json(self.path, self.content())

    def total_seconds(self) -> float:
        """Seconds since the start of the run."""
        return time.perf_counter() - self._start

    def content(self) -> dict[str, Any]:
        """Everything that metrics.json holds; scores in percent, None where not scored."""
        seed, mask = self._scores("eval_cam"), self._scores("eval_sem_seg")
        instances = self._scores("eval_ins_seg")
        arguments = {k: v for k, v in vars(self.args).items() if k not in _NOT_ARGUMENTS}
        return {
            "seed_miou": seed.get("miou"),
            "mask_miou": mask.get("miou"),
            "instance_ap50": instances.get("ap50"),
            "per_class": {
                "seed": seed.get("iou"),
                "mask": mask.get("iou"),
                "instances": instances.get("ap"),
            },
            "steps": {**self._carried("steps"), **self._results},
            "carried_over": sorted(self._carried("steps")),
            "eval_list": self._eval_list(),
            "arguments": {name: _plain(value) for name, value in arguments.items()},
            "seed": self.args.seed,
            "seconds": {**self._carried("seconds"), **self._seconds},
            "total_seconds": round(self.total_seconds(), 3),
            "peak_memory_bytes": {**self._carried("peak_memory_bytes"), **self._memory},
            **run_facts(select_device(self.args.device)),
        }

    def _scores(self, step: str) -> dict[str, Any]:
        return {**self._carried("steps"), **self._results}.get(step, {})

    def _eval_list(self) -> dict[str, Any] | None:
        if not any(self._scores(step) for step in SCORING_STEPS):
            return None  # the list may not even exist
        pictures = open_source(self.args).id_list(self.args.eval_list)
        return {"name": pictures.name, "source": pictures.source, "sha256": pictures.sha256}

    def log_table(self) -> None:
        """Log seed and mask IoU per class, and the means."""
        columns = {
            "seed": self._scores("eval_cam"),
            "mask": self._scores("eval_sem_seg"),
        }
        columns = {name: scores for name, scores in columns.items() if scores}
        if not columns:
            return
        names = ["background", *self.args.class_names]
        width = max(map(len, [*names, "class"]))
        log(f"IoU in % on list {self.args.eval_list}")
        log("  ".join([f"{'class':<{width}}", *(f"{name:>6}" for name in columns)]))
        for name in names:
            values = [scores["iou"].get(name) for scores in columns.values()]
            if any(value is not None for value in values):
                log("  ".join([f"{name:<{width}}", *map(_cell, values)]))
        means = [scores["miou"] for scores in columns.values()]
        log("  ".join([f"{'mean':<{width}}", *map(_cell, means)]))
        instances = self._scores("eval_ins_seg")
        if instances:
            log(f"instance AP at IoU 0.5: {_cell(instances['ap50']).strip()} %")


def _cell(value: float | None) -> str:
    return f"{'-':>6}" if value is None else f"{value:6.1f}"


def _plain(value: Any) -> Any:
    """A value as JSON has it: paths as text, tuples as lists."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
