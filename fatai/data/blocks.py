"""`AudioBlock`, `SpectrogramBlock` and `FATDataLoaders.from_*`: from tables of files to batches of spectrograms.

An item is one clip: read, trimmed, and cut or filled to `crop_s` seconds (a random stretch in training, the middle one otherwise).
A batch of them becomes spectrograms on the learner's device.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.data.all import (
    ColReader,
    ColSplitter,
    DataBlock,
    DataLoaders,
    IndexSplitter,
    MultiCategoryBlock,
    RandomSplitter,
    Transform,
    TransformBlock,
    delegates,
)
from torch import Tensor, nn

from fatai.data.cache import ClipCache, CachedClip
from fatai.data.config import ClipConfig
from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.data.labels import apply_corrections, check_labels, multi_hot, read_corrections, unique_tags, warn_unused_corrections
from fatai.data.tables import check_readable, standardize_table, training_table
from fatai.data.tensors import TensorFrames, TensorSpec, TensorWave
from fatai.errors import DataError
from fatai.audio.io import AUDIO_EXTENSIONS
from fatai.audio.front_ends import FrontEnd, front_end as find_front_end
from fatai.audio.waveform import trim_silence

__all__ = [
    "AudioBlock",
    "CenterCrop",
    "ClipConfig",
    "FATDataLoaders",
    "LoadClip",
    "RandomCrop",
    "SpectrogramBlock",
    "WaveToSpec",
    "WholeClip",
    "check_readable",
]


def _as_wave(wave: Tensor, settings: ClipConfig) -> TensorWave:
    known = TensorWave(wave)
    known.sr = settings.sr
    return known


def _read(clip: CachedClip, start: int, size: int, settings: ClipConfig) -> TensorWave | TensorFrames:
    """A stretch of a cached clip; a wave shorter than a crop is filled."""
    crop = clip.crop(start, size)
    return _as_wave(settings.fit(crop), settings) if clip.is_wave else TensorFrames(crop)


class LoadClip(Transform):
    """A path, or an array of samples at the settings' rate, to a trimmed `TensorWave` of any length; a cached file to a `CachedClip`."""

    input_types = (str, Path, np.ndarray)

    def __init__(self, settings: ClipConfig, cache: ClipCache | None = None):
        super().__init__()
        self.settings, self.cache = settings, cache

    def _load(self, path: str) -> TensorWave | CachedClip:
        if self.cache is not None and path in self.cache:
            return self.cache.clip(path)
        return _as_wave(self.settings.read(path), self.settings)

    def encodes(self, path: str):
        return self._load(path)

    def encodes(self, path: Path):  # type: ignore[no-redef]  # noqa: F811 - fastai dispatches on the annotation
        return self._load(str(path))

    def encodes(self, samples: np.ndarray):  # type: ignore[no-redef]  # noqa: F811
        wave = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
        return _as_wave(
            wave if self.settings.trim_db is None else trim_silence(wave, self.settings.trim_db), self.settings
        )


class RandomCrop(Transform):
    """In training, a stretch of `crop_s` seconds that starts anywhere, both ends included."""

    order, split_idx = 6, 0

    def __init__(self, settings: ClipConfig):
        super().__init__()
        self.settings = settings

    def start(self, spare: int) -> int:
        """Where a crop starts in a clip that is `spare` samples or frames longer."""
        return int(torch.randint(spare + 1, ()))

    def encodes(self, wave: TensorWave):
        filled, size = self.settings.fit(wave), self.settings.crop_samples
        start = self.start(filled.shape[-1] - size)
        return filled[..., start:start + size]

    def encodes(self, clip: CachedClip):  # type: ignore[no-redef]  # noqa: F811 - fastai dispatches on the annotation
        size = min(len(clip), self.settings.crop_samples if clip.is_wave else self.settings.crop_frames)
        return _read(clip, self.start(len(clip) - size), size, self.settings)


class CenterCrop(RandomCrop):
    """In validation, the middle `crop_s` seconds: the same every time."""

    order, split_idx = 6, 1

    def start(self, spare: int) -> int:
        return spare // 2


