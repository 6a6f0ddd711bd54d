"""First weights of ViTs: layouts of other repositories, files of other networks, files by hand."""

from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from networks import VIT_OPTIONS
from safetensors.torch import save_file
from torch import Tensor

from misc.checkpoint import save_checkpoint
from misc.errors import UserError
from net.pretrained import timm_file
from net.vit import Vit, build_vit

SMALL = {"depth": 2, "embed_dim": 64, "num_heads": 2}
State = dict[str, Tensor]


def original(name: str, size: int, **model_args: object) -> State:
    """A network of timm with random weights, all of them different from a fresh one's."""
    torch.manual_seed(7)
    state = timm.create_model(name, num_classes=5, img_size=size, **SMALL | model_args).state_dict()
    return {key: torch.randn_like(value) for key, value in state.items()}


def renamed(state: State, *pairs: tuple[str, str]) -> State:
    """Replace parts of all keys."""
    result = {}
    for key, value in state.items():
        for old, new in pairs:
            key = key.replace(old, new)
        result[key] = value
    return result


# --- how the original repositories lay out what timm calls otherwise


def deit3(state: State) -> dict:
    """Layer scales are parameters of the block; a `model` entry."""
    return {"model": renamed(state, ("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2"))}


def dinov2(state: State) -> dict:
    """A mask token beside timm's keys, no classifier."""
    state = {key: v for key, v in state.items() if not key.startswith("head.")}
    return {**state, "mask_token": torch.zeros(1, 64)}


def dinov2_registers(state: State) -> dict:
    """The class token has a position embedding of its own, which timm adds to it."""
    state = renamed(dinov2(state), ("reg_token", "register_tokens"))
    of_class = torch.randn(1, 1, 64)
    state["pos_embed"] = torch.cat([of_class, state["pos_embed"]], dim=1)
    return {**state, "cls_token": state["cls_token"] - of_class}


def dinov3(state: State) -> dict:
    """Biases of queries, keys and values are one vector with a mask; rotation as a buffer."""
    state = renamed(
        {key: v for key, v in state.items() if not key.startswith("head.")},
        ("reg_token", "storage_tokens"),
        ("gamma_1", "ls1.gamma"),
        ("gamma_2", "ls2.gamma"),
    )
    for block in ("blocks.0.attn.", "blocks.1.attn."):
        query, value = (state.pop(f"{block}{k}_bias", torch.zeros(64)) for k in "qv")
        state[f"{block}qkv.bias"] = torch.cat([query, torch.randn(64), value])
        state[f"{block}qkv.bias_mask"] = torch.full((192,), float("nan"))
    return {**state, "mask_token": torch.zeros(1, 64), "rope_embed.periods": torch.ones(8)}


def eva02(state: State) -> dict:
    """Of masked image modelling: prediction head, mask token, rotations; a `module` entry."""
    state = renamed(state, ("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3"), ("fc_norm", "norm"))
    return {"module": with_pretraining(state)}


def eva02_base(state: State) -> dict:
    """Separate projections, biases beside them, SwiGLU in two layers with a norm."""
    state = renamed(
        state,
        ("mlp.fc1_g", "mlp.w1"),
        ("mlp.fc1_x", "mlp.w2"),
        ("mlp.fc2", "mlp.w3"),
        ("mlp.norm", "mlp.ffn_ln"),
        ("q_proj.bias", "q_bias"),
        ("v_proj.bias", "v_bias"),
        ("fc_norm", "norm"),
    )
    return {"model": with_pretraining(state)}


def with_pretraining(state: State) -> State:
    state = {key: v for key, v in state.items() if not key.startswith("head.")}
    return {
        **state,
        "mask_token": torch.zeros(1, 1, 64),
        "lm_head.weight": torch.zeros(9, 64),
        "lm_head.bias": torch.zeros(9),
        "rope.freqs_cos": torch.ones(16, 32),
        "blocks.0.attn.rope.freqs_sin": torch.ones(16, 32),
    }


LAYOUTS: list[tuple[str, int, Callable[[State], dict]]] = [
    ("deit3_small_patch16_224.fb_in22k_ft_in1k", 64, deit3),
    ("vit_small_patch14_dinov2.lvd142m", 56, dinov2),
    ("vit_small_patch14_reg4_dinov2.lvd142m", 56, dinov2_registers),
    ("vit_small_patch16_dinov3_qkvb.lvd1689m", 64, dinov3),
    ("vit_small_patch16_dinov3.lvd1689m", 64, dinov3),
    ("eva02_small_patch14_224.mim_in22k", 56, eva02),
    ("eva02_base_patch14_224.mim_in22k", 56, eva02_base),
    ("vit_small_patch16_rope_mixed_224.naver_in1k", 64, dict),
    ("vit_pe_core_small_patch16_384.fb", 64, dict),
    ("deit_small_distilled_patch16_224", 64, dict),
]


