"""CNN backbones as five feature maps: any torchvision ResNet, or a timm CNN with output stride 16.

The published networks are ResNets whose last stage keeps stride 1 (without dilation), so the
output stride is 16, and whose batch norms always use running statistics.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from misc.checkpoint import load_checkpoint, state_dict_of
from misc.errors import UserError
from net.model_arguments import ModelArgs, described, explained, require_free
from net.normalisation import InputConversion
from net.option_names import ARGUMENTS, OptionNames
from net.pretrained import (
    Allowed,
    fetch,
    load_strictly,
    not_downloaded,
    require_timm_name,
    state_for_timm,
    timm_file,
    torchvision_file,
)
from net.strides import OUTPUT_STRIDE

_NOT_LOADED = "in loading state_dict"  # what torch says of weights that do not fit


class Backbone(nn.Module):
    """Base of the backbones: feature maps x1..x5 from fine to coarse.

    Attributes:
        channels: channels of the five maps.
        strides: their strides in pixels; the last is 16.
        fixed_batchnorm: batch norm uses its running statistics also in training, while its weight
            and bias are trained; the published setting.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def __init__(self, fixed_batchnorm: bool = True) -> None:
        super().__init__()
        self.fixed_batchnorm = fixed_batchnorm

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode; fixed and frozen batch norms stay in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                fixed = self.fixed_batchnorm or not module.weight.requires_grad
                module.train(mode and not fixed)
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, h, w) to five maps (B, channels[i], ceil(h / strides[i]), ...)."""
        raise NotImplementedError

    def stages(self) -> list[list[nn.Module]]:
        """Modules behind each of the five maps, in order."""
        raise NotImplementedError

    def freeze_stages(self, count: int) -> None:
        """Stop the training, and with it the gradient, of the first `count` maps' modules.

        The published CNN branch trains what comes after layer2, which is count = 3. Batch norms of
        frozen stages keep their running statistics, too.
        """
        for stage in self.stages()[:count]:
            for module in stage:
                module.requires_grad_(False)


class ResNetBackbone(Backbone):
    """torchvision ResNet with layer strides (2, 2, 2, 1); state-dict names are torchvision's.

    The maps are those after max pooling and after layer1..layer4, at strides 4, 4, 8, 16, 16.
    """

    strides = (4, 4, 8, 16, 16)

    def __init__(self, resnet: torchvision.models.ResNet, fixed_batchnorm: bool = True) -> None:
        super().__init__(fixed_batchnorm)
        self.conv1, self.bn1 = resnet.conv1, resnet.bn1
        self.relu, self.maxpool = resnet.relu, resnet.maxpool
        self.layer1, self.layer2 = resnet.layer1, resnet.layer2
        self.layer3, self.layer4 = resnet.layer3, resnet.layer4
        _keep_stride(self.layer4[0])
        expansion = self.layer1[0].expansion
        self.channels = (resnet.bn1.num_features, *(expansion * c for c in (64, 128, 256, 512)))

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        maps = [self.maxpool(self.relu(self.bn1(self.conv1(images))))]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps.append(layer(maps[-1]))
        return maps

    def stages(self) -> list[list[nn.Module]]:
        """See `Backbone.stages`."""
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]


def _keep_stride(block: nn.Module) -> None:
    """Give the first block of a stage stride 1, without dilation."""
    strided = block.conv2 if hasattr(block, "conv3") else block.conv1
    strided.stride = (1, 1)
    block.downsample[0].stride = (1, 1)


class TimmBackbone(Backbone):
    """timm CNN with feature maps down to stride 16 (timm keeps the stride by dilation).

    Pictures arrive with ImageNet mean and standard deviation; a network that was trained with
    others gets them converted here. A network with four maps (no stem map) repeats its first.
    """

    def __init__(self, features: nn.Module, fixed_batchnorm: bool = True) -> None:
        super().__init__(fixed_batchnorm)
        self.features = features
        info = features.feature_info
        self._repeat_first = len(info.channels()) == 4
        repeat = slice(0, 1) if self._repeat_first else slice(0, 0)
        self.channels = (*info.channels()[repeat], *info.channels())
        self.strides = (*info.reduction()[repeat], *info.reduction())
        self._rounds_down = _rounds_down(features, info.reduction())
        self.convert_input = InputConversion(getattr(features, "default_cfg", None))

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        height, width = images.shape[-2:]
        images = self.convert_input(images)
        if self._rounds_down:
            images = F.pad(images, (0, -width % OUTPUT_STRIDE, 0, -height % OUTPUT_STRIDE))
        maps = [
            one[..., : -(-height // stride), : -(-width // stride)]
            for one, stride in zip(
                self.features(images), self.strides[self._repeat_first :], strict=True
            )
        ]
        return [maps[0], *maps] if self._repeat_first else maps

    def stages(self) -> list[list[nn.Module]]:
        """Modules in definition order, closed by the module that yields each map."""
        ends = [entry["module"].replace(".", "_") for entry in self.features.feature_info.info]
        stages: list[list[nn.Module]] = [[]]
        for name, module in _leaf_groups(self.features):
            stages[-1].append(module)
            if len(stages) <= len(ends) and name == ends[len(stages) - 1]:
                stages.append([])
        if len(stages) <= len(ends):
            raise UserError(f"the stages of this network, {', '.join(ends)}, cannot be told apart.")
        stages[-2].extend(stages.pop())
        return [[], *stages] if self._repeat_first else stages


@torch.no_grad()
def _rounds_down(features: nn.Module, strides: Sequence[int]) -> bool:
    """Whether a network loses the last rows of pictures whose side is no multiple of a stride."""
    side = 2 * OUTPUT_STRIDE + 1
    maps = features.eval()(torch.zeros(1, 3, side, side))
    features.train()
    return any(len(one[0, 0]) < -(-side // k) for one, k in zip(maps, strides, strict=True))


def _leaf_groups(features: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Top-level modules in order, stage containers opened by one level; no dots in the names."""
    for name, child in features.named_children():
        if isinstance(child, nn.Sequential) and name in ("blocks", "stages"):
            for index, grandchild in child.named_children():
                yield f"{name}_{index}", grandchild
        else:
            yield name, child


