"""Floating-point precision of a network: float32, or lower where the device is faster with it; needs torch alone.

`best_dtype` decides what "auto" means on a device.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import nn

from fatai.errors import OptionError

__all__ = ["PRECISIONS", "autocast_for", "best_dtype", "fast_layout"]

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
"""Names of precisions; "auto" is that of `best_dtype`."""


def best_dtype(device: torch.device | str) -> torch.dtype:
    """Return the dtype of "auto": bfloat16 where the device supports it, float16 on older GPUs, else float32."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16") else torch.float32
    return torch.float32


def dtype_for(device: torch.device, precision: str) -> torch.dtype:
    """Return the dtype of a precision, a name of `PRECISIONS`, on a device.

    Raises
    ------
    OptionError
        If there is no such precision, or it is "fp16" on a device without it.
    """
    if precision not in PRECISIONS:
        raise OptionError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type != "cuda":
        raise OptionError(
            f"precision is 'fp16' on {device.type}; expected a CUDA device for it, or 'auto', 'bf16' or 'fp32'"
        )
    return {"auto": best_dtype(device), "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def autocast_for(device: torch.device | str, precision: str = "auto") -> AbstractContextManager:
    """Return a context in which a network on `device` runs in the given precision, a name of `PRECISIONS`.

    In float32 it turns off an autocast around it.
    """
    device = torch.device(device)
    dtype = dtype_for(device, precision)
    if dtype == torch.float32:
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=dtype)


def fast_layout(model: nn.Module, device: torch.device | str, precision: str = "auto") -> nn.Module:
    """Return `model` with its weights in the memory layout of low-precision kernels, channels last."""
    if dtype_for(torch.device(device), precision) != torch.float32:
        model.to(memory_format=torch.channels_last)
    return model
