"""Which data the chosen steps need, checked before anything is computed."""

from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path

from misc.consistency import CAM_BACKBONE
from misc.errors import UserError
from misc.progress import log
from voc12.devkit import IMAGE_FOLDER
from voc12.preflight import find_problems, require_no_problems
from voc12.source import NO_LIST, open_source

SCORING_STEPS = ("eval_cam", "eval_ins_seg", "eval_sem_seg")
_TRAIN_LIST_STEPS = {"train_cam", "make_cam", "cam_to_ir_label", "train_irn"}
INFER_LIST_STEPS = {"make_cam", "train_irn", "make_ins_seg_labels", "make_sem_seg_labels"}


def without_ground_truth(args: Namespace, steps: tuple[str, ...]) -> tuple[str, ...]:
    """Drop the scoring steps when the data set has no masks at all, unless named by `--steps`."""
    devkit = open_source(args).devkit
    if args.steps is not None or devkit.has_masks() or not devkit.root.is_dir():
        return steps
    dropped = [step for step in steps if step in SCORING_STEPS]
    if dropped:
        log(f"{devkit.root} has no SegmentationClass folder: {', '.join(dropped)} left out.")
    return tuple(step for step in steps if step not in dropped)


def require_root(args: Namespace) -> None:
    """Stop when there are no pictures at all, with a hint where they may be.

    Raises:
        UserError: `--voc12_root` or its JPEGImages does not exist.
    """
    source = open_source(args)
    if not (source.devkit.root / IMAGE_FOLDER).is_dir():
        require_no_problems(find_problems(source.devkit, source.classes, ("any",)))


def check_needs(args: Namespace, steps: Iterable[str], other_problems: Iterable[str] = ()) -> None:
    """Check lists, pictures, image labels and masks that the steps need.

    Args:
        args: options.
        steps: names of the chosen steps.
        other_problems: what is wrong besides the data, to be reported with it.

    Raises:
        UserError: lists every problem.
    """
    source, steps = open_source(args), set(steps)
    require_root(args)
    problems = list(other_problems)

    def ids(name: str, needed: bool) -> tuple[str, ...]:
        if not needed:
            return ()
        try:
            found = source.id_list(name).ids
        except UserError as error:
            text = f"unusable list: {error}"
            if name == args.val_list != args.train_list:
                text = f"{text.rstrip('.')}; or go without validation: --val_list {NO_LIST}."
            problems.extend([text] if text not in problems else [])
            return ()
        if not found:
            problems.append(f"unusable list: {name} is empty; name a list of pictures")
        return found

    train = ids(args.train_list, bool(steps & _TRAIN_LIST_STEPS))
    val = ids(args.val_list, "train_cam" in steps and args.val_list != NO_LIST)
    infer = ids(args.infer_list, bool(steps & INFER_LIST_STEPS))
    scored = ids(args.eval_list, bool(steps & {*SCORING_STEPS, "make_cam"}))
    labelled = {"train_cam": (*train, *val), "make_cam": (*train, *infer, *scored)}
    problems += find_problems(
        source.devkit,
        source.classes,
        image_ids=dict.fromkeys((*train, *val, *infer, *(scored if "make_cam" in steps else ()))),
        mask_ids=scored if steps & set(SCORING_STEPS) else (),
        object_mask_ids=scored if "eval_ins_seg" in steps else (),
        label_ids=dict.fromkeys(i for step in labelled if step in steps for i in labelled[step]),
        cls_labels=source.cls_labels,
    )
    problems += _unscorable(args, steps, infer, scored) + _missing_weights(args, steps)
    require_no_problems(problems)


def _unscorable(
    args: Namespace, steps: set[str], infer: Sequence[str], scored: Sequence[str]
) -> list[str]:
    """Outputs that are to be scored, but neither there nor made by this run."""
    problems = []
    for score, make, folder, suffix in (
        ("eval_sem_seg", "make_sem_seg_labels", args.sem_seg_out_dir, ".png"),
        ("eval_ins_seg", "make_ins_seg_labels", args.ins_seg_out_dir, ".npz"),
    ):
        if score not in steps or (make in steps and not infer):
            continue
        made = set(infer) if make in steps else set()
        missing = [i for i in scored if i not in made and not (folder / f"{i}{suffix}").is_file()]
        if missing:
            problems.append(
                f"nothing to score: {score} needs {folder / missing[0]}{suffix} (and "
                f"{len(missing) - 1} more of --eval_list {args.eval_list}), which {make} makes for "
                f"--infer_list {args.infer_list} only"
            )
    return problems


def _missing_weights(args: Namespace, steps: set[str]) -> list[str]:
    """Local weight files that steps of this run will read, maybe hours later."""
    named = {"train_cam": ("cnn_weights", "vit_weights"), "train_irn": ("irn_backbone_weights",)}
    options = [option for step, options in named.items() if step in steps for option in options]
    paths = {option: getattr(args, option) for option in options}
    return [
        f"missing weights: --{option} {path} does not exist"
        for option, path in paths.items()
        if path not in (None, CAM_BACKBONE) and not Path(path).is_file()
    ]
