"""Files of weights: published checkpoints loaded into a model, key for key, and the weights of a run.

Files of `torch.save` and of safetensors are read, also from untrusted sources: nothing in them is executed, nothing is
read that is larger than the file itself, and a model is changed only after all of the file has been checked against it.
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
# Keys of each kind that a message lists.
_MAX_LISTED_KEYS = 4


@dataclass(frozen=True)
class LoadReport:
    """How the keys of a file and of a model were matched; `str` of it is one line.

    Attributes
    ----------
    file
        Name of the file, without its folder.
    loaded
        Keys of the model whose weights are those of the file.
    first_channel
        Keys among `loaded` for which the file gave the first input channel only.
    initialized
        Keys of the model that keep their initial values, because the file does not have them in this shape.
    unexpected
        Keys of the file that the model does not have.
    """

    file: str
    loaded: tuple[str, ...]
    first_channel: tuple[str, ...]
    initialized: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.file}: {len(self.loaded)} tensors loaded"]
        for title, keys in (
            ("for the first input channel only", self.first_channel),
            ("not in the file in this shape, newly initialized", self.initialized),
            ("in the file but not in the model", self.unexpected),
        ):
            if keys:
                lines.append(f"{title}: {', '.join(keys)}")
        return "; ".join(lines)


def read_weights(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> dict[str, Tensor]:
    """Read the named tensors of a file of weights.

    Parameters
    ----------
    path
        A file of safetensors, or of `torch.save` (of any age): a dictionary of tensors, or one that holds such a
        dictionary under "model" or "state_dict". The prefix "module." of all keys, which `DataParallel` writes, is
        removed.
    max_bytes
        Larger files are not read.

    Returns
    -------
    Key to tensor, on the CPU, with the shapes and dtypes of the file.

    Raises
    ------
    CheckpointError
        If there is no such file, or it is too large, truncated, not of this kind, or holds objects that only code could
        rebuild.
    """
    file = Path(path)
    _check_size(file, max_bytes)
    with file.open("rb") as f:
        is_safetensors = f.read(9)[8:] == b"{"
    if not is_safetensors:
        return _named_tensors(read_checkpoint(file, max_bytes=max_bytes), file)
    try:
        return _named_tensors(load_file(file), file)
    except (SafetensorError, OSError, ValueError) as e:
        raise e if isinstance(e, CheckpointError) else _unreadable(file, str(e).split("\n")[0]) from None


def read_checkpoint(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> Any:
    """Read a file of `torch.save` that holds only tensors, numbers, text, and containers of them.

    Parameters
    ----------
    path
        File to read; tensors are loaded to the CPU.
    max_bytes
        Larger files are not read.

    Raises
    ------
    CheckpointError
        If there is no such file, or it is too large, truncated, compressed, or holds other objects: nothing is
        executed.
    """
    file = Path(path)
    _check_size(file, max_bytes)
    try:
        _check_not_compressed(file)
        # Not by its path: recent versions of torch choose the format by the suffix.
        with file.open("rb") as f:
            return torch.load(f, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as e:  # a damaged or hostile pickle can raise nearly any exception
        code = re.search(r"GLOBAL ([\w.]+)", str(e))
        if code:
            raise CheckpointError(
                f"{file} holds more than tensors ({code[1]}) and was not loaded, since rebuilding that could run code; "
                "if you trust its source, save its state_dict alone, as safetensors or with torch.save"
            ) from None
        # torch's message for a file that it refuses is mainly advice to run the code in it.
        refused = isinstance(e, pickle.UnpicklingError) or "weights_only" in str(e)
        reason = "it holds other things" if refused else str(e).strip().split("\n")[0] or type(e).__name__
        raise _unreadable(file, reason) from None


def save_checkpoint(path: str | os.PathLike[str], content: Any) -> None:
    """Write tensors, numbers, text, and containers of them with `torch.save`: the whole file, or none.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    with write_file(path) as temp, open(temp, "wb") as f:
        try:
            torch.save(content, f)
        except RuntimeError as e:
            # torch hides the error of the system, which has the number that `write_file` translates.
            raise (e.__context__ if isinstance(e.__context__, OSError) else e) from None


def _check_size(file: Path, max_bytes: int) -> None:
    if not file.is_file():
        raise CheckpointError(f"there is no file {file}; give the path of a .pth or .safetensors file with weights")
    size = file.stat().st_size
    if size > max_bytes:
        raise CheckpointError(f"{file} has {size:,} bytes; at most {max_bytes:,} are read: is it a file of weights?")


