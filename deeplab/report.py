"""One table of everything that was scored, and a figure.

Reads the scores that `test` and `crf` left, and the training labels where the pictures they belong
to have ground truth (which is only compared with, never trained on). Writes report.json, figure.png
and report.html; other splits than val get files of their own, such as report_train.json.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deeplab import lineage, page, scoring
from deeplab.config import Config, Paths, Split, class_names
from deeplab.data import id_list, training_label_dir, training_label_path, validation_labels
from deeplab.outputs import COLUMN, COLUMN_CRF, MASK, TRUTH, label_files
from misc.distributed import (
    gather_shards,
    join_processes,
    on_main,
    require_shared,
    shard,
    together,
)
from misc.errors import UserError
from misc.files import sha256_file, write_json
from misc.maps_io import read_image, read_label
from misc.progress import log, progress
from misc.seed import run_facts
from misc.visualize import FigureRow, colour_label, save_figure, spread
from voc12.lists import IdList

_COLUMNS = (page.PHOTO, TRUTH, MASK, COLUMN, COLUMN_CRF)


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
    join_processes(torch.device("cpu"))
    require_shared(config.EXP.OUTPUT_DIR, "EXP.OUTPUT_DIR")
    pictures = on_main(lambda: id_list(config, split))
    columns = on_main(lambda: _prediction_scores(Paths(config), split))
    labels = score_training_labels(config)
    content = on_main(lambda: _write_report(config, split, pictures, columns, labels))
    draw(config, split, pictures, figure_num)
    if page_num:
        page.write(config, split, pictures, content, page_num)
    return content


def _write_report(
    config: Config,
    split: Split,
    pictures: IdList,
    columns: Mapping[str, Mapping[str, Any]],
    labels: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Write report.json and log its table; returns its content."""
    paths, plain = Paths(config), columns[COLUMN]
    constant = plain[scoring.CONSTANT_BACKGROUND]
    margins = {
        name: _difference(scores[scoring.MEAN_IOU], constant[scoring.MEAN_IOU])
        for name, scores in columns.items()
    }
    content = {
        "split": split,
        "list": lineage.list_facts(pictures),
        "model": plain["model"],
        "initialisation": plain["initialisation"],
        "scores": columns,
        "training_labels": labels,
        "constant_background": constant,
        "margin_over_constant_background": margins,
        **run_facts(),
    }
    path = paths.of_split(paths.report_path, split)
    write_json(path, content)
    _log_report(content, class_names(config))
    log(f"wrote {path}")
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
    """Scores of the weights of now, without and, where there are any, with CRF."""
    plain = scoring.read_scores(paths.scores_path(split))
    if plain is None:
        raise UserError(
            f"{paths.scores_path(split)} does not exist; run `test --split {split}` first, on a "
            "list with ground truth."
        )
    refined = scoring.read_scores(paths.scores_path(split, crf=True))
    if refined is not None and refined["model"]["sha256"] != plain["model"]["sha256"]:
        raise UserError(
            f"{paths.scores_path(split, crf=True)} is of the weights {refined['model']['path']}, "
            f"{paths.scores_path(split)} of {plain['model']['path']} or of others of that name; "
            f"run `crf --split {split} --overwrite`."
        )
    _require_same_weights(plain["model"], split)
    if refined is None:
        log(f"there are no scores after the CRF; `crf --split {split}` makes them.")
        return {COLUMN: plain}
    return {COLUMN: plain, COLUMN_CRF: refined}


def score_training_labels(config: Config) -> dict[str, Any] | None:
    """Scores of the training labels on the training pictures that have ground truth.

    Returns:
        The scores, and the number of `pictures`; None where there is nothing to compare.
    """
    pictures, truth = on_main(lambda: _labelled(config))
    if not truth:
        log("no training label can be compared with ground truth.")
        return None
    folder = training_label_dir(config)
    confusion = scoring.compare(folder, truth, config.DATASET.N_CLASSES, "make the labels again")
    scores = scoring.scores_of(confusion, class_names(config))
    return {**scores, "pictures": len(truth), "list": lineage.list_facts(pictures)}


def _labelled(config: Config) -> tuple[IdList, dict[str, Path]]:
    """The training pictures, and ground truth of those that have both it and a training label."""
    pictures = id_list(config, "train")
    truth = validation_labels(config, pictures.ids)
    return pictures, {i: p for i, p in truth.items() if training_label_path(config, i).is_file()}


def _log_report(content: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """The table, and what its columns are."""
    labels = content["training_labels"]
    (name, facts), *_ = content["list"].items()
    title = f"IoU in % (predictions on {name}, {facts['count']} pictures)"
    scoring.log_table(title, names, page.columns_of(content))
    if labels:
        log(
            f"{page.LABELS_COLUMN}: compared with the ground truth of "
            f"{labels['pictures']} training pictures, which was only scored, never trained on"
        )
    log(f"{page.BACKGROUND_COLUMN}: background everywhere")
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
    with together():
        share = progress(shard(chosen), "figure")
        rows = [draw_picture(config, split, image_id) for image_id in share]
    rows = gather_shards(rows)
    on_main(lambda: save_figure(path, rows, _COLUMNS, class_names(config)[1:]))
    log(f"{path} shows {len(rows)} of {len(pictures)} pictures of {pictures.source}")


def draw_picture(config: Config, split: Split, image_id: str) -> FigureRow:
    """One row: the photo and every label map that there is."""
    files = label_files(config, split, image_id)
    labels = {title: read_label(path) for title, path in files.items()}
    cells = {page.PHOTO: read_image(lineage.image_paths(config, [image_id])[image_id])}
    cells |= {title: colour_label(label) for title, label in labels.items()}
    values = {int(value) for label in labels.values() for value in np.unique(label)}
    return FigureRow(image_id, cells, values)
