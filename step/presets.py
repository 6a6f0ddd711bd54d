"""Presets of the pipeline: what differs from the published run, by option.

Any option given explicitly wins over a preset.
"""

from pathlib import Path
from typing import Any

ROOT_FIELD = "{voc12_root}"
"""Stands for the value of --voc12_root in the paths of a preset."""

SAMPLE_WEIGHTS = Path(__file__).resolve().parents[1] / "voc12" / "sample" / "weights"
SAMPLE_CNN, SAMPLE_VIT = (SAMPLE_WEIGHTS / f"{name}.safetensors" for name in ("cnn", "vit"))
"""What the sample starts from, in place of ImageNet weights; `step.pretrain` makes them."""
_SMALL_CNN = {"channels": (32, 64, 128, 256), "stem_width": 16}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # COCO 2014 as `python -m voc12.coco ROOT` writes it. No run of CRT on COCO is published, so
    # networks, trainings and thresholds stay those of VOC. ReCAM and LPCAM, whose scripts run IRNet
    # on both, train CAMs and IRNet on COCO as on VOC; LPCAM keeps its thresholds, too, and those
    # that ReCAM lowers (by 0.03 to 0.06) are for its own maps.
    "coco": {
        "classes": f"{ROOT_FIELD}/classes.txt",
        "cls_labels": f"{ROOT_FIELD}/labels.csv",
        "train_list": "train2014",
        "val_list": "val2014",
        "infer_list": "train2014",  # what DeepLab trains on
        "eval_list": "train2014",  # as train for VOC: the list that gets the masks
    },
    # Photos of everyday size on a laptop or one GPU, from ImageNet weights: smaller networks, crops
    # and batches. The rates, momentum and weights of losses are those of a trial on 240 real
    # photos with EfficientNet-Lite0 (mask mIoU 47.5 over background and five animals).
    "photos": {
        "cnn": "resnet50",  # 98 MB instead of 230, and a third of the arithmetic
        "vit": "deit_tiny_patch16_224",  # a quarter of DeiT-S
        "cam_crop_size": 224,  # one tile of the transformer, where 336 takes four
        "cam_long_side": "160,320",
        "cam_batch_size": 8,  # under 3 GB, and still some steps per epoch on a few dozen photos
        "cam_learning_rate": 0.01,
        "momentum": 0.9,
        "deit_optimiser": "adamw",  # a plain SGD needs the published batch and length
        "deit_learning_rate": 2e-4,
        "cam_lambda": 0.02,
        "cam_scales": "1.0,0.5,1.5",  # four times as fast as the seven published ones
        "irn_backbone_weights": "cam",  # no second download, and it works with any --cnn_weights
        "irn_crop_size": 320,
        "irn_min_input": 320,
        "irn_batch_size": 8,
    },
    # The built-in sample on a laptop: small versions of the same networks, from a miniature of
    # ImageNet weights. Pictures have two fifths of VOC's size, so patches and tiles have half the
    # published one: 14 x 14 tokens a tile. Rates, scores and steps of the walk were chosen on
    # another set of 120 painted pictures, not on the lists that are reported.
    "demo": {
        "num_workers": 0,  # on two cores loader processes get in the way of the networks
        "train_list": "train",
        "val_list": "val",
        "infer_list": "train",
        "cnn": "resnet10t",
        "cnn_args": _SMALL_CNN,
        "cnn_weights": str(SAMPLE_CNN),
        "vit": "deit_tiny_patch16_224",
        "vit_args": {"depth": 4, "embed_dim": 96, "num_heads": 3, "patch_size": 8},
        "vit_weights": str(SAMPLE_VIT),
        "tile_size": 112,
        "tile_stride": 56,
        # One tile a training crop instead of four: in the same time the transformer makes four
        # times the steps, and needs them (900 here, 6600 in the published run).
        "cam_crop_size": 112,
        "cam_long_side": "96,160",
        "cam_batch_size": 4,
        "cam_num_epoches": 30,
        # Plain SGD is too slow for so few steps.
        "momentum": 0.9,
        "cam_learning_rate": 0.01,
        "deit_learning_rate": 1e-3,
        "deit_optimiser": "adamw",
        "cam_scales": "1.0,0.75,1.25",  # a third of the time of the published seven
        # The attention of four small blocks has sharper peaks than that of DeiT-S.
        "cam_eval_thres": 0.1,
        "sem_seg_bg_thres": 0.2,
        "irn_backbone": "resnet10t",
        "irn_backbone_args": _SMALL_CNN,
        "irn_backbone_weights": "cam",
        "irn_crop_size": 160,
        "irn_batch_size": 8,
        "irn_num_epoches": 4,
        "irn_min_input": 16,
        # Pictures two fifths the size of VOC's need a walk of fewer steps.
        "exp_times": 4,
        "make_ins_seg_pass": True,
        "eval_ins_seg_pass": True,
    },
}

# Without any first weights nothing may stay frozen, and only small networks learn anything; of the
# transformer's maps nothing can be had, as no loss asks its attention to find objects.
_FROM_SCRATCH: dict[str, Any] = {
    "cnn": "resnet10t",
    "cnn_frozen_stages": 0,
    "fixed_batchnorm": False,
    "vit_args": {"depth": 2, "embed_dim": 128, "num_heads": 2},
    "cam_fusion": "cnn",
    "cam_num_epoches": 24,
    "cam_learning_rate": 0.06,
    "deit_learning_rate": 3e-4,
    "irn_backbone": "resnet10t",
}
FROM_RANDOM_WEIGHTS: dict[str, dict[str, Any]] = {
    "photos": _FROM_SCRATCH,
    "demo": {
        **_FROM_SCRATCH,
        "cnn_args": {},
        "cnn_weights": None,
        "vit_weights": None,
        "irn_backbone_args": {},
        "tile_size": 128,
        "tile_stride": 64,
        "cam_crop_size": 128,
        "cam_long_side": "112,192",
        "cam_batch_size": 8,
        "momentum": 0.9,
        "cam_lambda": 0.02,
    },
}
"""What a preset changes more under `--init random`."""

PHOTO_DATA: dict[str, Any] = {
    "train_list": "photos",
    "val_list": "none",
    "infer_list": "photos",
    "eval_list": "photos",
    "eval_cam_pass": False,  # there are no masks to score with
    "eval_sem_seg_pass": False,
    "overlays": True,
}
"""What `--photos` changes, whatever the preset: one list of all pictures, and nothing to score."""


def defaults(preset: str, init: str | None, photos: bool) -> dict[str, Any]:
    """The defaults that a preset and the kind of data and weights change, by option."""
    more = FROM_RANDOM_WEIGHTS.get(preset, {}) if init == "random" else {}
    return {**PRESETS[preset], **more, **(PHOTO_DATA if photos else {})}
