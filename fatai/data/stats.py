"""Mean and standard deviation of a data set's spectrograms, in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from fatai.data.config import ClipConfig
from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.errors import AudioError, DataError, OptionError
from fatai.io.progress import track
from fatai.audio.front_ends import FrontEnd, front_end as find_front_end
from fatai.audio.stats import SpectrogramStats, spectrogram_stats

__all__ = ["data_stats"]

_AHEAD = 16  # clips that are read before the front end asks for them


def data_stats(
    data: str | Path | FATDataset | Sequence[str | Path],
    front_end: str | FrontEnd = "ninth",
    *,
    parts: Sequence[str] = ("curated", "noisy"),
    trim_db: float | None = 60.0,
) -> SpectrogramStats:
    """Statistics of a data set as a front end sees it before it normalizes; memory stays flat.

    Parameters
    ----------
    data
        A folder in the competition's layout, what `load_dataset` made of it, or paths of sound files.
    parts
        Of a data set: curated, noisy, test; a part that isn't there is passed over.
    trim_db
        As in `ClipConfig`.

    Returns
    -------
    `SpectrogramStats`: `.mean` and `.std` over all, `.bin_mean` and `.bin_std` of each row, `.settings("global")` for a front end.

    Raises
    ------
    DataError
        If no clip can be read; single clips that cannot are passed over.
    """
    settings = ClipConfig(find_front_end(front_end), trim_db=trim_db)
    paths = _paths(data, parts)
    stats = spectrogram_stats(settings.front_end, _waves(settings, paths))
    if not stats.frames:
        raise DataError(
            f"none of the {len(paths)} clips can be read, so there is nothing to measure; look at them with fatai-submit scan"
        )
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


def _waves(settings: ClipConfig, paths: Sequence[Path]) -> Iterator[Tensor]:
    """Clips that can be read, a few of them ahead of the one that is asked for."""

    def read(path: Path) -> Tensor | None:
        try:
            return settings.read(path)
        except AudioError:
            return None

    with ThreadPoolExecutor() as pool:
        left = iter(track(paths, "measuring"))
        waiting = [pool.submit(read, path) for path in islice(left, _AHEAD)]
        while waiting:
            wave = waiting.pop(0).result()
            waiting += [pool.submit(read, path) for path in islice(left, 1)]
            if wave is not None and torch.isfinite(wave).all():
                yield wave
