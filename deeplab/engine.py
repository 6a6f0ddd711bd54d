"""Training of DeepLab: a loop over iterations that is seeded, resumable and logged.

Reads the pictures and label maps of DATASET.SPLIT.TRAIN; writes `checkpoint_{N}.pth`,
`checkpoint_final.pth` and, on the way, `training.state.pth`, from which the same command goes on.
Under torchrun every process takes its part of every batch; the parts may differ by one picture.
"""

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from deeplab import lineage
from deeplab.config import FINAL, Config, Paths
from deeplab.data import TrainDataset, from_input, id_list
from deeplab.initialisation import initialise
from deeplab.model import MultiScale, build_model, msc_loss
from deeplab.preflight import check_training
from misc.checkpoint import load_training_state, save_checkpoint, save_training_state
from misc.config import flatten
from misc.distributed import (
    all_reduce_mean,
    barrier,
    data_parallel,
    is_main_process,
    join_processes,
    share_of_batch,
    world_size,
)
from misc.errors import UserError
from misc.outputs import keep_file, remove_file, require_own
from misc.progress import log, progress
from misc.provenance import Record, check_record, record_path, write_record
from misc.schedule import PolySGD
from misc.seed import seed_everything
from misc.tensorboard import Board, open_board
from misc.training import BatchStream, autocast, to_device
from misc.visualize import colour_label, picture_grid

ASPP_WEIGHT_FACTOR = 10.0  # learning rates over that of the body
ASPP_BIAS_FACTOR = 20.0

_GROUPS = ("body", "aspp_weights", "aspp_biases")
_GRID_PICTURES = 4
_CALIBRATION_BATCHES = 4
_EVENT_FILES = "events.out.tfevents.*"


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
    # The loss weights the pictures of all processes, see `msc_loss`.
    share_of_batch(config.SOLVER.BATCH_SIZE.TRAIN, "SOLVER.BATCH_SIZE.TRAIN", even=False)
    join_processes(device)
    paths = Paths(config)
    record = lineage.training(config, id_list(config, "train"))
    _require_own_checkpoints(paths, config)
    if not overwrite and _is_finished(paths, record):
        _remove_state(paths)
        return paths.checkpoint(FINAL)
    seed_everything(config.EXP.SEED)
    network = build_model(config).to(device)
    pictures, shares = check_training(config)
    # The record of a list ignores its order, so the weights must not depend on it either.
    dataset = TrainDataset(config, sorted(pictures.ids))
    report = initialise(network, config, _first_batches(dataset, config))
    if overwrite and is_main_process():
        _remove_run(paths)  # not before everything else has proved usable
    barrier()
    facts = {
        "initialisation": asdict(report),
        "training_labels": shares.content(),
        "lists": lineage.list_facts(pictures),
    }
    run = TrainingRun(config, device, dataset, network, record, facts)
    run.run()
    return run.finish()


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
    for path in paths.logs_dir.glob(_EVENT_FILES):
        path.unlink()


def _remove_state(paths: Paths) -> None:
    """Remove what a finished training does not need, in the main process."""
    if is_main_process():
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


def _first_batches(dataset: TrainDataset, config: Config) -> Iterator[Tensor]:
    """The first few pictures in batches, to calibrate batch norm; the same in every process."""
    size = config.SOLVER.BATCH_SIZE.TRAIN
    count = min(len(dataset), _CALIBRATION_BATCHES * size)
    for start in range(0, count, size):
        stop = min(start + size, count)
        yield torch.stack([dataset[0, index]["image"] for index in range(start, stop)])


