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
from misc.checkpoint import load_checkpoint, save_checkpoint, state_dict_of
from misc.distributed import all_reduce_sum, barrier, is_main_process, select_device, shard
from misc.errors import UserError
from misc.files import remove_leftovers
from misc.maps_io import IGNORE_LABEL
from misc.outputs import keep_file
from misc.progress import log, progress
from misc.provenance import seal_record, write_record
from misc.schedule import PolySGD
from misc.seed import seed_everything
from misc.training import Hook, Loss, Training, autocast, eval_loader
from misc.transforms import NEAREST, denormalise, resize
from misc.visualize import colour_label, edge_picture, picture_grid
from net.affinity import path_index
from net.backbone import Backbone, build_backbone, calibrate_batchnorm, load_backbone
from net.irn import IRNet
from net.losses import irn_losses
from net.option_names import OptionNames
from net.published_keys import from_published
from net.strides import GRID_STRIDE
from step import lineage
from step.options import CAM_BACKBONE
from step.plan import board_dir, state_path
from step.run import Run
from voc12.dataset import PairDataset, TopLeftDataset

STEP = "train_irn"
_OPTIONS = OptionNames(weights="--irn_backbone_weights", random="--init random")
_GRID_PICTURES = 4
DISPLACEMENT_FACTOR = 10.0  # learning rate of the displacement layers over that of the edge layers


def build_model(run: Run, trained: bool = False) -> IRNet:
    """IRNet of the options.

    Args:
        run: the run.
        trained: the weights will be loaded, so the backbone needs none.
    """
    options = run.options
    weights = options.irn_backbone_weights
    init = "random" if trained or weights == CAM_BACKBONE else options.init
    local = None if trained or weights == CAM_BACKBONE else weights
    backbone = build_backbone(options.irn_backbone, init, local, _OPTIONS)
    if weights == CAM_BACKBONE and not trained:
        _copy_cam_backbone(run, backbone)
    return IRNet(backbone)


def _copy_cam_backbone(run: Run, backbone: Backbone) -> None:
    """Take over the backbone of the trained CNN branch."""
    options = run.options
    lineage.require_input(options.cam_weights_name, lineage.cam_training, run)
    state = from_published(state_dict_of(load_checkpoint(options.cam_weights_name)), "cnn")
    load_backbone(backbone, state, options.cam_weights_name)


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
    options, source = run.options, run.source
    ids = source.id_list(options.train_list).ids
    lineage.require_input(options.ir_label_out_dir, lineage.ir_labels, run)
    lineage.require_ids(options.ir_label_out_dir, ".png", ids, "cam_to_ir_label")
    record = lineage.irn_training(run)
    if keep_file(
        options.irn_weights_name, record, force=options.force, option="--irn_weights_name"
    ):
        return {}
    training, model = _prepare(run, ids, record.fingerprint)
    training.run()
    mean = store_mean_displacement(run, model, training.device)
    log(f"train_irn: mean displacement (dy, dx) {mean[0]:.3f}, {mean[1]:.3f} cells")
    lists = lineage.list_facts(run, options.train_list, options.infer_list)
    if is_main_process():
        write_record(options.irn_weights_name, record, lists, {"history": training.history})
        remove_leftovers(options.irn_weights_name)
        save_checkpoint(options.irn_weights_name, model.state_dict())
        seal_record(options.irn_weights_name)
        training.state_path.unlink(missing_ok=True)
    log(f"wrote {options.irn_weights_name}")
    barrier()  # nobody goes on before the weights are there
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
    model = build_model(run).to(device)
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
    return training, model


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
    loader = eval_loader(share, options.irn_batch_size, options.num_workers)
    for batch in progress(loader, "mean displacement"):
        with autocast(device, options.precision):
            displacement = model(batch["image"].to(device))[1]
        total += displacement.float().mean(dim=(2, 3)).sum(dim=0)
    total = all_reduce_sum(total)
    if not total.isfinite().all():
        raise UserError(
            f"train_irn: the mean displacement over --infer_list is {total.tolist()} in total, not "
            "finite; lower --irn_learning_rate and start again with --overwrite."
        )
    model.mean_shift.running_mean.copy_(total / len(dataset))
    return model.mean_shift.running_mean.tolist()
