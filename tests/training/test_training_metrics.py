"""fastai metrics are those of the whole validation set, for all batch sizes, precisions and numbers of processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.progress import ProgressCallback  # noqa: F401 - gives Learner its no_bar
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from sklearn.metrics import average_precision_score, label_ranking_average_precision_score, roc_auc_score
from torch import nn

from fatai.errors import DataError, OptionError
from fatai.training.metrics import DPrime, LwLRAP, MeanAP, RankingMetric, RocAUC


class Identity(nn.Module):
    """The input is the logits; one weight, so that there is something to train."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.scale


def validated(logits, targ, metrics, bs, loss_func=None):
    """Return the values of the metrics, by fastai's own loop."""
    rows = list(zip(torch.as_tensor(logits, dtype=torch.float32), torch.as_tensor(targ), strict=True))
    dls = DataLoaders(DataLoader(rows, bs=bs), DataLoader(rows, bs=bs))
    learn = Learner(dls, Identity(), loss_func=loss_func or nn.BCEWithLogitsLoss(), metrics=metrics)
    with learn.no_bar(), learn.no_logging():
        return list(learn.validate())[1:]


@pytest.fixture
def case(rng):
    """Return logits and targets of 23 clips and 5 tags, with at least 0.025 between any two logits.

    Ranks are then the same on every processor: after the sigmoid, values are thousands of float32 roundings apart.
    """
    targ = (rng.random((23, 5)) < 0.3).astype(np.float32)
    targ[0], targ[1] = 0, 1
    return (rng.permutation(115).reshape(23, 5) / 20 - 3 + 1.025 * targ).astype(np.float32), targ


@pytest.mark.parametrize("bs", [1, 4, 23, 64])
def test_every_metric_is_global_over_the_validation_set(case, bs):
    logits, targ = case
    ours = validated(logits, targ, [LwLRAP(), MeanAP(), MeanAP("micro"), RocAUC(), RocAUC("micro")], bs)
    assert ours == pytest.approx([
        label_ranking_average_precision_score(targ, logits, sample_weight=targ.sum(1)),
        average_precision_score(targ, logits), average_precision_score(targ, logits, average="micro"),
        roc_auc_score(targ, logits), roc_auc_score(targ, logits, average="micro"),
    ], abs=1e-9)


def test_a_mean_of_batches_would_be_another_number(case):
    logits, targ = case
    of_batches = np.mean([
        label_ranking_average_precision_score(t, p, sample_weight=t.sum(1))
        for p, t in ((logits[i:i + 4], targ[i:i + 4]) for i in range(0, 23, 4)) if t.any()])
    assert validated(logits, targ, [LwLRAP()], 4)[0] != pytest.approx(of_batches, abs=1e-3)


def test_names_of_the_columns():
    metrics = [LwLRAP(), MeanAP(), MeanAP("micro"), RocAUC(), RocAUC("micro"), DPrime(), DPrime("micro")]
    assert [m.name for m in metrics] == ["lwlrap", "map", "map_micro", "auc", "auc_micro", "d_prime", "d_prime_micro"]


def test_every_epoch_starts_from_no_clips(case):
    logits, targ = case
    rows = list(zip(torch.tensor(logits), torch.tensor(targ), strict=True))
    dls = DataLoaders(DataLoader(rows, bs=5), DataLoader(rows, bs=5))
    learn = Learner(dls, Identity(), loss_func=nn.BCEWithLogitsLoss(), metrics=LwLRAP())
    with learn.no_bar(), learn.no_logging():
        learn.fit(3, lr=0.0)
    values = [row[2] for row in learn.recorder.values]
    assert len(values) == 3 and len(set(values)) == 1
    assert len(torch.cat(learn.metrics[0].probs)) == 23


def test_the_activation_of_the_loss_maps_logits_to_probabilities(case):
    logits, targ = case
    seen = {}

    def record(name):
        return RankingMetric(lambda probs, targ: seen.setdefault(name, probs.copy()).sum() * 0, name)

    loss = nn.BCEWithLogitsLoss()
    validated(logits, targ, [record("sigmoid")], 8, loss)
    loss.activation = lambda x: x.softmax(-1)
    validated(logits, targ, [record("softmax")], 8, loss)
    np.testing.assert_allclose(seen["sigmoid"], 1 / (1 + np.exp(-logits)), rtol=1e-5)
    np.testing.assert_allclose(seen["softmax"].sum(1), 1, rtol=1e-5)