def build_backbone(
    name: str,
    init: str = "pretrained",
    weights: str | None = None,
    model_args: ModelArgs = None,
    names: OptionNames = ARGUMENTS,
    fixed_batchnorm: bool = True,
) -> Backbone:
    """Build a CNN backbone by name.

    Args:
        name: a torchvision ResNet (`resnet152`) or a timm CNN (`tf_efficientnet_lite0`), also with
            the tag of its weights (`resnet50.a1_in1k`); torchvision is asked first.
        init: `pretrained` or `random`.
        weights: local weight file instead of the download.
        model_args: further keyword arguments of the network (`channels`, `width_per_group`, ...).
        names: of the options, for messages.
        fixed_batchnorm: see `Backbone`.

    Raises:
        UserError: unknown name or arguments, no stride-16 feature maps, or weights that cannot be
            had.
    """
    require_free(name, model_args)
    built = described(name, model_args, names)
    if _is_torchvision_resnet(name):
        with explained(f"{built} cannot be built"):
            resnet = torchvision.models.get_model(name, weights=None, **model_args or {})
        backbone = ResNetBackbone(resnet, fixed_batchnorm)
        if weights is not None or init == "pretrained":
            state = (
                state_dict_of(load_checkpoint(weights, mapped=True))
                if weights is not None
                else fetch(torchvision_file(name), names)
            )
            load_backbone(backbone, state, weights or name)
        return backbone
    if name.split(".")[0] not in timm.list_models():
        raise UserError(f"{name} is neither a torchvision ResNet nor a timm model name.")
    require_timm_name(name, names)
    features = _timm_features(name, init, weights, model_args, names)
    try:
        return TimmBackbone(features, fixed_batchnorm)
    except (AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{built} does not take pictures of any size, as the CAMs at several scales need "
            f"({reason}); give a network of convolutions alone."
        ) from None


def _is_torchvision_resnet(name: str) -> bool:
    if name not in torchvision.models.list_models(module=torchvision.models):
        return False
    builder = torchvision.models.get_model_builder(name)
    return builder.__module__ == torchvision.models.resnet.__name__


def load_backbone(backbone: Backbone, state: Mapping[str, Tensor], source: Path | str) -> None:
    """Load the tensors of a backbone; what else the file holds, as a classifier, is left out.

    Args:
        backbone: gets the weights.
        state: tensors by the backbone's names, with or without `backbone.` in front.
        source: the file, for messages.

    Raises:
        UserError: the tensors belong to another network; see `net.pretrained.load_strictly`.
    """
    state = {key.removeprefix("backbone."): value for key, value in state.items()}
    load_strictly(backbone, state, source, Allowed(other_parts=True))


def _timm_features(
    name: str, init: str, weights: str | None, model_args: ModelArgs, names: OptionNames
) -> nn.Module:
    if weights is None and init == "pretrained":
        published = timm_file(name, names)
        weights = str(published.cached) if published.cached.is_file() else None
    built = described(name, model_args, names)
    if model_args:  # wrong ones get a sentence of their own
        with explained(f"{built} cannot be built"):
            timm.create_model(name, features_only=True, **model_args)
    state = None if weights is None else state_for_timm(name, weights, model_args)
    try:
        features = timm.create_model(
            name,
            features_only=True,
            output_stride=OUTPUT_STRIDE,
            pretrained=init == "pretrained" and weights is None,
            **model_args or {},
        )
    except (OSError, ConnectionError) as error:
        raise not_downloaded(published, type(error).__name__, names) from None
    except (TypeError, AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
        if _NOT_LOADED in str(error):
            raise UserError(
                f"the published weights of {published.name} do not fit {built}: name a local file "
                f"with {names.weights}, or start from {names.random}."
            ) from None
        reason = str(error) if "output_stride==" in str(error) else "it cannot be dilated to that"
        raise UserError(
            f"{built} has no feature maps down to stride 16 in timm: {reason}; give for example a "
            "ResNet, ConvNeXt, RegNet, EfficientNet or MobileNet."
        ) from None
    strides = features.feature_info.reduction()
    if strides[-1] != OUTPUT_STRIDE or len(strides) not in (4, 5) or 4 not in strides:
        raise UserError(f"{built} has feature strides {strides}; strides from 4 to 16 are needed.")
    if state is not None:
        # the file was compared with the whole network, of which the features lack a part
        load_strictly(features, _in_names_of(features, state), weights, Allowed(left_out=("",)))
    return features


def _in_names_of(features: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a timm network to its features, where `stages.0` is `stages_0`."""
    names = {key.replace(".", "_"): key for key in features.state_dict()}
    return {names.get(key.replace(".", "_"), key): value for key, value in state.items()}


@torch.no_grad()
def calibrate_batchnorm(backbone: nn.Module, batches: Iterator[Tensor]) -> None:
    """Set the running statistics of untrained batch norms to those of `batches`.

    Random weights with fixed batch norm would otherwise run with mean 0 and variance 1, and the
    activations of a deep network overflow. Used for `--init random` only.
    """
    norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    was_training = backbone.training
    backbone.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    for batch in batches:
        backbone(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    backbone.train(was_training)
