"""The command that tags recordings of any length."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from fatai.cli.options import ListFile, Shard

if TYPE_CHECKING:
    from fatai.metrics.calibration import Calibration

__all__ = ["app"]

app = typer.Typer()


@app.command()
def tag(
    model: Annotated[Path, typer.Option("--model", metavar="RUN", help="Folder that run, train, demo or export made.")],
    sounds: Annotated[
        Optional[list[Path]], typer.Argument(metavar="SOUND", help="Sound files of any length, or folders of them.")
    ] = None,
    out: Annotated[
        Optional[Path],
        typer.Option(
            "--out",
            help="File to write; for audacity and raven with several sounds a folder. Without it the events are printed.",
        ),
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="csv, json, audacity (label tracks) or raven (selection tables).")
    ] = "csv",
    threshold: Annotated[
        Optional[float],
        typer.Option(
            min=0,
            max=1,
            help="Probability from which a tag counts as heard: 0.5, or with --calibrated the run's thresholds, if it has any.",
        ),
    ] = None,
    top: Annotated[
        Optional[int], typer.Option(min=1, help="No more than so many tags at a time, the likeliest.")
    ] = None,
    step_s: Annotated[
        Optional[float], typer.Option("--step-s", help="Seconds between windows; by default half a window.")
    ] = None,
    silence_db: Annotated[
        float,
        typer.Option(
            "--silence-db", max=0, help="A window with no sample above this level, in dB of full scale, is silence."
        ),
    ] = -60.0,
    calibrated: Annotated[bool, typer.Option("--calibrated", help="Apply what fatai-submit calibrate found.")] = False,
    list_: ListFile = None,
    shard: Shard = None,
) -> None:
    """List what is heard in recordings, from when to when.

    A file of events is complete or not there. If the command is stopped, the same one goes on where it stopped.

    Example: fatai-submit tag forest.flac --model runs/demo --format audacity --out forest.txt
    """
    from fatai.cli.paths import listed_sounds, sound_files
    from fatai.errors import AudioError, DataError, OptionError
    from fatai.inference.events.formats import EVENT_FORMATS, write_events
    from fatai.inference.events.progress_log import read_event_log
    from fatai.experiment.tagger import Tagger
    from fatai.registry import did_you_mean

    if format_ not in EVENT_FORMATS:
        raise typer.BadParameter(did_you_mean(format_, EVENT_FORMATS), param_hint="--format")
    if (list_ is None) == (not sounds):
        raise OptionError("expected sounds, or a --list of them: one of the two")
    paths = list(
        dict.fromkeys(path for _, path in (listed_sounds(list_) if list_ is not None else sound_files(sounds or [])))
    )
    one_file = format_ in ("csv", "json") or len(paths) == 1 and paths[0] in (sounds or [])
    root = None if one_file else os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    if shard is not None:
        paths, out = _part(paths, out, shard, format_)
    if out is not None and out.exists() and out.is_dir() == one_file:
        raise DataError(
            f"{out} is {'a folder' if one_file else 'a file'}; give --out the name of a {'file' if one_file else 'folder'}"
        )
    tagger = Tagger(model, calibrated=calibrated, step_s=step_s, silence_db=silence_db)
    heard_from = _threshold(threshold, tagger.calibration)
    if out is None:
        faults = []
        for path in paths:
            try:
                events = tagger.tag(path, threshold=heard_from, top=top)
            except AudioError as e:
                faults.append(str(e))
                continue
            for event in events:
                typer.echo(f"{path}: {event.start_s:.2f} to {event.end_s:.2f} s {event.tag} {event.prob:.2f}")
        _tell_of_faults(faults, len(paths))
        return
    # The parts of a list may write to the same folder; each has a journal of its own.
    journal = out.with_name(
        f"{out.name}.journal" if one_file or shard is None else f"{out.name}.{shard.replace('/', '-of-')}.journal"
    )
    files = tagger.tag_files(paths, journal, threshold=heard_from, top=top)
    _tell_of_faults(list(files.faults.values()), len(paths))
    wanted = {str(path) for path in paths}
    results = (result for result in read_event_log(journal) if result.file in wanted)
    write_events(out, results, format_, high_hz=tagger.settings.front_end.top_hz, root=root)
    if not files.faults:
        journal.unlink()
    tagged = len(paths) - len(files.faults)
    typer.echo(f"{out}: events of {tagged} sound{'s' if tagged > 1 else ''}")


def _part(paths: list[Path], out: Path | None, shard: str, format_: str) -> tuple[list[Path], Path]:
    """The sounds of a part of the list, and where their events go."""
    from fatai.errors import OptionError
    from fatai.experiment.bulk_predict import part_of

    part = part_of(shard)
    if out is None or format_ == "json":
        raise OptionError(
            "--shard makes parts of a file that merge joins: give --out, and csv, audacity or raven as --format"
        )
    return paths[part.rows(len(paths))], part.file(out) if format_ == "csv" else out


def _threshold(asked: float | None, calibration: Calibration | None) -> float | dict[str, float]:
    """What a user asks for goes before what a run has learnt."""
    if asked is None and calibration is not None and calibration.thresholds is not None:
        # "Never" is infinity there.
        return {
            tag: min(value, 1.0) for tag, value in zip(calibration.tags, calibration.thresholds.values, strict=True)
        }
    return 0.5 if asked is None else asked


def _tell_of_faults(faults: list[str], of: int) -> None:
    """One sound that cannot be read is an error, some of several are a warning."""
    from fatai.errors import AudioError

    listed = "\n".join(f"  {fault}" for fault in faults)
    if faults and len(faults) == of:
        raise AudioError(faults[0] if of == 1 else f"none of the {of} sounds can be read:\n{listed}")
    if faults:
        warnings.warn(
            f"{len(faults)} of {of} sounds cannot be read and are left out; the same command tries them again:\n{listed}"
        )
