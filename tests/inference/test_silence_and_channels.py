"""Silent clips and several channels, predicted and tagged: known answers of a network that measures loudness."""

import json
import warnings

import numpy as np
import pytest
import soundfile as sf
import torch
from torch import nn

from fatai.data.config import ClipConfig
from fatai.errors import AudioError, OptionError
from fatai.inference.events.formats import write_events
from fatai.inference.events.progress_log import FileEvents, read_event_log
from fatai.inference.events.segments import ChannelEvent
from fatai.inference.events.tagger import SlidingWindowTagger
from fatai.inference.predictor import Predictor
from fatai.inference.tta import predict_clip, with_priors
from fatai.inference.views import even_views
from fatai.web.tagging import tag_upload
from fatai.web.uploads import Limits, Upload

SR = 44100
SETTINGS = ClipConfig(crop_s=0.2, trim_db=None)
PRIOR = np.array([0.75, 0.125])
NOISE = (0.25 * np.random.default_rng(3).uniform(-1, 1, SR)).astype(np.float32)


class Loud(nn.Module):
    """The logit of "Loud" is high where the mean level is; that of "Never" is always low."""

    def forward(self, spec):
        return torch.stack([6 * (spec.mean((1, 2, 3)) - 0.5), torch.full((len(spec),), -9.0)], 1)


def predictor(**settings):
    return Predictor(Loud(), ClipConfig(crop_s=0.2, trim_db=None, **settings), even_views(4), 2)


def tagger(prior=PRIOR, **settings):
    config = ClipConfig(crop_s=0.2, trim_db=None, **settings)
    return SlidingWindowTagger([Loud()], ["Loud", "Never"], config, prior=prior)


@pytest.fixture
def write(tmp_path):
    def write(name, *channels):
        sf.write(tmp_path / name, np.stack(channels, 1), SR, subtype="FLOAT")
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("silence", [0 * NOISE, 0 * NOISE + 0.3, 0.003 * NOISE])
def test_a_silent_clip_has_the_prior_in_predictions_in_the_tagger_and_on_the_page(write, tmp_path, silence):
    paths = [write("a.wav", NOISE), write("b.wav", silence)]
    output = predictor().predict(paths)
    assert output.silent == (1,) and not output.errors
    with pytest.warns(UserWarning, match=r"1 of 2 clips are silent .* training prior of each tag.*b\.wav"):
        preds = with_priors(["a.wav", "b.wav"], ["Loud", "Never"], output, PRIOR)
    assert preds.silent == ("b.wav",) and preds.probs[1].tolist() == PRIOR.tolist() and preds.probs[0, 0] > 0.9
    assert preds.select(["b.wav"]).silent == ("b.wav",)
    with pytest.warns(UserWarning, match=r"b\.wav: silent .* training prior"):
        steps = list(tagger().frame_probs(paths[1]))
    assert len(steps) == 10 and steps[-1].end_s == 1
    assert all(step.is_silent and step.probs.tolist() == PRIOR.tolist() for step in steps)
    with pytest.warns(UserWarning, match="there are no events"):
        assert tagger().tag(paths[1], threshold=0.5) == []
    with pytest.warns(UserWarning, match="silent"):
        page = tag_upload(tagger(), Upload("b.wav", tmp_path / "b.wav"), Limits())
    assert page["silent"] is True and page["tags"][0] == {"tag": "Loud", "probs": [0.75] * 10, "threshold": None}
    assert tag_upload(tagger(), Upload("a.wav", tmp_path / "a.wav"), Limits())["silent"] is False


def test_without_a_prior_the_notices_say_so(write):
    path = write("b.wav", 0 * NOISE)
    output = predictor().predict([path])
    with pytest.warns(UserWarning, match="that of the network, since no training prior is stored"):
        preds = with_priors(["b.wav"], ["Loud", "Never"], output, None)
    np.testing.assert_array_equal(preds.probs, output.probs)
    with pytest.warns(UserWarning, match="0, since no training prior is stored"):
        assert not any(step.probs.any() for step in tagger(prior=None).frame_probs(path))


def test_silence_before_and_after_a_sound_stays_without_tags():
    silence = 0 * NOISE
    steps = list(tagger().frame_probs(np.concatenate([silence, NOISE, silence])))
    probs = np.array([step.probs[0] for step in steps])
    assert len(steps) == 30 and not any(step.is_silent for step in steps)
    assert not probs[:9].any() and not probs[21:].any() and (probs[10:20] > 0.4).all()
    np.testing.assert_allclose([step.start_s for step in steps], np.arange(30) / 10, atol=1e-9)


def test_one_silent_clip_is_predicted_by_the_prior():
    with pytest.warns(UserWarning, match="the given samples"):
        assert predict_clip(predictor(), 0 * NOISE, ["Loud", "Never"], lambda: PRIOR).tolist() == PRIOR.tolist()


