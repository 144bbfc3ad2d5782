"""`fat_learner`: from data and the name of a model to a learner."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

from fatai.all import (
    ClipGradValue,
    FATDataLoaders,
    LRSchedulerCallback,
    MixUpOr,
    PlainProgress,
    SpecAugment,
    TerminateOnNaN,
    TimeReverse,
    augmentation_callbacks,
    fat_learner,
    lwlrap,
    quiet_unless_terminal,
)
from fatai.callbacks.failure import NonFiniteError
from fatai.data.show import show_results
from fatai.data.tensors import TensorSpec
from fatai.errors import DataError, OptionError, UnknownNameError


@pytest.fixture
def learn(small_dls):
    return fat_learner(small_dls, "m1", width=0.125)


def fit(learn, epochs=1, lr=1e-3, **options):
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, lr, **options)


def test_a_learner_beats_chance_within_seconds(own_dls, sample):
    torch.manual_seed(0)
    learn = fat_learner(own_dls, "m1", width=0.25)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(8, 3e-3)
    preds = learn.tta(n=2)
    assert preds.score(sample / "train_curated.csv", partial=True) > 0.5, "chance is about 0.3"


def test_lwlrap_of_an_epoch_is_that_of_the_whole_validation_set(learn):
    fit(learn)
    of_the_epoch = learn.recorder.values[-1][2]
    probs, targ = learn.get_preds()
    assert of_the_epoch == pytest.approx(lwlrap(probs.numpy(), targ.numpy()), abs=1e-6)


def test_the_network_gets_its_channels_and_tags_from_the_data(sample):
    dls = FATDataLoaders.from_path(sample, crop_s=0.5, channels="deltas", bs=4, seed=0, num_workers=0)
    learn = fat_learner(dls, "m1", width=0.125)
    assert next(p for p in learn.model.parameters() if p.ndim == 4).shape[1] == 3
    assert learn.model(dls.one_batch()[0].as_subclass(torch.Tensor)).shape == (4, 10)


def test_lr_find_suggests_and_leaves_the_weights_unchanged(learn):
    before = learn.model.state_dict()["head.0.weight"].clone() if "head.0.weight" in learn.model.state_dict() else None
    with learn.no_bar():
        found = learn.lr_find(num_it=30, show_plot=False)
    assert 1e-7 < found.valley < 10
    assert before is None or torch.equal(before, learn.model.state_dict()["head.0.weight"])


def test_show_results_draws_true_and_predicted_tags(learn):
    learn.show_results(max_n=2)
    titles = [a.get_title() for a in plt.gcf().axes if a.get_title()]
    assert len(titles) == 2 and all("predicted: " in t and t.count("\n") == 1 for t in titles)
    plt.close("all")


@pytest.mark.parametrize(("predicted", "line", "color"), [
    (["Bark", "Meow"], "✓ predicted: Bark, Meow", "#00704d"),
    ([], "✗ predicted: no tag", "#b34a00"),
    (["Male_speech", "Female_speech", "Child_speech"], "✗ predicted: Male_speech, Female_speech, …", "#b34a00"),
])
def test_titles_of_results_have_two_lines_and_the_color_of_right_or_wrong(predicted, line, color):
    x = TensorSpec(torch.zeros(1, 1, 4, 6))
    axis, = show_results(x, None, [(x[0], ["Meow", "Bark"])], [(predicted,)])
    assert axis.get_title() == f"Meow, Bark\n{line}" and axis.title.get_color() == color
    plt.close("all")


@pytest.mark.parametrize(
    "no_weight_decay, decayed",
    [
        ("norm_and_bias", lambda name, p: p.ndim > 1),
        ("bias", lambda name, p: "bias" not in name),
        ("none", lambda name, p: True),
    ],
)
def test_weight_decay_skips_the_chosen_parameters(small_dls, no_weight_decay, decayed):
    learn = fat_learner(small_dls, "m1", width=0.125, no_weight_decay=no_weight_decay)
    learn.create_opt()
    for name, p in learn.model.named_parameters():
        if "prelu" in name.lower() or (p.ndim == 1 and p.numel() == 1):
            continue        # fastai counts PReLU's one slope as neither norm nor bias
        assert learn.opt.state[p].get("do_wd", True) == decayed(name, p), name


def test_gradients_are_clamped_element_by_element(learn):
    seen = []

    class Record(ClipGradValue):
        order = ClipGradValue.order + 1

        def before_step(self):
            seen.append(max(float(p.grad.abs().max()) for p in self.learn.model.parameters()))

    fit(learn, cbs=[ClipGradValue(1e-4), Record(1.0)])
    assert seen and max(seen) == pytest.approx(1e-4)


def test_a_schedule_is_followed_batch_by_batch(learn):
    follow = LRSchedulerCallback(lambda t: 1e-3 * (1 + t))
    fit(learn, epochs=2, cbs=follow)
    n = len(learn.dls.train)
    assert follow.hps["lr"] == pytest.approx([1e-3 * (1 + e + i / n) for e in range(2) for i in range(n)])
    assert learn.opt.hypers[-1]["lr"] == pytest.approx(follow.hps["lr"][-1])


def test_a_loss_of_nan_stops_the_fit_with_an_error(learn):
    with torch.no_grad():
        next(learn.model.parameters()).fill_(float("nan"))
    with pytest.raises(
        NonFiniteError, match=r"epoch 0, batch 0 \(its files: .*\); the weights are .*: lower the learning rate"
    ):
        fit(learn, cbs=TerminateOnNaN())


def test_without_a_terminal_an_epoch_is_one_line(learn, capsys):
    quiet_unless_terminal(learn)
    learn.fit(2, 1e-4)
    learn.get_preds()
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == 2
        and all("train_loss" in line and "lwlrap" in line for line in lines)
        and lines[1].startswith("epoch 1")
    )
    assert sum(isinstance(cb, PlainProgress) for cb in quiet_unless_terminal(learn).cbs) == 1


def test_a_module_or_a_function_serves_as_arch(small_dls):
    class Net(nn.Module):
        def __init__(self, n_tags, in_channels):
            super().__init__()
            self.out = nn.Linear(in_channels, n_tags)

        def forward(self, spec):
            return self.out(spec.mean((2, 3)))

    for arch in (Net, Net(10, 1)):
        fit(fat_learner(small_dls, arch))


def test_mixing_and_masking_by_name_or_as_given(small_dls):
    options = {"mixup": "mixup_or", "spec_augment": "spec_augment", "augment": ["time_reverse"]}
    by_name = fat_learner(small_dls, "m1", width=0.125, **options)
    options = {"mixup": MixUpOr(), "spec_augment": SpecAugment(), "augment": [TimeReverse()]}
    given = fat_learner(small_dls, "m1", width=0.125, **options)
    for learn in (by_name, given):
        kinds = [type(cb) for cb in augmentation_callbacks(learn)]
        assert {MixUpOr, SpecAugment, TimeReverse} == set(kinds) and len(kinds) == 3
        fit(learn)
    with pytest.raises(UnknownNameError, match="did you mean mixup_or"):
        fat_learner(small_dls, "m1", mixup="mixup_orr")


def test_a_network_for_a_number_of_mels_takes_that_of_the_data(sample):
    dls = FATDataLoaders.from_path(sample, front_end="kaggle_fat", crop_s=0.5, bs=4, seed=0, num_workers=0)
    learn = fat_learner(dls, "cnn6", width=0.125)
    assert learn.model.n_mels == 128
    with torch.no_grad():
        assert learn.model.eval()(dls.one_batch()[0].as_subclass(torch.Tensor)).shape == (4, 10)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"arch": "m9"}, UnknownNameError, "no model named 'm9'"),
        ({"loss_func": "bec"}, UnknownNameError, "did you mean bce"),
        ({"no_weight_decay": "biases"}, OptionError, "did you mean bias"),
        ({"arch_options": {"wdth": 1}}, OptionError, "wdth"),
    ],
)
def test_unknown_names_are_errors(small_dls, options, error, message):
    with pytest.raises(error, match=message):
        fat_learner(small_dls, **{"arch": "m1", **options})


def test_other_loaders_are_an_error():
    with pytest.raises(DataError, match="FATDataLoaders.from_path"):
        fat_learner(np.zeros(3), "m1")
