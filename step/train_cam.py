"""Step 1: train the CNN and the transformer branch together.

Reads pictures and image labels of `--train_list`; writes `sess/res152_cam.pth` and
`sess/deits_cam.pth`, and after every epoch the resumable `sess/train_cam.state.pth` and points and
a grid of pictures for TensorBoard in `result/logs/train_cam`.
"""

import argparse
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset

from misc.batches import first_images, fit_batch
from misc.checkpoint import save_checkpoint
from misc.distributed import all_reduce_sum, barrier, is_main_process, select_device, shard
from misc.errors import UserError
from misc.files import remove_leftovers
from misc.progress import log, progress
from misc.provenance import keep_file, read_record, seal_record, write_record
from misc.schedule import PolyAdamW, PolySGD
from misc.seed import seed_everything
from misc.training import Hook, Loss, Training, autocast, eval_loader, to_device
from misc.transforms import denormalise
from misc.visualize import heat_map, picture_grid
from net.backbone import calibrate_batchnorm
from net.batchnorm import synchronise_batchnorm
from net.deit_cam import DeitCam, build_deit_cam
from net.losses import CamLosses, cam_losses, classification_loss
from net.resnet_cam import CnnCam, build_cnn_cam
from step import lineage
from step.plan import board_dir, state_path
from voc12.dataset import ClassificationDataset, ClassificationEvalDataset
from voc12.source import open_source

STEP = "train_cam"
HEAD_FACTOR = 10.0  # learning rate of the classifiers over that of the networks
_GRID_PICTURES = 4
_LEAST_MAP = 1e-5  # so that a map without any positive value stays 0


def build_cnn(args: argparse.Namespace, init: str | None = None) -> CnnCam:
    """CNN branch of the options; `init` random skips ImageNet weights that would be overwritten."""
    return build_cnn_cam(
        args.cnn,
        args.num_classes,
        init or args.init,
        args.cnn_weights if init is None else None,
        args.cnn_frozen_stages,
        args.fixed_batchnorm,
    )


def build_deit(args: argparse.Namespace, init: str | None = None) -> DeitCam:
    """Transformer branch of the options; see `build_cnn`."""
    return build_deit_cam(
        args.vit,
        args.num_classes,
        args.tile_size,
        args.tile_stride,
        args.num_passes,
        init or args.init,
        args.vit_weights if init is None else None,
        args.vit_args,
    )


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


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train both branches, or keep finished weights of the same arguments."""
    source = open_source(args)
    record = lineage.cam_training(args)
    cnn_kept, deit_kept = (
        keep_file(path, record, force=args.force, option=option)
        for option, path in (
            ("--cam_weights_name", args.cam_weights_name),
            ("--deit_weights_name", args.deit_weights_name),
        )
    )
    if cnn_kept and deit_kept:
        return {}
    for path, kept in ((args.cam_weights_name, cnn_kept), (args.deit_weights_name, deit_kept)):
        recorded = read_record(path) if kept else record
        if recorded is None or record.differences(recorded):
            raise UserError(
                f"{path} comes from elsewhere and the other branch has no weights: both are "
                "trained together, so give both files, or write to other names with "
                "--cam_weights_name and --deit_weights_name."
            )
    training = _prepare(args, source.id_list(args.train_list).ids, record.fingerprint)
    training.run()
    lists = lineage.list_facts(args, args.train_list)
    for path, name in ((args.cam_weights_name, "cnn"), (args.deit_weights_name, "transformer")):
        if is_main_process():
            write_record(path, record, lists, {"history": training.history})
            remove_leftovers(path)
            save_checkpoint(path, training.models[name].state_dict())
            seal_record(path)
        log(f"wrote {path}")
    if is_main_process():
        training.state_path.unlink(missing_ok=True)
    barrier()  # nobody goes on before the weights are there
    return {"epochs": training.history}


def _prepare(args: argparse.Namespace, ids: tuple[str, ...], fingerprint: str) -> Training:
    """Data, networks and optimisers of the run."""
    seed_everything(args.seed)
    source, device = open_source(args), select_device(args.device)
    low, high = (int(side) for side in args.cam_long_side)
    dataset = ClassificationDataset(
        source.devkit, ids, source.image_labels(ids), args.cam_crop_size, (low, high), args.seed
    )
    batch_size = fit_batch(args.cam_batch_size, len(dataset), "--cam_batch_size")
    models = {"cnn": build_cnn(args).to(device), "transformer": build_deit(args).to(device)}
    steps = len(dataset) // batch_size * args.cam_num_epoches
    decay, momentum = args.cam_weight_decay, args.momentum
    optimisers = {
        "cnn": build_optimiser(models["cnn"], args.cam_learning_rate, decay, momentum, steps),
        "transformer": build_optimiser(
            models["transformer"],
            args.deit_learning_rate,
            decay,
            momentum,
            steps,
            args.deit_optimiser,
        ),
    }
    if args.init == "random" and args.cnn_weights is None and args.fixed_batchnorm:
        first = first_images(dataset, batch_size)
        calibrate_batchnorm(models["cnn"].backbone, (images.to(device) for images in first))
    for model in models.values():
        synchronise_batchnorm(model)

    def step(parallel: Mapping[str, nn.Module], batch: dict[str, Any], epoch: int) -> Loss:
        cam_lambda = args.cam_lambda if epoch + 1 >= args.cam_refine_epoch else 0.0
        found = training_losses(parallel, batch["image"], batch["label"], args.precision)
        losses = CamLosses(*(batch["weight"] * loss for loss in found))  # means over pictures
        parts = {"cnn": losses.cnn, "transformer": losses.transformer, "l1": losses.refinement}
        return Loss(losses.total(cam_lambda), {n: loss.detach() for n, loss in parts.items()})

    training = Training(
        title="train_cam",
        dataset=dataset,
        batch_size=batch_size,
        units=args.cam_num_epoches,
        seed=args.seed,
        models=models,
        optimisers=optimisers,
        step=step,
        device=device,
        state_path=state_path(args, STEP),
        fingerprint=fingerprint,
        num_workers=args.num_workers,
        board_dir=board_dir(args, STEP),
        measure=lambda _: validate(args, models, device),
        hooks=(Hook(1, lambda epoch: _draw(training, epoch)),),
    )
    return training


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
def validate(
    args: argparse.Namespace, models: dict[str, nn.Module], device: torch.device
) -> dict[str, float]:
    """Classification losses of both branches on `--val_list` (empty without such a list)."""
    source = open_source(args)
    ids = source.id_list(args.val_list).ids
    if not ids:
        return {}
    dataset = ClassificationEvalDataset(
        source.devkit, ids, source.image_labels(ids), args.cam_crop_size
    )
    for model in models.values():
        model.eval()
    sums = dict.fromkeys(models, 0.0)
    share = Subset(dataset, shard(range(len(dataset))))
    loader = eval_loader(share, args.cam_batch_size, args.num_workers)
    for batch in progress(loader, "validate"):
        batch = to_device(batch, device)
        for name, model in models.items():
            with autocast(device, args.precision):
                maps = model(batch["image"])
            sums[name] += float(classification_loss(maps, batch["label"])) * len(maps)
    totals = all_reduce_sum(torch.tensor(list(sums.values()), dtype=torch.float64)).tolist()
    return {f"val_{n}": total / len(dataset) for n, total in zip(sums, totals, strict=True)}
