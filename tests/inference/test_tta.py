"""Test-time augmentation: views of a clip and the average of their predictions."""

import numpy as np
import pytest
import soundfile as sf
import torch
from torch import nn

from fatai.audio.waveform import Section
from fatai.data.config import ClipConfig
from fatai.errors import AudioError, OptionError
from fatai.inference import predictor
from fatai.inference.learner import fat_learner
from fatai.inference.predictor import Predictor, _Clip, _Marks, _view_batches
from fatai.inference.tta import TagScores, build_views
from fatai.inference.view_store import load_views
from fatai.inference.views import ClipViews, even_views, whole_view
from fatai.io.ahead import read_ahead
from fatai.models import create_model
from fatai.registry import VIEWS

SETTINGS = ClipConfig(crop_s=0.1, trim_db=None)
SIZE = SETTINGS.crop_samples


def test_whole_clips_share_batches_by_length_and_are_predicted_as_if_alone(clips):
    batches = []

    class Recorded(Loudness):
        def forward(self, spec):
            batches.append(len(spec))
            return super().forward(spec)

    order = [0, 1, 2, 3, 0, 1, 2, 3]
    views = whole_view(step_s=0.1)
    together = Predictor(Recorded(), SETTINGS, views, 2, bs=4).predict([clips[i] for i in order])
    # Lengths in steps: 1, 3, 1, 3. Two lengths, four clips each; three steps leave room for 4 // 3 = 1 clip.
    assert sorted(batches) == [1, 1, 1, 1, 4]
    for row, i in zip(together.probs, order, strict=True):
        np.testing.assert_allclose(
            row, Predictor(Loudness(), SETTINGS, views, 2).predict([clips[i]]).probs[0], atol=1e-6
        )


def test_batch_norms_are_folded_for_many_clips(clips, monkeypatch):
    model = create_model("m3", 2, width=0.1).eval()
    few = Predictor(model, SETTINGS, even_views(2), 2).predict(clips)
    folded = []
    fold = predictor.fold_batch_norm
    monkeypatch.setattr(predictor, "fold_batch_norm", lambda *args: folded.append(fold(*args)) or folded[-1])
    monkeypatch.setattr(predictor, "MIN_FOLDED_CLIPS", len(clips))
    many = Predictor(model, SETTINGS, even_views(2), 2).predict(clips)
    assert len(folded) == 1 and folded[0] is not model and abs(many.probs - few.probs).max() < 1e-5


def test_clips_decoded_ahead_are_the_same(clips, tmp_path, monkeypatch):
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    paths = [clips[0], tmp_path / "bad.wav", *clips[1:]]
    monkeypatch.setattr(predictor, "may_read_ahead", lambda: False)
    one = Predictor(Loudness(), SETTINGS, even_views(2), 2).predict(paths)
    threads_used = []

    def counted(*args):
        threads_used.append(args)
        return read_ahead(*args)

    monkeypatch.setattr(predictor, "may_read_ahead", lambda: True)
    monkeypatch.setattr(predictor, "read_ahead", counted)
    two = Predictor(Loudness(), SETTINGS, even_views(2), 2, bs=2).predict(paths)
    assert threads_used and list(one.errors) == list(two.errors) == [1]
    np.testing.assert_allclose(one.probs, two.probs, atol=1e-6)


def test_saturated_sigmoids_make_no_ties(clips):
    class Sure(nn.Module):
        """Logits whose sigmoids are all 1 in float32."""

        def forward(self, spec):
            return torch.tensor([20.0, 22.0, 21.0]).expand(len(spec), 3)

    probs = Predictor(Sure(), SETTINGS, build_views("even", 2), 3).predict([clips[0]]).probs[0]
    np.testing.assert_allclose(1 - probs, np.exp([-20.0, -22.0, -21.0]), rtol=1e-6)
    assert np.argsort(-probs).tolist() == [1, 2, 0]


def test_views_that_wait_for_others_of_their_length_are_few(rng):
    waiting, counts = set(), []

    def items():
        for i in range(400):
            waiting.add(i)
            counts.append(len(waiting))
            yield _Clip([ClipViews(torch.zeros(1000 + 7 * i), [Section(0, 1000 + 7 * i)])], False, False)

    owners = []
    for _, index in _view_batches(items(), 2, {}, _Marks([], [])):
        waiting.difference_update(index[:, 0].tolist())
        owners += index[:, 0].tolist()
    assert sorted(owners) == list(range(400)) and max(counts) < 40


