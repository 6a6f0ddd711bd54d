"""Arithmetic of the networks: float32, TF32, or bfloat16 where the device is fast at it."""

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from misc.progress import log

AUTO, FLOAT32, TF32, BFLOAT16 = "auto", "float32", "tf32", "bfloat16"
_CUDA_WITH_BFLOAT16 = (8, 0)  # compute capability: Ampere; older GPUs emulate it
_CPU_FLAGS = ("avx512_bf16", "amx_bf16")


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """What the networks run in: autocast to bfloat16 when `precision` asks for it.

    On a CUDA device it also sets whether float32 convolutions and matrix products may round their
    inputs to ten bits of mantissa: with `tf32`, and with nothing else (PyTorch lets convolutions).
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = precision == TF32
        torch.backends.cuda.matmul.allow_tf32 = precision == TF32
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == BFLOAT16)


def settle_precision(asked: str, device: torch.device) -> str:
    """Turn `auto` into the arithmetic that suits a device; tell the choice, and a slow wish.

    Args:
        asked: `auto`, `float32`, `tf32` or `bfloat16`.
        device: on which the networks run.

    Returns:
        `float32`, `tf32` or `bfloat16`, which is what records hold.
    """
    if asked == FLOAT32:
        return FLOAT32
    if asked == TF32:
        if device.type == "cuda":
            return TF32
        log(f"precision tf32 is one of CUDA devices: float32 on this {device.type} device")
        return FLOAT32
    fast = is_fast_at_bfloat16(device)
    if asked == AUTO:
        chosen = BFLOAT16 if fast else FLOAT32
        log(f"precision auto: {chosen} on this {device.type} device")
        return chosen
    if not fast:
        log(
            f"warning: this {device.type} device has no bfloat16 arithmetic of its own, so that "
            "precision bfloat16 is slower than float32 here; auto chooses what is fast."
        )
    return BFLOAT16


def with_settled_precision(config: Any, device: torch.device) -> Any:
    """A configuration of DeepLab or WSOL whose SOLVER.PRECISION is settled for a device."""
    precision = settle_precision(config.SOLVER.PRECISION, device)
    return replace(config, SOLVER=replace(config.SOLVER, PRECISION=precision))


def is_fast_at_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself.

    CUDA GPUs do from Ampere on, CPUs with AVX512-BF16 or AMX; of others it is not assumed.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _CUDA_WITH_BFLOAT16
    if device.type == "cpu":
        return any(map(torch.cpu.get_capabilities().get, _CPU_FLAGS))
    return False
