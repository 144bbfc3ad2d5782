"""`AudioBlock`, `SpectrogramBlock` and `FATDataLoaders.from_*`: from tables of files to batches of spectrograms.

An item is one clip: read, trimmed, and cut or filled to `crop_s` seconds (a random stretch in training, the middle one otherwise).
A batch of them becomes spectrograms on the learner's device.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.data.all import (
    ColReader, ColSplitter, DataBlock, DataLoaders, IndexSplitter, MultiCategoryBlock, RandomSplitter, Transform, TransformBlock,
    delegates,
)
from torch import Tensor, nn

from fatai.data.fat2019 import FATData, read_layout
from fatai.data.labels import check_labels, multi_hot, parse_labels, tags_of
from fatai.data.tensors import TensorSpec, TensorWave
from fatai.errors import AudioError, DataError, OptionError
from fatai.registry import CHANNELS, did_you_mean
from fatai.sound.files import AUDIO_EXTENSIONS, audio_info, load_audio
from fatai.sound.front_ends import FrontEnd, front_end as find_front_end
from fatai.sound.waveform import fit_length, trim_silence

__all__ = [
    "AudioBlock", "CentreCrop", "ClipSettings", "FATDataLoaders", "LoadClip", "RandomCrop", "SpectrogramBlock", "WaveToSpec", "readable",
]


@dataclass(frozen=True)
class ClipSettings:
    """How a clip becomes what the network sees.

    Attributes
    ----------
    front_end
        The map from wave to spectrogram; its `sr` is the rate that files are read at.
    channels
        A name of `CHANNELS`; None takes the front end's own.
    crop_s
        Seconds of a training crop and of a view.
    trim_db
        Leading and trailing silence below the peak by this many dB is cut off; None keeps it.
    short_fill
        What a clip shorter than a crop is filled with, a name of `SHORT_FILLS`.
    """

    front_end: FrontEnd = field(default_factory=lambda: find_front_end("ninth"))
    channels: str | None = None
    crop_s: float = 2.0
    trim_db: float | None = 60.0
    short_fill: str = "zeros_both"

    def __post_init__(self) -> None:
        if not 0.05 <= self.crop_s <= 600:
            raise OptionError(f"crop_s is {self.crop_s}; expected seconds between 0.05 and 600")
        if self.channels is not None and self.channels not in CHANNELS:
            raise OptionError(f"channels is {self.channels!r}; {did_you_mean(self.channels, CHANNELS.names())}")

    @property
    def sr(self) -> int:
        return self.front_end.sr

    @property
    def crop_samples(self) -> int:
        return round(self.crop_s * self.sr)

    def read(self, path: str | Path) -> Tensor:
        """A whole clip, trimmed, shape (samples,); raises `AudioError`."""
        wave = load_audio(path, self.sr)
        return wave if self.trim_db is None else trim_silence(wave, self.trim_db)

    def fit(self, wave: Tensor) -> Tensor:
        """A wave (samples,) filled up to a crop's length if it is shorter; a longer one is returned as it is."""
        short = wave.shape[-1] < self.crop_samples
        return fit_length(wave, self.crop_samples, self.short_fill) if short else wave

    def channels_module(self) -> nn.Module:
        return CHANNELS.build(self.channels or self.front_end.channels)


class LoadClip(Transform):
    """A path, or an array of samples at the settings' rate, to a trimmed `TensorWave` of any length."""

    input_types = (str, Path, np.ndarray)

    def __init__(self, settings: ClipSettings):
        super().__init__()
        self.settings = settings

    def _wave(self, wave: Tensor) -> TensorWave:
        loaded = TensorWave(wave)
        loaded.sr = self.settings.sr
        return loaded

    def encodes(self, path: str):
        return self._wave(self.settings.read(path))

    def encodes(self, path: Path):  # type: ignore[no-redef]  # noqa: F811 - fastai dispatches on the annotation
        return self._wave(self.settings.read(path))

    def encodes(self, samples: np.ndarray):  # type: ignore[no-redef]  # noqa: F811
        wave = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
        return self._wave(wave if self.settings.trim_db is None else trim_silence(wave, self.settings.trim_db))


class RandomCrop(Transform):
    """In training, a stretch of `crop_s` seconds that starts anywhere, both ends included."""

    order, split_idx = 6, 0

    def __init__(self, settings: ClipSettings):
        super().__init__()
        self.settings = settings

    def encodes(self, wave: TensorWave):
        filled, size = self.settings.fit(wave), self.settings.crop_samples
        start = int(torch.randint(filled.shape[-1] - size + 1, ()))
        return filled[..., start:start + size]


class CentreCrop(RandomCrop):
    """In validation, the middle `crop_s` seconds: the same every time."""

    order, split_idx = 6, 1

    def encodes(self, wave: TensorWave):
        filled, size = self.settings.fit(wave), self.settings.crop_samples
        start = (filled.shape[-1] - size) // 2
        return filled[..., start:start + size]


