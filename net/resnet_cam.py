"""The CNN branch: a ResNet with output stride 16 and a 1x1 classifier whose maps are the CAMs."""

import torch
from torch import Tensor, nn

from net.backbone import Backbone, build_backbone
from net.model_arguments import ModelArgs
from net.option_names import ARGUMENTS, OptionNames


class CnnCam(nn.Module):
    """CNN whose raw class activation maps come from a 1x1 convolution without bias.

    Args:
        backbone: any `net.backbone.Backbone`; published ResNet152.
        num_classes: number of foreground classes C.
        frozen_stages: feature maps whose modules are not trained; the published 3 stops the
            gradient after layer2 (conv1, bn1, layer1 and layer2 keep their ImageNet weights).
    """

    def __init__(self, backbone: Backbone, num_classes: int, frozen_stages: int = 3) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Conv2d(backbone.channels[-1], num_classes, kernel_size=1, bias=False)
        backbone.freeze_stages(frozen_stages)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, h, w) to raw class maps (B, C, ceil(h / 16), ceil(w / 16))."""
        return self.classifier(self.backbone(images)[-1])

    @torch.no_grad()
    def cam(self, image: Tensor) -> Tensor:
        """CAM of a picture and its mirror image.

        Args:
            image: normalised picture (3, h, w).

        Returns:
            (C, ceil(h / 16), ceil(w / 16)), non-negative float32.
        """
        pair = _pixel_by_pixel(torch.stack([image, image.flip(-1)]))
        first, second = self(pair).float().relu()
        return first + second.flip(-1)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Trainable parameters: (backbone, classifier); the classifier learns ten times as fast."""
        backbone = [p for p in self.backbone.parameters() if p.requires_grad]
        return backbone, list(self.classifier.parameters())


def _pixel_by_pixel(images: Tensor) -> Tensor:
    """The same images with all channels of a pixel side by side in memory, on a CPU.

    Convolutions are faster so, see `tests/bench/bench_cnns.py`, and keep the order for the next
    ones. Sums run in another order: training, whose results must not depend on the number of
    processes, and IRNet, which is compared with published edges to five digits, go without.
    """
    on_cpu = images.device.type == "cpu"
    return images.contiguous(memory_format=torch.channels_last) if on_cpu else images


def build_cnn_cam(
    name: str,
    num_classes: int,
    init: str = "pretrained",
    weights: str | None = None,
    model_args: ModelArgs = None,
    frozen_stages: int = 3,
    fixed_batchnorm: bool = True,
    names: OptionNames = ARGUMENTS,
) -> CnnCam:
    """Build the CNN branch; see `net.backbone.build_backbone` for the arguments and errors."""
    backbone = build_backbone(name, init, weights, model_args, names, fixed_batchnorm)
    return CnnCam(backbone, num_classes, frozen_stages)
