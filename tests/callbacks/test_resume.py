"""A fit that was killed and resumed ends as the uninterrupted one, byte for byte."""

import random
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau
from fastai.callback.training import GradientAccumulation
from fastai.optimizer import SGD, OptimWrapper
from fastai.torch_core import set_seed
from torch import nn

from fatai.augment.item import ItemAugmentations
from fatai.augment.mixup import LinearMixUp, MixUpOr
from fatai.augment.spec_augment import SpecAugment
from fatai.augment.wave import Gain
from fatai.callbacks.augmentation import DisableAugmentation
from fatai.callbacks.averaging import WeightAverage
from fatai.callbacks.base import ResumableCallback
from fatai.callbacks.checkpoint import SaveBestModel, SaveSnapshots
from fatai.callbacks.csv_logger import EpochCSVLogger
from fatai.callbacks.resume import ResumeTraining, resume_point
from fatai.callbacks.sample_weights import SampleWeights
from fatai.callbacks.schedulers import LRSchedulerCallback, warmup_cosine
from fatai.data.blocks import FATDataLoaders
from fatai.data.samplers import BalancedSampler, SampledDL
from fatai.errors import CheckpointError
from fatai.inference.learner import fat_learner


class KilledError(Exception):
    """Raised in place of the end of the process."""


class KillIn(Callback):
    """End a fit in the middle of an epoch, after its first step."""

    order = 45

    def __init__(self, epoch):
        self.kill_epoch = epoch

    def before_batch(self):
        if self.training and self.epoch == self.kill_epoch and self.iter == 1:
            raise KilledError("in the middle of an epoch")


class Net(nn.Module):
    """A small network with running means and draws of dropout."""

    def __init__(self, n_tags=10, in_channels=1):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, 4, 5, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(4, n_tags)

    def forward(self, spec):
        return self.head(self.body(spec).mean((2, 3)))


def new_learner(few_clips, clip_cache, seed, workers=0, cbs=(), **options):
    """Return a learner as a new process has it, from its own seed."""
    set_seed(seed)
    dls = FATDataLoaders.from_path(
        few_clips,
        crop_s=0.5,
        bs=6,
        valid_pct=0.25,
        seed=0,
        num_workers=workers,
        check_files=False,
        cache="wave",
        cache_dir=clip_cache,
    )
    learn = fat_learner(dls, Net, precision="fp32", cbs=list(cbs), **options)
    learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__ == "ProgressCallback"])
    learn.logger = lambda row: None
    return learn


def plain_fit(learn, epochs, cbs):
    learn.fit(epochs, 1e-2, cbs=cbs)


def one_cycle(learn, epochs, cbs):
    learn.fit_one_cycle(epochs, 1e-2, cbs=cbs)


def scheduled(learn, epochs, cbs):
    learn.fit(epochs, cbs=[*cbs, LRSchedulerCallback(warmup_cosine(epochs, 1e-2))])


def outcome(learn):
    """Return weights, state of the optimizer, recorded values, and the next random numbers."""
    states = learn.opt.state_dict()["state"]
    values = [v for state in (states.values() if isinstance(states, dict) else states) for v in state.values()]
    tensors = [*learn.model.state_dict().values(), *(v for v in values if isinstance(v, torch.Tensor)), torch.rand(3)]
    recorded = learn.recorder
    rows = [[None if v != v else v for v in row] for row in recorded.values]
    numbers = (
        rows,
        [float(x) for x in recorded.losses],
        list(recorded.lrs),
        list(recorded.iters),
        np.random.rand(),
        learn.train_iter,
    )
    return [(t.dtype, t.shape, t.contiguous().numpy().tobytes()) for t in tensors], numbers


def check_resumes(
    few_clips, clip_cache, tmp_path, fit, *, workers=0, epochs=4, kill_in=2, make_cbs=lambda: (), fit_cbs=lambda: (),
    **options,
):
    uninterrupted = new_learner(few_clips, clip_cache, 1, workers, make_cbs(), **options)
    fit(uninterrupted, epochs, list(fit_cbs()))
    expected = outcome(uninterrupted)
    state = tmp_path / "state.pt"
    killed = new_learner(few_clips, clip_cache, 1, workers, make_cbs(), **options)
    with pytest.raises(KilledError):
        fit(killed, epochs, [KillIn(kill_in), ResumeTraining(state), *fit_cbs()])
    assert resume_point(state).done == kill_in
    resumed = new_learner(few_clips, clip_cache, 99, workers, make_cbs(), **options)
    fit(resumed, epochs, [ResumeTraining(state), *fit_cbs()])
    got = outcome(resumed)
    assert got[1] == expected[1]
    assert got[0] == expected[0]
    return uninterrupted, resumed


