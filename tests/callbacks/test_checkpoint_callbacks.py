"""The weights of the best epoch and those of the cycles' ends are what they were then."""

import math

import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from helpers.fake_learner import Told
from torch import nn

from fatai.errors import OptionError
from fatai.models.checkpoint import load_weights
from fatai.callbacks.checkpoint import SaveBestModel, SaveSnapshots
from fatai.callbacks.resume import ResumeTraining

NAN = math.nan


class Remember(Callback):
    """The weights at the end of each epoch."""

    order = 65

    def __init__(self):
        self.weights = []

    def after_epoch(self):
        self.weights.append(self.learn.model.weight.detach().clone())


def learner(tmp_path, scores):
    torch.manual_seed(0)
    data = [(torch.randn(2), torch.randn(1)) for _ in range(8)]
    loaders = DataLoaders(DataLoader(data, bs=4), DataLoader(data, bs=8))
    learn = Learner(loaders, nn.Linear(2, 1), loss_func=nn.MSELoss(), path=tmp_path, metrics=[Told(scores)])
    learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__ == "ProgressCallback"])
    learn.logger = lambda row: None
    return learn


def files(tmp_path):
    return sorted(p.name for p in (tmp_path / "models").glob("*")) if (tmp_path / "models").exists() else []


@pytest.mark.parametrize(
    "scores, best",
    [
        ([0.1, 0.5, 0.3, 0.5, 0.4], 1),
        ([0.1, 0.2, 0.3], 2),
        ([0.9, 0.2, 0.3], 0),
        ([NAN, 0.2, NAN, 0.1], 1),
        ([-0.5, -0.1, -0.3], 1),
    ],
)
def test_the_best_epochs_weights_are_put_back(tmp_path, scores, best):
    learn, then, keep = learner(tmp_path, scores), Remember(), SaveBestModel()
    learn.fit(len(scores), 0.1, cbs=[keep, then])
    assert torch.equal(learn.model.weight, then.weights[best]) and keep.best == scores[best]
    stored = nn.Linear(2, 1)
    load_weights(keep.path_of_best, stored)
    assert torch.equal(stored.weight, then.weights[best])
    assert len({w.sum().item() for w in then.weights}) == len(scores), "epochs differ, else this shows nothing"


def test_only_the_best_and_at_most_the_one_before_it_are_on_the_disk(tmp_path):
    seen = []

    class Look(Callback):
        order = 95

        def after_epoch(self):
            seen.append(files(tmp_path))

    learner(tmp_path, [0.1, 0.2, 0.15, 0.3]).fit(4, 0.1, cbs=[SaveBestModel(), Look()])
    one, two, three = (f"best_{n}.safetensors" for n in (1, 2, 3))
    assert seen == [[one], [one, two], [two], [two, three]]


def test_a_loss_is_best_when_it_is_least(tmp_path):
    learn, then, keep = learner(tmp_path, [0.0] * 6), Remember(), SaveBestModel("valid_loss")
    learn.fit(6, 2.0, cbs=[keep, then])
    losses = [row[1] for row in learn.recorder.values]
    assert keep.best == min(losses) and torch.equal(learn.model.weight, then.weights[losses.index(min(losses))])


def test_a_gain_below_min_delta_is_none(tmp_path):
    learn, then = learner(tmp_path, [0.5, 0.55, 0.7]), Remember()
    learn.fit(2, 0.1, cbs=[SaveBestModel(min_delta=0.1), then])
    assert torch.equal(learn.model.weight, then.weights[0])


def test_without_any_score_the_last_weights_stay_and_an_old_file_is_not_taken_for_them(tmp_path):
    learner(tmp_path, [0.5]).fit(1, 0.1, cbs=SaveBestModel())
    learn, then = learner(tmp_path, [NAN, NAN]), Remember()
    with pytest.warns(UserWarning, match="in no epoch was lwlrap a number; the last weights stay"):
        learn.fit(2, 0.1, cbs=[SaveBestModel(), then])
    assert torch.equal(learn.model.weight, then.weights[-1]) and files(tmp_path) == []


def test_a_best_over_several_fits_is_carried(tmp_path):
    """As the 9th place: fit, from its last weights refit, from the best of both refit again."""
    learn, then, keep = (
        learner(tmp_path, [0.3, 0.6, 0.4, 0.5, 0.2, 0.7]),
        Remember(),
        SaveBestModel(reset_on_fit=False, load=False),
    )
    learn.fit(3, 0.1, cbs=[keep, then])
    assert torch.equal(learn.model.weight, then.weights[2]), "the refit goes on from the last"
    learn.fit(2, 0.1, cbs=[keep, then])
    assert keep.best == 0.6
    keep.load_best(learn)
    assert torch.equal(learn.model.weight, then.weights[1])
    learn.fit(1, 0.1, cbs=[keep, then])
    assert keep.best == 0.7


