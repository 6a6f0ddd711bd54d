"""Configuration of DeepLab: the published keys, a few of ours, and where a run keeps its files.

`affects` names the records, see `deeplab.lineage`, that a key is part of. Where a run writes, how
often and with how many processes is part of none, and lists, pictures, labels and first weights
count by their content instead of their names.

Nothing here imports torch, so that the command line answers at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from misc.arguments import LARGEST_SEED
from misc.config import bounded, group, load_config, positive, setting, tree_of
from misc.errors import UserError
from misc.files import expand_user
from misc.maps_io import IGNORE_LABEL
from net.crf import Backend
from voc12.labels import BACKGROUND, MAX_CLASSES, load_classes

Split = Literal["train", "val", "test"]
"""Which list of DATASET.SPLIT is meant; its value names the list."""

RESNET101, BACKBONE = "DeepLabV2_ResNet101_MSC", "DeepLabV2_Backbone_MSC"
IMAGENET, NO_INIT = "imagenet", "none"
FINAL = "final"
VOC_LABELS = Path(__file__).resolve().parent / "data/datasets/voc12/labels.txt"

TRAIN, TEST, CRF, PREDICT = "train", "test", "crf", "predict"
"""Records, by the subcommand that writes them."""

_NONE, _TRAINING, _NETWORK = (), (TRAIN,), (TRAIN, TEST, PREDICT)
_INPUT = (*_NETWORK, CRF)
_STAGES = 4  # of a ResNet
_BACKGROUND_NAMES = (BACKGROUND, f"__{BACKGROUND}__")
_ROOT_KEY = "DATASET.ROOT"
_LEAST_STD = 0.01  # a kernel that sees one pixel; far below, pydensecrf crashes
_UNUSED = ("MODEL.SAVE_DIR", "MODEL.RESULT_DIR", "SOLVER.LOG_DIR")
"""Keys of published configurations; EXP.OUTPUT_DIR and EXP.ID say where a run writes."""


@dataclass(frozen=True)
class Experiment:
    """EXP: what the run is called and where it writes."""

    # folder name of this experiment below OUTPUT_DIR
    ID: str = setting("voc12_resnet_v2", affects=_NONE)
    # models, features, scores and logs go here
    OUTPUT_DIR: Path = setting(Path("data"), affects=_NONE)
    SEED: int = bounded(0, 0, LARGEST_SEED, affects=_TRAINING)  # of every random choice (ours)


@dataclass(frozen=True)
class SplitNames:
    """DATASET.SPLIT: for each purpose a list of the devkit, or a text file with one id per line."""

    TRAIN: str = "train_aug"
    VAL: str = "val"
    TEST: str = "test"


@dataclass(frozen=True)
class Dataset:
    """DATASET: pictures, labels and classes."""

    NAME: Literal["vocaug"] = "vocaug"  # the layout of PASCAL VOC, own data included
    # devkit folder with JPEGImages, such as VOCdevkit/VOC2012
    ROOT: Path | None = setting(None, affects=_NONE)
    # pseudo masks; null: ROOT/pseudo_seg_labels (ours)
    TRAIN_LABELS: Path | None = setting(None, affects=_NONE)
    # class names, lines of `index name`; null: PASCAL VOC's
    LABELS: Path | None = setting(None, affects=_NONE)
    N_CLASSES: int = bounded(21, 2, MAX_CLASSES + 1)  # with background
    IGNORE_LABEL: int = IGNORE_LABEL  # pixels without label; the only value is 255
    SCALES: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)  # drawn from for every training item
    SPLIT: SplitNames = group(SplitNames, affects=_NONE)


@dataclass(frozen=True)
class Loader:
    """DATALOADER: reading pictures."""

    NUM_WORKERS: int = bounded(4, 0)  # processes that load pictures; 0 loads in the main one


@dataclass(frozen=True)
class Mean:
    """IMAGE.MEAN: what is subtracted from the channels, grey levels 0..255."""

    R: float = bounded(122.675, 0, 255)
    G: float = bounded(116.669, 0, 255)
    B: float = bounded(104.008, 0, 255)

    @property
    def bgr(self) -> tuple[float, float, float]:
        """In the order of the network's input."""
        return self.B, self.G, self.R


@dataclass(frozen=True)
class Size:
    """IMAGE.SIZE: sides in pixels."""

    # long side before the random scale; null: as it is
    BASE: int | None = bounded(None, 1, affects=_TRAINING)
    TRAIN: int = bounded(321, 16, affects=_TRAINING)  # side of the training crop
    # long side in `predict`; null: as it is
    TEST: int | None = bounded(513, 1, affects=(PREDICT,))


