"""IRNet (Ahn et al. 2019): class boundaries and displacement fields on a frozen backbone.

Layer names and order (convolution, group norm, upsampling, ReLU) are those of the published
modules, so that its checkpoints load.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net.backbone import Backbone
from net.strides import GRID_STRIDE, OUTPUT_STRIDE

EDGE_CHANNELS = 32
MIN_INPUT = 512


class MeanShift(nn.Module):
    """Subtract the mean displacement of the data set, in evaluation only."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.running_mean: Tensor

    def forward(self, field: Tensor) -> Tensor:
        """(B, num_features, h, w) to the same shape."""
        return field if self.training else field - self.running_mean.view(1, -1, 1, 1)


class Resample(nn.Module):
    """Bilinear resampling by a factor (align_corners=False); factor 1 does nothing."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, h * factor, w * factor), sizes rounded up."""
        if self.factor == 1:
            return maps
        size = [-int(-side * self.factor // 1) for side in maps.shape[-2:]]
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _head(inputs: int, outputs: int, groups: int, factor: float = 1) -> nn.Sequential:
    """1x1 convolution, group norm, resampling where needed, ReLU."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.GroupNorm(groups, outputs),
    ]
    if factor != 1:
        layers.append(Resample(factor))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def _crop(maps: Tensor, like: Tensor) -> Tensor:
    return maps[..., : like.shape[-2], : like.shape[-1]]


class IRNet(nn.Module):
    """Edge and displacement branches over the five maps of a frozen backbone.

    Args:
        backbone: published ResNet50; any backbone with maps at strides 4 (or less) to 16.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        c1, c2, c3, c4, c5 = backbone.channels
        f1, f2, f3, f4, f5 = (stride / GRID_STRIDE for stride in backbone.strides)
        self.fc_edge1 = _head(c1, EDGE_CHANNELS, 4, f1)
        self.fc_edge2 = _head(c2, EDGE_CHANNELS, 4, f2)
        self.fc_edge3 = _head(c3, EDGE_CHANNELS, 4, f3)
        self.fc_edge4 = _head(c4, EDGE_CHANNELS, 4, f4)
        self.fc_edge5 = _head(c5, EDGE_CHANNELS, 4, f5)
        self.fc_edge6 = nn.Conv2d(5 * EDGE_CHANNELS, 1, 1, bias=True)
        self.fc_dp1 = _head(c1, 64, 8, f1)
        self.fc_dp2 = _head(c2, 128, 16, f2)
        self.fc_dp3 = _head(c3, 256, 16)
        self.fc_dp4 = _head(c4, 256, 16, f4 / f3)
        self.fc_dp5 = _head(c5, 256, 16, f5 / f3)
        self.fc_dp6 = _head(768, 256, 16, f3)
        self.mean_shift = MeanShift(2)
        self.fc_dp7 = nn.Sequential(
            nn.Conv2d(448, 256, 1, bias=False),
            nn.GroupNorm(16, 256),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 2, 1, bias=False),
        )

    def train(self, mode: bool = True) -> "IRNet":
        """Set the mode; the frozen backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Raw edge and displacement maps.

        Args:
            images: normalised (B, 3, h, w).

        Returns:
            Edge logits (B, 1, ceil(h / 4), ceil(w / 4)) and displacements (B, 2, same) in grid
            cells, (dy, dx) from each cell to the centre of its object; the mean displacement is
            subtracted in evaluation mode only.
        """
        with torch.no_grad():
            maps = self.backbone(images)
        return self._edge(maps), self._displacement(maps)

    def _edge(self, maps: list[Tensor]) -> Tensor:
        heads = (self.fc_edge1, self.fc_edge2, self.fc_edge3, self.fc_edge4, self.fc_edge5)
        edges = [head(feature) for head, feature in zip(heads, maps, strict=True)]
        return self.fc_edge6(torch.cat([_crop(edge, edges[1]) for edge in edges], dim=1))

    def _displacement(self, maps: list[Tensor]) -> Tensor:
        x1, x2, x3, x4, x5 = maps
        dp2, dp3 = self.fc_dp2(x2), self.fc_dp3(x3)
        coarse = [dp3, _crop(self.fc_dp4(x4), dp3), _crop(self.fc_dp5(x5), dp3)]
        dp_up3 = _crop(self.fc_dp6(torch.cat(coarse, dim=1)), dp2)
        fine = [_crop(self.fc_dp1(x1), dp2), dp2, dp_up3]
        return self.mean_shift(self.fc_dp7(torch.cat(fine, dim=1)))

    @torch.no_grad()
    def edge_displacement(
        self, image: Tensor, min_input: int = MIN_INPUT, with_displacement: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Boundary probabilities and displacements of one picture.

        The picture is zero-padded to `min_input`, as published; a larger one is padded to the next
        multiple of 16 and never cropped. Group norm sees the padding: it is part of the result.

        Args:
            image: normalised (3, h, w).
            min_input: least side after padding in pixels.
            with_displacement: without, it is neither computed nor returned.

        Returns:
            Edge (1, ceil(h / 4), ceil(w / 4)) in 0..1, the sigmoid of the mean of both logits, and
            the displacement (2, same) of the picture itself; float32.
        """
        height, width = image.shape[-2:]
        rows, columns = -(-height // GRID_STRIDE), -(-width // GRID_STRIDE)
        bottom, right = (
            max(min_input, -(-side // OUTPUT_STRIDE) * OUTPUT_STRIDE) - side
            for side in (height, width)
        )
        pair = F.pad(torch.stack([image, image.flip(-1)]), (0, right, 0, bottom))
        maps = self.backbone(pair)
        edge = self._edge(maps)[..., :rows, :columns].float()
        mean = torch.sigmoid(edge[0] / 2 + edge[1].flip(-1) / 2)
        if not with_displacement:
            return mean, None
        upright = self._displacement([one[:1] for one in maps])  # that of the flip is not used
        return mean, upright[0, :, :rows, :columns].float()

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Trainable parameters: (edge branch, displacement branch)."""
        groups: dict[str, list[nn.Parameter]] = {"fc_edge": [], "fc_dp": []}
        for prefix, group in groups.items():
            for name, module in self.named_children():
                if name.startswith(prefix):
                    group.extend(module.parameters())
        return groups["fc_edge"], groups["fc_dp"]
