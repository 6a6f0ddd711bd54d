"""Files of weights and resumable training states."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from misc.checkpoint import (
    load_checkpoint,
    load_training_state,
    save_checkpoint,
    save_training_state,
    state_dict_of,
)
from misc.errors import UserError
from misc.schedule import PolySGD


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


@pytest.mark.parametrize("mapped", [True, False])
def test_mapped_tensors_lie_in_the_file_and_others_do_not(tmp_path: Path, mapped: bool) -> None:
    path = tmp_path / "x.pth"
    save_checkpoint(path, {"a": torch.ones(5000)})
    tensor = load_checkpoint(path, mapped=mapped)["a"]
    assert tensor.sum() == 5000
    content, ones = path.read_bytes(), np.ones(5000, np.float32).tobytes()
    with path.open("r+b") as stream:
        stream.seek(content.index(ones))
        stream.write(bytes(len(ones)))
    assert tensor.sum() == (0 if mapped else 5000)


def test_wrappers_are_removed() -> None:
    tensor = torch.ones(1)
    for wrapped in ({"model": {"a": tensor}, "epoch": 3}, {"state_dict": {"module.a": tensor}}):
        assert state_dict_of(wrapped) == {"a": tensor}


# --------------------------------------------------------------------------- unusable contents


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "cnn_state_dict"])
def test_weights_in_an_entry_must_be_finite(tmp_path: Path, wrapper: str) -> None:
    state = {"epoch": 3, wrapper: {"a": torch.ones(3), "b": torch.tensor([0.0, float("nan")])}}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"x\.pth cannot be used: {wrapper}\.b has NaN"):
        load_checkpoint(tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"y\.pth was not written: {wrapper}\.b has NaN"):
        save_checkpoint(tmp_path / "y.pth", state)


def test_safetensors_must_be_finite(tmp_path: Path) -> None:
    save_file({"w": torch.tensor([1.0, float("inf")]).half()}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"x\.safetensors cannot be used: w has NaN or infinite"):
        load_checkpoint(tmp_path / "x.safetensors")


def test_large_weights_are_finite(tmp_path: Path) -> None:
    """Their sum is not: 3e38 is near the end of float32, 6e4 of float16."""
    state = {"a": torch.full((4,), 3e38), "b": torch.full((4,), 6e4).half()}
    save_checkpoint(tmp_path / "x.pth", state)
    assert torch.equal(load_checkpoint(tmp_path / "x.pth")["a"], state["a"])


def test_diverged_networks_do_not_replace_good_files(tmp_path: Path) -> None:
    weights, state = tmp_path / "w.pth", tmp_path / "state.pth"
    model, optimiser = _training()
    save_checkpoint(weights, model.state_dict())
    save_training_state(state, {"m": model}, {"o": optimiser}, 1, "f")
    before = weights.read_bytes(), state.read_bytes()
    model[0].weight.data[0, 0] = float("nan")
    told = r"not written: 0\.weight .*diverged; lower the learning rate .* before are kept"
    with pytest.raises(UserError, match=rf"w\.pth was {told}"):
        save_checkpoint(weights, model.state_dict())
    with pytest.raises(
        UserError, match=r"state\.pth was not written: models\.m\.0\.weight has NaN"
    ):
        save_training_state(state, {"m": model}, {"o": optimiser}, 2, "f")
    assert (weights.read_bytes(), state.read_bytes()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.pth", "w.pth"]


def test_values_of_optimisers_may_be_anything(tmp_path: Path) -> None:
    model, optimiser = _training()
    _epoch(model, optimiser)
    buffers = [state["momentum_buffer"] for state in optimiser.state.values()]
    buffers[0].fill_(float("inf"))
    save_training_state(tmp_path / "x.pth", {"m": model}, {"o": optimiser}, 1, "f", {"loss": 1.0})
    assert load_training_state(tmp_path / "x.pth", {"m": model}, {"o": optimiser}, "f")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([torch.ones(2)], r"holds a list, not a state dict; save the state_dict"),
        ({0: torch.ones(2)}, r"holds a dictionary with the key 0, which is no name"),
        ({"model": [torch.ones(2)]}, r"holds a list as 'model', not a state dict"),
        ({"state_dict": (torch.ones(2),)}, r"holds a tuple as 'state_dict', not a state dict"),
        (
            {"state_dict": {1: torch.ones(2)}},
            r"holds a dictionary as 'state_dict' with the key 1, which",
        ),
        ({"model": {"state_dict": {2: torch.ones(2)}}}, r"holds .* as 'state_dict' with the key 2"),
    ],
)
def test_tensors_without_names_are_refused(tmp_path: Path, content: object, told: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"x\.pth {told}"):
        load_checkpoint(tmp_path / "x.pth")


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
    assert (resumed.finished, resumed.extra) == (2, {"best": 0.5})
    for _ in range(resumed.finished, 4):
        _epoch(again, optimiser)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_no_state_means_start(tmp_path: Path) -> None:
    assert load_training_state(tmp_path / "state.pth", {}, {}, "f") is None


@pytest.mark.parametrize("lost", ["models", "optimisers", "rng", "finished", "extra"])
def test_state_without_a_part_is_refused(tmp_path: Path, lost: str) -> None:
    path, model = tmp_path / "x.state.pth", nn.Linear(2, 1)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    parts = ({"net": model}, {"net": optimiser})
    save_training_state(path, *parts, 1, "a")
    state = load_checkpoint(path)
    del state[lost]
    save_checkpoint(path, state)
    with pytest.raises(UserError, match=r"x\.state\.pth is not a whole training state"):
        load_training_state(path, *parts, "a")


def test_state_of_other_arguments_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pth"
    save_training_state(path, {}, {}, 1, "these arguments")
    with pytest.raises(UserError, match=r"state\.pth .*other arguments.*--overwrite"):
        load_training_state(path, {}, {}, "those arguments")


def test_state_of_an_earlier_version_is_used_where_nothing_is_left_to_train(tmp_path: Path) -> None:
    path, model = tmp_path / "x.state.pth", nn.Linear(2, 1)
    save_training_state(path, {"net": model}, {}, 3, "a", {"history": []})
    state = load_checkpoint(path)
    state["epoch"] = state.pop("finished")  # as it was called
    save_checkpoint(path, state)
    again = nn.Linear(2, 1)
    resumed = load_training_state(path, {"net": again}, {}, "a", units=3)
    assert resumed is not None and (resumed.finished, resumed.extra) == (3, {"history": []})
    assert torch.equal(again.weight, model.weight)
    before = again.weight.detach().fill_(0.5).clone()
    told = r"x\.state\.pth was written by an earlier version .* start afresh with --overwrite"
    with pytest.raises(UserError, match=told):
        load_training_state(path, {"net": again}, {}, "a", units=4)
    assert torch.equal(again.weight, before)
