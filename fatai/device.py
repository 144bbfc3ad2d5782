"""The device that networks compute on: chosen by torch, or for a command and the processes that it starts."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from fatai.errors import OptionError

if TYPE_CHECKING:
    import torch

__all__ = ["DEVICE_VARIABLE", "inference_device", "set_device", "training_device"]

DEVICE_VARIABLE = "FATAI_DEVICE"
"""Environment variable of the device, which processes inherit."""

_NAMES = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")


def set_device(name: str) -> None:
    """Compute on a device, in this process and in those that it starts.

    Parameters
    ----------
    name
        "cpu"; "cuda", the current GPU of torch; "cuda:1", the GPU of this number, from 0; "mps", the GPU of an Apple
        machine; or "auto", which leaves the choice to torch.

    Raises
    ------
    OptionError
        If it is no device, or this machine does not have it.
    """
    if not _NAMES.fullmatch(name):
        raise OptionError(f"the device is {name!r}; expected auto, cpu, cuda, cuda:1 (the second GPU) or mps")
    if name == "auto":
        os.environ.pop(DEVICE_VARIABLE, None)
        return
    if name == "cpu":
        # So that torch does not find a GPU anywhere, such as for pinned memory.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    _check_available(name)
    os.environ[DEVICE_VARIABLE] = name


def _check_available(name: str) -> None:
    if name == "cpu":
        return
    import torch

    if name == "mps":
        if not torch.backends.mps.is_available():
            raise OptionError("the device is mps, which torch does not find here; take --device cpu or auto")
        return
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = int(name.partition(":")[2] or 0)
    if number < n:
        if ":" in name:
            torch.cuda.set_device(number)
        return
    found = f"torch finds {n} of them, counted from cuda:0" if n else "torch finds no GPU here"
    raise OptionError(f"the device is {name}, but {found}; take another --device, and see fatai-submit doctor")


def inference_device() -> torch.device:
    """Return the device of predictions: that of `set_device`, else the GPU of CUDA or ROCm, if there is one."""
    import torch

    return torch.device(os.environ.get(DEVICE_VARIABLE) or ("cuda" if torch.cuda.is_available() else "cpu"))


def training_device() -> torch.device:
    """Return the device of data loaders: that of `set_device`, else fastai's default device."""
    import torch
    from fastai import torch_core

    return torch.device(os.environ.get(DEVICE_VARIABLE) or torch_core.default_device())
