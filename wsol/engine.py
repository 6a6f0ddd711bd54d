"""Training of both networks, epoch by epoch, each followed by an evaluation on the test split."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from misc.batches import first_images
from misc.config import flatten
from misc.distributed import (
    is_main_process,
    join_processes,
    on_main,
    require_shared,
    select_device,
    together,
)
from misc.errors import UserError
from misc.files import atomic_path, write_json
from misc.precision import with_settled_precision
from misc.progress import log, set_log_file
from misc.provenance import Record
from misc.schedule import scale_learning_rates
from misc.seed import run_facts, seed_everything
from misc.tensorboard import require_tensorboard
from misc.training import Loss, Training
from net.backbone import calibrate_batchnorm
from net.batchnorm import synchronise_batchnorm
from wsol import lineage
from wsol.config import TRAINING, Config, Paths, paths_of
from wsol.evaluation import epoch_in_words, evaluate
from wsol.model import CNN, TRANSFORMER, Networks, build_cnn, build_transformer
from wsol.optimisation import build_optimisers, rate_factor, refine_weight, training_losses
from wsol.pictures import TEST, ImageSet, TrainPictures
from wsol.selection import keep_weights, log_summary, summary
from wsol.source import open_pictures, training_pictures


def train(
    config: Config,
    learning_rate: float,
    device_name: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Train both networks, or go on with a run of the same settings; see `wsol.config.Paths`.

    Args:
        config: from `wsol.config.load`.
        learning_rate: of the transformer.
        device_name: see `misc.distributed.select_device`.
        resume: insist on a run to go on with; without it one is used where there is one.
        overwrite: start afresh; what is there is deleted when everything else is ready.
        notes: first lines of the log.

    Returns:
        The content of results.json.

    Raises:
        UserError: bad data, weights that cannot be had, another run in BASIC.SAVE_DIR, or a loss
            that is not finite.
    """
    device, paths = select_device(device_name), paths_of(config)
    join_processes(device)
    require_shared(paths.folder, "BASIC.SAVE_DIR")
    _open_log(paths, notes)
    config = with_settled_precision(config, device)
    image_set = open_pictures(config)

    def begin() -> tuple[Record, bool]:
        record = lineage.training(config, learning_rate, image_set)
        lineage.require_own_weights(paths)
        if not overwrite:
            lineage.require_same_run(paths, record, resume)
        return record, paths.state.is_file() and not overwrite

    record, started = on_main(begin)
    with together():
        epochs = _prepare(config, record, device, image_set, started)
    on_main(lambda: lineage.claim(paths, record, overwrite))
    epochs.training.run()
    return epochs.finish()


def _open_log(paths: Paths, notes: Sequence[str]) -> None:
    try:
        set_log_file(paths.log)
        for note in notes:
            log(note)
    except OSError as error:
        raise UserError(f"BASIC.SAVE_DIR {paths.folder} cannot be written: {error}.") from None


# --------------------------------------------------------------------------------- preparations


def _prepare(
    config: Config, record: Record, device: torch.device, image_set: ImageSet, started: bool
) -> "Epochs":
    """Networks, optimisers and the loop of a run; nothing is written."""
    require_tensorboard()
    seed_everything(config.BASIC.SEED)
    paths, dataset = paths_of(config), training_pictures(config, image_set)
    networks = _build_networks(config, dataset, device, started)
    optimisers = build_optimisers(networks, config, record.arguments["--lr"])
    epochs = Epochs(config, record, device, image_set, networks, optimisers)
    epochs.training = Training(
        title=TRAINING,
        dataset=dataset,
        batch_size=config.TRAIN.BATCH_SIZE,
        drop_last=False,
        units=config.SOLVER.NUM_EPOCHS,
        seed=config.BASIC.SEED,
        models=networks._asdict(),
        optimisers=optimisers,
        step=epochs.step,
        device=device,
        state_path=paths.state,
        fingerprint=record.fingerprint,
        num_workers=config.BASIC.NUM_WORKERS,
        board_dir=paths.board,
        curves=epochs.rates,
        before=epochs.before,
        measure=epochs.measure,
        settle=epochs.settle,
        in_words=epoch_in_words,
    )
    return epochs


def _build_networks(
    config: Config, dataset: TrainPictures, device: torch.device, started: bool
) -> Networks:
    """Both networks on the device; a run that has started needs no first weights any more."""
    init = "random" if started else None
    networks = Networks(build_transformer(config, init), build_cnn(config, init)).to(device)
    model = config.MODEL
    untrained = model.INIT == "random" and model.CNN_WEIGHTS is None
    if untrained and model.FIXED_BATCHNORM and not started:
        first = first_images(dataset, config.TRAIN.BATCH_SIZE)
        calibrate_batchnorm(networks.cnn.backbone, (images.to(device) for images in first))
    for network in networks:
        synchronise_batchnorm(network)
    for name, text in lineage.initialisation(config).items():
        log(f"{name}: {text}.")
    return networks


