"""From image-level labels to pseudo masks: the nine steps of CRT, one after the other.

python run_sample.py --voc12_root VOCdevkit/VOC2012     the published run
python run_sample.py --photos FOLDER                    your own photos, in a folder per class
python run_sample.py --preset demo                      the built-in sample on a laptop
python run_sample.py --preset demo --estimate           only what that would take
python run_sample.py --help                             every option with its default
"""

import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from misc.entry import run_entry
from misc.errors import UserError
from step.command_line import parse_args
from step.options import MASK_STEP, STEP_NAMES, Options, is_on, switch_name

if TYPE_CHECKING:
    from step.report import Report
    from step.run import Run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen steps; returns the exit status."""
    # Parsing comes first and alone: --help and wrong options answer without loading torch.
    return run_entry("run_sample.py", lambda: start(parse_args(argv)))


def start(options: Options) -> None:
    """Run the pipeline, or only tell what that would take."""
    from misc.progress import log

    warnings.showwarning = lambda message, *_: log(f"warning: {message}")
    if options.estimate is None:
        run_pipeline(options)
    else:
        from step.estimate import estimate

        estimate(options)


def run_pipeline(options: Options) -> dict[str, Any]:
    """Check the data, run the chosen steps, write log, metrics.json, figure.png and report.html.

    Under `torchrun` the main process decides, writes records and draws; every process takes its
    share of the pictures of each step.

    Returns:
        The content of metrics.json.
    """
    from misc.distributed import (
        is_main_process,
        join_processes,
        local_rank,
        on_main,
        require_shared,
        select_device,
        together,
    )
    from step.checks import check_machine
    from step.report import Report
    from step.run import prepare_data

    join_processes(select_device(options.device))
    on_main(lambda: open_log(options))
    require_shared(options.work_dir, "--work_dir")
    run = on_main(lambda: prepare_data(options))
    steps = on_main(lambda: preflight(run))
    with together():
        if local_rank() == 0 and not is_main_process():
            check_machine(run, steps)
    report = on_main(lambda: Report(run, steps))
    for name in STEP_NAMES:
        run_step(name, run, steps, report)
    draw_overlays(run, steps)
    return on_main(lambda: finish(run, steps, report))


def open_log(options: Options) -> None:
    """Write what is logged into the log file, too.

    Raises:
        UserError: the work folder cannot be written.
    """
    from misc.progress import set_log_file

    try:
        set_log_file(options.work_dir / f"{options.log_name}.log")
    except OSError as error:
        raise UserError(f"--work_dir {options.work_dir} cannot be written: {error}.") from None


def preflight(run: "Run") -> tuple[str, ...]:
    """The steps that can run; with --overwrite their outputs are removed.

    Raises:
        UserError: something that they need is missing or unusable.
    """
    from misc.progress import log
    from step.checks import check
    from step.next_command import deeplab_advice
    from step.overwrite import remove_before
    from step.photo_changes import check_photos

    check_photos(run)
    steps = check(run)
    if MASK_STEP in steps:
        log(f"when {MASK_STEP} is done, {deeplab_advice(run)}")
    if run.options.overwrite:
        remove_before(run, steps)
    return steps


def run_step(name: str, run: "Run", steps: Sequence[str], report: "Report") -> None:
    """Run a step if it is one of the chosen `steps`, timed, and store what it returns."""
    from misc.distributed import on_main
    from misc.progress import log
    from step.steps import run_measured

    title = f"[{STEP_NAMES.index(name) + 1}/{len(STEP_NAMES)}] {name}"
    if name not in steps:
        if run.options.steps is None and not is_on(run.options, name):
            log(f"{title}: off (--{switch_name(name)})")
        return
    log(f"{title} ...")
    result, seconds, memory = run_measured(name, run)
    shown = ", ".join(f"{device} {size / 2**30:.2f} GiB" for device, size in memory.items())
    log(f"{title}: {seconds:.1f} s, peak memory {shown}")
    on_main(lambda: report.add(name, result, seconds, memory))


def draw_overlays(run: "Run", steps: Sequence[str]) -> None:
    """Lay the masks over their photos, if this run makes them and that is asked for."""
    from step import make_overlays

    if run.options.overlays and MASK_STEP in steps:
        make_overlays.run(run)


def finish(run: "Run", steps: Sequence[str], report: "Report") -> dict[str, Any]:
    """Tell the scores, draw figure and page; returns the content of metrics.json."""
    from misc.progress import log
    from step import make_figure
    from step.next_command import deeplab_advice
    from step.plan import STEPS

    report.log_table()
    if run.options.figure_num and any("infer_list" in STEPS[name].lists for name in steps):
        make_figure.run(run)
    if MASK_STEP in steps:
        log(deeplab_advice(run))
    log(f"metrics are in {report.path}, finished in {report.total_seconds():.0f} s")
    content = report.content()
    if run.options.report_num:
        write_report_page(run)
    return content


def write_report_page(run: "Run") -> None:
    """Write report.html; whatever goes wrong with it is told and spoils no run that is finished."""
    from misc.progress import log
    from step import make_report

    try:
        make_report.run(run)
    except Exception as error:
        paths = {"--voc12_root": run.source.devkit.root, "--work_dir": run.options.work_dir}
        again = shlex.join(str(word) for pair in paths.items() for word in pair)
        log(
            f"report.html was not written ({type(error).__name__}: {error}); everything else is. "
            f"Try again with: python -m step.make_report {again}"
        )


if __name__ == "__main__":
    sys.exit(main())
