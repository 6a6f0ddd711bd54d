"""DeepLab v2 (Chen et al. 2018) on three scales of the picture, and its loss.

`DeepLabV2` is the published ResNet under its published state-dict keys, `BackboneDeepLab` the same
classifier on any other CNN. Both take BGR pictures minus their mean, grey levels 0..255, and are
wrapped in `MultiScale` for training and testing.
"""

import functools
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deeplab.config import RESNET101, Config
from misc.distributed import all_reduce_sum, world_size
from misc.transforms import IMAGENET_MEAN, IMAGENET_STD, NEAREST, resize
from net.backbone import Backbone, build_backbone
from net.option_names import OptionNames

SCALES = (0.5, 0.75)
ASPP = "aspp."  # state-dict keys of the classifier start with this

BACKBONE_KEYS = OptionNames(
    weights="MODEL.INIT_WEIGHTS=FILE",
    random="MODEL.INIT_MODEL=none",
    arguments="MODEL.BACKBONE_ARGS",
)
"""What messages call the settings of the CNN."""

_STEM_CHANNELS = 64
_BOTTLENECK = 4  # output channels of a block over those of its 3x3 convolution
_ASPP_STD = 0.01


class _Stage(NamedTuple):
    """What the blocks of one ResNet stage have in common."""

    channels: int
    stride: int
    dilation: int


_STAGES = (_Stage(256, 1, 1), _Stage(512, 2, 1), _Stage(1024, 1, 2), _Stage(2048, 1, 4))


class ParameterGroups(NamedTuple):
    """Trained parameters by learning rate."""

    body: list[nn.Parameter]
    """Everything below the classifier; learning rate x 1."""
    aspp_weights: list[nn.Parameter]
    """Learning rate x 10."""
    aspp_biases: list[nn.Parameter]
    """Learning rate x 20, without weight decay."""


# -------------------------------------------------------------------------------------- networks


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling: parallel 3x3 convolutions whose results are summed.

    Args:
        channels: of the input.
        n_classes: of the output, with background.
        atrous_rates: dilation of each convolution `c0`, `c1`, ...
    """

    def __init__(self, channels: int, n_classes: int, atrous_rates: Sequence[int]) -> None:
        super().__init__()
        for index, rate in enumerate(atrous_rates):
            convolution = nn.Conv2d(channels, n_classes, 3, padding=rate, dilation=rate)
            nn.init.normal_(convolution.weight, std=_ASPP_STD)
            nn.init.zeros_(convolution.bias)
            self.add_module(f"c{index}", convolution)

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, h, w) to logits (B, n_classes, h, w)."""
        return sum(convolution(features) for convolution in self.children())


class DeepLab(nn.Module):
    """Base of the networks: features, then ASPP; batch norm is frozen.

    Attributes:
        output_stride: side of the picture over that of the logits, which is rounded up.
        aspp: the classifier.
    """

    output_stride: int
    aspp: Aspp

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, h, w), BGR minus mean, to what the classifier sees."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, h, w), BGR minus mean, to logits (B, n_classes, h', w')."""
        return self.aspp(self.features(images))

    def train(self, mode: bool = True) -> "DeepLab":
        """Set the mode; batch norm stays in evaluation mode."""
        super().train(mode)
        for norm in _batch_norms(self):
            norm.eval()
        return self

    def parameter_groups(self) -> ParameterGroups:
        """The trained parameters; those of batch norm are not."""
        body = [p for name, p in self.named_parameters() if not name.startswith(ASPP)]
        return ParameterGroups(
            [p for p in body if p.requires_grad],
            [convolution.weight for convolution in self.aspp.children()],
            [convolution.bias for convolution in self.aspp.children()],
        )

    def _freeze_batch_norms(self) -> None:
        for norm in _batch_norms(self):
            norm.requires_grad_(False).eval()


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _conv_bn(
    inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, relu: bool = True
) -> nn.Sequential:
    """Convolution without bias that keeps the size up to its stride, batch norm, ReLU."""
    padding = dilation * (kernel // 2)
    layers = OrderedDict[str, nn.Module](
        conv=nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False),
        bn=nn.BatchNorm2d(outputs),
    )
    if relu:
        layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