@pytest.mark.parametrize("offset", [0.02, 0.3])
def test_an_offset_changes_no_prediction(write, offset):
    sound = np.concatenate([np.zeros(SR // 2, np.float32), NOISE])
    paths = [write("a.wav", sound), write("dc.wav", sound + np.float32(offset))]
    plain, shifted = predictor().predict(paths).probs
    np.testing.assert_allclose(shifted, plain, atol=1e-3)
    plain, shifted = ([step.probs for step in tagger().frame_probs(path)] for path in paths)
    np.testing.assert_allclose(shifted, plain, atol=1e-3)


def test_opposite_phase_is_predicted_as_the_plain_clip(write):
    paths = [write("a.wav", NOISE), write("b.wav", NOISE, -NOISE), write("c.wav", 0 * NOISE, NOISE)]
    with pytest.warns(UserWarning, match="the loudest, is taken") as caught:
        probs = predictor().predict(paths).probs
        tagged = [[step.probs for step in tagger().frame_probs(path)] for path in paths]
    assert len([w for w in caught if "is taken" in str(w.message)]) == 2
    np.testing.assert_array_equal(probs[1:], probs[:1].repeat(2, 0))
    np.testing.assert_array_equal(tagged[1:], [tagged[0]] * 2)


def test_a_channel_is_chosen_in_predictions_and_in_the_tagger(write):
    path = write("a.wav", 0.01 * NOISE, NOISE)
    for channel, low, high in ((1, 0, 0.1), (2, 0.9, 1)):
        assert low <= predictor(channel=channel).predict([path]).probs[0, 0] <= high
        assert all(low <= step.probs[0] <= high for step in tagger(channel=channel).frame_probs(path))
    assert "channel 3 was asked for" in predictor(channel=3).predict([path]).errors[0]
    with pytest.raises(AudioError, match=r"a\.wav: channel 3 was asked for, and the file has 2 channels"):
        tagger(channel=3).tag(path)


def test_each_channel_is_predicted_and_their_views_are_averaged(write):
    other = NOISE[::-1].copy() * 0.02
    path = write("a.wav", NOISE, other)
    alone = [predictor(channel=k).predict([path]).probs for k in (1, 2)]
    found = []
    probs = predictor(channel="each").predict([path], on_views=lambda index, _: found.extend(index.tolist())).probs
    np.testing.assert_allclose(probs, np.mean(alone, axis=0), atol=1e-7)
    assert sorted(row[1] for row in found) == list(range(8))


def test_each_channel_is_tagged_apart(write, tmp_path):
    silence = 0 * NOISE
    path = write("a.wav", np.concatenate([NOISE, silence]), np.concatenate([silence, NOISE]))
    each = tagger(channel="each")
    events = each.tag(path)
    assert [(type(e), e.tag, e.channel) for e in events] == [(ChannelEvent, "Loud", 1), (ChannelEvent, "Loud", 2)]
    assert events[0].end_s == pytest.approx(1, abs=0.11) and events[1].start_s == pytest.approx(1, abs=0.11)
    assert each.tag(np.stack(sf.read(path, dtype="float32")[0].T)) == events
    both = [step.probs for step in each.frame_probs(path)]
    alone = [[step.probs for step in tagger(channel=k).frame_probs(path)] for k in (1, 2)]
    np.testing.assert_allclose(both, np.mean(alone, axis=0))
    each.tag_files([path], tmp_path / "log")
    assert list(read_event_log(tmp_path / "log")) == [FileEvents(path, events)]


def test_events_of_channels_in_every_format(tmp_path):
    results = [FileEvents("a.wav", [ChannelEvent(0.5, 1.0, "Bark", 0.75, 2)])]
    texts = {}
    for file_format in ("csv", "json", "audacity", "raven"):
        write_events(tmp_path / file_format, results, file_format, channels=True)
        texts[file_format] = (tmp_path / file_format).read_text()
    assert texts["csv"] == "file,start_s,end_s,tag,prob,channel\na.wav,0.500,1.000,Bark,0.7500,2\n"
    assert json.loads(texts["json"])["files"][0]["events"][0]["channel"] == 2
    assert texts["audacity"] == "0.500\t1.000\tBark 0.75 channel 2\n"
    header, row = (line.split("\t") for line in texts["raven"].splitlines())
    assert row[header.index("Channel")] == "2"


def test_each_is_no_choice_of_training(write):
    with pytest.raises(OptionError, match="channel is 'each', which only predictions take"):
        ClipConfig(channel="each").read(write("a.wav", NOISE))


def test_a_clip_with_sound_is_no_guess():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert predict_clip(predictor(), NOISE, ["Loud", "Never"], lambda: PRIOR)[0] > 0.9
