"""Every recipe beside the constants of its published system, written down by hand from the sources."""

import warnings
from importlib.resources import files

import pytest
import torch

from fatai.callbacks.schedulers import one_cycle
from fatai.experiment.build import recipe_parameters
from fatai.experiment.recipe import load_recipe, recipe_names, tomllib
from fatai.experiment.stage import stage_augmentations
from fatai.registry import SCHEDULES

MEAN_OF_PROBS = {"average": "probs", "fold_average": "mean"}
THIRD_FIT = {
    "bs": 20,
    "lr": 5e-3,
    "optimizer": "amsgrad",
    "wd": 0.0,
    "loss": "lsep",
    "loss_options": {},
    "clip_grad_norm": None,
    "clip_grad_value": None,
    "no_aug_epochs": 10,
    "checkpoint": "best",
    "sampling": "shuffle",
    # 1e-4 to 5e-3 over 30 % of the steps, then down to 1e-7, all along straight lines.
    "rates": {0.0: 1e-4, 0.15: 2.55e-3, 0.3: 5e-3, 0.65: 2.50005e-3, 1.0: 1e-7},
}
NINTH_FIT = {
    "epochs": 65,
    "bs": 64,
    "lr": 1e-3,
    "optimizer": "adam",
    "wd": 0.01,
    "no_weight_decay": "bias",
    "clip_grad_value": 1.0,
    "clip_grad_norm": None,
    "loss": "bce",
    "loss_options": {"reduction": "sum"},
    # 5e-5 + 0.001 e / 6.5 for seven epochs, then a cosine of 65 epochs that ends at its 58th step.
    "rates": {0: 5e-5, 3 / 65: 5.1154e-4, 6 / 65: 9.7308e-4, 7 / 65: 1e-3, 64 / 65: 3.70e-5},
}
REFIT = {
    "epochs": 65,
    "bs": 64,
    "lr": 1e-4,
    "optimizer": "adam",
    "wd": 0.01,
    "clip_grad_value": 1.0,
    "noisy_labels": None,
    "reinit": False,
    "schedule": "plateau",
    "schedule_options": {"monitor": "valid_loss", "patience": 3, "factor": 0.1},
    "min_lr_stop": 1e-7,
    "checkpoint": "best_overall",
    "loss_options": {"reduction": "sum"},
    "augment": ("mixup",),
}
KERNEL_FIT = {
    "bs": 64,
    "optimizer": "adamw",
    "sqr_mom": 0.99,
    "wd": 0.01,
    "no_weight_decay": "none",
    "schedule": "one_cycle",
    "loss": "bce",
    "loss_options": {},
    "augment": ("time_reverse", "brightness_contrast"),
    "checkpoint": "last",
    "noisy_labels": None,
    "reinit": False,
}
GOLD_FIT = {
    "bs": 32,
    "lr": 2e-4,
    "lr_min": 1e-4,
    "optimizer": "adamw",
    "sqr_mom": 0.999,
    "wd": 1e-4,
    "clip_grad_norm": 5.0,
    "early_stopping_patience": 3,
    "loss": "smooth_positives",
    "loss_options": {"loss": "bce_class", "eps": 0.05},
    "sampling": "balanced",
    "sampling_options": {"max_repeats": 5},
    "checkpoint": "best",
    "reinit": False,
    "augment": ("repeat_pad", "gain", "noise", "shift", "spec_augment_gold_plan", "mixup_gold_plan"),
    "item_tfms": ("pitch", "stretch"),
}

