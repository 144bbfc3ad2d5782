"""Plots of a learner: tags with intervals, largest losses, Grad-CAM, first filters; with audio players."""

import re

import IPython.display
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.interpret import ClassificationInterpretation

from fatai.data.labels import multi_hot
from fatai.data.show import format_tags
from fatai.errors import DataError, OptionError
from fatai.inference import plots
from fatai.inference.grad_cam import filter_mosaic, first_filters, grad_cam
from fatai.inference.learner import fat_learner
from fatai.inference.predictions import Predictions
from fatai.metrics.ranking import lwlrap, lwlrap_per_class


@pytest.fixture(scope="module")
def learn(small_dls):
    torch.manual_seed(0)
    return fat_learner(small_dls, "m1", width=0.125, precision="fp32")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def played(monkeypatch):
    """Collect the objects that a notebook would display."""
    shown = []
    monkeypatch.setattr(plots, "in_notebook", lambda: True)
    monkeypatch.setattr(IPython.display, "display", shown.append)
    return shown


@pytest.fixture
def preds(learn, rng):
    """Random predictions of the validation clips, in another order."""
    clips = learn.dls.files(1)
    return Predictions(tuple(clips["fname"][::-1]), learn.tags, rng.random((len(clips), len(learn.tags))))


def test_plot_lwlrap_draws_every_tag_at_its_score(learn, preds):
    axis = learn.plot_lwlrap(preds)
    clips = learn.dls.files(1)
    targ, probs = multi_hot(clips["labels"], learn.tags), preds.select(clips["fname"]).probs
    scores = dict(zip(learn.tags, lwlrap_per_class(probs, targ).scores, strict=True))
    names = [re.fullmatch(r"(.*) \((\d+)\)", label.get_text()).groups() for label in axis.get_yticklabels()]
    counts = zip(learn.tags, targ.sum(0), strict=True)
    assert {name: int(n) for name, n in names} == {tag: int(n) for tag, n in counts if n}
    points = next(line for line in axis.lines if line.get_marker() == "o")
    np.testing.assert_allclose(points.get_xdata(), [scores[name] for name, _ in names])
    assert list(points.get_xdata()) == sorted(points.get_xdata()) and list(points.get_ydata()) == sorted(
        axis.get_yticks(), reverse=True
    )
    assert axis.get_legend().get_texts()[0].get_text() == f"all tags: {lwlrap(probs, targ):.3f}"
    ends = [path.vertices[:, 0] for path in axis.collections[0].get_paths()]
    assert all(low <= score <= high for (low, high), score in zip(ends, points.get_xdata(), strict=True))
    assert len(learn.plot_lwlrap(preds, max_tags=2).get_yticks()) == 2


def test_plot_lwlrap_without_predictions_computes_them(learn, monkeypatch):
    calls = []
    predicted = learn.tta(n=1)
    monkeypatch.setattr(type(learn), "tta", lambda self, **options: calls.append(options) or predicted)
    assert learn.plot_lwlrap(n=1) is not None and calls == [{"n": 1}]


def test_top_losses_are_those_of_the_loss(learn, played):
    with learn.no_bar():
        _, _, losses = learn.get_preds(with_loss=True)
        axes = learn.plot_top_losses(3)
    drawn = [float(axis.get_title().rsplit("loss ", 1)[1]) for axis in axes]
    np.testing.assert_allclose(drawn, losses.topk(3).values, atol=0.005)
    rows = learn.dls.files(1)["labels"][losses.topk(3).indices.tolist()]
    for axis, labels in zip(axes, rows, strict=True):
        assert set(axis.get_title().split("\npredicted: ")[0].split("\n")) == set(labels)
        assert axis.get_xlabel() == "seconds" and axis.get_ylabel() == "Hz" and axis.images
        assert re.search(r"predicted: \w+ 0\.\d\d, \w+ 0\.\d\d\n", axis.get_title())
    assert played[0].data.count("<audio") == 3
    with learn.no_bar():
        smallest = learn.plot_top_losses(1, largest=False)
    assert float(smallest[0].get_title().rsplit("loss ", 1)[1]) == pytest.approx(float(losses.min()), abs=0.005)


