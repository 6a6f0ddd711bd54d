"""TS-CAM and the CNN against the published implementation; their maps, groups and checkpoints."""

from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
from networks import fill_weights, picture
from numpy.testing import assert_allclose
from safetensors.torch import save_file
from torch import Tensor
from wsol_runs import config_of

from misc.checkpoint import load_checkpoint, save_checkpoint
from misc.errors import UserError
from net.resnet_cam import CnnCam
from wsol import config as wsol_config
from wsol.config import Config
from wsol.model import (
    CNN,
    MEAN,
    TRANSFORMER,
    Networks,
    TsCam,
    build_cnn,
    build_transformer,
    load_networks,
    localise,
    logits_of,
    published_states,
    views,
)
from wsol.optimisation import training_losses

CONFIGS = Path(wsol_config.__file__).parent / "configs/CUB"


@pytest.fixture(scope="module")
def published() -> Networks:
    """The published networks with golden weights."""
    config = wsol_config.load(CONFIGS / "deit_tscam_small_patch16_224.yaml")
    transformer = build_transformer(config, init="random")
    fill_weights(transformer, lambda key: key.removeprefix("vit."))
    cnn = build_cnn(config, init="random")
    fill_weights(cnn, lambda key: key.replace("backbone.", "resnet50."))
    return Networks(transformer, cnn).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.stack([picture("wsol/0", 224, 224), picture("wsol/1", 224, 224)])


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Of tiny networks."""
    return config_of(tmp_path, tmp_path)


def assert_close(actual: Tensor, expected: np.ndarray) -> None:
    """Equal to 1e-4 of the largest value."""
    assert actual.shape == expected.shape
    assert_allclose(actual.numpy(), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@torch.no_grad()
def test_raw_maps_and_logits_equal_published(golden: Callable, published: Networks, images: Tensor):
    expected = golden("wsol_nets")
    maps = published.transformer(images)
    assert_close(maps[:, expected["classes"]], expected["deit_train_cams"])
    assert_close(logits_of(maps), expected["deit_logits"])
    assert_close(logits_of(published.cnn(images)), expected["cnn_logits"])


@pytest.mark.parametrize(("source", "name"), [(TRANSFORMER, "deit"), (CNN, "cnn")])
def test_each_picture_gets_the_published_map_of_its_own_class(
    golden: Callable, published: Networks, images: Tensor, source: str, name: str
):
    expected, places = golden("wsol_nets"), np.array([3, 1])
    classes = torch.from_numpy(expected["classes"][places])
    logits, cams = localise(published, images, classes, source)
    assert_close(cams, expected[f"{name}_cams"][range(2), places])
    assert_close(logits, expected[f"{name}_logits"])


def test_losses_of_a_step_follow_from_the_published_logits(
    golden: Callable, published: Networks, images: Tensor
):
    """No golden of a WSOL step exists; its cross entropies follow from the golden logits."""
    expected, labels = golden("wsol_nets"), [7, 150]
    models = published.eval()._asdict()  # no drop path
    losses, _ = training_losses(models, images, torch.tensor(labels), l1_weight=1.0)
    for name, logits in (("transformer", "deit_logits"), ("cnn", "cnn_logits")):
        scores = expected[logits].astype(np.float64)
        likelihood = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        entropy = -np.log(likelihood[range(2), labels]).mean()
        assert getattr(losses, name).item() == pytest.approx(entropy, rel=1e-4)


def test_mean_maps_weigh_both_networks_equally(config: Config):
    networks = Networks(build_transformer(config), build_cnn(config)).eval()
    images, classes = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    logits, cams = localise(networks, images, classes, MEAN)
    parts = [localise(networks, images, classes, source) for source in (CNN, TRANSFORMER)]
    scaled = [cam / cam.amax((1, 2), keepdim=True).clamp(min=1e-6) for _, cam in parts]
    torch.testing.assert_close(cams, (scaled[0] + scaled[1]) / 2)
    torch.testing.assert_close(logits, (parts[0].logits + parts[1].logits) / 2)


def test_fused_view_is_attention_times_class_map(config: Config):
    model = build_transformer(config).eval()
    images, classes = torch.randn(2, 3, 64, 64), torch.tensor([2, 0])
    maps, _ = views(Networks(model, None), images, classes)
    with torch.no_grad():
        raw = model(images)[torch.arange(2), classes]
    torch.testing.assert_close(maps.class_map, raw.clamp(min=0))
    torch.testing.assert_close(maps.fused, (maps.attention * raw).relu())
    assert maps.cnn is None
    assert maps.attention.min() > 0
    # the rows of each block add up to one over the patches and the class token
    assert (maps.attention.sum((1, 2)) < len(model.vit.blocks)).all()


def test_architectures_of_the_other_configurations():
    for scale, width in (("tiny", 192), ("base", 768)):
        config = wsol_config.load(CONFIGS / f"deit_tscam_{scale}_patch16_224.yaml")
        model = build_transformer(config, init="random")
        assert model.head.weight.shape == (200, width, 3, 3)
        rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.vit.blocks]
        assert_allclose(rates, np.linspace(0, 0.1, 12), atol=1e-6)


def test_every_trainable_parameter_gets_a_gradient(config: Config):
    networks = Networks(build_transformer(config), build_cnn(config))
    images = torch.randn(2, 3, config.DATA.CROP_SIZE, config.DATA.CROP_SIZE)
    for network in networks:
        network(images).square().sum().backward()
        trained = [p for p in network.parameters() if p.requires_grad]
        assert trained
        assert all(p.grad is not None and p.grad.any() for p in trained)


def test_weight_decay_spares_biases_vectors_and_embeddings(config: Config):
    model = build_transformer(config)
    decayed, free = (set(map(id, group)) for group in model.parameter_groups())
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed | free == names.keys()
    assert not decayed & free
    spared = {names[i] for i in free}
    assert {"vit.pos_embed", "vit.cls_token", "head.bias", "vit.norm.weight"} <= spared
    assert all(p.ndim > 1 for name, p in model.named_parameters() if name not in spared)
    assert {"head.weight", "vit.blocks.0.attn.qkv.weight"} <= {names[i] for i in decayed}


@pytest.fixture
def checkpoint(config: Config, tmp_path: Path) -> tuple[Path, Networks]:
    networks = Networks(build_transformer(config), build_cnn(config)).eval()
    path = tmp_path / "published.pth"
    save_checkpoint(path, {"epoch": 19, **published_states(*networks)})
    return path, networks


def rename(path: Path, change: Callable[[str], str]) -> None:
    """Rename the keys of both networks in a checkpoint."""
    state = load_checkpoint(path)
    for entry in ("state_dict", "cnn_state_dict"):
        state[entry] = {change(key): value for key, value in state[entry].items()}
    save_checkpoint(path, state)


def equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("prefix", [True, False])
def test_published_checkpoint_loads_with_and_without_prefix(
    config: Config, checkpoint: tuple[Path, Networks], prefix: bool
):
    path, networks = checkpoint
    state = load_checkpoint(path)
    assert "module.cls_token" in state["state_dict"]
    assert "module.head.weight" in state["state_dict"]
    assert {"module.resnet50.conv1.weight", "module.classifier.weight"} <= set(
        state["cnn_state_dict"]
    )
    if not prefix:
        rename(path, lambda key: key.removeprefix("module."))
    loaded = load_networks(config, path)
    assert equal(loaded.transformer, networks.transformer)
    assert equal(loaded.cnn, networks.cnn)
    assert not loaded.transformer.training


def test_published_duplicates_of_tensors_are_ignored(
    config: Config, checkpoint: tuple[Path, Networks]
):
    path, networks = checkpoint
    state = load_checkpoint(path)
    conv = state["cnn_state_dict"]["module.resnet50.conv1.weight"]
    state["cnn_state_dict"]["module.stage1.0.weight"] = conv + 1
    save_checkpoint(path, state)
    assert equal(load_networks(config, path).cnn, networks.cnn)


def test_checkpoint_without_cnn_localises_with_the_transformer_alone(
    checkpoint: tuple[Path, Networks], tmp_path: Path
):
    path, _ = checkpoint
    state = load_checkpoint(path)
    del state["cnn_state_dict"]
    save_checkpoint(path, state)
    assert load_networks(config_of(tmp_path, tmp_path), path).cnn is None
    with pytest.raises(UserError, match=r"published\.pth has no cnn_state_dict, which MODEL\.CAM"):
        load_networks(config_of(tmp_path, tmp_path, MODEL__CAM="mean"), path)


def test_checkpoint_of_other_networks_is_refused(checkpoint: tuple[Path, Networks], tmp_path: Path):
    path, _ = checkpoint
    with pytest.raises(UserError, match=r"does not fit the transformer of this configuration"):
        load_networks(config_of(tmp_path, tmp_path, DATA__NUM_CLASSES=5), path)
    rename(path, lambda key: key.replace("head.bias", "head.other"))
    with pytest.raises(UserError, match=r"does not fit the transformer .*head\.bias"):
        load_networks(config_of(tmp_path, tmp_path), path)


def test_unknown_networks_are_told_by_key(tmp_path: Path):
    with pytest.raises(UserError, match=r"^MODEL\.ARCH deit_huge_patch16_224 is not"):
        build_transformer(config_of(tmp_path, tmp_path, MODEL__ARCH="deit_tscam_huge_patch16_224"))
    with pytest.raises(UserError, match=r"resnet51 is neither"):
        build_cnn(config_of(tmp_path, tmp_path, MODEL__CNN="resnet51"))
    with pytest.raises(UserError, match=r"absent\.pth does not exist"):
        build_cnn(config_of(tmp_path, tmp_path, MODEL__CNN_WEIGHTS=tmp_path / "absent.pth"))


def test_local_first_weights_of_both_networks(tmp_path: Path) -> None:
    """In half precision, of a CNN with arguments and of a ViT that was trained on other sizes."""
    narrow = {"channels": (8, 16, 32, 64), "stem_width": 8}
    sizes = {"depth": 2, "embed_dim": 48, "num_heads": 2}
    names = {"cnn": ("resnet10t", narrow), "vit": ("deit_tiny_patch16_224", sizes)}
    states = {}
    for key, (name, arguments) in names.items():
        state = timm.create_model(name, **arguments).state_dict()
        states[key] = {k: v.half() for k, v in state.items() if v.is_floating_point()}
        save_file(states[key], tmp_path / f"{key}.safetensors")
    config = config_of(
        tmp_path,
        tmp_path,
        MODEL__CNN="resnet10t",
        MODEL__CNN_ARGS="{channels: [8, 16, 32, 64], stem_width: 8}",
        MODEL__VIT_ARGS="{depth: 2, embed_dim: 48, num_heads: 2}",
        MODEL__CNN_WEIGHTS=tmp_path / "cnn.safetensors",
        MODEL__VIT_WEIGHTS=tmp_path / "vit.safetensors",
    )
    cnn, transformer = build_cnn(config), build_transformer(config)
    assert cnn.backbone.channels == (16, 8, 16, 32, 64)
    for key, value in cnn.backbone.features.state_dict().items():
        assert not value.is_floating_point() or torch.equal(value, states["cnn"][key].float()), key
    for key, value in transformer.vit.state_dict().items():
        if key != "pos_embed":
            assert torch.equal(value, states["vit"][key].float()), key
    patches = (config.DATA.CROP_SIZE // 16) ** 2
    assert patches != 14**2 and transformer.vit.pos_embed.shape == (1, 1 + patches, 48)
    told = r"resnet10t with MODEL\.CNN_ARGS a=1 cannot be built: "
    with pytest.raises(UserError, match=told):
        build_cnn(config_of(tmp_path, tmp_path, MODEL__CNN="resnet10t", MODEL__CNN_ARGS="{a: 1}"))


def test_crops_smaller_than_a_patch_are_refused(tmp_path: Path):
    with pytest.raises(
        UserError, match=r"DATA\.CROP_SIZE 8 is not a multiple of the patch size 16 of"
    ):
        build_transformer(config_of(tmp_path, tmp_path, DATA__CROP_SIZE=8))


def test_weights_that_cannot_be_downloaded_are_told_by_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def offline(*_: object) -> None:
        raise URLError("offline")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    config = wsol_config.load(CONFIGS / "deit_tscam_small_patch16_224.yaml")
    with pytest.raises(
        UserError, match=r"with MODEL\.VIT_WEIGHTS, or start from MODEL\.INIT random"
    ):
        build_transformer(config)
    with pytest.raises(
        UserError, match=r"with MODEL\.CNN_WEIGHTS, or start from MODEL\.INIT random"
    ):
        build_cnn(config)


def test_networks_are_the_shared_ones(config: Config):
    assert isinstance(build_cnn(config), CnnCam)
    assert isinstance(build_transformer(config), TsCam)
