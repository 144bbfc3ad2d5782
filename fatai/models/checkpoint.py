"""Weights from a file into a model, key for key; the file may come from a stranger.

Files of `torch.save` and of safetensors are read. Nothing in them is executed, nothing is read that is larger than it claims
to be, and a model is changed only when all of the file has been checked against it.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fatai.errors import CheckpointError
from fatai.io.atomic import write_file
from fatai.models.base import SpectrogramModel

__all__ = [
    "LoadReport", "check_weights", "load_checkpoint", "load_weights", "read_metadata", "read_weights", "save_weights",
]

# The largest published network that fatai builds takes 0.42 GB.
MAX_BYTES = 2**32


@dataclass(frozen=True)
class LoadReport:
    """What became of the keys of a file and of a model; `str` of it is a sentence for each.

    Attributes
    ----------
    file : name of the file, without its folder.
    loaded : keys of the model whose weights are those of the file.
    first_channel : keys among `loaded` of which the file gave the first input channel only.
    fresh : keys of the model that keep their initial values, because the file has them in another shape or not at all.
    left_over : keys of the file that the model has no use for.
    """

    file: str
    loaded: tuple[str, ...]
    first_channel: tuple[str, ...]
    fresh: tuple[str, ...]
    left_over: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.file}: {len(self.loaded)} tensors loaded"]
        for what, keys in (
            ("for the first input channel only", self.first_channel),
            ("not in the file in this shape, freshly initialised", self.fresh),
            ("left over in the file", self.left_over),
        ):
            if keys:
                lines.append(f"{what}: {', '.join(keys)}")
        return "; ".join(lines)


def read_weights(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> dict[str, Tensor]:
    """Named tensors of a file of weights, on the CPU.

    Parameters
    ----------
    path
        A file of safetensors, or of `torch.save` (of any age): a dictionary of tensors, or one that holds such a dictionary under
        "model" or "state_dict". A "module." before every key, as `DataParallel` writes it, is taken off.
    max_bytes
        Larger files are not read.

    Raises
    ------
    CheckpointError
        If there is no such file, or it is too large, cut off, not of this kind, or holds objects that only code could rebuild.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"there is no file {file}; give the path of a .pth or .safetensors file with weights")
    size = file.stat().st_size
    if size > max_bytes:
        raise CheckpointError(f"{file} has {size:,} bytes; at most {max_bytes:,} are read: is it a file of weights?")
    with file.open("rb") as f:
        is_safetensors = f.read(9)[8:] == b"{"
    try:
        if is_safetensors:
            content = load_file(file)
        else:
            _refuse_inflating(file, size)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as e:  # a damaged or hostile pickle can end in nearly any exception of the reader
        code = re.search(r"GLOBAL ([\w.]+)", str(e))
        if code:
            raise CheckpointError(
                f"{file} holds more than tensors ({code[1]}) and was not loaded, since rebuilding that could run code; where you trust its "
                "maker, save its state_dict alone, as safetensors or with torch.save"
            ) from None
        # What torch says of a file that it refuses is mostly how to run the code in it.
        refused = isinstance(e, pickle.UnpicklingError) or "weights_only" in str(e)
        reason = "it holds other things" if refused else str(e).strip().split("\n")[0] or type(e).__name__
        raise CheckpointError(
            f"{file} cannot be read as weights ({reason}); expected a file of torch.save or of safetensors"
        ) from None
    return _named_tensors(content, file)


