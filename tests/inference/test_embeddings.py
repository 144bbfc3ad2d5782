"""Embeddings: the input of the head, averaged over views; plain numbers and names on disk."""

import pickle

import numpy as np
import pytest
import soundfile as sf
import torch

from fatai.audio.front_ends import front_end
from fatai.data.config import ClipConfig
from fatai.errors import DataError, OptionError, ShapeError
from fatai.experiment.run_folder import trained_model
from fatai.inference.embeddings import Embeddings, embed_clips
from fatai.inference.learner import fat_learner
from fatai.models import create_model
from fatai.models.multi_task import TwoHeadModel

SETTINGS = ClipConfig(front_end("ninth"), crop_s=0.5, trim_db=None)


@pytest.fixture
def clips(tmp_path, rng):
    paths = [tmp_path / name for name in ("a.wav", "b.wav")]
    for path, seconds in zip(paths, (0.5, 1.5), strict=True):
        sf.write(path, 0.1 * rng.standard_normal(round(seconds * 44100)), 44100)
    return paths


def crops_of(path):
    """Return the first and the last half second, which are two even views."""
    wave = torch.from_numpy(sf.read(path, dtype="float32")[0])
    return torch.stack([wave[:22050], wave[-22050:]])


def by_hand(model, path):
    with torch.no_grad():
        return model.eval().embed(SETTINGS.front_end.build()(crops_of(path))[:, None]).mean(0).numpy()


def test_a_row_is_the_mean_over_views_of_the_input_of_the_head(clips):
    model = create_model("m1", 3, 1, width=0.125)
    found = embed_clips(model, SETTINGS, clips, n=2)
    assert found.fnames == ("a.wav", "b.wav") and found.values.dtype == np.float32
    for row, clip in zip(found.values, clips, strict=True):
        np.testing.assert_allclose(row, by_hand(model, clip), atol=1e-5)
    with torch.no_grad():
        logits = model.classify(torch.from_numpy(found.values[:1]))
        direct = model(SETTINGS.front_end.build()(crops_of(clips[0]))[:1, None])
    torch.testing.assert_close(logits, direct, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("arch", "features", "options"),
    [
        ("cnn14", 256, {"width": 0.125}),
        ("cnn14", 256, {"width": 0.125, "head": "tag_attention"}),
        ("resnet18_cbam", 64, {"width": 0.125}),
    ],
)
def test_other_models_have_embeddings(clips, arch, features, options):
    found = embed_clips(create_model(arch, 3, 1, **options), SETTINGS, clips, n=1)
    assert found.values.shape == (2, features) and np.isfinite(found.values).all()


def test_a_second_head_changes_nothing(clips):
    model = create_model("m1", 6, 1, width=0.125)
    np.testing.assert_array_equal(
        embed_clips(TwoHeadModel(model, 3), SETTINGS, clips).values, embed_clips(model, SETTINGS, clips).values
    )


def test_a_learner_embeds_and_stays_in_training_mode(small_dls, sample):
    learn = fat_learner(small_dls, arch="m1", width=0.125, precision="fp32")
    learn.model.train()
    items = sorted((sample / "test").iterdir())[:2]
    found = learn.embed(items, n=2)
    assert learn.model.training and found.fnames == tuple(f.name for f in items)
    np.testing.assert_allclose(found.values, embed_clips(learn.model, learn.clip_config, items, n=2).values, atol=1e-5)


def test_an_unreadable_clip_has_a_row_of_nan(clips, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.warns(UserWarning, match="1 of 3 clips cannot be read; their row is NaN:\n.*broken.wav"):
        found = embed_clips(create_model("m1", 3, 1, width=0.125), SETTINGS, [*clips, tmp_path / "broken.wav"])
    assert found.readable.tolist() == [True, True, False] and np.isnan(found.values[2]).all()


def test_a_network_without_features_is_an_error(clips):
    with pytest.raises(OptionError, match="the model is a Linear; expected a SpectrogramModel"):
        embed_clips(torch.nn.Linear(1, 1), SETTINGS, clips)


def test_save_and_load(tmp_path, rng):
    values = rng.standard_normal((3, 5)).astype(np.float32)
    values[1] = np.nan
    Embeddings(("a.wav", 'b "x", y.wav', "ü.wav"), values).save(tmp_path / "new" / "e.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "e.npy", allow_pickle=False), values)
    found = Embeddings.load(tmp_path / "new" / "e.npy")
    assert found.fnames == ("a.wav", 'b "x", y.wav', "ü.wav")
    np.testing.assert_array_equal(found.values, values)


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return type(self.mark).touch, (self.mark,)


def test_malformed_and_malicious_files_are_an_error(tmp_path):
    file, mark = tmp_path / "e.npy", tmp_path / "executed"
    (tmp_path / "e.csv").write_text("fname\na.wav\nb.wav\n")
    huge = (
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1099511627776)}".ljust(117)
        + b"\n"
    )
    for content in (b"", b"text", huge + bytes(8), pickle.dumps(Bomb(mark))):
        file.write_bytes(content)
        with pytest.raises(DataError, match="e.npy"):
            Embeddings.load(file)
    for array in (
        np.array([Bomb(mark), 1], dtype=object),
        np.zeros((2, 3)),
        np.zeros((3, 3), np.float32),
        np.zeros(2, np.float32),
    ):
        np.save(file, array, allow_pickle=True)
        with pytest.raises(DataError, match="e.npy"):
            Embeddings.load(file)
    assert not mark.exists()
    np.save(file, np.zeros((2, 3), np.float32))
    assert Embeddings.load(file).values.shape == (2, 3)
    (tmp_path / "e.csv").write_text("fname\na.wav\na.wav\n")
    with pytest.raises(DataError, match="e.csv.*a.wav"):
        Embeddings.load(file)
    (tmp_path / "e.csv").write_text("fname,x\na.wav,1\n")
    with pytest.raises(DataError, match="expected fname alone"):
        Embeddings.load(file)


def test_names_and_rows_must_match():
    with pytest.raises(ShapeError, match=r"shape \(2, 3\); expected \(1, features\)"):
        Embeddings(("a",), np.zeros((2, 3)))
    with pytest.raises(DataError, match="more than once"):
        Embeddings(("a", "a"), np.zeros((2, 3)))


def test_the_command_writes_embeddings(tiny_run, clips, tmp_path, main_with):
    ended = main_with("embed", tiny_run.out, *clips, "--out", tmp_path / "e.npy", "--n-views", 2, "--fold", 1)
    assert ended.returncode == 0 and "2 clips" in ended.stdout
    expected = trained_model(tiny_run.out, 1).embed(clips, n=2)
    np.testing.assert_allclose(Embeddings.load(tmp_path / "e.npy").values, expected.values, atol=1e-5)
    failed = main_with("embed", tiny_run.out, clips[0], "--out", tmp_path / "e.csv")
    assert failed.returncode == 2 and "expected a name that ends in .npy" in failed.stderr
