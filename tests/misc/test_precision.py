"""Which arithmetic `auto` means, what is told, and what the networks then compute in."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from deeplab.config import Config
from misc import precision

CPU = torch.device("cpu")


@pytest.fixture
def capable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with the flags of the parameter."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: request.param)


FAST = [{"avx512_bf16": True, "amx_bf16": False}, {"avx512_bf16": False, "amx_bf16": True}]
SLOW = [{"avx512_bf16": False, "amx_bf16": False, "avx2": True}, {}]


@pytest.mark.parametrize("capable", FAST, indirect=True)
def test_a_capable_cpu_runs_in_bfloat16(capable: None, capsys: pytest.CaptureFixture) -> None:
    assert precision.settle_precision("auto", CPU) == "bfloat16"
    assert "precision auto: bfloat16 on this cpu device" in capsys.readouterr().out
    assert precision.settle_precision("bfloat16", CPU) == "bfloat16"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("capable", SLOW, indirect=True)
def test_another_cpu_runs_in_float32_and_a_slow_wish_is_told(
    capable: None, capsys: pytest.CaptureFixture
) -> None:
    assert precision.settle_precision("auto", CPU) == "float32"
    assert precision.settle_precision("bfloat16", CPU) == "bfloat16"
    assert "slower than float32 here; auto chooses what is fast" in capsys.readouterr().out


def test_tf32_is_one_of_cuda(capsys: pytest.CaptureFixture) -> None:
    assert precision.settle_precision("tf32", CPU) == "float32"
    assert "tf32 is one of CUDA devices" in capsys.readouterr().out
    assert precision.settle_precision("tf32", torch.device("cuda", 0)) == "tf32"


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_from_ampere_on_are_fast(
    capability: tuple[int, int], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision.is_fast_at_bfloat16(torch.device("cuda", 0)) is fast


@pytest.mark.parametrize(
    ("asked", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_products_have_the_type_that_was_asked_for(asked: str, dtype: torch.dtype) -> None:
    with precision.autocast(CPU, asked):
        assert torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3)).dtype == dtype


@pytest.fixture
def flags() -> Iterator[tuple[Any, Any]]:
    """Where PyTorch keeps what CUDA devices may round; put back afterwards."""
    places = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [place.allow_tf32 for place in places]
    yield places
    for place, allowed in zip(places, before, strict=True):
        place.allow_tf32 = allowed


@pytest.mark.parametrize("asked", ["float32", "tf32", "bfloat16"])
def test_only_tf32_rounds_on_cuda(
    asked: str, flags: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: None)
    precision.autocast(torch.device("cuda", 0), asked)
    assert [place.allow_tf32 for place in flags] == [asked == "tf32"] * 2


@pytest.mark.parametrize("capable", FAST[:1], indirect=True)
def test_a_configuration_holds_what_was_chosen(capable: None) -> None:
    config = Config()
    asked = replace(config, SOLVER=replace(config.SOLVER, PRECISION="auto"))
    settled = precision.with_settled_precision(asked, CPU)
    assert settled.SOLVER.PRECISION == "bfloat16"
    assert replace(settled, SOLVER=config.SOLVER) == config
