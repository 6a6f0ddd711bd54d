"""Networks with the made-up weights of the golden files."""

from collections.abc import Callable, Mapping

import torch
from golden import fill
from torch import Tensor, nn

from deeplab.config import Config
from deeplab.model import MultiScale, build_model
from misc.transforms import normalise, to_chw
from net.deit_cam import DeitCam, build_deit_cam
from net.irn import IRNet, build_irn
from net.resnet_cam import CnnCam, build_cnn_cam

NUM_CLASSES = 20


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
    model = build_irn("resnet50", init="random")
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
