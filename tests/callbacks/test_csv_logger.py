"""history.csv, row by row."""

import pandas as pd
import pytest

from fatai.callbacks.csv_logger import EpochCSVLogger
from fatai.inference.learner import fat_learner


@pytest.fixture
def learn(small_dls):
    return fat_learner(small_dls, "m1", width=0.125)


def fit(learn, epochs, *cbs):
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, 1e-3, cbs=list(cbs))


def test_every_epoch_is_a_row_with_the_values_of_the_recorder(learn, tmp_path):
    fit(learn, 2, EpochCSVLogger(tmp_path / "history.csv", "warm"))
    table = pd.read_csv(tmp_path / "history.csv")
    assert list(table.columns) == ["stage", "epoch", "train_loss", "valid_loss", "lwlrap", "seconds"]
    assert list(table["stage"]) == ["warm", "warm"] and list(table["epoch"]) == [0, 1] and (table["seconds"] >= 0).all()
    rows = table[["train_loss", "valid_loss", "lwlrap"]].to_numpy()
    for row, values in zip(rows, learn.recorder.values, strict=True):
        assert row == pytest.approx(list(values), abs=1e-6)


def test_a_later_stage_adds_its_rows_and_a_new_fit_replaces_the_file(learn, tmp_path):
    file = tmp_path / "history.csv"
    fit(learn, 1, EpochCSVLogger(file, "first"))
    fit(learn, 1, EpochCSVLogger(file, "second", append=True))
    assert list(pd.read_csv(file)["stage"]) == ["first", "second"]
    fit(learn, 1, EpochCSVLogger(file, "new"))
    assert list(pd.read_csv(file)["stage"]) == ["new"]


def test_the_file_is_complete_when_training_is_interrupted(learn, tmp_path):
    class Stop(EpochCSVLogger):
        order = EpochCSVLogger.order + 1

        def after_epoch(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(learn, 3, EpochCSVLogger(tmp_path / "history.csv"), Stop(tmp_path / "other.csv"))
    assert list(pd.read_csv(tmp_path / "history.csv")["epoch"]) == [0]
    assert [f.name for f in tmp_path.iterdir()] == ["history.csv"]


def test_predictions_and_lr_find_write_no_row(learn, tmp_path):
    learn.add_cb(EpochCSVLogger(tmp_path / "history.csv"))
    learn.get_preds()
    with learn.no_bar():
        learn.lr_find(num_it=5, show_plot=False)
    assert not (tmp_path / "history.csv").exists()
