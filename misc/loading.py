"""How pictures get to the device: loaded by other processes, copied while the device computes."""

from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

Batch = TypeVar("Batch")


def pinned(device: torch.device) -> bool:
    """Whether loaders should put batches where the device copies from without the CPU's help."""
    return device.type == "cuda"


def eval_loader(
    dataset: Dataset, batch_size: int | None, num_workers: int, device: torch.device
) -> DataLoader:
    """Loader in list order.

    Args:
        dataset: items by index.
        batch_size: items of a batch; None yields single items as they are.
        num_workers: processes; 0 loads in this one.
        device: where the batches will be moved, see `to_device`.
    """
    return DataLoader(
        dataset, batch_size, shuffle=False, num_workers=num_workers, pin_memory=pinned(device)
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch, also those in dictionaries and lists, to the device.

    The CPU does not wait for the copy; what is computed from it on the device does.
    """
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list):
        return [to_device(value, device) for value in batch]
    return batch
