"""Training of DeepLab: a loop over iterations that is seeded, resumable and logged.

Reads the pictures and label maps of DATASET.SPLIT.TRAIN; writes `checkpoint_{N}.pth`,
`checkpoint_final.pth` and, on the way, `training.state.pth`, from which the same command goes on.
Under torchrun every process takes its part of every batch; the parts may differ by one picture.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from deeplab import lineage
from deeplab.config import FINAL, Config, Paths
from deeplab.data import TrainDataset, from_input, id_list
from deeplab.initialisation import initialise
from deeplab.model import MultiScale, build_model, msc_loss
from deeplab.preflight import check_training
from misc.batches import counted_labels, first_images
from misc.checkpoint import save_checkpoint
from misc.config import flatten
from misc.distributed import (
    all_reduce_sum,
    is_main_process,
    join_processes,
    on_main,
    require_shared,
    together,
    world_size,
)
from misc.outputs import keep_file, remove_file, require_own
from misc.precision import autocast
from misc.progress import log
from misc.provenance import Record, check_record, record_path, write_record
from misc.schedule import PolySGD
from misc.seed import seed_everything
from misc.tensorboard import remove_event_files
from misc.training import Hook, Loss, Numbers, Training
from misc.visualize import colour_label, picture_grid

ASPP_WEIGHT_FACTOR = 10.0  # learning rates over that of the body
ASPP_BIAS_FACTOR = 20.0

_GROUPS = ("body", "aspp_weights", "aspp_biases")
_GRID_PICTURES = 4


def build_optimiser(network: MultiScale, config: Config) -> PolySGD:
    """SGD with poly decay; ASPP weights learn 10 times as fast, its biases 20 times, undecayed."""
    solver = config.SOLVER
    body, weights, biases = network.parameter_groups()
    groups = [
        {"params": body, "lr": solver.LR},
        {"params": weights, "lr": ASPP_WEIGHT_FACTOR * solver.LR},
        {"params": biases, "lr": ASPP_BIAS_FACTOR * solver.LR, "weight_decay": 0.0},
    ]
    return PolySGD(
        groups,
        solver.LR,
        solver.WEIGHT_DECAY,
        solver.MOMENTUM,
        max_step=solver.ITER_MAX,
        power=solver.POLY_POWER,
        interval=solver.LR_DECAY,
    )


def train(config: Config, device: torch.device, overwrite: bool = False) -> Path:
    """Train, go on with a training that was stopped, or keep one that is finished.

    Args:
        config: configuration.
        device: of this process.
        overwrite: start afresh.

    Returns:
        The final checkpoint.

    Raises:
        UserError: the data or the first weights are unusable, there are results of other arguments,
            or the loss is not finite.
    """
    join_processes(device)
    require_shared(config.EXP.OUTPUT_DIR, "EXP.OUTPUT_DIR")
    paths = Paths(config)
    record, is_finished = on_main(lambda: _begin(config, overwrite))
    if is_finished:
        return paths.checkpoint(FINAL)
    seed_everything(config.EXP.SEED)
    with together():
        network = build_model(config).to(device)
    pictures, shares = on_main(lambda: check_training(config))
    # The record of a list ignores its order, so the weights must not depend on it either.
    dataset = TrainDataset(config, sorted(pictures.ids))
    with together():
        report = initialise(network, config, first_images(dataset, config.SOLVER.BATCH_SIZE.TRAIN))
    if overwrite:
        on_main(lambda: _remove_run(paths))  # not before everything else has proved usable
    facts = {
        "initialisation": asdict(report),
        "training_labels": shares.content(),
        "lists": lineage.list_facts(pictures),
    }
    run = TrainingRun(config, device, dataset, network, record, facts)
    log(
        f"train: {config.SOLVER.ITER_MAX} iterations of {config.SOLVER.ITER_SIZE} x "
        f"{config.SOLVER.BATCH_SIZE.TRAIN} pictures on {device} in {world_size()} process(es)"
    )
    run.training.run()
    return run.finish()


def _begin(config: Config, overwrite: bool) -> tuple[Record, bool]:
    """What makes the weights, and whether they are there; see `train`."""
    paths = Paths(config)
    record = lineage.training(config, id_list(config, "train"))
    _require_own_checkpoints(paths, config)
    is_finished = not overwrite and _is_finished(paths, record)
    if is_finished:
        _remove_state(paths)
    return record, is_finished


def _require_own_checkpoints(paths: Paths, config: Config) -> None:
    """Stop before a checkpoint is replaced that no training of ours has left.

    Raises:
        UserError: names it.
    """
    solver = config.SOLVER
    names = [*range(solver.ITER_SAVE, solver.ITER_MAX + 1, solver.ITER_SAVE), FINAL]
    remedy = (
        "move it away, train under another EXP.ID, or use it as it is with `test -m` and its path"
    )
    require_own(map(paths.checkpoint, names), "what made it", remedy)


def _remove_run(paths: Paths) -> None:
    """Remove the checkpoints, the state and the curves of an earlier training.

    Checkpoints without record stay: they are none of ours.
    """
    _remove_state(paths)
    found = paths.models_dir.glob("checkpoint_*.pth")
    checkpoints = [path for path in found if record_path(path).is_file()]
    for path in checkpoints:
        remove_file(path)
    remove_event_files(paths.logs_dir)


def _remove_state(paths: Paths) -> None:
    """Remove what a finished training does not need."""
    remove_file(paths.state_path)
    for half_written in paths.models_dir.glob(".tmp-*.pth"):  # left by a killed process
        half_written.unlink(missing_ok=True)


def _is_finished(paths: Paths, record: Record) -> bool:
    """Whether the final checkpoint of these arguments is there.

    Raises:
        UserError: it, or the state of a training that was stopped, is of other arguments.
    """
    if keep_file(paths.checkpoint(FINAL), record, option="EXP.ID", redo=lineage.REDO):
        return True
    if paths.state_path.is_file():
        check_record(paths.state_path, record, redo=lineage.REDO)
    return False


class TrainingRun:
    """One training: the step, and what happens between steps.

    Args:
        config: configuration.
        device: of this process.
        dataset: items keyed by (epoch, index).
        network: with its first weights, on the device.
        record: what the weights are made from.
        facts: to keep in the records of the checkpoints.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        dataset: TrainDataset,
        network: MultiScale,
        record: Record,
        facts: dict[str, Any],
    ) -> None:
        self.config, self.paths, self.network = config, Paths(config), network
        self.record, self.facts = record, facts
        self.optimiser = build_optimiser(network, config)
        solver = config.SOLVER
        self.training = Training(
            title="train",
            dataset=dataset,
            batch_size=solver.BATCH_SIZE.TRAIN,
            units=solver.ITER_MAX,
            unit="iteration",
            accumulate=solver.ITER_SIZE,
            seed=config.EXP.SEED,
            models={"deeplab": network},
            optimisers={"sgd": self.optimiser},
            step=self.step,
            device=device,
            state_path=self.paths.state_path,
            fingerprint=record.fingerprint,
            num_workers=config.DATALOADER.NUM_WORKERS,
            report_every=solver.ITER_TB,
            average=solver.AVERAGE_LOSS,
            state_every=(solver.ITER_STATE, solver.ITER_SAVE),
            board_dir=self.paths.logs_dir,
            curves=lambda _: self._learning_rates(),
            hooks=(
                Hook(solver.ITER_SAVE, self._require_finite_scores, at_end=True),
                Hook(solver.ITER_SAVE, self._save_checkpoint),
                Hook(solver.ITER_SAVE, self._draw),
                *(Hook(n, self._claim_state) for n in (solver.ITER_STATE, solver.ITER_SAVE)),
            ),
            in_words=self._in_words,
            remedy=f"lower SOLVER.LR, which is {solver.LR}, and start again with {lineage.REDO}.",
        )

    def step(self, models: Mapping[str, nn.Module], batch: dict[str, Any], _: int) -> Loss:
        """Loss of a batch, the labelled pixels of all processes weighted alike."""
        images, ignore = batch["image"], self.config.DATASET.IGNORE_LABEL
        with autocast(images.device, self.config.SOLVER.PRECISION):
            outputs = models["deeplab"](images, every_output=True)
        total = msc_loss(outputs, counted_labels(batch, ignore), ignore)[0]
        return Loss(total, {"loss": total.detach()})

    def _in_words(self, numbers: Numbers) -> str:
        """The mean of the last losses, the learning rate and the speed."""
        return (
            f"loss {numbers['loss']:.4f} (mean of the last {len(self.training.recent)}), "
            f"learning rate {self.optimiser.param_groups[0]['lr']:.3g}, "
            f"{self.training.pictures_per_second:.1f} pictures/s"
        )

    def _learning_rates(self) -> Numbers:
        rates = [group["lr"] for group in self.optimiser.param_groups]
        return {f"learning_rate/{name}": r for name, r in zip(_GROUPS, rates, strict=True)}

    @torch.no_grad()
    def _require_finite_scores(self, _: int) -> None:
        """Stop before weights are published that no picture can be segmented with.

        No loss has seen the last update, after which weights may be finite and yet too large.

        Raises:
            UserError: a class score of the batch is not finite.
        """
        is_broken = ~self.network(self.training.batch["image"]).isfinite().all()
        if all_reduce_sum(is_broken.float()):
            self.training.stop(
                "the network gives class scores that are NaN or infinite after the last update, "
                "so nothing more is written"
            )

    def _claim_state(self, _: int) -> None:
        """Say what makes the state that is about to be written."""
        if is_main_process():
            write_record(self.paths.state_path, self.record)

    def _save_checkpoint(self, name: int | str) -> Path:
        """Write the weights under their published keys, and first the record of what made them."""
        path = self.paths.checkpoint(name)
        if is_main_process():
            history = self.training.history
            facts = {**self.facts, "history": history, "config": flatten(self.config)}
            write_record(path, self.record, facts.pop("lists"), facts)
            weights = {key: value.cpu() for key, value in self.network.state_dict().items()}
            save_checkpoint(path, weights)
            log(f"wrote {path}")
        return path

    @torch.no_grad()
    def _draw(self, iteration: int) -> None:
        """Input, label and prediction of a few pictures of the batch."""
        if not is_main_process():
            return
        batch = self.training.batch
        images, labels = (batch[name][:_GRID_PICTURES] for name in ("image", "label"))
        scores = self.network(images).float()
        scores = F.interpolate(scores, images.shape[-2:], mode="bilinear", align_corners=False)
        rows = [
            [
                from_input(image, self.config.IMAGE.MEAN),
                *(colour_label(one.byte().cpu().numpy()) for one in (label, prediction)),
            ]
            for image, label, prediction in zip(images, labels, scores.argmax(1), strict=True)
        ]
        self.training.board.picture("input_label_prediction", picture_grid(rows), iteration)

    def finish(self) -> Path:
        """Write the final checkpoint and remove the state."""
        path = self._save_checkpoint(FINAL)
        on_main(lambda: _remove_state(self.paths))
        return path