def test_names_like_the_best_ones_are_left_alone(tmp_path):
    learn = learner(tmp_path, [0.1, 0.2, 0.3])
    learn.fit(1, 0.1, cbs=SaveBestModel(fname="best_refit"))
    learn.fit(2, 0.1, cbs=SaveBestModel())
    assert "best_refit_1.safetensors" in files(tmp_path)


def test_an_unknown_monitor_is_named_before_anything_is_trained(tmp_path):
    learn = learner(tmp_path, [0.1])
    with pytest.raises(OptionError, match="monitor is 'lwrap', no column of the table of epochs; did you mean lwlrap"):
        learn.fit(1, 0.1, cbs=SaveBestModel("lwrap"))
    assert learn.train_iter == 0


def test_predictions_do_not_count_as_an_epoch(tmp_path):
    learn, keep = learner(tmp_path, [0.5, 0.9]), SaveBestModel(load=False)
    learn.fit(1, 0.1, cbs=keep)
    learn.get_preds(cbs=keep)
    assert keep.best == 0.5 and keep.number == 1 and files(tmp_path) == ["best_1.safetensors"]


def test_a_killed_fit_finds_the_best_that_its_state_speaks_of(tmp_path):
    """Killed after a new best was stored and before the state was."""
    class Kill(Callback):
        order = 80

        def after_epoch(self):
            if self.learn.epoch == 2:
                raise KeyboardInterrupt

    scores = [0.1, 0.6, 0.7, 0.2]
    unbroken = learner(tmp_path / "unbroken", scores)
    unbroken.fit(4, 0.1, cbs=[SaveBestModel(), ResumeTraining(tmp_path / "other.safetensors")])
    state = ResumeTraining(tmp_path / "state.safetensors")
    with pytest.raises(KeyboardInterrupt):
        learner(tmp_path, scores).fit(4, 0.1, cbs=[SaveBestModel(), Kill(), state])
    assert files(tmp_path) == ["best_2.safetensors", "best_3.safetensors"]
    # This time the third epoch is worse, as it may be on a device that does not compute the same twice.
    other, keep = learner(tmp_path, [0.3, 0.2]), SaveBestModel()
    other.fit(4, 0.1, cbs=[keep, state])
    assert keep.best == 0.6 and keep.number == 2 and files(tmp_path) == ["best_2.safetensors"]
    going_on, keep = learner(tmp_path, [0.7, 0.2]), SaveBestModel()
    state.path_of_state.unlink()
    with pytest.raises(KeyboardInterrupt):
        learner(tmp_path, scores).fit(4, 0.1, cbs=[SaveBestModel(), Kill(), state])
    going_on.fit(4, 0.1, cbs=[keep, state])
    assert torch.equal(going_on.model.weight, unbroken.model.weight) and keep.best == 0.7


def test_snapshots_are_the_weights_at_the_end_of_each_cycle(tmp_path):
    learn, then, snapshots = learner(tmp_path, [0.0] * 7), Remember(), SaveSnapshots(2)
    learn.fit(7, 0.1, cbs=[snapshots, then])
    assert [p.name for p in snapshots.paths] == [f"snapshot_{n}.safetensors" for n in (2, 4, 6)]
    for path, epochs in zip(snapshots.paths, (2, 4, 6)):
        stored = nn.Linear(2, 1)
        load_weights(path, stored)
        assert torch.equal(stored.weight, then.weights[epochs - 1])
    assert torch.equal(learn.model.weight, then.weights[-1]), "the last weights stay"


def test_snapshots_follow_growing_cycles(tmp_path):
    snapshots = SaveSnapshots(1, mult=2)
    learner(tmp_path, [0.0] * 8).fit(8, 0.1, cbs=snapshots)
    assert [p.stem for p in snapshots.paths] == ["snapshot_1", "snapshot_3", "snapshot_7"]


def test_cycles_that_a_fit_never_ends_are_refused(tmp_path):
    with pytest.raises(OptionError, match="a fit of 3 epochs ends before the first cycle of 64"):
        learner(tmp_path, [0.0] * 3).fit(3, 0.1, cbs=SaveSnapshots())
    with pytest.raises(OptionError, match="cycle is 0"):
        SaveSnapshots(0)
