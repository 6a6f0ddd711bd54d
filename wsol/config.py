"""Configuration of WSOL: the published keys, a few of ours, and where a run keeps its files.

A key with `affects=()` is no part of the record of a training, see `wsol.lineage`: the weights do
not depend on it, or what it names counts by content.

Nothing here imports torch, so that the command line answers at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from misc.arguments import LARGEST_SEED
from misc.config import bounded, group, load_config, positive, setting, tree_of
from misc.errors import UserError

CamSource = Literal["transformer", "cnn", "mean"]
Dataset = Literal["CUB", "FOLDER", "SYNTHETIC"]
Split = Literal["train", "test"]

TRAINING = "train_wsol"
"""The record of a training, and what its log lines start with."""

_CHANNELS = 3
_CONFORMER = "conformer"
_ILSVRC = ("imagenet", "ilsvrc")
_UNUSED = (
    *("BASIC.GPU_ID", "BASIC.DISP_FREQ", "BASIC.TIME", "BASIC.ROOT_DIR"),
    *("BASIC.BACKUP_CODES", "BASIC.BACKUP_LIST", "MODEL.LOCALIZER_DIR"),
    *("DATA.SCALE_SIZE", "DATA.SCALE_LENGTH", "TRAIN.ALPHA", "TRAIN.BETA"),
    *("TEST.CKPT_DIR", "TEST.SAVE_CAMS"),
    "SOLVER.START_LR",  # --lr rules
    "SOLVER.WEIGHT_DECAY",  # VIT_WEIGHT_DECAY and CNN_WEIGHT_DECAY rule
    "SOLVER.MUMENTUM",  # AdamW has none; CNN_MOMENTUM rules
    *("CUDNN", "CUDNN.BENCHMARK", "CUDNN.DETERMINISTIC", "CUDNN.ENABLE"),  # always deterministic
)
"""Published keys that nothing reads here."""
_TSCAM = "_tscam"  # marks the published architectures; timm's names lack it


@dataclass(frozen=True)
class Basic:
    """BASIC: the run as such."""

    SEED: int = bounded(26, 0, LARGEST_SEED)  # of every random choice
    # processes that load pictures; 0 loads in the main one
    NUM_WORKERS: int = bounded(4, 0, affects=())
    # all outputs; null: ckpt/DATASET/NAME_OF_THE_YAML beside configs
    SAVE_DIR: Path | None = setting(None, affects=())


@dataclass(frozen=True)
class Model:
    """MODEL: the two networks and what is localised with."""

    ARCH: str = "deit_tscam_small_patch16_224"  # or any ViT of timm with a class token
    CAM_THR: float = bounded(0.1, 0, 1)  # share of a map's maximum above which it is object
    # how many of the best classes Loc@1 looks at: published, the only value is 1
    TOP_K: int = bounded(1, 1, 1)
    CNN: str = "resnet50"  # torchvision ResNet or timm CNN, also with a tag (ours)
    INIT: Literal["pretrained", "random"] = "pretrained"  # ImageNet weights or none (ours)
    # file with the ImageNet weights; null: downloaded (ours)
    VIT_WEIGHTS: Path | None = setting(None, affects=())
    CNN_WEIGHTS: Path | None = setting(None, affects=())  # likewise of the CNN (ours)
    VIT_ARGS: dict[str, Any] = setting({})  # for timm, such as depth: 4 (ours)
    # likewise of the CNN, such as channels: [32, 64, 128, 256] (ours)
    CNN_ARGS: dict[str, Any] = setting({}, unrecorded={})
    DROP_PATH: float = bounded(0.1, 0, 0.99)  # of the transformer in training (ours)
    CNN_FROZEN_STAGES: int = bounded(3, 0, 5)  # not trained, from the stem on; 3: to layer2 (ours)
    FIXED_BATCHNORM: bool = True  # batch norm uses its running statistics in training (ours)
    # which maps give the boxes: class maps x attention as published, the CNN's, or both (ours)
    CAM: CamSource = "transformer"

    @property
    def vit(self) -> str:
        """timm's name of the transformer."""
        return self.ARCH.replace(_TSCAM, "")