class _Bottleneck(nn.Module):
    """Residual block; unlike torchvision's its first convolution has the stride."""

    def __init__(self, inputs: int, stage: _Stage, first: bool) -> None:
        super().__init__()
        middle, stride = stage.channels // _BOTTLENECK, stage.stride if first else 1
        self.reduce = _conv_bn(inputs, middle, 1, stride)
        self.conv3x3 = _conv_bn(middle, middle, 3, dilation=stage.dilation)
        self.increase = _conv_bn(middle, stage.channels, 1, relu=False)
        self.shortcut = (
            _conv_bn(inputs, stage.channels, 1, stride, relu=False) if first else nn.Identity()
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, channels, ceil(h / stride), ceil(w / stride))."""
        residual = self.increase(self.conv3x3(self.reduce(features)))
        return F.relu(residual + self.shortcut(features), inplace=True)


def _residual_stage(inputs: int, stage: _Stage, count: int) -> nn.Sequential:
    blocks = OrderedDict(block1=_Bottleneck(inputs, stage, first=True))
    for number in range(2, count + 1):
        blocks[f"block{number}"] = _Bottleneck(stage.channels, stage, first=False)
    return nn.Sequential(blocks)


class DeepLabV2(DeepLab):
    """The published network: a ResNet with dilated last stages, and ASPP.

    Args:
        n_classes: with background.
        n_blocks: residual blocks of layer2..layer5; [3, 4, 23, 3] is ResNet101.
        atrous_rates: see `Aspp`.
    """

    output_stride = 8

    def __init__(
        self,
        n_classes: int,
        n_blocks: Sequence[int],
        atrous_rates: Sequence[int],
    ) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(
            OrderedDict(
                conv1=_conv_bn(3, _STEM_CHANNELS, 7, 2),
                pool=nn.MaxPool2d(3, 2, 1, ceil_mode=True),
            )
        )
        inputs = _STEM_CHANNELS
        for number, (stage, count) in enumerate(zip(_STAGES, n_blocks, strict=True), start=2):
            self.add_module(f"layer{number}", _residual_stage(inputs, stage, count))
            inputs = stage.channels
        self.aspp = Aspp(inputs, n_classes, atrous_rates)
        self._freeze_batch_norms()

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, h, w), BGR minus mean, to (B, 2048, h', w') at stride 8."""
        features = images
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4, self.layer5):
            features = layer(features)
        return features


class BackboneDeepLab(DeepLab):
    """ASPP on the last map of any CNN; its state-dict keys are `backbone.*` and `aspp.*`.

    Args:
        backbone: from `net.backbone.build_backbone`; its batch norms get frozen.
        n_classes: with background.
        atrous_rates: see `Aspp`.
        mean_bgr: what was subtracted from the pictures, grey levels. They are converted to the
            normalised RGB pictures that the backbone expects.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int,
        atrous_rates: Sequence[int],
        mean_bgr: Sequence[float],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.output_stride = backbone.strides[-1]
        self.aspp = Aspp(backbone.channels[-1], n_classes, atrous_rates)
        scale, shift = imagenet_normalisation(mean_bgr)
        self.register_buffer("scale", scale.view(3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(3, 1, 1), persistent=False)
        self._freeze_batch_norms()

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, h, w), BGR minus mean, to (B, channels, ceil(h / 16), ceil(w / 16))."""
        return self.backbone((images * self.scale + self.shift).flip(1))[-1]


def imagenet_normalisation(mean_bgr: Sequence[float]) -> tuple[Tensor, Tensor]:
    """How BGR pictures minus their mean become normalised ones: `scale` (3,) and `shift` (3,).

    `images * scale + shift` has the ImageNet mean and standard deviation that torchvision's
    networks expect; the channels stay blue, green, red. float32.

    Args:
        mean_bgr: what was subtracted, grey levels.
    """
    std = 255 * torch.tensor(IMAGENET_STD[::-1], dtype=torch.float64)
    mean = 255 * torch.tensor(IMAGENET_MEAN[::-1], dtype=torch.float64)
    shift = (torch.tensor(mean_bgr, dtype=torch.float64) - mean) / std
    return (1 / std).float(), shift.float()


