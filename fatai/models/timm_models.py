"""Any network of timm as `timm:NAME`, with its options, its pretrained weights, and the size of the spectrograms.

timm is imported when such a model is built. Where weights are read from is in `fatai.models.timm_sources`.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fatai.errors import CheckpointError, OptionError
from fatai.models.base import BuiltAs, SpectrogramModel, without_memory
from fatai.models.timm_sources import (
    is_remote,
    known_arch,
    published_weights,
    resolve_source,
    source_weights,
    timm_keys,
    timm_name,
)
from fatai.registry import MODELS, did_you_mean

__all__ = ["TimmNet", "pin_timm_source", "timm_model"]

# What the channels "imagenet" are standardized by.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# They follow from the data, or would read files or change what a network returns.
_RESERVED = ("num_classes", "in_chans", "features_only", "out_indices", "feature_cls", "use_naflex", "pruned")
_UNMATCHED = "-"
_FAILURES = (RuntimeError, ValueError, AssertionError, TypeError, IndexError, ZeroDivisionError, NotImplementedError)


class TimmNet(SpectrogramModel):
    """A network of timm with its own pooling, dropout and one linear layer.

    Networks that require one size of image (most transformers) are built for `img_size`, or else for the size next
    above `spec_size`, or else for the size they were published with; spectrograms of another size are resized to it,
    bilinearly. With `dynamic_img_size=True` transformers take any size, padded to whole patches.

    Parameters
    ----------
    arch
        Name of the network in timm, with or without a tag of its weights.
    pretrained
        True for the weights that timm has; or a file (.safetensors, .pth, .pt), "hf-hub:OWNER/NAME", "local-dir:PATH".
        The classifier is loaded if it has `n_tags` tags, and newly initialized otherwise; the first convolution is
        adapted to the input channels as timm does.
    dropout
        Before the last layer.
    img_size
        Mels and frames (or one number for both) that the network is built for, if it takes such an option.
    spec_size
        Mels and frames of the spectrograms; learners and recipes set it.
    imagenet_input
        True if the three input channels are standardized by ImageNet's mean and standard deviation, as those of the
        channels "imagenet"; they are then standardized again where the network was trained with others.
    mean, std
        Mean and standard deviation of each channel of the images, within 0 to 1, that the network was trained with;
        None takes timm's.
    options
        Further options of the network in timm, such as `drop_path_rate`.

    Attributes
    ----------
    fixed_size
        Mels and frames that spectrograms are resized to; None if the network takes any size.

    Raises
    ------
    OptionError
        For fewer than 1 or more than 4 input channels, or an option that the network does not have.
    UnknownNameError
        If timm has no such network; the three nearest names are suggested.
    CheckpointError
        If weights cannot be found, reached or read, or do not fit the network.
    """

    def __init__(
        self,
        n_tags: int,
        in_channels: int = 1,
        *,
        arch: str,
        pretrained: bool | str | os.PathLike[str] | None = False,
        dropout: float = 0.0,
        img_size: int | Sequence[int] | None = None,
        spec_size: Sequence[int] | None = None,
        imagenet_input: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **options: Any,
    ):
        super().__init__(n_tags, in_channels)
        if not 1 <= in_channels <= 4:
            raise OptionError(f"in_channels={in_channels}; timm networks take 1 to 4 channels")
        _check_not_reserved(options)
        body = _Body(arch, in_channels, {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
        body.choose_size(img_size, spec_size)
        self.body, classifier = body.build(pretrained)
        cfg = self.body.default_cfg
        self.fixed_size: tuple[int, int] | None = body.size if body.is_fixed else None
        self.patch = body.patch if body.is_flexible else (1, 1)
        self.min_mels, self.min_frames, n_features = self._find_min_size(cfg["input_size"][1:])
        self.scale: tuple[float, ...] = ()
        self.shift: tuple[float, ...] = ()
        if imagenet_input:
            self._set_standardization(mean or cfg.get("mean"), std or cfg.get("std"))
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(n_features, n_tags))
        if classifier.keys() == {"weight", "bias"} and classifier["weight"].shape == (n_tags, n_features):
            self.head[1].load_state_dict(classifier)

    def _set_standardization(self, mean: Any, std: Any) -> None:
        """Set scale and shift, one number per channel, from ImageNet's standardization to that of the network."""
        if not all(_is_list(v) and len(v) == self.in_channels == 3 for v in (mean, std)) or min(std) <= 0:
            raise OptionError(
                f"mean={mean!r}, std={std!r} for {self.in_channels} channels; expected three numbers each for three "
                "channels, those of std above 0"
            )
        if (tuple(mean), tuple(std)) != (IMAGENET_MEAN, IMAGENET_STD):
            self.scale = tuple(old / new for old, new in zip(IMAGENET_STD, std, strict=True))
            self.shift = tuple((old - m) / s for old, m, s in zip(IMAGENET_MEAN, mean, std, strict=True))

    def _find_min_size(self, native: tuple[int, int]) -> tuple[int, int, int]:
        """Find by trial the smallest mels and frames that the body accepts; return them and the number of features."""
        if self.fixed_size:
            return 1, 1, self._count_features(self.fixed_size)
        # Most networks halve five times; with twice as many frames, batch norm has two positions even of a single clip.
        for mels, frames in ((32, 64), (64, 64), (128, 128)):
            try:
                return mels, frames, self._count_features((mels, frames))
            except (RuntimeError, ValueError, AssertionError):
                continue
        return *native, self._count_features(native)

    def _count_features(self, size: tuple[int, int]) -> int:
        """Return the number of features of the body for an image of `size`."""
        training, like = self.body.training, next(self.body.parameters())
        with torch.no_grad():
            features = self.body.eval()(self._whole_patches(like.new_zeros(1, self.in_channels, *size)))
        self.body.train(training)
        return features.shape[-1]

    def _whole_patches(self, spec: Tensor) -> Tensor:
        """Pad spectrograms (batch, channels, mels, frames) with copies of their last values to whole patches."""
        more_mels, more_frames = (-n % patch for n, patch in zip(spec.shape[2:], self.patch, strict=True))
        return F.pad(spec, (0, more_frames, 0, more_mels), mode="replicate") if more_mels or more_frames else spec

    def features(self, spec: Tensor) -> Tensor:
        """Return features (batch, features) of spectrograms (batch, channels, mels, frames)."""
        if self.scale:
            spec = spec * spec.new_tensor(self.scale)[:, None, None] + spec.new_tensor(self.shift)[:, None, None]
        if self.fixed_size and tuple(spec.shape[2:]) != self.fixed_size:
            spec = F.interpolate(spec, self.fixed_size, mode="bilinear", align_corners=False)
        return self.body(self._whole_patches(spec))

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (batch, tags) of features (batch, features)."""
        return self.head(features)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the stem, of each stage, and of the head, as timm's `group_matcher` splits them.

        What it assigns to no stage, such as the norm before a classifier, belongs to the head.
        """
        return self._grouped(coarse=True) or super().layer_groups()

    def layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each layer and of the head, as timm's `param_groups_layer_decay` splits them."""
        return self._grouped(coarse=False) or super().layers()

    def _grouped(self, *, coarse: bool) -> list[list[nn.Parameter]]:
        """Return the groups of timm's `group_matcher`, the head last; empty for networks without."""
        from timm.models import group_parameters

        if not hasattr(self.body, "group_matcher"):
            return []
        named = dict(self.body.named_parameters())
        # timm puts the names that it does not match into one group, as it does with this one, which is nobody's.
        names = SimpleNamespace(named_parameters=lambda: [*named.items(), (_UNMATCHED, None)])
        groups = group_parameters(names, self.body.group_matcher(coarse=coarse))
        body = [[named[name] for name in groups[k]] for k in sorted(groups) if _UNMATCHED not in groups[k]]
        in_body = {id(p) for group in body for p in group}
        return [*body, [p for p in self.parameters() if id(p) not in in_body]]


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _check_not_reserved(options: Mapping[str, Any]) -> None:
    """Refuse options of timm's builders that read files, or that follow from the data."""
    import timm
    from timm.models import build_model_with_cfg

    own = {
        name
        for build in (timm.create_model, build_model_with_cfg)
        for name, p in inspect.signature(build).parameters.items() if p.kind is not p.VAR_KEYWORD
    }
    for name in options:
        if name in own or name in _RESERVED or name.startswith(("pretrained", "cache", "checkpoint")):
            raise OptionError(
                f"timm's option {name!r} cannot be set; expected options of the network itself, such as drop_path_rate"
            )