def test_fastai_interpretation_draws_too(learn):
    with learn.no_bar():
        ClassificationInterpretation.from_learner(learn).plot_top_losses(2)
    assert len([axis for axis in plt.gcf().axes if "loss " in axis.get_title()]) == 2


def test_show_cam_draws_the_heatmap_over_the_spectrogram(learn, played):
    training = learn.model.training
    axes = learn.show_cam(2, tag="Rain")
    assert axes.shape == (2, 2) and learn.model.training == training
    clips = learn.dls.files(1)
    for i, (top, bottom) in enumerate(axes.T):
        wave = learn.clip_config.fit(learn.clip_config.read(clips["path"][i]))
        spec = learn.dls.to_spec.spec(wave[None])
        np.testing.assert_allclose(top.images[0].get_array(), spec[0, 0], atol=1e-5)
        heat = grad_cam(learn.model, spec, learn.tags.index("Rain"))[0]
        np.testing.assert_allclose(bottom.images[1].get_alpha(), 0.8 * heat, atol=1e-5)
        assert bottom.images[0].get_extent() == bottom.images[1].get_extent()
        with torch.no_grad():
            prob = learn.model.eval()(spec).sigmoid()[0, learn.tags.index("Rain")]
        assert bottom.get_title().startswith(f"Rain {prob:.2f}") and top.get_title() == ", ".join(clips["labels"][i])
        assert top.get_xlabel().startswith("seconds") and top.get_ylabel() == "Hz"
    assert played[0].data.count("<audio") == 2


def test_show_cam_covers_the_padding_at_both_sides_of_a_short_clip(learn, tmp_path):
    import soundfile as sf

    config = learn.clip_config
    sf.write(tmp_path / "half.wav", np.random.uniform(-0.5, 0.5, config.crop_samples // 2), config.sr)
    for axis in learn.show_cam(items=[tmp_path / "half.wav"])[:, 0]:
        width = axis.images[0].get_extent()[1]
        spans = [(patch.get_x() / width, patch.get_width() / width) for patch in axis.patches]
        np.testing.assert_allclose(spans, [(0, 0.25), (0.75, 0.25)], atol=1e-4)
        assert axis.get_xlabel() == "seconds (gray: padding)"


def test_show_cam_takes_paths_and_the_likeliest_tag(learn, sample):
    paths = sorted((sample / "test").iterdir())[:1]
    axes = learn.show_cam(items=paths)
    likeliest = learn.predict(paths[0], views="whole")[0]
    assert axes.shape == (2, 1) and axes[0, 0].get_title() == paths[0].name
    assert axes[1, 0].get_title().split("\n")[0] == f"{likeliest.tag} {likeliest.prob:.2f}"


@pytest.mark.parametrize("options, error, message", [
    ({"tag": "rain"}, OptionError, "there is no tag 'rain'; did you mean Rain?"),
    ({"items": []}, DataError, "there is no clip to show"),
])
def test_show_cam_errors(learn, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        learn.show_cam(**options)


def test_plot_filters_shows_the_first_layer(learn):
    axis = learn.plot_filters(4)
    np.testing.assert_allclose(axis.images[0].get_array(), filter_mosaic(first_filters(learn.model), 4))
    assert axis.get_title() == "4 of 8 filters: 3 bands by 3 frames (47 ms)" and axis.images[0].get_clim() == (-1, 1)


def test_a_mosaic_starts_at_the_top_left():
    filters = torch.arange(1.0, 11.0).view(10, 1, 1, 1) * torch.tensor([1.0, -0.5]).view(1, 1, 2, 1)
    mosaic = filter_mosaic(filters)
    # Two rows of filters of two bands and a gap; the second row, of two filters, is the lower one.
    assert mosaic.shape == (5, 15)
    assert mosaic[:, 0].tolist() == [1, -0.5, 0, 1, -0.5] and mosaic[:2, 4].abs().sum() == 0 and mosaic[3, 14] == 1


def test_many_predicted_tags_are_truncated():
    assert format_tags(["a", "b"]) == "a\nb" and format_tags([]) == "no tag"
    assert format_tags(list("abcdef")) == "a\nb\nc\nd\nand 2 more"
