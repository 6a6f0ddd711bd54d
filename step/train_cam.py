"""Step 1: train the CNN and the transformer branch together.

Reads pictures and image labels of `--train_list`; writes `sess/res152_cam.pth` and
`sess/deits_cam.pth`, and after every epoch the resumable `sess/train_cam.state.pth`.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from misc.distributed import select_device
from misc.progress import progress
from misc.schedule import PolyAdamW, PolySGD
from misc.seed import seed_everything
from misc.training import Training, autocast, eval_loader, fit_batch, to_device
from net.backbone import calibrate_batchnorm
from net.deit_cam import DeitCam
from net.losses import CamLosses, cam_losses, classification_loss
from net.resnet_cam import CnnCam
from step.networks import build_cnn, build_deit, save_weights
from step.plan import begin, state_path
from step.run import Run
from voc12.dataset import ClassificationDataset, ClassificationEvalDataset

STEP = "train_cam"
HEAD_FACTOR = 10.0  # learning rate of the classifiers over that of the networks
_CALIBRATION_BATCHES = 4


def build_optimiser(
    model: CnnCam | DeitCam,
    learning_rate: float,
    weight_decay: float,
    momentum: float,
    steps: int,
    kind: str = "sgd",
) -> PolySGD | PolyAdamW:
    """Optimiser with poly decay over `steps`; the classifier or head learns ten times as fast.

    Args:
        model: the branch.
        learning_rate: of everything but the classifier.
        weight_decay: L2 penalty, decoupled for AdamW.
        momentum: of SGD.
        steps: planned number of steps.
        kind: `sgd` or `adamw`.
    """
    body, head = model.parameter_groups()
    groups = [
        {"params": body, "lr": learning_rate},
        {"params": head, "lr": HEAD_FACTOR * learning_rate},
    ]
    if kind == "adamw":
        return PolyAdamW(groups, learning_rate, weight_decay, max_step=steps)
    return PolySGD(groups, learning_rate, weight_decay, momentum, max_step=steps)


def training_step(
    models: dict[str, nn.Module],
    optimisers: dict[str, torch.optim.Optimizer],
    images: Tensor,
    labels: Tensor,
    cam_lambda: float,
    precision: str = "float32",
) -> CamLosses:
    """One update of both branches.

    Args:
        models: `cnn` and `transformer`.
        optimisers: likewise.
        images: (B, 3, S, S) normalised crops.
        labels: (B, C) of 0 and 1.
        cam_lambda: weight of the refinement loss; 0 before it starts.
        precision: `float32` or `bfloat16`.
    """
    with autocast(images.device, precision):
        maps = models["cnn"](images), models["transformer"](images)
    losses = cam_losses(*maps, labels, images.shape[-1])
    for optimiser in optimisers.values():
        optimiser.zero_grad()
    losses.total(cam_lambda).backward()
    for optimiser in optimisers.values():
        optimiser.step()
    return CamLosses(*(loss.detach() for loss in losses))


def run(run: Run) -> dict[str, Any]:
    """Train both branches, or keep finished weights of the same arguments."""
    work = begin(STEP, run)
    if not work.left:
        return {}
    training = _prepare(run, work.ids, work.record.fingerprint)
    training.run()
    models = {"cam_weights_name": training.models["cnn"]}
    models["deit_weights_name"] = training.models["transformer"]
    save_weights(run, models, work.record, training.history)
    training.state_path.unlink(missing_ok=True)
    return {"epochs": training.history}


def _prepare(run: Run, ids: tuple[str, ...], fingerprint: str) -> Training:
    """Data, networks and optimisers of the run."""
    options = run.options
    seed_everything(options.seed)
    source, device = run.source, select_device(options.device)
    low, high = (int(side) for side in options.cam_long_side)
    dataset = ClassificationDataset(
        source.devkit,
        ids,
        source.image_labels(ids),
        options.cam_crop_size,
        (low, high),
        options.seed,
    )
    batch_size = fit_batch(options.cam_batch_size, len(dataset), "--cam_batch_size")
    models = {"cnn": build_cnn(run).to(device), "transformer": build_deit(run).to(device)}
    steps = len(dataset) // batch_size * options.cam_num_epoches
    decay, momentum = options.cam_weight_decay, options.momentum
    optimisers = {
        "cnn": build_optimiser(models["cnn"], options.cam_learning_rate, decay, momentum, steps),
        "transformer": build_optimiser(
            models["transformer"],
            options.deit_learning_rate,
            decay,
            momentum,
            steps,
            options.deit_optimiser,
        ),
    }
    if options.init == "random" and options.cnn_weights is None and options.fixed_batchnorm:
        calibrate_batchnorm(models["cnn"].backbone, _first_images(dataset, batch_size, device))

    def step(batch: dict[str, Any], epoch: int) -> dict[str, Tensor]:
        weight = options.cam_lambda if epoch + 1 >= options.cam_refine_epoch else 0.0
        images, labels = batch["image"], batch["label"]
        losses = training_step(models, optimisers, images, labels, weight, options.precision)
        return {"cnn": losses.cnn, "transformer": losses.transformer, "l1": losses.refinement}

    return Training(
        title="train_cam",
        dataset=dataset,
        batch_size=batch_size,
        epochs=options.cam_num_epoches,
        seed=options.seed,
        models=models,
        optimisers=optimisers,
        step=step,
        device=device,
        state_path=state_path(run, STEP),
        fingerprint=fingerprint,
        num_workers=options.num_workers,
        after_epoch=lambda epoch: validate(run, models, device),
    )


def _first_images(
    dataset: ClassificationDataset, batch_size: int, device: torch.device
) -> Iterator[Tensor]:
    """The first few batches of pictures, to calibrate batch norm."""
    count = min(len(dataset), _CALIBRATION_BATCHES * batch_size)
    for start in range(0, count, batch_size):
        stop = min(start + batch_size, count)
        yield torch.stack([dataset[i]["image"] for i in range(start, stop)]).to(device)


@torch.no_grad()
def validate(run: Run, models: dict[str, nn.Module], device: torch.device) -> dict[str, float]:
    """Classification losses of both branches on `--val_list` (empty without such a list)."""
    options, source = run.options, run.source
    ids = source.id_list(options.val_list).ids
    if not ids:
        return {}
    dataset = ClassificationEvalDataset(
        source.devkit, ids, source.image_labels(ids), options.cam_crop_size
    )
    for model in models.values():
        model.eval()
    sums = dict.fromkeys(models, 0.0)
    loader = eval_loader(dataset, options.cam_batch_size, options.num_workers)
    for batch in progress(loader, "validate"):
        batch = to_device(batch, device)
        for name, model in models.items():
            with autocast(device, options.precision):
                maps = model(batch["image"])
            sums[name] += float(classification_loss(maps, batch["label"])) * len(maps)
    return {f"val_{name}": total / len(dataset) for name, total in sums.items()}
