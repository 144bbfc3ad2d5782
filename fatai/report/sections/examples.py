"""The clips that went best and worst, to look at and listen to, with what the network looks at; and the filters of its first layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from torch import Tensor

from fatai.data.blocks import WaveToSpec
from fatai.data.config import ClipConfig
from fatai.errors import AudioError, CheckpointError, FataiError
from fatai.inference.grad_cam import filter_mosaic, first_filters, grad_cam
from fatai.export.pretrained import Pretrained
from fatai.report.data import ReportData, SectionUnavailable
from fatai.report.media import MOST_SECONDS, picture, player, spectrogram
from fatai.metrics.ranking import precision_hits

__all__ = ["Card", "best_and_worst", "filters"]

_CARDS = 6  # of the best and of the worst each
_ALIKE = 2  # cards with the same tags
_TOP = 3  # tags that a card lists


@dataclass
class Card:
    """One clip: what it is called, its tags, what was predicted, and what is shown of it.

    Attributes
    ----------
    precision
        Mean precision of the clip's tags: 1 where all rank above all others.
    top
        The likeliest tags: name, probability, whether it is right.
    low
        The clip's tag that ranks lowest, and its rank from 1.
    pictures
        Each a caption and inline SVG.
    player
        HTML, empty without sound.
    fault
        Why there is no sound, or no picture of what the network looks at.
    """

    fname: str
    labels: str
    fold: int | None
    precision: float
    top: list[tuple[str, float, bool]]
    low: tuple[str, int]
    pictures: list[tuple[str, Markup]] = field(default_factory=list)
    player: Markup = Markup("")
    fault: str = ""


def best_and_worst(material: ReportData, n: int = _CARDS) -> dict[str, Any]:
    """`n` cards of the best and of the worst clips each; of equal precision the surest are best, and the surest of wrong tags worst."""
    fnames, probs, targ = material.judged()
    table = _ranked(probs, targ)
    worst = table.sort_values(["precision", "loss"], ascending=[True, False], kind="stable")
    best = table.sort_values(["precision", "loss"], ascending=[False, True], kind="stable")
    tagged = {"best": _varied(best, n), "worst": _varied(worst[~worst.index.isin(_varied(best, n))], n)}
    networks = _Networks(material)
    cards = {}
    for side, rows in tagged.items():
        cards[side] = [_card(material, fnames[i], probs[i], targ[i], float(table.loc[i, "precision"])) for i in rows]
        for card in cards[side]:
            _fill(card, material, networks)
    return {**cards, "sound": bool(material.paths), "trouble": networks.trouble}


def _ranked(probs: np.ndarray, targ: np.ndarray) -> pd.DataFrame:
    """Precision, log loss and tags of each clip that has a tag, by its row."""
    hits = precision_hits(probs, targ)
    clips = np.unique(hits.clips)
    p = probs[clips].clip(1e-7, 1 - 1e-7)
    return pd.DataFrame({
        "precision": np.bincount(hits.clips, weights=hits.precision)[clips] / np.bincount(hits.clips)[clips],
        "loss": -np.where(targ[clips], np.log(p), np.log1p(-p)).sum(axis=1),
        "tags": [row.tobytes() for row in targ[clips]],
    }, index=clips).round({"precision": 9, "loss": 9})


def _varied(table: pd.DataFrame, n: int) -> list[int]:
    """The first `n` rows, of those with the same tags no more than a few."""
    return [int(i) for i in table.groupby("tags", sort=False).head(_ALIKE).index[:n]]


def _card(material: ReportData, fname: str, probs: np.ndarray, targ: np.ndarray, precision: float) -> Card:
    order = np.argsort(-probs, kind="stable")
    own = np.flatnonzero(targ)
    low = own[np.argmin(probs[own])]
    return Card(
        fname, ", ".join(material.tags[k] for k in own), material.folds.get(fname), precision,
        [(material.tags[k], float(probs[k]), bool(targ[k])) for k in order[:_TOP]],
        (material.tags[low], int((probs >= probs[low]).sum())),
    )


class _Networks:
    """Networks of the folds, each loaded once; `trouble` says why there are none."""

    def __init__(self, material: ReportData):
        self.material, self.trouble = material, ""
        self.of = lru_cache(maxsize=2)(self._load)

    def _load(self, fold: int | None) -> Pretrained | None:
        if self.material.network is None or fold is None:
            self.trouble = self.trouble or "There is no network of one's own here, so nothing says what it looks at."
            return None
        try:
            return self.material.network(fold)
        except FataiError as e:
            self.trouble = self.trouble or f"What the network looks at is not shown: {e}."
            return None


def _fill(card: Card, material: ReportData, networks: _Networks) -> None:
    """Sound and pictures, as far as they can be had."""
    path, network = material.paths.get(card.fname), networks.of(card.fold)
    if path is None:
        card.fault = "Its sound is not at hand."
        return
    settings = (
        network.settings if network is not None else material.recipe.settings() if material.recipe else ClipConfig()
    )
    try:
        wave = settings.read(path)[:round(MOST_SECONDS * settings.sr)]
    except AudioError as e:
        card.fault = f"Its sound cannot be read: {e}"
        return
    card.player = player(wave, settings.sr, card.fname)
    spec = WaveToSpec(settings).spec(settings.fit(wave)[None])
    values = spec[0, 0]
    card.pictures.append(
        ("What was heard", spectrogram(values, settings.front_end, label=f"Spectrogram of {card.fname}"))
    )
    if network is None:
        return
    for tag in dict.fromkeys([card.top[0][0], card.low[0]]):
        try:
            heat = _heat(network, spec, tag)
        except FataiError as e:
            networks.trouble = networks.trouble or f"What the network looks at is not shown: {e}."
            return
        speaks = "Where it hears" if heat.max() > 0 else "Nothing in the last maps speaks for"
        drawn = spectrogram(values, settings.front_end, heat=heat, label=f"What speaks for {tag} in {card.fname}")
        card.pictures.append((f"{speaks} {tag}", drawn))


def _heat(network: Pretrained, spec: Tensor, tag: str) -> Tensor:
    if tag not in network.tags:
        raise CheckpointError(f"the network of the run doesn't know the tag {tag!r} of its predictions")
    return grad_cam(network.model, spec.to(network.device), network.tags.index(tag))[0]


def filters(material: ReportData) -> dict[str, Any]:
    """A picture of the first layer's filters of the first fold that was trained."""
    if material.network is None:
        raise SectionUnavailable("There is no network of one's own here, so it has no filters.")
    found, faults = None, []
    for fold in sorted(set(material.folds.values())) or [0]:
        try:
            network = material.network(fold)
            found = network, first_filters(network.model)
            break
        except FataiError as e:
            faults.append(str(e))
    if found is None:
        raise SectionUnavailable(f"The filters are not shown: {faults[0]}.")
    network, weights = found
    n, channels, rows, columns = weights.shape
    return {
        "picture": picture(filter_mosaic(weights), colours="PuOr", low=-1, high=1, most=(2048, 2048)),
        "n": n,
        "channels": channels,
        "rows": rows,
        "columns": columns,
        "ms": 1000 * columns * network.settings.front_end.seconds_per_frame,
        "fold": fold,
    }
