"""Front end and network as one ONNX graph: waves in, probabilities out, run by onnxruntime without torch.

The graph is traced from the modules themselves, transforms in float64 included. It takes waves (batch, samples) of a crop's length at the
front end's rate, any number at once. What comes before (reading, resampling, trimming, filling short clips) and after (the mean over views,
calibration) is left to whoever runs it; the file's metadata tell tags, rate and length.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fatai import __version__
from fatai.io.atomic import write_file
from fatai.data.blocks import WaveToSpec
from fatai.errors import CheckpointError, MissingDependencyError, OptionError
from fatai.export.pretrained import Pretrained, made_sound

__all__ = ["export_onnx"]


def export_onnx(model: Pretrained, path: str | os.PathLike[str], *, tolerance: float = 1e-4) -> float:
    """Write a model as an ONNX file, once onnxruntime has been seen to answer with it as torch does.

    Parameters
    ----------
    path
        A name that ends in .onnx. Weights above 2 GB cannot be in it.
    tolerance
        Largest difference between probabilities of torch and of onnxruntime, for a made sound that is loud, faint, and cut off. Front ends
        that make pictures of 256 levels jump from one level to the next and need more than the default.

    Returns
    -------
    The largest difference.

    Raises
    ------
    MissingDependencyError
        Without the packages of fatai[onnx].
    CheckpointError
        If the network has a part that ONNX doesn't know, or the answers differ; no file is written.
    """
    if Path(path).suffix != ".onnx":
        raise OptionError(f"{path} does not end in .onnx; give it that suffix")
    runtime = _packages()
    settings = model.settings
    graph = nn.Sequential(WaveToSpec(settings).module, copy.deepcopy(model.model), nn.Sigmoid()).cpu().float().eval()
    graph.to(
        memory_format=torch.contiguous_format
    )  # ONNX knows no other layout, but takes over strides that were meant for one
    waves = _probes(made_sound(settings), settings.crop_samples)
    try:
        with _quiet():
            program = torch.onnx.export(
                graph,
                (waves[:2],),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["wave"],
                output_names=["probs"],
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as e:
        why = str(e.__cause__ or e)[:300]
        raise CheckpointError(f"the network {type(model.model).__name__} cannot be written as ONNX: {why}") from None
    assert program is not None
    program.model.metadata_props.update(
        {
            "fatai": __version__,
            "sample_rate": str(settings.sr),
            "samples": str(settings.crop_samples),
            "tags": json.dumps(model.tags),
        }
    )
    with write_file(path) as beside:
        program.save(beside, external_data=False)
        with torch.inference_mode():
            expected = graph(waves).numpy()
        answered = runtime.InferenceSession(str(beside), providers=["CPUExecutionProvider"]).run(
            None, {"wave": waves.numpy()}
        )[0]
        difference = float(np.abs(answered - expected).max())
        if not difference <= tolerance:  # written so that NaN is too much
            raise CheckpointError(
                f"onnxruntime answers otherwise than torch, by {difference:.2g}; expected at most {tolerance:g}. Nothing "
                "was written; a front end of 256 levels may need a greater tolerance"
            )
    return difference


def _packages() -> Any:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - what torch's exporter is written with
    except ImportError as e:
        raise MissingDependencyError(
            f"ONNX needs more packages ({e.name} is missing): pip install 'fatai[onnx]'"
        ) from e
    return onnxruntime


def _probes(sound: Tensor, samples: int) -> Tensor:
    """The sound as it is, 40 dB fainter, and with digital silence behind its first third: (3, samples)."""
    whole = sound.repeat(-(-samples // len(sound)))[:samples]
    cut = torch.where(torch.arange(samples) < samples // 3, whole, 0.0)
    return torch.stack([whole, 0.01 * whole, cut])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter tells its own developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
