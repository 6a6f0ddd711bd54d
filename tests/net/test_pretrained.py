"""The one strict loader, and published weights: which files, from where, what is said offline."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import huggingface_hub.constants
import pytest
import timm
import torch
from networks import CNN_OPTIONS, SMALL_NETWORKS, VIT_OPTIONS, randomise, small_cnn
from safetensors.torch import save_file
from torch import nn

from misc.checkpoint import save_checkpoint
from misc.errors import UserError
from net import pretrained
from net.backbone import build_backbone
from net.option_names import OptionNames
from net.pretrained import (
    EXACTLY,
    Allowed,
    WeightFile,
    fetch,
    load_strictly,
    load_weights,
    torchvision_file,
)
from net.vit import build_vit

SMALL = "tf_efficientnet_lite0"
IRN_OPTIONS = OptionNames(weights="--irn_backbone_weights", random="--init random")
VIT = "deit_tiny_patch16_224"


# ----------------------------------------------------------------------------------- strictness


def test_misfits_are_named(tmp_path: Path) -> None:
    own = randomise(small_cnn())
    path = tmp_path / "x.pth"
    renamed = {key.replace("bn1", "norm1"): value for key, value in own.items()}
    save_checkpoint(path, renamed)
    with pytest.raises(UserError, match=r"missing \(backbone\.bn1.* more\).*unexpected") as raised:
        load_weights(small_cnn(), path, "cnn")
    assert len(str(raised.value)) < 800
    save_checkpoint(path, own | {"classifier.weight": torch.ones(20, 2048, 1, 1)})
    with pytest.raises(UserError, match=r"classifier\.weight is \(20, 2048, 1, 1\) in the file"):
        load_weights(small_cnn(), path, "cnn")
    save_checkpoint(path, {"epoch": 3})
    with pytest.raises(UserError, match="holds no tensors"):
        load_weights(small_cnn(), path, "cnn")


def test_misfit_leaves_the_model_alone(tmp_path: Path) -> None:
    model = small_cnn()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    own = randomise(small_cnn())
    del own["classifier.weight"]
    save_checkpoint(tmp_path / "x.pth", own)
    with pytest.raises(UserError, match=r"1 missing \(classifier\.weight\)"):
        load_weights(model, tmp_path / "x.pth", "cnn")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Body(nn.Module):
    """Ten tensors in a body, two in a head; a batch counter."""

    def __init__(self, head: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2), nn.Linear(2, 2)
        )
        self.head = nn.Linear(2, head)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """Of a trained network: no value is one of a new network."""
    return randomise(Body())


def test_batch_counters_matter_on_neither_side(state: dict) -> None:
    counter = state.pop("body.1.num_batches_tracked")
    assert load_strictly(Body(), state, "w.pth").missing == []
    state |= {"body.1.num_batches_tracked": counter, "old.num_batches_tracked": counter}
    network = Body()
    assert load_strictly(network, state, "w.pth").unused == []
    assert network.body[1].num_batches_tracked == counter


def test_all_kinds_of_misfits_are_told_at_once(state: dict) -> None:
    state["other"] = state.pop("head.bias")
    state["body.0.weight"] = torch.ones(3, 9)
    with pytest.raises(UserError) as raised:
        load_strictly(Body(), state, "w.pth", called="Body", remedy="give another")
    assert str(raised.value) == (
        "w.pth does not fit Body: body.0.weight is (3, 9) in the file and (3, 2) in the network; "
        "1 missing (head.bias); 1 unexpected (other); give another."
    )


def test_other_parts_are_not_blamed_for_missing_tensors(state: dict) -> None:
    del state["head.bias"]
    others = {"fc.weight": torch.ones(1), "fc.bias": torch.ones(1)}
    for more, told in (
        ({}, ""),
        ({"body.4.weight": torch.ones(1)}, r"; 1 unexpected \(body\.4\.weight\)"),
    ):
        with pytest.raises(UserError, match=rf"Body: 1 missing \(head\.bias\){told}; give"):
            load_strictly(
                Body(),
                {**state, **others, **more},
                "w.pth",
                Allowed(other_parts=True),
                "Body",
                "give another",
            )
    renamed = {f"net.{key}": value for key, value in state.items()}
    with pytest.raises(UserError, match=r"missing \(body.* unexpected \(net\.body\.0\.weight"):
        load_strictly(Body(), renamed, "w.pth", Allowed(other_parts=True))


@pytest.mark.parametrize(
    ("extra", "allowed", "told"),
    [
        ("fc.weight", EXACTLY, r"1 unexpected \(fc\.weight\); use the options"),
        ("fc.weight", Allowed(other_parts=True), None),
        ("fc.weight", Allowed(left_out=("fc.",)), None),
        ("other.fc.weight", Allowed(left_out=("fc.",)), r"1 unexpected \(other\.fc\.weight\)"),
        (
            "body.4.weight",
            Allowed(other_parts=True),
            r"1 unexpected \(body\.4\.weight\), so it is of a larger network; use",
        ),
        ("body.4.weight", Allowed(left_out=("body.4",), other_parts=True), None),
    ],
)
def test_what_only_the_file_may_have(
    state: dict, extra: str, allowed: Allowed, told: str | None
) -> None:
    state[extra] = torch.ones(1)
    if told is None:
        assert load_strictly(Body(), state, "w.pth", allowed).unused == [extra]
    else:
        with pytest.raises(UserError, match=rf"^w\.pth does not fit this network: {told}"):
            load_strictly(Body(), state, "w.pth", allowed)


def test_optional_parts_are_loaded_as_a_whole_or_not_at_all(state: dict) -> None:
    network, optional = Body(head=5), Allowed(optional=("head.",))
    before = network.head.bias.clone()
    state["head.bias"] = torch.ones(5)  # fits, other than the weight
    taken, missing, unused = load_strictly(network, state, "w.pth", optional)
    assert missing == unused == ["head.weight", "head.bias"]
    assert len(taken) == 10 and torch.equal(network.head.bias, before)
    assert torch.equal(network.body[0].weight, state["body.0.weight"])
    whole = load_strictly(Body(), randomise(Body()), "w.pth", optional)
    assert (whole.missing, len(whole.taken)) == ([], 12)


def test_some_may_be_missing_where_nothing_is_unexpected(state: dict) -> None:
    allowed = Allowed(optional=("head.",), least_share=0.9)  # one of ten
    del state["body.0.bias"]
    loaded = load_strictly(Body(), state, "w.pth", allowed)
    assert loaded.missing == ["body.0.bias"]
    state["body.0.offset"] = torch.ones(3)
    with pytest.raises(
        UserError, match=r"1 missing \(body\.0\.bias\); 1 unexpected \(body\.0\.off"
    ):
        load_strictly(Body(), state, "w.pth", allowed)
    del state["body.0.offset"], state["body.3.bias"]
    told = r"2 missing .*; 8 of 10 tensors fit \(80%, at least 90% are needed\); use"
    with pytest.raises(UserError, match=told):
        load_strictly(Body(), state, "w.pth", allowed)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_loaded_network_needs_its_file_no_more(tmp_path: Path, state: dict, zipped: bool) -> None:
    path, network = tmp_path / "w.pth", Body()
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    load_weights(network, path)
    path.write_bytes(bytes(path.stat().st_size))
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", SMALL_NETWORKS)
def test_weights_that_are_not_finite_are_not_loaded(
    tmp_path: Path, kind: str, value: float
) -> None:
    state = SMALL_NETWORKS[kind]().state_dict()
    name = [key for key in state if key.endswith("weight")][-1]
    state[name].view(-1)[-1] = value
    torch.save(state, tmp_path / "x.pth")
    told = rf"x\.pth cannot be used: {re.escape(name)} has NaN or infinite .* lower learning rate"
    with pytest.raises(UserError, match=told):
        load_weights(SMALL_NETWORKS[kind](), tmp_path / "x.pth", kind)


# ------------------------------------------------------------------------------ published weights


def test_published_weight_files() -> None:
    """torchvision's first recipe and DeiT's own file, by the hashes in their names."""
    hashes = {name: torchvision_file(name).hash_prefix for name in ("resnet152", "resnet50")}
    assert hashes == {"resnet152": "b121ed2d", "resnet50": "0676ba61"}
    assert pretrained.DEIT_SMALL.hash_prefix == "cd65a155"
    assert pretrained.DEIT_SMALL.url.endswith("deit_small_patch16_224-cd65a155.pth")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network and an empty cache; returns the folder where torch keeps its files."""

    def fail(*_: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "checkpoints"


@pytest.mark.parametrize(
    ("build", "file", "option"),
    [
        (
            lambda: build_backbone("resnet152", names=CNN_OPTIONS),
            "resnet152-b121ed2d.pth",
            "--cnn_weights",
        ),
        (
            lambda: build_backbone("resnet50", names=IRN_OPTIONS),
            "resnet50-0676ba61.pth",
            "--irn_backbone_weights",
        ),
        (
            lambda: build_vit("deit_small_patch16_224", 224, names=VIT_OPTIONS),
            "deit_small_patch16_224-cd65a155.pth",
            "--vit_weights",
        ),
    ],
    ids=["CNN", "IRNet", "transformer"],
)
def test_offline_message_says_which_file_to_put_where(
    offline: Path, build: Callable[[], object], file: str, option: str
) -> None:
    with pytest.raises(UserError) as raised:
        build()
    message = str(raised.value)
    assert f"/{file} at {offline / file}" in message
    assert option in message and "--init random" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("build", "option", "name"),
    [
        (lambda: build_backbone(SMALL, names=CNN_OPTIONS), "--cnn_weights", f"{SMALL}.in1k"),
        (
            lambda: build_backbone("resnet50.a1_in1k", names=CNN_OPTIONS),
            "--cnn_weights",
            "resnet50.a1_in1k",
        ),
        (
            lambda: build_backbone("convnext_tiny.fb_in1k", names=IRN_OPTIONS),
            "--irn_backbone_weights",
            "convnext_tiny.fb_in1k",
        ),
        (lambda: build_vit(VIT, 224, names=VIT_OPTIONS), "--vit_weights", f"{VIT}.fb_in1k"),
    ],
    ids=["CNN", "tagged CNN", "IRNet", "transformer"],
)
def test_offline_message_for_other_timm_networks(
    offline: Path, build: Callable[[], object], option: str, name: str
) -> None:
    with pytest.raises(UserError, match=rf"could not be downloaded .*{option}.*--init random") as e:
        build()
    url = f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors"
    assert f"put {url} at {offline / name}.safetensors, " in str(e.value)


def test_file_of_a_tag_put_by_hand_is_used_by_a_cnn(offline: Path) -> None:
    state = timm.create_model("convnext_atto").state_dict()
    offline.mkdir()
    save_file(state, offline / "convnext_atto.d2_in1k.safetensors")
    features = build_backbone("convnext_atto.d2_in1k").features.state_dict()
    by_name = {key.replace(".", "_"): value for key, value in state.items()}
    assert all(torch.equal(v, by_name[key.replace(".", "_")]) for key, v in features.items())


def test_cached_file_is_used_after_its_hash_was_checked(offline: Path) -> None:
    offline.mkdir()
    state = {"a": torch.arange(3)}
    save_checkpoint(offline / "x.pth", {"model": state})
    digest = hashlib.sha256((offline / "x.pth").read_bytes()).hexdigest()
    good = WeightFile("x", "https://example.org/x.pth", digest[:8])
    assert torch.equal(fetch(good)["a"], state["a"])
    bad = WeightFile("x", "https://example.org/x.pth", "0" * 8)
    with pytest.raises(UserError, match=rf"x\.pth has SHA-256 {digest[:8]}.*expected 00000000"):
        fetch(bad)
