"""Failures: full disks, unreliable network drives, too little memory, NaN losses, a clock that goes back."""

import errno
import os
import resource
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from fastai.callback.core import Callback

import fatai.audio.decoder
import fatai.audio.io
from fatai.audio.io import audio_info, check_audio, load_audio
from fatai.callbacks.failure import NonFiniteError, SplitBatchOnOOM, TerminateOnNaN
from fatai.callbacks.out_of_memory import split_on_oom, translate_errors
from fatai.callbacks.resume import ResumeTraining, resume_point
from fatai.errors import AudioError, StorageError, WorkerError
from fatai.inference.learner import fat_learner
from fatai.io.atomic import retry, write_file, write_text
from fatai.models.checkpoint import save_weights

SR = 44100


@contextmanager
def files_of_at_most(size):
    """Limit the size of files of this process, as a full disk does; Python ignores the signal and gets the error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def quick_waits(monkeypatch):
    """Record the seconds between attempts instead of waiting."""
    waited = []
    monkeypatch.setattr("fatai.io.atomic.time.sleep", waited.append)
    return waited


class TestDisk:
    def test_a_full_disk_leaves_the_old_file_and_names_a_remedy(self, tmp_path):
        path = tmp_path / "scores.csv"
        write_text(path, "old")
        with (
            files_of_at_most(1000),
            pytest.raises(StorageError, match="scores.csv: cannot be written .*: the disk is full; make room"),
        ):
            write_text(path, "x" * 5000)
        assert path.read_text() == "old" and os.listdir(tmp_path) == ["scores.csv"]

    @pytest.mark.parametrize("write", [
        lambda path: save_weights(path, torch.nn.Linear(100, 100), {}),
        lambda path: fatai.audio.io.save_audio(path.with_suffix(".wav"), torch.zeros(9999), SR),
        lambda path: write_bytes(path, np.zeros(9999).tofile),
        lambda path: write_bytes(path, lambda file: open(file, "wb").write(bytes(9999))),
    ], ids=["safetensors", "sound", "array", "bytes"])
    def test_every_kind_of_writer_raises_a_clear_error_and_leaves_no_file(self, tmp_path, write):
        with files_of_at_most(1000), pytest.raises((StorageError, AudioError), match="cannot be written"):
            write(tmp_path / "it")
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize(("code", "remedy"), [
        (errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full"),
        (errno.EROFS, "the folder is not writable"),
        (errno.EACCES, "the folder is not writable"), (errno.ENODEV, "the file system fails"),
    ])
    def test_the_remedy_fits_the_error(self, tmp_path, monkeypatch, code, remedy):
        def refuse(*args):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(StorageError, match=remedy):
            write_text(tmp_path / "x", "text")
        assert os.listdir(tmp_path) == []

    def test_a_state_that_cannot_be_written_leaves_the_one_before_from_which_the_fit_resumes(
        self, small_dls, tmp_path
    ):
        class FillDisk(Callback):
            order = 80

            def after_epoch(self):
                if self.epoch == 1 and not full:
                    full.append(resource.getrlimit(resource.RLIMIT_FSIZE))
                    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, full[0][1]))

        full, state = [], tmp_path / "state.pt"
        learn = fat_learner(small_dls, "m1", width=0.1, precision="fp32", path=tmp_path)
        with learn.no_bar(), learn.no_logging():
            try:
                with pytest.raises(StorageError, match="state.pt: cannot be written .*disk is full"):
                    learn.fit(3, 1e-3, cbs=[ResumeTraining(state), FillDisk()])
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, full[0])
            assert resume_point(state).done == 1 and os.listdir(tmp_path) == ["state.pt"]
            learn.fit(3, 1e-3, cbs=[ResumeTraining(state), FillDisk()])
        assert resume_point(state).done == 3

    def test_a_command_on_a_full_disk_ends_with_a_clear_error(self, main_with, tiny_run, tmp_path, sample):
        with files_of_at_most(100):
            ended = main_with("predict", tiny_run.out, sample / "test", "--out", tmp_path / "p.csv")
        assert ended.returncode == 2 and "the disk is full" in ended.stderr and "Traceback" not in ended.stderr
        assert os.listdir(tmp_path) == ["p.csv.journal"], "no partial table; finished predictions are kept"
        ended = main_with("predict", tiny_run.out, sample / "test", "--out", tmp_path / "p.csv")
        assert (
            ended.returncode == 0 and len(pd.read_csv(tmp_path / "p.csv")) == 60 and os.listdir(tmp_path) == ["p.csv"]
        )

    @pytest.mark.slow
    @pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0, reason="file systems are mounted by root alone"
    )
    def test_a_run_on_a_small_or_read_only_disk_ends_with_a_clear_error_and_resumes_with_space(self, tmp_path, sample):
        (tmp_path / "tiny.toml").write_text(
            'name = "tiny"\n[clips]\ncrop_s = 0.5\n[folds]\nn = 2\n[model]\narch = "m1"\nwidth = 0.5\n'
            '[[stages]]\nname = "fit"\nepochs = 2\n'
            "bs = 16\n[tta]\nn = 2\n")
        disk = tmp_path / "disk"
        disk.mkdir()
        command = f"{sys.executable} -m fatai.cli run {sample} --recipe {tmp_path}/tiny.toml --num-workers 0"
        script = f"""
            mount -t tmpfs -o size=1m none {disk} || exit 77
            {command} --out {disk}/run; echo "full: $?"
            find {disk} -name '.*.part*' | wc -l
            mount -o remount,size=100m {disk}
            {command} --out {disk}/run --resume; echo "resumed: $?"
            cp {disk}/run/oof.csv {tmp_path}/resumed.csv
            mount -o remount,ro {disk}
            {command} --out {disk}/other; echo "read-only: $?"
            {command} --out {tmp_path}/unbroken; echo "unbroken: $?"
        """
        ended = subprocess.run(["unshare", "-m", "bash", "-c", script], capture_output=True, text=True, timeout=550)
        if ended.returncode == 77:
            pytest.skip("no file system can be mounted here")
        output = ended.stdout + ended.stderr
        assert "full: 2" in output and "the disk is full" in output and "Traceback" not in output, output[-3000:]
        assert "read-only: 2" in output and "the folder is not writable" in output
        assert "resumed: 0" in output and "unbroken: 0" in output
        assert (tmp_path / "resumed.csv").read_bytes() == (tmp_path / "unbroken" / "oof.csv").read_bytes()


def write_bytes(path, write):
    with write_file(path) as beside:
        write(beside)


class TestNetworkDrive:
    @pytest.fixture
    def failing(self, monkeypatch, tmp_path, quick_waits):
        """Return a function that makes the first openings of a sound fail, and returns its path and the openings."""
        path = tmp_path / "clip.wav"
        soundfile.write(path, np.zeros(SR, np.float32), SR)
        opened = []

        def set_up(times, code=errno.ESTALE):
            def unreliable(file, *args, **options):
                if os.fspath(file) == str(path):
                    opened.append(file)
                    if len(opened) <= times:
                        raise OSError(code, os.strerror(code))
                return open(file, *args, **options)

            monkeypatch.setattr(fatai.audio.decoder, "open", unreliable, raising=False)
            return path, opened

        return set_up

    @pytest.mark.parametrize("read", [load_audio, audio_info, check_audio])
    @pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
    def test_transient_errors_are_retried(self, failing, quick_waits, read, code):
        path, opened = failing(3, code)
        read(path)
        assert len(opened) == 4 and quick_waits == [0.25, 0.5, 1.0]

    @pytest.mark.parametrize("read", [load_audio, audio_info, check_audio])
    def test_permanent_errors_name_the_file(self, failing, quick_waits, read):
        path, opened = failing(99)
        with pytest.raises(
            AudioError, match="clip.wav: the file system failed several times .Stale file handle."
        ):
            read(path)
        assert len(opened) == 4

    def test_other_errors_are_raised_at_once(self, failing, quick_waits):
        path, opened = failing(99, errno.EACCES)
        with pytest.raises(AudioError, match="cannot be opened .Permission denied."):
            load_audio(path)
        assert len(opened) <= 2 and quick_waits == [], "and read once more, to find out if the drive is the cause"

    def test_a_broken_file_is_not_read_again(self, tmp_path, quick_waits):
        (tmp_path / "broken.wav").write_bytes(b"RIFF")
        with pytest.raises(AudioError, match="cut short"):
            load_audio(tmp_path / "broken.wav")
        assert quick_waits == []

    def test_a_rename_is_retried_after_a_transient_error(self, tmp_path, monkeypatch, quick_waits):
        replace, tried = os.replace, []

        def unreliable(*args):
            tried.append(args)
            if len(tried) < 3:
                raise OSError(errno.EIO, "Input/output error")
            replace(*args)

        monkeypatch.setattr(os, "replace", unreliable)
        write_text(tmp_path / "x", "text")
        assert (tmp_path / "x").read_text() == "text" and len(tried) == 3

    def test_the_last_error_is_raised_as_it_is(self, quick_waits):
        def never():
            raise OSError(errno.EIO, "Input/output error")

        with pytest.raises(OSError, match="Input/output error"):
            retry(never, max_tries=2)
        assert quick_waits == [0.25]


class MakeNaN(Callback):
    """Make the loss, or a weight, NaN from a batch on."""

    order = -30

    def __init__(self, epoch, target):
        self.nan_epoch, self.target = epoch, target

    def before_batch(self):
        if self.training and self.epoch == self.nan_epoch and self.iter == 2:
            self.batch = self.learn.xb[0].clone()
            self.learn.xb = (self.learn.xb[0] * float("nan"),)

    def before_step(self):
        if self.target == "weights" and self.epoch == self.nan_epoch and self.iter == 1:
            next(self.learn.model.parameters()).grad.fill_(float("nan"))


class TestNotANumber:
    def learner(self, dls, path):
        torch.manual_seed(0)
        return fat_learner(dls, "m1", width=0.1, precision="fp32", path=path)

    def test_a_nan_loss_stops_the_fit_and_names_the_files_of_the_batch(self, small_dls, tmp_path):
        class RecordTargets(Callback):
            order = -40

            def before_batch(self):
                if self.training and self.epoch == 1 and self.iter == 2:
                    seen.append(self.learn.yb[0].clone())

        seen, state, learn = [], tmp_path / "state.pt", self.learner(small_dls, tmp_path)
        with learn.no_bar(), learn.no_logging(), pytest.raises(NonFiniteError) as caught:
            learn.fit(3, 1e-3, cbs=[TerminateOnNaN(), MakeNaN(1, "loss"), RecordTargets(), ResumeTraining(state)])
        message = str(caught.value)
        assert "the training loss became nan in epoch 1, batch 2 (its files: " in message and "and 8 more)" in message
        named = message.split("its files: ")[1].split(" and 8 more")[0].split(", ")
        table = small_dls.files(0).set_index("fname")
        labels = [[learn.tags[k] for k in row.nonzero().flatten().tolist()] for row in seen[0][:8]]
        assert labels == [sorted(table.loc[name, "labels"], key=learn.tags.index) for name in named]
        assert resume_point(state).done == 1 and all(torch.isfinite(p).all() for p in learn.model.parameters())

    def test_nan_weights_are_replaced_by_those_of_the_last_good_epoch_and_never_saved(
        self, small_dls, tmp_path
    ):
        class RecordWeights(Callback):
            order = 89

            def after_epoch(self):
                good.append({k: v.clone() for k, v in self.learn.model.state_dict().items()})

        good, state, learn = [], tmp_path / "state.pt", self.learner(small_dls, tmp_path)
        with (
            learn.no_bar(),
            learn.no_logging(),
            pytest.raises(NonFiniteError, match="the weights are again those after epoch 0"),
        ):
            learn.fit(3, 1e-3, cbs=[TerminateOnNaN(), MakeNaN(1, "weights"), RecordWeights(), ResumeTraining(state)])
        assert len(good) == 1 and resume_point(state).done == 1
        for key, value in learn.model.state_dict().items():
            torch.testing.assert_close(value, good[0][key], rtol=0, atol=0, msg=key)


class OutOfMemory(Callback):
    """Raise out of memory in the network, or in its gradient, for more than `max_clips` clips."""

    order = -50

    def __init__(self, max_clips, backward=False):
        self.max_clips, self.backward, self.sizes = max_clips, backward, []

    def before_fit(self):
        first = next(m for m in self.learn.model.modules() if isinstance(m, torch.nn.Conv2d))
        self.hook = first.register_forward_pre_hook(self.refuse)

    def refuse(self, module, inputs):
        self.sizes.append(len(inputs[0]))
        if self.learn.model.training and len(inputs[0]) > self.max_clips:
            if self.backward:
                inputs[0].requires_grad_(True).register_hook(self.raise_error)
            else:
                self.raise_error()

    def raise_error(self, grad=None):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def after_fit(self):
        self.hook.remove()


class TestMemory:
    def learner(self, dls, path):
        torch.manual_seed(0)
        learn = fat_learner(dls, "m1", width=0.1, precision="fp32", path=path)
        for module in learn.model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.momentum = 0.0  # statistics of halves differ from those of the whole batch
        return learn

    def test_a_batch_that_does_not_fit_is_halved_once_with_one_warning(self, small_dls, tmp_path):
        learn, memory = self.learner(small_dls, tmp_path), OutOfMemory(max_clips=8)
        with (
            learn.no_bar(),
            learn.no_logging(),
            pytest.warns(UserWarning, match="too small for a batch of 16 clips.*halves") as warned,
        ):
            learn.fit(2, 1e-3, cbs=[memory, SplitBatchOnOOM()])
        assert len([w for w in warned if "halves" in str(w.message)]) == 1
        trained = [size for size in memory.sizes if size in (8, 16)]
        assert trained[0] == 16 and trained[1:3] == [8, 8] and "forward" not in vars(learn.model)

    def test_halves_give_the_gradient_of_the_whole(self, small_dls, tmp_path):
        grads = []

        class Keep(Callback):
            def before_step(self):
                grads[-1].append([p.grad.clone() for p in self.learn.model.parameters() if p.grad is not None])

        for max_clips in (99, 8):
            learn = self.learner(small_dls, tmp_path)
            # The statistics of halves are not those of the batch: use the stored ones.
            for module in learn.model.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.forward = lambda x, m=module: torch.nn.functional.batch_norm(
                        x, m.running_mean, m.running_var, m.weight, m.bias, False, 0.0, m.eps)
            grads.append([])
            torch.manual_seed(1)
            small_dls.train.rng.seed(1)
            with (
                learn.no_bar(),
                learn.no_logging(),
                pytest.warns(UserWarning, match="halves") if max_clips == 8 else nothing(),
            ):
                learn.fit(1, 0.0, cbs=[OutOfMemory(max_clips), SplitBatchOnOOM(), Keep()])
        assert len(grads[0]) == len(grads[1]) > 1
        for whole, halves in zip(grads[0][0], grads[1][0], strict=True):
            torch.testing.assert_close(whole, halves, rtol=1e-3, atol=1e-6)

    def test_where_a_half_does_not_fit_either_the_fit_ends_with_a_clear_error(self, small_dls, tmp_path):
        learn = self.learner(small_dls, tmp_path)
        with (
            learn.no_bar(),
            learn.no_logging(),
            pytest.warns(UserWarning, match="halves"),
            pytest.raises(WorkerError) as caught,
        ):
            learn.fit(1, 1e-3, cbs=[OutOfMemory(max_clips=4), SplitBatchOnOOM()])
        assert "too small for half a batch of 16 clips; give a smaller --bs" in str(caught.value)

    def test_an_error_in_a_half_leaves_no_hooks_of_checkpointing(self, small_dls, tmp_path):
        learn = self.learner(small_dls, tmp_path)
        with learn.no_bar(), learn.no_logging(), pytest.warns(UserWarning), pytest.raises(WorkerError) as caught:
            learn.fit(1, 1e-3, cbs=[OutOfMemory(max_clips=4), SplitBatchOnOOM()])
        # Held here, the error keeps its traceback, and with it the frames in which hooks would be active.
        assert caught.value is not None
        x = torch.randn(3, requires_grad=True)
        x.exp().sum().backward()
        torch.testing.assert_close(x.grad, x.detach().exp())

    def test_a_batch_whose_gradient_does_not_fit_is_left_out(self, small_dls, tmp_path):
        learn, memory = self.learner(small_dls, tmp_path), OutOfMemory(max_clips=8, backward=True)
        with learn.no_bar(), learn.no_logging(), pytest.warns(UserWarning, match="this one is left out"):
            learn.fit(1, 1e-3, cbs=[memory, SplitBatchOnOOM()])
        assert [size for size in memory.sizes if size in (8, 16)][:3] == [16, 8, 8]

    def test_predictions_are_made_of_halves(self):
        def predict(batch):
            if len(batch) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return batch * 2

        with pytest.warns(UserWarning, match="a batch of 4: it is halved"):
            assert split_on_oom(predict, torch.arange(4.0)).tolist() == [0, 2, 4, 6]
        with pytest.warns(UserWarning), pytest.raises(WorkerError, match="half a batch of 9"):
            split_on_oom(predict, torch.zeros(9))


@contextmanager
def nothing():
    yield


class KillsWorker(torch.utils.data.Dataset):
    """End the worker as the kernel does when memory runs out."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        os.kill(os.getpid(), 9)


