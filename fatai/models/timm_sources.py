"""Where the weights of timm networks come from: files, folders, the Hugging Face Hub, and timm's own releases.

Files are read by `fatai.models.checkpoint.read_weights`, so nothing in them is executed. A file of the Hub that is in
its cache is taken from there without a request; otherwise the network is tried once, for a moment, before anything is
downloaded: without that, every client waits and retries.
"""

from __future__ import annotations

import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor

from fatai.errors import CheckpointError, UnknownNameError
from fatai.io.json import read_json_limited
from fatai.models.checkpoint import read_weights

__all__ = ["TimmSource", "is_remote", "known_arch", "resolve_source", "timm_name"]

HUB, LOCAL = "hf-hub:", "local-dir:"
CONNECT_TIMEOUT_S = 1.5
_N_SUGGESTIONS = 3
# As timm writes and reads them, in the order of its preference.
_WEIGHTS = (
    "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth", "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth",
)
_REPO = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_MAX_VALUES = 16
_FROM_DATA = ("in_chans", "num_classes")


@dataclass(frozen=True)
class TimmSource:
    """What the config.json of a repository or folder holds.

    Attributes
    ----------
    arch
        Name in timm, with or without a tag of its weights.
    weights
        Source of its weights: "hf-hub:OWNER/NAME" or "local-dir:PATH".
    options
        Options for its builder.
    """

    arch: str
    weights: str
    options: dict[str, Any]


def is_remote(name: object) -> bool:
    """Return True if a name of a model, with or without "timm:", stands for a repository or folder with a config."""
    return isinstance(name, str) and name.removeprefix("timm:").startswith((HUB, LOCAL))


def timm_name(name: str) -> str | None:
    """Return "timm:NAME" if timm has a network of this name, else None."""
    import timm

    try:
        return f"timm:{name}" if timm.is_model(name) else None
    except ValueError:  # a path
        return None


def resolve_source(name: str) -> TimmSource:
    """Read the config.json of a repository or folder: which network of timm it holds, with which options.

    Parameters
    ----------
    name
        "hf-hub:OWNER/NAME" (with "@REVISION", if not the newest) or "local-dir:PATH".

    Raises
    ------
    UnknownNameError
        If timm has no such network; the three nearest names are suggested.
    CheckpointError
        If the repository or folder has no valid config.json, or cannot be reached.
    """
    content = _read_config(config := source_file(name, ("config.json",)))
    images = content.get("pretrained_cfg")
    images = images if isinstance(images, dict) else content
    args = content.get("model_args")
    options = {**(args if isinstance(args, dict) else {}), "mean": images.get("mean"), "std": images.get("std")}
    plain = {k: _plain(config, k, v) for k, v in options.items() if v is not None and k not in _FROM_DATA}
    return TimmSource(known_arch(content["architecture"]), name, plain)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = read_json_limited(path)
    except ValueError as e:
        raise CheckpointError(f"{path} cannot be read ({_first_line(e)}); expected a config.json of timm") from None
    if not isinstance(content, dict) or not isinstance(content.get("architecture"), str):
        raise CheckpointError(f"{path} names no architecture; expected a config.json as timm writes it")
    return content


def _plain(config: Path, key: str, value: Any) -> Any:
    """Return a number, text, or short list of them as a tuple; refuse any other value of a config."""
    values = value if isinstance(value, list) else [value]
    if len(values) > _MAX_VALUES or not all(isinstance(v, (bool, int, float, str)) for v in values):
        raise CheckpointError(f"{config} has {key} = {str(value)[:60]}; expected numbers or text")
    return tuple(value) if isinstance(value, list) else value


def known_arch(arch: str) -> str:
    """Return a name of a network in timm; any other raises `UnknownNameError` with the three nearest names."""
    import timm

    base, _, tag = arch.partition(".")
    if "/" in arch or ":" in arch or not timm.is_model(base):
        hint = _nearest(base.split("/")[-1], timm.list_models())
        remote = f"; for a repository of the Hugging Face Hub, write timm:{HUB}{arch}" if "/" in arch else ""
        raise UnknownNameError(f"timm has no network named {arch!r}; {hint}{remote}")
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise UnknownNameError(
            f"timm has no weights {tag!r} of {base}; "
            + (_nearest(tag, tags) if tags else f"it has none of this network: name it {base}")
        )
    return arch


def _nearest(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name.lower(), known, n=_N_SUGGESTIONS, cutoff=0)
    return f"did you mean {', '.join(near[:-1])}{' or ' if near[1:] else ''}{near[-1]}?"


def source_file(source: str, names: Iterable[str]) -> Path:
    """Return the first file of a folder, or of a repository on the Hub, that has one of the given names.

    Raises
    ------
    CheckpointError
        If there is none, or if it is not in the cache and the Hub cannot be reached.
    """
    names = tuple(names)
    if source.startswith(HUB):
        return _hub_file(source.removeprefix(HUB), names)
    folder = Path(source.removeprefix(LOCAL))
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"the folder {folder} has no {names[0]}; expected a folder as timm saves a network")


