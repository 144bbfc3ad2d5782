"""The command `fatai-submit`.

Commands only translate words into calls; torch and fastai are imported inside them, so that help answers at once. What a user can mend
ends with one sentence on standard error and exit code 2; Ctrl-C ends with 130.
"""

from __future__ import annotations

import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from fatai import __version__
from fatai.errors import FataiError

__all__ = ["app", "main"]

_INTERRUPTED = 130  # the shell's code for a command that Ctrl-C ended

app = typer.Typer(
    name="fatai-submit", help="Tag sounds: from a folder of clips to a checked submission.\n\nExample: fatai-submit demo",
    no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(help="List the recipes, or show one.\n\nExample: fatai-submit recipes show ninth", rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes")

# Options that several commands share.
Data = Annotated[Path, typer.Argument(help="Folder with train_curated.csv, train_curated/ maybe train_noisy, test, sample_submission.csv.")]
RecipeName = Annotated[str, typer.Option("--recipe", help="Name of a recipe (see: fatai-submit recipes), or a .toml file of yours.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the run; must be new or empty.")]
FoldCount = Annotated[Optional[int], typer.Option("--folds", help="Number of folds instead of the recipe's.")]
Only = Annotated[Optional[list[int]], typer.Option("--only-fold", help="Train this fold alone, counted from 0; may be repeated.")]
Epochs = Annotated[Optional[int], typer.Option(help="Epochs of every stage instead of the recipe's.")]
BatchSize = Annotated[Optional[int], typer.Option("--bs", help="Clips in a batch instead of the recipe's.")]
LearningRate = Annotated[Optional[float], typer.Option("--lr", help="Peak learning rate instead of the recipe's.")]
Arch = Annotated[Optional[str], typer.Option(help="Model instead of the recipe's.")]
Width = Annotated[Optional[float], typer.Option(help="Scale the model's channels: 0.5 is half as wide.")]
CropS = Annotated[Optional[float], typer.Option("--crop-s", help="Seconds of a crop instead of the recipe's.")]
Views = Annotated[Optional[int], typer.Option("--views", help="Test-time views of a clip instead of the recipe's.")]
Seed = Annotated[Optional[int], typer.Option(help="Seed instead of the recipe's; fold k starts from it + k.")]
Precision = Annotated[Optional[str], typer.Option(help="auto (what is fastest here), fp32 or bf16.")]
Workers = Annotated[Optional[int], typer.Option("--workers", help="Processes that read sound; 0 reads in the main one.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fatai {__version__}")
        raise typer.Exit()


@app.callback()
def _top(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")] = False,
) -> None:
    pass


def _run(
    data: Path, recipe: str, out: Path, only: list[int] | None, predict_test: bool, workers: int | None, changes: dict[str, Any],
) -> Any:
    from fatai.recipes.recipe import load_recipe
    from fatai.recipes.run import run_recipe

    return run_recipe(
        data, load_recipe(recipe).changed(**changes), out, only=only or None, predict_test=predict_test, num_workers=workers,
        command=shlex.join(["fatai-submit", *sys.argv[1:]]),
    )


@app.command()
def run(
    data: Data, recipe: RecipeName = "ninth", out: Out = Path("runs/run"), folds: FoldCount = None, only_fold: Only = None,
    epochs: Epochs = None, bs: BatchSize = None, lr: LearningRate = None, arch: Arch = None, width: Width = None,
    crop_s: CropS = None, views: Views = None, seed: Seed = None, precision: Precision = None, workers: Workers = None,
) -> None:
    """Train the folds of a recipe, predict the test part, write a checked submission.

    Example: fatai-submit run DATA --recipe ninth --folds 2 --epochs 40 --bs 16 --out runs/ninth
    """
    changes = {
        "folds": folds, "epochs": epochs, "bs": bs, "lr": lr, "arch": arch, "width": width, "crop_s": crop_s, "views": views, "seed": seed,
        "precision": precision,
    }
    _run(data, recipe, out, only_fold, True, workers, changes)


@app.command()
def train(
    data: Data, recipe: RecipeName = "ninth", out: Out = Path("runs/run"), folds: FoldCount = None, only_fold: Only = None,
    epochs: Epochs = None, bs: BatchSize = None, lr: LearningRate = None, arch: Arch = None, width: Width = None,
    crop_s: CropS = None, views: Views = None, seed: Seed = None, precision: Precision = None, workers: Workers = None,
) -> None:
    """Train the folds of a recipe and predict the clips they hold out; leave the test part for predict.

    Example: fatai-submit train DATA --recipe ninth --only-fold 0 --out runs/fold0
    """
    changes = {
        "folds": folds, "epochs": epochs, "bs": bs, "lr": lr, "arch": arch, "width": width, "crop_s": crop_s, "views": views, "seed": seed,
        "precision": precision,
    }
    _run(data, recipe, out, only_fold, False, workers, changes)


@app.command()
def predict(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that run or train made.")],
    sounds: Annotated[list[Path], typer.Argument(help="A data folder (its test part is predicted), folders of sounds, or sound files.")],
    out: Annotated[Optional[Path], typer.Option("--out", help="CSV to write; without it the best tags of each clip are printed.")] = None,
    top: Annotated[int, typer.Option(help="Tags printed for each clip.")] = 3,
    workers: Annotated[int, typer.Option("--workers", help="Processes that read sound; 0 reads in the main one.")] = 0,
) -> None:
    """Tag sounds with every fold of a run, averaged.

    Example: fatai-submit predict runs/ninth my_sounds/ --out tags.csv
    """
    from fatai.recipes.run import predict_with_run

    predictions = predict_with_run(run_folder, _sound_table(sounds), num_workers=workers)
    if out is not None:
        predictions.to_csv(out)
        typer.echo(f"{out}: {len(predictions.fnames)} clips, {len(predictions.tags)} tags")
        return
    for fname, best in predictions.top(top).groupby("fname", sort=False):
        typer.echo(f"{fname}: " + ", ".join(f"{tag} {prob:.2f}" for tag, prob in zip(best["tag"], best["prob"])))


def _sound_table(sounds: list[Path]) -> Any:
    """Names and paths: of the test part of a data folder, of the sounds below a folder, or of files."""
    import pandas as pd

    from fatai.data.fat2019 import read_layout
    from fatai.errors import DataError
    from fatai.sound.files import AUDIO_EXTENSIONS

    if len(sounds) == 1 and (sounds[0] / "train_curated.csv").is_file():
        return read_layout(sounds[0]).test
    rows: list[tuple[str, Path]] = []
    for sound in sounds:
        if sound.is_dir():
            below = sorted(f for f in sound.rglob("*") if f.suffix.lower() in AUDIO_EXTENSIONS and f.is_file())
            if not below:
                raise DataError(f"there are no sound files below {sound}; expected .wav, .flac, .ogg, .mp3 or the like")
            rows += [(str(f.relative_to(sound)), f) for f in below]
        elif sound.is_file():
            rows.append((sound.name, sound))
        else:
            raise DataError(f"there is no file or folder {sound}")
    return pd.DataFrame(rows, columns=["fname", "path"]).drop_duplicates("fname")


@app.command()
def ensemble(
    predictions: Annotated[list[Path], typer.Argument(help="Prediction CSVs, or run folders (their test.csv is taken).")],
    out: Annotated[Path, typer.Option("--out", help="CSV to write.")],
    how: Annotated[str, typer.Option(help="How they become one: mean, gmean, rank_clip, rank_tag, minmax_tag.")] = "mean",
    weights: Annotated[Optional[str], typer.Option(help="A weight for each, comma separated: 2,1,1.")] = None,
    sample: Annotated[Optional[Path], typer.Option(help="Sample submission; the result has exactly its rows and columns.")] = None,
) -> None:
    """Make one prediction of several.

    Example: fatai-submit ensemble runs/* --how mean --sample DATA/sample_submission.csv --out submission.csv
    """
    from fatai.errors import OptionError
    from fatai.infer.ensemble import ensemble as blend

    try:
        shares = [float(w) for w in weights.split(",")] if weights else None
    except ValueError:
        raise OptionError(f"--weights is {weights!r}; expected numbers like 2,1,1: one for each of the inputs") from None
    blended = blend([p / "test.csv" if p.is_dir() else p for p in predictions], how=how, weights=shares)
    if sample is None:
        blended.to_csv(out)
    else:
        blended.to_submission(out, sample=sample)
    typer.echo(f"{out}: {how} of {len(predictions)}, {len(blended.fnames)} clips, {len(blended.tags)} tags")


@app.command()
def check(
    submission: Annotated[Path, typer.Argument(help="Submission CSV.")],
    sample: Annotated[Path, typer.Option("--sample", help="Sample submission that it must fit.")],
) -> None:
    """Check a submission against the sample: rows, columns, their order, finite values in [0, 1].

    Example: fatai-submit check runs/ninth/submission.csv --sample DATA/sample_submission.csv
    """
    from fatai.infer.predictions import check_submission

    check_submission(submission, sample)
    typer.echo(f"{submission} is fine: it fits {sample}")


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(help="Prediction CSV: fname and one column per tag.")],
    truth: Annotated[Path, typer.Argument(help="CSV of fname and labels, or of fname and one 0/1 column per tag.")],
    per_tag: Annotated[bool, typer.Option("--per-tag", help="Also print every tag's lwlrap and its number of clips, worst first.")] = False,
) -> None:
    """Score predictions against the truth: lwlrap.

    Example: fatai-submit score runs/ninth/oof.csv DATA/train_curated.csv --per-tag
    """
    from fatai.infer.predictions import Predictions

    predicted = Predictions.from_csv(predictions)
    typer.echo(f"lwlrap {predicted.score(truth):.4f}")
    if per_tag:
        for row in predicted.per_tag(truth).itertuples():
            typer.echo(f"{row.lwlrap:7.4f}  {int(row.clips):5d}  {row.tag}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; a run of an earlier demo there is replaced.")] = Path("runs/demo"),
    epochs: Epochs = None,
) -> None:
    """Train on the bundled sounds, predict their test part and score it: two folds, a few minutes on a laptop.

    Example: fatai-submit demo --out runs/demo
    """
    import shutil

    from fatai.data.fat2019 import fat_sample
    from fatai.errors import DataError

    if (out / "recipe.toml").is_file():
        shutil.rmtree(out)
    elif out.exists() and any(out.iterdir()):
        raise DataError(f"{out} holds something that is no run; choose another --out")
    data = fat_sample()
    result = _run(data, "quick", out, None, True, None, {"epochs": epochs})
    for fold, value in result.fold_scores.items():
        typer.echo(f"fold {fold} lwlrap {value:.4f}")
    typer.echo(f"out-of-fold lwlrap {result.oof_score:.4f}")
    typer.echo(f"test lwlrap {result.test.score(data / 'truth' / 'test.csv'):.4f}")