@dataclass(frozen=True)
class Data:
    """DATA: pictures and classes."""

    # FOLDER: class subfolders and an optional boxes.csv; SYNTHETIC: the built-in set, made in
    # DATADIR when it is not there (both ours)
    DATASET: str = "CUB"
    DATADIR: Path = setting(Path("data/CUB_200_2011"), affects=())
    NUM_CLASSES: int = bounded(200, 1)
    RESIZE_SIZE: int = bounded(256, 1)  # pictures are resized to this square for training, pixels
    CROP_SIZE: int = bounded(224, 1)  # side of the training crop and of test pictures
    IMAGE_MEAN: tuple[float, ...] = (0.485, 0.456, 0.406)  # of RGB pictures in [0, 1]
    IMAGE_STD: tuple[float, ...] = positive((0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Train:
    """TRAIN: batches of the training."""

    BATCH_SIZE: int = bounded(64, 1)  # pictures per step, over all processes


@dataclass(frozen=True)
class Test:
    """TEST: evaluation."""

    BATCH_SIZE: int = bounded(64, 1, affects=())
    # write heat maps with true and estimated boxes
    SAVE_BOXED_IMAGE: bool = setting(False, affects=())
    SPLIT: Split = setting("test", affects=())  # what test_cam.py evaluates (ours)
    # more thresholds that test_cam.py scores beside CAM_THR, from maps computed once (ours)
    THRESHOLDS: tuple[float, ...] = bounded(
        (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5), 0, 1, affects=()
    )
    REPORT_NUM: int = bounded(300, 0)  # pictures in report.html; 0 for no page (ours)
    TEN_CROPS: bool = False  # published; the only value is false


@dataclass(frozen=True)
class Solver:
    """SOLVER: training."""

    LR_STEPS: tuple[int, ...] = bounded((30,), 1)  # rates fall at epochs divisible by one of these
    NUM_EPOCHS: int = bounded(60, 1, affects=())  # so that a finished run can be trained on
    LR_FACTOR: float = positive(0.1)  # by which they fall
    VIT_WEIGHT_DECAY: float = bounded(0.05, 0)  # of AdamW, transformer; --weight-decay
    CNN_LR: float = positive(0.005)  # of SGD, CNN; its classifier 10 x (ours)
    CNN_WEIGHT_DECAY: float = bounded(1e-4, 0)  # (ours)
    CNN_MOMENTUM: float = bounded(0.0, 0, 1)  # (ours)
    DECAY_CNN: bool = False  # whether the CNN's rate falls, too; in the published run it does not
    REFINE_EPOCHS: int = bounded(5, 1)  # the L1 loss is off and on in turn for so many epochs
    REFINE_WEIGHT: float = bounded(1.0, 0)  # of the L1 loss between both networks' maps (ours)
    # auto is bfloat16 (by autocast) where the device is fast at it, tf32 needs CUDA (ours)
    PRECISION: Literal["auto", "float32", "tf32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class Config:
    """Everything that can be configured; defaults are the published run on CUB-200-2011."""

    BASIC: Basic = group(Basic)
    MODEL: Model = group(Model)
    DATA: Data = group(Data)
    TRAIN: Train = group(Train)
    TEST: Test = group(Test)
    SOLVER: Solver = group(Solver)


@dataclass(frozen=True)
class Paths:
    """Where a run keeps its files: all below BASIC.SAVE_DIR."""

    folder: Path

    @property
    def log(self) -> Path:
        """Everything that the training said."""
        return self.folder / "train.log"

    @property
    def epoch_log(self) -> Path:
        """One line of JSON per finished epoch."""
        return self.folder / "log.jsonl"

    @property
    def board(self) -> Path:
        """Folder of the TensorBoard events."""
        return self.folder / "tensorboard"

    @property
    def state(self) -> Path:
        """What the training resumes from."""
        return self.folder / "training.state.pth"

    @property
    def last(self) -> Path:
        """Weights of the last finished epoch."""
        return self.folder / "model_last.pth"

    @property
    def best_loc(self) -> Path:
        """Weights of the epoch with the highest Top-1 Loc."""
        return self.folder / "model_best_top1_loc.pth"

    @property
    def best_gt_known(self) -> Path:
        """Weights of the epoch with the highest GT-known Loc."""
        return self.folder / "model_best.pth"

    @property
    def weights(self) -> tuple[Path, ...]:
        """All files of weights."""
        return self.last, self.best_loc, self.best_gt_known

    @property
    def results(self) -> Path:
        """Scores of the training run with its arguments and surroundings."""
        return self.folder / "results.json"

    @property
    def figure(self) -> Path:
        """What `visualize.py` draws."""
        return self.folder / "figure.png"

    def evaluation(self, split: Split) -> Path:
        """Scores that `test_cam.py` wrote."""
        return self.folder / f"test_{split}.json"

    def page(self, split: Split) -> Path:
        """Scores and pictures of what `test_cam.py` evaluated, in a browser."""
        return self.folder / ("report.html" if split == "test" else f"report_{split}.html")

    def boxed_images(self, split: Split) -> Path:
        """Folder of the heat maps with boxes."""
        return self.folder / f"boxed_{split}"


def load(
    path: Path | str, overrides: Sequence[str] = (), unused: list[str] | None = None
) -> Config:
    """Read and check a configuration.

    Args:
        path: YAML file; relative paths in it belong to its tree, the parent of `configs`.
        overrides: `KEY=VALUE` with dotted keys, such as `MODEL.CAM_THR=0.1`; relative paths in
            them belong to the working folder.
        unused: gets the published keys that are given and used by nothing.

    Returns:
        The configuration with absolute paths; BASIC.SAVE_DIR is filled in.

    Raises:
        UserError: a key is unknown, a value has the wrong type or does not fit the others.
    """
    path = Path(path)

    def skip(key: str) -> bool:
        if key in _UNUSED and unused is not None and key not in unused:
            unused.append(key)
        return key in _UNUSED

    config = load_config(Config, path, overrides, skip)
    problems = list(_inconsistencies(config))
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    if config.BASIC.SAVE_DIR is None:
        folder = tree_of(path) / "ckpt" / config.DATA.DATASET / path.stem
        config = replace(config, BASIC=replace(config.BASIC, SAVE_DIR=folder))
    return config


def paths_of(config: Config) -> Paths:
    """Where the run of a loaded configuration keeps its files."""
    assert config.BASIC.SAVE_DIR is not None, "filled in by load"
    return Paths(config.BASIC.SAVE_DIR)


def _inconsistencies(config: Config) -> Iterator[str]:
    """What is wrong although every value has the right type."""
    data, arch = config.DATA, config.MODEL.ARCH
    if data.DATASET.lower() in _ILSVRC:
        yield (
            f"DATA.DATASET {data.DATASET}: the lists and boxes of ILSVRC are not read here; give "
            "DATA.DATASET FOLDER, for train/CLASS/*, val/CLASS/* and one box each in boxes.csv."
        )
    elif data.DATASET not in get_args(Dataset):
        yield (f"DATA.DATASET is {data.DATASET!r}; expected one of {', '.join(get_args(Dataset))}.")
    if arch.startswith(_CONFORMER):
        yield (
            f"MODEL.ARCH {arch}: Conformer is not built; use deit_tscam_tiny_, small_ or "
            "base_patch16_224, or any plain ViT of timm."
        )
    depth = config.MODEL.VIT_ARGS.get("depth")
    if isinstance(depth, int) and depth < 1:
        yield f"MODEL.VIT_ARGS has depth {depth}; a transformer has at least 1 block."
    if config.TEST.TEN_CROPS:
        yield "TEST.TEN_CROPS is true, but averaging ten crops is not built; leave it out."
    for name in ("IMAGE_MEAN", "IMAGE_STD"):
        values = getattr(data, name)
        if len(values) != _CHANNELS:
            yield f"DATA.{name} is {list(values)}; give {_CHANNELS} numbers, for red, green, blue."
    if data.CROP_SIZE > data.RESIZE_SIZE:
        yield (
            f"DATA.CROP_SIZE {data.CROP_SIZE} is more than DATA.RESIZE_SIZE {data.RESIZE_SIZE}, "
            "out of which it is cut; raise the latter."
        )
