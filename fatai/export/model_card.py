"""The model card of a shared model: a README.md with metadata for the Hub, written from the config of a model folder.

What the config does not state, such as a score or a license, the card says is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from fatai.audio.spectrogram import FrontEnd
from fatai.errors import DataError, MissingDependencyError
from fatai.export.config import ModelConfig
from fatai.metrics.bootstrap import score_interval
from fatai.metrics.classification import main_metric

__all__ = ["ScoreNote", "model_card", "score_notes"]

_MAX_TAGS = 200
_NAMES = {"lwlrap": "lwlrap", "map": "mean average precision"}
_LOGS = {"db": "decibels", "ln": "natural logarithm", "pcen": "PCEN", "none": "no compression"}


class ScoreNote(BaseModel):
    """A score of a model, as the notes on its training hold it.

    Attributes
    ----------
    metric
        "lwlrap" or "map".
    value, low, high, confidence_level
        The score and its confidence interval.
    n_clips, clips
        Number of the clips, and what they are: "held-out clips of fold 0".
    selected
        Whether an epoch was selected by these clips, so that the score is optimistic; None if it is not known.
    is_own
        Whether the predictions are those of the model, and not also of the networks of other folds.
    """

    metric: str
    value: float
    low: float
    high: float
    confidence_level: float = 0.95
    n_clips: int
    clips: str
    selected: bool | None = None
    is_own: bool = True


def score_notes(
    probs: Any, targ: Any, clips: str, *, selected: bool | None = None, is_own: bool = True
) -> list[dict[str, Any]]:
    """Score predictions of clips that a model was not trained on.

    Parameters
    ----------
    probs, targ
        Shape (clips, tags), as in `fatai.metrics.ranking.lwlrap`.
    clips, selected, is_own
        As in `ScoreNote`.

    Returns
    -------
    A `ScoreNote` as a dictionary for lwlrap, unless there is only one tag, and for the mean average precision; none if
    no clip has a tag.
    """
    notes = []
    for metric in dict.fromkeys([main_metric(targ.shape[1]), "map"]):
        try:
            score = score_interval(probs, targ, metric)
        except DataError:
            continue
        notes.append(ScoreNote(
            metric=metric, value=score.value, low=score.low, high=score.high, confidence_level=score.confidence_level,
            n_clips=len(targ), clips=clips, selected=selected, is_own=is_own,
        ).model_dump())
    return notes


def model_card(config: ModelConfig, repo_id: str, n_parameters: int) -> str:
    """Return the text of the README.md of a model folder.

    Parameters
    ----------
    config
        Of the folder. Its `training` may hold `scores`, a list of `ScoreNote`; `license`, an identifier of the Hub;
        `dataset`, a name of the data; and what `save_pretrained` and `fatai-submit export` note.
    repo_id
        Repository that the card is for, owner/name.
    n_parameters
        Number of parameters of the network.

    Raises
    ------
    MissingDependencyError
        If huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import EvalResult, ModelCard, ModelCardData
    except ImportError as e:
        raise MissingDependencyError(
            f"a model card needs the package huggingface_hub ({e.name} is missing): pip install 'fatai[hub]'"
        ) from None
    scores, dataset = _scores(config), _text(config, "dataset")
    data = ModelCardData(
        library_name="fatai",
        pipeline_tag="audio-classification",
        license=_text(config, "license"),
        tags=["fatai", "audio-tagging", config.network.arch.replace(":", "-")],
        model_name=repo_id.rpartition("/")[2],
        eval_results=[
            EvalResult(
                task_type="audio-classification", task_name="Audio tagging", dataset_type="audiofolder",
                dataset_name=dataset or "sounds of the author", dataset_split=score.clips, metric_type=score.metric,
                metric_name=_NAMES.get(score.metric, score.metric), metric_value=round(score.value, 4),
                metric_args={
                    "low": round(score.low, 4), "high": round(score.high, 4), "clips": score.n_clips,
                    "confidence_level": score.confidence_level,
                },
            )
            for score in scores if score.is_own
        ] or None,
    )
    sections = [
        f"# {repo_id.rpartition('/')[2]}", _introduction(config, n_parameters), _usage(repo_id),
        "## Scores", _score_text(scores, config.calibration is not None),
        f"## Tags ({len(config.tags)})", _tag_list(config.tags),
        "## Input", _input_table(config), "## Training", "\n".join(_training_lines(config, dataset)),
        "## Files", _FILES_TEXT,
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"))


_FILES_TEXT = (
    "`model.safetensors` holds the weights, `config.json` all settings, `reference.wav` a sound with a known output: "
    "`load_pretrained` computes that output again and refuses the model if it differs. No file holds code."
)


def _scores(config: ModelConfig) -> list[ScoreNote]:
    try:
        return TypeAdapter(list[ScoreNote]).validate_python(config.training.get("scores", []))
    except ValidationError:
        return []  # notes of another program


def _text(config: ModelConfig, key: str) -> str | None:
    value = config.training.get(key)
    return value if isinstance(value, str) and value else None


def _escape(text: str) -> str:
    """Return one line of text that Markdown shows as it is."""
    escaped = "".join(f"\\{c}" if c in "\\`*_{}[]<>#|~" else c for c in text)
    return " ".join(escaped.split())


def _introduction(config: ModelConfig, n_parameters: int) -> str:
    return (
        f"A model that tags sounds with {len(config.tags)} tags, several of which can be present at once. The network "
        f"is `{config.network.arch}` with {n_parameters:,} parameters, made with fatai."
    )


def _usage(repo_id: str) -> str:
    return f"""```python
from fatai.all import *

model = load_pretrained("{repo_id}")
print(model.predict("clip.wav"))        # tags with their probabilities, best first
print(model.tag("recording.wav"))       # sound events with start and end, of a recording of any length
```

Loading needs `pip install "fatai[hub]"`."""


def _score_text(scores: list[ScoreNote], is_calibrated: bool) -> str:
    if not scores:
        return "Missing: no score on clips that the model was not trained on is stored with it."
    rows = [
        f"| {_NAMES.get(s.metric, _escape(s.metric))} | {s.value:.3f} | {s.low:.3f} to {s.high:.3f} "
        f"({s.confidence_level:.0%}) | {s.n_clips} {_escape(s.clips)} |"
        for s in scores
    ]
    notes = ["The intervals are those of resampled clips: other clips of the same kind, not another training."]
    if is_calibrated:
        notes.append("The scores are those of the probabilities before the calibration, which was fitted on such "
                     "clips.")
    if any(s.selected for s in scores):
        notes.append("An epoch was selected by the score of these clips, so it is optimistic.")
    elif any(s.selected is None for s in scores):
        notes.append("Whether these clips helped to select an epoch or a setting is not stored; if so, the score is "
                     "optimistic.")
    return "\n".join(["| metric | score | interval | clips |", "|---|---|---|---|", *rows, "", " ".join(notes)])


def _tag_list(tags: tuple[str, ...]) -> str:
    more = f" and {len(tags) - _MAX_TAGS:,} more in `config.json`" if len(tags) > _MAX_TAGS else ""
    return ", ".join(map(_escape, tags[:_MAX_TAGS])) + more


def _input_table(config: ModelConfig) -> str:
    clips = config.clips
    fe: FrontEnd = clips.front_end
    bands = f"{fe.n_mels} mel bands" if fe.n_mels else "all bins of the transform"
    rows = [
        ("sample rate", f"{fe.sr:,} Hz; other rates are resampled"),
        ("crop", f"{clips.crop_s:g} s; clips of any length are predicted by several crops"),
        ("spectrogram", f"{bands}, {fe.fmin:,.0f} to {fe.fmax or fe.sr / 2:,.0f} Hz, {_LOGS.get(fe.log, fe.log)}"),
        ("transform", f"{fe.n_fft} samples, window {fe.win_length or fe.n_fft}, hop {fe.hop_length}"),
        ("normalization", fe.normalize),
        ("channels", clips.channels_name),
        ("silence at the ends", "kept" if clips.trim_db is None else f"removed {clips.trim_db:g} dB below the peak"),
        ("calibrated", "yes" if config.calibration else "no"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_escape(value)} |" for name, value in rows)])


def _training_lines(config: ModelConfig, dataset: str | None) -> Iterator[str]:
    notes = config.training
    recipe = notes.get("recipe")
    yield f"- data: {_escape(dataset) if dataset else 'missing: its author did not name it'}"
    yield f"- license: {_escape(_text(config, 'license') or 'missing: its author did not state one')}"
    if isinstance(recipe, dict) and isinstance(recipe.get("name"), str):
        fold = f", fold {notes['fold']}" if isinstance(notes.get("fold"), int) else ""
        yield f"- recipe: `{_escape(recipe['name'])}`{fold}"
    for key, name in {"pretrained": "started from", "loss": "loss", "train_clips": "training clips"}.items():
        if isinstance(notes.get(key), (str, int)):
            yield f"- {name}: {_escape(str(notes[key]))}"
    if config.versions:
        yield f"- made with: {', '.join(f'{_escape(k)} {_escape(v)}' for k, v in sorted(config.versions.items())[:10])}"
