"""Views of a clip, and what becomes of their answers."""

import numpy as np
import pytest
import soundfile as sf
import torch
from torch import nn

from fatai.data.blocks import ClipSettings
from fatai.errors import AudioError, OptionError
from fatai.infer.tta import TagScores, _batches, even_views, predict_clips, random_views, whole_view
from fatai.train.learner import fat_learner

SETTINGS = ClipSettings(crop_s=0.1, trim_db=None)
SIZE = SETTINGS.crop_samples


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def starts(views, length, seed=0):
    return views(torch.arange(float(length)), SETTINGS, generator(seed))[:, 0].int().tolist()


def test_even_views_run_from_the_first_sample_to_the_last():
    assert starts(even_views(n=5), SIZE + 100) == [0, 25, 50, 75, 100]
    assert starts(even_views(n=1), SIZE + 100) == [50], "one alone is the middle"


def test_random_views_repeat_under_a_seed_and_stay_inside():
    drawn = starts(random_views(n=50), SIZE + 3)
    assert drawn == starts(random_views(n=50), SIZE + 3) and set(drawn) == {0, 1, 2, 3}
    assert drawn != starts(random_views(n=50), SIZE + 3, seed=1)


@pytest.mark.parametrize("views", [even_views(n=8), random_views(n=8)])
def test_a_clip_no_longer_than_a_crop_has_one_view(views):
    assert len(starts(views, SIZE)) == 1
    assert views(torch.ones(10), SETTINGS, generator()).shape == (1, SIZE)


def test_the_whole_clip_is_filled_up_to_the_next_step():
    views, step = whole_view(step_s=0.1), SIZE
    for length, filled in ((SIZE // 2, SIZE), (SIZE, SIZE), (2 * SIZE + 1, 3 * SIZE), (3 * step, 3 * step)):
        assert views(torch.ones(length), SETTINGS, generator()).shape == (1, filled)
    with pytest.raises(OptionError, match="a clip has one whole"):
        whole_view(n=2)
    with pytest.raises(OptionError, match="step_s is 0"):
        whole_view(step_s=0)


def test_whole_clips_share_batches_with_those_of_their_length_and_answer_as_if_alone(clips):
    batches = []

    class Watched(Loudness):
        def forward(self, spec):
            batches.append(len(spec))
            return super().forward(spec)

    order = [0, 1, 2, 3, 0, 1, 2, 3]
    views = whole_view(step_s=0.1)
    together = predict_clips(Watched(), SETTINGS, [clips[i] for i in order], 2, views=views, bs=4)
    # Lengths in steps: 1, 3, 1, 3. Two lengths, four clips each; three steps leave room for 4 // 3 = 1 clip.
    assert sorted(batches) == [1, 1, 1, 1, 4]
    for row, i in zip(together.probs, order):
        np.testing.assert_allclose(row, predict_clips(Loudness(), SETTINGS, [clips[i]], 2, views=views).probs[0], atol=1e-6)


def test_views_that_wait_for_others_of_their_length_are_few(rng):
    held, most = set(), []

    def items():
        for i in range(400):
            held.add(i)
            most.append(len(held))
            yield torch.zeros(1, 1000 + 7 * i)

    owners = []
    for _, batch in _batches(items(), 2, {}):
        held.difference_update(batch.tolist())
        owners += batch.tolist()
    assert sorted(owners) == list(range(400)) and max(most) < 40


def test_no_view_at_all_is_refused():
    with pytest.raises(OptionError, match="n is 0"):
        even_views(n=0)


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


def answer(clips, **options):
    return predict_clips(Loudness(), SETTINGS, clips, 2, views=even_views(n=3), **options)


def test_the_answer_is_the_mean_of_the_sigmoids_of_the_views(clips):
    wave = SETTINGS.read(clips[1])
    model, front_end = Loudness(), SETTINGS.front_end.build()
    views = torch.stack([wave[s:s + SIZE] for s in (0, SIZE, 2 * SIZE)])
    expected = torch.sigmoid(model(front_end(views)[:, None])).mean(0).detach().numpy()
    np.testing.assert_allclose(answer(clips).probs[1], expected, atol=1e-6)


@pytest.mark.parametrize("options", [{"bs": 1}, {"bs": 2}, {"num_workers": 2}])
def test_a_clips_answer_depends_neither_on_its_batch_nor_on_workers(clips, options):
    np.testing.assert_allclose(answer(clips, **options).probs, answer(clips).probs, atol=1e-6)
    np.testing.assert_allclose(answer(clips[::-1]).probs[::-1], answer(clips).probs, atol=1e-6)


def test_an_unreadable_clip_is_reported_and_the_others_answered(clips):
    clips[2].write_bytes(b"RIFF")
    answers = answer(clips, num_workers=2)
    assert list(answers.faults) == [2] and "2.wav" in answers.faults[2]
    assert np.isnan(answers.probs[2]).all() and np.isfinite(answers.probs[[0, 1, 3]]).all()


def test_the_model_is_left_in_its_mode(clips):
    model = Loudness().train()
    predict_clips(model, SETTINGS, clips, 2, views=even_views(n=1))
    assert model.training


@pytest.fixture(scope="module")
def learn(small_dls):
    torch.manual_seed(0)
    return fat_learner(small_dls, "m1", width=0.125)


def test_tta_answers_for_the_validation_clips_in_their_order(learn):
    preds = learn.tta(n=2)
    assert preds.fnames == tuple(learn.dls.files(1)["fname"]) and preds.tags == learn.tags
    assert ((preds.probs > 0) & (preds.probs < 1)).all()


def test_tta_gives_an_unreadable_clip_the_training_prior_and_lists_it(learn, tmp_path, sample):
    (tmp_path / "broken.wav").write_bytes(b"")
    good = next((sample / "test").iterdir())
    with pytest.warns(UserWarning, match="1 of 2 clips cannot be read; their row is the training prior.*\n.*broken.wav"):
        preds = learn.tta(items=[tmp_path / "broken.wav", good], n=1)
    assert preds.unreadable == ("broken.wav",) and preds.fnames == ("broken.wav", good.name)
    np.testing.assert_allclose(preds.probs[0], learn.dls.prior())


def test_predict_names_every_tag_best_first(learn, sample):
    clip = next((sample / "test").iterdir())
    scores = learn.predict(clip)
    assert {s.tag for s in scores} == set(learn.tags) and [s.prob for s in scores] == sorted((s.prob for s in scores), reverse=True)
    wave = SETTINGS.read(clip).numpy()
    assert {s.tag for s in learn.predict(wave)} == set(learn.tags)
    assert str(clip) and len(repr(TagScores(scores)).splitlines()) == len(scores)


def test_predict_of_a_broken_file_is_a_clear_error(learn, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"")
    with pytest.raises(AudioError, match="broken.wav"):
        learn.predict(tmp_path / "broken.wav")
