"""Every option of the pipeline: type, default, bounds, help, and the records it is part of.

The defaults are the published run. `step.command_line` reads them from the command line.
"""

import argparse
import os
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from misc.arguments import LARGEST_SEED, number, number_list
from misc.config import bounded, positive, setting
from net.crf import Backend
from net.strides import LARGEST_RADIUS
from step.presets import PRESETS

STEP_NAMES = (
    "train_cam",
    "make_cam",
    "eval_cam",
    "cam_to_ir_label",
    "train_irn",
    "make_ins_seg_labels",
    "eval_ins_seg",
    "make_sem_seg_labels",
    "eval_sem_seg",
)
MASK_STEP = "make_sem_seg_labels"
DEFAULT_EVAL_LIST = "train"
CAM_BACKBONE = "cam"
"""Value of --irn_backbone_weights: those of the trained CNN branch."""

# The records, see `step.plan`. Those of the CAMs have parts for the branches that are used.
CAM_CNN, CAM_TRANSFORMER = "make_cam of the CNN", "make_cam of the transformer"
EDGES = "edge maps"
_TRAIN_CAM, _TRAIN_IRN, _CAM, _IR_LABEL = (
    (name,) for name in ("train_cam", "train_irn", "make_cam", "cam_to_ir_label")
)
_INSTANCES, _MASKS = ("make_ins_seg_labels",), ("make_sem_seg_labels",)
_TRANSFORMER = (*_TRAIN_CAM, CAM_TRANSFORMER)
_TRAININGS, _WALKS = (*_TRAIN_CAM, *_TRAIN_IRN), (*_INSTANCES, *_MASKS)

_LARGEST_SCALE = 16  # pictures of VOC are 8000 pixels wide then
_LARGEST_EXP_TIMES = 16  # of the random walk: 65536 steps, far beyond where maps are flat

# What published modules build where their names do not tell, and the option of IRNet's scripts in
# which the same name is another network.
_PUBLISHED_MODULES = {"net.resnet50_cam": "resnet152", "net.deit_cam": "deit_small_patch16_224"}
_IRN_OPTION = "--cam_network"


def _share_of_cores() -> int:
    """Half of this process's cores; torchrun says how many processes share the machine."""
    return (os.cpu_count() or 2) // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


class NetworkAction(argparse.Action):
    """A network by its name, or by the module that the published scripts name.

    CRT's `net.resnet50_cam` builds a ResNet152 and its `net.deit_cam` a DeiT-S; `--cam_network` is
    an option of IRNet's scripts, where `net.resnet50_cam` is a ResNet50.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the name of the network."""
        name = values.removeprefix("net.").removesuffix("_cam").removesuffix("_irn")
        if option_string != _IRN_OPTION:
            name = _PUBLISHED_MODULES.get(values, name)
        setattr(namespace, self.dest, name)