def _check_not_compressed(file: Path) -> None:
    """Refuse an archive with compressed members: torch.save writes none, and a small file could unpack to any size."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        stored = all(m.compress_type == zipfile.ZIP_STORED for m in members)
        if not stored or sum(m.file_size for m in members) > file.stat().st_size:
            raise CheckpointError(
                f"{file} is a compressed archive; expected a file as torch.save writes it, which is not compressed"
            )


def _unreadable(file: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{file} cannot be read as weights ({reason}); expected a file of torch.save or of safetensors"
    )


def _named_tensors(content: Any, file: Path) -> dict[str, Tensor]:
    """Return the dictionary of tensors in the content of a file."""
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{file} holds a {type(content).__name__}; expected named tensors, such as a state_dict")
    for key, value in content.items():
        if not isinstance(key, str) or not _is_dense(value):
            raise CheckpointError(
                f"{file} holds a {type(value).__name__} under {key!r}; expected a dictionary of names to dense tensors"
            )
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): value.detach() for key, value in content.items()}


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta and not value.is_quantized


def load_checkpoint(
    model: SpectrogramModel,
    path: str | os.PathLike[str],
    *,
    reinit: Collection[str] = (),
    ignore: Collection[str] = (),
    first_channel: Collection[str] = (),
    max_bytes: int = MAX_BYTES,
) -> LoadReport:
    """Load the weights of a file into a model; every key must match, with the exceptions given here.

    Parameters
    ----------
    model
        The model to change.
    path
        File of weights, see `read_weights`.
    reinit
        Prefixes of the model's keys that keep their initial values where the file does not have them in this shape,
        such as "head.": the classifier of a network that was trained on other tags.
    ignore
        Prefixes of keys of the file that the model need not have.
    first_channel
        Prefixes of the model's keys that depend on its number of input channels. Where the file's tensor is for one
        channel, it becomes the part of the first channel; convolutions give the other channels a weight of 0, and other
        tensors keep their initial values. So the model's first output is that of the network in the file for the first
        channel, and training can use the others.
    max_bytes
        Larger files are not read.

    Returns
    -------
    The keys that were loaded, and those that were not.

    Raises
    ------
    CheckpointError
        As for `read_weights`; and if keys are missing or unknown, or shapes differ: the keys and both shapes are named.
        The model is then unchanged.
    """
    file = Path(path)
    given, expected = read_weights(file, max_bytes=max_bytes), model.state_dict()
    match = _Match(file.name, tuple(reinit), tuple(first_channel), model.in_channels)
    for key, value in expected.items():
        match.add(key, value, given.get(key))
    unexpected = sorted(given.keys() - expected.keys())
    unknown = [key for key in unexpected if not key.startswith(tuple(ignore))]
    match.check(unknown, type(model).__name__)
    model.load_state_dict(expected | match.weights)
    return LoadReport(
        file.name, tuple(match.weights), tuple(match.widened), tuple(match.initialized), tuple(unexpected)
    )


class _Match:
    """The weights of a file for the keys of a model, and the keys for which there are none."""

    def __init__(self, file: str, reinit: tuple[str, ...], first_channel: tuple[str, ...], in_channels: int):
        self.file, self.reinit, self.first_channel, self.in_channels = file, reinit, first_channel, in_channels
        self.weights: dict[str, Tensor] = {}
        self.widened: list[str] = []
        self.initialized: list[str] = []
        self.missing: list[str] = []
        self.misshaped: list[str] = []

    def add(self, key: str, expected: Tensor, found: Tensor | None) -> None:
        """Match one key of the model, whose own value is `expected`, of any shape, with the file's, `found`."""
        may_be_new = key.startswith(self.reinit)
        if found is None:
            (self.initialized if may_be_new or key.endswith("num_batches_tracked") else self.missing).append(key)
        elif found.is_floating_point() != expected.is_floating_point():
            raise CheckpointError(f"{self.file} holds {found.dtype} under {key}; the model expects {expected.dtype}")
        elif found.shape == expected.shape:
            self.weights[key] = found
        elif key.startswith(self.first_channel) and (wide := _widen(found, expected, self.in_channels)) is not None:
            self.weights[key] = wide
            self.widened.append(key)
        elif may_be_new:
            self.initialized.append(key)
        else:
            self.misshaped.append(f"{key} has shape {tuple(found.shape)}, the model's is {tuple(expected.shape)}")

    def check(self, unknown: list[str], model: str) -> None:
        """Raise `CheckpointError` if keys are missing, unknown, or have another shape."""
        faults = [
            f"{fault} {_listed(keys)}"
            for fault, keys in (
                ("it lacks", self.missing), ("it holds the unknown", unknown), ("in it", self.misshaped)
            )
            if keys
        ]
        if faults:
            raise CheckpointError(
                f"{self.file} does not fit {model}: {'; '.join(faults)}; "
                "build the model, with the options, that it belongs to"
            )


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - _MAX_LISTED_KEYS} more" if len(keys) > _MAX_LISTED_KEYS else ""
    return "; ".join(keys[:_MAX_LISTED_KEYS]) + more


def _widen(found: Tensor, expected: Tensor, in_channels: int) -> Tensor | None:
    """Return `found`, made for one channel, as the first part of `expected`; None if more than the channels differs."""
    for d in range(expected.ndim if found.ndim == expected.ndim else 0):
        if expected.shape == (*found.shape[:d], in_channels * found.shape[d], *found.shape[d + 1 :]):
            wide = torch.zeros_like(expected) if expected.ndim > 1 else expected.clone()
            wide.narrow(d, 0, found.shape[d]).copy_(found)
            return wide
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
