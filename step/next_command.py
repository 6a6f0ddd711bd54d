"""Which training of DeepLab the pseudo masks of a run are enough for, as a command to copy."""

import json
import shlex
from pathlib import Path

from misc.config import plain
from misc.errors import UserError
from step.options import selected_steps
from step.plan import is_imported
from step.run import Run
from voc12.labels import VOC_CLASSES
from voc12.lists import TRAIN_AUG
from voc12.sample.devkit import RECORD_NAME as SAMPLE_RECORD

_DEEPLAB = Path(__file__).resolve().parent.parent / "deeplab"
_PUBLISHED, _SAMPLE = "voc12_resnet_dplv2.yaml", "demo.yaml"


def deeplab_advice(run: Run) -> str:
    """The command that trains DeepLab on the masks of the inference list, and what it lacks."""
    pictures = run.source.id_list(run.options.infer_list)
    text = (
        f"the pseudo masks of list {pictures.name} ({len(pictures)} pictures) are enough for: "
        f"{deeplab_command(run)}"
    )
    missing = _missing_of_paper(run)
    if missing:
        text += (
            f" (the published training reads list {TRAIN_AUG}, of which {missing} pictures would "
            f"have no mask: make them with --infer_list voc12/{TRAIN_AUG}.txt)"
        )
    return text


def deeplab_command(run: Run) -> str:
    """The command that trains DeepLab on the masks of the inference list and no others."""
    options, source = run.options, run.source
    is_sample = (source.devkit.root / SAMPLE_RECORD).is_file()
    values = {"DATASET.ROOT": source.devkit.root, "DATASET.TRAIN_LABELS": options.sem_seg_out_dir}
    if is_sample:
        # Without a CNN branch of these classes the small network starts from random weights.
        trained = options.cam_weights_name.is_file() or "train_cam" in selected_steps(options)
        usable = trained and not is_imported(options.cam_out_dir)
        values["MODEL.INIT_MODEL"] = options.cam_weights_name if usable else "none"
        if usable and options.cnn_args:
            values["MODEL.BACKBONE_ARGS"] = json.dumps(plain(options.cnn_args))
    if _missing_of_paper(run) != 0:
        pictures = source.id_list(options.infer_list)
        own_file = pictures.source == options.infer_list
        values["DATASET.SPLIT.TRAIN"] = (
            Path(pictures.source).resolve() if own_file else pictures.name
        )
    if source.classes != VOC_CLASSES:
        names = {"DATASET.LABELS": Path(options.classes).resolve()}
        values |= {**names, "DATASET.N_CLASSES": len(source.classes) + 1}
    config = _DEEPLAB / "configs" / (_SAMPLE if is_sample else _PUBLISHED)
    words = ["python", str(_DEEPLAB / "main.py"), "train", "-c", str(config)]
    return shlex.join([*words, *(f"{key}={value}" for key, value in values.items())])


def _missing_of_paper(run: Run) -> int | None:
    """How many pictures of DeepLab's published list get no mask; None if the list is unknown."""
    source = run.source
    try:
        published = source.id_list(TRAIN_AUG).ids
    except UserError:
        return None
    return len(set(published).difference(source.id_list(run.options.infer_list).ids))
