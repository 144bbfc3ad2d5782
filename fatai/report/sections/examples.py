"""The best and worst clips with players, spectrograms and Grad-CAM, and the filters of the first layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from torch import Tensor

from fatai.data.config import ClipConfig
from fatai.data.spectrograms import ClipSpectrograms
from fatai.errors import AudioError, CheckpointError, FataiError
from fatai.export.pretrained import Pretrained
from fatai.inference.grad_cam import filter_mosaic, first_filters, grad_cam
from fatai.metrics.ranking import precision_hits
from fatai.report.data import ReportData, SectionUnavailable
from fatai.report.media import MAX_SECONDS, audio_player, image_uri, spectrogram_svg

__all__ = ["Card", "best_and_worst_clips", "first_layer_filters"]

_N_CARDS = 6  # of the best and of the worst each
_MAX_SAME_TAGS = 2  # cards with the same tags
_N_TOP = 3  # tags that a card lists
_MOSAIC_PIXELS = (2048, 2048)


@dataclass
class Card:
    """A clip of the report: its tags, its predictions and its media.

    Attributes
    ----------
    fname, labels, fold
        Name, tags as one text, and the fold that the clip is validated in.
    precision
        Mean precision of the clip's tags: 1 if all rank above all others.
    top
        The likeliest tags: name, probability, and whether the clip has it.
    lowest
        The clip's tag that ranks lowest, and its rank from 1.
    pictures
        Captions and inline SVG.
    player
        HTML, empty without sound.
    fault
        The reason why there is no sound.
    """

    fname: str
    labels: str
    fold: int | None
    precision: float
    top: list[tuple[str, float, bool]]
    lowest: tuple[str, int]
    pictures: list[tuple[str, Markup]] = field(default_factory=list)
    player: Markup = Markup("")
    fault: str = ""


def best_and_worst_clips(report: ReportData, n: int = _N_CARDS) -> dict[str, Any]:
    """Make cards of the `n` best and the `n` worst clips.

    Clips are ordered by the mean precision of their tags, then by log loss: among equals the lowest loss is the best,
    the highest the worst.
    """
    fnames, probs, targ = report.scored()
    table = _clip_scores(probs, targ)
    worst = table.sort_values(["precision", "loss"], ascending=[True, False], kind="stable")
    best = table.sort_values(["precision", "loss"], ascending=[False, True], kind="stable")
    rows = {
        "best": _select_varied(best, n),
        "worst": _select_varied(worst[~worst.index.isin(_select_varied(best, n))], n),
    }
    networks = _NetworkCache(report)
    cards: dict[str, list[Card]] = {}
    for side, selected in rows.items():
        cards[side] = [
            _make_card(report, fnames[i], probs[i], targ[i], float(table.loc[i, "precision"])) for i in selected
        ]
        for card in cards[side]:
            _add_media(card, report, networks)
    return {**cards, "sound": bool(report.paths), "trouble": networks.trouble}


def _clip_scores(probs: np.ndarray, targ: np.ndarray) -> pd.DataFrame:
    """Compute precision, log loss and a key of the tags for each clip that has a tag, indexed by its row."""
    hits = precision_hits(probs, targ)
    clips = np.unique(hits.clips)
    p = probs[clips].clip(1e-7, 1 - 1e-7)
    return pd.DataFrame({
        "precision": np.bincount(hits.clips, weights=hits.precision)[clips] / np.bincount(hits.clips)[clips],
        "loss": -np.where(targ[clips], np.log(p), np.log1p(-p)).sum(axis=1),
        "tags": [row.tobytes() for row in targ[clips]],
    }, index=clips).round({"precision": 9, "loss": 9})


def _select_varied(table: pd.DataFrame, n: int) -> list[int]:
    """Return the first `n` rows, few of them with the same tags."""
    return [int(i) for i in table.groupby("tags", sort=False).head(_MAX_SAME_TAGS).index[:n]]


def _make_card(report: ReportData, fname: str, probs: np.ndarray, targ: np.ndarray, precision: float) -> Card:
    order = np.argsort(-probs, kind="stable")
    present = np.flatnonzero(targ)
    lowest = present[np.argmin(probs[present])]
    return Card(
        fname,
        ", ".join(report.tags[k] for k in present),
        report.folds.get(fname),
        precision,
        [(report.tags[k], float(probs[k]), bool(targ[k])) for k in order[:_N_TOP]],
        (report.tags[lowest], int((probs >= probs[lowest]).sum())),
    )


class _NetworkCache:
    """Networks of the folds, each loaded once; `trouble` is the first reason why one is missing."""

    def __init__(self, report: ReportData):
        self.report, self.trouble = report, ""
        self.get = lru_cache(maxsize=2)(self._load)

    def _load(self, fold: int | None) -> Pretrained | None:
        if self.report.network is None or fold is None:
            self.note("there is no single network here")
            return None
        try:
            return self.report.network(fold)
        except FataiError as e:
            self.note(e)
            return None

    def note(self, reason: Any) -> None:
        self.trouble = self.trouble or f"Grad-CAM is not shown: {reason}."


def _add_media(card: Card, report: ReportData, networks: _NetworkCache) -> None:
    """Add the player and the pictures that can be made."""
    path, network = report.paths.get(card.fname), networks.get(card.fold)
    if path is None:
        card.fault = "Its sound is not available."
        return
    settings = _clip_settings(report, network)
    try:
        wave = settings.read(path)[:round(MAX_SECONDS * settings.sr)]
    except AudioError as e:
        card.fault = f"Its sound cannot be read: {e}"
        return
    card.player = audio_player(wave, settings.sr, card.fname)
    spec, sound = ClipSpectrograms(settings).spec(settings.fit(wave)[None]), settings.sound_span(len(wave))
    drawn = spectrogram_svg(spec[0, 0], settings.front_end, sound=sound, label=f"Spectrogram of {card.fname}")
    card.pictures.append(("Spectrogram", drawn))
    if network is None:
        return
    try:
        for tag in dict.fromkeys([card.top[0][0], card.lowest[0]]):
            card.pictures.append(_grad_cam_picture(network, spec, sound, tag, card.fname))
    except FataiError as e:
        networks.note(e)


def _clip_settings(report: ReportData, network: Pretrained | None) -> ClipConfig:
    if network is not None:
        return network.settings
    return report.recipe.settings() if report.recipe else ClipConfig()


def _grad_cam_picture(
    network: Pretrained, spec: Tensor, sound: tuple[float, float], tag: str, fname: str
) -> tuple[str, Markup]:
    """Draw the Grad-CAM of a tag over a spectrogram, shape (1, channels, rows, frames); return caption and SVG.

    `sound` is where the sound begins and ends, as fractions of the width.
    """
    if tag not in network.tags:
        raise CheckpointError(f"the network of the run lacks the tag {tag!r} of its predictions")
    heat = grad_cam(network.model, spec.to(network.device), network.tags.index(tag))[0]
    drawn = spectrogram_svg(
        spec[0, 0], network.settings.front_end, heat=heat, sound=sound, label=f"Evidence for {tag} in {fname}"
    )
    return f"{'Evidence' if heat.max() > 0 else 'No evidence'} for {tag} (Grad-CAM)", drawn


def first_layer_filters(report: ReportData) -> dict[str, Any]:
    """Draw the filters of the first layer, of the first fold whose network can be loaded."""
    if report.network is None:
        raise SectionUnavailable("There is no single network here, so it has no filters.")
    faults = []
    for fold in sorted(set(report.folds.values())) or [0]:
        try:
            network = report.network(fold)
            return _describe_filters(first_filters(network.model), network, fold)
        except FataiError as e:
            faults.append(str(e))
    raise SectionUnavailable(f"The filters are not shown: {faults[0]}.")


def _describe_filters(weights: Tensor, network: Pretrained, fold: int) -> dict[str, Any]:
    """Describe convolution weights, shape (filters, channels, rows, columns)."""
    n, channels, rows, columns = weights.shape
    return {
        "picture": image_uri(filter_mosaic(weights), cmap="PuOr", vmin=-1, vmax=1, max_size=_MOSAIC_PIXELS),
        "n": n,
        "channels": channels,
        "rows": rows,
        "columns": columns,
        "ms": 1000 * columns * network.settings.front_end.seconds_per_frame,
        "fold": fold,
    }
