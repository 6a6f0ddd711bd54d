"""What each branch sees alone, for the figure: the CNN's CAMs, the transformer's class maps.

They are made from the trained weights as `step.make_cam` makes its CAMs, whatever is fused there;
nothing of them is stored.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from misc.distributed import select_device
from misc.errors import UserError
from misc.progress import log
from step.make_cam import fetch, infer
from step.plan import OUTPUTS, is_made_as_now
from step.run import Run

_WEIGHTS = {"cnn": "cam_weights_name", "transformer": "deit_weights_name"}


def known_branches(run: Run) -> dict[str, str]:
    """The branches that the current arguments have trained, each with a hash of what makes its map.

    Weights of other origin may be of other networks, so nothing is shown of them.

    Returns:
        Hashes by branch, `cnn` or `transformer`.
    """
    try:
        known = [branch for branch, name in _WEIGHTS.items() if is_made_as_now(name, run)]
    except UserError as error:  # such as a training list that no step of this run has needed
        log(f"the branches' own maps are not shown: {error}")
        return {}
    cams = OUTPUTS["cam_out_dir"]
    return {branch: cams.record(_alone(run, branch)).fingerprint for branch in known}


def branch_maps(
    run: Run, branch: str, keys: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """Maps of one branch: of the CNN its CAMs, of the transformer its class maps without attention.

    Args:
        run: the run.
        branch: `cnn` or `transformer`.
        keys: (K,) class indices from 0 of every picture, by id.

    Yields:
        Id and maps (K, h, w) float32, each divided by its maximum.

    Raises:
        UserError: the weights are of no use.
    """
    alone, device = _alone(run, branch), select_device(run.options.device)
    title = f"maps of the {branch}"
    for name, _, high_res in infer(alone, list(keys), keys, device, title, use_attention=False):
        yield name, *fetch(alone, name, high_res)


def _alone(run: Run, branch: str) -> Run:
    """The run that uses this branch only; for a few pictures it needs no processes that load."""
    return replace(run, options=replace(run.options, cam_fusion=branch, num_workers=0))
