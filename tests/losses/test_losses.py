"""Losses: values by hand, a slow float64 reference of each formula, gradients, extremes, weights."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fatai.errors import OptionError, ShapeError, UnknownNameError
from fatai.losses import AuxLoss, ClassBCE, SplitLoss, TagLoss, class_weights, smooth_labels, weighted_loss
from fatai.registry import LOSSES

NAMES = [*LOSSES.names(), "bce+lovasz", "0.5*lsep+bce"]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def slow_bce(x, t):
    p = sigmoid(x)
    return -(t * math.log(p) + (1 - t) * math.log(1 - p))


def tag_means(one, x, t):
    """Return the mean over the tags of `one(logit, target)` for each clip."""
    return [sum(one(a, b) for a, b in zip(u, v, strict=True)) / len(u) for u, v in zip(x, t, strict=True)]


def right_probability(a, b):
    """Return the probability of the target class."""
    return sigmoid(a) if b == 1 else 1 - sigmoid(a)


def rows_bce(x, t):
    return tag_means(slow_bce, x, t)


def rows_focal(x, t, gamma=2.0):
    def one(a, b):
        right = right_probability(a, b)
        return -((1 - right) ** gamma) * math.log(right)

    return tag_means(one, x, t)


def rows_lsep(x, t):
    return [
        math.log(1 + sum(math.exp(u[j] - u[i]) for i in range(len(u)) for j in range(len(u)) if v[j] < v[i]))
        for u, v in zip(x, t, strict=True)
    ]


def rows_lovasz(x, t):
    """Return the Lovasz extension by its definition.

    Errors are taken in falling order, each times the step of the Jaccard loss of the set so far.
    """
    values = []
    for u, v in zip(x, t, strict=True):
        errors = [1 - a * (2 * b - 1) for a, b in zip(u, v, strict=True)]
        order = sorted(range(len(u)), key=lambda k: -errors[k])
        present, value, before = {k for k in range(len(u)) if v[k] == 1}, 0.0, 0.0
        for n in range(1, len(u) + 1):
            wrong = set(order[:n])
            # A wrong present tag is not predicted, a wrong absent one is.
            predicted = (present - wrong) | (wrong - present)
            loss = 1 - len(present & predicted) / len(present | predicted) if present | predicted else 0.0
            value += max(errors[order[n - 1]], 0) * (loss - before)
            before = loss
        values.append(value)
    return values


def rows_gce(x, t, q=0.7):
    return tag_means(lambda a, b: (1 - right_probability(a, b) ** q) / q, x, t)


def rows_sce(x, t):
    # Cross-entropy plus 0.5 times 4 |p - t|: the reverse part with log 0 = -4.
    return tag_means(lambda a, b: slow_bce(a, b) + 0.5 * 4 * abs(sigmoid(a) - b), x, t)


def rows_lsoft(x, t, beta=0.7):
    return tag_means(lambda a, b: slow_bce(a, beta * b + (1 - beta) * sigmoid(a)), x, t)


def rows_lq(x, t, q=0.7):
    return tag_means(lambda a, b: (1 - (sigmoid(a) * b + 1e-7) ** q) / q, x, t)


def rows_mass(x, t):
    mass = [sum(v) for v in t]
    mean = sum(mass) / len(mass)
    return [
        (m / mean if mean else 0) * mean_loss * len(v)
        for m, mean_loss, v in zip(mass, rows_bce(x, t), t, strict=True)
    ]


def smoothed(soften):
    return lambda x, t: rows_bce(x, [[soften(b, len(v)) for b in v] for v in t])


SLOW = {
    "bce": rows_bce,
    "bce_class": rows_bce,
    "focal": rows_focal,
    "lsep": rows_lsep,
    "lovasz": rows_lovasz,
    "gce": rows_gce,
    "sce": rows_sce,
    "lsoft": rows_lsoft,
    "lq": rows_lq,
    "bce_mass": rows_mass,
    "split": lambda x, t: [0.5 * value for value in rows_bce(x, t)],
    "smooth_positives": smoothed(lambda b, k: b * 0.975),
    "smooth_both": smoothed(lambda b, k: 0.9 * b + 0.05),
    "smooth_ninth_place": smoothed(lambda b, k: (1 - 0.4 * (1 + 1 / k)) * b + 0.4 / k),
    "bce+lovasz": lambda x, t: [a + b for a, b in zip(rows_bce(x, t), rows_lovasz(x, t), strict=True)],
    "0.5*lsep+bce": lambda x, t: [0.5 * a + b for a, b in zip(rows_lsep(x, t), rows_bce(x, t), strict=True)],
}


@st.composite
def batches(draw):
    clips, tags = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    logit = st.floats(-9, 9, allow_nan=False).map(lambda v: round(v, 3))
    x = draw(st.lists(st.lists(logit, min_size=tags, max_size=tags), min_size=clips, max_size=clips))
    t = draw(
        st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=tags, max_size=tags), min_size=clips, max_size=clips)
    )
    return x, t


def test_every_loss_has_a_slow_reference():
    assert set(LOSSES.names()) <= set(SLOW)


@pytest.mark.parametrize("name", NAMES)
@given(batch=batches())
@settings(max_examples=40, deadline=None)
def test_loss_equals_its_formula_clip_by_clip(name, batch):
    x, t = batch
    values = LOSSES.build(name, reduction="none")(
        torch.tensor(x, dtype=torch.float64), torch.tensor(t, dtype=torch.float64)
    )
    np.testing.assert_allclose(values.numpy(), SLOW[name](x, t), rtol=1e-9, atol=1e-9)


def test_hand_worked_values():
    logits, targ = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[1.0, 0.0]])  # probabilities 3/4 and 1/2
    value = {n: float(LOSSES.build(n)(logits, targ)) for n in NAMES}
    assert value["bce"] == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert value["focal"] == pytest.approx((math.log(4 / 3) / 16 + math.log(2) / 4) / 2)
    assert value["lsep"] == pytest.approx(math.log(1 + 1 / 3))
    assert value["gce"] == pytest.approx(((1 - 0.75**0.7) + (1 - 0.5**0.7)) / 0.7 / 2)
    assert value["lq"] == pytest.approx(((1 - 0.75**0.7) + (1 - 1e-7**0.7)) / 0.7 / 2, rel=1e-5)
    # Margins 1 - log 3 < 0 and 1: only the absent tag is wrong, |{1}| / |{1, 2}| leaves half.
    assert value["lovasz"] == pytest.approx(0.5)
    assert value["sce"] == pytest.approx(value["bce"] + 0.5 * 4 * (0.25 + 0.5) / 2)


def test_sum_adds_clips_and_tags_as_torch_does():
    logits, targ = torch.randn(3, 5), (torch.rand(3, 5) > 0.5).float()
    torch.testing.assert_close(
        LOSSES.build("bce", reduction="sum")(logits, targ), nn.BCEWithLogitsLoss(reduction="sum")(logits, targ)
    )
    torch.testing.assert_close(LOSSES.build("bce")(logits, targ), nn.BCEWithLogitsLoss()(logits, targ))


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n != "lsoft"]
)  # whose gradient is stopped on purpose: the next test
def test_gradients_are_those_of_the_values(name):
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(3, 5, dtype=torch.float64, generator=generator).requires_grad_()
    targ = (torch.rand(3, 5, generator=generator) > 0.5).double()
    assert torch.autograd.gradcheck(lambda x: LOSSES.build(name)(x, targ), logits)


def test_no_gradient_flows_through_the_predicted_probabilities():
    logits = torch.tensor([[0.3, -2.0]], requires_grad=True)
    targ = torch.tensor([[1.0, 0.0]])
    LOSSES.build("lsoft", beta=0.7)(logits, targ).backward()
    probs = torch.sigmoid(logits.detach())
    torch.testing.assert_close(logits.grad, (probs - (0.7 * targ + 0.3 * probs)) / 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("targ", [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
def test_extremes_stay_finite(name, targ):
    for row in ([1e4, -1e4, 1e4], [-1e4, 1e4, -1e4], [0.0, 0.0, 0.0], [1e4, 1e4, 1e4]):
        logits = torch.tensor([row, [0.1, -0.2, 0.3]], requires_grad=True)
        value = LOSSES.build(name)(logits, torch.tensor([targ, [1.0, 0.0, 0.0]]))
        value.backward()
        assert value.isfinite() and logits.grad.isfinite().all()


def test_a_batch_without_any_label_costs_bce_mass_nothing():
    assert float(LOSSES.build("bce_mass")(torch.randn(3, 4), torch.zeros(3, 4))) == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_of_two_counts_twice_and_zero_not_at_all(name):
    loss = LOSSES.build(name, reduction="none")
    logits, targ = torch.randn(3, 5), (torch.rand(3, 5) > 0.5).float()
    plain = loss(logits, targ)
    torch.testing.assert_close(loss(logits, targ, torch.tensor([2.0, 0.0, 1.0])), plain * torch.tensor([2.0, 0.0, 1.0]))
    loss.set_batch(torch.tensor([[2.0], [0.0], [1.0]]))
    torch.testing.assert_close(loss(logits, targ), plain * torch.tensor([2.0, 0.0, 1.0]))


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_tags_of_one_change_nothing_and_zero_silences_a_tag(name):
    loss = LOSSES.build(name, reduction="none")
    logits, targ = torch.randn(3, 5), (torch.rand(3, 5) > 0.5).float()
    torch.testing.assert_close(loss(logits, targ, torch.ones(3, 5)), loss(logits, targ))
    silent = torch.ones(3, 5)
    silent[:, 2] = 0
    logits.requires_grad_()
    loss(logits, targ, silent).sum().backward()
    assert logits.grad[:, 2].abs().max() < 1e-6


def test_weighted_pairs_of_lsep():
    logits, targ = torch.tensor([[0.5, 1.0, -1.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    weights = torch.tensor([[2.0, 0.5, 3.0]])
    expected = math.log(1 + 2 * 0.5 * math.exp(0.5) + 2 * 3 * math.exp(-1.5))
    for soft in (False, True):
        assert float(LOSSES.build("lsep", soft=soft)(logits, targ, weights)) == pytest.approx(expected)


def test_lsep_of_soft_targets_counts_the_pairs_that_are_in_order():
    x, t = [[0.5, 1.0, -1.0]], [[1.0, 0.4, 0.4]]
    assert float(LOSSES.build("lsep")(torch.tensor(x), torch.tensor(t))) == pytest.approx(rows_lsep(x, t)[0])


def test_half_precision_logits_are_computed_in_float32():
    logits, targ = torch.randn(4, 6), (torch.rand(4, 6) > 0.5).float()
    for name in NAMES:
        loss = LOSSES.build(name)
        value = loss(logits.bfloat16(), targ)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(logits.bfloat16().float(), targ))


@pytest.mark.parametrize("name", NAMES)
def test_probabilities_and_flags(name):
    loss = LOSSES.build(name)
    probs = loss.activation(torch.tensor([[0.0, math.log(3.0)]]))
    assert probs.tolist() == [[0.5, pytest.approx(0.75)]] and loss.decodes(probs).tolist() == [[False, True]]


def test_class_weights_fall_with_the_root_of_the_count_and_have_mean_one():
    weights = class_weights([1, 4, 16, 0])
    np.testing.assert_allclose(weights, np.array([1, 1 / 2, 1 / 4, 1]) / np.mean([1, 1 / 2, 1 / 4, 1]), rtol=1e-6)
    logits, targ = torch.randn(2, 4), torch.ones(2, 4)
    expected = (nn.functional.binary_cross_entropy_with_logits(logits, targ, reduction="none") * weights).mean()
    torch.testing.assert_close(ClassBCE([1, 4, 16, 0])(logits, targ), expected)
    with pytest.raises(ShapeError, match="4 tags; the logits have 3"):
        ClassBCE([1, 4, 16, 0])(torch.zeros(2, 3), torch.zeros(2, 3))


def test_split_uses_the_loss_of_each_flag():
    logits, targ = torch.randn(3, 4), (torch.rand(3, 4) > 0.5).float()
    loss = SplitLoss(curated_weight=0.5, noisy_weight=0.25, reduction="none")
    curated, noisy = (
        LOSSES.build("bce", reduction="none")(logits, targ),
        LOSSES.build("lsoft", reduction="none")(logits, targ),
    )
    loss.set_batch(noisy=torch.tensor([0.0, 1.0, 0.5]))
    expected = torch.stack([0.5 * curated[0], 0.25 * noisy[1], 0.25 * curated[2] + 0.125 * noisy[2]])
    torch.testing.assert_close(loss(logits, targ), expected)
    loss.set_batch()
    torch.testing.assert_close(loss(logits, targ), 0.5 * curated)


def test_split_alone_is_the_loss_of_the_first_place():
    loss = SplitLoss(noisy_loss="bce", reduction="none")
    loss.set_batch(noisy=torch.tensor([0.0, 1.0]))
    half = 0.5 * math.log(2)  # cross-entropy of a logit of 0: log 2
    assert loss(torch.zeros(2, 3), torch.ones(2, 3)).tolist() == pytest.approx([half, half])


def test_auxiliary_outputs_are_weighted_and_the_main_one_predicts():
    main, aux, targ = torch.randn(2, 3), torch.randn(2, 3), torch.ones(2, 3)
    loss, bce = AuxLoss("bce", [1.0, 0.4]), LOSSES.build("bce")
    torch.testing.assert_close(loss((main, aux), targ), bce(main, targ) + 0.4 * bce(aux, targ))
    torch.testing.assert_close(loss(main, targ), bce(main, targ))
    torch.testing.assert_close(loss.activation((main, aux)), torch.sigmoid(main))
    with pytest.raises(ShapeError, match="3 outputs; expected 2"):
        loss((main, aux, aux), targ)
    with pytest.raises(ShapeError, match="AuxLoss"):
        bce((main, aux), targ)


def test_reduction_and_weights_of_an_auxiliary_loss_are_those_of_the_inner_loss():
    loss = AuxLoss("bce", [1.0])
    loss.reduction = "none"
    weighted_loss(loss).set_batch(torch.tensor([2.0, 1.0]))
    assert weighted_loss(loss) is loss.loss and (loss.loss.reduction, loss.reduction) == ("none", "none")
    main, targ = torch.randn(2, 3), torch.ones(2, 3)
    torch.testing.assert_close(
        loss((main,), targ), LOSSES.build("bce", reduction="none")(main, targ) * torch.tensor([2.0, 1.0])
    )


def test_an_auxiliary_loss_accepts_any_function():
    loss = AuxLoss(nn.functional.binary_cross_entropy_with_logits, [1.0, 1.0])
    main, targ = torch.zeros(1, 2), torch.ones(1, 2)
    assert float(loss((main, main), targ)) == pytest.approx(2 * math.log(2))
    assert not hasattr(loss, "reduction") and loss.decodes(torch.tensor([0.7])).tolist() == [True]


def test_labels_are_smoothed_as_published():
    targ = torch.tensor([[1.0] + [0.0] * 79])
    assert smooth_labels(targ, 0.05, mode="positives")[0, :2].tolist() == [pytest.approx(0.975), 0]
    assert smooth_labels(targ, 0.3, mode="both")[0, :2].tolist() == [pytest.approx(0.85), pytest.approx(0.15)]
    assert smooth_labels(targ, 0.4, mode="ninth_place")[0, :2].tolist() == [pytest.approx(0.6), pytest.approx(0.005)]


@pytest.mark.parametrize("build, words", [
    (lambda: LOSSES.build("bce", reduction="avg"), "mean, sum, none"),
    (lambda: LOSSES.build("gce", q=0), "q is 0"),
    (lambda: LOSSES.build("focal", gamma=-1), "gamma is -1"),
    (lambda: LOSSES.build("lsoft", beta=2), "beta is 2"),
    (lambda: LOSSES.build("sce", log_zero=1), "log_zero is 1"),
    (lambda: LOSSES.build("bce+lovasz", weights=[1.0]), "1 weights for 2 losses"),
    (lambda: LOSSES.build("bce+-1*lovasz"), "factor"),
    (lambda: LOSSES.build("bce+"), "not a sum of names"),
    (lambda: LOSSES.build("smooth_both", eps=1.5), "eps is 1.5"),
    (lambda: smooth_labels(torch.zeros(1, 2), 0.1, mode="some"), "positives, both, ninth_place"),
    (lambda: SplitLoss(nn.BCEWithLogitsLoss()), "TagLoss"),
    (lambda: class_weights([-1, 2]), "counts must be"),
])
def test_options_out_of_range_are_named(build, words):
    with pytest.raises(OptionError, match=words):
        build()


def test_an_unknown_part_of_a_sum_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean lovasz"):
        LOSSES.build("bce+lovas")


@pytest.mark.parametrize("logits, targ, w, words", [
    ((2, 3), (2, 4), None, r"\(2, 3\) and targets \(2, 4\)"), ((3,), (3,), None, r"expected \(batch, tags\)"),
    ((2, 3), (2, 3), (3,), "one number for each of the 2 clips"),
])
def test_shapes_that_do_not_fit_are_named(logits, targ, w, words):
    with pytest.raises(ShapeError, match=words):
        LOSSES.build("bce")(torch.zeros(logits), torch.zeros(targ), None if w is None else torch.ones(w))


def test_a_loss_without_a_formula_raises():
    with pytest.raises(NotImplementedError, match="TagLoss defines no per_clip"):
        TagLoss()(torch.zeros(1, 2), torch.zeros(1, 2))


@pytest.mark.parametrize("name", ["bce", "focal", "lovasz", "split"])
def test_a_loss_is_one_compiled_graph(name):
    torch.compiler.reset()
    loss, logits, targ = LOSSES.build(name), torch.randn(4, 6), (torch.rand(4, 6) > 0.5).float()
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, targ), loss(logits, targ))