@dataclass(frozen=True)
class Image:
    """IMAGE: the input of the network."""

    MEAN: Mean = group(Mean, affects=_INPUT)
    SIZE: Size = group(Size)


@dataclass(frozen=True)
class Model:
    """MODEL: the network and its first weights."""

    # DeepLabV2_Backbone_MSC: the same head on any CNN of torchvision or timm (ours)
    NAME: Literal["DeepLabV2_ResNet101_MSC", "DeepLabV2_Backbone_MSC"] = "DeepLabV2_ResNet101_MSC"
    BACKBONE: str | None = None  # name of that CNN, such as resnet18 (ours)
    # its arguments, such as channels: [32, 64, 128, 256] (ours)
    BACKBONE_ARGS: dict[str, Any] = setting({}, unrecorded={})
    N_BLOCKS: tuple[int, ...] = (3, 4, 23, 3)  # residual blocks per stage of the ResNet
    ATROUS_RATES: tuple[int, ...] = (6, 12, 18, 24)  # dilations of the 3x3 classifiers
    # imagenet: no pixel label was ever seen; none: random; or a file, such as the published
    # COCO checkpoint, which did see pixel labels
    INIT_MODEL: Literal["imagenet", "none"] | Path = setting(IMAGENET, affects=_NONE)
    # file with the ImageNet weights; null: downloaded (ours)
    INIT_WEIGHTS: Path | None = setting(None, affects=_NONE)


@dataclass(frozen=True)
class BatchSize:
    """SOLVER.BATCH_SIZE: pictures per iteration, over all processes."""

    TRAIN: int = bounded(5, 1)
    TEST: int = setting(1, affects=_NONE)  # pictures differ in size, so the only value is 1


