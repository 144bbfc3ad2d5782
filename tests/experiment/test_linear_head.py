"""The last layer of a frozen network, solved instead of trained."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fatai.data.labels import multi_hot
from fatai.errors import OptionError
from fatai.experiment.linear_head import solve_last_layer
from fatai.experiment.schema import Stage
from fatai.experiment.stage import fit_stage
from fatai.inference.learner import fat_learner


def test_logits_are_those_of_scikit_learn_on_the_frozen_features(own_dls, tmp_path):
    learn = fat_learner(own_dls, "cnn14", width=1 / 16, path=tmp_path, precision="fp32")
    before = {k: v.clone() for k, v in learn.model.state_dict().items() if not k.startswith("fc_audioset")}
    fit_stage(learn, Stage(linear_probe={"C": 2.0, "max_iter": 1000}, bs=16))
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k, v in before.items()), (
        "nothing but the last layer learns"
    )
    train, held = own_dls.files(0), own_dls.files(1)
    features = [learn.embed(table, n=1).values for table in (train, held)]
    targ = multi_hot(train["labels"], learn.tags)
    reference = []
    for present in targ.T:
        one = make_pipeline(StandardScaler(), LogisticRegression(C=2.0, max_iter=1000)).fit(features[0], present)
        reference.append(one.predict_proba(features[1])[:, 1])
    np.testing.assert_allclose(learn.tta(n=1).probs, np.stack(reference, 1), atol=1e-3)


def test_other_networks_are_refused(small_dls, tmp_path):
    with pytest.raises(OptionError, match="needs a network of PANNs .* not ConvBlockNet"):
        solve_last_layer(fat_learner(small_dls, "m1", width=0.05, path=tmp_path))
    with pytest.raises(OptionError, match="published head"):
        solve_last_layer(
            fat_learner(small_dls, "cnn14", width=1 / 16, arch_options={"head": "attention"}, path=tmp_path)
        )
