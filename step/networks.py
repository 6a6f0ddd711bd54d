"""The three networks: built from the options, loaded for what reads them, and kept when trained."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from misc.checkpoint import load_checkpoint, save_checkpoint, state_dict_of
from misc.files import remove_leftovers
from misc.progress import log
from misc.provenance import Record, seal_record, write_record
from net.backbone import build_backbone, load_backbone
from net.deit_cam import DeitCam, build_deit_cam
from net.folding import fold_batch_norms
from net.irn import IRNet
from net.option_names import OptionNames
from net.pretrained import load_weights
from net.published_keys import from_published
from net.resnet_cam import CnnCam, build_cnn_cam
from step.options import CAM_BACKBONE
from step.plan import (
    OUTPUTS,
    list_facts,
    require_input,
    state_path,
    uses_cnn,
    uses_transformer,
)
from step.run import Run

_CNN_OPTIONS = OptionNames(weights="--cnn_weights", random="--init random", arguments="--cnn_args")
_VIT_OPTIONS = OptionNames(
    "--vit",
    "--vit_weights",
    "--init random",
    "--vit_args",
    "--tile_size",
    "--tile_stride",
    "--cam_crop_size",
)
_IRN_OPTIONS = OptionNames(
    weights="--irn_backbone_weights", random="--init random", arguments="--irn_backbone_args"
)


def build_cnn(run: Run, trained: bool = False) -> CnnCam:
    """CNN branch of the options; with `trained` weights will be loaded, so it needs none first."""
    options = run.options
    return build_cnn_cam(
        options.cnn,
        run.num_classes,
        "random" if trained else options.init,
        None if trained else options.cnn_weights,
        options.cnn_args,
        options.cnn_frozen_stages,
        options.fixed_batchnorm,
        _CNN_OPTIONS,
    )


def build_deit(run: Run, trained: bool = False) -> DeitCam:
    """Transformer branch of the options; see `build_cnn`."""
    options = run.options
    return build_deit_cam(
        options.vit,
        run.num_classes,
        options.tile_size,
        options.tile_stride,
        options.num_passes,
        "random" if trained else options.init,
        None if trained else options.vit_weights,
        options.vit_args,
        _VIT_OPTIONS,
    )


def build_irn(run: Run, trained: bool = False) -> IRNet:
    """IRNet of the options, maybe with the backbone of the CNN branch; see `build_cnn`."""
    options, weights = run.options, run.options.irn_backbone_weights
    of_cam = weights == CAM_BACKBONE
    init, local = ("random", None) if trained or of_cam else (options.init, weights)
    backbone = build_backbone(
        options.irn_backbone, init, local, options.irn_backbone_args, _IRN_OPTIONS
    )
    if of_cam and not trained:
        require_input("cam_weights_name", run)
        state = from_published(state_dict_of(load_checkpoint(options.cam_weights_name)), "cnn")
        load_backbone(backbone, state, options.cam_weights_name)
    return IRNet(backbone)


def load_branches(
    run: Run, device: torch.device, use_attention: bool = True
) -> list[CnnCam | DeitCam]:
    """The branches that the fusion of the CAMs needs, with their trained weights.

    Args:
        run: the run.
        device: where they will run.
        use_attention: see `net.deit_cam.DeitCam`.
    """
    branches: list[CnnCam | DeitCam] = []
    if uses_cnn(run.options):
        cnn = build_cnn(run, trained=True)
        load_weights(cnn, run.options.cam_weights_name, "cnn")
        branches.append(cnn)
    if uses_transformer(run.options):
        deit = build_deit(run, trained=True)
        load_weights(deit, run.options.deit_weights_name, "transformer")
        deit.use_attention = use_attention
        branches.append(deit)
    branches = [branch.to(device).eval() for branch in branches]
    for branch in branches:
        if isinstance(branch, CnnCam):
            fold_batch_norms(branch)
    return branches


def load_irn(run: Run, device: torch.device) -> IRNet:
    """IRNet with its trained weights."""
    model = build_irn(run, trained=True)
    load_weights(model, run.options.irn_weights_name, "irn")
    model.to(device).eval()
    fold_batch_norms(model.backbone)
    return model


def save_weights(
    run: Run,
    models: Mapping[str, nn.Module],
    record: Record,
    history: Sequence[Mapping[str, Any]],
) -> None:
    """Write trained networks, each with its record first, and forget the state of the training.

    Args:
        run: the run.
        models: by the option that names the file.
        record: what made them.
        history: losses of every epoch, for the reader of the record.
    """
    for name, model in models.items():
        path = OUTPUTS[name].path(run)
        write_record(path, record, list_facts(run, OUTPUTS[name]), {"history": history})
        remove_leftovers(path)
        save_checkpoint(path, model.state_dict())
        seal_record(path)
        log(f"wrote {path}")
    state_path(run, record.step).unlink(missing_ok=True)
