"""What the CAMs of a run reach at the background score that suits them best.

Maps of different networks and fusions spread differently between 0 and 1, so one background score
for all rows favours those it was chosen for. The best one of each row is chosen on the truth: it
bounds what a choice could give and is no result of the method.
"""

from typing import Any

import numpy as np

from misc.maps_io import load_cam, read_label
from misc.metrics import ThresholdConfusion
from misc.tables import percent
from step.ablation.runs import SEED_STEP, RowRun
from step.eval_cam import count_seed
from step.run import prepare_data
from step.scoring import scored_output, scored_pictures

THRESHOLDS = tuple(np.arange(1, 50) / 50)
"""Background scores that are tried, in 0..1."""


def best_seed(run: RowRun) -> dict[str, Any]:
    """The greatest seed mIoU over `THRESHOLDS`, on the pictures that `eval_cam` scores.

    Returns:
        `best_miou` in percent and `best_threshold`, the least one that gives it.

    Raises:
        UserError: the CAMs or the masks are not there any more, or do not fit each other.
    """
    prepared = prepare_data(run.options)
    devkit, confusion = (
        prepared.source.devkit,
        ThresholdConfusion(prepared.num_classes + 1, THRESHOLDS),
    )
    for name in scored_pictures(prepared, SEED_STEP).ids:
        path = scored_output(SEED_STEP).file(prepared, name)
        count_seed(confusion, load_cam(path), read_label(devkit.mask_path(name)), path)
    scores = [matrix.compute().miou_of_occurring for matrix in confusion.matrices()]
    best = int(np.argmax(scores))
    return {"best_miou": percent(scores[best]), "best_threshold": float(THRESHOLDS[best])}