class _Body:
    """A network of timm without its classifier: how it is built, and for which size of image.

    Attributes
    ----------
    arch, options
        Name in timm and options of its builder.
    size
        Mels and frames that it is built for; that of timm where it takes any size.
    patch
        Mels and frames of a patch of the image, which sizes must be multiples of.
    is_fixed, is_flexible
        Whether it takes images of one size only; whether it was made for one size, but takes others by its options.
    """

    def __init__(self, arch: str, in_channels: int, options: Mapping[str, Any]):
        import timm

        self.arch, self.in_channels, self.options = known_arch(arch), in_channels, dict(options)
        cfg = timm.get_pretrained_cfg(self.arch)
        self.size: tuple[int, int] = tuple(cfg.input_size[1:])
        one_size = bool(cfg.fixed_input_size)
        self.is_flexible = one_size and (
            bool(self.options.get("dynamic_img_size")) or self.options.get("strict_img_size") is False
        )
        self.is_fixed, self.patch = one_size and not self.is_flexible, (1, 1)

    def choose_size(self, img_size: Any, spec_size: Sequence[int] | None) -> None:
        """Set the size of image to build the network for."""
        img_size = img_size or self.options.pop("img_size", None)
        if self.is_fixed or self.is_flexible:
            self.patch = self._find_patch()
        if img_size is not None:
            self.size = _pair(img_size)
            self.options["img_size"] = self.size
            self._trial(self.size)
        elif spec_size is not None and (self.is_fixed or self.is_flexible):
            self._adopt(_rounded_up(_pair(spec_size), self.patch))

    def _adopt(self, size: tuple[int, int]) -> None:
        """Build for a size if the network can be; networks whose layers depend on their size keep their own."""
        native, self.options = self.options, {**self.options, "img_size": size}
        try:
            self._trial(size)
            self.size = size
        except (OptionError, *_FAILURES):
            self.options = native

    def _trial(self, size: tuple[int, int]) -> None:
        """Build and run the network without memory for its weights; raises what prevents it."""
        with without_memory(), torch.no_grad():
            model = self._create()
            try:
                model.eval()(torch.zeros(1, self.in_channels, *size))
            except _FAILURES as e:
                reason = str(e).strip().split("\n")[0]
                raise OptionError(f"timm's {self.arch} cannot work with img_size={size} ({reason})") from None

    def _find_patch(self) -> tuple[int, int]:
        with without_memory():
            model = self._create()
        patch = _pair(getattr(getattr(model, "patch_embed", None), "patch_size", 1))
        info = getattr(model, "feature_info", None) or [{}]
        whole = info[-1].get("reduction", 32) if isinstance(info[-1], dict) else 32
        return max(patch[0], whole), max(patch[1], whole)

    def _create(self, **settings: Any) -> Any:
        """Call timm's builder; unknown options are named with the nearest that the network has."""
        import timm

        settings = {"num_classes": 0, "in_chans": self.in_channels, **self.options, **settings}
        try:
            return timm.create_model(self.arch, **settings)
        except TypeError as e:
            wrong = re.search(r"argument '(\w+)'", str(e))
            if wrong is None or wrong[1] not in self.options:
                raise
            raise OptionError(self._no_option(wrong[1])) from None

    def _no_option(self, option: str) -> str:
        import timm

        with without_memory():
            network = type(timm.create_model(self.arch))
        reserved = {"self", "num_classes", "in_chans", "cfg", "args", "kwargs"}
        known = [name for name in inspect.signature(network.__init__).parameters if name not in reserved]
        return f"timm's {self.arch} has no option {option!r}; {did_you_mean(option, known)}"

    def build(self, pretrained: bool | str | os.PathLike[str] | None) -> tuple[Any, dict[str, Tensor]]:
        """Return the network without classifier, and the weights of the pretrained classifier, empty without one."""
        body = self._create()
        if not pretrained:
            return body, {}
        state, classifier = self._pretrained_state(pretrained)
        expected = body.state_dict()
        missing = sorted(expected.keys() - state.keys())
        if missing:
            raise CheckpointError(f"the weights for timm's {self.arch} lack {missing[0]}, and {len(missing) - 1} more")
        body.load_state_dict({key: state[key] for key in expected})
        return body, classifier

    def _pretrained_state(self, pretrained: Literal[True] | str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict]:
        """Return the state of the whole network of timm with pretrained weights, and that of its classifier."""
        weights = published_weights(self.arch) if pretrained is True else source_weights(pretrained)
        if weights is None:
            full = self._create(pretrained=True, num_classes=None)
        else:
            full = self._load(weights, self.arch if pretrained is True else str(pretrained))
        classifier = full.get_classifier()
        return full.state_dict(), classifier.state_dict() if isinstance(classifier, nn.Linear) else {}

    def _load(self, weights: Mapping[str, Tensor], name: str) -> Any:
        """Build the network of timm with the classifier that weights have, and load all of them."""
        import timm

        cfg = timm.get_pretrained_cfg(self.arch)
        with without_memory():
            keys = self._create(num_classes=1000).state_dict()
        weights, fit = timm_keys(weights, keys), {}
        layers = [cfg.classifier] if isinstance(cfg.classifier, str) else list(cfg.classifier or ())
        for kind in ("weight", "bias"):
            if f"fatai_head.{kind}" in weights and layers:
                weights[f"{layers[0]}.{kind}"] = weights.pop(f"fatai_head.{kind}")
        n_classes = _n_classes(weights, layers)
        fit["input_size"] = (_n_channels(weights, cfg.first_conv, cfg.input_size[0]), *cfg.input_size[1:])
        overlay = {**fit, "state_dict": weights, "num_classes": n_classes, "label_offset": 0, "custom_load": False}
        try:
            return self._create(pretrained=True, num_classes=n_classes, pretrained_cfg_overlay=overlay)
        except (KeyError, AttributeError, *_FAILURES) as e:
            raise CheckpointError(
                f"{name} does not fit timm's {self.arch}: {_fault(e)}; build the network, with the options, that the "
                "weights belong to"
            ) from None