@pytest.mark.parametrize("fit, workers", [(one_cycle, 0), (one_cycle, 2), (scheduled, 0)])
def test_a_killed_fit_resumes_to_the_same_bytes(few_clips, clip_cache, tmp_path, fit, workers):
    check_resumes(few_clips, clip_cache, tmp_path, fit, workers=workers, epochs=3, kill_in=1)


@pytest.mark.parametrize("opt_func", [
    partial(SGD, mom=0.9), partial(OptimWrapper, opt=torch.optim.AdamW, amsgrad=True),
], ids=["sgd", "torch"])
def test_a_fit_resumes_with_any_optimizer(few_clips, clip_cache, tmp_path, opt_func):
    check_resumes(few_clips, clip_cache, tmp_path, plain_fit, epochs=3, kill_in=1, opt_func=opt_func)


def test_augmentations_and_samplers_with_their_own_generators_resume(few_clips, clip_cache, tmp_path):
    def make_cbs():
        own = torch.Generator().manual_seed(3)
        return [SpecAugment(generator=own), MixUpOr(partner="dataset", generator=own), LinearMixUp()]

    def fit(learn, epochs, cbs):
        targ = torch.stack(
            [learn.dls.train_ds[i][1].as_subclass(torch.Tensor) for i in range(len(learn.dls.train_ds))]
        ).numpy()
        sampler = BalancedSampler(targ, n=64, generator=torch.Generator().manual_seed(4))
        learn.dls.loaders[0] = learn.dls.train.new(cls=SampledDL, sampler=sampler)
        learn.fit(epochs, 1e-2, cbs=cbs)

    check_resumes(few_clips, clip_cache, tmp_path, fit, make_cbs=make_cbs, epochs=3, kill_in=1)


def test_all_callbacks_of_a_recipe_resume(few_clips, clip_cache, tmp_path):
    """Weights, augmentation that ends before the fit, snapshots, the best epoch, the table of epochs."""
    rows = {}

    def fit(learn, epochs, cbs):
        path = tmp_path / "history.csv"
        try:
            learn.fit(
                epochs,
                1e-2,
                cbs=[
                    SaveBestModel(),
                    SaveSnapshots(2),
                    DisableAugmentation(2),
                    EpochCSVLogger(path),
                    SampleWeights(0.5),
                    *cbs,
                ],
            )
        finally:
            rows[len(rows)] = [line.split(",")[:-1] for line in path.read_text().splitlines()]

    def make_cbs():
        return [SpecAugment(), LinearMixUp(partner="dataset"), ItemAugmentations(Gain())]

    check_resumes(few_clips, clip_cache, tmp_path, fit, make_cbs=make_cbs, epochs=6, kill_in=3, path=tmp_path)
    assert rows[0] == rows[2] and len(rows[0]) == 7 and rows[1] == rows[0][:4], (
        "stage, epoch, losses and scores; seconds differ"
    )


def test_an_epoch_that_is_trained_again_has_one_row_and_one_best_file(few_clips, clip_cache, tmp_path):
    class KillAfter(Callback):
        order = 80

        def after_epoch(self):
            if self.epoch == 1:
                raise KilledError("after the row was written, before the state was")

    def cbs():
        return [
            EpochCSVLogger(tmp_path / "history.csv"),
            SaveBestModel("train_loss"),
            ResumeTraining(tmp_path / "s.pt"),
        ]

    with pytest.raises(KilledError):
        new_learner(few_clips, clip_cache, 1, path=tmp_path).fit(3, 1e-2, cbs=[*cbs(), KillAfter()])
    new_learner(few_clips, clip_cache, 2, path=tmp_path).fit(3, 1e-2, cbs=cbs())
    epochs = [line.split(",")[1] for line in (tmp_path / "history.csv").read_text().splitlines()]
    assert epochs == ["epoch", "0", "1", "2"]
    assert len(list((tmp_path / "models").glob("best_*"))) <= 2


@pytest.mark.parametrize("best", [False, True])
def test_averaged_weights_resume(few_clips, clip_cache, tmp_path, best):
    def fit_cbs():
        return [WeightAverage(0.9), *([SaveBestModel("train_loss")] if best else [])]

    check_resumes(few_clips, clip_cache, tmp_path, one_cycle, fit_cbs=fit_cbs, path=tmp_path)


