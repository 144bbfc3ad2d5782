"""Steps: which clips, from which models, and when the loss is changed."""

import numpy as np
import pandas as pd
import pytest

from fatai.errors import DataError, OptionError
from fatai.noisy_labels.curriculum import gold_plan_stages, noisy_curriculum, suggest_loss
from fatai.noisy_labels.selection import attach_predictions

TAGS = ["Bark", "Meow"]
TABLE = pd.DataFrame({"fname": [f"{i}.wav" for i in range(6)], "labels": ["Bark"] * 3 + ["Meow"] * 3})


class Models:
    """Stand-in for training: models that get surer of a clip's label the more clips they were given."""

    def __init__(self, out_of_fold=True, lose=False):
        self.out_of_fold, self.lose, self.trained = out_of_fold, lose, []

    def __call__(self, selection):
        self.trained.append(None if selection is None else dict(zip(selection.fnames, selection.labels, strict=True)))
        table = TABLE.head(5) if self.lose and selection is not None else TABLE
        bark = np.array([0.9, 0.8, 0.3, 0.7, 0.2, 0.1])  # 2 and 3 are mislabelled
        return attach_predictions(
            table,
            TAGS,
            np.stack([bark, 1 - bark], 1),
            TABLE["fname"],
            out_of_fold=self.out_of_fold and selection is not None,
        )


def test_each_step_is_chosen_by_models_of_the_step_before():
    models = Models()
    steps = list(noisy_curriculum(models, ks=(1, 2, 4)))
    assert [step.method for step in steps] == ["scoring_1", "scoring_2", "scoring_4", "third_place_pseudo_labels"]
    assert [set(step.fnames) for step in steps[:3]] == [
        {"0.wav"},
        {"0.wav", "5.wav"},
        {"0.wav", "1.wav", "4.wav", "5.wav"},
    ]
    assert models.trained[0] is None and [set(t) for t in models.trained[1:]] == [
        set(step.fnames) for step in steps[:3]
    ]
    # The last step turns the two mislabelled clips round.
    assert dict(zip(steps[3].fnames, steps[3].labels, strict=True)) == {
        **dict.fromkeys(["0.wav", "1.wav", "3.wav"], ["Bark"]), **dict.fromkeys(["2.wav", "4.wav", "5.wav"], ["Meow"])}


def test_the_published_steps_are_the_default_and_one_may_stop():
    models = Models()
    with pytest.warns(UserWarning, match="best 1000 of 6 clips"):
        assert next(noisy_curriculum(models)).method == "scoring_1000"
    assert models.trained == [None]


def test_without_pseudo_labels():
    steps = noisy_curriculum(Models(), ks=(1, 2), pseudo_labels=False)
    assert [step.method for step in steps] == ["scoring_1", "scoring_2"]


def test_predictions_of_training_clips_raise():
    steps = noisy_curriculum(Models(out_of_fold=False), ks=(1, 2))
    next(steps)
    with pytest.raises(DataError, match="were trained on 1 of the clips that they predict; .* out_of_fold=True"):
        next(steps)


def test_every_step_needs_predictions_of_all_clips():
    steps = noisy_curriculum(Models(lose=True), ks=(1, 2))
    next(steps)
    with pytest.raises(DataError, match="5 clips are predicted, not the 6 of the step before"):
        next(steps)


@pytest.mark.parametrize("ks", [(), (2, 1), (1, 1)])
def test_steps_that_do_not_grow_raise(ks):
    with pytest.raises(OptionError, match="expected numbers of clips that grow"):
        next(noisy_curriculum(Models(), ks=ks))


def test_gold_plan_stages_are_as_planned():
    a, b = gold_plan_stages(unfreeze=True)
    assert (a.noisy_weight, a.unfreeze, b.noisy_weight, b.unfreeze) == (0.5, False, 1.0, True)
    assert 3 <= a.epochs <= 5 <= b.epochs <= 10
    with pytest.raises(OptionError, match="stage b has noisy_weight 1.0 and 0 epochs"):
        gold_plan_stages(epochs=(3, 0))


@pytest.mark.parametrize(("scores", "loss", "expected"), [
    ([0.70, 0.72, 0.69, 0.70], "bce", "gce"),
    ([0.70, 0.72, 0.69, 0.70], "gce", "sce"),
    ([0.70, 0.72, 0.69, 0.70], "sce", "sce"),
    ([0.70, 0.72, 0.69, 0.715], "bce", "bce"),   # recovered
    ([0.70, 0.72, 0.71, 0.71], "bce", "bce"),    # not more than 0.01
    ([0.70, np.nan, np.nan], "bce", "gce"),
    ([0.70, 0.1], "bce", "bce"),                 # one epoch is no trend
    ([0.2, 0.3, 0.4], "bce", "bce"),
    ([], "bce", "bce"),
])
def test_suggest_loss_follows_lwlrap(scores, loss, expected):
    assert suggest_loss(scores, loss).loss == expected


def test_suggest_loss_gives_a_reason_and_checks_its_options():
    assert (
        "0.7200" in suggest_loss([0.72, 0.5, 0.5]).reason
        and "weigh noisy clips less" in suggest_loss([0.72, 0.5, 0.5], "sce").reason
    )
    with pytest.raises(OptionError, match="patience 0"):
        suggest_loss([0.7], patience=0)
