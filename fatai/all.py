"""Import everything that a notebook needs: `from fatai.all import *`.

Brings fastai's own vocabulary (`fastai.basics` and its callbacks) and the names of fatai that users type: data loaders,
learner, augmentations, losses, callbacks, metrics, predictions, ensembles, recipes and the registries. Everything else
is imported from the module that defines it.
"""

import warnings

from fatai.io.lazy import collection_paused

_OURS = ("collection_paused", "warnings")

with collection_paused():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
        from fastai.basics import *
        from fastai.callback.all import *

    FASTAI_NAMES = tuple(name for name in globals() if not name.startswith("_") and name not in _OURS)

    from fatai.audio.front_ends import FrontEnd, front_end
    from fatai.audio.io import audio_info, load_audio, save_audio
    from fatai.audio.stream import stream_audio
    from fatai.audio.waveform import fit_length, resample
    from fatai.augment.base import augmentation_callbacks, set_augmentation
    from fatai.augment.item import ItemAugmentations
    from fatai.augment.mixup import BetweenClass, LinearMixUp, MixUpOr, OneOfMixers, SigmoidConcat
    from fatai.augment.padding import RepeatPad, TrimToLongest
    from fatai.augment.show import show_augs
    from fatai.augment.spec import BrightnessContrast, RandomResizedCrop, RandomTimeCrop, TimeReverse, TimeWarp
    from fatai.augment.spec_augment import SpecAugment
    from fatai.augment.wave import (
        AddNoise, ChunkShuffle, Cutout, Gain, Overdrive, PitchShift, Reverb, Shift, SpeedPerturb, TimeStretch,
        WaveChain,
    )
    from fatai.callbacks.augmentation import DisableAugmentation
    from fatai.callbacks.averaging import WeightAverage
    from fatai.callbacks.checkpoint import SaveBestModel, SaveSnapshots
    from fatai.callbacks.csv_logger import EpochCSVLogger
    from fatai.callbacks.failure import SplitBatchOnOOM, TerminateOnNaN
    from fatai.callbacks.gradients import ClipGradValue
    from fatai.callbacks.layer_decay import LayerDecay
    from fatai.callbacks.progress import PlainProgress, quiet_unless_terminal
    from fatai.callbacks.resume import ResumeTraining
    from fatai.callbacks.sample_weights import SampleWeights
    from fatai.callbacks.schedulers import LRSchedulerCallback, StopAtLR, schedule_callback
    from fatai.data.audit.dataset import check_dataset
    from fatai.data.blocks import AudioBlock, FATDataLoaders, SpectrogramBlock
    from fatai.data.cache import ClipCache
    from fatai.data.config import ClipConfig
    from fatai.data.datasets.download import download
    from fatai.data.datasets.fat2019 import FATDataset, fat_sample, load_dataset
    from fatai.data.folds import find_leaks, make_folds
    from fatai.data.labels import apply_corrections, multi_hot, parse_labels, read_corrections, read_labels
    from fatai.data.samplers import BalancedSampler, LengthGroupedBatchSampler
    from fatai.data.stats import data_stats
    from fatai.data.tensors import TensorSpec, TensorWave
    from fatai.data.transforms import CenterCrop, LoadClip, RandomCrop, WaveToSpec
    from fatai.diagnostics.environment import check_environment
    from fatai.ensemble.ensemble import EnsembleResult, ensemble, ensemble_report
    from fatai.errors import AudioError, DataError, FataiError, LabelError, OptionError
    from fatai.experiment.calibrate import calibrate_run
    from fatai.experiment.compare import compare_runs
    from fatai.experiment.ensemble_recipe import load_ensemble
    from fatai.experiment.ensemble_run import run_ensemble
    from fatai.experiment.estimate import estimate_run
    from fatai.experiment.recipe import Recipe, load_recipe, recipe_names
    from fatai.experiment.reproduce import reproduce_run
    from fatai.experiment.run import preview_learner, recipe_learner, run_recipe
    from fatai.experiment.run_folder import Tagger, predict_with_run, trained_model
    from fatai.experiment.stage import fit_stage
    from fatai.experiment.tag_batch import TagBatch
    from fatai.export.onnx import export_onnx
    from fatai.export.pretrained import Pretrained, load_pretrained
    from fatai.inference.embeddings import Embeddings, embed_clips
    from fatai.inference.events.formats import write_events
    from fatai.inference.events.segments import SoundEvent
    from fatai.inference.events.tagger import SlidingWindowTagger
    from fatai.inference.grad_cam import grad_cam
    from fatai.inference.learner import FatLearner, fat_learner
    from fatai.inference.linear_probe import LinearProbe, fit_linear_probe
    from fatai.inference.predictions import Predictions, check_submission
    from fatai.inference.view_store import load_views
    from fatai.losses import BCE, Focal, LSEP, LabelSmoothing, SplitLoss, TagLoss, class_weights
    from fatai.metrics.bootstrap import score_difference, score_interval
    from fatai.metrics.calibration import Calibration
    from fatai.metrics.calibration_curve import calibration_curve, expected_calibration_error, plot_calibration_curve
    from fatai.metrics.classification import d_prime, mean_ap, roc_auc, tag_scores
    from fatai.metrics.per_class import confusions, tag_costs
    from fatai.metrics.ranking import lwlrap, lwlrap_per_class
    from fatai.metrics.thresholds import Thresholds, f1_thresholds, precision_thresholds
    from fatai.models import SpectrogramModel, count_parameters, create_model
    from fatai.models.checkpoint import load_checkpoint
    from fatai.noisy_labels.curriculum import gold_plan_stages, noisy_curriculum, suggest_loss
    from fatai.noisy_labels.label_issues import find_label_issues
    from fatai.noisy_labels.methods import attach_predictions, select_noisy_labels
    from fatai.registry import (
        AUGMENTATIONS, CHANNELS, ENSEMBLES, FRONT_ENDS, LOSSES, MIXERS, MODELS, NOISY, SCHEDULES, VIEWS,
    )
    from fatai.report.html import run_report
    from fatai.training.cross_validation import fit_folds
    from fatai.training.metrics import DPrime, LwLRAP, MeanAP, RocAUC

