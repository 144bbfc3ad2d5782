"""Arguments and options shared by commands, the panels of `--help`, and former names of commands and options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fatai.errors import OptionError

__all__ = [
    "Arch",
    "Average",
    "BatchSize",
    "Calibrate",
    "CommandPanels",
    "Corrections",
    "CropS",
    "Data",
    "DryRun",
    "Epochs",
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
    "Shard",
    "StepS",
    "TagSep",
    "TagsCol",
    "TimeLimit",
    "Tta",
    "Weights",
    "Width",
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
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or a model folder that export wrote.")]
RunData = Annotated[
    Path | None,
    typer.Option("--data", help="The data of the run; by default the path in its manifest."),
]
RecipeName = Annotated[
    str, typer.Option("--recipe", help="Name of a recipe (list: fatai-submit recipes), or a .toml file.")
]
Out = Annotated[
    Path, typer.Option("--out", help="Folder of the run: new or empty, or with --resume a run to continue.")
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
    Path | None,
    typer.Option("--weights", help="File of pretrained weights of the model, such as Cnn14_mAP=0.431.pth of PANNs."),
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
ReuseRun = Annotated[
    list[Path] | None,
    typer.Option(
        "--reuse-run",
        help="For ensembles: a finished run of a member's recipe, used instead of training it; may be repeated.",
    ),
]
Calibrate = Annotated[
    bool, typer.Option("--calibrate", help="Apply the calibration that fatai-submit calibrate wrote into the run.")
]
StepS = Annotated[
    float | None, typer.Option("--step-s", help="Seconds between windows; by default half a window.")
]
Predictions = Annotated[
    Path | None, typer.Option("--predictions", help="CSV of predictions to use instead of RUN/oof.csv.")
]
Host = Annotated[str, typer.Option("--host", help="Address to listen at; by default only this machine can connect.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen at; 0 takes any free one.")]

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
            if option in _OLD_OPTIONS and option not in known:
                raise OptionError(f"the option {option} of {name} has become {_OLD_OPTIONS[option]}")
        return name, command, rest


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