@recipes_app.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List the recipes."""
    if context.invoked_subcommand is None:
        from fatai.recipes.recipe import load_recipe, recipe_names

        for name in recipe_names():
            recipe = load_recipe(name)
            typer.echo(f"{name:12s} {recipe.source}" + (f"; {recipe.published}" if recipe.published else ""))


@recipes_app.command("show")
def recipes_show(
    name: Annotated[str, typer.Argument(help="Name of a recipe, or a .toml file.")],
    resolved: Annotated[bool, typer.Option("--resolved", help="Spell out every default and every constant of the front end.")] = False,
) -> None:
    """Print a recipe; save it, edit it, and run it with --recipe my.toml.

    Example: fatai-submit recipes show ninth > my.toml
    """
    from fatai.recipes.recipe import load_recipe, recipe_text

    recipe = load_recipe(name)
    typer.echo(recipe.resolved() if resolved else recipe_text(name), nl=False)


@app.command()
def doctor() -> None:
    """Print versions, device, decoders and workers, and what is wrong with them.

    Example: fatai-submit doctor
    """
    from fatai.doctor import examine

    report = examine()
    typer.echo(report.to_text())
    if report.faults:
        raise typer.Exit(2)


def main() -> None:
    """Entry point: errors that a user can mend become one sentence and exit code 2."""
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    warnings.showwarning = _plain_warning
    try:
        app()
    except FataiError as e:
        print(f"fatai-submit: {e}", file=sys.stderr)
        raise SystemExit(2) from None
    except (KeyboardInterrupt, SystemExit) as e:
        # Typer turns Ctrl-C into an exit of its own.
        if isinstance(e, SystemExit) and e.code != _INTERRUPTED:
            raise
        print("fatai-submit: stopped", file=sys.stderr)
        raise SystemExit(_INTERRUPTED) from None


def _plain_warning(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: str | None = None) -> None:
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