def load(tmp_path: Path, name: str, size: int, content: dict, **model_args: object) -> Vit:
    """Build a network from a file."""
    save_checkpoint(tmp_path / "w.pth", content)
    return build_vit(name, size, weights=str(tmp_path / "w.pth"), model_args=SMALL | model_args)


@pytest.mark.parametrize(
    ("name", "size", "layout"), LAYOUTS, ids=lambda one: getattr(one, "__name__", str(one))
)
@pytest.mark.parametrize("bare", [True, False], ids=["timm", "original"])
def test_files_in_either_layout_are_loaded_completely(
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    name: str,
    size: int,
    layout: Callable[[State], dict],
    bare: bool,
) -> None:
    state = original(name, size)
    own = load(tmp_path, name, size, state if bare else layout(state)).state_dict()
    for key, value in own.items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=1e-6, msg=key)
    assert len(own) > 20
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("name", "size"), [("vit_small_patch14_reg4_dinov2", 56)])
def test_position_embeddings_of_another_size_are_resized(
    tmp_path: Path, name: str, size: int
) -> None:
    """A ramp over rows stays a ramp; registers and class token have no position."""
    state = original(name, 4 * size)
    state["pos_embed"] = (
        torch.linspace(0, 1, 16).repeat_interleave(16)[None, :, None].repeat(1, 1, 64)
    )
    vit = load(tmp_path, name, size, state)
    rows = vit.pos_embed.reshape(4, 4, 64)
    assert vit.pos_embed.shape == (1, 16, 64)
    torch.testing.assert_close(rows, rows[:, :1, :1].expand(4, 4, 64), rtol=0, atol=1e-5)
    torch.testing.assert_close(rows[1:3, 0, 0], torch.tensor([5.5, 9.5]) / 15, rtol=0, atol=0.02)
    assert torch.equal(vit.reg_token, state["reg_token"])


@pytest.mark.parametrize(
    ("of", "given_to", "told"),
    [
        ("deit_small_patch16_224", "vit_small_patch16_dinov3", "does not fit"),
        ("deit_small_patch16_224", "deit3_small_patch16_224", "does not fit"),
        ("deit3_small_patch16_224", "deit_small_patch16_224", "does not fit|cannot convert"),
        (
            "deit_small_distilled_patch16_224",
            "deit_small_patch16_224",
            "does not fit .*timm cannot convert",
        ),
        ("vit_small_patch16_224", "vit_small_patch16_rope_224", "does not fit"),
        (
            "vit_small_patch16_rope_ape_224",
            "vit_small_patch16_rope_224",
            r"unexpected \(pos_embed\); give",
        ),
        (
            "vit_small_patch16_rope_mixed_224",
            "vit_small_patch16_rope_224",
            r"unexpected \(rope\.freqs\); give",
        ),
        ("vit_small_patch14_reg4_dinov2", "vit_small_patch14_dinov2", "does not fit|reg_token"),
        ("vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "does not fit"),
        (
            "vit_small_patch16_dinov3_qkvb",
            "vit_small_patch16_dinov3",
            r"unexpected \(blocks\.0\.attn\.q_bias, .*; give",
        ),
        (
            "vit_small_patch16_dinov3",
            "vit_small_patch16_dinov3_qkvb",
            r"missing \(blocks\.0\.attn\.q_bias",
        ),
        ("vit_small_plus_patch16_dinov3", "vit_small_patch16_dinov3", "does not fit"),
        ("eva02_base_patch14_224", "eva02_small_patch14_224", "does not fit"),
        ("vit_small_patch16_224", "vit_small_patch8_224", "has patches of 16 pixels, .* has 8"),
    ],
)
def test_files_of_another_architecture_are_refused(
    tmp_path: Path, of: str, given_to: str, told: str
) -> None:
    state = original(of, 224)
    with pytest.raises(UserError, match=told) as raised:
        load(tmp_path, given_to, 224, state)
    assert str(tmp_path / "w.pth") in str(raised.value)


@pytest.mark.parametrize("has_classifier", [True, False])
@pytest.mark.parametrize("size", [64, 96])
def test_files_in_half_precision_are_loaded_for_any_tile(
    tmp_path: Path, size: int, has_classifier: bool
) -> None:
    """Position embeddings of 4x4 patches become those of 6x6 in single precision."""
    name = "deit_small_patch16_224"
    state = {key: value.half() for key, value in original(name, 64).items()}
    own = {k: v for k, v in state.items() if has_classifier or not k.startswith("head.")}
    save_file(own, tmp_path / "w.safetensors")
    assert ("head.weight" in own) == has_classifier
    vit = build_vit(name, size, weights=str(tmp_path / "w.safetensors"), model_args=SMALL)
    for key, value in vit.state_dict().items():
        assert value.dtype == torch.float32
        if key != "pos_embed":
            assert torch.equal(value, state[key].float()), key
    first, grid = state["pos_embed"].float().split([1, 16], dim=1)
    maps = grid.reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    if size == 96:
        maps = F.interpolate(maps, (6, 6), mode="bicubic", antialias=True)
    expected = torch.cat([first, maps.flatten(2).transpose(1, 2)], dim=1)
    torch.testing.assert_close(vit.pos_embed.detach(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"depth": 3}, {"embed_dim": 32}, {"num_reg_tokens": 2}], ids=str)
