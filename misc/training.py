"""The epoch loop that CAM training and IRNet training share: seeded, resumable, logged."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from misc.checkpoint import load_training_state, save_training_state
from misc.errors import UserError
from misc.progress import log, progress

_EPOCH_SEED_STRIDE = 1_000_003  # keeps the shuffles of different seeds apart


class EpochDataset(Protocol):
    """A data set whose augmentation depends on (seed, epoch, index) alone."""

    epoch: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Autocast to bfloat16 when `precision` asks for it; float32 is left alone."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def fit_batch(batch_size: int, count: int, option: str) -> int:
    """The batch size, or the number of pictures when there are fewer (with a line in the log)."""
    if count < batch_size:
        log(
            f"{option} {batch_size} is more than the {count} pictures of the list; {count} is used."
        )
    return min(batch_size, count)


@dataclass
class Training:
    """One training run.

    Attributes:
        title: short text for bars and log lines.
        dataset: items with a settable `epoch`.
        batch_size: pictures per step; the rest of an epoch that fills no batch is dropped.
        epochs: number of epochs.
        seed: of the order of pictures.
        models: networks by name, already on `device`.
        optimisers: optimisers by name.
        step: takes a batch on the device and the epoch (from 0), updates the networks, returns
            its losses by name as detached scalar tensors.
        state_path: resumable state, written after every epoch.
        fingerprint: identifies arguments and data of the run.
        num_workers: loader processes.
        after_epoch: called with the epoch; returns numbers for the log.
    """

    title: str
    dataset: EpochDataset
    batch_size: int
    epochs: int
    seed: int
    models: Mapping[str, nn.Module]
    optimisers: Mapping[str, torch.optim.Optimizer]
    step: Callable[[dict[str, Any], int], dict[str, Tensor]]
    device: torch.device
    state_path: Path
    fingerprint: str
    num_workers: int = 0
    after_epoch: Callable[[int], dict[str, float]] | None = None
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches per epoch."""
        return len(self.dataset) // self.batch_size

    def resume(self) -> int:
        """Restore the last finished epoch, if any, and return how many are finished."""
        state = load_training_state(self.state_path, self.models, self.optimisers, self.fingerprint)
        if state is None:
            return 0
        self.history = list(state.extra.get("history", []))
        log(f"{self.title}: continued after epoch {state.epoch} from {self.state_path}.")
        return state.epoch

    def run(self) -> None:
        """Run all epochs that are not finished yet.

        Raises:
            UserError: a loss is not finite.
        """
        for epoch in range(self.resume(), self.epochs):
            means = self._run_epoch(epoch)
            if self.after_epoch is not None:
                means.update(self.after_epoch(epoch))
            self.history.append(means)
            numbers = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
            log(f"{self.title}: epoch {epoch + 1}/{self.epochs}: {numbers}")
            save_training_state(
                self.state_path,
                self.models,
                self.optimisers,
                epoch + 1,
                self.fingerprint,
                {"history": self.history},
            )

    def _run_epoch(self, epoch: int) -> dict[str, float]:
        for model in self.models.values():
            model.train()
        self.dataset.epoch = epoch
        sums: dict[str, Tensor] = {}
        bar = progress(self._loader(epoch), f"{self.title} {epoch + 1}/{self.epochs}")
        for index, batch in enumerate(bar):
            losses = self.step(to_device(batch, self.device), epoch)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value
            total = float(sum(losses.values()))
            self._require_finite(total, losses, epoch, index)
            bar.set_postfix({name: f"{float(value):.3f}" for name, value in losses.items()})
        return {name: float(value) / self.steps_per_epoch for name, value in sums.items()}

    def _loader(self, epoch: int) -> DataLoader:
        order = torch.Generator().manual_seed(self.seed * _EPOCH_SEED_STRIDE + epoch)
        return DataLoader(
            self.dataset,
            self.batch_size,
            shuffle=True,
            drop_last=True,
            generator=order,
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
        )

    def _require_finite(
        self, total: float, losses: Mapping[str, Tensor], epoch: int, index: int
    ) -> None:
        if not math.isfinite(total):
            values = ", ".join(f"{name} {float(value)}" for name, value in losses.items())
            raise UserError(
                f"{self.title}: a loss is not finite in step {index + 1} of epoch {epoch + 1} "
                f"({values}); lower the learning rate and start again with --overwrite."
            )


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move the tensors of a batch to the device."""
    return {
        key: value.to(device, non_blocking=True) if torch.is_tensor(value) else value
        for key, value in batch.items()
    }


def eval_loader(dataset: Dataset, batch_size: int | None, num_workers: int) -> DataLoader:
    """Loader in list order; `batch_size` None yields single items as they are."""
    return DataLoader(dataset, batch_size, shuffle=False, num_workers=num_workers)
