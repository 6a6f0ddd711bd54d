"""What `test` and `crf` leave of a split: folders of predictions, scores, the archive."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from deeplab import lineage, scoring
from deeplab.config import Config, Paths, Split, class_names
from deeplab.data import training_label_path, validation_label_path
from deeplab.submission import write_submission
from misc.distributed import on_main
from misc.errors import UserError
from misc.files import up_to_date
from misc.outputs import check_removal, prepare_output
from misc.progress import log
from misc.provenance import Record
from voc12.lists import IdList, describe

PREDICTION_SUFFIX = ".png"
TRUTH, MASK = "ground truth", "pseudo mask"
COLUMN = "DeepLab"
COLUMN_CRF = f"{COLUMN} + CRF"
"""Headings of label maps in tables and figures; the last two are the predictions."""

_SECONDS = "seconds_per_picture"


def require_own(folder: Path, record: Record, suffix: str, pictures: IdList) -> None:
    """Stop before files of a list are removed that the step of a record has not made.

    Raises:
        UserError: names one.
    """
    problem = check_removal(folder, record.step, "EXP.ID", suffix, pictures.ids)
    if problem:
        raise UserError(f"{problem}.")


def prepare_folder(
    folder: Path,
    record: Record,
    suffix: str,
    pictures: IdList,
    overwrite: bool,
) -> None:
    """Make a folder ready for outputs of `record`; see `prepare_output`."""
    prepare_output(
        folder,
        record,
        suffix,
        pictures.ids,
        overwrite=overwrite,
        option="EXP.ID",
        lists=lineage.list_facts(pictures),
        redo=lineage.REDO,
    )


def seconds_per_picture(command: str, count: int, start: float) -> float | None:
    """Wall time since `start` by picture, over all processes, in seconds; None without pictures."""
    if not count:
        return None
    seconds = (time.perf_counter() - start) / count
    log(f"{command}: {count} pictures, {seconds:.3f} s each")
    return round(seconds, 4)


def publish(
    config: Config,
    split: Split,
    pictures: IdList,
    ground_truth: Mapping[str, Path],
    facts: Mapping[str, Any],
    crf: bool = False,
) -> dict[str, Any]:
    """Score the predictions of a split and print the table; write the archive of a test split.

    Args:
        config: configuration.
        split: whose predictions.
        pictures: its list.
        ground_truth: label map of every id; empty when there are none.
        facts: what the scores depend on, for the file.
        crf: whether these are the predictions after the CRF.

    Returns:
        The scores, in every process; empty without ground truth.
    """
    paths, names = Paths(config), class_names(config)
    predictions = paths.prediction_dir(split, crf)
    if split == "test" or not ground_truth:
        images = lineage.image_paths(config, pictures.ids)
        archive = paths.submission_path(split, crf)
        on_main(lambda: write_submission(archive, predictions, images, len(names)))
    if not ground_truth:
        log(f"{describe(pictures)} has no ground truth, so there are no scores.")
        return {}
    confusion = scoring.compare(predictions, ground_truth, len(names), "run test again")
    scores = scoring.scores_of(confusion, names)
    on_main(partial(_record_scores, config, split, pictures, scores, facts, crf))
    return scores


def _record_scores(
    config: Config,
    split: Split,
    pictures: IdList,
    scores: Mapping[str, Any],
    facts: Mapping[str, Any],
    crf: bool,
) -> None:
    """Write scores beside what they depend on, and log their table."""
    path, plain_path = (Paths(config).scores_path(split, one) for one in (crf, False))
    facts = {"split": split, "list": lineage.list_facts(pictures), **facts}
    if facts[_SECONDS] is None and (earlier := scoring.read_scores(path)):
        facts[_SECONDS] = earlier.get(_SECONDS)  # of the same outputs, else it would be gone
    scoring.write_scores(path, scores, config, pictures=len(pictures), **facts)
    columns = {COLUMN_CRF if crf else COLUMN: scores}
    plain = scoring.read_scores(plain_path) if crf else None
    if plain is not None and plain["model"]["sha256"] == facts["model"]["sha256"]:
        columns = {COLUMN: plain, **columns}
    scoring.log_table(f"IoU in % on {describe(pictures)}", class_names(config), columns)
    constant = scores[scoring.CONSTANT_BACKGROUND][scoring.MEAN_IOU]
    log(f"for comparison: background everywhere has a mean IoU of {scoring.in_percent(constant)} %")


def label_files(config: Config, split: Split, image_id: str) -> dict[str, Path]:
    """The label maps of a picture that there are, by column, but for those that are outdated."""
    paths = Paths(config)
    plain, refined = (
        paths.prediction_dir(split, crf) / f"{image_id}{PREDICTION_SUFFIX}" for crf in (False, True)
    )
    files: dict[str, Path | None] = {
        TRUTH: validation_label_path(config, image_id),
        MASK: training_label_path(config, image_id),
        COLUMN: plain,
        COLUMN_CRF: refined if up_to_date(refined, plain) else None,
    }
    return {title: path for title, path in files.items() if path and path.is_file()}