@dataclass(frozen=True)
class Solver:
    """SOLVER: training."""

    BATCH_SIZE: BatchSize = group(BatchSize)
    ITER_MAX: int = bounded(20000, 1)  # optimiser steps
    ITER_SIZE: int = bounded(2, 1)  # batches whose gradients are added up for one step
    ITER_SAVE: int = bounded(5000, 1, affects=_NONE)  # steps between checkpoints
    # steps between states to resume from (ours)
    ITER_STATE: int = bounded(500, 1, affects=_NONE)
    # steps between log lines and TensorBoard points
    ITER_TB: int = bounded(100, 1, affects=_NONE)
    LR_DECAY: int = bounded(10, 1)  # steps between changes of the learning rate
    LR: float = positive(2.5e-4)  # of the backbone; ASPP weights 10 x, ASPP biases 20 x
    MOMENTUM: float = bounded(0.9, 0, 1)
    OPTIMIZER: Literal["sgd"] = "sgd"
    POLY_POWER: float = positive(0.9)  # rate = LR * (1 - step / ITER_MAX) ** POLY_POWER
    WEIGHT_DECAY: float = bounded(5e-4, 0)  # none on the ASPP biases
    # steps over which the logged loss is averaged
    AVERAGE_LOSS: int = bounded(20, 1, affects=_NONE)
    # auto is bfloat16 (by autocast) where the device is fast at it, tf32 needs CUDA (ours)
    PRECISION: Literal["auto", "float32", "tf32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class Crf:
    """CRF: dense CRF on the class probabilities."""

    ITER_MAX: int = bounded(10, 1)  # mean field steps
    POS_W: float = bounded(3, 0)  # weight of the smoothness kernel
    POS_XY_STD: float = bounded(1, _LEAST_STD)  # its standard deviation, pixels
    BI_W: float = bounded(4, 0)  # weight of the appearance kernel
    BI_XY_STD: float = bounded(67, _LEAST_STD)  # its standard deviation, pixels
    BI_RGB_STD: float = bounded(3, _LEAST_STD)  # its standard deviation, grey levels
    # official: the published code passes the BGR picture minus its mean, cast to uint8 with
    # wrap-around; about 5% of the pixels differ (ours)
    IMAGE: Literal["rgb", "official"] = "rgb"
    # who computes, on the CPU: torch, or pydensecrf (pip install pydensecrf2); equal labels (ours)
    BACKEND: Backend = setting("torch", affects=_NONE)
    # processes; 0: none besides; null: CPU cores (ours)
    N_JOBS: int | None = bounded(None, 0, affects=_NONE)


@dataclass(frozen=True)
class Config:
    """Everything that can be configured; defaults are the published run on PASCAL VOC 2012."""

    EXP: Experiment = group(Experiment)
    DATASET: Dataset = group(Dataset, affects=_TRAINING)
    DATALOADER: Loader = group(Loader, affects=_NONE)
    IMAGE: Image = group(Image)
    MODEL: Model = group(Model, affects=_NETWORK)
    SOLVER: Solver = group(Solver, affects=_TRAINING)
    CRF: Crf = group(Crf, affects=(CRF,))


@dataclass(frozen=True)
class Paths:
    """Where a run keeps its files: OUTPUT_DIR/KIND/voc12/EXP.ID/LIST/...

    `split` is train, val or test; LIST is the name that DATASET.SPLIT has for it.
    """

    config: Config

    def list_name(self, split: Split) -> str:
        """Name of the list of a split, without folder and suffix."""
        name = getattr(self.config.DATASET.SPLIT, split.upper())
        return Path(name).name.removesuffix(".txt")

    @property
    def models_dir(self) -> Path:
        """Folder of the weights."""
        return self._folder("models") / self.list_name("train")

    def checkpoint(self, iteration: int | Literal["final"]) -> Path:
        """Weights after a number of steps, or the last ones."""
        return self.models_dir / f"checkpoint_{iteration}.pth"

    @property
    def state_path(self) -> Path:
        """What a stopped training resumes from."""
        return self.models_dir / "training.state.pth"

    @property
    def logs_dir(self) -> Path:
        """Folder of the log file and of the TensorBoard events of the training."""
        return self._folder("logs") / self.list_name("train")

    def logits_dir(self, split: Split) -> Path:
        """Folder of ID.npy."""
        return self._folder("features") / self.list_name(split) / "logits"

    def prediction_dir(self, split: Split, crf: bool = False) -> Path:
        """Folder of ID.png."""
        return self._scores_dir(split) / f"predictions{_suffix(crf)}"

    def scores_path(self, split: Split, crf: bool = False) -> Path:
        """File of the scores."""
        return self._scores_dir(split) / f"scores{_suffix(crf)}.json"

    def submission_path(self, split: Split, crf: bool = False) -> Path:
        """Archive for the VOC evaluation server."""
        return self._scores_dir(split) / f"submission{_suffix(crf)}.tar.gz"

    @property
    def report_path(self) -> Path:
        """Table of all results."""
        return self._folder("scores") / "report.json"

    @property
    def figure_path(self) -> Path:
        """Pictures beside their labels and predictions."""
        return self._folder("scores") / "figure.png"

    @property
    def page_path(self) -> Path:
        """Scores and pictures in a browser."""
        return self._folder("scores") / "report.html"

    def of_split(self, path: Path, split: Split) -> Path:
        """The file of a split: val has the plain name, the others have theirs in it."""
        return path if split == "val" else path.with_name(f"{path.stem}_{split}{path.suffix}")

    def _scores_dir(self, split: Split) -> Path:
        return self._folder("scores") / self.list_name(split)

    def _folder(self, kind: str) -> Path:
        experiment = self.config.EXP
        return experiment.OUTPUT_DIR / kind / "voc12" / experiment.ID


def load(
    path: Path | str, overrides: Sequence[str] = (), unused: list[str] | None = None
) -> Config:
    """Read and check a configuration.

    Args:
        path: YAML file; relative paths in it belong to its tree, the parent of `configs`.
        overrides: `KEY=VALUE` with dotted keys, such as `SOLVER.ITER_MAX=100`; relative paths in
            them belong to the working folder.
        unused: gets the keys of published configurations that are given and used by nothing.

    Returns:
        The configuration with absolute paths; DATASET.SPLIT holds the path of a list that is an
        existing file, and the name of any other.

    Raises:
        UserError: a key is unknown, a value has the wrong type or does not fit the others.
    """
    path = Path(path)

    def skip(key: str) -> bool:
        if key in _UNUSED and unused is not None and key not in unused:
            unused.append(key)
        return key in _UNUSED

    config = _with_list_files(load_config(Config, path, overrides, skip), path, overrides)
    problems = list(_inconsistencies(config))
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    return config


def dataset_root(config: Config) -> Path:
    """The devkit.

    Raises:
        UserError: none is configured.
    """
    if config.DATASET.ROOT is None:
        raise UserError(
            f"{_ROOT_KEY} is not set; name the devkit folder that holds JPEGImages in the "
            f"configuration or on the command line: {_ROOT_KEY}=/path/to/VOCdevkit/VOC2012."
        )
    return config.DATASET.ROOT


def class_names(config: Config) -> tuple[str, ...]:
    """Names of all classes in label order, `background` first."""
    return read_class_names(config.DATASET.LABELS or VOC_LABELS)


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read a labels.txt: `index name` on each line, with a tab or blanks between.

    Of names with synonyms (`a, b`) the first is taken; `__background__` is `background`. A file
    whose first line has no index is one of run_sample.py's `--classes`: one name of an object class
    per line.

    Raises:
        UserError: the file is unreadable, its indices are not 0, 1, 2.. or its names not distinct.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the class names {path} cannot be read as text ({error}).") from error
    first = next((line.split() for line in lines if line.strip()), [])
    if first and not first[0].isdecimal() and first[0] not in _BACKGROUND_NAMES:
        return (BACKGROUND, *load_classes(path))
    names: list[str] = []
    for number, line in enumerate(lines, start=1):
        index, _, name = line.strip().replace("\t", " ").partition(" ")
        name = name.partition(",")[0].strip()
        if index == name == "":
            continue
        if index != str(len(names)) or not name or name in names:
            raise UserError(
                f"{path}, line {number}: {line.strip()!r} should be `{len(names)} NAME` with a "
                "name of its own; write one class per line, counted from `0 background`."
            )
        names.append(BACKGROUND if name in _BACKGROUND_NAMES else name)
    if names[:1] != [BACKGROUND]:
        raise UserError(f"{path}: class 0 must be {BACKGROUND!r}, not {names[:1]}.")
    return tuple(names)


def _suffix(crf: bool) -> str:
    return "_crf" if crf else ""


def _with_list_files(config: Config, path: Path, overrides: Sequence[str]) -> Config:
    """Make the lists of DATASET.SPLIT absolute that are files; the others are names."""
    overridden = {override.partition("=")[0].strip() for override in overrides}
    splits = {}
    for split, name in vars(config.DATASET.SPLIT).items():
        here = f"DATASET.SPLIT.{split}" in overridden
        file = (Path.cwd() if here else tree_of(path)) / expand_user(name)
        splits[split] = str(file) if file.is_file() else name
    return replace(config, DATASET=replace(config.DATASET, SPLIT=SplitNames(**splits)))


def _inconsistencies(config: Config) -> Iterator[str]:
    """What is wrong although every value has the right type."""
    data, model, solver = config.DATASET, config.MODEL, config.SOLVER
    if Path(config.EXP.ID).name != config.EXP.ID or config.EXP.ID in ("", ".", ".."):
        yield f"EXP.ID is {config.EXP.ID!r}; it becomes a folder, give it a plain name."
    names = class_names(config)
    if len(names) != data.N_CLASSES:
        yield (
            f"DATASET.N_CLASSES is {data.N_CLASSES} but {data.LABELS or VOC_LABELS} names "
            f"{len(names)} classes with background; set DATASET.N_CLASSES={len(names)} or name "
            "the right file with DATASET.LABELS."
        )
    if data.IGNORE_LABEL != IGNORE_LABEL:
        yield f"DATASET.IGNORE_LABEL is {data.IGNORE_LABEL}; label maps use {IGNORE_LABEL}, set it."
    if not data.SCALES or min(data.SCALES) <= 0:
        yield f"DATASET.SCALES is {list(data.SCALES)}; list at least one factor, all above 0."
    if solver.BATCH_SIZE.TEST != 1:
        yield (
            f"SOLVER.BATCH_SIZE.TEST is {solver.BATCH_SIZE.TEST}; set it to 1, as whole pictures "
            "differ in size."
        )
    yield from _model_inconsistencies(model)


def _model_inconsistencies(model: Model) -> Iterator[str]:
    if not model.ATROUS_RATES or min(model.ATROUS_RATES) < 1:
        yield f"MODEL.ATROUS_RATES is {list(model.ATROUS_RATES)}; list dilations of at least 1."
    if len(model.N_BLOCKS) != _STAGES or min(model.N_BLOCKS) < 1:
        yield (
            f"MODEL.N_BLOCKS is {list(model.N_BLOCKS)}; a ResNet has {_STAGES} stages of at least "
            "1 block, as in [3, 4, 23, 3]."
        )
    if model.NAME == BACKBONE and model.BACKBONE is None:
        yield f"MODEL.BACKBONE is not set; {BACKBONE} needs the name of a CNN, such as resnet18."
    if model.NAME == RESNET101 and model.BACKBONE is not None:
        yield (
            f"MODEL.BACKBONE is {model.BACKBONE!r}, which {RESNET101} does not use; set "
            f"MODEL.NAME={BACKBONE} or leave it out."
        )
    if model.NAME == RESNET101 and model.BACKBONE_ARGS:
        yield (
            f"MODEL.BACKBONE_ARGS is {model.BACKBONE_ARGS}, which {RESNET101} does not use; set "
            f"MODEL.NAME={BACKBONE} or leave it out."
        )
    if model.INIT_WEIGHTS is not None and model.INIT_MODEL != IMAGENET:
        yield (
            f"MODEL.INIT_WEIGHTS is {model.INIT_WEIGHTS}, which only MODEL.INIT_MODEL={IMAGENET} "
            f"uses (it is {model.INIT_MODEL}); leave it out."
        )
