"""State-dict keys of the published networks, renamed to ours and back."""

from collections import OrderedDict
from pathlib import Path

import published
import pytest
import torch
import torchvision
from networks import DEPTHS, SMALL_CLASSES, SMALL_NETWORKS, randomise, small_cnn

from deeplab.model import ASPP, DeepLabV2
from misc.checkpoint import save_checkpoint
from misc.errors import UserError
from net.pretrained import load_weights
from net.published_keys import from_published, to_published, torchvision_to_deeplab

SHAPES = {
    "cnn": published.cnn(DEPTHS, SMALL_CLASSES),
    "irn": published.irn(DEPTHS),
    "transformer": published.transformer(24, 2, SMALL_CLASSES),
}
# Names in a file: 102 tensors of the backbone three times, 39 of the heads twice, the mean shift
# three times; 20 lengths of paths make 20 tables.
FILE_SIZES = {"cnn": 3 * 102 + 2, "irn": 3 * 102 + 2 * 39 + 3 + 20 + 1, "transformer": 32}


@pytest.mark.parametrize(("prefix", "zipped"), [("", False), ("module.", True)])
@pytest.mark.parametrize("kind", SMALL_NETWORKS)
def test_published_checkpoint_loads(tmp_path: Path, kind: str, prefix: str, zipped: bool) -> None:
    """Also in the format of the torch 1.1 that the authors name, an ordered dictionary."""
    values = published.values(SHAPES[kind])
    entries = published.file_of(kind, values).items()
    file = OrderedDict((prefix + key, value) for key, value in entries)
    assert len(file) == FILE_SIZES[kind]
    file._metadata = OrderedDict({"": {"version": 1}})
    torch.save(file, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    model = SMALL_NETWORKS[kind]()
    load_weights(model, tmp_path / "x.pth", kind)
    for key, value in model.state_dict().items():
        assert torch.equal(value, values.pop(published.name_of(key, kind))), key
    assert not values


@pytest.mark.parametrize("kind", ["cnn", "irn"])
def test_what_a_published_checkpoint_does_not_hold_is_refused(tmp_path: Path, kind: str) -> None:
    file = published.file_of(kind, published.values(SHAPES[kind]))
    save_checkpoint(tmp_path / "x.pth", file | {"decoder.weight": torch.ones(2)})
    with pytest.raises(UserError, match=r"1 unexpected \(decoder\.weight\)"):
        load_weights(SMALL_NETWORKS[kind](), tmp_path / "x.pth", kind)


@pytest.mark.parametrize("kind", SMALL_NETWORKS)
def test_our_layout_is_not_taken_for_the_published_one(tmp_path: Path, kind: str) -> None:
    model = SMALL_NETWORKS[kind]()
    own = randomise(model)
    assert from_published(own, kind) == own
    save_checkpoint(tmp_path / "x.pth", own)
    fresh = SMALL_NETWORKS[kind]()
    load_weights(fresh, tmp_path / "x.pth", kind)
    assert all(torch.equal(value, own[key]) for key, value in fresh.state_dict().items())


@pytest.mark.parametrize("kind", SMALL_NETWORKS)
def test_to_published_gives_the_published_names(kind: str) -> None:
    own = SMALL_NETWORKS[kind]().state_dict()
    exported = to_published(own, kind)
    assert {key: tuple(value.shape) for key, value in exported.items()} == SHAPES[kind]
    assert all(exported[published.name_of(key, kind)] is value for key, value in own.items())


def test_imagenet_classifier_and_missing_counters_do_not_matter(tmp_path: Path) -> None:
    file = published.file_of("cnn", published.values(SHAPES["cnn"]))
    file = {key: value for key, value in file.items() if not key.endswith("num_batches_tracked")}
    save_checkpoint(tmp_path / "x.pth", file | {"resnet50.fc.weight": torch.ones(1000, 2048)})
    model = small_cnn()
    load_weights(model, tmp_path / "x.pth", "cnn")
    assert torch.equal(model.classifier.weight, file["classifier.weight"])


def test_torchvision_resnets_get_the_keys_of_the_published_deeplab() -> None:
    resnet = torchvision.models.resnet50().state_dict()
    state = {key: value for key, value in resnet.items() if not key.startswith("fc.")}
    renamed = torchvision_to_deeplab(state)
    network = DeepLabV2(2, (3, 4, 6, 3), (1,)).state_dict()
    assert {key: value.shape for key, value in renamed.items()} == {
        key: value.shape for key, value in network.items() if not key.startswith(ASPP)
    }
    assert renamed["layer2.block1.shortcut.bn.bias"] is resnet["layer1.0.downsample.1.bias"]
    assert renamed["layer4.block6.increase.conv.weight"] is resnet["layer3.5.conv3.weight"]
