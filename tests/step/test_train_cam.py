"""CAM training: losses, gradients and updates of the published run; every option has an effect."""

import numpy as np
import pytest
import torch
from networks import NUM_CLASSES, golden_cnn, golden_deit, picture, update
from numpy.testing import assert_allclose
from pipeline import TRAIN_IDS, prepared
from torch.utils.data import default_collate

from misc.batches import fit_batch
from net.losses import cam_losses, refinement_loss
from step.train_cam import _prepare, build_optimiser, training_losses

RATE, DECAY, MAX_STEP, LAMBDA = 0.01, 1e-4, 10, 0.1


@pytest.fixture(scope="module")
def two_steps() -> dict:
    """Two optimiser steps on the golden pictures, with the gradients of the first."""
    models = {"cnn": golden_cnn().train(), "transformer": golden_deit().train()}
    optimisers = {
        name: build_optimiser(model, RATE, DECAY, DECAY, MAX_STEP) for name, model in models.items()
    }
    images = torch.stack([picture("step/0", 336, 336), picture("step/1", 336, 336)])
    labels = torch.zeros(2, NUM_CLASSES)
    labels[0, [2, 14]], labels[1, 7] = 1.0, 1.0
    result: dict = {"losses": [], "lrs": [], "models": models}
    for step in range(2):
        losses = training_losses(models, images, labels)
        update(optimisers, losses.total(LAMBDA))
        result["losses"].append([loss.item() for loss in losses])
        result["lrs"].append([group["lr"] for group in optimisers["cnn"].param_groups])
        if step == 0:
            result["gradients"] = {
                f"{name}.{key}": None if p.grad is None else float(p.grad.norm())
                for name, model in models.items()
                for key, p in model.named_parameters()
            }
    return result


def test_losses_of_two_steps_equal_published(golden, two_steps):
    assert_allclose(two_steps["losses"], golden("train_step")["losses"], rtol=2e-4)


def test_learning_rates_equal_published(golden, two_steps):
    assert_allclose(two_steps["lrs"], golden("train_step")["lrs"], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("grad_cnn_classifier", "cnn.classifier.weight"),
        ("grad_cnn_layer4", "cnn.backbone.layer4.2.conv3.weight"),
        ("grad_cnn_layer3", "cnn.backbone.layer3.0.conv1.weight"),
        ("grad_deit_head", "transformer.head.weight"),
        ("grad_deit_block0_qkv", "transformer.vit.blocks.0.attn.qkv.weight"),
        ("grad_deit_pos_embed", "transformer.vit.pos_embed"),
    ],
)
def test_gradients_equal_published(golden, two_steps, name, parameter):
    assert_allclose(two_steps["gradients"][parameter], golden("train_step")[name], rtol=1e-3)


def test_frozen_layers_get_no_gradient_and_all_others_do(two_steps):
    frozen = ("conv1.", "bn1.", "layer1.", "layer2.")
    for key, norm in two_steps["gradients"].items():
        is_frozen = key.removeprefix("cnn.backbone.").startswith(frozen)
        assert (norm is None) == is_frozen, key
        assert is_frozen or norm > 0, key


def test_refinement_pulls_both_branches():
    first = torch.randn(1, 2, 6, 6, requires_grad=True)
    second = torch.randn(1, 2, 9, 9, requires_grad=True)
    refinement_loss(first, second, (36, 36)).backward()
    assert first.grad.abs().sum() > 0
    assert second.grad.abs().sum() > 0


def test_classification_loss_of_zero_maps_is_log_two():
    losses = cam_losses(torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 4, 4), torch.ones(1, 3), 8)
    assert float(losses.cnn) == pytest.approx(np.log(2))
    assert float(losses.transformer) == pytest.approx(np.log(1 + np.exp(-1)))
    assert float(losses.refinement) == pytest.approx(1.0)
    assert float(losses.total(0.0)) == pytest.approx(float(losses.cnn + losses.transformer))


def test_batch_larger_than_the_list_becomes_the_list(capsys):
    assert fit_batch(16, 3, "--cam_batch_size") == 3
    assert "--cam_batch_size 16" in capsys.readouterr().out
    assert fit_batch(16, 40, "--cam_batch_size") == 16


@pytest.mark.parametrize(("refine_epoch", "weighted"), [(1, (5.0, 5.0)), (2, (0.0, 5.0))])
def test_l1_term_acts_from_its_epoch_on(sample, tmp_path, refine_epoch, weighted):
    run = prepared(sample, tmp_path, cam_refine_epoch=refine_epoch, cam_lambda=5.0)
    training = _prepare(run, TRAIN_IDS, "")
    batch = default_collate([training.dataset[0, index] for index in range(2)])
    for epoch, factor in enumerate(weighted):
        total, parts = training.step(training.models, {**batch, "weight": 1.0}, epoch)
        assert parts["l1"] > 1e-4
        expected = float(parts["cnn"] + parts["transformer"] + factor * parts["l1"])
        assert total.item() == pytest.approx(expected, rel=1e-6)
