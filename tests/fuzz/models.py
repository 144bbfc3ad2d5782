"""Malicious model folders, runs, weights, caches and logs, each harmful to a program that trusts them."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

__all__ = ["caches", "model_folders", "pickles", "runs"]

Change = Callable[[Path], Any]


class _Code:
    """Creates a file when it is unpickled."""

    def __init__(self, sentinel: Path):
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.sentinel}'",)


def pickles(sentinel: Path) -> dict[str, bytes]:
    """Weights files that run code when unpickled, or unpack to a huge size."""
    code = _Code(sentinel)

    def saved(thing: Any, **options: Any) -> bytes:
        file = io.BytesIO()
        torch.save(thing, file, **options)
        return file.getvalue()

    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(1 << 28))
    traversal = io.BytesIO()
    with zipfile.ZipFile(traversal, "w") as archive:
        archive.writestr("../../../pwned", b"x")
    return {
        "code in a pickle": pickle.dumps(code),
        "code in torch.save": saved({"model": code}),
        "code in an old torch.save": saved({"model": code}, _use_new_zipfile_serialization=False),
        "code as a key": saved({code: 1}),
        "a packed archive": bomb.getvalue(),
        "a path traversal in an archive": traversal.getvalue(),
        "a truncated archive": saved({"a": torch.zeros(9)})[:300],
        "a whole network": saved(torch.nn.Linear(2, 2)),
        "words": b"hello",
        "nothing": b"",
        "a list": saved([1, 2]),
        "a deep pickle": b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".",
    }


def invalid_weights(whole: bytes) -> dict[str, bytes]:
    """Invalid safetensors files; `whole` is a valid one."""
    size, = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8:8 + size])
    data = whole[8 + size:]
    first = next(key for key in header if key != "__metadata__")

    def packed(changed: dict[str, Any] | bytes, body: bytes = data) -> bytes:
        text = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + body

    def with_first(**values: Any) -> bytes:
        return packed({**header, first: {**header[first], **values}})

    def with_metadata(text: str) -> bytes:
        return packed({**header, "__metadata__": {"fatai": text}})

    deep = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    return {
        "a header of 2^63 bytes": struct.pack("<Q", 2**63) + whole[8:],
        "a header of 2^32 bytes": struct.pack("<Q", 2**32) + whole[8:],
        "a header longer than the file": struct.pack("<Q", len(whole)) + whole[8:],
        "no header": struct.pack("<Q", 0) + whole[8:],
        "cut": whole[: len(whole) // 2],
        "cut in its header": whole[:20],
        "a deep header": packed(deep),
        "text for a header": packed(b"{hello"),
        "huge shapes": with_first(shape=[2**40, 2**40]),
        "shapes below zero": with_first(shape=[-1, 4]),
        "an unknown type": with_first(dtype="OBJECT"),
        "offsets behind the end": with_first(data_offsets=[0, 2**50]),
        "offsets in reverse": with_first(data_offsets=[100, 0]),
        "overlapping offsets": packed(
            {k: {**v, "data_offsets": [0, 4]} if k != "__metadata__" else v for k, v in header.items()}
        ),
        "a path traversal in a name": packed({("../../../pwned" if k == first else k): v for k, v in header.items()}),
        "no tensors": packed({"__metadata__": header.get("__metadata__", {})}, b""),
        "not finite": packed(header, b"\xff" * len(data)),
        "other numbers": packed(header, bytes(len(data))),
        "something behind it": whole + b"x" * 999,
        "a list for metadata": with_metadata("[" * 100_000),
        "absurd metadata": with_metadata(json.dumps({"tags": ["t"] * 200_000, "in_channels": 10**9, "prior": []})),
        "metadata without numbers": with_metadata('{"tags": ["a"], "in_channels": NaN, "prior": [Infinity]}'),
    }


def _write(name: str, content: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content)

    return change


def _not_regular(name: str) -> Iterator[tuple[str, Change]]:
    """Replace a file with something that is no regular file."""
    def replaced_by(make: Change) -> Change:
        def change(folder: Path) -> None:
            (folder / name).unlink()
            make(folder / name)

        return change

    yield f"{name} is missing", replaced_by(lambda path: None)
    yield f"{name} is a folder", replaced_by(lambda path: path.mkdir())
    yield f"{name} is a link to a device", replaced_by(lambda path: path.symlink_to("/dev/zero"))
    yield f"{name} is a link to nowhere", replaced_by(lambda path: path.symlink_to("nowhere"))
    yield f"{name} is a link to itself", replaced_by(lambda path: path.symlink_to(path.name))
    yield f"{name} is a pipe", replaced_by(lambda path: os.mkfifo(path))
    yield f"{name} is empty", _write(name, b"")


def model_folders(good: Path, sentinel: Path) -> Iterator[tuple[str, Change]]:
    """Yield changes of a copy of a model folder."""
    for name in ("model.safetensors", "config.json", "reference.wav"):
        yield from _not_regular(name)
    whole = (good / "model.safetensors").read_bytes()
    for title, content in {**invalid_weights(whole), **pickles(sentinel)}.items():
        yield f"weights: {title}", _write("model.safetensors", content)
    config = json.loads((good / "config.json").read_text())
    changes: dict[str, Any] = {
        "an unknown key": {"path": "/etc/passwd"},
        "an unknown network": {"network": {"arch": "os.system"}},
        "a network from the hub": {"network": {"arch": "timm:hf-hub:evil/model"}},
        "a network from a folder": {"network": {"arch": "timm:local-dir:/tmp"}},
        "its own weights": {"network": {"arch": "timm:resnet18", "options": {"pretrained": True}}},
        "a wide network": {"network": {"arch": "m1", "options": {"width": 1e300}}},
        "options of no kind": {"network": {"arch": "m1", "options": [1]}},
        "many tags": {"tags": [f"t{k}" for k in range(90_000)]},
        "doubled tags": {"tags": config["tags"][:1] * len(config["tags"])},
        "tags of no kind": {"tags": {"a": 1}},
        "a prior beyond 1": {"prior": [7.0] * len(config["tags"])},
        "no prior": {"prior": []},
        "a long crop": {"clips": {**config["clips"], "crop_s": 1e9}},
        "a crop of no length": {"clips": {**config["clips"], "crop_s": 0}},
        "a huge transform": {
            "clips": {**config["clips"], "front_end": {**config["clips"]["front_end"], "n_fft": 2**60}}
        },
        "no hop": {"clips": {**config["clips"], "front_end": {**config["clips"]["front_end"], "hop_length": 0}}},
        "a rate of 0": {"clips": {**config["clips"], "front_end": {**config["clips"]["front_end"], "sr": 0}}},
        "clips of no kind": {"clips": "../../x"},
        "other logits": {"logits": [0.0] * len(config["tags"])},
        "no logits": {"logits": []},
        "a calibration of no kind": {"calibration": {"__class__": "x"}},
        "a format of no kind": {"format": ["fatai model 1"]},
        "a training of no kind": {"training": "x"},
        "deep training": {"training": json.loads("[" * 400 + "]" * 400)},
    }
    for title, change in changes.items():
        yield f"config: {title}", _write("config.json", json.dumps({**config, **change}).encode())
    texts = {"deep": b"[" * 200_000, "NaN": b'{"format": NaN}', "a long number": b'{"format": ' + b"9" * 100_000 + b"}",
             "zero bytes": bytes(999),
             "utf-16": json.dumps(config).encode("utf-16"), "too large": b" " * (1 << 24) + b"{}",
             "doubled keys": b'{"format": "fatai model 1", ' * 2}
    for title, content in texts.items():
        yield f"config: {title}", _write("config.json", content)
    touch = f"import os\nos.system(\"touch '{sentinel}'\")\n".encode()
    for name in (
        "evil.py",
        "sitecustomize.py",
        "conftest.py",
        "torch.py",
        "weights.pkl",
        "pytorch_model.bin",
        "libevil.so",
    ):
        yield f"beside it {name}", _write(name, touch)


def runs(good: Path, sentinel: Path) -> Iterator[tuple[str, str, Change]]:
    """Yield changes of a copy of a run folder, each with its command: predict, calibrate, resume, score or ensemble."""
    weights = "fold_0/model.safetensors"
    for name, command in (
        (weights, "predict"),
        ("recipe.toml", "predict"),
        ("manifest.json", "resume"),
        ("folds.csv", "ensemble"),
        ("oof.csv", "score"),
        ("fold_0/fold.json", "resume"),
        ("fold_0/oof.csv", "resume"),
    ):
        for title, change in _not_regular(name):
            yield title, command, change
    whole = (good / weights).read_bytes()
    for title, content in {**invalid_weights(whole), **pickles(sentinel)}.items():
        yield f"weights: {title}", "predict", _write(weights, content)
    # An unfinished fold resumes from a state.
    for title, content in {**invalid_weights(whole), **pickles(sentinel), **_states()}.items():
        def unfinished(folder: Path, content: bytes = content) -> None:
            shutil.rmtree(folder / "fold_0")
            (folder / "fold_0").mkdir()
            (folder / "fold_0/state_0.pt").write_bytes(content)

        yield f"a state: {title}", "resume", unfinished
    plain = [
        b"", b"[]", b"{}", b"null", b"[" * 200_000, b'{"a": NaN}', b"\xff\xfe", b'{"data": {"digest": 3}, "lwlrap": 7}',
        b'{"seconds": "x"}',
        b'{"format": "fatai calibration 1"}', b'{"digest": 1, "unreadable": 3}', b'{"data": [], "finished": {}}',
    ]
    for k, content in enumerate(plain):
        yield f"manifest {k}", "resume", _write("manifest.json", content)
        yield f"manifest {k}", "score", _write("manifest.json", content)
        yield f"fold.json {k}", "resume", _write("fold_0/fold.json", content)
        yield f"calibration {k}", "calibrate", _write("calibration.json", content)


def _states() -> dict[str, bytes]:
    """Files of torch.save that are not states of a fit, or states with wrong contents."""
    base = {"format": 2, "done": 1, "epochs": 1, "batches": 1, "notes": {}}

    def saved(content: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    return {
        "empty": saved({}),
        "of another fit": saved(base),
        "deep": saved({**base, "model": [[[[]]] * 50] * 50}),
        "of a number": saved({**base, "model": 3}),
        "huge": saved({**base, "done": 10**30}),
        "a list": saved([1]),
    }


def caches() -> Iterator[tuple[str, Change]]:
    """Yield changes of the cache folder of one setting."""
    def clips(change: Change) -> Change:
        def each(folder: Path) -> None:
            for clip in [path for path in folder.glob("*/*") if path.is_file()]:
                clip.unlink()
                change(clip)

        return each

    def instead(name: str, make: Change) -> Change:
        def change(folder: Path) -> None:
            target = (
                next(iter(sorted(path for path in folder.iterdir() if path.is_dir()))) if name == "*" else folder / name
            )
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
            make(target)

        return change

    def sparse(clip: Path) -> None:
        with clip.open("wb") as f:
            f.truncate(1 << 40)

    contents = {
        "empty": b"", "a byte": b"x", "odd": b"x" * 4097, "no numbers": b"\xff" * 65536, "infinite": b"\0\x7c" * 32768,
        "zeros": bytes(65536),
    }
    for title, content in contents.items():
        yield f"clips: {title}", clips(lambda path, content=content: path.write_bytes(content))
    yield "clips: huge", clips(sparse)
    replacements: dict[str, Change] = {
        "a folder": lambda path: path.mkdir(),
        "a link to a device": lambda path: path.symlink_to("/dev/zero"),
        "a link to itself": lambda path: path.symlink_to(path),
        "a link to nowhere": lambda path: path.symlink_to("/nowhere/at/all"),
    }
    for title, make in replacements.items():
        yield f"clips: {title}", clips(make)
        for name in ("settings.json", "build.lock"):
            yield f"{name} is {title}", instead(name, make)
    yield "a file for a folder of clips", instead("*", lambda path: path.write_bytes(b"x"))
    yield "half-written files", lambda folder: [(folder / name).write_bytes(b"x") for name in (".a", ".b~")]
