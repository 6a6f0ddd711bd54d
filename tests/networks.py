"""Networks with the made-up weights of the golden files."""

from collections.abc import Callable, Mapping

import torch
import torchvision
from golden import fill
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from deeplab.config import Config
from deeplab.model import MultiScale, build_model
from misc.transforms import normalise, to_chw
from net.backbone import ResNetBackbone, build_backbone
from net.deit_cam import DeitCam, build_deit_cam
from net.irn import IRNet
from net.option_names import OptionNames
from net.resnet_cam import CnnCam, build_cnn_cam

NUM_CLASSES = 20
# what messages of run_sample.py call the settings of its networks
CNN_OPTIONS = OptionNames(weights="--cnn_weights", random="--init random", arguments="--cnn_args")
VIT_OPTIONS = OptionNames(
    "--vit",
    "--vit_weights",
    "--init random",
    "--vit_args",
    "--tile_size",
    "--tile_stride",
    "--cam_crop_size",
)


def fill_weights(model: nn.Module, official_name: Callable[[str], str]) -> None:
    """Overwrite every tensor with the value that belongs to its published name."""
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if not key.endswith("num_batches_tracked"):
                value = fill.value(official_name(key), tuple(tensor.shape))
                tensor.copy_(torch.from_numpy(value))


def golden_cnn() -> CnnCam:
    """ResNet152 branch with golden weights, in evaluation mode."""
    model = build_cnn_cam("resnet152", NUM_CLASSES, init="random")
    fill_weights(model, lambda key: key.replace("backbone.", "resnet50."))
    return model.eval()


def golden_deit() -> DeitCam:
    """DeiT-S branch with golden weights, in evaluation mode."""
    model = build_deit_cam("deit_small_patch16_224", NUM_CLASSES, init="random")
    fill_weights(model, lambda key: key.removeprefix("vit."))
    return model.eval()


def golden_irn() -> IRNet:
    """ResNet50 IRNet with golden weights, in evaluation mode."""
    model = IRNet(build_backbone("resnet50", init="random"))
    fill_weights(model, lambda key: key.replace("backbone.", "resnet50."))
    return model.eval()


def golden_deeplab() -> MultiScale:
    """DeepLab v2 ResNet101 on three scales with golden weights, in evaluation mode."""
    model = build_model(Config())
    fill_weights(model, lambda key: key)
    return model.eval()


def update(optimisers: Mapping[str, torch.optim.Optimizer], loss: Tensor) -> None:
    """One step of training as in a single process."""
    for optimiser in optimisers.values():
        optimiser.zero_grad()
    loss.backward()
    for optimiser in optimisers.values():
        optimiser.step()


def picture(name: str, height: int, width: int) -> Tensor:
    """Normalised golden picture (3, height, width)."""
    return torch.from_numpy(to_chw(normalise(fill.image(name, height, width))))


# ------------------------------------------------------------------ small ones, by published kind

DEPTHS = (1, 1, 1, 1)  # blocks of the ResNet's stages
SMALL_CLASSES = 3
SMALL_VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2}


def _small_backbone() -> ResNetBackbone:
    return ResNetBackbone(torchvision.models.ResNet(Bottleneck, list(DEPTHS)))


def small_cnn() -> CnnCam:
    """CNN branch with one block per stage."""
    return CnnCam(_small_backbone(), SMALL_CLASSES)


def small_irn() -> IRNet:
    """IRNet on a backbone with one block per stage."""
    return IRNet(_small_backbone())


def small_deit() -> DeitCam:
    """Transformer branch with two narrow blocks."""
    name = "deit_small_patch16_224"
    return build_deit_cam(name, SMALL_CLASSES, init="random", model_args=SMALL_VIT)


SMALL_NETWORKS = {"cnn": small_cnn, "irn": small_irn, "transformer": small_deit}


def randomise(model: nn.Module) -> dict[str, Tensor]:
    """Overwrite every tensor; returns a copy of the state dict."""
    generator = torch.Generator().manual_seed(1)
    state = model.state_dict()
    for value in state.values():
        value.copy_(torch.rand(value.shape, generator=generator) * 10)
    return {key: value.clone() for key, value in state.items()}
