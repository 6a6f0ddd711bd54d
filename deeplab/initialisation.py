"""The first weights of DeepLab, and what they mean for calling a result weakly supervised.

MODEL.INIT_MODEL is `imagenet` (image labels only: no pixel label was ever seen), `none` (random) or
a file. Whatever is taken is said in the log and returned for the record of the run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from deeplab.config import IMAGENET, NO_INIT, Config
from deeplab.model import (
    ASPP,
    BACKBONE_KEYS,
    BackboneDeepLab,
    DeepLab,
    MultiScale,
    imagenet_normalisation,
)
from misc.checkpoint import StateDict, load_checkpoint, state_dict_of
from misc.errors import UserError
from misc.files import sha256_file
from misc.progress import log
from misc.provenance import read_record
from net.backbone import (
    Backbone,
    ResNetBackbone,
    build_backbone,
    calibrate_batchnorm,
    load_backbone,
)
from net.pretrained import Allowed, load_strictly, load_weights, torchvision_file
from net.published_keys import from_published, torchvision_to_deeplab

_INIT_KEY = "MODEL.INIT_MODEL"
_RESNETS = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101", (3, 8, 36, 3): "resnet152"}
_BACKBONE = "backbone."
_CONVOLUTION_DIMENSIONS = 4  # of a weight
_CAM_STEP = "train_cam"  # in the record beside the weights of run_sample.py's CAM branches
_NAMES_SHOWN = 20
_CLASSIFIERS = (ASPP, "fc.")
_REMEDY = f"give a file of this network (MODEL.NAME, N_BLOCKS, BACKBONE) or another {_INIT_KEY}"
_ALLOWED = Allowed(_CLASSIFIERS, other_parts=True, optional=(ASPP,), least_share=0.9)

_MEANINGS: dict[bool | None, str] = {
    False: "trained by run_sample.py with image labels only: no pixel label was ever seen before "
    "this training.",
    True: "which has a classifier of pixels, so it was trained on masks (the published "
    "COCO-initialised checkpoint is one): say so beside the result, which is not weakly supervised "
    "if people drew those masks.",
    None: "of which nothing more is known: the result is weakly supervised only if that file never "
    "saw pixel labels.",
}


@dataclass(frozen=True)
class InitReport:
    """What a network started from; plain values, ready for JSON."""

    what: str
    """One sentence on the weights and on what they mean for "weakly supervised"."""
    source: str
    """The file, the name of the downloaded weights, or `random`."""
    pixel_labels: bool | None
    """Whether the weights were trained on masks; None where only the user knows."""
    loaded: int = 0
    """Number of loaded tensors."""
    missing: list[str] = field(default_factory=list)
    """Tensors of the network that the source does not have; they start from random."""
    sha256: str | None = None
    """Hash of the file; None where there is none."""


def initialise(model: MultiScale, config: Config, batches: Iterable[Tensor] = ()) -> InitReport:
    """Give a new network its first weights, and log which.

    Args:
        model: the network of `config`, see `build_model`.
        config: MODEL.INIT_MODEL and MODEL.INIT_WEIGHTS say which weights.
        batches: input batches (B, 3, h, w) that the batch norms of a network with random weights
            get their statistics from; not looked at otherwise. All processes need the same.

    Raises:
        UserError: a file is missing, has less than 90% of the backbone or some of it under other
            names, a download fails.
    """
    choice = config.MODEL.INIT_MODEL
    if choice == NO_INIT:
        report = _random(model, batches)
    elif choice == IMAGENET:
        report = _from_imagenet(model.base, config)
    else:
        report = _from_file(model.base, Path(choice), config)
    log(f"{_INIT_KEY} {choice}: {report.what}")
    return report


def load_trained(model: MultiScale, path: Path | str) -> None:
    """Load all weights of a trained network, ours or published (`base.*`, also `module.base.*`).

    Raises:
        UserError: the file cannot be read, or its tensors are not those of this network.
    """
    load_weights(model, path)


# --------------------------------------------------------------------------------------- sources


def _random(model: MultiScale, batches: Iterable[Tensor]) -> InitReport:
    device = next(model.parameters()).device
    _open_branches(model)
    calibrate_batchnorm(model, (batch.to(device) for batch in batches))
    return InitReport(
        what="the first weights are random, so no pixel label was ever seen before this training; "
        "expect worse results than from pretrained weights.",
        source="random",
        pixel_labels=False,
    )


@torch.no_grad()
def _open_branches(model: MultiScale) -> None:
    """Let every batch norm pass its input on.

    timm starts the last one of a residual branch at weight 0; as batch norms are frozen here, the
    branch would stay shut and learn nothing.
    """
    for norm in (module for module in model.modules() if isinstance(module, _BatchNorm)):
        if not norm.weight.any():
            norm.weight.fill_(1)


def _from_imagenet(base: DeepLab, config: Config) -> InitReport:
    """ImageNet weights, downloaded or from MODEL.INIT_WEIGHTS."""
    name, path = _backbone_name(config), config.MODEL.INIT_WEIGHTS
    backbone = _build(name, config, weights=None if path is None else str(path))
    published = torchvision_file(name) if isinstance(backbone, ResNetBackbone) else None
    file = path or (published and published.cached)
    sha256 = file and sha256_file(file)
    known = path is None or (published and sha256.startswith(published.hash_prefix))
    source = str(path or (published.cached.name if published else f"timm {name}"))
    loaded, missing = _load(base, _in_keys_of(base, backbone.state_dict(), config), source)
    what = (
        f"the first weights are those of {name} on ImageNet ({source}), trained with image labels "
        "only: no pixel label was ever seen before this training."
        if known
        else f"the first weights are {source}, which the configuration calls ImageNet weights of "
        f"{name} but which is not the published file: the result is weakly supervised only if it "
        "never saw pixel labels."
    )
    return InitReport(what, source, False if known else None, loaded, missing, sha256)


def _from_file(base: DeepLab, path: Path, config: Config) -> InitReport:
    """Weights of any file that holds the backbone under names we know."""
    state = _read(base, path, config)
    loaded, missing = _load(base, state, str(path))
    pixel_labels = _saw_pixel_labels(path, state)
    what = f"the first weights are {path}, {_MEANINGS[pixel_labels]}"
    return InitReport(what, str(path), pixel_labels, loaded, missing, sha256_file(path))


def _saw_pixel_labels(path: Path, state: StateDict) -> bool | None:
    """Whether a file was trained on masks; None where it does not tell."""
    record = read_record(path)
    if record is not None and record.step == _CAM_STEP:
        return False
    return True if record is None and _classifies_pixels(state) else None


def _classifies_pixels(state: StateDict) -> bool:
    """Whether a file holds more than a backbone: ASPP, or `fc` as a convolution."""
    classifier = state.get("fc.weight")
    by_convolution = classifier is not None and classifier.ndim == _CONVOLUTION_DIMENSIONS
    return by_convolution or any(key.startswith(ASPP) for key in state)


def _build(name: str, config: Config, **weights: str | None) -> Backbone:
    """The configured CNN, with weights as `build_backbone` takes them."""
    arguments = config.MODEL.BACKBONE_ARGS
    return build_backbone(name, **weights, model_args=arguments, names=BACKBONE_KEYS)


def _backbone_name(config: Config) -> str:
    """Name of the configured CNN in torchvision or timm."""
    model = config.MODEL
    name = model.BACKBONE or _RESNETS.get(tuple(model.N_BLOCKS))
    if name is None:
        known = ", ".join(f"{list(blocks)} ({one})" for blocks, one in _RESNETS.items())
        raise UserError(
            f"MODEL.N_BLOCKS is {list(model.N_BLOCKS)}, for which there are no ImageNet weights; "
            f"use {known}, or {_INIT_KEY}={NO_INIT}."
        )
    return name


# ----------------------------------------------------------------------------------- key layouts


def _read(base: DeepLab, path: Path, config: Config) -> StateDict:
    """Tensors of a file by the names of `base`.

    The file is a DeepLab (published or ours, with or without `base.`), the CNN branch of
    run_sample.py (`backbone.*`; published: `resnet50.*`), or a network of torchvision or timm.
    """
    state = from_published(state_dict_of(load_checkpoint(path, mapped=True)), "cnn")
    state = {key.removeprefix("base."): value for key, value in state.items()}
    if state.keys() & base.state_dict().keys():
        return state
    name = _backbone_name(config)
    if any(key.startswith(_BACKBONE) for key in state):
        backbone = _build(name, config, init="random")
        load_backbone(backbone, state, path)
    else:
        backbone = _build(name, config, weights=str(path))
    return _in_keys_of(base, backbone.state_dict(), config)


def _in_keys_of(base: DeepLab, state: StateDict, config: Config) -> StateDict:
    """Rename the tensors of a `net.backbone.Backbone`."""
    if isinstance(base, BackboneDeepLab):
        return {_BACKBONE + key: value for key, value in state.items()}
    return from_torchvision(state, config.IMAGE.MEAN.bgr)


def from_torchvision(state: StateDict, mean_bgr: Sequence[float]) -> StateDict:
    """Rename a torchvision ResNet with bottlenecks to the published keys, for the published input.

    torchvision's networks see normalised RGB, DeepLab sees BGR minus a mean in grey levels. The
    difference goes into the first convolution and its batch norm, so that the features are the same
    but for the border, where zero padding means another colour.

    Args:
        state: tensors by torchvision's names, without `fc.*`.
        mean_bgr: mean of DeepLab's input, grey levels.
    """
    renamed = torchvision_to_deeplab(state)
    scale, shift = (values.double().view(3, 1, 1) for values in imagenet_normalisation(mean_bgr))
    weight = renamed["layer1.conv1.conv.weight"].double().flip(1)  # (64, 3, 7, 7), RGB to BGR
    mean = renamed["layer1.conv1.bn.running_mean"].double()  # of what the convolution yields
    renamed["layer1.conv1.conv.weight"] = (weight * scale).float()
    renamed["layer1.conv1.bn.running_mean"] = (mean - (weight * shift).sum(dim=(1, 2, 3))).float()
    return renamed


# --------------------------------------------------------------------------------------- loading


def _load(base: DeepLab, state: StateDict, source: str) -> tuple[int, list[str]]:
    """Load what a file has of `base`, its classifier as a whole or not at all; log what is not.

    Returns:
        Number of loaded tensors, and the names of those that `state` does not have.

    Raises:
        UserError: the file has less than 90% of the backbone, has some of it under other names, or
            belongs to a larger network.
    """
    loaded = load_strictly(base, state, source, _ALLOWED, remedy=_REMEDY)
    if any(key.startswith(ASPP) for key in loaded.missing):
        _log_other_aspp(base, state, source)
    count = len(loaded.taken)
    total = count + len(loaded.missing)
    log(f"{source}: {count} of {total} tensors loaded, {_named(loaded.missing)} start random")
    if loaded.unused:
        log(f"{source}: {_named(loaded.unused)} of the file's tensors not used")
    return count, loaded.missing


def _log_other_aspp(base: DeepLab, state: StateDict, source: str) -> None:
    """Say that a file's classifier is not used; silent about files without one."""
    first = f"{ASPP}c0.weight"
    if first in state and state[first].ndim == _CONVOLUTION_DIMENSIONS:
        log(
            f"{source}: its classifier (ASPP, {len(state[first])} classes) is left out, this "
            f"network's has {base.aspp.c0.out_channels} classes"
        )


def _named(names: Sequence[str]) -> str:
    """`3 (a, b, c)`, cut off after a few names."""
    if not names:
        return "0"
    more = ", ..." if len(names) > _NAMES_SHOWN else ""
    return f"{len(names)} ({', '.join(names[:_NAMES_SHOWN])}{more})"
