"""Every option of the pipeline, by group: name, type, default, help.

The defaults are the published run.
"""

import argparse
import os

from misc.arguments import (
    BooleanAction,
    HelpFormatter,
    NetworkAction,
    exp_times,
    fraction,
    keyword_arguments,
    non_negative_float,
    non_negative_int,
    number_list,
    positive_float,
    positive_int,
    scale_list,
    seed,
)
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
# Published names of the switches, where they differ from the step's name.
_SWITCHES = {
    "make_ins_seg_labels": "make_ins_seg_pass",
    "make_sem_seg_labels": "make_sem_seg_pass",
}
_OFF_BY_DEFAULT = ("make_ins_seg_labels", "eval_ins_seg")
# Files and folders below --work_dir: default, help, and the published name where it differs.
PATH_OPTIONS: dict[str, tuple[str, ...]] = {
    "cam_weights_name": ("sess/res152_cam.pth", "CNN branch", "--cam1_weights_name"),
    "deit_weights_name": ("sess/deits_cam.pth", "transformer branch", "--cam2_weights_name"),
    "irn_weights_name": ("sess/res50_irn.pth", "IRNet"),
    "cam_out_dir": ("result/cam", "fused CAMs"),
    "ir_label_out_dir": ("result/ir_label", "labels for IRNet"),
    "sem_seg_out_dir": ("result/sem_seg", "pseudo masks"),
    "ins_seg_out_dir": ("result/ins_seg", "instances"),
    "edge_out_dir": ("result/edge", "edge maps"),
    "overlay_out_dir": ("result/overlay", "photos with their pseudo masks over them"),
    "full_size_out_dir": ("result/full_size", "masks of photos worked on in smaller copies"),
    "cache_dir": ("sess/cache", "derived lists and image labels"),
    "result_dir": ("result", "metrics.json, figure.png and report.html"),
}

SAMPLE_FOLDER = "sess/sample_voc12"  # where --preset demo builds its data, in --work_dir
PHOTOS_FOLDER = "sess/photos"  # where --photos keeps its links, in --work_dir
SAMPLE_PICTURES = {"num_train": 120, "num_val": 32}


def radius(text: str) -> int:
    """Parse a radius of affinities in 1..64."""
    value = positive_int(text)
    if value > LARGEST_RADIUS:
        raise argparse.ArgumentTypeError(f"{text} is above {LARGEST_RADIUS}")
    return value


def switch_name(step: str) -> str:
    """Name of the on/off switch of a step, such as `train_cam_pass`."""
    return _SWITCHES.get(step, f"{step}_pass")


