"""Write `result/report.html`: one page to look at, with scores, curves and the pictures in doubt.

Reads `result/metrics.json`, photos and masks of the devkit and what is there of `result/cam`,
`result/ir_label`, `result/edge` and `result/sem_seg`. Run at the end of `run_sample.py`, or alone:
`python -m step.make_report --voc12_root ROOT --work_dir DIR`.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from misc.arguments import non_negative_int, positive_int
from misc.entry import run_entry
from misc.errors import UserError
from misc.files import expand_user
from misc.page.document import Gallery, Page, Section, write_page
from misc.parallel import map_pictures
from misc.progress import log
from step import make_figure
from step.make_figure import current_files, output_files, require_named, spread
from step.options import Options
from step.page import doubt
from step.page.sections import Metrics, summary
from step.report import read_metrics
from step.run import Run, finished_run
from voc12.devkit import Devkit
from voc12.labels import load_classes
from voc12.lists import IdList
from voc12.source import DataSource

PAGE_NAME = "report.html"
_LAYERS = {
    make_figure.CAM: doubt.CAM,
    make_figure.IR_LABEL: doubt.IR_LABEL,
    make_figure.EDGE: doubt.EDGE,
    make_figure.MASK: doubt.MASK,
}
_KINDS = ("cam", "ir_label", "edge", "sem_seg", "ins_seg")


def run(run: Run) -> dict[str, Any]:
    """Write the page of a run, with `--report_num` pictures of the inference list at most.

    Returns:
        `report`, the path as text.
    """
    try:
        pictures = run.source.id_list(run.options.infer_list)
    except UserError as error:  # no step of this run has needed the list
        log(f"report.html shows no pictures: {error}")
        pictures = IdList(str(run.options.infer_list), (), str(error))
    return make_report(run, pictures, run.options.result_dir / PAGE_NAME)


def make_report(run: Run, pictures: IdList, target: Path) -> dict[str, Any]:
    """Write the page with pictures of a list to `target`; see `run`.

    Raises:
        UserError: metrics.json or a file of a picture cannot be read.
    """
    path = run.options.result_dir / "metrics.json"
    tiles, parts = summary(_own_metrics(run, path), path)
    gallery = make_gallery(run, pictures)
    what = f"{len(gallery.items)} of {len(pictures)} pictures of list {pictures.name}"
    if pictures.ids:
        parts.append(Section("Pictures", [gallery]))
    else:
        parts.append(Section("Pictures", (), f"No pictures: {pictures.source}"))
    written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    subtitle = f"{run.options.voc12_root} · {what} · written {written}"
    write_page(target, Page("From image labels to masks", subtitle, tiles, parts))
    log(f"to look at: {target}, {what}, {target.stat().st_size / 1e6:.1f} MB")
    return {"report": str(target)}


def _own_metrics(run: Run, path: Path) -> Metrics:
    """Content of metrics.json if it is of the same data and classes; nothing else is shown."""
    metrics = read_metrics(path)
    recorded = metrics.get("arguments", {})
    for name, own in (
        ("voc12_root", str(run.options.voc12_root)),
        ("class_names", list(run.class_names)),
    ):
        if metrics and recorded.get(name) != own:
            log(f"{path} is of another {name}, so its scores are left out.")
            return {}
    return metrics


def make_gallery(run: Run, pictures: IdList) -> Gallery:
    """The pictures of a list that have outputs, evenly chosen; the others are told by their ids."""
    made = [i for i in pictures.ids if any(p.is_file() for p in output_files(run, i))]
    shown = spread(made, run.options.report_num)
    tasks = [_task(run, image_id) for image_id in shown]
    items = map_pictures(doubt.draw, tasks, run.options.num_workers, "make_report")
    for item in items:
        require_named(run, item.classes, item.name)
    left = {
        "pictures are not shown (--report_num)": sorted(set(made) - set(shown)),
        "pictures have no outputs": sorted(set(pictures.ids) - set(made)),
    }
    layers = [t for t in doubt.LAYERS if t == doubt.PHOTO or any(t in i.layers for i in items)]
    first = next((t for t in (doubt.MASK, doubt.CAM) if t in layers), doubt.PHOTO)
    hidden = {reason: ids for reason, ids in left.items() if ids}
    names = run.class_names
    return Gallery(items, layers, first, doubt.MEASURES, names, note=doubt.NOTE, hidden=hidden)


def _task(run: Run, image_id: str) -> doubt.Task:
    """What to draw of a picture: the outputs that are its own, and the ground truth."""
    devkit = run.source.devkit
    photo = devkit.image_path(image_id)
    current = current_files(run, image_id, photo)
    files = {_LAYERS[title]: path for title, path in current.items() if title in _LAYERS}
    truth = devkit.mask_path(image_id)
    files |= {doubt.TRUTH: truth} if truth is not None else {}
    return doubt.Task(image_id, photo, files, run.options.cam_eval_thres)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report page of finished outputs; returns the exit status."""
    parser = argparse.ArgumentParser(prog="step.make_report", description=main.__doc__)
    parser.add_argument("--voc12_root", type=expand_user, required=True, help="VOC devkit root")
    parser.add_argument(
        "--work_dir", type=expand_user, default=Path(), help="folder that holds result/"
    )
    recorded = "default: that of result/metrics.json"
    parser.add_argument("--list", dest="infer_list", help=f"a name or a file ({recorded})")
    parser.add_argument("--classes", type=Path, help=f"file of class names ({recorded})")
    parser.add_argument(
        "--num",
        "--report_num",
        dest="report_num",
        type=positive_int,
        default=Options.report_num,
        help="of pictures",
    )
    parser.add_argument(
        "--num_workers", type=non_negative_int, default=0, help="processes that draw pictures"
    )
    parser.add_argument("--output", type=Path, help=f"default: WORK_DIR/result/{PAGE_NAME}")
    return run_entry(parser.prog, lambda: _report_alone(parser.parse_args(argv)))