# What the fact sheet says of each. Front ends: rate, window, hop, bins, lowest and highest Hz; frames of a crop;
# channels; parameters of 80 tags where a count is published or follows from published ones.
SYSTEMS: dict = {
    "ninth_full": {
        "front_end": (44100, 1920, 690, 64, 20, 22050),
        "more": {"top_db": 80, "power": 2, "mean": -35.7, "std": 21.6, "normalize": "global"},
        "crop": (4.0, 256, 60.0, "constant_center", 1),
        "corrupted_files": "drop",
        "folds": ("stratified", 5, 2019, None),
        "seed": 2019,
        "parameters": 26_129_489,
        "tta": {"views": "random", "n": 25, "options": {}, **MEAN_OF_PROBS},
        "stages": [
            {**NINTH_FIT, "checkpoint": "best", "noisy_labels": None, "augment": ("spec_augment", "mixup")},
            {
                **NINTH_FIT,
                "checkpoint": "last",
                "noisy_labels": {"method": "ninth_place_low_loss", "n": 5000, "per_tag": 50},
                "reinit": True,
                "augment": ("spec_augment", "mixup"),
            },
            REFIT,
            REFIT,
        ],
    },
    "fastai_kernel": {
        "front_end": (44100, 2560, 694, 128, 20, 22050),
        "more": {"top_db": 80, "normalize": "image", "power": 2},
        "crop": (2.0, 128, 60.0, "constant_center", 3),
        "corrupted_files": "keep",
        "folds": ("kfold", 5, 2019, (0,)),
        "seed": 2019,
        "parameters": 11_744_832,
        "tta": {"views": "even", "n": 8, "options": {}, **MEAN_OF_PROBS},
        "stages": [
            {**KERNEL_FIT, "epochs": epochs, "lr": lr, "lr_min": first}
            for epochs, lr, first in [
                (5, 0.1, None),
                (10, 0.01, None),
                (20, 3e-3, None),
                (20, 1e-3, None),
                (50, 3e-3, 1e-3),
                (10, 1e-3, 1e-4),
            ]
        ],
    },
    "gold_plan": {
        # The 64 mel of PANNs' weights to 14,000 Hz, where the plan has 16,000.
        "front_end": (32000, 1024, 320, 64, 50, 14000),
        "more": {"top_db": None, "norm": "slaney", "pad_mode": "reflect"},
        "crop": (10.0, 1001, None, "constant_right", 1),
        "corrupted_files": "keep",
        "folds": ("multilabel", 5, 42, None),
        "seed": 42,
        # The published 79,837,712 with a linear map of 2,048 to one number (2,049) before the gate of fc1's size.
        "parameters": 79_839_761,
        "tta": {"views": "varied", "n": 5, "options": {}, "average": "logits", "fold_average": "mean"},
        "stages": [
            {
                **GOLD_FIT,
                "epochs": 20,
                "noisy_labels": None,
                "rates": {0.0: 0.0, 0.025: 1e-4, 0.05: 2e-4, 0.525: 1e-4, 1.0: 0.0},
            },
            {
                **GOLD_FIT,
                "epochs": 4,
                "noisy_labels": {
                    "method": "gold_plan_confidence", "keep_threshold": 0.8, "add_threshold": 0.95, "min_prob": 0.5,
                },
                "noisy_sample_weight": 0.5,
            },
            {**GOLD_FIT, "epochs": 8, "noisy_labels": {"method": "previous"}, "noisy_sample_weight": 1.0},
        ],
    },
    "kaggle_fat_36th": {
        "front_end": (44100, 2048, 441, 128, 20, 22050),
        "more": {
            "power": 1,
            "log": "pcen",
            "pcen_gain": 0.5,
            "pcen_bias": 0.001,
            "pcen_power": 0.2,
            "pcen_time_s": 0.4,
            "pcen_eps": 1e-9,
        },
        "crop": (1.96, 197, 60.0, "wrap_right", 1),
        "corrupted_files": "noisy",
        "folds": ("sliced", 5, 1234, None),
        "seed": 1234,
        "parameters": 11_326_088,
        "tta": {"views": "even", "n": 8, "options": {}, **MEAN_OF_PROBS},
        "stages": [
            {
                "epochs": 216,
                "bs": 128,
                "lr": 0.1,
                "optimizer": "sgd",
                "momentum": 0.9,
                "wd": 1e-4,
                "no_weight_decay": "norm_and_bias",
                "loss": "bce_mass+lovasz",
                "loss_options": {},
                "noisy_labels": {"method": "kaggle_fat_soft_labels", "positive": 0.8},
                "noisy_fold_split": "all",
                "checkpoint": "best",
                "augment": ("spec_augment_kaggle_fat", "mixup_kaggle_fat"),
                # 2,000 of 40,000 steps from a tenth up, then a tenth at 12,000, 24,000 and 36,000.
                "rates": {0.0: 0.01, 0.025: 0.055, 0.05: 0.1, 0.29: 0.1, 0.31: 0.01, 0.61: 1e-3, 0.91: 1e-4},
            }
        ],
    },
    "third_place_2d": {
        "front_end": (44100, 2048, 1024, 128, 5, 22050),
        "more": {"power": 1, "log": "ln", "log_offset": 1e-4, "normalize": "none"},
        "crop": (15.0, 646, None, "constant_right", 2),
        "corrupted_files": "keep",
        "folds": ("multilabel", 5, 42, None),
        "seed": 42,
        "parameters": 9_248_771,
        "tta": {"views": "whole", "n": None, "options": {}, **MEAN_OF_PROBS},
        "stages": [
            {
                **THIRD_FIT,
                "epochs": 100,
                "noisy_labels": None,
                "item_tfms": ("chunk_shuffle",),
                "augment": ("trim_to_longest", "third_place_effects", "mixup_or_third_place"),
            }
        ],
    },
    "third_place_1d": {
        "front_end": (44100, 256, 128, None, 0, 22050),
        "more": {"power": 1, "log": "ln", "log_offset": 1e-4, "normalize": "none"},
        "crop": (15.0, 5168, None, "constant_right", 1),
        "corrupted_files": "keep",
        "folds": ("multilabel", 5, 42, None),
        "seed": 42,
        # The published 4,798,661 are of 128 bins: one more adds 3 weights to each of 100 channels, and the 2 of its own
        # norm.
        "parameters": 4_798_661 + 3 * 100 + 2,
        "tta": {"views": "whole", "n": None, "options": {}, **MEAN_OF_PROBS},
        "stages": [
            {
                **THIRD_FIT,
                "epochs": 100,
                "noisy_labels": None,
                "item_tfms": ("chunk_shuffle",),
                "augment": ("trim_to_longest", "third_place_effects", "mixup_or_third_place"),
            }
        ],
    },
    "third_place_noisy": {
        "front_end": (44100, 2048, 1024, 128, 5, 22050),
        "more": {"power": 1, "log": "ln", "log_offset": 1e-4},
        "crop": (15.0, 646, None, "constant_right", 2),
        "corrupted_files": "keep",
        "folds": ("multilabel", 5, 42, None),
        "seed": 42,
        "parameters": 21_545_583,
        "tta": {"views": "whole", "n": None, "options": {}, **MEAN_OF_PROBS},
        "stages": [
            {
                **THIRD_FIT,
                "epochs": 150,
                "noisy_labels": noisy,
                "reinit": noisy is not None,
                "noisy_fold_split": "all" if noisy is None else "own",
                "item_tfms": ("chunk_shuffle",),
                "augment": ("trim_to_longest", "third_place_effects", "mixup_or_third_place"),
            }
            for noisy in [
                None,
                *({"method": "scoring", "k": k} for k in (1000, 2000, 3000, 4000, 5000)),
                {"method": "third_place_pseudo_labels", "k": 5000},
            ]
        ],
    },
    "first_place": {
        "front_end": (44100, 2560, 690, 128, 20, 22050),
        "more": {"top_db": 80, "std": 100, "mean": 0, "power": 2},
        "crop": (4.0, 256, 60.0, "constant_center", 3),
        "corrupted_files": "relabel",
        "folds": ("kfold", 5, 42, None),
        "seed": 42,
        "parameters": 17_326_950,
        "tta": {
            "views": "tiles", "n": None, "options": {"step_frames": 64}, "average": "probs", "fold_average": "gmean",
        },
        "stages": [
            {
                "epochs": 700,
                "bs": 128,
                "lr": 9e-4,
                "optimizer": "adam",
                "wd": 0.0,
                "early_stopping_patience": 18,
                "checkpoint": "best",
                "schedule": "plateau",
                "schedule_options": {"monitor": "lwlrap", "patience": 6, "factor": 0.6, "min_lr": 1e-8},
                "loss": "split",
                "loss_options": {
                    "curated_loss": "bce",
                    "noisy_loss": "lsoft",
                    "curated_weight": 0.5,
                    "noisy_weight": 0.5,
                },
                "noisy_labels": {"method": "first_place_corrections", "source_weights": {"noisy": 0.2, "curated": 0.8}},
                "sampling": "mixture",
                "sampling_options": {"n": 32768},
                "augment": ("repeat_pad", "random_resized_crop", "spec_augment_first_place", "mixer_first_place"),
            }
        ],
    },
}
SYSTEMS["panns_logreg"] = {
    **SYSTEMS["gold_plan"], "parameters": 79_837_712, "tta": {"views": "even", "n": 1, "options": {}, **MEAN_OF_PROBS},
    "stages": [{"linear_probe": {"C": 2.0, "max_iter": 1000}, "noisy_labels": None, "augment": ()}],
}
_FIRST = SYSTEMS["first_place"]
# Its experiments corrections_002 and 003: no resized crops, mixed a little less often, a third of the draws noisy.
SYSTEMS["first_place_skip"] = {
    **_FIRST,
    "parameters": 16_793_587,
    "stages": [
        {
            **_FIRST["stages"][0],
            "noisy_labels": {"method": "first_place_corrections", "source_weights": {"noisy": 0.33, "curated": 0.67}},
            "mixup": {"name": "mixer_first_place", "p": 0.66},
            "augment": ("repeat_pad", "spec_augment_first_place", "mixer_first_place"),
        }
    ],
}
# ninth is ninth_full's fit stage alone, and has its table in test_recipe.py.
NOT_PUBLISHED = {"default", "finetune", "ninth", "probe", "quick"}