def test_a_view_that_waits_does_not_keep_its_clip_in_memory():
    waves = [torch.zeros(100_000) for _ in range(3)]
    clips = [_Clip([ClipViews(wave, [Section(10, 20)])], False, False) for wave in waves]
    (batch, index), = _view_batches(clips, 8, {}, _Marks([], []))
    assert batch.shape == (3, 10) and index.tolist() == [[i, 0, 10, 20] for i in range(3)]
    views = ClipViews(torch.zeros(100_000), [Section(0, 10), Section(5, 15), Section(0, 20)])
    stream = _view_batches(iter([_Clip([views], False, False)]), 2, {}, _Marks([], []))
    waiting = next(stream)[0]
    assert waiting.untyped_storage().nbytes() == 2 * 10 * 4


class Loudness(nn.Module):
    """Logits that depend on the sound of a view alone."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, spec):
        return self.scale * torch.stack([spec.mean((1, 2, 3)), spec.amax((1, 2, 3))], 1)


@pytest.fixture
def clips(tmp_path, rng):
    paths = []
    for k, length in enumerate([SIZE // 2, 3 * SIZE, SIZE, 2 * SIZE + 7]):
        paths.append(tmp_path / f"{k}.wav")
        sf.write(paths[-1], 0.1 * (k + 1) * rng.standard_normal(length).clip(-1, 1), 44100, subtype="PCM_16")
    return paths


def predict(clips, **options):
    return Predictor(Loudness(), SETTINGS, even_views(n=3), 2, **options).predict(clips)


def test_the_prediction_is_the_mean_of_the_sigmoids_of_the_views(clips):
    wave = SETTINGS.read(clips[1])
    model, front_end = Loudness(), SETTINGS.front_end.build()
    views = torch.stack([wave[s:s + SIZE] for s in (0, SIZE, 2 * SIZE)])
    expected = torch.sigmoid(model(front_end(views)[:, None])).mean(0).detach().numpy()
    np.testing.assert_allclose(predict(clips).probs[1], expected, atol=1e-6)


def logit(p):
    return np.log(p / (1 - p))


def test_the_mean_of_logits_is_the_logit_of_the_prediction(clips, tmp_path):
    wave, front_end = SETTINGS.read(clips[1]), SETTINGS.front_end.build()
    views = torch.stack([wave[s:s + SIZE] for s in (0, SIZE, 2 * SIZE)])
    expected = Loudness()(front_end(views)[:, None]).mean(0).detach().numpy()
    np.testing.assert_allclose(logit(predict(clips, average="logits").probs[1]), expected, rtol=1e-5)
    with pytest.raises(OptionError, match="average is 'logit'; did you mean logits"):
        predict(clips, average="logit")


@pytest.mark.parametrize("kind", VIEWS.names())
@pytest.mark.parametrize("average", ["probs", "logits"])
def test_a_clips_prediction_is_the_same_alone_in_any_batch_in_any_order_and_with_workers(clips, kind, average):
    def predict(clips, **options):
        predictor = Predictor(Loudness(), SETTINGS, build_views(kind), 2, average=average, seed=3, **options)
        return predictor.predict(clips).probs

    together = predict(clips, bs=3)
    assert np.unique(together[:, 0].round(4)).size == len(clips), "each clip has its own prediction"
    np.testing.assert_allclose(together, np.concatenate([predict([clip]) for clip in clips]), atol=1e-6)
    for order in ([3, 2, 1, 0], [2, 0, 3, 1]):
        np.testing.assert_allclose(predict([clips[i] for i in order], bs=2), together[order], atol=1e-6)
    np.testing.assert_allclose(predict(clips, num_workers=2), together, atol=1e-6)


def test_a_network_predicts_a_clip_the_same_alone_and_among_others(clips):
    torch.manual_seed(0)
    model = create_model("m1", 5, width=0.125)
    for kind in VIEWS.names():
        together = Predictor(model, SETTINGS, build_views(kind), 5, bs=4).predict(clips).probs
        alone = np.concatenate(
            [Predictor(model, SETTINGS, build_views(kind), 5).predict([clip]).probs for clip in clips[::-1]]
        )
        np.testing.assert_allclose(alone[::-1], together, atol=1e-5)


def test_random_views_follow_the_seed(clips):
    def probs(seed):
        return Predictor(Loudness(), SETTINGS, build_views("random", 2), 2, seed=seed).predict(clips).probs

    assert (probs(1) == probs(1)).all() and (probs(1)[1] != probs(2)[1]).any()


def test_an_unreadable_clip_is_reported_and_the_others_are_predicted(clips):
    clips[2].write_bytes(b"RIFF")
    output = predict(clips, num_workers=2)
    assert list(output.errors) == [2] and "2.wav" in output.errors[2]
    assert np.isnan(output.probs[2]).all() and np.isfinite(output.probs[[0, 1, 3]]).all()


def test_the_model_is_left_in_its_mode(clips):
    model = Loudness().train()
    Predictor(model, SETTINGS, even_views(n=1), 2).predict(clips)
    assert model.training


@pytest.fixture(scope="module")
def learn(small_dls):
    torch.manual_seed(0)
    return fat_learner(small_dls, "m1", width=0.125)


def test_tta_predicts_the_validation_clips_in_their_order(learn):
    preds = learn.tta(n=2)
    assert preds.fnames == tuple(learn.dls.files(1)["fname"]) and preds.tags == learn.tags
    assert ((preds.probs > 0) & (preds.probs < 1)).all()


def test_tta_takes_the_number_of_workers_of_the_loaders(learn, monkeypatch):
    from fatai.inference import predictor

    numbers = []

    class Recorded(predictor.DataLoader):
        def __init__(self, *args, num_workers, **kwargs):
            numbers.append(num_workers)
            super().__init__(*args, num_workers=num_workers, **kwargs)

    monkeypatch.setattr(predictor, "DataLoader", Recorded)
    learn.tta(n=1)
    learn.tta(n=1, num_workers=1)
    assert numbers == [0, 1] == [learn.dls.train.fake_l.num_workers, 1]


def test_the_probabilities_of_every_view_can_be_saved(learn, sample, tmp_path):
    clips = sorted((sample / "test").iterdir())[:3]
    (tmp_path / "broken.wav").write_bytes(b"")
    clips.insert(1, tmp_path / "broken.wav")
    file = tmp_path / "saved" / "views.npz"
    with pytest.warns(UserWarning, match="broken.wav"):
        preds = learn.tta(items=clips, views="tiles", step_s=0.25, bs=2, num_workers=0, save_views=file)
    views = load_views(file)
    assert views.fnames == preds.fnames and views.tags == preds.tags and set(views.clip) == {0, 2, 3}
    for i in (0, 2, 3):
        rows = views.clip == i
        np.testing.assert_allclose(views.probs[rows].mean(0), preds.probs[i], atol=1e-6)
        np.testing.assert_allclose(views.start_s[rows], 0.25 * np.arange(rows.sum()), atol=1e-4)
        np.testing.assert_allclose(views.end_s[rows] - views.start_s[rows], learn.clip_config.crop_s)
    assert list(file.parent.iterdir()) == [file]


def test_an_unknown_option_of_a_kind_of_view_is_an_error(learn):
    with pytest.raises(OptionError, match="kind of view 'tiles' has no option 'n'"):
        learn.tta(views="tiles", n=3)
    with pytest.raises(OptionError, match="'even' has no option 'step_s'"):
        learn.tta(step_s=0.5)


def test_tta_gives_an_unreadable_clip_the_training_prior_and_lists_it(learn, tmp_path, sample):
    (tmp_path / "broken.wav").write_bytes(b"")
    good = next((sample / "test").iterdir())
    with pytest.warns(
        UserWarning, match="1 of 2 clips cannot be read; their row is the training prior.*\n.*broken.wav"
    ):
        preds = learn.tta(items=[tmp_path / "broken.wav", good], n=1)
    assert preds.unreadable == ("broken.wav",) and preds.fnames == ("broken.wav", good.name)
    np.testing.assert_allclose(preds.probs[0], learn.dls.prior())


def test_predict_names_every_tag_best_first(learn, sample):
    clip = next((sample / "test").iterdir())
    scores = learn.predict(clip)
    assert {s.tag for s in scores} == set(learn.tags) and [s.prob for s in scores] == sorted(
        (s.prob for s in scores), reverse=True
    )
    wave = SETTINGS.read(clip).numpy()
    assert {s.tag for s in learn.predict(wave)} == set(learn.tags)
    assert str(clip) and len(repr(TagScores(scores)).splitlines()) == len(scores)


def test_predict_of_a_broken_file_is_a_clear_error(learn, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"")
    with pytest.raises(AudioError, match="broken.wav"):
        learn.predict(tmp_path / "broken.wav")
