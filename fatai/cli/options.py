"""Arguments and options shared by commands, the panels of `--help`, and former names of commands and options."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fatai.errors import OptionError

__all__ = [
    "Arch",
    "Average",
    "BatchSize",
    "Budget",
    "Calibrate",
    "Channel",
    "CommandPanels",
    "Corrections",
    "CropS",
    "Data",
    "Device",
    "DryRun",
    "Epochs",
    "Engine",
    "FileCol",
    "FinishedRun",
    "FoldCount",
    "Folds",
    "Host",
    "InputList",
    "LearningRate",
    "MaybeData",
    "Merge",
    "ModelFold",
    "NViews",
    "Nproc",
    "NumWorkers",
    "Out",
    "Port",
    "Precision",
    "Predictions",
    "RecipeName",
    "Resume",
    "ReuseRun",
    "Run",
    "RunData",
    "Scale",
    "Seed",
    "Settings",
    "Shard",
    "StepS",
    "TagSep",
    "TagsCol",
    "Threads",
    "TimeLimit",
    "Tta",
    "Weights",
    "Width",
    "EXIT_UNREADABLE",
    "PICTURES",
    "check_device",
    "check_suffix",
    "Strict",
    "exit_if_unreadable",
]

_DATA = ("A CSV of your sounds (columns file and tags, or one of 0 and 1 per tag; the sounds beside it or in folders "
         "below), a folder with a folder of sounds for each tag, or a folder with train_curated.csv, train_curated/, "
         "and maybe train_noisy, test and sample_submission.csv.")
Data = Annotated[Path, typer.Argument(metavar="DATA", help=_DATA)]
MaybeData = Annotated[Path | None, typer.Argument(metavar="DATA", help=_DATA)]
FileCol = Annotated[
    str | None, typer.Option("--file-col", help="Column of the files in a CSV of sounds, where it isn't found.")
]
TagsCol = Annotated[
    list[str] | None,
    typer.Option("--tags-col", help="Column of the tags in a CSV of sounds, or a column of 0 and 1; may be repeated."),
]
TagSep = Annotated[
    str | None, typer.Option("--tag-sep", help="Separator of the tags in a cell; by default commas and semicolons.")
]
FinishedRun = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]


def _download_run(run: Path) -> Path:
    """Return the folder of a run; a repository of the Hugging Face Hub is downloaded into its cache."""
    # Where runs/ is a folder, a typing error in runs/mine is asked of no server.
    if os.path.lexists(run.parent) or len(run.parts) != 2:
        return run
    from fatai.errors import FataiError
    from fatai.export.hub import download_model_folder, is_repo_id

    if not is_repo_id(run.as_posix()):
        return run
    try:
        return download_model_folder(run.as_posix())
    except FataiError as e:
        raise type(e)(f"there is no folder {run}, and on the Hugging Face Hub: {e}") from None


Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        callback=_download_run,
        help="Folder of a run, a model folder that export wrote, or owner/name of one on the Hugging Face Hub.",
    ),
]
RunData = Annotated[
    Path | None,
    typer.Option("--data", help="The data of the run; by default the path in its manifest."),
]
RecipeName = Annotated[
    str, typer.Option("--recipe", help="Name of a recipe (list: fatai-submit recipes), or a .toml file.")
]
Out = Annotated[
    Path,
    typer.Option(
        "--out", file_okay=False, help="Folder of the run: new or empty, or with --resume a run to continue."
    ),
]
FoldCount = Annotated[int | None, typer.Option("--folds", help="Number of folds instead of the recipe's.")]
Folds = Annotated[
    list[int] | None, typer.Option("--fold", help="Train only this fold, counted from 0; may be repeated.")
]
ModelFold = Annotated[int, typer.Option("--fold", min=0, help="Fold of the run, counted from 0.")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Epochs of every stage instead of the recipe's.")]
BatchSize = Annotated[int | None, typer.Option("--bs", help="Clips per batch instead of the recipe's.")]
LearningRate = Annotated[
    float | None, typer.Option("--lr", help="Maximum learning rate of every stage instead of the recipe's.")
]
Arch = Annotated[str | None, typer.Option("--arch", help="Model instead of the recipe's (list: fatai-submit models).")]
Width = Annotated[
    float | None,
    typer.Option(
        "--width", help="Factor of the model's channels instead of the recipe's: 0.5 is half the published width."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="Pretrained weights of the model: a name (list: fatai-submit weights), or a file such as "
        "Cnn14_mAP=0.431.pth.",
    ),
]


def _set_threads(n: int | None) -> int | None:
    from fatai.threads import set_threads

    if n is not None:
        set_threads(n)
    return n


Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        callback=_set_threads,
        help="Threads to compute with, in each process; by default one for a small network, else one per core. More "
        "threads than free cores are slower than one.",
    ),
]


def _set_device(name: str | None) -> str | None:
    from fatai.device import set_device

    if name is not None:
        set_device(name)
    return name


Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        callback=_set_device,
        help="Device to compute on: cpu, cuda, cuda:1 (the second GPU), mps, or auto, the default.",
    ),
]
CropS = Annotated[float | None, typer.Option("--crop-s", help="Seconds of a crop instead of the recipe's.")]
Tta = Annotated[
    str | None,
    typer.Option("--tta", help="Kind of views instead of the recipe's: even, random, tiles, whole, padded, ..."),
]
NViews = Annotated[
    int | None,
    typer.Option(
        "--n-views",
        min=1,
        help="Number of views of each clip that are averaged, instead of the default of the recipe or of --tta.",
    ),
]
Average = Annotated[
    str | None, typer.Option("--average", help="Average the probs or the logits of a clip's views.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed instead of the recipe's; fold k uses seed + k.")]
Precision = Annotated[
    str | None,
    typer.Option("--precision", help="Arithmetic instead of the recipe's: auto (the fastest here), fp32 or bf16."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="KEY=VALUE: any other setting of the recipe by its dotted key, such as clips.channels=deltas, or "
        "stages.0.lr=1e-3; may be repeated.",
        metavar="<str>",
    ),
]
NumWorkers = Annotated[
    int | None,
    typer.Option(
        "--num-workers", help="Processes that read sound files; 0 reads in the main process, the default without a GPU."
    ),
]
InputList = Annotated[
    Path | None, typer.Option("--input-list", help="Text file with one path of a sound per line, of any length.")
]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        help="Process one part of the sounds and write it beside --out: 2/8 is the second of eight. "
        "predict --merge joins the parts.",
    ),
]
Nproc = Annotated[
    int | None,
    typer.Option(
        "--nproc", help="Number of processes on this machine; they share the folds, or with fewer folds each batch."
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="Predict in parts by ray, dask or, in this process, local; with --nproc workers. --out may be .parquet.",
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        help="What runs the networks: torch, or openvino, which is faster on CPUs and needs fatai[openvino].",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the run in --out; options and data must be the same.")
]
Corrections = Annotated[
    Path | None,
    typer.Option(
        "--corrections", help="CSV of fname and labels (or the word remove) that corrects curated and noisy clips."
    ),
]
Scale = Annotated[
    str,
    typer.Option(
        "--scale",
        help="full (as in the recipe), small or tiny: fewer channels, epochs and views by one rule for all recipes.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Train nothing; print stages, steps, parameters and, from a short measurement, time and memory.",
    ),
]
TimeLimit = Annotated[
    str | None,
    typer.Option(
        "--time-limit", help="As --dry-run, and print whether the run fits into this time, such as 9h, 90m or 600s."
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="Time for the run, such as 30m or 8h: measures a few steps and takes the folds, steps and, with --recipe "
        "best, networks that fit.",
    ),
]
ReuseRun = Annotated[
    list[Path] | None,
    typer.Option(
        "--reuse-run",
        help="For ensembles: a finished run of a member's recipe, used instead of training it; may be repeated.",
    ),
]
Calibrate = Annotated[
    bool | None,
    typer.Option(
        "--calibrate/--no-calibrate",
        help="Apply the calibration of the run, and its thresholds. By default they are applied, if the run has them.",
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit with code 3 if a sound cannot be read, after the others are done.")
]


def _parse_channel(text: str | None) -> str | int | None:
    if text is None:
        return None
    from fatai.audio.downmix import parse_channel  # imports torch, which a completion has no use for

    return parse_channel(text)


Channel = Annotated[
    str | None,
    typer.Option(
        "--channel",
        callback=_parse_channel,
        help="Channel of the sounds: auto (the mean, or the loudest where the mean cancels or only one has sound), "
        "mean, loudest, a number from 1, or each to predict every channel. By default that of training.",
    ),
]
StepS = Annotated[
    float | None, typer.Option("--step-s", help="Seconds between windows; by default half a window.")
]
Predictions = Annotated[
    Path | None, typer.Option("--predictions", help="CSV of predictions to use instead of RUN/oof.csv.")
]
Host = Annotated[str, typer.Option("--host", help="Address to listen at; by default only this machine can connect.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen at; 0 takes any free one.")]

def check_device(device: str | None, nproc: int | None) -> None:
    """Raise `OptionError` if one GPU is chosen for several processes, which take one each."""
    if device is not None and ":" in device and nproc not in (None, 1):
        raise OptionError(f"--device {device} is one GPU, and --nproc {nproc} takes one for each process: give one")




def check_suffix(out: Path | None, suffixes: Collection[str]) -> None:
    """Raise `OptionError` if --out has another suffix than those of the formats that are written."""
    if out is not None and out.suffix.lower() not in suffixes:
        *first, last = (suffix for suffix in suffixes if suffix)
        raise OptionError(f"--out is {out}; expected a name that ends in {', '.join(first)} or {last}")


PICTURES = (".png", ".svg", ".pdf", ".jpg")
"""Suffixes of pictures that commands draw."""
EXIT_UNREADABLE = 3
"""Exit code of --strict if a sound cannot be read."""

_PANELS = ("Train", "Predict", "Evaluate", "Data", "Labels", "Models", "Competition")
_OLD_COMMANDS = {
    "train": "run --no-predict",
    "merge": "predict --merge",
    "compare": "score RUN... --truth TRUTH",
    "suspects": "review RUN --out issues.csv",
    "repeat": "reproduce",
    "panns-logreg": "run --recipe panns_logreg --weights WEIGHTS",
}
_OLD_OPTIONS = {
    "--only-fold": "--fold",
    "--workers": "--num-workers",
    "--list": "--input-list",
    "--processes": "--nproc",
    "--keep-views": "--save-views",
    "--calibrated": "--calibrate",
    "--budget": "--time-limit",
    "--reuse": "--reuse-run",
    "--views": "--n-views",
    "--mean": "--average",
    "--how": "--method",
    "--mode": "--method",
    "--of": "--average",
    "--normalise": "--normalize",
    "--most": "--max-findings",
    "--seconds": "--max-seconds",
    "--labels": "--data",
    "--model": "RUN as the first argument",
}


class CommandPanels(TyperGroup):
    """The commands, in panels in `--help`; former names of commands and options are errors that give the new one."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands of each panel with the first sentence of their help."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        width = formatter.width - 6 - max(len(name) for name, _ in commands)
        for panel in _PANELS:
            in_panel = [(name, c) for name, c in commands if c and getattr(c, "rich_help_panel", None) == panel]
            rows = [(name, command.get_short_help_str(width)) for name, command in in_panel]
            with formatter.section(panel):
                formatter.write_dl(rows)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that `args` begins with; raises `OptionError` if a name has changed."""
        if args[0] in _OLD_COMMANDS:
            raise OptionError(f"the command {args[0]} has become: fatai-submit {_OLD_COMMANDS[args[0]]}")
        name, command, rest = super().resolve_command(ctx, args)
        known = {option for parameter in (command.params if command else ()) for option in parameter.opts}
        for option in (word.split("=")[0] for word in rest):
            new = _OLD_OPTIONS.get(option, "")
            if option not in known and (new in known or new.startswith("RUN")):
                raise OptionError(f"the option {option} of {name} has become {new}")
        return name, command, rest


def exit_if_unreadable(n: int) -> None:
    """Exit with the code of --strict if a number of sounds is not 0."""
    if n:
        raise typer.Exit(EXIT_UNREADABLE)


def _merge_shards(out: Path | None) -> None:
    if out is None:
        return
    from fatai.experiment.bulk_predict import merge_shards

    typer.echo(f"{out}: {merge_shards(out)} rows")
    raise typer.Exit()


# Done before other arguments are parsed, so that no RUN is needed.
Merge = Annotated[
    Path | None,
    typer.Option(
        "--merge",
        metavar="OUT",
        is_eager=True,
        callback=_merge_shards,
        help="Only join the parts that --shard wrote for --out OUT, of predict or of tag, in the order of the sounds; "
        "then remove the parts.",
    ),
]