class TrainingRun:
    """One training.

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
        self.config, self.solver, self.paths = config, config.SOLVER, Paths(config)
        self.device, self.dataset, self.network = device, dataset, network
        self.record, self.facts = record, facts
        self.optimiser = build_optimiser(network, config)
        self.recent_losses: deque[float] = deque(maxlen=self.solver.AVERAGE_LOSS)
        self.history: list[dict[str, float]] = []
        self.start = self._resume()
        self.model = data_parallel(network, device)

    def _resume(self) -> int:
        """Restore the last state, if any, and return how many iterations are finished."""
        models, optimisers = {"deeplab": self.network}, {"sgd": self.optimiser}
        path, fingerprint = self.paths.state_path, self.record.fingerprint
        state = load_training_state(path, models, optimisers, fingerprint)
        barrier()  # nobody writes a new state before all have read this one
        if state is None:
            return 0
        self.recent_losses.extend(state.extra["recent_losses"])
        self.history = list(state.extra["history"])
        log(f"train: continued after iteration {state.epoch} from {path}.")
        return state.epoch

    def run(self) -> None:
        """Run the iterations that are not finished yet.

        Raises:
            UserError: a loss, a weight or a class score is not finite.
        """
        solver = self.solver
        log(
            f"train: {solver.ITER_MAX - self.start} iterations of {solver.ITER_SIZE} x "
            f"{solver.BATCH_SIZE.TRAIN} pictures on {self.device} in {world_size()} process(es)"
        )
        self.network.train()
        batches = iter(self._loader())
        clock = _Clock(solver.ITER_SIZE * solver.BATCH_SIZE.TRAIN)
        bar = progress(range(self.start + 1, solver.ITER_MAX + 1), "train")
        with open_board(self.paths.logs_dir, self.start + 1) as board:
            for iteration in bar:
                loss, batch = self._step(batches, iteration)
                self.recent_losses.append(loss)
                bar.set_postfix(loss=f"{loss:.3f}")
                clock.tick()
                if iteration % solver.ITER_TB == 0 or iteration == solver.ITER_MAX:
                    self._report(iteration, clock, board)
                if iteration % solver.ITER_SAVE == 0 or iteration == solver.ITER_MAX:
                    self._require_finite_scores(batch)
                if iteration % solver.ITER_SAVE == 0:
                    self._save_checkpoint(iteration)
                    self._draw(batch, iteration, board)
                if self._is_state_due(iteration):
                    self._save_state(iteration)

    def _loader(self) -> DataLoader:
        """Batches from the first that is not used yet."""
        solver, seed = self.solver, self.config.EXP.SEED
        stream = BatchStream(
            len(self.dataset),
            solver.BATCH_SIZE.TRAIN,
            seed,
            self.start * solver.ITER_SIZE,
            solver.ITER_MAX * solver.ITER_SIZE,
        )
        return DataLoader(
            self.dataset,
            batch_sampler=stream,
            num_workers=self.config.DATALOADER.NUM_WORKERS,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),
        )

    def _step(
        self, batches: Iterator[dict[str, Any]], iteration: int
    ) -> tuple[float, dict[str, Any]]:
        """One update from ITER_SIZE batches; returns their mean loss and the last of them."""
        count = self.solver.ITER_SIZE
        total = torch.zeros((), device=self.device)
        self.optimiser.zero_grad()
        for number in range(1, count + 1):
            batch = to_device(next(batches), self.device)
            with self._gradient_exchange(number == count):
                with autocast(self.device, self.solver.PRECISION):
                    outputs = self.model(batch["image"], every_output=True)
                loss = msc_loss(outputs, batch["label"], self.config.DATASET.IGNORE_LABEL)[0]
                (loss / count).backward()
            total += loss.detach() / count
        mean = float(all_reduce_mean(total))
        if not math.isfinite(mean):
            raise UserError(f"train: the loss is {mean} in iteration {iteration}; {self._remedy()}")
        self.optimiser.step()
        return mean, batch

    def _gradient_exchange(self, exchange: bool) -> AbstractContextManager:
        """Let the processes average their gradients only once per update."""
        if exchange or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _report(self, iteration: int, clock: "_Clock", board: Board) -> None:
        """Log the mean of the last losses, the learning rates and the speed."""
        loss = sum(self.recent_losses) / len(self.recent_losses)
        rates = [group["lr"] for group in self.optimiser.param_groups]
        speed = clock.pictures_per_second()
        self.history.append({"iteration": iteration, "loss": loss})
        log(
            f"train: iteration {iteration}/{self.solver.ITER_MAX}: loss {loss:.4f} (mean of the "
            f"last {len(self.recent_losses)}), learning rate {rates[0]:.3g}, {speed:.1f} pictures/s"
        )
        curves = {f"learning_rate/{name}": r for name, r in zip(_GROUPS, rates, strict=True)}
        board.scalars({"loss": loss, **curves, "pictures_per_second": speed}, iteration)

    def _is_state_due(self, iteration: int) -> bool:
        """Every ITER_STATE iterations and beside every checkpoint; the final one needs none."""
        due = iteration % self.solver.ITER_STATE == 0 or iteration % self.solver.ITER_SAVE == 0
        return due and iteration < self.solver.ITER_MAX

    def _require_finite_weights(self) -> None:
        """Stop before weights are written that no result can come from.

        Raises:
            UserError: a weight is not finite.
        """
        state = self.network.state_dict()
        broken = next((key for key, value in state.items() if not value.isfinite().all()), None)
        if broken is not None:
            raise UserError(
                f"train: {broken} is NaN or infinite after the last update, so nothing more is "
                f"written; {self._remedy()}"
            )

    @torch.no_grad()
    def _require_finite_scores(self, batch: dict[str, Any]) -> None:
        """Stop before weights are published that no picture can be segmented with.

        No loss has seen the last update, after which weights may be finite and yet too large.

        Raises:
            UserError: a class score of the batch is not finite.
        """
        if not self.network(batch["image"]).isfinite().all():
            raise UserError(
                "train: the network gives class scores that are NaN or infinite after the last "
                f"update, so nothing more is written; {self._remedy()}"
            )

    def _remedy(self) -> str:
        return f"lower SOLVER.LR, which is {self.solver.LR}, and start again with {lineage.REDO}."

    def _save_state(self, iteration: int) -> None:
        self._require_finite_weights()
        if not is_main_process():
            return
        path = self.paths.state_path
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, self.record)
        save_training_state(
            path,
            {"deeplab": self.network},
            {"sgd": self.optimiser},
            iteration,
            self.record.fingerprint,
            {"recent_losses": list(self.recent_losses), "history": self.history},
        )

    def _save_checkpoint(self, name: int | str) -> Path:
        """Write the weights under their published keys, and first the record of what made them."""
        self._require_finite_weights()
        path = self.paths.checkpoint(name)
        if is_main_process():
            facts = {**self.facts, "history": self.history, "config": flatten(self.config)}
            write_record(path, self.record, facts.pop("lists"), facts)
            weights = {key: value.cpu() for key, value in self.network.state_dict().items()}
            save_checkpoint(path, weights)
            log(f"wrote {path}")
        return path

    @torch.no_grad()
    def _draw(self, batch: dict[str, Any], iteration: int, board: Board) -> None:
        """Input, label and prediction of a few pictures of the batch."""
        if not is_main_process():
            return
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
        board.picture("input_label_prediction", picture_grid(rows), iteration)

    def finish(self) -> Path:
        """Write the final checkpoint and remove the state."""
        path = self._save_checkpoint(FINAL)
        _remove_state(self.paths)
        barrier()
        return path


class _Clock:
    """Speed of the iterations since it was last asked for."""

    def __init__(self, pictures_per_iteration: int) -> None:
        self._pictures = pictures_per_iteration
        self._iterations, self._start = 0, time.perf_counter()

    def tick(self) -> None:
        """Count an iteration."""
        self._iterations += 1

    def pictures_per_second(self) -> float:
        """Speed since the last call."""
        now = time.perf_counter()
        speed = self._iterations * self._pictures / (now - self._start)
        self._iterations, self._start = 0, now
        return speed