# -------------------------------------------------------------------------------------- epochs


@dataclass
class Epochs:
    """What happens around the epochs of a run.

    Files are written when the state of their epoch is saved already, and follow from it alone: a
    run that is killed at any point and resumed leaves the files of an uninterrupted one.
    """

    config: Config
    record: Record
    device: torch.device
    image_set: ImageSet
    networks: Networks
    optimisers: dict[str, Optimizer]
    training: Training = field(init=False)
    step_seconds: list[float] = field(default_factory=list)
    picture_seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.paths = paths_of(self.config)
        self._start = 0.0
        self._facts = {
            "arguments": {"--lr": self.record.arguments["--lr"], **flatten(self.config)},
            "initialisation": lineage.initialisation(self.config),
        }

    def rates(self, epoch: int) -> dict[str, float]:
        """Learning rates of an epoch, from 1, by name."""
        factor, solver = rate_factor(self.config, epoch), self.config.SOLVER
        cnn_factor = factor if solver.DECAY_CNN else 1.0
        return {
            "rate_transformer": factor * self.record.arguments["--lr"],
            "rate_cnn": cnn_factor * solver.CNN_LR,
        }

    def step(self, models: Mapping[str, nn.Module], batch: dict[str, Any], epoch: int) -> Loss:
        """This process's part of the losses of a batch in an epoch, from 0."""
        l1_weight = refine_weight(self.config, epoch + 1)
        losses, right = training_losses(
            models, batch["image"], batch["label"], l1_weight, self.config.SOLVER.PRECISION
        )
        parts = {f"loss_{TRANSFORMER}": losses.transformer, f"loss_{CNN}": losses.cnn}
        parts |= {"loss_l1": losses.refinement, "prec1": right}
        weight = batch["weight"]
        return Loss(
            weight * losses.total(l1_weight), {n: weight * v.detach() for n, v in parts.items()}
        )

    def before(self, epoch: int) -> None:
        """Set the learning rates of an epoch, from 0."""
        factor = rate_factor(self.config, epoch + 1)
        scale_learning_rates(self.optimisers[TRANSFORMER], factor)
        if self.config.SOLVER.DECAY_CNN:
            scale_learning_rates(self.optimisers[CNN], factor)
        self._start = time.perf_counter()

    def measure(self, epoch: int) -> dict[str, float]:
        """Scores in percent on the test split after an epoch, from 1."""
        seconds = time.perf_counter() - self._start
        self.step_seconds.append(seconds / self.training.steps_per_unit)
        is_last = epoch == self.config.SOLVER.NUM_EPOCHS
        boxed = is_last and self.config.TEST.SAVE_BOXED_IMAGE
        found = evaluate(
            self.networks,
            self.image_set.test,
            self.config,
            self.device,
            [self.config.MODEL.CAM_THR],
            self.paths.boxed_images(TEST) if boxed else None,
        )
        self.picture_seconds.append(found.seconds_per_picture)
        return found.scores.numbers()

    def finish(self) -> dict[str, Any]:
        """Write results.json and say the scores; returns its content."""
        results = summary(self.training.history, self.paths)
        content = {
            "results": results,
            "history": self.training.history,
            "speed": self._speed(),
            "pictures": {"train": len(self.image_set.train), "test": len(self.image_set.test)},
            **self._facts,
            **run_facts(self.device),
        }
        if is_main_process():
            write_json(self.paths.results, content)
        log_summary(results)
        log(f"weights, log.jsonl and results.json are in {self.paths.folder}")
        return content

    def settle(self) -> None:
        """Write the weights of the newest finished epoch, and a line for every one.

        The history comes from the training state, so that a resumed run has every epoch once, also
        where it was killed between the state and these files.
        """
        history = self.training.history
        if not history or not is_main_process():
            return
        keep_weights(self.networks, history, self.paths, self.record, self._facts)
        rows = ({"epoch": e, **row, **self.rates(e)} for e, row in enumerate(history, start=1))
        with atomic_path(self.paths.epoch_log) as temporary:
            temporary.write_text("".join(f"{json.dumps(r)}\n" for r in rows), encoding="utf-8")

    def _speed(self) -> dict[str, float]:
        """Mean wall times of this process's epochs; nothing when all were finished before."""
        measured = {
            "seconds_per_step": self.step_seconds,
            "seconds_per_test_picture": self.picture_seconds,
        }
        means = {name: sum(times) / len(times) for name, times in measured.items() if times}
        if means:
            log(", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in means.items()))
        return means
