"""`AudioBlock`, `SpectrogramBlock` and `FATDataLoaders.from_*`: from tables of files to batches of spectrograms.

An item is one clip: loaded, trimmed, and cropped or padded to `crop_s` seconds (at random in training, the middle
otherwise). A batch of items becomes spectrograms on the learner's device.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from fastai.data.all import (
    ColReader,
    ColSplitter,
    DataBlock,
    DataLoader,
    DataLoaders,
    FilteredBase,
    IndexSplitter,
    MultiCategoryBlock,
    RandomSplitter,
    TfmdDL,
    TransformBlock,
    delegates,
)

from fatai.audio.channels import DEFAULT_CHANNELS
from fatai.audio.front_ends import FrontEnd
from fatai.audio.front_ends import front_end as find_front_end
from fatai.audio.segments import file_of
from fatai.data.cache import ClipCache
from fatai.data.cache_choice import CacheChoice, check_memory, find_cache_choice
from fatai.data.clip_loader import ClipDL
from fatai.data.config import ClipConfig
from fatai.data.copies import warn_about_copies
from fatai.data.datasets.fat2019 import FATDataset, load_dataset, training_table
from fatai.data.folds import ALWAYS_TRAINING
from fatai.data.labels import (
    apply_corrections,
    check_labels,
    multi_hot,
    read_corrections,
    read_table,
    unique_tags,
    warn_unused_corrections,
)
from fatai.data.resident import ResidentClips
from fatai.data.segments import has_segments
from fatai.data.table_columns import warn_of_positions
from fatai.data.tables import check_readable, read_class_folder, standardize_table
from fatai.data.transforms import CenterCrop, LoadClip, RandomCrop, WaveToSpec
from fatai.device import training_device
from fatai.errors import CacheError, DataError, OptionError
from fatai.registry import did_you_mean

__all__ = ["AudioBlock", "FATDataLoaders", "SpectrogramBlock"]

_SOURCE = "source"  # attribute of a data frame that was read from a file: its path, for messages


def AudioBlock(config: ClipConfig | None = None, cache: ClipCache | None = None) -> TransformBlock:  # noqa: N802
    """Create a block of waves, for models and callbacks that start from samples.

    Parameters
    ----------
    config
        Sample rate, trimming, crop length and padding; None takes the defaults.
    cache
        Clips that need not be decoded.

    Returns
    -------
    A block whose items are `TensorWave`, shape (crop_samples,).
    """
    config = config or ClipConfig()
    crops = [RandomCrop(config), CenterCrop(config)]
    return TransformBlock(type_tfms=LoadClip(config, cache), item_tfms=crops)


def SpectrogramBlock(config: ClipConfig | None = None, cache: ClipCache | None = None) -> TransformBlock:  # noqa: N802
    """Create an `AudioBlock` whose batches pass through the front end on the device.

    Parameters
    ----------
    config
        As in `AudioBlock`, and the front end and channels; None repeats the spectrogram to three channels.
    cache
        Clips that need not be decoded, or their features.

    Returns
    -------
    A block whose batches are `TensorSpec`, shape (batch, channels, mels, frames).
    """
    config = config or ClipConfig(channels=DEFAULT_CHANNELS)
    block = AudioBlock(config, cache)
    return TransformBlock(type_tfms=block.type_tfms, item_tfms=block.item_tfms, batch_tfms=WaveToSpec(config))


def _keep_readable(
    table: pd.DataFrame, is_readable: np.ndarray, errors: Sequence[str]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Drop the rows that are not readable, with a warning that lists `errors`; also return the names of their files."""
    if errors:
        lines = "\n".join(f"  {error}" for error in errors)
        warnings.warn(
            f"{len(errors)} of {len(table)} training files cannot be read and are left out:\n{lines}", stacklevel=4
        )
    if not is_readable.any():
        first = errors[0] if errors else "the table is empty"
        raise DataError(f"none of the {len(table)} training files can be read; the first: {first}")
    return table[is_readable].reset_index(drop=True), tuple(table["fname"][~is_readable])


