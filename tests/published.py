"""Weight files as the published code wrote them, from the names and shapes of its modules.

Nothing here comes from our networks or converters: the names are written down as rules. A module
that the published code registers several times appears under every name, as in its files; the first
name is the one whose golden value (`fill.value`) the tensor has.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from golden import fill

Shapes = dict[str, tuple[int, ...]]
State = dict[str, torch.Tensor]

RESNET50, RESNET152 = (3, 4, 6, 3), (3, 8, 36, 3)
STEM = ("conv1", "bn1", "relu", "maxpool")
CNN_STAGES = ((*STEM, "layer1"), ("layer2",), ("layer3",), ("layer4",))
IRN_STAGES = (STEM, ("layer1",), ("layer2",), ("layer3",), ("layer4",))
RADIUS = 10
SOURCES = (128 - (RADIUS - 1)) * (128 - 2 * (RADIUS - 1))  # cells of the 512 crop with all partners


# ----------------------------------------------------------------------------- names and shapes


def _norm(name: str, channels: int) -> Shapes:
    shapes: Shapes = {
        f"{name}.{tensor}": (channels,)
        for tensor in ("weight", "bias", "running_mean", "running_var")
    }
    return shapes | {f"{name}.num_batches_tracked": ()}


def resnet(depths: tuple[int, ...]) -> Shapes:
    """`resnet50.*`: a ResNet of bottleneck blocks without its classifier, whatever its depth."""
    shapes = {"conv1.weight": (64, 3, 7, 7), **_norm("bn1", 64)}
    inputs = 64
    for number, depth in enumerate(depths):
        planes = 64 * 2**number
        for block in range(depth):
            name = f"layer{number + 1}.{block}"
            for index, (c_out, c_in, side) in enumerate(
                ((planes, inputs, 1), (planes, planes, 3), (4 * planes, planes, 1)), start=1
            ):
                shapes[f"{name}.conv{index}.weight"] = (c_out, c_in, side, side)
                shapes |= _norm(f"{name}.bn{index}", c_out)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * planes, inputs, 1, 1)
                shapes |= _norm(f"{name}.downsample.1", 4 * planes)
            inputs = 4 * planes
    return {f"resnet50.{name}": shape for name, shape in shapes.items()}


def cnn(depths: tuple[int, ...] = RESNET152, num_classes: int = 20) -> Shapes:
    """`res152_cam.pth`, each tensor once."""
    return resnet(depths) | {"classifier.weight": (num_classes, 2048, 1, 1)}


def _head(name: str, inputs: int, outputs: int) -> Shapes:
    norm = {f"{name}.1.weight": (outputs,), f"{name}.1.bias": (outputs,)}
    return {f"{name}.0.weight": (outputs, inputs, 1, 1), **norm}


def irn(depths: tuple[int, ...] = RESNET50) -> Shapes:
    """Weights and mean shift of `res50_irn.pth`, each tensor once."""
    shapes = resnet(depths) | {"mean_shift.running_mean": (2,)}
    channels = (64, 256, 512, 1024, 2048)
    for number, inputs in enumerate(channels, start=1):
        shapes |= _head(f"fc_edge{number}", inputs, 32)
    shapes |= {"fc_edge6.weight": (1, 160, 1, 1), "fc_edge6.bias": (1,)}
    outputs = (64, 128, 256, 256, 256, 256, 256)
    for number, pair in enumerate(zip((*channels, 768, 448), outputs, strict=True), start=1):
        shapes |= _head(f"fc_dp{number}", *pair)
    return shapes | {"fc_dp7.3.weight": (2, 256, 1, 1)}


def transformer(dim: int = 384, depth: int = 12, num_classes: int = 20) -> Shapes:
    """`deits_cam.pth`: a DeiT for 224 pixels in patches of 16, its head a 3x3 convolution."""
    shapes: Shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, 14 * 14 + 1, dim)}
    layers: Shapes = {"patch_embed.proj": (dim, 3, 16, 16)}
    for block in (f"blocks.{number}" for number in range(depth)):
        layers |= {f"{block}.norm1": (dim,), f"{block}.attn.qkv": (3 * dim, dim)}
        layers |= {f"{block}.attn.proj": (dim, dim), f"{block}.norm2": (dim,)}
        layers |= {f"{block}.mlp.fc1": (4 * dim, dim), f"{block}.mlp.fc2": (dim, 4 * dim)}
    layers |= {"norm": (dim,), "head": (num_classes, dim, 3, 3)}
    for name, weight in layers.items():
        shapes |= {f"{name}.weight": weight, f"{name}.bias": weight[:1]}
    return shapes


SHAPES = {"cnn": cnn, "transformer": transformer, "irn": irn}


def name_of(own: str, kind: str) -> str:
    """Published name of a tensor of our network."""
    return (
        own.removeprefix("vit.") if kind == "transformer" else own.replace("backbone.", "resnet50.")
    )


# ---------------------------------------------------------------------------------- whole files


def values(shapes: Shapes) -> State:
    """The golden value of every tensor; batch counters are integers."""
    return {
        name: torch.tensor(7) if name.endswith("num_batches_tracked") else _golden(name, shape)
        for name, shape in shapes.items()
    }


def _golden(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(fill.value(name, shape).astype(np.float32))


def file_of(kind: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """What the published code saves: every tensor under all its names, buffers included."""
    if kind == "transformer":
        return dict(state)
    stages = CNN_STAGES if kind == "cnn" else IRN_STAGES
    copies = {new: value for key, value in state.items() for new in _copies(key, stages)}
    return {**state, **copies, **(path_buffers() if kind == "irn" else {})}


def _copies(key: str, stages: tuple[tuple[str, ...], ...]) -> Iterator[str]:
    """The other names of a tensor."""
    for index, stage in enumerate(stages):
        for position, module in enumerate(stage):
            if key.startswith(start := f"resnet50.{module}."):
                yield f"stage{index + 1}.{position}.{key.removeprefix(start)}"
                yield f"backbone.{index}.{position}.{key.removeprefix(start)}"
    if key == "classifier.weight":
        yield "newly_added.0.weight"
    if key == "mean_shift.running_mean":
        yield from ("fc_dp7.4.running_mean", "dp_layers.6.4.running_mean")
    for layers, prefix in (("edge_layers", "fc_edge"), ("dp_layers", "fc_dp")):
        if key.startswith(prefix):
            number, _, rest = key.removeprefix(prefix).partition(".")
            yield f"{layers}.{int(number) - 1}.{rest}"


def path_buffers() -> State:
    """Tables that IRNet's training class keeps among its weights, one per path length.

    Shapes from the golden paths; the tables are views of one number, so that the file stays small.
    """
    with np.load(f"{fill.__file__.removesuffix('fill.py')}affinity_paths.npz") as golden:
        lengths = np.bincount(golden[f"paths_r{RADIUS}"][:, 0])
        targets = torch.from_numpy(golden[f"search_dst_r{RADIUS}"]).float()
    cell = torch.tensor(5)
    tables = {
        f"path_indices{index}": cell.expand(int((lengths == length).sum()), int(length), SOURCES)
        for index, length in enumerate(sorted(set(lengths.tolist())))
    }
    return tables | {"disp_target": targets.T[None, :, :, None]}
