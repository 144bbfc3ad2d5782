"""Export a learner: as a model folder, or to the Hugging Face Hub, with notes on its training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fatai.data.labels import multi_hot
from fatai.errors import OptionError
from fatai.export.hub import check_repo_id
from fatai.export.model_card import score_notes
from fatai.export.model_folder import save_model_folder
from fatai.export.pretrained import load_pretrained
from fatai.inference.predictions import Predictions
from fatai.models.weights import find_published
from fatai.registry import EXPORTS

if TYPE_CHECKING:
    from fatai.inference.learner import FatLearner
    from fatai.training.learner import TagLearner

__all__ = ["initial_weights", "push_learner", "save_learner"]


@EXPORTS.register("folder", source="own design")
def save_learner(
    learn: TagLearner,
    folder: str | os.PathLike[str],
    *,
    training: Mapping[str, Any] | None = None,
    reference: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the network of a learner as a model folder; `learn.save_pretrained` calls this.

    Parameters
    ----------
    learn
        A learner whose loss maps logits to probabilities by the sigmoid.
    folder, reference
        As in `save_model_folder`.
    training
        Notes on the training, beside loss, numbers of clips and the metrics of the last epoch, which are stored anyway.

    Raises
    ------
    OptionError
        If the loss maps logits to probabilities by another function.
    CheckpointError
        As in `save_model_folder`.
    """
    activation, probe = getattr(learn.loss_func, "activation", torch.sigmoid), torch.linspace(-4, 4, 9)[None]
    if not torch.allclose(activation(probe), probe.sigmoid()):
        raise OptionError(
            f"the loss {type(learn.loss_func).__name__} maps logits to probabilities by another function than the "
            "sigmoid; a model folder supports only the sigmoid"
        )
    return save_model_folder(
        folder, learn.model, learn.tags, learn.clip_config, learn.dls.prior(), calibration=learn.calibration,
        training={**_training_notes(learn), **(training or {})}, reference=reference,
    )


@EXPORTS.register("hub", source="own design")
def push_learner(
    learn: FatLearner, repo_id: str, *, preds: Predictions | None = None, tta: Mapping[str, Any], **options: Any
) -> str:
    """Upload the network of a learner as a model folder with a card; `learn.push_to_hub` calls this.

    Parameters
    ----------
    preds
        Predictions of the validation clips without calibration, whose scores the card shows; None computes them, unless
        there are no such clips.
    tta
        Options of `learn.tta`, if it computes the predictions.
    options
        Of `Pretrained.push_to_hub`.
    """
    check_repo_id(repo_id)
    if preds is None and len(learn.dls.valid_ds):
        calibration, learn.calibration = learn.calibration, None  # it was fitted on such clips
        try:
            preds = learn.tta(**tta)
        finally:
            learn.calibration = calibration
    scores = [] if preds is None else _validation_scores(learn, preds)
    with TemporaryDirectory() as temp:
        folder = save_learner(learn, Path(temp, "model"), training={"scores": scores})
        return load_pretrained(folder, device="cpu").push_to_hub(repo_id, **options)


def _validation_scores(learn: FatLearner, preds: Predictions) -> list[dict[str, Any]]:
    clips = learn.dls.files(1)
    labels = dict(zip(clips["fname"], clips["labels"], strict=True))
    scored = preds.select([name for name in preds.fnames if name in labels], learn.tags)
    targ = multi_hot([labels[name] for name in scored.fnames], learn.tags)
    return score_notes(scored.probs, targ, "validation clips")


def _training_notes(learn: TagLearner) -> dict[str, Any]:
    """Return loss, initial weights, numbers of clips and the metrics of the last epoch."""
    built = getattr(learn.model, "built_as", None)
    notes: dict[str, Any] = {
        "loss": type(learn.loss_func).__name__,
        **({} if built is None else initial_weights(built.arch, built.options.get("pretrained"))),
        "train_clips": len(learn.dls.train_ds),
        "valid_clips": len(learn.dls.valid_ds),
    }
    record = getattr(learn, "final_record", None)
    if record:
        names = ["train_loss", "valid_loss", *(m.name for m in learn.metrics)]
        notes["last_epoch"] = {
            name: float(value)
            for name, value in zip(names, record, strict=False)  # a fit without validation records fewer
            if value is not None and np.isfinite(value)
        }
    return notes


def initial_weights(arch: str, pretrained: bool | str | os.PathLike[str] | None) -> dict[str, str]:
    """Return the note `pretrained` on the weights that a network was built with; empty if there are none."""
    if not pretrained or not isinstance(pretrained, (bool, str, os.PathLike)):
        return {}
    published = find_published(arch, pretrained)
    if published is None:
        return {"pretrained": "its published weights" if isinstance(pretrained, bool) else Path(pretrained).name}
    return {"pretrained": f"{published.name} ({published.trained_on}, license {published.license})"}