def _hub_file(repo: str, names: Sequence[str]) -> Path:
    """Return a file of the Hub from its cache, or download it."""
    from huggingface_hub import constants

    if not _REPO.fullmatch(repo):
        raise CheckpointError(f"{HUB}{repo} is no repository; expected {HUB}OWNER/NAME")
    cached = _first_file(repo, names, local_files_only=True)
    if cached is not None:
        return cached
    what = f"{names[0]} of {repo} is not in the cache ({constants.HF_HUB_CACHE})"
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(constants.ENDPOINT)
    if reason:
        raise CheckpointError(
            f'{what}, and {constants.ENDPOINT} cannot be reached ({reason}); connect to a network, or download the '
            'file elsewhere and give its path: pretrained="PATH.safetensors"'
        )
    try:
        found = _first_file(repo, names, local_files_only=False)
    except (OSError, ValueError) as e:  # of huggingface_hub: no such repository, no access, connection lost
        raise CheckpointError(f"{repo} cannot be downloaded ({_first_line(e)}); check its name on the Hub") from None
    if found is None:
        raise CheckpointError(f"{repo} has no file {names[0]}; expected a repository as timm saves a network")
    return found


def _first_file(repo: str, names: Sequence[str], *, local_files_only: bool) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repo, _, revision = repo.partition("@")
    for name in names:
        try:
            return Path(hf_hub_download(repo, name, revision=revision or None, local_files_only=local_files_only))
        except LocalEntryNotFoundError:
            if not local_files_only:  # the connection failed after all
                raise
        except EntryNotFoundError:
            continue
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def unreachable(url: str, timeout_s: float = CONNECT_TIMEOUT_S) -> str:
    """Return why a server does not answer within `timeout_s` seconds; "" if it does, whatever the answer is."""
    result = [f"no answer within {timeout_s:g} s"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout_s).close()
            result[0] = ""
        except urllib.error.HTTPError:
            result[0] = ""
        except (OSError, ValueError) as e:
            result[0] = str(getattr(e, "reason", e))

    # In a thread, because looking up the address has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return result[0]


def published_weights(arch: str) -> dict[str, Tensor] | None:
    """Return the weights that timm has for a name; None if timm must load them itself, being in a format of their own.

    Raises
    ------
    CheckpointError
        If there are none, or they are not in the cache and cannot be reached.
    """
    import timm

    cfg = timm.get_pretrained_cfg(arch)
    if cfg is None or not cfg.has_weights:
        raise CheckpointError(
            f'timm has no pretrained weights for {arch}; give a file, pretrained="PATH.safetensors", or take a network '
            f"of timm.list_pretrained()"
        )
    if cfg.hf_hub_id and not cfg.custom_load:
        named = getattr(cfg, "hf_hub_filename", None)
        names = (re.sub(r"\.\w+$", ".safetensors", named), named) if named else _WEIGHTS
        return read_weights(_hub_file(cfg.hf_hub_id.removeprefix(HUB), names))
    address = "https://huggingface.co" if cfg.hf_hub_id else cfg.url
    reason = unreachable(address)
    if reason:
        raise CheckpointError(
            f"the weights of {arch} are at {address}, which cannot be reached ({reason}); connect to a network, or "
            'download them elsewhere and give their path: pretrained="PATH.safetensors"'
        )
    return None


def source_weights(source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the weights of "hf-hub:OWNER/NAME", "local-dir:PATH", or of a file, as key to tensor."""
    if isinstance(source, str) and is_remote(source):
        return read_weights(source_file(source, _WEIGHTS))
    return read_weights(source)


def timm_keys(weights: Mapping[str, Tensor], model_keys: Iterable[str]) -> dict[str, Tensor]:
    """Return weights with timm's keys in place of those of fatai's `TimmNet` or of EfficientNet-PyTorch.

    Parameters
    ----------
    weights
        Key to tensor, as in a file.
    model_keys
        Keys of the network in timm, from which the number of blocks per stage follows.

    Returns
    -------
    The same tensors; with the keys of the file where these are of neither kind.
    """
    if all(key.startswith(("body.", "head.1.")) for key in weights):
        # Of a linear classifier there is one per network, so its key differs from those of the body.
        return {key.replace("head.1.", "fatai_head.", 1).removeprefix("body."): v for key, v in weights.items()}
    if "_conv_stem.weight" in weights:
        return _from_efficientnet_pytorch(weights, model_keys)
    return dict(weights)


_STEM_AND_HEAD = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier",
}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_DEPTHWISE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2", **_SQUEEZE}
_INVERTED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3", **_SQUEEZE,
}


def _from_efficientnet_pytorch(weights: Mapping[str, Tensor], model_keys: Iterable[str]) -> dict[str, Tensor]:
    """Rename the keys of lukemelas/EfficientNet-PyTorch (Apache-2.0), whose blocks are counted through all stages."""
    places = {m.groups() for key in model_keys if (m := re.match(r"blocks\.(\d+)\.(\d+)\.", key))}
    blocks = sorted(places, key=lambda place: tuple(map(int, place)))

    def renamed(key: str) -> str:
        block = re.match(r"_blocks\.(\d+)\.(\w+)\.(.+)", key)
        if block is None:
            module, _, rest = key.partition(".")
            return f"{_STEM_AND_HEAD.get(module, module)}.{rest}"
        number, module, rest = int(block[1]), block[2], block[3]
        names = _INVERTED if f"_blocks.{number}._expand_conv.weight" in weights else _DEPTHWISE
        if number >= len(blocks) or module not in names:
            return key
        return f"blocks.{'.'.join(blocks[number])}.{names[module]}.{rest}"

    return {renamed(key): value for key, value in weights.items()}
