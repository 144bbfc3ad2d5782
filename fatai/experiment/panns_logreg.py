"""A frozen PANNs network and a logistic regression for each tag: the executed half of the gold-only plan, as a folder that ensembles take.

Its weights were trained on AudioSet, which the competition forbade; it serves as a yardstick, and for sounds of one's own. The plan cut
the middle 10 s of each clip, or put silence behind a shorter one, and took the activations of `fc1` of CNN14. Published: lwlrap 0.8001
out of fold on the curated clips of Freesound Audio Tagging 2019.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fatai.io.atomic import write_text
from fatai.data.config import ClipConfig
from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.errors import DataError
from fatai.inference.linear_probe import LinearProbeFit, fit_embedding_tagger
from fatai.inference.embeddings import Embeddings
from fatai.export.pretrained import Pretrained
from fatai.models import create_model
from fatai.experiment.manifest import data_digest, write_folds
from fatai.io.json import read_json_limited
from fatai.audio.front_ends import front_end

__all__ = ["panns_logreg", "panns_network"]

TAGGER = "tagger.safetensors"


def panns_network(weights: str | os.PathLike[str], arch: str = "cnn14", *, width: float = 1.0) -> Pretrained:
    """A network of PANNs that embeds clips as the plan did: the middle 10 s, or silence behind, 32 kHz, 64 mels from 50 to 14,000 Hz.

    Parameters
    ----------
    weights
        File of published weights, such as Cnn14_mAP=0.431.pth, or of the network's own; read without executing anything.
    """
    settings = ClipConfig(front_end("panns"), crop_s=10.0, trim_db=None, pad_mode="constant_right")
    model = create_model(arch, 1, 1, width=width, pretrained=weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Pretrained(model.to(device).eval(), ("unused",), settings, np.zeros(1), None, {}, {})


def panns_logreg(
    data: str | Path | FATDataset,
    network: Pretrained,
    out: str | Path,
    *,
    n_folds: int = 5,
    seed: int = 42,
    C: float = 2.0,
    max_iter: int = 1000,
    num_workers: int = 0,
    say: Callable[[str], None] = print,
) -> LinearProbeFit:
    """Embed the clips of a data folder, fit a tagger out of fold and on all, predict the test part, and write what `ensemble` takes.

    Parameters
    ----------
    data
        A folder in the competition's layout, or what `load_dataset` made of it.
    network
        What embeds, from `panns_network`. A network that was trained on these very clips would make the out-of-fold score too good.
    out
        Gets embeddings/ (curated.npy and test.npy with their names), tagger.safetensors, folds.csv, oof.csv, test.csv and submission.csv
        (as far as there are a test part and a sample) and manifest.json. Embeddings that are there already, of the same clips and network,
        are used again.
    n_folds, seed, C, max_iter
        As in `fit_embedding_tagger`; the defaults are the plan's.
    """
    data, out = data if isinstance(data, FATDataset) else load_dataset(data), Path(out)
    made_of = {"data": data_digest(data), "network": network.digest()}
    _claim(out, made_of)
    curated = _embedded(network, data.curated, out / "embeddings" / "curated.npy", num_workers)
    fit = fit_embedding_tagger(
        curated, data.curated[["fname", "labels"]], data.tags, folds=n_folds, seed=seed, C=C, max_iter=max_iter
    )
    fit.tagger.save(out / TAGGER)
    labels = dict(zip(data.curated["fname"], data.curated["labels"]))
    write_folds(out, fit.oof.fnames, fit.folds, [labels[name] for name in fit.oof.fnames])
    fit.oof.to_csv(out / "oof.csv")
    listed = ", ".join(f"{score:.4f}" for score in fit.scores.values())
    say(f"out of fold: lwlrap {fit.oof.oof_score or float('nan'):.4f} over {len(fit.oof)} clips, folds {listed}")
    if len(data.test):
        test = fit.predict(_embedded(network, data.test, out / "embeddings" / "test.npy", num_workers))
        test.to_csv(out / "test.csv")
        if data.sample is not None:
            test.to_submission(out / "submission.csv", sample=data.sample)
            say(f"submission: {out / 'submission.csv'}, {len(test)} clips, fits {data.sample.name}")
    results = {"folds": {str(k): v for k, v in fit.scores.items()}, "oof": fit.oof.oof_score}
    plain = {"recipe": "panns_logreg", "made_of": made_of, "tags": list(data.tags), "lwlrap": results}
    write_text(out / "manifest.json", json.dumps(plain, indent=2) + "\n")
    return fit


def _claim(out: Path, made_of: dict[str, str]) -> None:
    """Make the folder, or see that what is in it was made of the same."""
    noted = out / "made_of.json"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        try:
            same = read_json_limited(noted) == made_of
        except (OSError, ValueError):
            same = False
        if not same:
            raise DataError(
                f"{out} holds something else, or embeddings of other data or another network; choose another folder"
            )
    write_text(noted, json.dumps(made_of, indent=2) + "\n")


def _embedded(network: Pretrained, table: pd.DataFrame, file: Path, num_workers: int) -> Embeddings:
    """Embeddings of the clips of a table, from the file if it has them."""
    if file.exists():
        known = Embeddings.load(file)
        if known.fnames == tuple(table["fname"]):
            return known
    embeddings = network.embed(table, n=1, num_workers=num_workers)
    embeddings.save(file)
    return embeddings