def test_the_state_of_a_finished_fit_restores_averaged_weights(few_clips, clip_cache, tmp_path):
    weights = []
    for seed in (1, 2):
        learn = new_learner(few_clips, clip_cache, seed)
        one_cycle(learn, 2, [WeightAverage(0.9), ResumeTraining(tmp_path / "s.pt")])
        weights.append(learn.model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_accumulated_gradients_are_not_lost(few_clips, clip_cache, tmp_path):
    def fit_cbs():
        return [GradientAccumulation(n_acc=6 * 4)]

    uninterrupted, _ = check_resumes(few_clips, clip_cache, tmp_path, plain_fit, fit_cbs=fit_cbs, epochs=3, kill_in=2)
    assert 2 * len(uninterrupted.dls.train) % 4, "in the epoch before, some gradients were left over"


def test_trackers_keep_their_best_score_and_their_patience(few_clips, clip_cache, tmp_path):
    def trackers():
        # Never better than the first epoch, so that both act in the epochs after the kill.
        return [
            ReduceLROnPlateau("valid_loss", patience=2, min_delta=1e9),
            EarlyStoppingCallback("valid_loss", patience=4, min_delta=1e9),
        ]

    uninterrupted, resumed = check_resumes(
        few_clips, clip_cache, tmp_path, plain_fit, fit_cbs=trackers, epochs=8, kill_in=2
    )
    assert len(uninterrupted.recorder.values) == 5, "stopped early, in the same epoch"
    assert resumed.opt.hypers[-1]["lr"] == pytest.approx(1e-4), "lowered after 2 and after 4 epochs"


def test_the_state_of_a_finished_fit_restores_the_finished_learner(few_clips, clip_cache, tmp_path):
    done = new_learner(few_clips, clip_cache, 1)
    one_cycle(done, 2, [ResumeTraining(tmp_path / "s.pt")])
    expected = outcome(done)
    again = new_learner(few_clips, clip_cache, 2)
    one_cycle(again, 2, [ResumeTraining(tmp_path / "s.pt")])
    assert outcome(again) == expected
    assert resume_point(tmp_path / "s.pt") == (2, 2, {}) and resume_point(tmp_path / "none") is None


def test_predictions_and_lr_find_do_not_touch_the_state(few_clips, clip_cache, tmp_path):
    learn = new_learner(few_clips, clip_cache, 1, path=tmp_path)
    state = ResumeTraining(tmp_path / "s.pt")
    learn.fit(1, 1e-3, cbs=state)
    before = state.path_of_state.read_bytes()
    assert all(cb.run for cb in learn.cbs)
    learn.get_preds(cbs=state)
    with learn.added_cbs(state):
        learn.lr_find(num_it=60, show_plot=False)
    assert state.path_of_state.read_bytes() == before


def test_temporary_files_of_a_killed_writer_are_removed(few_clips, clip_cache, tmp_path):
    (tmp_path / ".s.123456.part.pt").write_bytes(b"half")
    (tmp_path / ".other.123456.part.pt").write_bytes(b"half")
    new_learner(few_clips, clip_cache, 1).fit(1, 1e-3, cbs=ResumeTraining(tmp_path / "s.pt"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.123456.part.pt", "s.pt"]


@pytest.mark.parametrize("change, words", [
    ({"epochs": 3}, "epochs was 2 and is 3"),
    ({"notes": {"recipe": "b"}}, "recipe was 'a' and is 'b'"),
    ({"notes": {}}, "recipe was 'a' and is None"),
    ({"bs": 4}, "batches was 5 and is"),
])
def test_another_fit_is_refused_and_the_differences_are_listed(few_clips, clip_cache, tmp_path, change, words):
    learn = new_learner(few_clips, clip_cache, 1)
    learn.fit(2, 1e-3, cbs=ResumeTraining(tmp_path / "s.pt", notes={"recipe": "a"}))
    if "bs" in change:
        learn.dls.train.bs = change["bs"]
    with pytest.raises(CheckpointError, match=words):
        learn.fit(
            change.get("epochs", 2),
            1e-3,
            cbs=ResumeTraining(tmp_path / "s.pt", notes=change.get("notes", {"recipe": "a"})),
        )


def test_another_network_or_optimizer_is_refused(few_clips, clip_cache, tmp_path):
    state = tmp_path / "s.pt"
    new_learner(few_clips, clip_cache, 1).fit(2, 1e-3, cbs=ResumeTraining(state))
    other = new_learner(few_clips, clip_cache, 1)
    other.model.head = nn.Linear(4, 10, bias=False)
    with pytest.raises(CheckpointError, match="another network: head.bias differ"):
        other.fit(2, 1e-3, cbs=ResumeTraining(state))
    with pytest.raises(CheckpointError, match="does not fit the optimizer or the callbacks of this learner"):
        new_learner(few_clips, clip_cache, 1, opt_func=partial(OptimWrapper, opt=torch.optim.SGD)).fit(
            2, 1e-3, cbs=ResumeTraining(state)
        )


def test_a_state_with_other_trained_parameters_is_refused(few_clips, clip_cache, tmp_path):
    state = tmp_path / "s.pt"
    new_learner(few_clips, clip_cache, 1).fit(2, 1e-3, cbs=ResumeTraining(state))
    frozen = new_learner(few_clips, clip_cache, 1)
    next(frozen.model.parameters()).requires_grad_(False)
    with pytest.raises(CheckpointError, match="does not fit the optimizer or the callbacks of this learner"):
        frozen.fit(2, 1e-3, cbs=ResumeTraining(state))


STATE = {"format": 2, "done": 1, "epochs": 1, "batches": 1, "notes": {}}


@pytest.mark.parametrize("content", [
    b"", b"not tensors", {}, {**STATE, "format": 9}, {**STATE, "notes": []}, {**STATE, "done": "1"},
    {**STATE, "done": 10**30}, {**STATE, "done": 0}, [1], torch.ones(1),
])
def test_files_that_are_not_a_state_are_refused(few_clips, clip_cache, tmp_path, content):
    state = tmp_path / "s.pt"
    if isinstance(content, bytes):
        state.write_bytes(content)
    else:
        torch.save(content, state)
    with pytest.raises(CheckpointError, match="s.pt .*delete it to start the fit again"):
        new_learner(few_clips, clip_cache, 1).fit(1, 1e-3, cbs=ResumeTraining(state))


class Malicious:
    """Create a file when it is unpickled."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return open, (str(self.witness), "w")


def test_the_state_is_read_without_executing_code(few_clips, clip_cache, tmp_path):
    learn = new_learner(few_clips, clip_cache, 1)
    learn.fit(1, 1e-3, cbs=ResumeTraining(tmp_path / "s.pt"))
    content = torch.load(tmp_path / "s.pt", weights_only=True)
    assert set(content["model"]) == set(learn.model.state_dict())
    torch.save({**content, "opt": Malicious(tmp_path / "executed")}, tmp_path / "s.pt")
    with pytest.raises(CheckpointError, match="s.pt cannot be read .*could run code.*delete it"):
        resume_point(tmp_path / "s.pt")
    assert not (tmp_path / "executed").exists()


def test_a_callback_with_a_state_that_cannot_be_stored_is_named(few_clips, clip_cache, tmp_path):
    class Odd(ResumableCallback):
        resume_state = ("value",)

        def before_fit(self):
            self.value = {"deep": [object()]}

    with pytest.raises(CheckpointError, match="state/callbacks/Odd1/value/deep/0 is a object"):
        new_learner(few_clips, clip_cache, 1).fit(1, 1e-3, cbs=[Odd(), ResumeTraining(tmp_path / "s.pt")])
    assert not (tmp_path / "s.pt").exists()


SCRIPT = '''
import sys, time, warnings
warnings.simplefilter("ignore")
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.torch_core import set_seed
from fatai.callbacks.checkpoint import SaveBestModel
from fatai.callbacks.resume import ResumeTraining
from fatai.models.checkpoint import save_weights

class Noisy:
    """Items that a worker draws at random each time."""
    def __len__(self): return 12
    def __getitem__(self, i): return torch.randn(4) + i, torch.ones(1)

class Slow(Callback):
    def before_batch(self):
        print("batch", flush=True)
        time.sleep(0.02)

folder, workers = sys.argv[1], int(sys.argv[2])
set_seed(1, True)
train = DataLoader(Noisy(), bs=2, shuffle=True, num_workers=workers)
loaders = DataLoaders(train, DataLoader(Noisy(), bs=4, num_workers=workers))
layers = torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1)
net = torch.nn.Sequential(*layers)
learn = Learner(loaders, net, loss_func=torch.nn.MSELoss(), path=folder)
learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__ == "ProgressCallback"])
learn.logger = lambda row: None
learn.fit(8, 1e-2, cbs=[SaveBestModel("valid_loss"), Slow(), ResumeTraining(folder + "/state.pt")])
save_weights(folder + "/end.safetensors", net, {})
'''


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_process_killed_at_any_moment_and_restarted_ends_as_the_uninterrupted_one(tmp_path, workers):
    draw = random.Random(workers)
    ends, kills = {}, 0
    for name in ("uninterrupted", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        while not (folder / "end.safetensors").exists():
            process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, str(folder), str(workers)], stdout=subprocess.PIPE, text=True
            )
            if name == "killed" and kills < 5:
                for _ in range(draw.randrange(1, 25)):
                    process.stdout.readline()
                time.sleep(0.05 * draw.random())
                process.kill()
                kills += 1
            process.communicate(timeout=120)
            assert process.returncode in (0, -signal.SIGKILL)
        ends[name] = (folder / "end.safetensors").read_bytes()
    assert kills == 5 and ends["killed"] == ends["uninterrupted"]