def _read_table(
    df: pd.DataFrame, root: Path, columns: dict[str, Any], vocab: Sequence[str] | None, corrections: str | Path | None
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return the standard table of `df`, corrected and with known labels only, and its tags."""
    if not isinstance(df, pd.DataFrame):
        raise OptionError(f"df is of type {type(df).__name__}; expected a data frame: from_csv reads a file")
    _check_vocab(vocab)
    source = df.attrs.get(_SOURCE, "the table")
    table = standardize_table(df, root, **columns, source=source)
    warn_of_positions(df, columns["fn_col"] if columns["path_col"] is None else "", columns["label_col"], source)
    if corrections is not None:
        fixes = read_corrections(corrections, tags=vocab)
        warn_unused_corrections(fixes, table["fname"], corrections)
        table = apply_corrections(table, fixes)
    tags = tuple(vocab) if vocab is not None else unique_tags(table["labels"])
    check_labels(table, tags, source)
    if not tags:
        raise DataError(f"{source} has no tags: its cells of labels are empty; choose another column with label_col")
    return table, tags


def _check_vocab(vocab: Sequence[str] | None) -> None:
    if isinstance(vocab, str):
        raise OptionError(f"vocab is the text {vocab!r}; expected a list of tags")
    repeated = next((tag for tag, n in Counter(vocab or ()).items() if n > 1), None)
    if repeated is not None:
        raise OptionError(f"vocab has the tag {repeated!r} twice; expected each tag once")


class _UsableClips(NamedTuple):
    """Rows of readable clips, names of the other files, and where the clips are read from."""

    table: pd.DataFrame
    unreadable: tuple[str, ...]
    choice: CacheChoice
    cache: ClipCache | None = None
    resident: ResidentClips | None = None


def _usable_clips(
    table: pd.DataFrame, config: ClipConfig, check_files: bool, cache: str, folder: str | Path | None, device: Any
) -> _UsableClips:
    """Leave out clips that cannot be read, and open or build their cache."""
    unreadable: tuple[str, ...] = ()
    if check_files:
        table, unreadable = _keep_readable(table, *check_readable([Path(p) for p in table["path"]]))
    choice = find_cache_choice(list(table["path"]), config, cache, folder, device)
    if choice.kind is None:
        return _UsableClips(table, unreadable, choice)
    try:
        clips = ClipCache.open_or_build(table["path"], config, kind=choice.kind, folder=folder)
    except CacheError as e:
        if cache != "auto":
            raise
        return _UsableClips(table, unreadable, CacheChoice("none", str(e)))
    resident = None
    if choice.in_memory:
        choice = check_memory(choice, clips.nbytes, device)
        resident = ResidentClips.load(clips, config, device) if choice.in_memory else None
    clips = clips if resident is None else resident.cache
    # A damaged file may open without an error; only building the cache decoded all of it.
    table, damaged = _keep_readable(table, clips.lengths > 0, list(clips.errors.values()))
    return _UsableClips(table, unreadable + damaged, choice, clips, resident)


def _split(
    table: pd.DataFrame, valid_col: int | str | None, valid_pct: float, seed: int | None
) -> tuple[Callable, int]:
    """Return fastai's splitter and the number of training clips."""
    if valid_col is not None:
        if table["is_valid"].all():
            raise DataError(f"{valid_col!r} holds out all {len(table)} clips; expected some to train on")
        return ColSplitter("is_valid", on=True), len(table) - int(table["is_valid"].sum())
    if not 0 <= valid_pct < 1:
        raise OptionError(f"valid_pct is {valid_pct}; expected the fraction to hold out, from 0 to below 1")
    if valid_pct and has_segments(table["path"]):
        held_out = _held_out_files(table["path"], valid_pct, seed)
        return IndexSplitter(held_out), len(table) - len(held_out)
    splitter = RandomSplitter(valid_pct, seed) if round(valid_pct * len(table)) else IndexSplitter([])
    return splitter, len(table) - int(valid_pct * len(table))


def _held_out_files(paths: Sequence[str], valid_pct: float, seed: int | None) -> list[int]:
    """Return the rows of random files that have at least a fraction of the rows, with all segments of a file."""
    files = [file_of(path) for path in paths]
    names = sorted(set(files))
    order = torch.randperm(len(names), generator=None if seed is None else torch.Generator().manual_seed(seed))
    rows: list[int] = []
    for k in order.tolist()[:-1]:  # one file at least is trained on
        if len(rows) >= valid_pct * len(files):
            break
        rows += [row for row, file in enumerate(files) if file == names[k]]
    return sorted(rows)


def _worker_options(num_workers: int | None) -> dict[str, int]:
    if num_workers is None and torch.cuda.is_available():
        return {}
    return {"num_workers": num_workers or 0}


def _check_loader_options(options: dict[str, Any], from_df: Callable) -> None:
    """Raise `OptionError` for an option that fastai would swallow."""
    functions = (from_df, FilteredBase.dataloaders, DataBlock.dataloaders, DataLoader.__init__, TfmdDL.__init__)
    known = {name for function in functions for name in inspect.signature(function).parameters}
    for name in options:
        if name not in known and name.removeprefix("val_") not in known:
            raise OptionError(f"there is no option {name!r}; {did_you_mean(name, sorted(known))}")


class FATDataLoaders(DataLoaders):
    """Data loaders of spectrograms and multi-hot tags.

    Attributes
    ----------
    clip_config
        How clips are loaded and converted.
    tags
        The vocabulary, in the order of the targets' columns.
    unreadable
        Names of files that were left out because they cannot be read.
    cache
        Where clips are read from, and why.
    """

    clip_config: ClipConfig
    tags: tuple[str, ...]
    unreadable: tuple[str, ...] = ()
    cache: CacheChoice = CacheChoice("none", "no clips are cached")

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
        label_col: int | str | Sequence[int | str] = 1,
        label_delim: str | None = None,
        valid_col: int | str | None = None,
        vocab: Sequence[str] | None = None,
        corrections: str | Path | None = None,
        front_end: str | FrontEnd | None = None,
        channels: str | None = None,
        crop_s: float = 2.0,
        trim_db: float | None = 60.0,
        pad_mode: str = "constant_center",
        channel: str | int = "auto",
        clip_config: ClipConfig | None = None,
        item_tfms: Any = None,
        batch_tfms: Any = None,
        bs: int = 64,
        num_workers: int | None = None,
        check_files: bool = True,
        cache: str = "none",
        cache_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> FATDataLoaders:
        """Create loaders from a table with a file name and its tags in each row.

        Files that cannot be read are left out, with one warning that lists them; `dls.unreadable` holds their names.

        Parameters
        ----------
        df
            One row per clip.
        path, folder
            Files are `path/folder/<fn_col><suff>`, unless `path_col` is given.
        valid_pct, seed
            Fraction of rows to hold out at random, and the seed; `valid_pct` is ignored if `valid_col` is given.
        fn_col, label_col
            Names or positions of the columns with the file name and the tags: text with one or several tags, separated
            by commas or semicolons, or a list of tags. `label_col` may be several columns: of tags, or of 0 and 1 for
            the tag that the column is called by.
        path_col
            Column with the full path of each file.
        suff
            Suffix to append to file names, such as ".wav".
        label_delim
            Another separator of tags.
        valid_col
            Column that is true (also yes or 1) for clips to hold out.
        vocab
            Tags in the order of the targets' columns; None takes the sorted tags of `df`.
        corrections
            A CSV of (fname, labels or "remove") to apply first.
        front_end, channels
            A name of `FRONT_ENDS` or settings, and a name of `CHANNELS`. With a front end, None takes its own channels.
            Without one it is "ninth", and None repeats the spectrogram to three channels. Networks with published
            weights need the front end of these: "efficientat" for mn04 to mn40, "panns" for PANNs.
        crop_s, trim_db, pad_mode, channel
            As in `ClipConfig`.
        clip_config
            All of the former at once; takes precedence.
        item_tfms, batch_tfms
            More transforms, as in fastai's `DataBlock`.
        bs
            Batch size; reduced to the number of training clips if there are fewer.
        num_workers
            None loads in the main process on a CPU, where the network needs the cores, and in fastai's default number
            on a GPU.
        check_files
            Open every file first, to leave out those that cannot be read, and warn about copies of a file in both
            training and validation. Turn it off for tables that were checked before.
        cache, cache_dir
            "wave" stores the trimmed clips as 16-bit samples in a folder, "features" the output of the front end;
            `fatai.data.cache` describes how its crops differ. "device" and "device_features" also hold them in the
            memory of the device, and gather whole batches there, without workers: the same crops as from disk, several
            times as fast; where they do not fit, they are read from disk, with a warning. "none" decodes the files in
            every epoch. "auto" is "device", "wave" or "none", as `fatai.data.cache_choice.choose_cache` describes.
        kwargs
            Options of fastai's `DataLoaders.from_dblock` and `TfmdDL`, such as `val_bs`, `shuffle` or `device`.

        Raises
        ------
        OptionError
            If fastai has no such option, or one is out of range.
        DataError
            If columns, rows, file names or tags are missing, a cell has a wrong value, all clips are held out, or no
            file can be read; the message has the row.
        LabelError
            If a tag is not in `vocab`, or a cell of tags is a number; the message has its row, and the nearest tag.
        """
        _check_loader_options(kwargs, cls.from_df)
        root = Path(path) / folder if folder else Path(path)
        columns = {
            "fn_col": fn_col, "path_col": path_col, "label_col": label_col, "valid_col": valid_col,
            "suff": suff, "label_delim": label_delim,
        }
        table, tags = _read_table(df, root, columns, vocab, corrections)
        if front_end is None:
            front_end, channels = "ninth", channels or DEFAULT_CHANNELS
        clip_config = clip_config or ClipConfig(
            find_front_end(front_end), channels, crop_s, trim_db, pad_mode, channel
        )
        device = kwargs.get("device") or training_device()
        usable = _usable_clips(table, clip_config, check_files, cache, cache_dir, device)
        table = usable.table
        splitter, n_train = _split(table, valid_col, valid_pct, seed)
        block = DataBlock(
            blocks=(SpectrogramBlock(clip_config, usable.cache), MultiCategoryBlock(vocab=list(tags))),
            splitter=splitter, get_x=ColReader("path"), get_y=ColReader("labels"), item_tfms=item_tfms,
            batch_tfms=batch_tfms,
        )
        if not isinstance(bs, Integral) or bs < 1:
            raise OptionError(f"bs is {bs!r}; expected an integer of at least 1")
        # fastai drops the last, smaller batch: with fewer clips than a batch it would train on nothing.
        bs = min(bs, max(1, n_train))
        workers = _worker_options(num_workers if usable.resident is None else 0)
        options = {"dl_type": ClipDL, **workers, **kwargs, "device": device}
        plain = block.dataloaders(table, path=Path(path), bs=bs, **options)
        dls = cls(*plain.loaders, path=plain.path, device=plain.device)
        dls.clip_config, dls.tags, dls.unreadable, dls.cache = clip_config, tags, usable.unreadable, usable.choice
        for loader in dls.loaders:
            loader.clips = usable.resident
        if check_files:
            dls._warn_about_copies()
        return dls

    def _warn_about_copies(self) -> None:
        """Warn about copies of a sound in both the training and the validation part."""
        parts = [self.files(0), self.files(1)]
        table = pd.concat(parts, ignore_index=True)
        warn_about_copies(np.repeat([ALWAYS_TRAINING, 0], [len(part) for part in parts]), table["fname"], table["path"])

    @classmethod
    @delegates(from_df)
    def from_csv(
        cls, path: str | Path, csv_fname: str = "train_curated.csv", *, delimiter: str | None = None, **kwargs: Any
    ) -> FATDataLoaders:
        """Create loaders from a CSV with a header.

        Parameters
        ----------
        path, csv_fname
            The CSV is `path/csv_fname`.
        delimiter
            Separator of cells; None takes a tab, a semicolon or a comma, whichever the header has most of.
        kwargs
            As in `from_df`.

        Raises
        ------
        DataError
            If there is no such file, and as in `from_df`.
        """
        csv = Path(path) / csv_fname
        if not csv.is_file():
            raise DataError(f"there is no table {csv}; expected a CSV with a column of file names and a column of tags")
        table = read_table(csv, [], delimiter=delimiter)
        table.attrs[_SOURCE] = str(csv)
        return cls.from_df(table, path, **kwargs)

    @classmethod
    @delegates(from_df)
    def from_folder(cls, path: str | Path, *, valid: str | None = None, **kwargs: Any) -> FATDataLoaders:
        """Create loaders from a folder with one subfolder per tag: `path/<tag>/<file>`, or further below.

        Parameters
        ----------
        path
            The folder.
        valid
            With it, the files of `path/valid/<tag>/` are held out, and those of all other folders `path/*/<tag>/` are
            trained on.
        kwargs
            As in `from_df`.

        Raises
        ------
        DataError
            If there is no such folder, or no sound file in it.
        """
        root = Path(path)
        if root.is_file():
            raise DataError(f"{root} is a file; expected a folder with a folder of sound files for each tag")
        if not root.is_dir():
            raise DataError(f"there is no folder {root}; expected one with a folder of sound files for each tag")
        df = read_class_folder(root, depth=0 if valid is None else 1)
        if not len(df):
            below = "<tag>" if valid is None else f"{valid}/<tag> and {root}/train/<tag>"
            raise DataError(
                f"there are no sound files in folders of {root}; expected {root}/{below}/<file>.wav (or flac, ogg, mp3)"
            )
        if valid is not None:
            df["is_valid"] = [name.split("/")[0] == valid for name in df["fname"]]
            if not df["is_valid"].any():
                folders = sorted({name.split("/")[0] for name in df["fname"]})
                raise DataError(f"there are no sound files in {root / valid}/<tag>; {did_you_mean(valid, folders)}")
            kwargs = {"valid_col": "is_valid", **kwargs}
        return cls.from_df(df, root, **kwargs)

    @classmethod
    @delegates(from_df)
    def from_path(
        cls, path: str | Path | FATDataset, *, noisy: bool = False, corrections: str | Path | None = None, **kwargs: Any
    ) -> FATDataLoaders:
        """Create loaders from a folder in the competition's layout.

        Parameters
        ----------
        path
            The folder, or its `FATDataset`.
        noisy
            Also train on the noisy part; it is never held out.
        corrections
            A CSV of (fname, labels or "remove") to apply first.
        kwargs
            As in `from_df`.

        Raises
        ------
        DataError, LabelError
            As in `load_dataset` and `from_df`.
        """
        data = path if isinstance(path, FATDataset) else load_dataset(path, corrections=corrections)
        split = {name: kwargs.pop(name) for name in ("valid_pct", "seed") if name in kwargs}
        table = training_table(data, noisy=noisy, **split)
        columns = {"fn_col": "fname", "path_col": "path", "label_col": "labels", "valid_col": "is_valid"}
        return cls.from_df(table, data.path, vocab=data.tags, **columns, **kwargs)

    def prior(self) -> np.ndarray:
        """Return the fraction of training clips with each tag, shape (tags,): the prediction for an empty clip."""
        return multi_hot(self.files(0)["labels"], self.tags).mean(0)

    def files(self, ds_idx: int = 1) -> pd.DataFrame:
        """Return the table of the clips of one data set, in its order.

        Parameters
        ----------
        ds_idx
            0 for training, 1 for validation.

        Returns
        -------
        Columns fname, path and labels (lists of tags); also noisy, weight and source if the loaders' table had them.

        Raises
        ------
        DataError
            If the loaders have no clips, as those of a learner that was exported.
        """
        items = self.loaders[ds_idx].dataset.items
        if not isinstance(items, pd.DataFrame):
            raise DataError(
                "the loaders have no clips, as those of a learner that was exported: pass clips, such as "
                "learn.tta(items=[...])"
            )
        return items.drop(columns="is_valid").reset_index(drop=True)

    def new_empty(self) -> FATDataLoaders:
        """Return loaders with the same configuration and no clips, which `learn.export` stores."""
        empty = super().new_empty()
        empty.clip_config, empty.tags, empty.unreadable = self.clip_config, self.tags, self.unreadable
        empty.cache = self.cache
        return empty

    @property
    def to_spec(self) -> WaveToSpec:
        """The transform from waves to spectrograms."""
        return next(t for t in self.train.after_batch.fs if isinstance(t, WaveToSpec))