class WholeClip(Transform):
    """A cached clip that nothing cut is read whole: fastai asks for one item before it says whether that is for training."""

    order = 7

    def __init__(self, settings: ClipConfig):
        super().__init__()
        self.settings = settings

    def encodes(self, clip: CachedClip):
        return _read(clip, 0, len(clip), self.settings)


class WaveToSpec(Transform):
    """A batch of waves (batch, samples), or of cached features, to a `TensorSpec` (batch, channels, mels, frames) on the batch's device."""

    order = 0

    def __init__(self, settings: ClipConfig):
        super().__init__()
        self.settings = settings
        channels = settings.channels_module()
        self.n_channels = int(channels.n_channels)  # type: ignore[arg-type]
        self.module = nn.Sequential(settings.front_end.build(), channels).eval()

    def spec(self, wave: Tensor) -> Tensor:
        """Plain tensors in and out."""
        return self._applied(self.module, wave)

    def _applied(self, module: nn.Module, batch: Tensor) -> Tensor:
        device = next(iter(self.module.buffers()), batch).device
        if device != batch.device:
            self.module.to(batch.device)
        with torch.no_grad():
            return module(batch)

    def encodes(self, wave: TensorWave):
        spec = TensorSpec(self.spec(wave.as_subclass(Tensor)))
        spec.front_end, spec.wave = self.settings.front_end, wave
        return spec

    def encodes(self, frames: TensorFrames):  # type: ignore[no-redef]  # noqa: F811 - fastai dispatches on the annotation
        spec = TensorSpec(self._applied(self.module[1], frames.as_subclass(Tensor)))
        spec.front_end = self.settings.front_end
        return spec


def AudioBlock(settings: ClipConfig | None = None, cache: ClipCache | None = None) -> TransformBlock:
    """Block of waves: each item a `TensorWave` of `crop_s` seconds, for models and callbacks that start from samples."""
    settings = settings or ClipConfig()
    return TransformBlock(
        type_tfms=LoadClip(settings, cache), item_tfms=[RandomCrop(settings), CenterCrop(settings), WholeClip(settings)]
    )


def SpectrogramBlock(settings: ClipConfig | None = None, cache: ClipCache | None = None) -> TransformBlock:
    """Block of spectrograms: an `AudioBlock` whose batches pass through the front end on the device."""
    settings = settings or ClipConfig()
    block = AudioBlock(settings, cache)
    return TransformBlock(type_tfms=block.type_tfms, item_tfms=block.item_tfms, batch_tfms=WaveToSpec(settings))