def _refuse_inflating(file: Path, size: int) -> None:
    """Refuse an archive with packed members: torch.save packs none, and a small file could unpack to any size."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
            raise CheckpointError(
                f"{file} is a compressed archive; expected a file as torch.save writes it, which is not compressed"
            )


def _named_tensors(content: Any, file: Path) -> dict[str, Tensor]:
    """The dictionary of tensors in what a file held."""
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{file} holds a {type(content).__name__}; expected named tensors, such as a state_dict")
    for key, value in content.items():
        plain = (
            isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta and not value.is_quantized
        )
        if not isinstance(key, str) or not plain:
            raise CheckpointError(
                f"{file} holds a {type(value).__name__} under {key!r}; expected a dictionary of names to dense tensors"
            )
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): value.detach() for key, value in content.items()}


def load_checkpoint(
    model: SpectrogramModel,
    path: str | os.PathLike[str],
    *,
    fresh: Collection[str] = (),
    surplus: Collection[str] = (),
    first_channel: Collection[str] = (),
    max_bytes: int = MAX_BYTES,
) -> LoadReport:
    """Copy the weights of a file into a model; every key must fit, but for what is named here.

    Parameters
    ----------
    fresh
        Beginnings of the model's keys that stay freshly initialised where the file lacks them or has them in another shape, such as
        "head.": the classifier of a network that was trained on other tags.
    surplus
        Beginnings of keys that the file may hold without use for the model.
    first_channel
        Beginnings of the model's keys that depend on its number of input channels. Where the file's tensor is of one channel, it becomes
        the first channel's part; convolutions give the other channels a weight of 0, and other tensors keep their initial values. So the
        model begins by answering to its first channel as the network in the file would, and learns to use the others.
    max_bytes
        See `read_weights`.

    Returns
    -------
    What was loaded, and what was not.

    Raises
    ------
    CheckpointError
        See `read_weights`; and if keys are missing or unknown, or shapes differ: the keys and both shapes are named. The model is as
        it was.
    """
    file = Path(path)
    given, own = read_weights(file, max_bytes=max_bytes), model.state_dict()
    new: dict[str, Tensor] = {}
    partly: list[str] = []
    kept: list[str] = []
    missing: list[str] = []
    misshaped: list[str] = []
    for key, value in own.items():
        found = given.get(key)
        if found is None:
            (kept if key.startswith(tuple(fresh)) or key.endswith("num_batches_tracked") else missing).append(key)
        elif found.is_floating_point() != value.is_floating_point():
            raise CheckpointError(f"{file.name} holds {found.dtype} under {key}; the model expects {value.dtype}")
        elif found.shape == value.shape:
            new[key] = found
        elif (
            key.startswith(tuple(first_channel)) and (widened := _widened(found, value, model.in_channels)) is not None
        ):
            new[key] = widened
            partly.append(key)
        elif key.startswith(tuple(fresh)):
            kept.append(key)
        else:
            misshaped.append(f"{key} has shape {tuple(found.shape)}, the model's is {tuple(value.shape)}")
    left_over = sorted(given.keys() - own.keys())
    unknown = [key for key in left_over if not key.startswith(tuple(surplus))]
    faults = [
        f"{what} {'; '.join(keys[:4])}{f' and {len(keys) - 4} more' if len(keys) > 4 else ''}"
        for what, keys in (("it lacks", missing), ("it holds the unknown", unknown), ("in it", misshaped)) if keys
    ]
    if faults:
        raise CheckpointError(
            f"{file.name} does not fit {type(model).__name__}: {'; '.join(faults)}; build the model, with the options, that it belongs to"
        )
    model.load_state_dict(own | new)
    return LoadReport(file.name, tuple(new), tuple(partly), tuple(kept), tuple(left_over))


def _widened(found: Tensor, own: Tensor, in_channels: int) -> Tensor | None:
    """`found`, made for one channel, as the first part of `own`; None if the shapes differ by more than the number of channels."""
    for d in range(own.ndim if found.ndim == own.ndim else 0):
        if own.shape == (*found.shape[:d], in_channels * found.shape[d], *found.shape[d + 1:]):
            widened = torch.zeros_like(own) if own.ndim > 1 else own.clone()
            widened.narrow(d, 0, found.shape[d]).copy_(found)
            return widened
    return None


def save_weights(path: str | Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the weights of a model as safetensors; nothing in such a file can be executed when it is read.

    Parameters
    ----------
    path
        File to write, whole or not at all.
    model
        Model whose `state_dict` is written.
    metadata
        Text to store beside the weights; `read_metadata` returns it.
    """
    # Copies, because safetensors refuses tensors that share storage and fastai's subclasses.
    plain = {k: v.detach().as_subclass(Tensor).cpu().contiguous().clone() for k, v in model.state_dict().items()}
    with write_file(path) as beside:
        save_file(plain, str(beside), metadata=dict(metadata))


def check_weights(path: str | Path, model: nn.Module) -> None:
    """Compare the names and shapes in a file of weights with those of a model; no tensor is read.

    The model may be on the device "meta".

    Raises
    ------
    CheckpointError
        If the file is no safetensors file, or its names or shapes differ from the model's; up to three are named.
    """
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    with _open_safetensors(path) as f:
        found = {k: tuple(f.get_slice(k).get_shape()) for k in f.keys()}
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    misshaped = sorted(k for k in expected.keys() & found.keys() if expected[k] != found[k])
    for fault, keys in (("lacks", missing), ("has the unknown", extra), ("has another shape of", misshaped)):
        if keys:
            listed = ", ".join(keys[:3]) + (" ..." if len(keys) > 3 else "")
            raise CheckpointError(f"{path} does not fit its model: it {fault} {listed}")


def load_weights(path: str | Path, model: nn.Module) -> None:
    """Load weights written by `save_weights` into a model of the same shape.

    Raises
    ------
    CheckpointError
        As for `check_weights`; the model is then unchanged.
    """
    check_weights(path, model)
    with _open_safetensors(path) as f:
        state = {k: f.get_tensor(k) for k in f.keys()}
    model.load_state_dict(state)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the text that `save_weights` stored beside the weights.

    Raises
    ------
    CheckpointError
        If the file is no safetensors file.
    """
    with _open_safetensors(path) as f:
        return dict(f.metadata() or {})


@contextmanager
def _open_safetensors(path: str | Path) -> Iterator[Any]:
    try:
        with safe_open(str(path), framework="pt") as f:
            yield f
    except (SafetensorError, OSError) as e:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({e}); expected the model.safetensors of a run"
        ) from None
