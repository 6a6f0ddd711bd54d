"""What a run of the pipeline leaves behind: metrics.json and the closing table."""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from misc.config import flatten
from misc.distributed import select_device
from misc.errors import UserError
from misc.files import read_json_object, write_json
from misc.progress import log
from misc.provenance import read_record
from misc.seed import run_facts
from misc.tables import Column, iou_table, show
from step.options import STEP_NAMES
from step.plan import STEPS
from step.run import Run
from step.scoring import SCORING_STEPS, find_scored, scored_output

_PARTS = ("arguments", "steps", "seconds", "peak_memory_bytes", "identities")


class Report:
    """Results by step, written to `result/metrics.json` after every step by the main process.

    Steps before the first one of this run, whose outputs are the inputs of this run, and steps
    that find everything done keep their entries of the metrics.json that is there, as long as they
    are about what is there now: the same weights and folders, and for scores the same list and
    threshold. `carried_over` names them.

    Args:
        run: the run.
        steps: names of the steps that will run.
    """

    def __init__(self, run: Run, steps: Sequence[str]) -> None:
        self.run = run
        self.path: Path = run.options.result_dir / "metrics.json"
        self._earlier = STEP_NAMES[: STEP_NAMES.index(steps[0])]
        self._previous = self._read_previous()
        self._start = time.perf_counter()
        self._results: dict[str, dict[str, Any]] = {}
        self._seconds: dict[str, float] = {}
        self._memory: dict[str, dict[str, int]] = {}
        self._identities: dict[str, dict[str, Any]] = {}

    def _read_previous(self) -> dict[str, Any]:
        """The metrics.json that is there, if it is of the same data and classes."""
        previous, own = read_metrics(self.path), self._arguments()
        same = all(
            previous.get("arguments", {}).get(name) == own[name]
            for name in ("voc12_root", "class_names")
        )
        return previous if same else {}

    def _carried(self, part: str) -> dict[str, Any]:
        """Entries of earlier steps in a part (`steps`, `seconds`, ..) of the previous file."""
        entries, known = self._previous.get(part, {}), self._previous.get("identities", {})
        return {
            step: entries[step]
            for step in self._earlier
            if step in entries and step in known and known[step] == identity(self.run, step)
        }

    def add(
        self, step: str, result: dict[str, Any], seconds: float, memory: dict[str, int]
    ) -> None:
        """Store what a step returned, its wall time and its peak memory in bytes.

        A step that only kept what was there keeps its earlier entry, too.
        """
        self._identities[step] = identity(self.run, step)
        made_nothing = not result or result.get("made") == 0
        if made_nothing and step in self._previous.get("steps", {}):
            self._earlier += (step,)
        else:
            self._results[step] = result
            self._seconds[step] = round(seconds, 3)
            self._memory[step] = memory
        write_json(self.path, self.content())

    def total_seconds(self) -> float:
        """Seconds since the start of the run."""
        return time.perf_counter() - self._start

    def content(self) -> dict[str, Any]:
        """Everything that metrics.json holds; scores in percent, None where not scored."""
        seed, mask = self._scores("eval_cam"), self._scores("eval_sem_seg")
        instances = self._scores("eval_ins_seg")
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
            "identities": {**self._carried("identities"), **self._identities},
            "arguments": self._arguments(),
            "command": shlex.join(sys.argv),
            "seed": self.run.options.seed,
            "seconds": {**self._carried("seconds"), **self._seconds},
            "total_seconds": round(self.total_seconds(), 3),
            "peak_memory_bytes": {**self._carried("peak_memory_bytes"), **self._memory},
            **run_facts(select_device(self.run.options.device)),
        }

    def _arguments(self) -> dict[str, Any]:
        """The options and what the data say, as JSON has it."""
        names = list(self.run.class_names)
        return {**flatten(self.run.options), "class_names": names, "num_classes": len(names)}

    def _scores(self, step: str) -> dict[str, Any]:
        return {**self._carried("steps"), **self._results}.get(step, {})

    def _eval_list(self) -> dict[str, Any] | None:
        if not any(self._scores(step) for step in SCORING_STEPS):
            return None  # the list may not even exist
        pictures = self.run.source.id_list(self.run.options.eval_list)
        return {"name": pictures.name, "source": pictures.source, "sha256": pictures.sha256}

    def log_table(self) -> None:
        """Log seed and mask IoU per class and the means, a table for every set of pictures."""
        columns = {"seed": self._scores("eval_cam"), "mask": self._scores("eval_sem_seg")}
        columns = {name: scores for name, scores in columns.items() if scores}
        for pictures in dict.fromkeys(map(pictures_of, columns.values())):
            same = {n: scores for n, scores in columns.items() if pictures_of(scores) == pictures}
            self._log_table(same)
        instances = self._scores("eval_ins_seg")
        if instances:
            log(f"instance AP at IoU 0.5: {show(instances['ap50'], decimals=1)} %")

    def _log_table(self, columns: dict[str, dict[str, Any]]) -> None:
        first = next(iter(columns.values()))
        of = f"list {first['list']} ({first['pictures']} of {first['list_pictures']} pictures)"
        cells = {name: Column(scores["iou"], scores["miou"]) for name, scores in columns.items()}
        names = ["background", *self.run.class_names]
        log(f"IoU in % on {of}\n{iou_table(names, cells, decimals=1)}")


def identity(run: Run, step: str) -> dict[str, Any]:
    """What the entry of a step in metrics.json is about, so that none is taken for another's."""
    if step not in SCORING_STEPS:
        outputs = STEPS[step].writes
        return {output.option: _fingerprint(output.path(run)) for output in outputs}
    scored = find_scored(run, step)
    return {
        "scored": _fingerprint(scored_output(step).path(run)),
        "threshold": run.options.cam_eval_thres if step == "eval_cam" else None,
        **(scored.facts() if scored else {}),
    }


def read_metrics(path: Path) -> dict[str, Any]:
    """What a run left in metrics.json; empty when there is no such file.

    Raises:
        UserError: the file is something else.
    """
    if not path.is_file():
        return {}
    content = read_json_object(path)
    if not all(isinstance(content.get(part, {}), dict) for part in _PARTS):
        raise UserError(f"{path} is not what this program writes; move it away.")
    return content


def pictures_of(scores: dict[str, Any]) -> tuple[Any, ...]:
    """What a score is about; scores stand side by side only if this is equal."""
    return tuple(scores[name] for name in ("list", "list_sha256", "list_pictures", "pictures"))


def _fingerprint(target: Path) -> str | None:
    record = read_record(target)
    return None if record is None else record.fingerprint
