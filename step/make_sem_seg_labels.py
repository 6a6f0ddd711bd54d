"""Step 8: pseudo masks, by a random walk of the CAMs that stops at IRNet's edges.

Reads pictures of `--infer_list`, `result/cam` and `sess/res50_irn.pth`; writes palette PNGs
`result/sem_seg/ID.png` and the edge maps `result/edge/ID.png` (gray, a quarter of the size).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from misc.files import atomic_path
from misc.maps_io import write_label
from misc.writing import BackgroundWriter
from net.pseudo_labels import propagate_to_label
from step.plan import OUTPUTS
from step.run import Run
from step.walk import infer, write_left

STEP = "make_sem_seg_labels"


def write_edge(path: Path, edge: Tensor) -> None:
    """Write edge probabilities (1, h, w) as a gray PNG."""
    gray = np.round(edge[0].cpu().numpy() * 255).astype(np.uint8)
    with atomic_path(path) as temporary:
        Image.fromarray(gray).save(temporary)


def run(run: Run) -> dict[str, Any]:
    """Write the pseudo masks and edge maps of the inference list."""
    return write_left(STEP, run, write)


def write(run: Run, ids: Sequence[str], writer: BackgroundWriter) -> None:
    """Write the pseudo masks and edge maps of some pictures."""
    options = run.options
    for one in infer(run, ids, STEP):
        label = propagate_to_label(
            one.cam,
            one.edge,
            one.keys,
            one.size,
            options.sem_seg_bg_thres,
            options.beta,
            options.exp_times,
            options.walk_radius,
        )
        writer.submit(one.name, _write, run, one.name, one.edge, label)


def _write(run: Run, name: str, edge: Tensor, label: np.ndarray) -> None:
    write_edge(OUTPUTS["edge_out_dir"].file(run, name), edge)
    write_label(OUTPUTS["sem_seg_out_dir"].file(run, name), label)
