"""Small DeepLab networks, and what their initialisation makes of weight files."""

from dataclasses import replace

import torch
from torch import nn

from deeplab.config import BACKBONE, RESNET101, Config, Dataset
from deeplab.initialisation import InitReport, initialise
from deeplab.model import DeepLabV2, MultiScale, build_model
from misc.checkpoint import StateDict

ONE_BLOCK, RESNET50, RATES = (1, 1, 1, 1), (3, 4, 6, 3), (1, 2)
N_CLASSES, ASPP_TENSORS = 4, 4
LITE = "tf_efficientnet_lite0"


def config_of(init: object, **model: object) -> Config:
    """Configuration of a small published network, or of what `model` says."""
    keys = {"N_BLOCKS": ONE_BLOCK, "ATROUS_RATES": RATES, "INIT_MODEL": str(init), **model}
    keys["NAME"] = BACKBONE if "BACKBONE" in model else RESNET101
    data = Dataset(N_CLASSES=N_CLASSES)
    return replace(Config(), MODEL=replace(Config().MODEL, **keys), DATASET=data)


def start(init: object, seed: int = 1, **model: object) -> tuple[MultiScale, InitReport]:
    """A new network and what its initialisation reports."""
    torch.manual_seed(seed)
    config = config_of(init, **model)
    net = build_model(config)
    return net, initialise(net, config)


def without_counters(state: StateDict) -> StateDict:
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def trained(n_classes: int = N_CLASSES) -> StateDict:
    """Weights of a trained small network, as in its final checkpoint."""
    torch.manual_seed(0)
    net = MultiScale(DeepLabV2(n_classes, ONE_BLOCK, RATES))
    return vary_norms(net).state_dict()


@torch.no_grad()
def vary_norms(model: nn.Module) -> nn.Module:
    """Give the batch norms statistics and weights as after a training."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.3)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(std=0.3)
    return model


def same(net: MultiScale, state: StateDict, but: str = "-") -> bool:
    """Whether the network has the weights of `state`, `base.` in front, except those named."""
    own = net.state_dict()
    return all(
        torch.equal(own[key], value)
        for key, value in without_counters(state).items()
        if but not in key
    )