def _fault(error: Exception) -> str:
    """Return the first fault that torch lists, without the line breaks of its message."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 else lines[0] if lines else type(error).__name__)[:200]


def _n_classes(weights: Mapping[str, Tensor], classifiers: Sequence[str]) -> int:
    """Return the number of outputs of the classifier in a file; 0 if it has none."""
    for layer in (*classifiers, "head", "fc", "classifier", "head.fc"):
        weight = weights.get(f"{layer}.weight")
        if weight is not None and weight.ndim >= 2:
            return weight.shape[0]
    return 0


def _n_channels(weights: Mapping[str, Tensor], first_conv: Any, default: int) -> int:
    """Return the number of input channels of the first convolution in a file."""
    layer = first_conv if isinstance(first_conv, str) else next(iter(first_conv or ()), "")
    weight = weights.get(f"{layer}.weight")
    return weight.shape[1] if weight is not None and weight.ndim == 4 and 1 <= weight.shape[1] <= 4 else default


def _pair(size: Any) -> tuple[int, int]:
    values = tuple(size) if _is_list(size) else (size, size)
    if len(values) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values):
        raise OptionError(f"img_size={size!r}; expected mels and frames, such as (64, 128), or one number for both")
    return values


def _rounded_up(size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    return -(-size[0] // patch[0]) * patch[0], -(-size[1] // patch[1]) * patch[1]


@MODELS.register_pattern(
    "timm:",
    source="timm, github.com/huggingface/pytorch-image-models (Apache-2.0); weights have their own licences",
    suggest=timm_name,
)
def timm_model(
    name: str,
    n_tags: int,
    in_channels: int = 1,
    *,
    pretrained: bool | str | os.PathLike[str] | None = False,
    dropout: float = 0.0,
    img_size: int | Sequence[int] | None = None,
    spec_size: Sequence[int] | None = None,
    imagenet_input: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> TimmNet:
    """Build any network of timm as `timm:NAME`, without its weights unless `pretrained`."""
    given = {
        "pretrained": pretrained, "dropout": dropout, "img_size": img_size, "spec_size": spec_size,
        "imagenet_input": imagenet_input, "mean": mean, "std": std, **options,
    }
    name, given = pin_timm_source(name, given)
    model = TimmNet(n_tags, in_channels, arch=name.removeprefix("timm:"), **given)
    defaults = {"pretrained": False, "dropout": 0.0, "imagenet_input": False}
    model.built_as = BuiltAs(name, {k: v for k, v in given.items() if v is not None and v != defaults.get(k)})
    return model


def pin_timm_source(name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Replace a name with "hf-hub:" or "local-dir:" by that of its architecture, so that it can be built anywhere.

    Parameters
    ----------
    name, options
        A name of `MODELS` with the options of its builder.

    Returns
    -------
    Name and options; where the name was such a one, the options include those of its config.json, and `pretrained`, if
    it was True, names the source.
    """
    options = dict(options)
    if not is_remote(name):
        return name, options
    source = resolve_source(name.removeprefix("timm:"))
    if options.get("pretrained") is True:
        options["pretrained"] = source.weights
    return f"timm:{source.arch}", {**source.options, **{k: v for k, v in options.items() if v is not None}}
