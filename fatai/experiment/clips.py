"""How many clips a stage of a recipe sees, before it is known which."""

from __future__ import annotations

from fatai.experiment.schema import Stage

__all__ = ["clips_and_steps", "most_clips"]


def most_clips(stage: Stage, n_curated: int, n_noisy: int, n_folds: int) -> int:
    """Clips that an epoch of a stage may see at most, of so many curated ones that a fold trains on and so many noisy ones in all.

    Examples
    --------
    >>> most_clips(Stage(noisy_labels={"method": "ninth_place_low_loss", "n": 50}), 100, 400, 5), most_clips(Stage(), 100, 400, 5)
    (150, 100)
    """
    if stage.noisy_labels is None:
        return n_curated
    asked = stage.noisy_labels.get("n", stage.noisy_labels.get("k", n_noisy)) if stage.selects_noisy else n_noisy
    share = {"all": 1.0, "own": 1 / n_folds, "others": 1 - 1 / n_folds}[stage.noisy_fold_split]
    # The 3rd place's last step labels what lies beyond its best k itself.
    return n_curated + round(share * (n_noisy if stage.noisy_labels["method"] == "third_place_pseudo_labels" else min(n_noisy, asked)))


def clips_and_steps(stage: Stage, n_curated: int, n_noisy: int, n_folds: int) -> tuple[int, int]:
    """Clips and steps of an epoch at most; the numbers are those of `most_clips`."""
    clips = most_clips(stage, n_curated, n_noisy, n_folds)
    bs = max(1, min(stage.bs, clips))
    if stage.sampling == "shuffle":
        return clips, clips // bs
    drawn = int(stage.sampling_options.get("n", clips))
    return drawn, -(-drawn // bs)
