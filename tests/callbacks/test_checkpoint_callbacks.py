"""Weights of the best epoch and snapshots at the ends of cycles."""

import math

import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from helpers.fake_learner import ScriptedMetric
from torch import nn

from fatai.callbacks.checkpoint import SaveBestModel, SaveSnapshots
from fatai.callbacks.resume import ResumeTraining
from fatai.errors import OptionError
from fatai.models.checkpoint import load_weights

NAN = math.nan


class RecordWeights(Callback):
    """Record the weights at the end of each epoch."""

    order = 65

    def __init__(self):
        self.weights = []

    def after_epoch(self):
        self.weights.append(self.learn.model.weight.detach().clone())


def learner(tmp_path, scores):
    torch.manual_seed(0)
    data = [(torch.randn(2), torch.randn(1)) for _ in range(8)]
    loaders = DataLoaders(DataLoader(data, bs=4), DataLoader(data, bs=8))
    learn = Learner(loaders, nn.Linear(2, 1), loss_func=nn.MSELoss(), path=tmp_path, metrics=[ScriptedMetric(scores)])
    learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__ == "ProgressCallback"])
    learn.logger = lambda row: None
    return learn


def files(tmp_path):
    return sorted(p.name for p in (tmp_path / "models").glob("*")) if (tmp_path / "models").exists() else []


@pytest.mark.parametrize(
    "scores, best",
    [
        ([0.1, 0.5, 0.3, 0.4], 1),
        ([0.1, 0.2, 0.3], 2),
        ([0.9, 0.2, 0.3], 0),
        ([NAN, 0.2, NAN, 0.1], 1),
        ([-0.5, -0.1, -0.3], 1),
    ],
)
def test_the_weights_of_the_best_epoch_are_loaded(tmp_path, scores, best):
    learn, recorded, keep = learner(tmp_path, scores), RecordWeights(), SaveBestModel()
    learn.fit(len(scores), 0.1, cbs=[keep, recorded])
    assert torch.equal(learn.model.weight, recorded.weights[best]) and keep.best == scores[best]
    stored = nn.Linear(2, 1)
    load_weights(keep.path_of_best, stored)
    assert torch.equal(stored.weight, recorded.weights[best])
    assert len({w.sum().item() for w in recorded.weights}) == len(scores), "epochs must differ"


class ScriptedLoss(Callback):
    """Replaces the validation loss of each epoch."""

    order = 51  # after the recorder, before the checkpoint callback

    def __init__(self, losses):
        self.losses = losses

    def after_epoch(self):
        self.learn.recorder.values[-1][1] = self.losses[self.epoch]


@pytest.mark.parametrize(
    "losses, best",
    [([0.3, 0.1, 0.2], 1), ([0.1, 0.2, 0.3], 0), ([0.2, 0.1, 0.1], 2), ([NAN, 0.5, NAN], 1), ([0.1, NAN, 0.1], 2)],
)
@pytest.mark.parametrize("first", [[], [0.9]])
def test_of_equal_scores_the_lowest_loss_is_the_best_and_of_equal_losses_the_last(tmp_path, losses, best, first):
    learn, recorded, keep = learner(tmp_path, [*first, 1.0, 1.0, 1.0]), RecordWeights(), SaveBestModel()
    scripted = ScriptedLoss([*[0.0 for _ in first], *losses])
    learn.fit(3 + len(first), 0.1, cbs=[scripted, keep, recorded])
    assert torch.equal(learn.model.weight, recorded.weights[len(first) + best]) and keep.best == 1.0


def test_without_lwlrap_in_the_table_the_default_monitor_is_the_mean_average_precision(tmp_path):
    learn, keep = learner(tmp_path, [0.2, 0.6, 0.4]), SaveBestModel()
    learn.metrics[0].name = "map"
    learn.fit(3, 0.1, cbs=keep)
    assert (keep.monitor, keep.best) == ("map", 0.6)


def test_at_most_the_best_file_and_the_one_before_are_on_the_disk(tmp_path):
    seen = []

    class ListFiles(Callback):
        order = 95

        def after_epoch(self):
            seen.append(files(tmp_path))

    learner(tmp_path, [0.1, 0.2, 0.15, 0.3]).fit(4, 0.1, cbs=[SaveBestModel(), ListFiles()])
    one, two, three = (f"best_{n}.safetensors" for n in (1, 2, 3))
    assert seen == [[one], [one, two], [two], [two, three]]


def test_the_lowest_loss_is_the_best(tmp_path):
    learn, recorded, keep = learner(tmp_path, [0.0] * 6), RecordWeights(), SaveBestModel("valid_loss")
    learn.fit(6, 2.0, cbs=[keep, recorded])
    losses = [row[1] for row in learn.recorder.values]
    assert keep.best == min(losses) and torch.equal(learn.model.weight, recorded.weights[losses.index(min(losses))])


def test_an_improvement_below_min_delta_does_not_count(tmp_path):
    learn, recorded = learner(tmp_path, [0.5, 0.55, 0.7]), RecordWeights()
    learn.fit(2, 0.1, cbs=[SaveBestModel(min_delta=0.1), recorded])
    assert torch.equal(learn.model.weight, recorded.weights[0])


