"""The command that detects sound events in recordings of any length."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fatai.cli.options import (
    Backend,
    Calibrate,
    Channel,
    Device,
    InputList,
    Run,
    Shard,
    StepS,
    Strict,
    Threads,
    exit_if_unreadable,
)

if TYPE_CHECKING:
    from fatai.experiment.run_folder import Tagger
    from fatai.inference.events.progress_log import FileEvents
    from fatai.inference.events.segments import SoundEvent

__all__ = ["app"]

app = typer.Typer()


@app.command(rich_help_panel="Predict")
def tag(
    run: Run,
    sounds: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOUND", help="Sound files of any length, their URLs, or folders of them."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="File to write; a folder for audacity and raven with several sounds. By default events are printed: "
            "one a line, or in the --format, if one is given.",
        ),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="csv, the default of --out, json, that of a name that ends in .json, audacity (label tracks) or raven "
            "(selection tables).",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Minimum probability of an event, instead of the thresholds of the run; 0.5 if it has none.",
        ),
    ] = None,
    max_false_alarms: Annotated[
        float | None,
        typer.Option(
            "--max-false-alarms-per-hour",
            min=0,
            help="Raise the threshold of each tag until so many events an hour are left in sounds without any tag: the "
            "background that the run held out, or --background.",
        ),
    ] = None,
    background: Annotated[
        Path | None,
        typer.Option("--background", help="Folder of sounds that hold none of the tags, instead of the run's own."),
    ] = None,
    top: Annotated[int | None, typer.Option("--top", min=1, help="Maximum number of tags at a time.")] = None,
    step_s: StepS = None,
    silence_db: Annotated[
        float | None,
        typer.Option(
            "--silence-db",
            max=0,
            help="A window whose peak is below this level, in dB of full scale, is silence; by default -60.",
        ),
    ] = None,
    calibrate: Calibrate = None,
    channel: Channel = None,
    backend: Backend = "torch",
    input_list: InputList = None,
    shard: Shard = None,
    threads: Threads = None,
    device: Device = None,
    strict: Strict = False,
) -> None:
    """Detect sound events with start and end times in recordings of any length.

    A file of events is either complete or absent. If the command is stopped, the same command continues.

    Example: fatai-submit tag runs/demo forest.flac --format audacity --out forest.txt
    """
    from fatai.audio.remote import sound_path
    from fatai.errors import OptionError
    from fatai.experiment.run_folder import Tagger
    from fatai.inference.events.formats import EVENT_FORMATS
    from fatai.io.lock import lock_output
    from fatai.registry import did_you_mean

    file_format = format_ or ("json" if out is not None and out.suffix == ".json" else "csv")
    if file_format not in EVENT_FORMATS:
        raise typer.BadParameter(did_you_mean(file_format, EVENT_FORMATS), param_hint="--format")
    given = [str(sound_path(sound)) for sound in sounds or []]
    paths: Sequence[Path | str] = _sound_paths(given, input_list)
    is_one_file = file_format in ("csv", "json") or len(paths) == 1 and str(paths[0]) in given
    root = None if is_one_file else os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    if shard is not None:
        paths, out = _select_shard(paths, out, shard, file_format)
    _check_out(out, is_one_file, file_format, len(paths))
    silence = {} if silence_db is None else {"silence_db": silence_db}
    tagger = Tagger(run, calibrate=calibrate, step_s=step_s, channel=channel, backend=backend, **silence)
    limit: float | Mapping[str, float] | None = threshold
    if max_false_alarms is not None:
        limit = _limited(run, tagger, threshold, max_false_alarms, background)
    elif background is not None:
        raise OptionError("--background is given without --max-false-alarms-per-hour, which sets thresholds from it")
    options: dict[str, Any] = {"threshold": limit, "top": top}
    if out is None:
        n_faults = _print_events(tagger, paths, options, format_)
        exit_if_unreadable(strict and n_faults)
        return
    # Shards of a list may write to the same folder; each has a log of its own.
    suffix = "" if is_one_file or shard is None else f".{shard.replace('/', '-of-')}"
    log = out.with_name(f"{out.name}{suffix}.journal")
    with lock_output(log.with_suffix("")):
        n_faults = _write_events(tagger, paths, out, log, options, file_format, root)
    exit_if_unreadable(strict and n_faults)


def _sound_paths(sounds: Sequence[str], input_list: Path | None) -> list[Path | str]:
    from fatai.cli.paths import check_one_input, read_sound_list, sound_files

    check_one_input(sounds, input_list)
    named = read_sound_list(input_list) if input_list is not None else sound_files(sounds)
    return list(dict.fromkeys(path for _, path in named))


def _select_shard(
    paths: Sequence[Path | str], out: Path | None, shard: str, format_: str
) -> tuple[Sequence[Path | str], Path]:
    """Return the sounds of one shard and the path that their events are written to."""
    from fatai.errors import OptionError
    from fatai.experiment.bulk_predict import parse_shard

    part = parse_shard(shard)
    if out is None or format_ == "json":
        raise OptionError(
            "--shard writes one part of a file that predict --merge joins: give --out, and csv, audacity or raven as "
            "--format"
        )
    return paths[part.rows(len(paths))], part.file(out) if format_ == "csv" else out


def _check_out(out: Path | None, is_one_file: bool, file_format: str, n_sounds: int) -> None:
    from fatai.errors import DataError, OptionError

    if out is None and file_format in ("audacity", "raven") and n_sounds > 1:
        raise OptionError(
            f"--format {file_format} holds the events of one sound, and there are {n_sounds}; give --out the name of "
            "a folder"
        )

    if out is not None and out.exists() and out.is_dir() == is_one_file:
        found, expected = ("folder", "file") if is_one_file else ("file", "folder")
        raise DataError(f"{out} is a {found}; give --out the name of a {expected}")


def _limited(
    run: Path, tagger: Tagger, threshold: float | None, max_per_hour: float, background: Path | None
) -> dict[str, float]:
    """Return thresholds with at most so many false alarms per hour of background, none below `threshold`."""
    from fatai.cli.paths import sound_files
    from fatai.experiment.false_alarms import BackgroundProbs, load_background

    measured = (
        load_background(run, tagger.tags, is_calibrated=tagger.calibration is not None) if background is None
        else BackgroundProbs.measure(tagger, [path for _, path in sound_files([background])])
    )
    given = dict(zip(tagger.tags, tagger.tag_thresholds(threshold).tolist(), strict=True))
    limits = measured.thresholds(max_per_hour)
    raised = [f"{tag} {limits[tag]:.3f}" for tag in tagger.tags if limits[tag] > given[tag]]
    minutes = f"{60 * measured.hours:.1f} minutes of background"
    typer.echo(
        f"thresholds raised for at most {max_per_hour:g} false alarms per hour in {minutes}: "
        f"{', '.join(raised[:5]) or 'none'}{', ...' if len(raised) > 5 else ''}",
        err=True,
    )
    if max_per_hour * measured.hours < 1:
        warnings.warn(
            f"{minutes} are too few to measure {max_per_hour:g} false alarms per hour; thresholds allow none in them",
            stacklevel=2,
        )
    return {tag: max(given[tag], limits[tag]) for tag in tagger.tags}


def _print_events(tagger: Tagger, paths: Sequence[Path | str], options: dict[str, Any], file_format: str | None) -> int:
    """Print events in a format, or if it is None one a line for people; return the number of unreadable sounds."""
    from fatai.inference.events.formats import write_events

    faults: list[str] = []
    results = _tag_each(tagger, paths, options, faults)
    if file_format is not None:
        write_events(sys.stdout, results, file_format, **_table_options(tagger))
    else:
        for file, events in results:
            for event in events:
                typer.echo(f"{file}: {_event_text(event)}")
    _report_faults(faults, len(paths))
    return len(faults)


def _event_text(event: SoundEvent) -> str:
    channel = f" channel {event.channel}" if hasattr(event, "channel") else ""
    return f"{event.start_s:.2f} to {event.end_s:.2f} s {event.tag} {event.prob:.2f}{channel}"


def _table_options(tagger: Tagger) -> dict[str, Any]:
    return {"high_hz": tagger.settings.front_end.max_hz, "channels": tagger.settings.channel == "each"}


def _tag_each(
    tagger: Tagger, paths: Sequence[Path | str], options: dict[str, Any], faults: list[str]
) -> Iterator[FileEvents]:
    """Yield the events of each sound; append to `faults` why others cannot be read."""
    from fatai.errors import AudioError
    from fatai.inference.events.progress_log import FileEvents

    for path in paths:
        try:
            events = tagger.tag(path, **options)
        except AudioError as e:
            faults.append(str(e))
            continue
        yield FileEvents(str(path), events)


def _write_events(
    tagger: Tagger, paths: Sequence[Path | str], out: Path, log: Path, options: dict[str, Any], format_: str,
    root: str | None,
) -> int:
    from fatai.inference.events.formats import write_events
    from fatai.inference.events.progress_log import read_event_log

    result = tagger.tag_files(paths, log, **options)
    _report_faults(list(result.errors.values()), len(paths))
    names = {str(path) for path in paths}
    rows = (row for row in read_event_log(log) if row.file in names)
    write_events(out, rows, format_, root=root, **_table_options(tagger))
    if not result.errors:
        log.unlink()
    n = len(paths) - len(result.errors)
    typer.echo(f"{out}: events of {n} sound{'s' if n > 1 else ''}")
    return len(result.errors)


def _report_faults(faults: Iterable[str], n_sounds: int) -> None:
    """Warn of sounds that cannot be read; raise `AudioError` if none can."""
    from fatai.errors import AudioError

    faults = list(faults)
    lines = "\n".join(f"  {fault}" for fault in faults)
    if faults and len(faults) == n_sounds:
        raise AudioError(faults[0] if n_sounds == 1 else f"none of the {n_sounds} sounds can be read:\n{lines}")
    if faults:
        warnings.warn(
            f"{len(faults)} of {n_sounds} sounds cannot be read and are left out; the same command tries them again:\n"
            f"{lines}",
            stacklevel=2,
        )
