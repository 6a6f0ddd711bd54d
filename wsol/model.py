"""The two networks of WSOL: TS-CAM on a vision transformer, and the CNN that refines it.

TS-CAM is Gao et al. 2021. Neither recursive passes nor tiles here: pictures have one size.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from misc.checkpoint import load_checkpoint, state_dict_of
from misc.errors import UserError
from net.normalisation import InputConversion
from net.option_names import OptionNames
from net.pretrained import load_strictly
from net.published_keys import from_published, to_published
from net.resnet_cam import CnnCam, build_cnn_cam
from net.vit import Vit, build_vit, embed, patch_tokens, record_cls_rows, run_blocks
from wsol.config import CamSource, Config

TRANSFORMER, CNN, MEAN = "transformer", "cnn", "mean"

Name = Literal["transformer", "cnn"]
_ENTRIES: dict[Name, str] = {TRANSFORMER: "state_dict", CNN: "cnn_state_dict"}
_PARALLEL = "module."  # what DataParallel puts in front of the published keys
_EPSILON = 1e-6
_RANDOM = "MODEL.INIT random"
_VIT_KEYS = OptionNames(
    "MODEL.ARCH", "MODEL.VIT_WEIGHTS", _RANDOM, "MODEL.VIT_ARGS", "DATA.CROP_SIZE"
)
_CNN_KEYS = OptionNames(weights="MODEL.CNN_WEIGHTS", random=_RANDOM, arguments="MODEL.CNN_ARGS")


class TsCam(nn.Module):
    """Vision transformer whose class maps are a 3x3 convolution over its final patch tokens.

    Args:
        vit: timm ViT without classifier, for square pictures of side S.
        num_classes: number of classes C.
    """

    def __init__(self, vit: Vit, num_classes: int) -> None:
        super().__init__()
        self.vit = vit
        self.convert_input = InputConversion(getattr(vit, "default_cfg", None))
        self.head = nn.Conv2d(vit.embed_dim, num_classes, kernel_size=3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) to raw class maps (B, C, S / patch, S / patch)."""
        tokens = run_blocks(self.vit, *embed(self.vit, self.convert_input(images)))
        return self.head(patch_tokens(self.vit, tokens))

    def maps_and_attention(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Raw class maps as of `forward`, and the class token's attention to the patches.

        The attention (B, 1, S / patch, S / patch) is averaged over heads and summed over blocks.
        """
        with record_cls_rows(self.vit) as rows:
            maps = self(images)
        return maps, rows.as_map(self.vit.patch_embed.grid_size).to(maps.dtype)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Trainable parameters: (with weight decay, without it).

        As in timm and DeiT biases, other vectors, position embeddings and the class token are not
        decayed.
        """
        skipped = {f"vit.{name}" for name in self.vit.no_weight_decay()}
        decayed, free = [], []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                (free if parameter.ndim <= 1 or name in skipped else decayed).append(parameter)
        return decayed, free


def logits_of(maps: Tensor) -> Tensor:
    """Class scores of raw class maps: (B, C, h, w) to (B, C), their spatial mean.

    For the CNN this equals its classifier on the average-pooled features, as that has no bias.
    """
    return maps.float().mean(dim=(2, 3))


def pick_classes(maps: Tensor, classes: Tensor) -> Tensor:
    """The map of one class per picture: (B, C, h, w) and (B,) to (B, h, w)."""
    return maps[torch.arange(len(maps), device=maps.device), classes]


class Networks(NamedTuple):
    """Both networks; either may be absent when it is not needed."""

    transformer: TsCam | None
    cnn: CnnCam | None

    def to(self, device: torch.device) -> "Networks":
        """Move both to a device."""
        return Networks(*(network if network is None else network.to(device) for network in self))

    def eval(self) -> "Networks":
        """Put both into evaluation mode."""
        for network in self:
            if network is not None:
                network.eval()
        return self


class Localisation(NamedTuple):
    """What a batch of pictures is scored by.

    Attributes:
        logits: (B, C) float32.
        cams: (B, h, w) float32 >= 0, the map of the class that was asked for.
    """

    logits: Tensor
    cams: Tensor


class Views(NamedTuple):
    """The maps of one class per picture (B, h, w) that a figure shows, as far as there are any."""

    cnn: Tensor | None
    class_map: Tensor | None
    attention: Tensor | None
    fused: Tensor | None


@torch.no_grad()
def views(networks: Networks, images: Tensor, classes: Tensor) -> tuple[Views, dict[str, Tensor]]:
    """Maps of the classes (B,) in images (B, 3, S, S), and logits (B, C) by network."""
    cnn = class_map = attention = fused = None
    logits = {}
    if networks.cnn is not None:
        maps = networks.cnn(images).float()
        logits[CNN] = logits_of(maps)
        cnn = pick_classes(maps, classes).relu()
    if networks.transformer is not None:
        maps, rows = networks.transformer.maps_and_attention(images)
        logits[TRANSFORMER] = logits_of(maps)
        class_map = pick_classes(maps.float(), classes).relu()
        attention = rows[:, 0].float()
        fused = attention * class_map
    return Views(cnn, class_map, attention, fused), logits


def localise(
    networks: Networks, images: Tensor, classes: Tensor, source: CamSource
) -> Localisation:
    """Score images and map one class in each.

    Args:
        networks: in evaluation mode; those that `source` needs are there.
        images: (B, 3, S, S) normalised.
        classes: (B,) the class of each map.
        source: `transformer`: relu(attention x class map) and the transformer's logits, as
            published; `cnn`: relu(class map) and logits of the CNN; `mean`: of both maps, each
            divided by its maximum, and of both logits.
    """
    needed = Networks(
        networks.transformer if source != CNN else None,
        networks.cnn if source != TRANSFORMER else None,
    )
    maps, logits = views(needed, images, classes)
    if source == MEAN:
        size = maps.fused.shape[-2:]
        cnn = F.interpolate(maps.cnn[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        return Localisation(
            (logits[CNN] + logits[TRANSFORMER]) / 2, (_scaled(cnn) + _scaled(maps.fused)) / 2
        )
    return Localisation(logits[source], maps.cnn if source == CNN else maps.fused)


def _scaled(maps: Tensor) -> Tensor:
    """Non-negative maps (B, h, w) divided by their maximum."""
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=_EPSILON)


def needed_networks(source: CamSource) -> tuple[Name, ...]:
    """Which networks localise with `source`."""
    return (TRANSFORMER, CNN) if source == MEAN else (source,)


# ------------------------------------------------------------------------- building and loading


def build_transformer(config: Config, init: str | None = None) -> TsCam:
    """TS-CAM of a configuration.

    Args:
        config: see `wsol.config`.
        init: `random` skips ImageNet weights that would be overwritten anyway; default MODEL.INIT.

    Raises:
        UserError: unknown architecture, unusable arguments, or weights that cannot be had.
    """
    model, size = config.MODEL, config.DATA.CROP_SIZE
    arguments = {"drop_path_rate": model.DROP_PATH, **model.VIT_ARGS}
    weights = _file(model.VIT_WEIGHTS) if init is None else None
    vit = build_vit(model.vit, size, init or model.INIT, weights, arguments, _VIT_KEYS)
    return TsCam(vit, config.DATA.NUM_CLASSES)


def build_cnn(config: Config, init: str | None = None) -> CnnCam:
    """CNN of a configuration; see `build_transformer`."""
    model = config.MODEL
    weights = _file(model.CNN_WEIGHTS) if init is None else None
    return build_cnn_cam(
        model.CNN,
        config.DATA.NUM_CLASSES,
        init or model.INIT,
        weights,
        model.CNN_ARGS,
        model.CNN_FROZEN_STAGES,
        model.FIXED_BATCHNORM,
        _CNN_KEYS,
    )


def _file(path: Path | None) -> str | None:
    return None if path is None else str(path)


def published_states(transformer: TsCam, cnn: CnnCam) -> dict[str, dict[str, Tensor]]:
    """Weights of both networks as a published checkpoint holds them.

    Returns:
        `state_dict` and `cnn_state_dict` with the published keys, `module.` in front.
    """
    states = {TRANSFORMER: transformer.state_dict(), CNN: cnn.state_dict()}
    return {
        _ENTRIES[name]: {_PARALLEL + k: v for k, v in to_published(state, name).items()}
        for name, state in states.items()
    }


def load_networks(config: Config, path: Path | str) -> Networks:
    """Build networks and fill them with a checkpoint in the published layout.

    Args:
        config: describes the networks.
        path: file with `state_dict` and `cnn_state_dict`, keys with or without `module.`. A
            network that the file lacks is left out when MODEL.CAM does not need it.

    Returns:
        The networks in evaluation mode on the CPU.

    Raises:
        UserError: the file is missing or holds other networks.
    """
    checkpoint = load_checkpoint(path, mapped=True)
    needed = needed_networks(config.MODEL.CAM)
    absent = [_ENTRIES[name] for name in needed if _ENTRIES[name] not in checkpoint]
    if absent:
        raise UserError(
            f"{path} has no {' and no '.join(absent)}, which MODEL.CAM {config.MODEL.CAM} needs; "
            "name a checkpoint of train_cam.py or another MODEL.CAM."
        )
    networks: dict[Name, nn.Module | None] = {TRANSFORMER: None, CNN: None}
    for name, build in ((TRANSFORMER, build_transformer), (CNN, build_cnn)):
        if _ENTRIES[name] in checkpoint:
            networks[name] = build(config, init="random")
            _load_published(networks[name], checkpoint[_ENTRIES[name]], name, path)
    return Networks(**networks).eval()


def _require_state_dict(entry: object, name: Name, path: Path | str) -> None:
    is_state = isinstance(entry, Mapping) and all(
        isinstance(key, str) and torch.is_tensor(value) for key, value in entry.items()
    )
    if not is_state:
        raise UserError(
            f"the {_ENTRIES[name]} of {path} is not a mapping of names to tensors; name a "
            "checkpoint of train_cam.py or of the published code."
        )


def _load_published(
    network: nn.Module, entry: Mapping[str, Any], name: Name, path: Path | str
) -> None:
    """Load the published keys of one network, strictly but for unused batch counters."""
    _require_state_dict(entry, name, path)
    load_strictly(
        network,
        from_published(state_dict_of(entry), name),
        path,
        called=f"the {name} of this configuration",
        remedy="use the MODEL and DATA values that it was trained with",
    )