class MultiScale(nn.Module):
    """A network applied to the picture and to smaller copies of it.

    Args:
        base: the network.
        scales: of the copies.
    """

    def __init__(self, base: DeepLab, scales: Sequence[float] = SCALES) -> None:
        super().__init__()
        self.base = base
        self.scales = tuple(scales)

    @property
    def output_stride(self) -> int:
        """See `DeepLab`."""
        return self.base.output_stride

    def parameter_groups(self) -> ParameterGroups:
        """See `DeepLab.parameter_groups`."""
        return self.base.parameter_groups()

    def forward(self, images: Tensor, every_output: bool = False) -> Tensor | list[Tensor]:
        """Largest logits over the scales.

        Args:
            images: (B, 3, h, w), BGR minus mean.
            every_output: return what `forward_all` returns. Data parallel training needs this
                argument, because its wrapper sees calls of `forward` only.

        Returns:
            (B, n_classes, h', w') at the stride of the base network, or the list.
        """
        outputs = self.forward_all(images)
        return outputs if every_output else outputs[-1]

    def forward_all(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, h, w), BGR minus mean, to the logits of all scales.

        Returns:
            Logits (B, n_classes, h', w') of scale 1, those of each of `scales` in its own size, and
            the largest of them all in the size of the first.
        """
        first = self.base(images)
        others = [self.base(_scaled(images, scale)) for scale in self.scales]
        same_size = [_interpolate(one, size=first.shape[-2:]) for one in others]
        largest = torch.stack([first, *same_size]).max(dim=0).values
        return [first, *others, largest]


def _scaled(images: Tensor, scale: float) -> Tensor:
    """Smaller copies; a side that would vanish keeps one pixel."""
    size = [int(side * scale) for side in images.shape[-2:]]
    if 0 in size:
        return _interpolate(images, size=[max(1, side) for side in size])
    return _interpolate(images, scale_factor=scale)


def _interpolate(maps: Tensor, **target: float | Sequence[int]) -> Tensor:
    return F.interpolate(maps, mode="bilinear", align_corners=False, **target)


def build_model(config: Config) -> MultiScale:
    """Build the network of a configuration, with random weights.

    Raises:
        UserError: MODEL.BACKBONE is no CNN with stride-16 feature maps.
    """
    model, n_classes = config.MODEL, config.DATASET.N_CLASSES
    if model.NAME == RESNET101:
        return MultiScale(DeepLabV2(n_classes, model.N_BLOCKS, model.ATROUS_RATES))
    backbone = build_backbone(
        model.BACKBONE, init="random", model_args=model.BACKBONE_ARGS, names=BACKBONE_KEYS
    )
    mean_bgr = config.IMAGE.MEAN.bgr
    return MultiScale(BackboneDeepLab(backbone, n_classes, model.ATROUS_RATES, mean_bgr))


# ------------------------------------------------------------------------------------------ loss


@functools.lru_cache(maxsize=256)
def _nearest(length: int, target: int) -> Tensor:
    """Which of `length` samples PIL's nearest resampling takes for each of `target`."""
    positions = np.arange(length, dtype=np.int32)[None]
    return torch.from_numpy(resize(positions, (1, target), NEAREST)[0]).long()


def resize_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Resize label maps as PIL does with nearest resampling.

    Args:
        labels: (B, h, w) of any dtype, on any device.
        size: target height and width.

    Returns:
        (B, height, width), dtype and device of `labels`.
    """
    rows, columns = (
        _nearest(length, target).to(labels.device, non_blocking=True)
        for length, target in zip(labels.shape[-2:], size, strict=True)
    )
    return labels[:, rows[:, None], columns]


def msc_loss(
    outputs: Sequence[Tensor], labels: Tensor, ignore: int = 255
) -> tuple[Tensor, list[Tensor]]:
    """Sum of the mean cross entropies of all outputs of `MultiScale.forward_all`.

    The mean runs over the labelled pixels of all processes: averaged over the processes, as
    data parallel training averages gradients, loss and gradient are those of one process that has
    the whole batch. A batch without any labelled pixel has loss 0.

    Args:
        outputs: logits (B, n_classes, h', w'), each of its own size.
        labels: (B, h, w) int64, 0..n_classes - 1 or `ignore`.
        ignore: pixels without label.

    Returns:
        The total, and each output's part of it.
    """
    targets = [resize_labels(labels, output.shape[-2:]) for output in outputs]
    labelled = torch.stack([(target != ignore).sum() for target in targets])
    weights = world_size() / all_reduce_sum(labelled).clamp(min=1)
    losses = [
        weight * _summed_cross_entropy(output, target, ignore)
        for output, target, weight in zip(outputs, targets, weights, strict=True)
    ]
    return torch.stack(losses).sum(), losses


def _summed_cross_entropy(logits: Tensor, labels: Tensor, ignore: int) -> Tensor:
    """Over all pixels of (B, C, h, w) logits in float32.

    Pixels are put in one row since only that case has a deterministic CUDA kernel.
    """
    pixels = logits.float().permute(0, 2, 3, 1).flatten(0, 2)  # (B h w, C)
    return F.cross_entropy(pixels, labels.flatten(), ignore_index=ignore, reduction="sum")