def test_half_precision_makes_no_ties():
    class InHalf(Identity):
        """Return predictions as under autocast."""

        def forward(self, x):
            return super().forward(x).bfloat16()

    # In bfloat16 the sigmoids of 8 and 9 are both 1.
    rows = [(torch.tensor([8.0, 9.0, -1.0]), torch.tensor([0.0, 1.0, 0.0]))]
    learn = Learner(
        DataLoaders(DataLoader(rows, bs=1), DataLoader(rows, bs=1)),
        InHalf(),
        loss_func=lambda p, t: p.float().mean(),
        metrics=LwLRAP(),
    )
    with learn.no_bar(), learn.no_logging():
        assert learn.validate()[1] == 1.0


def test_saturated_sigmoids_make_no_ties():
    # In float32 the sigmoids of 20 and 22 are both 1; the tag that is there has the higher logit in both clips.
    logits, targ = [[20.0, 22.0, -1.0], [22.0, 20.0, -1.0]], [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    metrics = [LwLRAP(), RocAUC("micro")]
    assert validated(np.float32(logits), np.float32(targ), metrics, 2) == [1.0, 1.0]


def test_before_the_first_batch_there_is_no_value():
    assert LwLRAP().value is None


def test_targets_that_are_neither_0_nor_1_are_named(case):
    logits, targ = case
    with pytest.raises(DataError, match="targ has 0.5"):
        validated(logits, targ * 0.5, [LwLRAP()], 8)


def test_invalid_options_are_errors_at_once():
    with pytest.raises(OptionError, match="func is 'lwlrap'; expected a function"):
        RankingMetric("lwlrap", "lwlrap")
    for metric in (MeanAP, RocAUC, DPrime):
        with pytest.raises(OptionError, match="average is 'weighted'"):
            metric("weighted")


PROCESS = '''
import json, sys, types
import torch
try:
    import accelerate
except ImportError:  # fastai names it in a signature, and these few clips need nothing of it
    sys.modules["accelerate"] = types.SimpleNamespace(Accelerator=object)
from fastai.distributed import DistributedDL
sys.path.insert(0, sys.argv[1])
from test_training_metrics import DataLoader, DataLoaders, Learner, LwLRAP, Identity, RocAUC, nn

class OnCPU(DistributedDL):
    def _broadcast(self, t, rank):  # fastai's own needs a GPU
        t = torch.tensor(t)
        torch.distributed.broadcast(t, rank)
        return t.tolist()

torch.distributed.init_process_group("gloo")
case = json.loads(sys.argv[2])
rows = list(zip(torch.tensor(case["logits"]), torch.tensor(case["targ"])))
dls = DataLoaders(*(OnCPU(DataLoader(rows, bs=2)) for _ in range(2)))
learn = Learner(dls, Identity(), loss_func=nn.BCEWithLogitsLoss(), metrics=[LwLRAP(), RocAUC("micro")])
with learn.no_bar(), learn.no_logging():
    values = list(learn.validate())[1:]
gathered = torch.cat(learn.metrics[0].probs).logit()
print(json.dumps({"values": values, "logits": gathered.tolist()}))
torch.distributed.destroy_process_group()
'''


@pytest.mark.slow
def test_two_processes_score_the_clips_of_both_once(case):
    logits, targ = (x[:7] for x in case)  # 4 clips for each process, so one is repeated
    expected = validated(logits, targ, [LwLRAP(), RocAUC("micro")], 2)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    given = json.dumps({"logits": logits.tolist(), "targ": targ.tolist()})
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(Path(__file__).parent), given],
            env={**shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [json.loads(p.communicate(timeout=120)[0].splitlines()[-1]) for p in processes]
    finally:
        for process in processes:
            process.kill()
    for output in outputs:
        assert output["values"] == pytest.approx(expected, abs=1e-9)
        # Every clip once, in any order.
        np.testing.assert_allclose(sorted(output["logits"]), sorted(logits.tolist()), atol=1e-4)