def test_every_published_system_has_its_table():
    assert {name for name in recipe_names() if name not in NOT_PUBLISHED} <= {*SYSTEMS, "esc10"}


@pytest.mark.parametrize("name", [*SYSTEMS, "ninth"])
def test_a_published_system_names_its_channels(name):
    plain = tomllib.loads((files("fatai.recipes") / f"{name}.toml").read_text())
    assert plain["clips"]["channels"] == load_recipe(name).clips.channels, "not those of the loaders, which may change"


@pytest.mark.parametrize("name", SYSTEMS)
def test_front_end_folds_and_views_are_as_published(name):
    recipe, published = load_recipe(name), SYSTEMS[name]
    settings = recipe.settings()
    front_end = settings.front_end
    assert (
        front_end.sr,
        front_end.n_fft,
        front_end.hop_length,
        front_end.n_mels,
        front_end.fmin,
        front_end.max_hz,
    ) == published["front_end"]
    assert {key: getattr(front_end, key) for key in published["more"]} == published["more"]
    channels = settings.channels_module().n_channels
    assert (settings.crop_s, settings.crop_frames, settings.trim_db, settings.pad_mode, channels) == published["crop"]
    assert recipe.clips.corrupted_files == published["corrupted_files"] and recipe.seed == published["seed"]
    assert (recipe.folds.splitter, recipe.folds.n, recipe.folds.seed, recipe.folds.run_folds) == published["folds"]
    assert recipe.tta.model_dump() == published["tta"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_networks_have_the_published_number_of_parameters(name):
    assert recipe_parameters(load_recipe(name), 80) == SYSTEMS[name]["parameters"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_stages_train_as_published(name):
    recipe, published = load_recipe(name), SYSTEMS[name]
    assert len(recipe.stages) == len(published["stages"])
    for stage, expected in zip(recipe.stages, published["stages"], strict=True):
        expected = dict(expected)
        rates, augmentations = expected.pop("rates", {}), expected.pop("augment")
        item_tfms = expected.pop("item_tfms", ())
        assert {key: getattr(stage, key) for key in expected} == expected, stage.name
        assert (
            tuple(augmentation for augmentation, _ in stage_augmentations(stage)) == augmentations
            and tuple(table["name"] for table in stage.item_tfms) == item_tfms
        )
        if rates:
            lr_at = SCHEDULES.build(stage.schedule, stage.epochs, stage.lr, **stage.schedule_options)
            for fraction, lr in rates.items():
                epoch = fraction * stage.epochs + 1e-9
                assert lr_at(epoch) == pytest.approx(lr, rel=1e-3, abs=1e-9), (stage.name, fraction)


def built(name, stage, augmentation):
    return dict(stage_augmentations(load_recipe(name).stages[stage]))[augmentation]


def test_masks_and_mixers_are_as_published():
    masks = {
        name: built(*name).masks
        for name in [
            ("ninth_full", 1, "spec_augment"),
            ("gold_plan", 0, "spec_augment_gold_plan"),
            ("kaggle_fat_36th", 0, "spec_augment_kaggle_fat"),
            ("first_place", 0, "spec_augment_first_place"),
        ]
    }
    told = {key[0]: (m.p, tuple(m.n_masks), m.freq, m.time, m.width, m.fill) for key, m in masks.items()}
    assert told == {
        "ninth_full": (1, (2, 2), 0.15, 0.30, "fraction", "zero"),
        "gold_plan": (1, (2, 2), 21, 0.10, "fraction", "zero"),     # 21 * U(0, 1), rounded down: 20 bins at most
        "kaggle_fat_36th": (1, (2, 2), 0.2, 0.2, "double", "mean"),
        "first_place": (0.5, (1, 2), 0.15, 0.20, "fraction", "min"),
    }
    ninth, gold, fat = (built(*at) for at in [
        ("ninth_full", 2, "mixup"), ("gold_plan", 0, "mixup_gold_plan"), ("kaggle_fat_36th", 0, "mixup_kaggle_fat")])
    assert [(m.lam, m.per, m.p, m.larger, m.labels, m.domain) for m in (ninth, gold, fat)] == [
        (0.4, "batch", 1, False, "linear", "log"),
        (0.4, "clip", 0.5, False, "linear", "log"),
        (0.4, "clip", 1, True, "linear", "log"),
    ]
    third, first = built("third_place_noisy", 3, "mixup_or_third_place"), built("first_place", 0, "mixer_first_place")
    assert (third.p, third.lam, third.labels, third.partner, third.overwrite) == (
        0.5, (0.4, 0.6), "or", "dataset", False,
    )
    assert first.p == 0.8 and first.weights.tolist() == [0.6, 0.4]
    concat, add = first.mixers
    assert concat.steepness == (3, 12) and concat.labels == "or" and add.lam == (0.5, 1.0) and add.labels == "linear"


def test_the_3rd_places_effects_and_the_1st_places_crops_are_as_published():
    effects = built("third_place_2d", 0, "third_place_effects")
    reverb, pitch, overdrive, speed = effects.augmentations
    assert effects.p == 0.75 and (reverb.reverberance, reverb.room_size) == ((0, 49), (0, 49))
    assert (pitch.bounds, overdrive.bounds, speed.bounds) == ((-3, 3), (2, 9), (0.9, 1.1))
    crop = built("first_place", 0, "random_resized_crop")
    # Theirs is of pictures of 128 x 256: 1.7 to 2.3.
    assert (crop.p, crop.scale, [2 * r for r in crop.ratio], crop.n_tries) == (0.33, (0.8, 1.0), [1.7, 2.3], 10)


def test_the_kernels_cycles_are_fastai_v1s():
    stage = load_recipe("fastai_kernel").stages[0]
    scheduler = one_cycle(stage.epochs, stage.lr, **stage.schedule_options)
    lr, mom = scheduler.scheds["lr"], scheduler.scheds["mom"]
    assert [lr(0.0), lr(0.3), lr(1.0)] == pytest.approx([0.1 / 25, 0.1, 0.1 / 2.5e5])
    assert [mom(0.0), mom(0.3), mom(1.0)] == pytest.approx([0.95, 0.85, 0.95])


def test_positives_are_smoothed_and_rare_tags_have_larger_weights(own_dls, tmp_path):
    from fatai.experiment.stage import prepare_stage
    from fatai.inference.learner import fat_learner

    learn = fat_learner(own_dls, "m1", width=0.05, path=tmp_path)
    prepare_stage(learn, load_recipe("gold_plan").stages[0].model_copy(update={"lr_min": None}))
    loss, table = learn.loss_func, own_dls.files(0)
    counts = torch.tensor([sum(tag in labels for labels in table["labels"]) for tag in own_dls.tags]).double()
    weights = counts.rsqrt() / counts.rsqrt().mean()
    logits, targ = torch.zeros(1, len(counts)), torch.zeros(1, len(counts))
    targ[0, 3] = 1
    logits[0, 3] = 2.0
    p = torch.sigmoid(torch.tensor(2.0)).double()
    each = torch.full_like(counts, 0.5).log().neg()
    each[3] = -(0.975 * p.log() + 0.025 * (1 - p).log())
    assert float(loss(logits, targ)) == pytest.approx(float((weights * each).mean()), rel=1e-5)


def test_layers_learn_at_their_own_rates(own_dls, tmp_path):
    from fatai.experiment.stage import fit_stage
    from fatai.inference.learner import fat_learner

    learn = fat_learner(own_dls, "m1", width=0.05, path=tmp_path)
    stage = (
        load_recipe("gold_plan")
        .stages[0]
        .model_copy(
            update={
                "epochs": 1,
                "augment": (),
                "item_tfms": (),
                "mixup": None,
                "schedule": "constant",
                "schedule_options": {},
                "checkpoint": "last",
            }
        )
    )
    with warnings.catch_warnings(), learn.no_bar(), learn.no_logging():
        warnings.simplefilter("ignore")
        fit_stage(learn, stage)
    assert [hyper["lr"] for hyper in learn.opt.hypers] == pytest.approx([1e-4, 2e-4])
    head = sum(p.numel() for p in learn.opt.param_lists[1])
    assert head == sum(p.numel() for p in learn.model.head.parameters())