OWN_NAMES = (
    "AUGMENTATIONS", "AddNoise", "AudioBlock", "AudioError", "BCE", "BalancedSampler", "BetweenClass",
    "BrightnessContrast", "CHANNELS", "Calibration", "CenterCrop", "ChunkShuffle", "ClipCache", "ClipConfig",
    "ClipGradValue", "Cutout", "DPrime", "DataError", "DisableAugmentation", "ENSEMBLES", "Embeddings",
    "EnsembleResult", "EpochCSVLogger", "FATDataLoaders", "FATDataset", "FRONT_ENDS", "FatLearner", "FataiError",
    "Focal", "FrontEnd", "Gain", "ItemAugmentations", "LOSSES", "LRSchedulerCallback", "LSEP", "LabelError",
    "LabelSmoothing", "LayerDecay", "LengthGroupedBatchSampler", "LinearMixUp", "LinearProbe", "LoadClip", "LwLRAP",
    "MIXERS", "MODELS", "MeanAP", "MixUpOr", "NOISY", "OneOfMixers", "OptionError", "Overdrive", "PitchShift",
    "PlainProgress", "Predictions", "Pretrained", "RandomCrop", "RandomResizedCrop", "RandomTimeCrop", "Recipe",
    "RepeatPad", "ResumeTraining", "Reverb", "RocAUC", "SCHEDULES", "SampleWeights", "SaveBestModel", "SaveSnapshots",
    "Shift", "SigmoidConcat", "SlidingWindowTagger", "SoundEvent", "SpecAugment", "SpectrogramBlock",
    "SpectrogramModel", "SpeedPerturb", "SplitBatchOnOOM", "SplitLoss", "StopAtLR", "TagBatch", "TagLoss", "Tagger",
    "TensorSpec", "TensorWave", "TerminateOnNaN", "Thresholds", "TimeReverse", "TimeStretch", "TimeWarp",
    "TrimToLongest", "VIEWS", "WaveChain", "WaveToSpec", "WeightAverage", "apply_corrections", "attach_predictions",
    "audio_info", "augmentation_callbacks", "calibrate_run", "calibration_curve", "check_dataset", "check_environment",
    "check_submission", "class_weights", "compare_runs", "confusions", "count_parameters", "create_model", "d_prime",
    "data_stats", "download", "embed_clips", "ensemble", "ensemble_report", "estimate_run",
    "expected_calibration_error", "export_onnx", "f1_thresholds", "fat_learner", "fat_sample", "find_label_issues",
    "find_leaks", "fit_folds", "fit_length", "fit_linear_probe", "fit_stage", "front_end", "gold_plan_stages",
    "grad_cam", "load_audio", "load_checkpoint", "load_dataset", "load_ensemble", "load_pretrained", "load_recipe",
    "load_views", "lwlrap", "lwlrap_per_class", "make_folds", "mean_ap", "multi_hot", "noisy_curriculum",
    "parse_labels", "plot_calibration_curve", "precision_thresholds", "predict_with_run", "preview_learner",
    "quiet_unless_terminal", "read_corrections", "read_labels", "recipe_learner", "recipe_names", "reproduce_run",
    "resample", "roc_auc", "run_ensemble", "run_recipe", "run_report", "save_audio", "schedule_callback",
    "score_difference", "score_interval", "select_noisy_labels", "set_augmentation", "show_augs", "stream_audio",
    "suggest_loss", "tag_costs", "tag_scores", "trained_model", "write_events",
)
"""The names that fatai adds; `tests/public_names.txt` lists them, so that every change of them is seen."""

__all__ = [*FASTAI_NAMES, *OWN_NAMES]  # noqa: F822
