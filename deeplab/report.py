"""One table of everything that was scored, and a figure.

Reads the scores that `test` and `crf` left, and the training labels where the pictures they belong
to have ground truth (which is only compared with, never trained on). Writes report.json, figure.png
and report.html; other splits than val get files of their own, such as report_train.json.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deeplab import lineage, page, scoring
from deeplab.config import Config, Paths, Split, class_names
from deeplab.data import (
    id_list,
    training_label_dir,
    training_label_path,
    validation_label_path,
    validation_labels,
)
from deeplab.inference import COLUMN, COLUMN_CRF
from deeplab.refinement import PREDICTION_SUFFIX
from misc.errors import UserError
from misc.files import sha256_file, up_to_date, write_json
from misc.maps_io import read_image, read_label
from misc.progress import log, progress
from misc.seed import run_facts
from misc.visualize import FigureRow, colour_label, save_figure
from step.make_figure import MASK, PHOTO, TRUTH, spread
from voc12.lists import IdList

BACKGROUND_COLUMN = "background"
LABELS_COLUMN = "training labels"

_COLUMNS = (PHOTO, TRUTH, MASK, COLUMN, COLUMN_CRF)


def run(config: Config, split: Split, figure_num: int, page_num: int = 0) -> dict[str, Any]:
    """Collect the scores of a split, log the table, write report.json, figure.png and report.html.

    Args:
        config: configuration.
        split: whose predictions.
        figure_num: pictures of the figure; 0 draws none.
        page_num: pictures of the page; 0 writes none.

    Returns:
        The content of report.json.

    Raises:
        UserError: `test` has left no scores, `crf` those of another model, or the weights have
            changed since.
    """
    paths, names = Paths(config), class_names(config)
    pictures = id_list(config, split)
    columns = _prediction_scores(paths, split)
    _require_same_weights(columns[COLUMN]["model"], split)
    labels = score_training_labels(config)
    constant = columns[COLUMN][scoring.CONSTANT_BACKGROUND]
    margins = {
        name: _difference(scores[scoring.MEAN_IOU], constant[scoring.MEAN_IOU])
        for name, scores in columns.items()
    }
    content = {
        "split": split,
        "list": lineage.list_facts(pictures),
        "model": columns[COLUMN]["model"],
        "initialisation": columns[COLUMN]["initialisation"],
        "scores": columns,
        "training_labels": labels,
        "constant_background": constant,
        "margin_over_constant_background": margins,
        **run_facts(),
    }
    path = paths.of_split(paths.report_path, split)
    write_json(path, content)
    _log_report(content, names)
    log(f"wrote {path}")
    draw(config, split, pictures, figure_num)
    if page_num:
        page.write(config, split, pictures, content, page_num)
    return content


def _difference(first: float | None, second: float | None) -> float | None:
    """None where nothing was counted."""
    return None if first is None or second is None else first - second


def _require_same_weights(model: Mapping[str, str], split: Split) -> None:
    """Stop when the weights that were scored have been replaced; they may be gone."""
    path = Path(model["path"])
    if path.is_file() and sha256_file(path) != model["sha256"]:
        raise UserError(
            f"the scores of {split} are of other weights than those that are now in {path}; run "
            f"`test --split {split} --overwrite`, then `crf --split {split} --overwrite`."
        )


def _prediction_scores(paths: Paths, split: Split) -> dict[str, dict[str, Any]]:
    """Scores without and, where there are any, with CRF."""
    plain = scoring.read_scores(paths.scores_path(split))
    if plain is None:
        raise UserError(
            f"{paths.scores_path(split)} does not exist; run `test --split {split}` first, on a "
            "list with ground truth."
        )
    refined = scoring.read_scores(paths.scores_path(split, crf=True))
    if refined is None:
        log(f"there are no scores after the CRF; `crf --split {split}` makes them.")
        return {COLUMN: plain}
    if refined["model"]["sha256"] != plain["model"]["sha256"]:
        raise UserError(
            f"{paths.scores_path(split, crf=True)} is of the weights {refined['model']['path']}, "
            f"{paths.scores_path(split)} of {plain['model']['path']} or of others of that name; "
            f"run `crf --split {split} --overwrite`."
        )
    return {COLUMN: plain, COLUMN_CRF: refined}


def score_training_labels(config: Config) -> dict[str, Any] | None:
    """Scores of the training labels on the training pictures that have ground truth.

    Returns:
        The scores, and the number of `pictures`; None where there is nothing to compare.
    """
    pictures = id_list(config, "train")
    truth = validation_labels(config, pictures.ids)
    truth = {i: path for i, path in truth.items() if training_label_path(config, i).is_file()}
    if not truth:
        log("no training label can be compared with ground truth.")
        return None
    folder = training_label_dir(config)
    confusion = scoring.compare(folder, truth, config.DATASET.N_CLASSES, "make the labels again")
    scores = scoring.scores_of(confusion, class_names(config))
    return {**scores, "pictures": len(truth), "list": lineage.list_facts(pictures)}


def _log_report(content: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """The table, and what its columns are."""
    labels, scores = content["training_labels"], content["scores"]
    columns = {
        **({LABELS_COLUMN: labels} if labels else {}),
        BACKGROUND_COLUMN: content["constant_background"],
        **scores,
    }
    (name, facts), *_ = content["list"].items()
    scoring.log_table(
        f"IoU in % (predictions on {name}, {facts['count']} pictures)", names, columns
    )
    if labels:
        log(
            f"{LABELS_COLUMN}: compared with the ground truth of "
            f"{labels['pictures']} training pictures, which was only scored, never trained on"
        )
    log(f"{BACKGROUND_COLUMN}: background everywhere")
    for column, margin in content["margin_over_constant_background"].items():
        if margin is None:
            log(f"{column}: the ground truth has no labelled pixel, so nothing was scored")
        else:
            log(f"{column}: {100 * margin:+.2f} points of mean IoU over background everywhere")
    initialisation = content["initialisation"]
    what = initialisation["what"] if isinstance(initialisation, dict) else initialisation
    log(f"first weights: {what}")
    log(f"weights: {content['model']['path']}")


def draw(config: Config, split: Split, pictures: IdList, count: int) -> None:
    """Draw pictures, spread evenly over the list, beside their label maps and predictions."""
    paths = Paths(config)
    path = paths.of_split(paths.figure_path, split)
    chosen = spread(pictures.ids, count)
    if not chosen:
        return
    rows = [draw_picture(config, split, image_id) for image_id in progress(chosen, "figure")]
    save_figure(path, rows, _COLUMNS, class_names(config)[1:])
    log(f"{path} shows {len(rows)} of {len(pictures)} pictures of {pictures.source}")


def draw_picture(config: Config, split: Split, image_id: str) -> FigureRow:
    """One row: the photo and every label map that there is."""
    files = label_files(config, split, image_id)
    labels = {title: read_label(path) for title, path in files.items()}
    cells = {PHOTO: read_image(lineage.image_paths(config, [image_id])[image_id])}
    cells |= {title: colour_label(label) for title, label in labels.items()}
    values = {int(value) for label in labels.values() for value in np.unique(label)}
    return FigureRow(image_id, cells, values)


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