def step_list(text: str) -> tuple[str, ...]:
    """Parse `train_cam,make_cam`."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if name not in STEP_NAMES:
            raise argparse.ArgumentTypeError(
                f"{name} is not a step; steps: {', '.join(STEP_NAMES)}"
            )
    return names


def build_parser() -> argparse.ArgumentParser:
    """The parser of run_sample.py; every group is one function below."""
    parser = argparse.ArgumentParser(
        prog="run_sample.py",
        usage="run_sample.py --voc12_root PATH [options] | --photos FOLDER [options] | "
        "--preset demo [options]",
        description="From image-level labels to pseudo masks: CRT in nine steps.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,  # an abbreviated --preset would not be seen by `parse_args`
    )
    for add in (_run, _data, _cam, _cam_networks, _irn, _random_walk, _outputs, _steps):
        add(parser)
    return parser


def _run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument(
        "--preset",
        default="paper",
        choices=sorted(PRESETS),
        help="defaults to start from: the published run, the same on COCO 2014 (after python -m "
        "voc12.coco ROOT), a laptop run on the built-in sample, or sizes for own photos, which "
        "--photos takes by itself",
    )
    group.add_argument(
        "--device", default="auto", help="auto (GPU when there is one), cpu, cuda, cuda:INDEX"
    )
    group.add_argument(
        "--num_workers",
        type=non_negative_int,
        default=(os.cpu_count() or 2) // 2,
        help="processes that load pictures and run the CRF; 0 does both in the main process",
    )
    group.add_argument("--seed", type=seed, default=0, help="seed of every random choice")
    group.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "bfloat16"),
        help="arithmetic of the networks (bfloat16 by autocast)",
    )
    group.add_argument(
        "--overwrite",
        action=BooleanAction,
        default=False,
        help="redo what is already there; repeat without it to go on after an interruption",
    )
    group.add_argument(
        "--force",
        action=BooleanAction,
        default=False,
        help="go on although an input was made with other arguments",
    )
    group.add_argument("--log_name", default="sample_train_eval", help="NAME.log in --work_dir")


def _data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--voc12_root", help="devkit folder with JPEGImages, such as VOCdevkit/VOC2012"
    )
    group.add_argument(
        "--photos",
        help="folder of photos instead: FOLDER/CLASS/*.jpg, or FOLDER/labels.csv beside the "
        "photos; FOLDER/background holds photos of none of the classes",
    )
    group.add_argument(
        "--photos_long_side",
        type=positive_int,
        default=500,
        help="photos with a longer side are worked on in smaller copies, pixels",
    )
    group.add_argument(
        "--train_list", default="voc12/train_aug.txt", help="list file, or name of a list to derive"
    )
    group.add_argument(
        "--val_list",
        default="voc12/val.txt",
        help="pictures on which both branches are validated each epoch; none switches it off",
    )
    group.add_argument(
        "--infer_list", default="voc12/train.txt", help="pictures that get pseudo masks"
    )
    group.add_argument(
        "--eval_list",
        "--chainer_eval_set",
        default=DEFAULT_EVAL_LIST,
        help="list whose pictures are scored, as far as they have outputs and masks; where there "
        "are none, or --infer_list has none of the default list, --infer_list is scored",
    )
    group.add_argument("--classes", help="own class names, one per line (default: VOC's 20)")
    group.add_argument(
        "--cls_labels",
        help="instead of XML: CSV 'id,name[;name]', JSON {id: [names]} or cls_labels.npy",
    )


def _cam(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("CAM training and inference")
    group.add_argument("--cam_crop_size", type=positive_int, default=336, help="pixels")
    group.add_argument(
        "--cam_long_side", type=number_list, default="210,420", help="least,greatest pixels"
    )
    group.add_argument("--cam_batch_size", type=positive_int, default=16, help="pictures per step")
    group.add_argument("--cam_num_epoches", type=positive_int, default=10, help="epochs")
    group.add_argument(
        "--cam_learning_rate", type=positive_float, default=0.1, help="of the CNN; classifier 10 x"
    )
    group.add_argument(
        "--deit_learning_rate",
        type=positive_float,
        help="of the transformer; head 10 x (default: --cam_learning_rate)",
    )
    group.add_argument(
        "--deit_optimiser",
        default="sgd",
        choices=("sgd", "adamw"),
        help="of the transformer: sgd as published; adamw where it starts from random weights",
    )
    group.add_argument(
        "--cam_weight_decay", type=non_negative_float, default=1e-4, help="L2 penalty"
    )
    group.add_argument(
        "--momentum",
        type=fraction,
        default=1e-4,
        help="of all three trainings; the published code passes its weight decay where SGD expects "
        "momentum, so 1e-4 is what it ran with; 0.9 is another experiment",
    )
    group.add_argument(
        "--cam_lambda",
        type=non_negative_float,
        default=0.1,
        help="weight of the L1 loss between the branches",
    )
    group.add_argument(
        "--cam_refine_epoch", type=positive_int, default=2, help="epoch from which the L1 loss acts"
    )
    group.add_argument(
        "--cam_scales",
        type=scale_list,
        default="1.0,0.5,1.5,2.0,0.75,1.25,1.75",
        help="comma-separated factors, each also mirrored",
    )
    group.add_argument(
        "--cam_fusion",
        default="transformer",
        choices=("transformer", "cnn", "mean", "max"),
        help="transformer: class maps x attention, as published; mean, max: of both branches' maps",
    )
    group.add_argument(
        "--cam_tile_batch", type=positive_int, default=32, help="tiles per transformer pass"
    )
    group.add_argument(
        "--cam_eval_thres", type=fraction, default=0.15, help="background score of the seed"
    )


def _cam_networks(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("CAM networks")
    group.add_argument(
        "--init",
        default="pretrained",
        choices=("pretrained", "random"),
        help="where all networks start: published weights or random ones",
    )
    group.add_argument(
        "--cnn",
        "--cam_network_branch1",
        "--cam_network",
        action=NetworkAction,
        default="resnet152",
        help="torchvision ResNet or timm CNN (NAME or NAME.TAG); the published net.resnet50_cam is "
        "a resnet152, and a resnet50 in --cam_network, an option of IRNet",
    )
    group.add_argument("--cnn_weights", help="local ImageNet weights of the CNN")
    group.add_argument(
        "--cnn_frozen_stages",
        type=non_negative_int,
        default=3,
        help="stages that are not trained, from the stem on; 3 ends after layer2, as published",
    )
    group.add_argument(
        "--fixed_batchnorm",
        action=BooleanAction,
        default=True,
        help="batch norm uses its running statistics in training",
    )
    group.add_argument(
        "--vit",
        "--cam_network_branch2",
        action=NetworkAction,
        default="deit_small_patch16_224",
        help="timm ViT (NAME or NAME.TAG); the published net.deit_cam is this default",
    )
    group.add_argument("--vit_weights", help="local file with weights of the transformer")
    group.add_argument(
        "--vit_args",
        type=keyword_arguments,
        default={},
        help="arguments for timm, such as depth=4,qkv_bias=False",
    )
    group.add_argument(
        "--num_passes", type=positive_int, default=3, help="how often tokens pass the same blocks"
    )
    group.add_argument(
        "--tile_size", type=positive_int, default=224, help="transformer input, pixels"
    )
    group.add_argument(
        "--tile_stride", type=positive_int, default=112, help="between tiles, pixels"
    )


def _irn(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("IR labels and IRNet")
    group.add_argument(
        "--conf_fg_thres",
        type=fraction,
        default=0.35,
        help="background score, confident foreground",
    )
    group.add_argument(
        "--conf_bg_thres",
        type=fraction,
        default=0.15,
        help="background score, confident background",
    )
    group.add_argument(
        "--irn_backbone",
        "--irn_network",
        action=NetworkAction,
        default="resnet50",
        help="torchvision ResNet or timm CNN (NAME or NAME.TAG)",
    )
    group.add_argument(
        "--irn_backbone_weights",
        help="local weights of the frozen backbone, or 'cam' for those of the trained CNN branch",
    )
    group.add_argument("--irn_crop_size", type=positive_int, default=512, help="pixels")
    group.add_argument("--irn_batch_size", type=positive_int, default=32, help="pictures per step")
    group.add_argument("--irn_num_epoches", type=positive_int, default=3, help="epochs")
    group.add_argument(
        "--irn_learning_rate", type=positive_float, default=0.1, help="edges; displacements 10 x"
    )
    group.add_argument(
        "--irn_weight_decay", type=non_negative_float, default=1e-4, help="L2 penalty"
    )
    group.add_argument(
        "--irn_radius", type=radius, default=10, help="of training pairs, cells of 4 pixels"
    )
    group.add_argument(
        "--irn_min_input",
        type=positive_int,
        default=512,
        help="pictures are zero-padded to this side for inference, pixels",
    )


def _random_walk(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("random walk")
    group.add_argument("--beta", type=positive_float, default=10.0, help="exponent of the affinity")
    group.add_argument(
        "--exp_times", type=exp_times, default=8, help="2 to the power of this many steps"
    )
    group.add_argument("--walk_radius", type=radius, default=5, help="cells of 4 pixels")
    group.add_argument(
        "--ins_seg_bg_thres", type=fraction, default=0.25, help="background score of instances"
    )
    group.add_argument(
        "--sem_seg_bg_thres", type=fraction, default=0.25, help="background score of pseudo masks"
    )


def _outputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("outputs (relative paths lie in --work_dir)")
    group.add_argument("--work_dir", default=".", help="folder of everything that is written")
    for name, (default, text, *aliases) in PATH_OPTIONS.items():
        group.add_argument(f"--{name}", *aliases, default=default, help=text)
    group.add_argument(
        "--overlays",
        action=BooleanAction,
        default=False,
        help="lay every pseudo mask over its photo (on with --photos)",
    )
    group.add_argument(
        "--figure_num", type=non_negative_int, default=6, help="pictures in figure.png; 0 for none"
    )
    group.add_argument(
        "--report_num",
        type=non_negative_int,
        default=300,
        help="pictures in report.html; 0 for no page",
    )


def _steps(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("steps")
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--steps", type=step_list, help=f"exactly these, of {', '.join(STEP_NAMES)}"
    )
    either.add_argument(
        "--from_step",
        choices=STEP_NAMES,
        metavar="STEP",
        help="this step and those after it that are switched on",
    )
    for step in STEP_NAMES:
        group.add_argument(
            f"--{switch_name(step)}",
            action=BooleanAction,
            default=step not in _OFF_BY_DEFAULT,
            help=f"run {step}",
        )
