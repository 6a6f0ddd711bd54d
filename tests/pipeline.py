"""Whole runs of the pipeline in seconds: tiny pictures, tiny networks, one epoch or two."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import run_sample
from misc.checkpoint import load_checkpoint, save_checkpoint, state_dict_of
from misc.files import read_json, sha256_file
from misc.progress import set_log_file
from step.command_line import parse_args
from step.run import Run, prepare_data
from voc12.sample import devkit as synthetic

TRAIN_IDS = tuple(f"sample_{number:06d}" for number in range(1, 7))
VAL_IDS = tuple(f"sample_{number:06d}" for number in range(7, 9))
EPOCHS = 2
STEPS_PER_EPOCH = 2
BATCH_SIZE = len(TRAIN_IDS) // STEPS_PER_EPOCH

# The crop fits the tiles, the tiles fit the patches; two passes over one block of the transformer.
TINY: dict[str, Any] = {
    "device": "cpu",
    "num_workers": 0,
    "init": "random",
    "train_list": "train",
    "val_list": "val",
    "infer_list": "train",
    "cnn": "resnet18",
    "irn_backbone": "resnet18",
    "vit": "deit_tiny_patch16_224",
    "vit_args": "depth=1,embed_dim=48,num_heads=2,patch_size=8",
    "num_passes": 2,
    "tile_size": 32,
    "tile_stride": 16,
    "cam_crop_size": 48,
    "cam_long_side": "40,72",
    "cam_batch_size": BATCH_SIZE,
    "cam_num_epoches": EPOCHS,
    "cam_scales": "1.0,0.5",
    "irn_crop_size": 64,
    "irn_radius": 5,
    "irn_min_input": 64,
    "irn_batch_size": BATCH_SIZE,
    "irn_num_epoches": EPOCHS,
    "exp_times": 3,
    "make_ins_seg_pass": True,
    "eval_ins_seg_pass": True,
    "figure_num": 0,
    "report_num": 0,
}
QUICK = {"cam_num_epoches": 1, "irn_num_epoches": 1}
WEIGHTS = {"cnn": "res152_cam.pth", "transformer": "deits_cam.pth", "irn": "res50_irn.pth"}
PICTURE_OUTPUTS = {
    "cam": ".npz",
    "ir_label": ".png",
    "ins_seg": ".npz",
    "edge": ".png",
    "sem_seg": ".png",
}
EVAL_STEPS = ("eval_cam", "eval_sem_seg", "eval_ins_seg")
STATES = {"train_cam": "train_cam.state.pth", "train_irn": "train_irn.state.pth"}


def build_sample(root: Path) -> Path:
    """Six training and two validation pictures in the layout of the devkit."""
    return synthetic.build(root, num_train=6, num_val=2, size_range=((44, 56), (56, 68)))


def same_list(path: Path) -> dict[str, Path]:
    """Options that train, validate and infer on one list."""
    return dict.fromkeys(("train_list", "val_list", "infer_list"), path)


def command_line(root: Path, work_dir: Path, *flags: str, **options: Any) -> list[str]:
    """Arguments of a tiny run; `options` replace or extend `TINY`, None leaves one out."""
    options = {**TINY, "voc12_root": root, "work_dir": work_dir, **options}
    given = {name: value for name, value in options.items() if value is not None}
    return [text for name, value in given.items() for text in (f"--{name}", str(value))] + [*flags]


def run(root: Path, work_dir: Path, *flags: str, **options: Any) -> int:
    """Run the pipeline in this process; returns the exit status."""
    try:
        return run_sample.main(command_line(root, work_dir, *flags, **options))
    finally:
        set_log_file(None)


def prepared(root: Path, work_dir: Path, *flags: str, **options: Any) -> Run:
    """A tiny run as the steps get it."""
    return prepare_data(parse_args(command_line(root, work_dir, *flags, **options)))


def changed(run: Run, **options: Any) -> Run:
    """The same run with other options."""
    return replace(run, options=replace(run.options, **options))


def copy_of(work_dir: Path, target: Path, *, without: Sequence[str] = ()) -> Path:
    """Copy a work folder without its log; `without` names more files and folders to leave out."""
    ignore = shutil.ignore_patterns("*.log", *without)
    return Path(shutil.copytree(work_dir, target, ignore=ignore, copy_function=_copy_file))


def _copy_file(source: str, target: str) -> None:
    """Copy with the time of change; weights are only ever replaced, so links save space."""
    if source.endswith(".pth"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def write_list(path: Path, ids: Sequence[str]) -> Path:
    """Write a list of ids."""
    path.write_text("".join(f"{image_id}\n" for image_id in ids), encoding="utf-8")
    return path


def metrics(work_dir: Path) -> dict[str, Any]:
    """Content of metrics.json."""
    return read_json(work_dir / "result" / "metrics.json")


def log_of(work_dir: Path) -> str:
    """Text of the log file."""
    return (work_dir / "sample_train_eval.log").read_text(encoding="utf-8")


def output(work_dir: Path, kind: str, image_id: str) -> Path:
    """Output file of a picture; `kind` is a key of `PICTURE_OUTPUTS`."""
    return work_dir / "result" / kind / f"{image_id}{PICTURE_OUTPUTS[kind]}"


def outputs(work_dir: Path, ids: Sequence[str] = TRAIN_IDS) -> dict[tuple[str, str], Path]:
    """Every output file of the pictures, by (kind, id)."""
    return {(kind, i): output(work_dir, kind, i) for kind in PICTURE_OUTPUTS for i in ids}


def ids_in(folder: Path) -> set[str]:
    """Ids of the outputs in a folder."""
    return {path.stem for path in folder.iterdir() if path.suffix in PICTURE_OUTPUTS.values()}


def times(work_dir: Path) -> dict[Path, int]:
    """When each weight file and picture output was written, in ns."""
    files = [work_dir / "sess" / name for name in WEIGHTS.values()]
    files += outputs(work_dir).values()
    return {path: path.stat().st_mtime_ns for path in files}


def hashes(work_dir: Path, *kinds: str, ids: Sequence[str] = TRAIN_IDS) -> dict[str, str]:
    """SHA-256 of the pictures' outputs of some kinds, all of them by default."""
    paths = [output(work_dir, kind, i) for kind in (kinds or PICTURE_OUTPUTS) for i in ids]
    return {f"{path.parent.name}/{path.name}": sha256_file(path) for path in paths}


def weights(work_dir: Path, name: str) -> dict[str, torch.Tensor]:
    """Tensors of a trained network; `name` is a key of `WEIGHTS`."""
    return state_dict_of(load_checkpoint(work_dir / "sess" / WEIGHTS[name]))


def equal_weights(first: Path, second: Path, *names: str) -> bool:
    """Whether networks of two work folders are equal to the last bit."""
    pairs = [(weights(first, name), weights(second, name)) for name in names]
    return all(
        one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
        for one, two in pairs
    )


def disturb_weights(path: Path) -> None:
    """Replace a weight file by a slightly different one, leaving its record alone."""
    state = load_checkpoint(path)
    save_checkpoint(path, {key: value * 1.01 for key, value in state.items()})
