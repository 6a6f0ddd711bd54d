"""Which epochs' weights are kept, and how each was chosen: no score without that."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from misc.checkpoint import save_checkpoint
from misc.progress import log
from misc.provenance import Record, write_record
from wsol.config import Paths
from wsol.evaluation import in_words
from wsol.model import Networks, published_states

Row = Mapping[str, float]
"""Numbers of one epoch by name."""

_INFLATED = "inflated, as it was chosen on the pictures that it is scored on"


class Choice(NamedTuple):
    """A rule by which an epoch's weights are kept.

    Attributes:
        name: key of results.json.
        score: name of the test score whose first maximum decides; None keeps the last epoch.
        words: the rule, for readers of a score.
    """

    name: str
    score: str | None
    words: str

    def path(self, paths: Paths) -> Path:
        """Where the weights lie."""
        return {None: paths.last, "loc_top1": paths.best_loc, "gt_known": paths.best_gt_known}[
            self.score
        ]

    def epoch(self, history: Sequence[Row]) -> int | None:
        """The chosen epoch, from 1; None when there is none, or no score of this name."""
        if self.score is None:
            return len(history) or None
        values = [row[self.score] for row in history if self.score in row]
        return 1 + values.index(max(values)) if values else None


CHOICES = (
    Choice("last", None, "last epoch"),
    Choice("best_top1_loc", "loc_top1", f"best test epoch by Loc@1 ({_INFLATED})"),
    Choice("best_gt_known", "gt_known", f"best test epoch by GT-known ({_INFLATED})"),
)


def keep_weights(
    networks: Networks,
    history: Sequence[Row],
    paths: Paths,
    record: Record,
    facts: Mapping[str, Any],
) -> None:
    """Write the weights of the newest epoch under the name of every choice that falls on it.

    A record beside each file says which training made it.

    The files have the published layout: `epoch`, `state_dict` and `cnn_state_dict` with `module.`
    in front of the published keys; besides `chosen`, `scores` and `facts`.

    Args:
        networks: as they are after the newest epoch.
        history: of all epochs.
        paths: of the run.
        record: what makes the weights.
        facts: plain values to keep along.
    """
    newest = len(history)
    states = published_states(networks.transformer, networks.cnn)
    for choice in CHOICES:
        if newest and choice.epoch(history) == newest:
            chosen = f"{choice.words}, up to epoch {newest}"
            more = {"chosen": chosen, "scores": dict(history[-1]), "facts": dict(facts)}
            write_record(choice.path(paths), record, facts={"epoch": newest, "chosen": chosen})
            save_checkpoint(choice.path(paths), {"epoch": newest, **states, **more})


def summary(history: Sequence[Row], paths: Paths) -> dict[str, dict[str, Any]]:
    """For each choice its epoch, how that was chosen, its scores, and where its weights lie."""
    return {
        choice.name: {
            "epoch": epoch,
            "chosen": choice.words,
            "scores": dict(history[epoch - 1]),
            "weights": str(choice.path(paths)),
        }
        for choice in CHOICES
        if (epoch := choice.epoch(history)) is not None
    }


def log_summary(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Log one line per choice, labelled by how its epoch was chosen."""
    for result in results.values():
        log(f"{result['chosen']}, epoch {result['epoch']}: {in_words(result['scores'])}")
    if len(results) < len(CHOICES):
        log("The test pictures have no boxes: nothing was localised and no best epoch was chosen.")
