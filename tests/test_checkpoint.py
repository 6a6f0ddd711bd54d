"""Files, the published key layout, and resumable training states."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from misc.checkpoint import (
    find_kind,
    from_official,
    is_official,
    load_checkpoint,
    load_training_state,
    load_weights,
    save_checkpoint,
    save_training_state,
    state_dict_of,
    to_official,
)
from misc.errors import UserError
from misc.schedule import PolySGD
from net.backbone import build_backbone
from net.deit_cam import DeitCam, build_deit_cam
from net.irn import IRNet
from net.resnet_cam import CnnCam

State = dict[str, torch.Tensor]
NUM_CLASSES = 3
TINY_VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2}


def test_round_trip_and_no_leftovers(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.pth"
    save_checkpoint(path, {"a": torch.arange(3), "b": {"c": [1, 2.5, "text", None]}})
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["a"], torch.arange(3))
    assert loaded["b"] == {"c": [1, 2.5, "text", None]}
    assert [file.name for file in path.parent.iterdir()] == ["x.pth"]


def test_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    save_checkpoint(path, {"a": 1})
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(path, {"a": lambda: None})
    assert load_checkpoint(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


class Danger:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": Danger(tmp_path / "harm")}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth .*safety"):
        load_checkpoint(tmp_path / "x.pth")
    assert not (tmp_path / "harm").exists()


def test_bad_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with pytest.raises(UserError, match=r"x\.pth does not exist"):
        load_checkpoint(path)
    save_checkpoint(path, {"a": torch.ones(1000)})
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match=r"x\.pth cannot be read"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="holds a list"):
        load_checkpoint(path)
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"x\.safetensors cannot be read"):
        load_checkpoint(tmp_path / "x.safetensors")


def test_safetensors(tmp_path: Path) -> None:
    save_file({"w": torch.eye(2)}, tmp_path / "x.safetensors")
    assert torch.equal(load_checkpoint(tmp_path / "x.safetensors")["w"], torch.eye(2))


def test_wrappers_are_removed() -> None:
    tensor = torch.ones(1)
    for wrapped in ({"model": {"a": tensor}, "epoch": 3}, {"state_dict": {"module.a": tensor}}):
        assert state_dict_of(wrapped) == {"a": tensor}


# ---------------------------------------------------------------------------- published layout


def _cnn() -> CnnCam:
    return CnnCam(build_backbone("resnet18", init="random"), NUM_CLASSES)


def _irn() -> IRNet:
    return IRNet(build_backbone("resnet50", init="random"))


def _deit() -> DeitCam:
    return build_deit_cam("deit_small_patch16_224", NUM_CLASSES, init="random", model_args=TINY_VIT)


def _resnet_stages(first_layer_apart: bool) -> list[list[str]]:
    """Modules of the published stages: CNN has conv1..layer1 in one, IRNet layer1 apart."""
    stem = ["conv1", "bn1", "relu", "maxpool"]
    stages = [stem, ["layer1"]] if first_layer_apart else [[*stem, "layer1"]]
    return [*stages, ["layer2"], ["layer3"], ["layer4"]]


def _stage_duplicates(state: State, stages: list[list[str]]) -> State:
    """The same tensors as `stageN.M.*` and `backbone.N.M.*`."""
    duplicates = {}
    for number, stage in enumerate(stages):
        for position, module in enumerate(stage):
            for key, value in state.items():
                if key.startswith(f"resnet50.{module}."):
                    rest = key.removeprefix(f"resnet50.{module}.")
                    duplicates[f"stage{number + 1}.{position}.{rest}"] = value
                    duplicates[f"backbone.{number}.{position}.{rest}"] = value
    return duplicates


def _rename_backbone(own: State) -> State:
    return {
        f"resnet50.{key.removeprefix('backbone.')}" if key.startswith("backbone.") else key: value
        for key, value in own.items()
    }


def official_cnn(own: State) -> State:
    state = _rename_backbone(own)
    state |= _stage_duplicates(state, _resnet_stages(first_layer_apart=False))
    return state | {"newly_added.0.weight": own["classifier.weight"]}


def official_irn(own: State) -> State:
    state = _rename_backbone(own)
    duplicates = _stage_duplicates(state, _resnet_stages(first_layer_apart=True))
    for group, prefix, count in (("edge_layers", "fc_edge", 6), ("dp_layers", "fc_dp", 7)):
        for number in range(count):
            for key, value in own.items():
                if key.startswith(f"{prefix}{number + 1}."):
                    rest = key.removeprefix(f"{prefix}{number + 1}.")
                    duplicates[f"{group}.{number}.{rest}"] = value
    mean = own["mean_shift.running_mean"]
    duplicates |= {"fc_dp7.4.running_mean": mean, "dp_layers.6.4.running_mean": mean}
    return state | duplicates


def official_deit(own: State) -> State:
    return {key.removeprefix("vit."): value for key, value in own.items()}


LAYOUTS = {
    "cnn": (_cnn, official_cnn, "resnet50.layer1.0.conv1.weight"),
    "irn": (_irn, official_irn, "resnet50.layer1.0.conv1.weight"),
    "transformer": (_deit, official_deit, "blocks.0.attn.qkv.weight"),
}


def _randomise(model: nn.Module) -> State:
    generator = torch.Generator().manual_seed(1)
    state = model.state_dict()
    for value in state.values():
        value.copy_(torch.rand(value.shape, generator=generator) * 10)
    return {key: value.clone() for key, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_published_checkpoint_loads(tmp_path: Path, kind: str, prefix: str) -> None:
    build, official, example = LAYOUTS[kind]
    own = _randomise(build())
    published = {prefix + key: value for key, value in official(own).items()}
    assert prefix + example in published
    if kind != "transformer":
        assert prefix + "backbone.0.0.weight" in published
        assert len(published) > 1.9 * len(own)
    assert find_kind(published) == kind
    assert is_official(published, kind)
    save_checkpoint(tmp_path / "x.pth", published)
    model = build()
    load_weights(model, tmp_path / "x.pth")
    for key, value in model.state_dict().items():
        assert torch.equal(value, own[key]), key


@pytest.mark.parametrize("kind", LAYOUTS)
def test_our_layout_is_not_taken_for_the_published_one(tmp_path: Path, kind: str) -> None:
    model = LAYOUTS[kind][0]()
    own = _randomise(model)
    assert find_kind(own) == kind
    assert not is_official(own, kind)
    save_checkpoint(tmp_path / "x.pth", own)
    fresh = LAYOUTS[kind][0]()
    load_weights(fresh, tmp_path / "x.pth", kind)
    assert all(torch.equal(value, own[key]) for key, value in fresh.state_dict().items())


@pytest.mark.parametrize("kind", LAYOUTS)
def test_to_official_is_the_inverse(kind: str) -> None:
    build, official, _ = LAYOUTS[kind]
    own = build().state_dict()
    exported = to_official(own, kind)
    assert exported.keys() <= official(own).keys()
    back = from_official(exported, kind)
    assert back.keys() == own.keys()
    assert all(back[key] is own[key] for key in own)


def test_imagenet_classifier_and_missing_counters_do_not_matter(tmp_path: Path) -> None:
    own = _randomise(_cnn())
    published = official_cnn(own)
    published = {k: v for k, v in published.items() if not k.endswith("num_batches_tracked")}
    published["resnet50.fc.weight"] = torch.ones(1000, 512)
    save_checkpoint(tmp_path / "x.pth", published)
    model = _cnn()
    load_weights(model, tmp_path / "x.pth")
    assert torch.equal(model.classifier.weight, own["classifier.weight"])


def test_misfits_are_named(tmp_path: Path) -> None:
    own = _randomise(_cnn())
    path = tmp_path / "x.pth"
    renamed = {key.replace("bn1", "norm1"): value for key, value in own.items()}
    save_checkpoint(path, renamed)
    with pytest.raises(UserError, match=r"missing \(backbone\.bn1.* more\).*unexpected") as raised:
        load_weights(_cnn(), path)
    assert len(str(raised.value)) < 800
    load_weights(_cnn(), path, strict=False)
    save_checkpoint(path, own | {"classifier.weight": torch.ones(20, 512, 1, 1)})
    with pytest.raises(UserError, match=r"classifier\.weight is \(20, 512, 1, 1\) in the file"):
        load_weights(_cnn(), path, strict=False)
    save_checkpoint(path, {"epoch": 3})
    with pytest.raises(UserError, match="holds no tensors"):
        load_weights(_cnn(), path)


def test_misfit_leaves_the_model_alone(tmp_path: Path) -> None:
    model = _cnn()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    own = _randomise(_cnn())
    del own["classifier.weight"]
    save_checkpoint(tmp_path / "x.pth", own)
    with pytest.raises(UserError, match=r"1 missing \(classifier\.weight\)"):
        load_weights(model, tmp_path / "x.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# ---------------------------------------------------------------------------------- resuming


def _training() -> tuple[nn.Module, PolySGD]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    return model, PolySGD(model.parameters(), 0.1, 1e-4, 0.9, max_step=20)


def _epoch(model: nn.Module, optimiser: PolySGD) -> None:
    for _ in range(5):
        noise = random.random() + np.random.rand()  # noqa: NPY002
        optimiser.zero_grad()
        model(torch.randn(8, 4) + noise).square().mean().backward()
        optimiser.step()


def test_resumed_training_equals_uninterrupted(tmp_path: Path) -> None:
    path = tmp_path / "state.pth"
    model, optimiser = _training()
    for epoch in range(1, 5):
        _epoch(model, optimiser)
        if epoch == 2:
            save_training_state(path, {"m": model}, {"o": optimiser}, 2, "f", {"best": 0.5})
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    again, optimiser = _training()
    resumed = load_training_state(path, {"m": again}, {"o": optimiser}, "f")
    assert resumed is not None
    assert (resumed.epoch, resumed.extra) == (2, {"best": 0.5})
    for _ in range(resumed.epoch, 4):
        _epoch(again, optimiser)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_no_state_means_start(tmp_path: Path) -> None:
    assert load_training_state(tmp_path / "state.pth", {}, {}, "f") is None


def test_state_of_other_arguments_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pth"
    save_training_state(path, {}, {}, 1, "these arguments")
    with pytest.raises(UserError, match=r"state\.pth .*other arguments.*--overwrite"):
        load_training_state(path, {}, {}, "those arguments")