class WaveToSpec(Transform):
    """A batch of waves (batch, samples) to a `TensorSpec` (batch, channels, mels, frames) on the batch's device."""

    order = 0

    def __init__(self, settings: ClipSettings):
        super().__init__()
        self.settings = settings
        channels = settings.channels_module()
        self.n_channels = int(channels.n_channels)  # type: ignore[arg-type]
        self.module = nn.Sequential(settings.front_end.build(), channels).eval()

    def spec(self, wave: Tensor) -> Tensor:
        """Plain tensors in and out."""
        device = next(iter(self.module.buffers()), wave).device
        if device != wave.device:
            self.module.to(wave.device)
        with torch.no_grad():
            return self.module(wave)

    def encodes(self, wave: TensorWave):
        spec = TensorSpec(self.spec(wave.as_subclass(Tensor)))
        spec.front_end, spec.wave = self.settings.front_end, wave
        return spec


def AudioBlock(settings: ClipSettings | None = None) -> TransformBlock:
    """Block of waves: each item a `TensorWave` of `crop_s` seconds, for models and callbacks that start from samples."""
    settings = settings or ClipSettings()
    return TransformBlock(type_tfms=LoadClip(settings), item_tfms=[RandomCrop(settings), CentreCrop(settings)])


def SpectrogramBlock(settings: ClipSettings | None = None) -> TransformBlock:
    """Block of spectrograms: an `AudioBlock` whose batches pass through the front end on the device."""
    settings = settings or ClipSettings()
    block = AudioBlock(settings)
    return TransformBlock(type_tfms=block.type_tfms, item_tfms=block.item_tfms, batch_tfms=WaveToSpec(settings))


def readable(paths: Sequence[Path]) -> tuple[np.ndarray, list[str]]:
    """Which sound files open: a mask (files,), and a sentence for each that does not."""

    def fault(path: Path) -> str:
        try:
            audio_info(path)
        except AudioError as e:
            return str(e)
        return ""

    with ThreadPoolExecutor() as pool:
        faults = list(pool.map(fault, paths, chunksize=64))
    return np.array([not f for f in faults], dtype=bool), [f for f in faults if f]


