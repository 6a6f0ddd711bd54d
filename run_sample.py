"""From image-level labels to pseudo masks: the nine steps of CRT, one after the other.

python run_sample.py --voc12_root VOCdevkit/VOC2012     the published run
python run_sample.py --photos FOLDER                    your own photos, in a folder per class
python run_sample.py --preset demo                      the built-in sample on a laptop
python run_sample.py --help                             every option with its default
"""

import importlib
import shlex
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from misc.entry import run_entry
from misc.errors import UserError
from misc.files import expand_user
from step.option_groups import (
    MASK_STEP,
    PHOTOS_FOLDER,
    SAMPLE_FOLDER,
    SAMPLE_PICTURES,
    STEP_NAMES,
    switch_name,
)
from step.options import parse_args, selected_steps


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen steps; returns the exit status."""
    # Parsing comes first and alone: --help and wrong options answer without loading torch.
    return run_entry("run_sample.py", lambda: run_pipeline(parse_args(argv)))


def run_pipeline(args: Namespace) -> dict[str, Any]:
    """Check the data, run the chosen steps, write log, metrics.json, figure.png and report.html.

    Returns:
        The content of metrics.json.
    """
    from misc.distributed import select_device
    from misc.progress import log, set_log_file
    from step.checks import INFER_LIST_STEPS
    from step.next_command import deeplab_advice
    from step.photo_changes import check_photos
    from step.plan import remove_before
    from step.report import Report

    try:
        set_log_file(args.work_dir / f"{args.log_name}.log")
    except OSError as error:
        raise UserError(f"--work_dir {args.work_dir} cannot be written: {error}.") from None
    warnings.showwarning = lambda message, *_: log(f"warning: {message}")
    require_one_process()
    select_device(args.device)
    prepare_data(args)
    check_photos(args)
    steps = preflight(args)
    if MASK_STEP in steps:
        log(f"when {MASK_STEP} is done, {deeplab_advice(args)}")
    if args.overwrite:
        remove_before(args, steps)
    report = Report(args, steps)
    for number, name in enumerate(STEP_NAMES, start=1):
        title = f"[{number}/{len(STEP_NAMES)}] {name}"
        if name in steps:
            run_step(name, title, args, report)
        elif args.steps is None and not getattr(args, switch_name(name)):
            log(f"{title}: off (--{switch_name(name)})")
    report.log_table()
    if args.overlays and MASK_STEP in steps:
        from step import make_overlays

        make_overlays.run(args)
    if args.figure_num and INFER_LIST_STEPS.intersection(steps):
        from step import make_figure

        make_figure.run(args)
    if MASK_STEP in steps:
        log(deeplab_advice(args))
    log(f"metrics are in {report.path}, finished in {report.total_seconds():.0f} s")
    content = report.content()
    if args.report_num:
        write_report_page(args)
    return content


def require_one_process() -> None:
    """Refuse `torchrun`, which would run every step several times over the same files."""
    from misc.distributed import world_size

    if world_size() > 1:
        raise UserError(
            f"the pipeline runs in one process, but {world_size()} were started; start it with "
            "python, not with torchrun."
        )


def prepare_data(args: Namespace) -> None:
    """Build the sample or the set of photos that is asked for, and derive the class names."""
    from voc12.source import open_source

    found = None
    if args.photos is not None:
        from voc12.photos import folder as photos

        args.voc12_root = args.work_dir / PHOTOS_FOLDER
        found = photos.build(args.photos, args.voc12_root, args.photos_long_side)
        args.classes = args.voc12_root / photos.CLASSES_NAME
        args.cls_labels = args.voc12_root / photos.LABELS_NAME
        if args.init == "random" and args.cnn_weights is None:
            from misc.progress import log

            log("from random weights few photos teach little: expect rough or wrong masks.")
    elif args.voc12_root is None:
        from misc.progress import log
        from voc12.sample import devkit as synthetic

        args.voc12_root = synthetic.build(args.work_dir / SAMPLE_FOLDER, **SAMPLE_PICTURES)
        log(f"the built-in sample is in {args.voc12_root}")
    args.voc12_root = expand_user(args.voc12_root).resolve()
    if args.preset == "coco" and not Path(args.classes).is_file():
        raise UserError(
            f"{args.classes} does not exist; python -m voc12.coco ROOT writes it, with everything "
            "else that --preset coco reads."
        )
    args.class_names = open_source(args, found).classes
    args.num_classes = len(args.class_names)


def preflight(args: Namespace) -> tuple[str, ...]:
    """Check everything the chosen steps need; returns the steps that can run.

    Raises:
        UserError: lists all problems at once.
    """
    from step.checks import check

    steps = selected_steps(args)
    if not steps:
        raise UserError("no step is switched on; name some with --steps.")
    return check(args, steps)


def run_step(name: str, title: str, args: Namespace, report: Any) -> None:
    """Run one step, timed, and store what it returns."""
    from misc.distributed import peak_memory, reset_peak_memory, select_device
    from misc.progress import log

    log(f"{title} ...")
    device = select_device(args.device)
    reset_peak_memory(device)
    start = time.perf_counter()
    result = importlib.import_module(f"step.{name}").run(args)
    seconds, memory = time.perf_counter() - start, peak_memory(device)
    shown = ", ".join(f"{device} {size / 2**30:.2f} GiB" for device, size in memory.items())
    log(f"{title}: {seconds:.1f} s, peak memory {shown}")
    report.add(name, result or {}, seconds, memory)


def write_report_page(args: Namespace) -> None:
    """Write report.html; whatever goes wrong with it is told and spoils no run that is finished."""
    from misc.progress import log
    from step import make_report

    try:
        make_report.run(args)
    except Exception as error:
        again = shlex.join(["--voc12_root", str(args.voc12_root), "--work_dir", str(args.work_dir)])
        log(
            f"report.html was not written ({type(error).__name__}: {error}); everything else is. "
            f"Try again with: python -m step.make_report {again}"
        )


if __name__ == "__main__":
    sys.exit(main())