def _report_alone(args: argparse.Namespace) -> None:
    """Fill what the options leave open from metrics.json, and write the page."""
    root, work_dir = args.voc12_root.resolve(), args.work_dir.resolve()
    result = work_dir / "result"
    if not result.is_dir():
        raise UserError(f"{result} does not exist; name the folder of a run with --work_dir.")
    recorded = read_metrics(result / "metrics.json").get("arguments", {})
    threshold = recorded.get("cam_eval_thres")
    folders = {f"{kind}_out_dir": _folder(result, kind, recorded) for kind in _KINDS}
    run = finished_run(
        DataSource(Devkit(root), _class_names(args.classes, recorded), expect_standard=False),
        work_dir,
        infer_list=args.infer_list or str(recorded.get("infer_list") or "train"),
        report_num=args.report_num,
        num_workers=args.num_workers,
        cam_eval_thres=threshold if isinstance(threshold, float) else Options.cam_eval_thres,
        **folders,
    )
    pictures = run.source.id_list(run.options.infer_list)
    make_report(run, pictures, args.output or result / PAGE_NAME)


def _class_names(given: Path | None, recorded: Metrics) -> tuple[str, ...]:
    """Names given, else those recorded, else VOC's."""
    names = recorded.get("class_names")
    if given is None and isinstance(names, list) and all(isinstance(n, str) for n in names):
        return tuple(names)
    return load_classes(given)


def _folder(result: Path, kind: str, recorded: Metrics) -> Path:
    """Folder of an output: as recorded, relative to the work folder, which may have moved."""
    given, base = recorded.get(f"{kind}_out_dir"), recorded.get("work_dir")
    if not (isinstance(given, str) and isinstance(base, str)):
        return result / kind
    path = Path(given)
    return result.parent / path.relative_to(base) if path.is_relative_to(base) else path


if __name__ == "__main__":
    sys.exit(main())
