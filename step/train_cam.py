"""Step 1: train the CNN and the transformer branch together.

Reads pictures and image labels of `--train_list`; writes `sess/res152_cam.pth` and
`sess/deits_cam.pth`, and after every epoch the resumable `sess/train_cam.state.pth` and points and
a grid of pictures for TensorBoard in `result/logs/train_cam`.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset

from misc.batches import first_images, fit_batch
from misc.distributed import all_reduce_sum, is_main_process, on_main, select_device, shard
from misc.loading import eval_loader, to_device
from misc.precision import autocast
from misc.progress import progress
from misc.schedule import PolyAdamW, PolySGD
from misc.seed import seed_everything
from misc.training import Hook, Loss, Training
from misc.transforms import denormalise
from misc.visualize import heat_map, picture_grid
from net.backbone import calibrate_batchnorm
from net.batchnorm import synchronise_batchnorm
from net.deit_cam import DeitCam
from net.losses import CamLosses, cam_losses, classification_loss
from net.resnet_cam import CnnCam
from step.networks import build_cnn, build_deit, save_weights
from step.options import Options
from step.plan import begin, board_dir, state_path
from step.run import Run
from voc12.dataset import ClassificationDataset, ClassificationEvalDataset

STEP = "train_cam"
HEAD_FACTOR = 10.0  # learning rate of the classifiers over that of the networks
_GRID_PICTURES = 4
_LEAST_MAP = 1e-5  # so that a map without any positive value stays 0


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


def training_losses(
    models: Mapping[str, nn.Module], images: Tensor, labels: Tensor, precision: str = "float32"
) -> CamLosses:
    """Losses of both branches over some pictures.

    Args:
        models: `cnn` and `transformer`.
        images: (B, 3, S, S) normalised crops.
        labels: (B, C) of 0 and 1.
        precision: `float32` or `bfloat16`.
    """
    with autocast(images.device, precision):
        maps = models["cnn"](images), models["transformer"](images)
    return cam_losses(*maps, labels, images.shape[-1])


def run(run: Run) -> dict[str, Any]:
    """Train both branches, or keep finished weights of the same arguments."""
    work = begin(STEP, run)
    if not work.left:
        return {}
    training = _prepare(run, work.ids, work.record.fingerprint)
    if run.trial_steps is not None:
        training.shorten(run.trial_steps, run.options.cam_batch_size)
    training.run()
    models = {"cam_weights_name": training.models["cnn"]}
    models["deit_weights_name"] = training.models["transformer"]
    on_main(lambda: save_weights(run, models, work.record, training.history))
    return {"epochs": training.history}


def _prepare(run: Run, ids: tuple[str, ...], fingerprint: str) -> Training:
    """Data, networks and optimisers of the run."""
    options = run.options
    seed_everything(options.seed)
    dataset, device = _training_data(run, ids), select_device(options.device)
    batch_size = fit_batch(options.cam_batch_size, len(dataset), "--cam_batch_size")
    models = {"cnn": build_cnn(run).to(device), "transformer": build_deit(run).to(device)}
    steps = len(dataset) // batch_size * options.cam_num_epoches
    if options.init == "random" and options.cnn_weights is None and options.fixed_batchnorm:
        first = first_images(dataset, batch_size)
        calibrate_batchnorm(models["cnn"].backbone, (images.to(device) for images in first))
    for model in models.values():
        synchronise_batchnorm(model)

    def step(parallel: Mapping[str, nn.Module], batch: dict[str, Any], epoch: int) -> Loss:
        cam_lambda = options.cam_lambda if epoch + 1 >= options.cam_refine_epoch else 0.0
        found = training_losses(parallel, batch["image"], batch["label"], options.precision)
        losses = CamLosses(*(batch["weight"] * loss for loss in found))  # means over pictures
        parts = {"cnn": losses.cnn, "transformer": losses.transformer, "l1": losses.refinement}
        return Loss(losses.total(cam_lambda), {n: loss.detach() for n, loss in parts.items()})

    training = Training(
        title="train_cam",
        dataset=dataset,
        batch_size=batch_size,
        units=options.cam_num_epoches,
        seed=options.seed,
        models=models,
        optimisers=_optimisers(options, models, steps),
        step=step,
        device=device,
        state_path=state_path(run, STEP),
        fingerprint=fingerprint,
        num_workers=options.num_workers,
        board_dir=board_dir(run, STEP),
        measure=lambda _: validate(run, models, device),
        hooks=(Hook(1, lambda epoch: _draw(training, epoch)),),
    )
    return training


def _training_data(run: Run, ids: tuple[str, ...]) -> ClassificationDataset:
    options, labels = run.options, run.source.image_labels(ids)
    low, high = (int(side) for side in options.cam_long_side)
    return ClassificationDataset(
        run.source.devkit, ids, labels, options.cam_crop_size, (low, high), options.seed
    )


def _optimisers(
    options: Options, models: Mapping[str, CnnCam | DeitCam], steps: int
) -> dict[str, PolySGD | PolyAdamW]:
    decay, momentum = options.cam_weight_decay, options.momentum
    rates = {"cnn": options.cam_learning_rate, "transformer": options.deit_learning_rate}
    kinds = {"cnn": "sgd", "transformer": options.deit_optimiser}
    return {
        name: build_optimiser(model, rates[name], decay, momentum, steps, kinds[name])
        for name, model in models.items()
    }


@torch.no_grad()
def _draw(training: Training, epoch: int) -> None:
    """A few training pictures with the strongest map of their classes by both branches."""
    if not is_main_process():
        return
    images, labels = (training.batch[name][:_GRID_PICTURES] for name in ("image", "label"))
    columns = [[denormalise(image.cpu().numpy()) for image in images]]
    for model in training.models.values():
        maps = F.interpolate(model.eval()(images).float(), images.shape[-2:], mode="bilinear")
        maps = maps.relu() * labels[:, :, None, None]  # (B, C, S, S)
        maps = maps / maps.amax(dim=(1, 2, 3), keepdim=True).clamp(min=_LEAST_MAP)
        columns.append(
            [heat_map(p, m.cpu().numpy()) for p, m in zip(columns[0], maps, strict=True)]
        )
    rows = list(zip(*columns, strict=True))
    training.board.picture("input_cnn_transformer", picture_grid(rows), epoch)


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
    sums = torch.zeros(len(models), dtype=torch.float64, device=device)
    share = Subset(dataset, shard(range(len(dataset))))
    loader = eval_loader(share, options.cam_batch_size, options.num_workers, device)
    for batch in progress(loader, "validate"):
        batch = to_device(batch, device)
        for index, model in enumerate(models.values()):
            with autocast(device, options.precision):
                maps = model(batch["image"])
            sums[index] += classification_loss(maps, batch["label"]).double() * len(maps)
    totals = all_reduce_sum(sums).tolist()
    return {f"val_{n}": total / len(dataset) for n, total in zip(models, totals, strict=True)}