def step_list(text: str) -> tuple[str, ...]:
    """Parse `train_cam,make_cam`."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if name not in STEP_NAMES:
            raise argparse.ArgumentTypeError(
                f"{name} is not a step; steps: {', '.join(STEP_NAMES)}"
            )
    return names


# Makers of fields. No record holds the values of `_other` options: where things lie, how fast, what
# is run or looked at; data and weights, which records know by their content.


def _value(default: Any, affects: tuple[str, ...], help: str, *aliases: str, **more: Any) -> Any:
    return setting(default, affects=affects, help=help, aliases=aliases, **more)


_network = partial(_value, action=NetworkAction)


def _other(default: Any, help: str, *aliases: str, **more: Any) -> Any:
    return _value(default, (), help, *aliases, **more)


def _arguments(affects: tuple[str, ...], help: str) -> Any:
    """Of a network; records, which are older than these options, leave them out where empty."""
    return _value({}, affects, help, unrecorded={})


def _count(default: int, affects: tuple[str, ...], help: str, **more: Any) -> Any:
    return bounded(default, 1, affects=affects, help=help, **more)


def _share(default: float, affects: tuple[str, ...], help: str, **more: Any) -> Any:
    return bounded(default, 0, 1, affects=affects, help=help, **more)


def _positive(default: Any, affects: tuple[str, ...], help: str, **more: Any) -> Any:
    return positive(default, affects=affects, help=help, **more)


def _numbers(text: str, affects: tuple[str, ...], help: str, **more: Any) -> Any:
    """Numbers above 0; `text` is the default as it would be typed."""
    default = number_list(number(float, positive=True))(text)
    return positive(default, affects=affects, help=help, text=text, **more)


def _path(default: str, help: str, *aliases: str) -> Any:
    """A file or folder; a relative one lies in --work_dir."""
    return _other(Path(default), help, *aliases, in_work_dir=True)


@dataclass(frozen=True)
class Options:
    """All options; what each is says its help, how they are grouped `group`."""

    preset: str = _other(
        "paper",
        "defaults to start from: the published run, the same on COCO 2014 (after python -m "
        "voc12.coco ROOT), a laptop run on the built-in sample, or sizes for own photos, which "
        "--photos takes by itself",
        group="run",
        choices=sorted(PRESETS),
    )
    device: str = _other("auto", "auto (GPU when there is one), cpu, cuda, cuda:INDEX")
    num_workers: int = bounded(
        _share_of_cores(),
        0,
        affects=(),
        help="processes that load pictures and run the CRF; 0 does both in the main process",
    )
    seed: int = bounded(0, 0, LARGEST_SEED, affects=_TRAININGS, help="seed of every random choice")
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = _value(
        "float32",
        (*_TRAININGS, *_CAM, *_WALKS, EDGES),
        "arithmetic of the networks; auto is bfloat16 (by autocast) where the device is fast at "
        "it, tf32 is one of CUDA devices",
    )
    overwrite: bool = _other(
        False, "redo what is already there; repeat without it to go on after an interruption"
    )
    force: bool = _other(False, "go on although an input was made with other arguments")
    log_name: str = _other("sample_train_eval", "NAME.log in --work_dir")
    estimate: int | None = bounded(
        None,
        2,
        affects=(),
        alone=8,
        metavar="PICTURES",
        help="only tell what is left of the chosen steps would take: run them on some pictures (8 "
        "where no number is given) in a temporary folder, print a table of time, memory and disk, "
        "and stop; nothing is written",
    )

    voc12_root: str | None = _other(
        None, "devkit folder with JPEGImages, such as VOCdevkit/VOC2012", group="data"
    )
    photos: Path | None = _other(
        None,
        "folder of photos instead: FOLDER/CLASS/*.jpg, or FOLDER/labels.csv beside the "
        "photos; FOLDER/background holds photos of none of the classes",
    )
    photos_long_side: int = _count(
        500, (), "photos with a longer side are worked on in smaller copies, pixels"
    )
    train_list: str = _other("voc12/train_aug.txt", "list file, or name of a list to derive")
    val_list: str = _other(
        "voc12/val.txt",
        "pictures on which both branches are validated each epoch; none switches it off",
    )
    infer_list: str = _other("voc12/train.txt", "pictures that get pseudo masks")
    eval_list: str = _other(
        DEFAULT_EVAL_LIST,
        "list whose pictures are scored, as far as they have outputs and masks; where there "
        "are none, or --infer_list has none of the default list, --infer_list is scored",
        "--chainer_eval_set",
    )
    classes: str | None = _other(None, "own class names, one per line (default: VOC's 20)")
    cls_labels: str | None = _other(
        None, "instead of XML: CSV 'id,name[;name]', JSON {id: [names]} or cls_labels.npy"
    )

    cam_crop_size: int = _count(336, _TRAIN_CAM, "pixels", group="CAM training and inference")
    cam_long_side: tuple[float, ...] = _numbers("210,420", _TRAIN_CAM, "least,greatest pixels")
    cam_batch_size: int = _count(16, _TRAIN_CAM, "pictures per step")
    cam_num_epoches: int = _count(10, _TRAIN_CAM, "epochs")
    cam_learning_rate: float = _positive(0.1, _TRAIN_CAM, "of the CNN; classifier 10 x")
    deit_learning_rate: float | None = _positive(
        None, _TRAIN_CAM, "of the transformer; head 10 x (default: --cam_learning_rate)"
    )
    deit_optimiser: Literal["sgd", "adamw"] = _value(
        "sgd",
        _TRAIN_CAM,
        "of the transformer: sgd as published; adamw where it starts from random weights",
    )
    cam_weight_decay: float = bounded(1e-4, 0, affects=_TRAIN_CAM, help="L2 penalty")
    momentum: float = _share(
        1e-4,
        _TRAININGS,
        "of all three trainings; the published code passes its weight decay where SGD expects "
        "momentum, so 1e-4 is what it ran with; 0.9 is another experiment",
    )
    cam_lambda: float = bounded(
        0.1, 0, affects=_TRAIN_CAM, help="weight of the L1 loss between the branches"
    )
    cam_refine_epoch: int = _count(2, _TRAIN_CAM, "epoch from which the L1 loss acts")
    cam_scales: tuple[float, ...] = _numbers(
        "1.0,0.5,1.5,2.0,0.75,1.25,1.75",
        _CAM,
        "comma-separated factors, each also mirrored",
        max=_LARGEST_SCALE,
    )
    cam_fusion: Literal["transformer", "cnn", "mean", "max"] = _value(
        "transformer",
        _CAM,
        "transformer: class maps x attention, as published; mean, max: of both branches' maps",
    )
    cam_tile_batch: int = _count(32, (), "tiles per transformer pass")
    cam_eval_thres: float = _share(0.15, (), "background score of the seed")

    init: Literal["pretrained", "random"] = _value(
        "pretrained",
        _TRAININGS,
        "where all networks start: published weights or random ones",
        group="CAM networks",
    )
    cnn: str = _network(
        "resnet152",
        (*_TRAIN_CAM, CAM_CNN),
        "torchvision ResNet or timm CNN (NAME or NAME.TAG); the published net.resnet50_cam is "
        "a resnet152, and a resnet50 in --cam_network, an option of IRNet",
        "--cam_network_branch1",
        _IRN_OPTION,
    )
    cnn_args: dict[str, Any] = _arguments(
        (*_TRAIN_CAM, CAM_CNN),
        "arguments for timm or torchvision, such as channels=(32,64,128,256),stem_width=16",
    )
    cnn_weights: str | None = _other(None, "local ImageNet weights of the CNN")
    cnn_frozen_stages: int = bounded(
        3,
        0,
        affects=_TRAIN_CAM,
        help="stages that are not trained, from the stem on; 3 ends after layer2, as published",
    )
    fixed_batchnorm: bool = _value(
        True, _TRAIN_CAM, "batch norm uses its running statistics in training"
    )
    vit: str = _network(
        "deit_small_patch16_224",
        _TRANSFORMER,
        "timm ViT (NAME or NAME.TAG); the published net.deit_cam is this default",
        "--cam_network_branch2",
    )
    vit_weights: str | None = _other(None, "local file with weights of the transformer")
    vit_args: dict[str, Any] = _value(
        {}, _TRANSFORMER, "arguments for timm, such as depth=4,qkv_bias=False"
    )
    num_passes: int = _count(3, _TRANSFORMER, "how often tokens pass the same blocks")
    tile_size: int = _count(224, _TRANSFORMER, "transformer input, pixels")
    tile_stride: int = _count(112, _TRANSFORMER, "between tiles, pixels")

    conf_fg_thres: float = _share(
        0.35, _IR_LABEL, "background score, confident foreground", group="IR labels and IRNet"
    )
    conf_bg_thres: float = _share(0.15, _IR_LABEL, "background score, confident background")
    crf_iterations: int = bounded(
        10,
        0,
        affects=_IR_LABEL,
        help="mean field steps of the dense CRF; with 0 there is none",
        unrecorded=10,  # what ran before there was this option
    )
    crf_backend: Backend = _other(
        "torch",
        "who computes the dense CRF, always on the CPU: pydensecrf (pip install pydensecrf2) gives "
        "equal labels",
    )
    irn_backbone: str = _network(
        "resnet50",
        (*_TRAIN_IRN, *_WALKS, EDGES),
        "torchvision ResNet or timm CNN (NAME or NAME.TAG)",
        "--irn_network",
    )
    irn_backbone_args: dict[str, Any] = _arguments(
        (*_TRAIN_IRN, *_WALKS, EDGES), "its arguments, as --cnn_args"
    )
    irn_backbone_weights: str | None = _other(
        None, "local weights of the frozen backbone, or 'cam' for those of the trained CNN branch"
    )
    irn_crop_size: int = _count(512, _TRAIN_IRN, "pixels")
    irn_batch_size: int = _count(32, _TRAIN_IRN, "pictures per step")
    irn_num_epoches: int = _count(3, _TRAIN_IRN, "epochs")
    irn_learning_rate: float = _positive(0.1, _TRAIN_IRN, "edges; displacements 10 x")
    irn_weight_decay: float = bounded(1e-4, 0, affects=_TRAIN_IRN, help="L2 penalty")
    irn_radius: int = bounded(
        10, 1, LARGEST_RADIUS, affects=_TRAIN_IRN, help="of training pairs, cells of 4 pixels"
    )
    irn_min_input: int = _count(
        512, (*_WALKS, EDGES), "pictures are zero-padded to this side for inference, pixels"
    )

    beta: float = _positive(10.0, _WALKS, "exponent of the affinity", group="random walk")
    exp_times: int = bounded(
        8, 0, _LARGEST_EXP_TIMES, affects=_WALKS, help="2 to the power of this many steps"
    )
    walk_radius: int = bounded(5, 1, LARGEST_RADIUS, affects=_WALKS, help="cells of 4 pixels")
    ins_seg_bg_thres: float = _share(0.25, _INSTANCES, "background score of instances")
    sem_seg_bg_thres: float = _share(0.25, _MASKS, "background score of pseudo masks")

    work_dir: Path = _other(
        Path(),
        "folder of everything that is written",
        group="outputs (relative paths lie in --work_dir)",
    )
    cam_weights_name: Path = _path("sess/res152_cam.pth", "CNN branch", "--cam1_weights_name")
    deit_weights_name: Path = _path(
        "sess/deits_cam.pth", "transformer branch", "--cam2_weights_name"
    )
    irn_weights_name: Path = _path("sess/res50_irn.pth", "IRNet")
    cam_out_dir: Path = _path("result/cam", "fused CAMs")
    ir_label_out_dir: Path = _path("result/ir_label", "labels for IRNet")
    sem_seg_out_dir: Path = _path("result/sem_seg", "pseudo masks")
    ins_seg_out_dir: Path = _path("result/ins_seg", "instances")
    edge_out_dir: Path = _path("result/edge", "edge maps")
    overlay_out_dir: Path = _path("result/overlay", "photos with their pseudo masks over them")
    full_size_out_dir: Path = _path(
        "result/full_size", "masks of photos worked on in smaller copies"
    )
    cache_dir: Path = _path("sess/cache", "derived lists and image labels")
    result_dir: Path = _path("result", "metrics.json, figure.png and report.html")
    overlays: bool = _other(False, "lay every pseudo mask over its photo (on with --photos)")
    figure_num: int = bounded(6, 0, affects=(), help="pictures in figure.png; 0 for none")
    report_num: int = bounded(300, 0, affects=(), help="pictures in report.html; 0 for no page")

    steps: tuple[str, ...] | None = _other(
        None,
        f"exactly these, of {', '.join(STEP_NAMES)}",
        group="steps",
        exclusive="steps",
        parse=step_list,
    )
    from_step: str | None = _other(
        None,
        "this step and those after it that are switched on",
        exclusive="steps",
        choices=STEP_NAMES,
        metavar="STEP",
    )
    train_cam_pass: bool = _other(True, "run train_cam")
    make_cam_pass: bool = _other(True, "run make_cam")
    eval_cam_pass: bool = _other(True, "run eval_cam")
    cam_to_ir_label_pass: bool = _other(True, "run cam_to_ir_label")
    train_irn_pass: bool = _other(True, "run train_irn")
    make_ins_seg_pass: bool = _other(False, "run make_ins_seg_labels")
    eval_ins_seg_pass: bool = _other(False, "run eval_ins_seg")
    make_sem_seg_pass: bool = _other(True, "run make_sem_seg_labels")
    eval_sem_seg_pass: bool = _other(True, "run eval_sem_seg")


PATH_OPTIONS = tuple(item.name for item in fields(Options) if "in_work_dir" in item.metadata)
"""Files and folders that lie in --work_dir unless their path is absolute."""


def switch_name(step: str) -> str:
    """Name of the on/off switch of a step, such as `train_cam_pass`."""
    return f"{step.removesuffix('_labels')}_pass"


def is_on(options: Options, step: str) -> bool:
    """Whether the switch of a step is on."""
    return getattr(options, switch_name(step))


def selected_steps(options: Options) -> tuple[str, ...]:
    """Names of the steps to run, in order."""
    if options.steps is not None:
        return tuple(step for step in STEP_NAMES if step in options.steps)
    start = STEP_NAMES.index(options.from_step) if options.from_step else 0
    return tuple(step for step in STEP_NAMES[start:] if is_on(options, step))
