"""Step 5: train IRNet's edge and displacement branches on the IR labels.

Reads pictures of `--train_list` and `result/ir_label`; writes `sess/res50_irn.pth` and, after every
epoch, the resumable `sess/train_irn.state.pth` and points and a grid of pictures for TensorBoard in
`result/logs/train_irn`. After the training the mean displacement over
`--infer_list` is stored in the weights.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from misc.batches import counted_labels, fit_batch
from misc.distributed import all_reduce_sum, is_main_process, on_main, select_device, shard
from misc.errors import UserError
from misc.loading import eval_loader, to_device
from misc.maps_io import IGNORE_LABEL
from misc.precision import autocast
from misc.progress import log, progress
from misc.schedule import PolySGD
from misc.seed import seed_everything
from misc.training import Hook, Loss, Training
from misc.transforms import NEAREST, denormalise, resize
from misc.visualize import colour_label, edge_picture, picture_grid
from net.affinity import path_index
from net.backbone import calibrate_batchnorm
from net.irn import IRNet
from net.losses import irn_losses
from net.strides import GRID_STRIDE
from step.networks import build_irn, save_weights
from step.plan import begin, board_dir, state_path
from step.run import Run
from voc12.dataset import PairDataset, TopLeftDataset

STEP = "train_irn"
_GRID_PICTURES = 4
DISPLACEMENT_FACTOR = 10.0  # learning rate of the displacement layers over that of the edge layers


def build_optimiser(
    model: IRNet, learning_rate: float, weight_decay: float, momentum: float, steps: int
) -> PolySGD:
    """SGD with poly decay over `steps`; displacement layers learn ten times as fast."""
    edge, displacement = model.parameter_groups()
    groups = [
        {"params": edge, "lr": learning_rate},
        {"params": displacement, "lr": DISPLACEMENT_FACTOR * learning_rate},
    ]
    return PolySGD(groups, learning_rate, weight_decay, momentum, max_step=steps)


def run(run: Run) -> dict[str, Any]:
    """Train IRNet, or keep finished weights of the same arguments."""
    work = begin(STEP, run)
    if not work.left:
        return {}
    training = _prepare(run, run.ids("train_list"), work.record.fingerprint)
    if run.trial_steps is not None:
        training.shorten(run.trial_steps, run.options.irn_batch_size)
    training.run()
    model = training.models["irn"]
    mean = store_mean_displacement(run, model, training.device)
    log(f"train_irn: mean displacement (dy, dx) {mean[0]:.3f}, {mean[1]:.3f} cells")
    models = {"irn_weights_name": model}
    on_main(lambda: save_weights(run, models, work.record, training.history))
    return {"epochs": training.history}


def _prepare(run: Run, ids: tuple[str, ...], fingerprint: str) -> Training:
    """Data, network and optimiser of the run."""
    options = run.options
    seed_everything(options.seed)
    source, device = run.source, select_device(options.device)
    paths = path_index(options.irn_radius)
    crop, folder = options.irn_crop_size, options.ir_label_out_dir
    paths.source_size((crop // GRID_STRIDE,) * 2)  # refuses crops that are too small
    dataset = PairDataset(source.devkit, ids, folder, crop, GRID_STRIDE, seed=options.seed)
    batch_size = fit_batch(options.irn_batch_size, len(dataset), "--irn_batch_size")
    model = build_irn(run).to(device)
    if options.init == "random" and options.irn_backbone_weights is None:
        images = (dataset[0, i]["image"][None].to(device) for i in range(batch_size))
        calibrate_batchnorm(model.backbone, images)
    steps = len(dataset) // batch_size * options.irn_num_epoches
    optimiser = build_optimiser(
        model, options.irn_learning_rate, options.irn_weight_decay, options.momentum, steps
    )

    def step(parallel: Mapping[str, nn.Module], batch: dict[str, Any], _: int) -> Loss:
        with autocast(device, options.precision):
            edge, displacement = parallel["irn"](batch["image"])
        labels = counted_labels(batch, IGNORE_LABEL)
        losses = irn_losses(edge, displacement, labels, paths, run.num_classes)
        return Loss(losses.total(), {n: loss.detach() for n, loss in losses._asdict().items()})

    training = Training(
        title="train_irn",
        dataset=dataset,
        batch_size=batch_size,
        units=options.irn_num_epoches,
        seed=options.seed,
        models={"irn": model},
        optimisers={"irn": optimiser},
        step=step,
        device=device,
        state_path=state_path(run, STEP),
        fingerprint=fingerprint,
        num_workers=options.num_workers,
        board_dir=board_dir(run, STEP),
        hooks=(Hook(1, lambda epoch: _draw(training, epoch)),),
    )
    return training


@torch.no_grad()
def _draw(training: Training, epoch: int) -> None:
    """Input, label and edge map of a few training pictures."""
    if not is_main_process():
        return
    images, labels = (training.batch[name][:_GRID_PICTURES] for name in ("image", "label"))
    size = tuple(images.shape[-2:])
    edges = torch.sigmoid(training.models["irn"].eval()(images)[0].float())[:, 0]
    edges = (255 * edges).round().byte().cpu().numpy()
    rows = [
        [
            denormalise(image.cpu().numpy()),
            colour_label(resize(label.cpu().numpy(), size, NEAREST)),
            edge_picture(edge, size),
        ]
        for image, label, edge in zip(images, labels, edges, strict=True)
    ]
    training.board.picture("input_label_edge", picture_grid(rows), epoch)


@torch.no_grad()
def store_mean_displacement(run: Run, model: IRNet, device: torch.device) -> list[float]:
    """Put the mean displacement over top-left crops of the inference list into the network.

    Raises:
        UserError: it is not finite.
    """
    options, source = run.options, run.source
    model.eval()
    model.mean_shift.running_mean.zero_()
    dataset = TopLeftDataset(
        source.devkit, source.id_list(options.infer_list).ids, options.irn_crop_size
    )
    total = torch.zeros(2, device=device)
    share = Subset(dataset, shard(range(len(dataset))))
    loader = eval_loader(share, options.irn_batch_size, options.num_workers, device)
    for batch in progress(loader, "mean displacement"):
        with autocast(device, options.precision):
            displacement = model(to_device(batch["image"], device))[1]
        total += displacement.float().mean(dim=(2, 3)).sum(dim=0)
    total = all_reduce_sum(total)
    if not total.isfinite().all():
        raise UserError(
            f"train_irn: the mean displacement over --infer_list is {total.tolist()} in total, not "
            "finite; lower --irn_learning_rate and start again with --overwrite."
        )
    model.mean_shift.running_mean.copy_(total / len(dataset))
    return model.mean_shift.running_mean.tolist()
