"""Tensors of the published DeepLab files, by key names and shapes that are written down here.

deeplabv1_resnet101-coco.pth is what deeplab-pytorch's convert.py makes of the COCO weights of the
authors of DeepLab, checkpoint_final.pth what its main.py saves.
"""

import torch

RESNET101 = (3, 4, 23, 3)


def coco_state(blocks: tuple[int, ...] = RESNET101, classes: int = 91) -> dict[str, torch.Tensor]:
    """Tensors of deeplabv1_resnet101-coco.pth by its key names: a DeepLab v1 without `base.`.

    Every convolution is followed by a batch norm, counter included; `fc` classifies pixels.
    """
    state: dict[str, torch.Tensor] = {}

    def unit(name: str, outputs: int, inputs: int, kernel: int) -> None:
        state[f"{name}.conv.weight"] = 0.1 * torch.randn(outputs, inputs, kernel, kernel)
        state[f"{name}.bn.running_mean"] = torch.randn(outputs)
        state[f"{name}.bn.running_var"] = torch.rand(outputs) + 0.5
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)
        state[f"{name}.bn.weight"] = torch.rand(outputs)
        state[f"{name}.bn.bias"] = torch.randn(outputs)

    torch.manual_seed(7)
    unit("layer1.conv1", 64, 3, 7)
    inputs = 64
    for layer, (count, outputs) in enumerate(zip(blocks, (256, 512, 1024, 2048), strict=True), 2):
        for block in range(1, count + 1):
            name, middle = f"layer{layer}.block{block}", outputs // 4
            unit(f"{name}.reduce", middle, inputs, 1)
            unit(f"{name}.conv3x3", middle, middle, 3)
            unit(f"{name}.increase", outputs, middle, 1)
            if block == 1:
                unit(f"{name}.shortcut", outputs, inputs, 1)
            inputs = outputs
    state["fc.weight"], state["fc.bias"] = torch.randn(classes, inputs, 1, 1), torch.zeros(classes)
    return state


def final_state(
    blocks: tuple[int, ...] = RESNET101, classes: int = 21, rates: int = 4
) -> dict[str, torch.Tensor]:
    """Tensors of checkpoint_final.pth by its published names: DeepLab v2 below `base.`."""
    state = {
        f"base.{key}": value
        for key, value in coco_state(blocks).items()
        if not key.startswith("fc.")
    }
    for index in range(rates):
        state[f"base.aspp.c{index}.weight"] = 0.01 * torch.randn(classes, 2048, 3, 3)
        state[f"base.aspp.c{index}.bias"] = torch.randn(classes)
    return state
