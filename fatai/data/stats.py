"""Mean and standard deviation of a data set's spectrograms, in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from fatai.audio.front_ends import FrontEnd
from fatai.audio.front_ends import front_end as find_front_end
from fatai.audio.stats import SpectrogramStats, spectrogram_stats
from fatai.data.config import ClipConfig
from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.errors import AudioError, DataError, OptionError
from fatai.io.progress import track

__all__ = ["data_stats"]

_PREFETCH = 16  # clips that are decoded before the front end needs them


def data_stats(
    data: str | Path | FATDataset | Sequence[str | Path],
    front_end: str | FrontEnd = "ninth",
    *,
    parts: Sequence[str] = ("curated", "noisy"),
    trim_db: float | None = 60.0,
) -> SpectrogramStats:
    """Compute statistics of a data set's spectrograms before normalization, in constant memory.

    Clips that cannot be read are skipped.

    Parameters
    ----------
    data
        A folder in the competition's layout, its `FATDataset`, or paths of sound files.
    front_end
        The front end, or its name.
    parts
        Parts of a data set: curated, noisy, test; absent parts are skipped.
    trim_db
        As in `ClipConfig`.

    Returns
    -------
    `.mean` and `.std` over all values, `.bin_mean` and `.bin_std` of each row, shape (rows,); `.settings("global")`
    returns the options for a front end.

    Raises
    ------
    DataError
        If no clip can be read.
    OptionError
        If a part is unknown.
    """
    config = ClipConfig(find_front_end(front_end), trim_db=trim_db)
    paths = _paths(data, parts)
    stats = spectrogram_stats(config.front_end, _waves(config, paths))
    if not stats.frames:
        raise DataError(f"none of the {len(paths)} clips can be read; check the data set with fatai-submit scan")
    return stats


def _paths(data: str | Path | FATDataset | Sequence[str | Path], parts: Sequence[str]) -> list[Path]:
    if isinstance(data, (str, Path)):
        data = load_dataset(data)
    if not isinstance(data, FATDataset):
        return [Path(p) for p in data]
    unknown = set(parts) - {"curated", "noisy", "test"}
    if unknown:
        raise OptionError(f"parts holds {', '.join(sorted(unknown))}; expected curated, noisy, test")
    tables = [getattr(data, part) for part in parts]
    return [Path(p) for table in tables if table is not None and len(table) for p in table["path"]]


def _waves(config: ClipConfig, paths: Sequence[Path]) -> Iterator[Tensor]:
    """Yield the waves (samples,) of readable clips, decoding a few of them ahead."""

    def read(path: Path) -> Tensor | None:
        try:
            return config.read(path)
        except AudioError:
            return None

    with ThreadPoolExecutor() as pool:
        remaining = iter(track(paths, "measuring"))
        pending = [pool.submit(read, path) for path in islice(remaining, _PREFETCH)]
        while pending:
            wave = pending.pop(0).result()
            pending += [pool.submit(read, path) for path in islice(remaining, 1)]
            if wave is not None and torch.isfinite(wave).all():
                yield wave