def test_the_error_of_a_killed_worker_names_a_remedy():
    expected = "a process that reads sound ended .(killed by signal|exited).*fewer --num-workers"
    with pytest.raises(WorkerError, match=expected), translate_errors("a batch"):
        list(torch.utils.data.DataLoader(KillsWorker(), num_workers=1))


def test_other_errors_are_not_translated():
    with pytest.raises(RuntimeError, match="mat1 and mat2"), translate_errors("a batch"):
        torch.zeros(2, 3) @ torch.zeros(2, 3)


def test_a_clock_that_goes_back_has_no_effect(small_dls, tmp_path, monkeypatch):
    """The clock goes back an hour at every call; histories, progress and states do not depend on it."""
    now = [time.time()]

    def back():
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", back)
    from fatai.callbacks.csv_logger import EpochCSVLogger
    from fatai.data.cache import ClipCache

    learn = fat_learner(small_dls, "m1", width=0.1, precision="fp32", path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit(
            2, 1e-3, cbs=[ResumeTraining(tmp_path / "state.pt"), EpochCSVLogger(tmp_path / "history.csv")]
        )
    seconds = [float(line.split(",")[-1]) for line in (tmp_path / "history.csv").read_text().splitlines()[1:]]
    assert len(seconds) == 2 and all(0 <= s < 600 for s in seconds)
    files = [str(path) for path in small_dls.files(0)["path"][:3]]
    first = ClipCache.open_or_build(files, small_dls.clip_config, folder=tmp_path / "cache")
    os.utime(tmp_path / "cache", (0, 0))
    assert (
        ClipCache.open_or_build(files, small_dls.clip_config, folder=tmp_path / "cache").lengths.tolist()
        == first.lengths.tolist()
    )