def test_files_of_another_shape_are_refused(tmp_path: Path, wrong: dict) -> None:
    name = "vit_small_patch16_dinov3"
    with pytest.raises(UserError, match=r"w\.pth .*give the weights of"):
        load(tmp_path, name, 64, original(name, 64, **wrong))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"w\.pth does not fit .* missing \(cls_token"):
        load(tmp_path, "vit_small_patch16_dinov3", 64, torchvision.models.resnet18().state_dict())
    state = original("vit_small_patch14_dinov2", 56)
    state["pos_embed"] = torch.randn(1, 12, 64)  # no square of patches
    with pytest.raises(UserError, match=r"w\.pth does not fit vit_small_patch14"):
        load(tmp_path, "vit_small_patch14_dinov2", 56, state)


def test_biases_that_the_network_would_drop_are_not_lost_without_a_word(tmp_path: Path) -> None:
    state = dinov3(original("vit_small_patch16_dinov3_qkvb", 64))
    with pytest.raises(UserError, match=r"w\.pth has biases .* give vit_small_patch16_dinov3_qkvb"):
        load(tmp_path, "vit_small_patch16_dinov3.lvd1689m", 64, state)


def test_patches_are_resized_where_their_size_was_asked_for(tmp_path: Path) -> None:
    """A constant patch stays one whose response to a constant picture is the same."""
    state = original("vit_small_patch16_224", 64)
    state["patch_embed.proj.weight"] = torch.ones(64, 3, 16, 16)
    vit = load(tmp_path, "vit_small_patch16_224", 64, state, patch_size=8)
    assert vit.patch_embed.proj.weight.shape == (64, 3, 8, 8)
    total = vit.patch_embed.proj.weight.sum(dim=(1, 2, 3))
    torch.testing.assert_close(total, torch.full((64,), 3 * 256.0), rtol=0.02, atol=0)


# ------------------------------------------------------------------------------------------- hub


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network and an empty cache; returns the folder for files put by hand."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "checkpoints"


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_dinov2.lvd142m"),
        ("deit3_small_patch16_224.fb_in1k", "deit3_small_patch16_224.fb_in1k"),
        ("vit_small_patch16_dinov3", "vit_small_patch16_dinov3.lvd1689m"),
        ("eva02_small_patch14_224.mim_in22k", "eva02_small_patch14_224.mim_in22k"),
        ("vit_small_patch16_224.dino", "vit_small_patch16_224.dino"),
    ],
)
def test_offline_message_names_hub_id_file_and_place(offline: Path, name: str, full: str) -> None:
    with pytest.raises(UserError) as raised:
        build_vit(name, 112, model_args=SMALL, names=VIT_OPTIONS)
    message = str(raised.value)
    assert f"put https://huggingface.co/timm/{full}/resolve/main/model.safetensors at " in message
    assert f" at {offline / full}.safetensors, name a local file with --vit_weights" in message
    assert "--init random" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2.lvd142m", "vit_small_patch16_dinov3"])
def test_file_put_by_hand_is_used_and_checked(offline: Path, name: str) -> None:
    state, place = original(name, 112), timm_file(name).cached
    assert place.parent == offline
    offline.mkdir()
    save_file(state, place)
    vit = build_vit(name, 112, model_args=SMALL)
    assert all(torch.equal(value, state[key]) for key, value in vit.state_dict().items())
    del state["norm.weight"]
    save_file(state, place)
    with pytest.raises(
        UserError, match=rf"{place.name} does not fit .* 1 missing \(norm\.weight\)"
    ):
        build_vit(name, 112, model_args=SMALL)


def test_downloaded_state_is_loaded_by_hub_id(
    monkeypatch: pytest.MonkeyPatch, offline: Path
) -> None:
    name, asked = "vit_small_patch16_224.augreg_in21k", []
    state = original(name, 224)

    def download(hub_id: str) -> State:
        asked.append(hub_id)
        return state

    monkeypatch.setattr("net.pretrained.load_state_dict_from_hf", download)
    vit = build_vit(name, 224, model_args=SMALL)
    assert asked == [f"timm/{name}"]
    assert torch.equal(vit.blocks[1].mlp.fc2.weight, state["blocks.1.mlp.fc2.weight"])


def test_networks_without_published_weights_say_so(offline: Path) -> None:
    with pytest.raises(UserError, match=r"timm has no weights of vit_base_patch32_plus_256"):
        build_vit("vit_base_patch32_plus_256", 256, model_args=SMALL)