def _leave_out_unreadable(df: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    good, faults = readable([Path(p) for p in df["path"]])
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        warnings.warn(f"{len(faults)} of {len(df)} training files cannot be read and are left out:\n{listed}", stacklevel=3)
    if not good.any():
        raise DataError(f"none of the {len(df)} training files can be read; the first: {faults[0] if faults else 'the table is empty'}")
    return df[good].reset_index(drop=True), tuple(df["fname"][~good])


class FATDataLoaders(DataLoaders):
    """Loaders of spectrograms and tags.

    `settings` (`ClipSettings`), `tags` and `unreadable` (file names that were left out) travel with them.
    """

    settings: ClipSettings
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
        front_end: str | FrontEnd = "ninth",
        channels: str | None = None,
        crop_s: float = 2.0,
        trim_db: float | None = 60.0,
        short_fill: str = "zeros_both",
        settings: ClipSettings | None = None,
        item_tfms: Any = None,
        batch_tfms: Any = None,
        bs: int = 64,
        num_workers: int | None = None,
        check_files: bool = True,
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
        front_end, channels, crop_s, trim_db, short_fill
            As in `ClipSettings`, or all of them at once as `settings`.
        check_files
            Whether to open every file first, to leave out what cannot be read.
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
        table = _standard_table(df, root, fn_col, path_col, label_col, valid_col, suff, label_delim)
        tags = tuple(vocab) if vocab is not None else tags_of(table["labels"])
        check_labels(table, tags)
        table, unreadable = _leave_out_unreadable(table) if check_files else (table, ())
        if settings is None:
            settings = ClipSettings(find_front_end(front_end), channels, crop_s, trim_db, short_fill)
        valid_pct = 0.0 if valid_col is not None else valid_pct
        splitter = ColSplitter("is_valid", on=True) if valid_col is not None else RandomSplitter(valid_pct, seed)
        if valid_col is None and round(valid_pct * len(table)) == 0:
            splitter = IndexSplitter([])
        block = DataBlock(
            blocks=(SpectrogramBlock(settings), MultiCategoryBlock(vocab=list(tags))), get_x=ColReader("path"), get_y=ColReader("labels"),
            splitter=splitter, item_tfms=item_tfms, batch_tfms=batch_tfms,
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
    def from_csv(cls, path: str | Path, csv_fname: str = "train_curated.csv", *, delimiter: str = ",", **kwargs: Any) -> FATDataLoaders:
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
        files = sorted(f for f in root.rglob("*") if f.suffix.lower() in AUDIO_EXTENSIONS and f.is_file() and f.parent != root)
        if not files:
            raise DataError(f"no sound files in the folders of {root}; expected {root}/<tag>/<file>.wav (or flac, ogg, mp3)")
        df = pd.DataFrame({"fname": [str(f.relative_to(root)) for f in files], "labels": [[f.parent.name] for f in files]})
        if valid is not None:
            df["is_valid"] = [f.relative_to(root).parts[0] == valid for f in files]
            kwargs = {"valid_col": "is_valid", **kwargs}
        return cls.from_df(df, root, **kwargs)

    @classmethod
    @delegates(from_df)
    def from_path(
        cls, path: str | Path | FATData, *, noisy: bool = False, corrections: str | Path | None = None, **kwargs: Any,
    ) -> FATDataLoaders:
        """From a folder in the competition's layout, or what `read_layout` made of it.

        Parameters
        ----------
        noisy
            Whether to train on the noisy part as well; it is never held out.
        corrections
            A CSV of (fname, labels or "remove") that is applied first.
        """
        data = path if isinstance(path, FATData) else read_layout(path, corrections=corrections)
        table = training_table(data, noisy=noisy, **_take(kwargs, "valid_pct", "seed"))
        columns = {"fn_col": "fname", "path_col": "path", "label_col": "labels", "valid_col": "is_valid"}
        return cls.from_df(table, data.path, vocab=data.tags, **columns, **kwargs)

    def prior(self) -> np.ndarray:
        """Share of the training clips that have each tag, shape (tags,): the answer where there is nothing to listen to."""
        return multi_hot(self.files(0)["labels"], self.tags).mean(0)

    def files(self, ds_idx: int = 1) -> pd.DataFrame:
        """File name, path and tags of the clips of a part, in the order of its data set: 0 training, 1 validation."""
        return self.loaders[ds_idx].dataset.items[["fname", "path", "labels"]].reset_index(drop=True)

    @property
    def to_spec(self) -> WaveToSpec:
        """The transform from waves to spectrograms."""
        return next(t for t in self.train.after_batch.fs if isinstance(t, WaveToSpec))


def _take(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {n: options.pop(n) for n in names if n in options}


def training_table(data: FATData, *, noisy: bool = False, valid_pct: float = 0.2, seed: int | None = None) -> pd.DataFrame:
    """Curated clips with a random part of them held out, then, if asked, the noisy ones: columns fname, path, labels, is_valid."""
    columns = ["fname", "path", "labels"]
    table = data.curated[columns].copy()
    held_out = np.zeros(len(table), dtype=bool)
    order = torch.randperm(len(table), generator=None if seed is None else torch.Generator().manual_seed(seed)).numpy()
    held_out[order[: int(valid_pct * len(table))]] = True
    table["is_valid"] = held_out
    if noisy:
        if data.noisy is None:
            raise DataError(f"{data.path} has no noisy part; expected train_noisy.csv and train_noisy/, or noisy=False")
        table = pd.concat([table, data.noisy[columns].assign(is_valid=False)], ignore_index=True)
    return table


def _standard_table(
    df: pd.DataFrame,
    root: Path,
    fn_col: int | str,
    path_col: int | str | None,
    label_col: int | str,
    valid_col: int | str | None,
    suff: str,
    label_delim: str | None,
) -> pd.DataFrame:
    """Columns fname, path, labels (list of tags) and is_valid, whatever the table calls them."""

    def column(which: int | str, what: str) -> pd.Series:
        if isinstance(which, int):
            if which >= df.shape[1]:
                raise DataError(f"{what} is column number {which}, but the table has {df.shape[1]}: {', '.join(map(str, df.columns))}")
            return df.iloc[:, which]
        if which not in df.columns:
            raise DataError(f"{what} is {which!r}, which is no column; {did_you_mean(which, [str(c) for c in df.columns])}")
        return df[which]

    names = [str(n) for n in column(fn_col, "fn_col")]
    cells = column(label_col, "label_col")
    labels = [parse_labels(cell, label_delim) for cell in cells]
    table = pd.DataFrame({"fname": [Path(n).name if Path(n).is_absolute() else n for n in names]})
    table["path"] = [str(root / f"{n}{suff}") for n in names] if path_col is None else [str(p) for p in column(path_col, "path_col")]
    table["labels"] = labels
    table["is_valid"] = False if valid_col is None else _truth_of(column(valid_col, "valid_col"))
    return table


def _truth_of(column: pd.Series) -> list[bool]:
    """Booleans from booleans, 0/1 or the words a CSV holds; a word like "no" must not count as true because it is not empty."""
    words = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False, "": False}
    try:
        return [words[str(v).strip().lower()] for v in column]
    except KeyError as e:
        raise DataError(f"valid_col {column.name!r} holds {e.args[0]!r}; expected true or false, yes or no, 1 or 0") from None