def _leave_out(df: pd.DataFrame, good: np.ndarray, faults: Sequence[str]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The rows of `df` that are `good`, and the names of the others, after a warning that says why."""
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        warnings.warn(
            f"{len(faults)} of {len(df)} training files cannot be read and are left out:\n{listed}", stacklevel=3
        )
    if not good.any():
        raise DataError(
            f"none of the {len(df)} training files can be read; the first: {faults[0] if faults else 'the table is empty'}"
        )
    return df[good].reset_index(drop=True), tuple(df["fname"][~good])


class FATDataLoaders(DataLoaders):
    """Loaders of spectrograms and tags.

    `settings` (`ClipConfig`), `tags` and `unreadable` (file names that were left out) travel with them.
    """

    settings: ClipConfig
    tags: tuple[str, ...]
    unreadable: tuple[str, ...] = ()

    @classmethod
    @delegates(DataLoaders.from_dblock)
    def from_df(
        cls,
        df: pd.DataFrame,
        path: str | Path = ".",
        *,
        valid_pct: float = 0.2,
        seed: int | None = None,
        fn_col: int | str = 0,
        path_col: int | str | None = None,
        folder: str | Path | None = None,
        suff: str = "",
        label_col: int | str = 1,
        label_delim: str | None = None,
        valid_col: int | str | None = None,
        vocab: Sequence[str] | None = None,
        corrections: str | Path | None = None,
        front_end: str | FrontEnd = "ninth",
        channels: str | None = None,
        crop_s: float = 2.0,
        trim_db: float | None = 60.0,
        pad_mode: str = "constant_center",
        settings: ClipConfig | None = None,
        item_tfms: Any = None,
        batch_tfms: Any = None,
        bs: int = 64,
        num_workers: int | None = None,
        check_files: bool = True,
        cache: str = "none",
        cache_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> FATDataLoaders:
        """From a table with a file name and its tags in each row.

        Parameters
        ----------
        df
            One row a clip.
        path, folder
            Files are `path/folder/<fn_col><suff>`, unless `path_col` holds their whole paths.
        valid_pct, seed
            Share of rows held out at random, unless `valid_col` (true or false) says which.
        fn_col, label_col
            Names or positions of the columns; a label cell holds one or several tags, comma or semicolon separated, or a list of tags.
        label_delim
            Another separator of tags.
        vocab
            The tags and their order; None takes the sorted tags of `df`.
        corrections
            A CSV of (fname, labels or "remove") that is applied first.
        front_end, channels, crop_s, trim_db, pad_mode
            As in `ClipConfig`, or all of them at once as `settings`.
        check_files
            Whether to open every file first, to leave out what cannot be read.
        cache, cache_dir
            "wave" keeps the trimmed clips as 16-bit samples in a folder, "features" what is behind the front end; `fatai.data.cache` says
            how its crops differ. "none" reads the files every time.
        bs
            Clips in a batch; no more than there are training clips.
        num_workers
            None reads in the main process on a CPU, which needs its cores for the network, and in fastai's default number on a GPU.

        Raises
        ------
        DataError
            Missing columns or rows, or no file that can be read.
        LabelError
            A tag that is not in `vocab`, with its row and the nearest known tag.

        Unreadable files are left out with one warning that lists them; `dls.unreadable` keeps their names.
        """
        root = Path(path) / folder if folder else Path(path)
        table = standardize_table(df, root, fn_col, path_col, label_col, valid_col, suff, label_delim)
        if corrections is not None:
            fixes = read_corrections(corrections, tags=vocab)
            warn_unused_corrections(fixes, table["fname"], corrections)
            table = apply_corrections(table, fixes)
        tags = tuple(vocab) if vocab is not None else unique_tags(table["labels"])
        check_labels(table, tags)
        table, unreadable = (
            _leave_out(table, *check_readable([Path(p) for p in table["path"]])) if check_files else (table, ())
        )
        if settings is None:
            settings = ClipConfig(find_front_end(front_end), channels, crop_s, trim_db, pad_mode)
        stored = None
        if cache != "none":
            stored = ClipCache.open_or_build(table["path"], settings, kind=cache, folder=cache_dir)
            # A file may open well and break off later; only now all of it was read.
            table, broken = _leave_out(table, stored.lengths > 0, list(stored.faults.values()))
            unreadable += broken
        valid_pct = 0.0 if valid_col is not None else valid_pct
        splitter = ColSplitter("is_valid", on=True) if valid_col is not None else RandomSplitter(valid_pct, seed)
        if valid_col is None and round(valid_pct * len(table)) == 0:
            splitter = IndexSplitter([])
        block = DataBlock(
            blocks=(SpectrogramBlock(settings, stored), MultiCategoryBlock(vocab=list(tags))), splitter=splitter,
            get_x=ColReader("path"), get_y=ColReader("labels"), item_tfms=item_tfms, batch_tfms=batch_tfms,
        )
        n_train = len(table) - (int(table["is_valid"].sum()) if valid_col is not None else int(valid_pct * len(table)))
        if n_train < bs:
            # fastai drops the last, smaller batch: with fewer clips than one batch it would train on nothing, and say nothing.
            bs = max(1, n_train)
        if num_workers is None:
            num_workers = None if torch.cuda.is_available() else 0
        workers = {} if num_workers is None else {"num_workers": num_workers}
        plain = block.dataloaders(table, path=Path(path), bs=bs, **workers, **kwargs)
        dls = cls(*plain.loaders, path=plain.path, device=plain.device)
        dls.settings, dls.tags, dls.unreadable = settings, tags, unreadable
        return dls

    @classmethod
    @delegates(from_df)
    def from_csv(
        cls, path: str | Path, csv_fname: str = "train_curated.csv", *, delimiter: str = ",", **kwargs: Any
    ) -> FATDataLoaders:
        """From a CSV at `path/csv_fname`, with a header; the rest as in `from_df`."""
        csv = Path(path) / csv_fname
        if not csv.is_file():
            raise DataError(f"there is no table {csv}; expected a CSV with a column of file names and a column of tags")
        df = pd.read_csv(csv, sep=delimiter, dtype=str, keep_default_na=False)
        return cls.from_df(df, path, **kwargs)

    @classmethod
    @delegates(from_df)
    def from_folder(cls, path: str | Path, *, valid: str | None = None, **kwargs: Any) -> FATDataLoaders:
        """From a folder with one folder of sounds for each tag: `path/<tag>/<file>`.

        With `valid`, the files of `path/valid/<tag>/` are held out and those of every other folder `path/*/<tag>/` are trained on.
        """
        root = Path(path)
        if not root.is_dir():
            raise DataError(f"there is no folder {root}; expected one that holds a folder of sounds for each tag")
        files = sorted(
            f for f in root.rglob("*") if f.suffix.lower() in AUDIO_EXTENSIONS and f.is_file() and f.parent != root
        )
        if not files:
            raise DataError(
                f"no sound files in the folders of {root}; expected {root}/<tag>/<file>.wav (or flac, ogg, mp3)"
            )
        df = pd.DataFrame(
            {"fname": [str(f.relative_to(root)) for f in files], "labels": [[f.parent.name] for f in files]}
        )
        if valid is not None:
            df["is_valid"] = [f.relative_to(root).parts[0] == valid for f in files]
            kwargs = {"valid_col": "is_valid", **kwargs}
        return cls.from_df(df, root, **kwargs)

    @classmethod
    @delegates(from_df)
    def from_path(
        cls, path: str | Path | FATDataset, *, noisy: bool = False, corrections: str | Path | None = None, **kwargs: Any
    ) -> FATDataLoaders:
        """From a folder in the competition's layout, or what `load_dataset` made of it.

        Parameters
        ----------
        noisy
            Whether to train on the noisy part as well; it is never held out.
        corrections
            A CSV of (fname, labels or "remove") that is applied first.
        """
        data = path if isinstance(path, FATDataset) else load_dataset(path, corrections=corrections)
        table = training_table(data, noisy=noisy, **_take(kwargs, "valid_pct", "seed"))
        columns = {"fn_col": "fname", "path_col": "path", "label_col": "labels", "valid_col": "is_valid"}
        return cls.from_df(table, data.path, vocab=data.tags, **columns, **kwargs)

    def prior(self) -> np.ndarray:
        """Share of the training clips that have each tag, shape (tags,): the answer where there is nothing to listen to."""
        return multi_hot(self.files(0)["labels"], self.tags).mean(0)

    def files(self, ds_idx: int = 1) -> pd.DataFrame:
        """File name, path and tags of the clips of a part, in the order of its data set: 0 training, 1 validation.

        Where the loaders were made of a table with them, also noisy, weight and source.
        """
        return self.loaders[ds_idx].dataset.items.drop(columns="is_valid").reset_index(drop=True)

    def new_empty(self) -> FATDataLoaders:
        """The same without clips: what `learn.export` keeps of them."""
        empty = super().new_empty()
        empty.settings, empty.tags, empty.unreadable = self.settings, self.tags, self.unreadable
        return empty

    @property
    def to_spec(self) -> WaveToSpec:
        """The transform from waves to spectrograms."""
        return next(t for t in self.train.after_batch.fs if isinstance(t, WaveToSpec))


def _take(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {n: options.pop(n) for n in names if n in options}
