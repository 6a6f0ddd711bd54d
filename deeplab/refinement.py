"""`crf`: the dense CRF on all pictures of a split, spread over processes.

Reads the pictures of a split and the logits that `test` left; writes palette PNGs, scores_crf.json
and, where the split has no ground truth, the archive for the VOC evaluation server. Under torchrun
every process takes its part of the pictures, and spreads it over processes of its own.
"""

import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from deeplab import lineage, logits, outputs
from deeplab.config import Config, Paths, Split
from deeplab.crf import Task, refine_picture
from deeplab.preflight import check_evaluation
from misc.distributed import (
    join_processes,
    local_world_size,
    on_main,
    require_shared,
    shard,
    together,
    world_size,
)
from misc.files import up_to_date
from misc.outputs import require_outputs
from misc.parallel import map_pictures
from misc.progress import log
from net.crf import require_backend
from voc12.lists import IdList, describe


class _Prepared(NamedTuple):
    """What there is to refine.

    Attributes:
        pictures: list of the split.
        ground_truth: label map of every id; empty when there are none.
        model: `path` and `sha256` of the weights that made the logits.
        tasks: pictures that are left to do.
    """

    pictures: IdList
    ground_truth: dict[str, Path]
    model: dict[str, str]
    tasks: list[Task]


def run(
    config: Config,
    split: Split,
    model_path: Path | None = None,
    n_jobs: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Refine the predictions of a split and score them.

    Args:
        config: configuration.
        split: which pictures.
        model_path: the weights whose logits are meant; None takes the logits that are there, as
            long as the weights that made them have not changed.
        n_jobs: number of processes that each process of torchrun starts; None takes CRF.N_JOBS, and
            without that its part of the CPU cores.
        overwrite: make outputs again that are there.

    Returns:
        See `deeplab.inference.run`.

    Raises:
        UserError: the logits are missing, of another model or of other pictures, or CRF.BACKEND is
            not installed.
    """
    join_processes(torch.device("cpu"))
    require_shared(config.EXP.OUTPUT_DIR, "EXP.OUTPUT_DIR")
    with together():
        require_backend(config.CRF.BACKEND)
    found = on_main(lambda: _prepare(config, split, model_path, overwrite))
    workers = workers_of(config, n_jobs)
    total = workers if world_size() == 1 else max(1, workers) * world_size()
    where = f"in {total} processes" if total else "in this process"
    log(f"crf: {len(found.tasks)} pictures of {describe(found.pictures)} to do {where}")
    start = time.perf_counter()
    with together():
        map_pictures(partial(refine_picture, config), shard(found.tasks), workers, "crf")
    timing = {
        "seconds_per_picture": outputs.seconds_per_picture("crf", len(found.tasks), start),
        "processes": total,
    }
    origin = on_main(lambda: lineage.training_facts(Path(found.model["path"])))
    facts = {"model": found.model, **origin, **timing}
    return outputs.publish(config, split, found.pictures, found.ground_truth, facts, crf=True)


def workers_of(config: Config, n_jobs: int | None) -> int:
    """Number of processes that each process starts; 0 if it works alone."""
    cores = max(1, (os.cpu_count() or 1) // local_world_size())
    return next(n for n in (n_jobs, config.CRF.N_JOBS, cores) if n is not None)


def _prepare(config: Config, split: Split, model_path: Path | None, overwrite: bool) -> _Prepared:
    """Check logits and pictures, prepare the output folder, and find what is left to do."""
    paths = Paths(config)
    logits_dir, output_dir = paths.logits_dir(split), paths.prediction_dir(split, crf=True)
    logits_record, model = lineage.recorded_logits(config, split, model_path)
    pictures, ground_truth = check_evaluation(config, split)
    images = lineage.image_paths(config, pictures.ids)
    _require_logits(config, split, images, readable=overwrite)
    record, suffix = lineage.refinement(config, logits_record), outputs.PREDICTION_SUFFIX
    if overwrite:
        outputs.require_own(output_dir, record, suffix, pictures)
    outputs.prepare_folder(output_dir, record, suffix, pictures, overwrite)
    tasks = _tasks_left(images, logits_dir, output_dir)
    lineage.update_record(output_dir, record, pictures, {"model": model}, making=bool(tasks))
    if tasks:  # scores of what is about to change
        paths.scores_path(split, crf=True).unlink(missing_ok=True)
    return _Prepared(pictures, ground_truth, model, tasks)


def _require_logits(
    config: Config, split: Split, images: Mapping[str, Path], readable: bool
) -> None:
    """Make sure that the logits of pictures are there and their own.

    Args:
        config: configuration.
        split: whose logits.
        images: the picture of every id.
        readable: read them all, so that nothing is removed for some that cannot be refined.
    """
    folder, redo = Paths(config).logits_dir(split), f"`test --split {split}`"
    require_outputs(folder, logits.SUFFIX, images.keys(), redo)
    lineage.require_same_pictures(folder, images, redo)
    for name in images if readable else ():
        logits.load_logits(folder / f"{name}{logits.SUFFIX}", config.DATASET.N_CLASSES)


def _tasks_left(images: Mapping[str, Path], logits_dir: Path, output_dir: Path) -> list[Task]:
    """The pictures whose label map is missing or older than their logits."""
    tasks = [
        Task(
            image,
            logits_dir / f"{name}{logits.SUFFIX}",
            output_dir / f"{name}{outputs.PREDICTION_SUFFIX}",
        )
        for name, image in images.items()
    ]
    return [task for task in tasks if not up_to_date(task.output, task.logits)]
