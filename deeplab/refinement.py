"""The dense CRF on the class probabilities of whole pictures, spread over processes.

Reads the pictures of a split and the logits that `test` left; writes palette PNGs, scores_crf.json
and, where the split has no ground truth, the archive for the VOC evaluation server. What the
worker processes call stands first and imports no torch.
"""

import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from deeplab import logits as logits_files
from deeplab.config import Config, Crf, Mean, Paths, Split
from misc.files import up_to_date
from misc.maps_io import read_image, write_label
from misc.parallel import map_pictures
from net.crf import CrfParameters, DenseCrf, require_densecrf

PREDICTION_SUFFIX = ".png"


class Task(NamedTuple):
    """One picture to refine: its file, its logits, and the label map to write."""

    image: Path
    logits: Path
    output: Path


def upsample(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (C, h', w') float32 bilinearly to `size` (h, w).

    The same numbers as `torch.nn.functional.interpolate(align_corners=False)`.
    """
    return np.stack([cv2.resize(one, size[::-1], interpolation=cv2.INTER_LINEAR) for one in logits])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the first axis."""
    weights = np.exp(logits - logits.max(axis=0))
    return weights / weights.sum(axis=0)


def crf_picture(image: np.ndarray, kind: str, mean: Mean) -> np.ndarray:
    """The picture as the CRF sees it: (h, w, 3) uint8.

    Args:
        image: (h, w, 3) uint8 RGB.
        kind: `rgb`, or `official` for what the published code passes: the network's input, BGR
            minus the mean, cast to uint8. Values below 0 wrap around there.
        mean: of the channels.
    """
    if kind == "rgb":
        return image
    centred = image[..., ::-1].astype(np.float32) - np.asarray(mean.bgr, np.float32)
    return centred.astype(np.int64).astype(np.uint8)  # by way of integers: wraps on every machine


def refine_probabilities(
    probabilities: np.ndarray, image: np.ndarray, settings: Crf, mean: Mean
) -> np.ndarray:
    """Label map after the CRF.

    Args:
        probabilities: (C, h, w) float.
        image: (h, w, 3) uint8 RGB.
        settings: of the CRF.
        mean: see `crf_picture`.

    Returns:
        (h, w) uint8.

    Raises:
        UserError: pydensecrf is missing.
    """
    parameters = CrfParameters(
        gaussian_sxy=settings.POS_XY_STD,
        gaussian_compat=settings.POS_W,
        bilateral_sxy=settings.BI_XY_STD,
        bilateral_srgb=settings.BI_RGB_STD,
        bilateral_compat=settings.BI_W,
        iterations=settings.ITER_MAX,
    )
    crf = DenseCrf(crf_picture(image, settings.IMAGE, mean), len(probabilities), parameters)
    return crf.refine_probabilities(probabilities).argmax(axis=0).astype(np.uint8)


def refine_logits(logits: np.ndarray, image: np.ndarray, config: Config) -> np.ndarray:
    """(C, h', w') float32 logits and the (h, w, 3) uint8 RGB picture -> (h, w) uint8 labels."""
    probabilities = softmax(upsample(logits, image.shape[:2]))
    return refine_probabilities(probabilities, image, config.CRF, config.IMAGE.MEAN)


def refine_picture(config: Config, task: Task) -> None:
    """Refine one picture; runs in a worker process."""
    cv2.setNumThreads(1)  # the processes share the cores
    logits = logits_files.load_logits(task.logits, config.DATASET.N_CLASSES)
    write_label(task.output, refine_logits(logits, read_image(task.image), config))


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
        n_jobs: number of processes; None takes CRF.N_JOBS, and without that one per CPU core.
        overwrite: make outputs again that are there.

    Returns:
        See `deeplab.inference.run`.

    Raises:
        UserError: the logits are missing, of another model or of other pictures, or pydensecrf is
            not installed.
    """
    from deeplab import inference, lineage
    from deeplab.preflight import check_evaluation
    from misc.progress import log
    from voc12.lists import describe

    require_densecrf()
    paths = Paths(config)
    logits_dir, output_dir = paths.logits_dir(split), paths.prediction_dir(split, crf=True)
    logits_record, model = lineage.recorded_logits(config, split, model_path)
    pictures, ground_truth = check_evaluation(config, split)
    images = lineage.image_paths(config, pictures.ids)
    _require_logits(config, split, images, readable=overwrite)
    record = lineage.refinement(config, logits_record)
    if overwrite:
        inference.require_own_outputs(output_dir, record, PREDICTION_SUFFIX, pictures)
    inference.prepare_folder(output_dir, record, PREDICTION_SUFFIX, pictures, overwrite)
    tasks = _tasks_left(images, logits_dir, output_dir)
    lineage.update_record(output_dir, record, pictures, {"model": model}, making=bool(tasks))
    if tasks:  # scores of what is about to change
        paths.scores_path(split, crf=True).unlink(missing_ok=True)
    workers = next(n for n in (n_jobs, config.CRF.N_JOBS, os.cpu_count(), 1) if n is not None)
    where = f"in {workers} processes" if workers else "in this process"
    log(f"crf: {len(tasks)} pictures of {describe(pictures)} to do {where}")
    seconds = _refine_all(config, tasks, workers)
    timing = {"seconds_per_picture": seconds, "processes": workers}
    facts = {"model": model, **lineage.training_facts(Path(model["path"])), **timing}
    return inference.publish(config, split, pictures, ground_truth, facts, crf=True)


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
    from deeplab import lineage
    from misc.outputs import require_outputs

    folder, redo = Paths(config).logits_dir(split), f"`test --split {split}`"
    require_outputs(folder, logits_files.SUFFIX, tuple(images), redo)
    lineage.require_same_pictures(folder, images, redo)
    for name in images if readable else ():
        path = folder / f"{name}{logits_files.SUFFIX}"
        logits_files.load_logits(path, config.DATASET.N_CLASSES)


def _tasks_left(images: Mapping[str, Path], logits_dir: Path, output_dir: Path) -> list[Task]:
    """The pictures whose label map is missing or older than their logits."""
    suffix = logits_files.SUFFIX
    tasks = [
        Task(image, logits_dir / f"{name}{suffix}", output_dir / f"{name}{PREDICTION_SUFFIX}")
        for name, image in images.items()
    ]
    return [task for task in tasks if not up_to_date(task.output, task.logits)]


def _refine_all(config: Config, tasks: list[Task], workers: int) -> float | None:
    """Refine pictures; returns seconds per picture over all processes, None without pictures."""
    from misc.progress import log

    start = time.perf_counter()
    map_pictures(partial(refine_picture, config), tasks, workers, "crf")
    if not tasks:
        return None
    seconds = (time.perf_counter() - start) / len(tasks)
    log(f"crf: {len(tasks)} pictures, {seconds:.3f} s each")
    return round(seconds, 4)
