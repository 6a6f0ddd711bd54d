"""Which pictures a scoring step scores, and how it tells the scores.

Scored is the part of `--eval_list` that has both an output and ground truth. Where that part is
empty, or the list is the default and has no picture of the inference list, the latter is scored.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from misc.errors import UserError
from misc.metrics import SegmentationScores, nan_mean
from misc.progress import log
from misc.tables import by_class, percent, show
from step.options import DEFAULT_EVAL_LIST
from step.plan import OUTPUTS, STEPS, Output
from step.run import Run
from voc12.devkit import Devkit
from voc12.lists import IdList, describe


class ScoringStep(NamedTuple):
    """What a step scores.

    Attributes:
        what: an output in words.
        objects: whether SegmentationObject masks are needed beside those of SegmentationClass.
    """

    what: str
    objects: bool = False


SCORING_STEPS = {
    "eval_cam": ScoringStep("CAM"),
    "eval_ins_seg": ScoringStep("instances", objects=True),
    "eval_sem_seg": ScoringStep("pseudo mask"),
}


def scored_output(step: str) -> Output:
    """The output that a step scores."""
    return OUTPUTS[STEPS[step].reads[0].name]


class Scored(NamedTuple):
    """The pictures of a list that can be scored.

    Attributes:
        pictures: the list.
        ids: those of its pictures that have an output and ground truth; at least one.
    """

    pictures: IdList
    ids: tuple[str, ...]

    def describe(self) -> str:
        """Name what was scored, so that no score stands without its split."""
        of_list = f"{len(self.pictures)} pictures of list {self.pictures.name}"
        return f"{len(self.ids)} of {of_list} ({self.pictures.source})"

    def facts(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "list": self.pictures.name,
            "list_sha256": self.pictures.sha256,
            "list_pictures": len(self.pictures),
            "pictures": len(self.ids),
        }


def find_scored(run: Run, step: str, to_be_made: Collection[str] = ()) -> Scored | None:
    """The pictures that a scoring step can score.

    Args:
        run: the run.
        step: a key of `SCORING_STEPS`.
        to_be_made: ids that will have an output when the step runs.

    Returns:
        Pictures of the evaluation list or, where these cannot be scored or belong to another list
        than the outputs, of the inference list; None when nothing can be scored.
    """
    devkit, output, made = run.source.devkit, scored_output(step), set(to_be_made)
    for pictures in _candidates(run):
        ids = tuple(
            i
            for i in pictures.ids
            if (i in made or output.file(run, i).is_file())
            and _has_truth(devkit, i, SCORING_STEPS[step].objects)
        )
        if ids:
            return Scored(pictures, ids)
    return None


def _candidates(run: Run) -> list[IdList]:
    """The lists that may be scored, the wanted one first.

    That is the evaluation list; but the default, `train`, gives way to an inference list that it
    has no picture in common with.
    """
    options, source = run.options, run.source
    wanted = source.id_list(options.eval_list)
    try:
        inferred = source.id_list(options.infer_list)
    except UserError:  # nothing is made for it, or the step that makes it says so
        return [wanted]
    if options.eval_list == DEFAULT_EVAL_LIST and not set(wanted.ids).intersection(inferred.ids):
        return [inferred, wanted]
    return [wanted, inferred]


def scored_pictures(run: Run, step: str, list_option: str | None = None) -> Scored:
    """The pictures that a scoring step scores now; see `find_scored`.

    Args:
        run: the run.
        step: a key of `SCORING_STEPS`.
        list_option: the one option that names both lists, for the message of other commands.

    Raises:
        UserError: there are none.
    """
    scored, wanted = find_scored(run, step), run.source.id_list(run.options.eval_list)
    if scored is None:
        raise UserError(nothing_to_score(run, step, list_option))
    if scored.pictures.ids != wanted.ids:
        log(
            f"{step}: {describe(wanted)} has no picture with {SCORING_STEPS[step].what} and ground "
            f"truth, or none of the inference list; scored is list {scored.pictures.name}."
        )
    return scored


def nothing_to_score(run: Run, step: str, list_option: str | None = None) -> str:
    """Why a scoring step has nothing to do, and what helps; see `scored_pictures`."""
    options = run.options
    lists = {"--eval_list": options.eval_list, "--infer_list": options.infer_list}
    lists = {list_option: options.eval_list} if list_option is not None else lists
    named = " or ".join(f"{option} {name}" for option, name in lists.items())
    output, (what, objects) = scored_output(step), SCORING_STEPS[step]
    truth = (
        "SegmentationClass and SegmentationObject masks" if objects else "a SegmentationClass mask"
    )
    return (
        f"{step} has nothing to score: no picture of {named} has both {what} in "
        f"{output.path(run)} and {truth} in {options.voc12_root}; run {output.step} with "
        "--infer_list LIST for a list that has masks, or name one that has outputs with "
        f"{next(iter(lists))}."
    )


def _has_truth(devkit: Devkit, image_id: str, objects: bool) -> bool:
    if objects and not devkit.object_mask_path(image_id).is_file():
        return False
    return devkit.mask_path(image_id) is not None


def report_segmentation(
    title: str, scores: SegmentationScores, class_names: Sequence[str], scored: Scored
) -> dict[str, Any]:
    """Log a line and return the scores for JSON.

    Returns:
        In percent, None where undefined: `miou`, the mean over the classes that occur; `iou` by
        class name, background first, and likewise `precision` and `recall`; FP and FN (shares of
        the union) of the background and their mean over the foreground classes, as of precision
        and recall; these two also over the pixels of all foreground classes together
        (`foreground_pixel_...`). Beside them what was scored, see `Scored.facts`.
    """
    fp, fn = scores.false_positive, scores.false_negative
    names = ["background", *class_names]
    result = {
        "miou": percent(scores.miou_of_occurring),
        "iou": by_class(names, scores.iou),
        "precision": by_class(names, scores.precision),
        "recall": by_class(names, scores.recall),
        "background_fp": percent(fp[0]),
        "background_fn": percent(fn[0]),
        "foreground_fp": percent(nan_mean(fp[1:])),
        "foreground_fn": percent(nan_mean(fn[1:])),
        "foreground_precision": percent(nan_mean(scores.precision[1:])),
        "foreground_recall": percent(nan_mean(scores.recall[1:])),
        "foreground_pixel_precision": percent(scores.foreground_precision),
        "foreground_pixel_recall": percent(scores.foreground_recall),
        **scored.facts(),
    }
    log(
        f"{title}: mIoU {show(result['miou'])} % on {scored.describe()}; "
        f"background FP {show(result['background_fp'])} FN {show(result['background_fn'])}, "
        f"foreground FP {show(result['foreground_fp'])} FN {show(result['foreground_fn'])}."
    )
    return result