def test_with_nan_scores_the_last_weights_are_kept_and_an_old_file_is_not_loaded(tmp_path):
    learner(tmp_path, [0.5]).fit(1, 0.1, cbs=SaveBestModel())
    learn, recorded = learner(tmp_path, [NAN, NAN]), RecordWeights()
    with pytest.warns(UserWarning, match="lwlrap was NaN in every epoch; the last weights are kept"):
        learn.fit(2, 0.1, cbs=[SaveBestModel(), recorded])
    assert torch.equal(learn.model.weight, recorded.weights[-1]) and files(tmp_path) == []


def test_the_best_of_several_fits_is_kept(tmp_path):
    """As the 9th place: a fit, a refit from its last weights, and another from the best of both."""
    learn, recorded, keep = (
        learner(tmp_path, [0.3, 0.6, 0.4, 0.5, 0.2, 0.7]),
        RecordWeights(),
        SaveBestModel(reset_on_fit=False, load=False),
    )
    learn.fit(3, 0.1, cbs=[keep, recorded])
    assert torch.equal(learn.model.weight, recorded.weights[2]), "the refit starts from the last weights"
    learn.fit(2, 0.1, cbs=[keep, recorded])
    assert keep.best == 0.6
    keep.load_best(learn)
    assert torch.equal(learn.model.weight, recorded.weights[1])
    learn.fit(1, 0.1, cbs=[keep, recorded])
    assert keep.best == 0.7


def test_files_with_similar_names_are_not_removed(tmp_path):
    learn = learner(tmp_path, [0.1, 0.2, 0.3])
    learn.fit(1, 0.1, cbs=SaveBestModel(fname="best_refit"))
    learn.fit(2, 0.1, cbs=SaveBestModel())
    assert "best_refit_1.safetensors" in files(tmp_path)


def test_an_unknown_monitor_is_named_before_anything_is_trained(tmp_path):
    learn = learner(tmp_path, [0.1])
    with pytest.raises(OptionError, match="monitor is 'lwrap', not a column of the epochs' table; did you mean lwlrap"):
        learn.fit(1, 0.1, cbs=SaveBestModel("lwrap"))
    assert learn.train_iter == 0


def test_predictions_do_not_count_as_an_epoch(tmp_path):
    learn, keep = learner(tmp_path, [0.5, 0.9]), SaveBestModel(load=False)
    learn.fit(1, 0.1, cbs=keep)
    learn.get_preds(cbs=keep)
    assert keep.best == 0.5 and keep.number == 1 and files(tmp_path) == ["best_1.safetensors"]


def test_a_killed_fit_finds_the_best_weights_of_its_state(tmp_path):
    """The fit is killed after a new best was saved and before the state was."""
    class Kill(Callback):
        order = 80

        def after_epoch(self):
            if self.learn.epoch == 2:
                raise KeyboardInterrupt

    scores = [0.1, 0.6, 0.7, 0.2]
    uninterrupted = learner(tmp_path / "uninterrupted", scores)
    uninterrupted.fit(4, 0.1, cbs=[SaveBestModel(), ResumeTraining(tmp_path / "other.pt")])
    state = ResumeTraining(tmp_path / "state.pt")
    with pytest.raises(KeyboardInterrupt):
        learner(tmp_path, scores).fit(4, 0.1, cbs=[SaveBestModel(), Kill(), state])
    assert files(tmp_path) == ["best_2.safetensors", "best_3.safetensors"]
    # This time the third epoch is worse, as it may be on a device that is not deterministic.
    other, keep = learner(tmp_path, [0.3, 0.2]), SaveBestModel()
    other.fit(4, 0.1, cbs=[keep, state])
    assert keep.best == 0.6 and keep.number == 2 and files(tmp_path) == ["best_2.safetensors"]
    resumed, keep = learner(tmp_path, [0.7, 0.2]), SaveBestModel()
    state.path_of_state.unlink()
    with pytest.raises(KeyboardInterrupt):
        learner(tmp_path, scores).fit(4, 0.1, cbs=[SaveBestModel(), Kill(), state])
    resumed.fit(4, 0.1, cbs=[keep, state])
    assert torch.equal(resumed.model.weight, uninterrupted.model.weight) and keep.best == 0.7


def test_snapshots_are_the_weights_at_the_end_of_each_cycle(tmp_path):
    learn, recorded, snapshots = learner(tmp_path, [0.0] * 7), RecordWeights(), SaveSnapshots(2)
    learn.fit(7, 0.1, cbs=[snapshots, recorded])
    assert [p.name for p in snapshots.paths] == [f"snapshot_{n}.safetensors" for n in (2, 4, 6)]
    for path, epochs in zip(snapshots.paths, (2, 4, 6), strict=True):
        stored = nn.Linear(2, 1)
        load_weights(path, stored)
        assert torch.equal(stored.weight, recorded.weights[epochs - 1])
    assert torch.equal(learn.model.weight, recorded.weights[-1]), "the last weights are kept"


def test_snapshots_follow_growing_cycles(tmp_path):
    snapshots = SaveSnapshots(1, mult=2)
    learner(tmp_path, [0.0] * 8).fit(8, 0.1, cbs=snapshots)
    assert [p.stem for p in snapshots.paths] == ["snapshot_1", "snapshot_3", "snapshot_7"]


def test_a_fit_shorter_than_a_cycle_is_refused(tmp_path):
    with pytest.raises(OptionError, match="a fit of 3 epochs is shorter than the first cycle of 64"):
        learner(tmp_path, [0.0] * 3).fit(3, 0.1, cbs=SaveSnapshots())
    with pytest.raises(OptionError, match="cycle is 0"):
        SaveSnapshots(0)
