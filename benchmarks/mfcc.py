"""The plain way to tag sounds: statistics of MFCCs of librosa, and a classifier of scikit-learn for each tag."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import librosa
import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fatai.data.labels import multi_hot
from fatai.inference.predictions import Predictions

SR, N_MFCC = 22050, 20

BASELINES: dict[str, Callable[[int], Any]] = {
    "MFCC, logistic regression": lambda seed: make_pipeline(
        StandardScaler(), OneVsRestClassifier(LogisticRegression(max_iter=5000, random_state=seed))
    ),
    "MFCC, random forest": lambda seed: OneVsRestClassifier(RandomForestClassifier(500, random_state=seed, n_jobs=1)),
}
"""Builds a classifier of feature vectors from a seed, with the defaults of scikit-learn."""


def mfcc_statistics(path: str) -> np.ndarray:
    """Return mean and standard deviation over a clip of its MFCCs and of their first and second differences.

    Shape (120,): for each of the three the 20 means, then the 20 deviations.
    """
    wave, _ = librosa.load(path, sr=SR)
    mfcc = librosa.feature.mfcc(y=wave if len(wave) else np.zeros(SR, np.float32), sr=SR, n_mfcc=N_MFCC)
    # Clips of fewer than nine frames have no regression over nine.
    width = min(9, mfcc.shape[1] - 1 + mfcc.shape[1] % 2)
    deltas = [librosa.feature.delta(mfcc, width=width, order=k) if width >= 3 else 0 * mfcc for k in (1, 2)]
    return np.concatenate([f(part, axis=1) for part in (mfcc, *deltas) for f in (np.mean, np.std)])


def fit_baseline(
    name: str, table: pd.DataFrame, folds: np.ndarray, test: pd.DataFrame, tags: tuple[str, ...], seed: int
) -> tuple[Predictions, Predictions, float, float]:
    """Fit a baseline on each fold's training clips.

    Parameters
    ----------
    table, folds
        Curated clips with path, fname and labels, and the fold that holds each out, shape (clips,).
    test
        Clips with path and fname.

    Returns
    -------
    Predictions of the held-out clips, and of the test clips as the mean over folds; seconds of training and of
    predicting the test clips, both with their features.
    """
    start = time.process_time()
    features, targ = np.stack([mfcc_statistics(path) for path in table["path"]]), multi_hot(table["labels"], tags)
    oof, models = np.zeros(targ.shape), []
    for fold in sorted(set(folds.tolist())):
        held_out = folds == fold
        models.append(BASELINES[name](seed).fit(features[~held_out], targ[~held_out].astype(int)))
        oof[held_out] = models[-1].predict_proba(features[held_out])
    trained = time.process_time()
    test_features = np.stack([mfcc_statistics(path) for path in test["path"]])
    probs = np.mean([model.predict_proba(test_features) for model in models], axis=0)
    found = (Predictions(tuple(part["fname"]), tags, p) for part, p in ((table, oof), (test, probs)))
    return (*found, trained - start, time.process_time() - trained)
