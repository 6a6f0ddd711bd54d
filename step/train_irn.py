"""Step 5: train IRNet's edge and displacement branches on the IR labels.

Reads pictures of `--train_list` and `result/ir_label`; writes `sess/res50_irn.pth` and, after every
epoch, the resumable `sess/train_irn.state.pth`. After the training the mean displacement over
`--infer_list` is stored in the weights.
"""

from typing import Any

import torch
from torch import Tensor

from misc.distributed import select_device
from misc.errors import UserError
from misc.progress import log, progress
from misc.schedule import PolySGD
from misc.seed import seed_everything
from misc.training import Training, autocast, eval_loader, fit_batch
from net.affinity import path_index
from net.backbone import calibrate_batchnorm
from net.irn import IRNet
from net.losses import IrnLosses, irn_losses
from net.strides import GRID_STRIDE
from step.networks import build_irn, save_weights
from step.plan import begin, state_path
from step.run import Run
from voc12.dataset import PairDataset, TopLeftDataset

STEP = "train_irn"
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
    training, model = _prepare(run, run.ids("train_list"), work.record.fingerprint)
    training.run()
    mean = store_mean_displacement(run, model, training.device)
    log(f"train_irn: mean displacement (dy, dx) {mean[0]:.3f}, {mean[1]:.3f} cells")
    save_weights(run, {"irn_weights_name": model}, work.record, training.history)
    training.state_path.unlink(missing_ok=True)
    return {"epochs": training.history}


def _prepare(run: Run, ids: tuple[str, ...], fingerprint: str) -> tuple[Training, IRNet]:
    """Data, network and optimiser of the run."""
    options = run.options
    seed_everything(options.seed)
    source, device = run.source, select_device(options.device)
    paths = path_index(options.irn_radius)
    paths.source_size(
        (options.irn_crop_size // GRID_STRIDE,) * 2
    )  # refuses crops that are too small
    dataset = PairDataset(
        source.devkit,
        ids,
        options.ir_label_out_dir,
        options.irn_crop_size,
        GRID_STRIDE,
        seed=options.seed,
    )
    batch_size = fit_batch(options.irn_batch_size, len(dataset), "--irn_batch_size")
    model = build_irn(run).to(device)
    if options.init == "random" and options.irn_backbone_weights is None:
        images = (dataset[i]["image"][None].to(device) for i in range(batch_size))
        calibrate_batchnorm(model.backbone, images)
    steps = len(dataset) // batch_size * options.irn_num_epoches
    optimiser = build_optimiser(
        model, options.irn_learning_rate, options.irn_weight_decay, options.momentum, steps
    )

    def step(batch: dict[str, Any], epoch: int) -> dict[str, Tensor]:
        with autocast(device, options.precision):
            edge, displacement = model(batch["image"])
        losses = irn_losses(edge, displacement, batch["label"], paths, run.num_classes)
        optimiser.zero_grad()
        losses.total().backward()
        optimiser.step()
        return {name: getattr(losses, name).detach() for name in IrnLosses._fields}

    training = Training(
        title="train_irn",
        dataset=dataset,
        batch_size=batch_size,
        epochs=options.irn_num_epoches,
        seed=options.seed,
        models={"irn": model},
        optimisers={"irn": optimiser},
        step=step,
        device=device,
        state_path=state_path(run, STEP),
        fingerprint=fingerprint,
        num_workers=options.num_workers,
    )
    return training, model


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
    for batch in progress(
        eval_loader(dataset, options.irn_batch_size, options.num_workers), "mean displacement"
    ):
        with autocast(device, options.precision):
            displacement = model(batch["image"].to(device))[1]
        total += displacement.float().mean(dim=(2, 3)).sum(dim=0)
    if not total.isfinite().all():
        raise UserError(
            f"train_irn: the mean displacement over --infer_list is {total.tolist()} in total, not "
            "finite; lower --irn_learning_rate and start again with --overwrite."
        )
    model.mean_shift.running_mean.copy_(total / len(dataset))
    return model.mean_shift.running_mean.tolist()
