"""Commands that write a model, or its embeddings of sounds, for other programs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fatai.cli.options import ModelFold, NumWorkers, NViews, Run, StepS, Tta

if TYPE_CHECKING:
    from fatai.export.pretrained import Pretrained

__all__ = ["app"]

app = typer.Typer()

_FORMATS = ("folder", "onnx", "page")
# Files that other programs export; a folder of such a name would be taken for one.
_OTHER_FILES = (".pt", ".pth", ".pkl", ".ts", ".torchscript", ".safetensors", ".tflite", ".mlmodel", ".zip", ".html")


@app.command(rich_help_panel="Models")
def export(
    run: Run,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="model.onnx for one ONNX graph; any other name for a model folder, or a page's."
        ),
    ],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", help="folder, onnx (the default by the name OUT), or page: a tagger that needs no server."
        ),
    ] = None,
    fold: Annotated[
        int | None,
        typer.Option(
            "--fold", min=0, help="Fold of the run, counted from 0; without it a model folder gets the first one."
        ),
    ] = None,
    folds: Annotated[
        str | None,
        typer.Option(
            "--folds", help="all: the average of all folds, as one ONNX graph or page; the default without --fold."
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", min=0, help="ONNX and page: maximum difference of probabilities from torch's."),
    ] = 1e-4,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="ONNX: 8-bit integers, a quarter of the size; the loss on held-out clips is printed."
        ),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="With --int8: the training clips; by default those that the run notes."),
    ] = None,
    step_s: StepS = None,
    onnxruntime_web: Annotated[
        Path | None,
        typer.Option(
            "--onnxruntime-web",
            help="page: the npm package, an archive of npm pack or a folder; by default it is downloaded once.",
        ),
    ] = None,
) -> None:
    """Write a run as an ONNX file or a page, the average of its folds or one of them, or one fold as a model folder.

    All are checked before they are written. The page tags sounds in the browser of its visitor, from any static host.

    Example: fatai-submit export runs/ninth model.onnx
    """
    from fatai.io.lock import lock_output
    from fatai.registry import did_you_mean

    chosen = format_ or ("onnx" if out.suffix == ".onnx" else "folder")
    if chosen not in _FORMATS:
        raise typer.BadParameter(did_you_mean(chosen, _FORMATS), param_hint="--format")
    if chosen != "onnx" and out.suffix.lower() in _OTHER_FILES:
        raise typer.BadParameter(
            f"it is {out}, and no {out.suffix} is written; expected model.onnx, or the name of a folder",
            param_hint="OUT",
        )
    for option, value in (("--step-s", step_s), ("--onnxruntime-web", onnxruntime_web)):
        if value is not None and chosen != "page":
            raise typer.BadParameter("only a page has it; add --format page, or leave it out", param_hint=option)
    if int8 and chosen != "onnx":
        raise typer.BadParameter("only an ONNX graph has it; give a name that ends in .onnx", param_hint="--int8")
    if data is not None and not int8:
        raise typer.BadParameter("only --int8 reads clips; add it, or leave --data out", param_hint="--data")
    if folds not in (None, "all"):
        raise typer.BadParameter(f"it is {folds!r}; expected all, or --fold K for a single fold", param_hint="--folds")
    if folds is not None and fold is not None:
        raise typer.BadParameter(f"all is given together with --fold {fold}; give one of the two", param_hint="--folds")
    with lock_output(out):
        if chosen == "onnx":
            _export_graph(run, out, fold, tolerance, int8, data)
        elif chosen == "page":
            _export_page(run, out, fold, tolerance, step_s, onnxruntime_web)
        else:
            _export_folder(run, out, fold, folds)


def _export_graph(run: Path, out: Path, fold: int | None, tolerance: float, int8: bool, data: Path | None) -> None:
    """Write one fold, or the average of all, as an ONNX file."""
    from fatai.experiment.ensemble_folder import is_ensemble_folder
    from fatai.experiment.quantize import choose_models, export_int8
    from fatai.export.onnx import export_onnx

    chosen = choose_models(run, fold)
    numbers, n_models = [number for _, number in chosen.folds], len(chosen.models)
    if is_ensemble_folder(run) and fold is None:
        source = f"weighted mean of {n_models} networks: "
    elif n_models > 1:
        source = f"{chosen.average} of the folds {', '.join(map(str, numbers))}: "
    else:
        source = _name_fold(run, numbers, _fold_numbers(run))
    if int8:
        result = export_int8(chosen, out, data, tolerance=tolerance)
        _print_graph(out, source, chosen.models[0], result.graph.difference, "in float32 ")
        typer.echo(str(result))
        return
    difference = export_onnx(chosen.models, out, average=chosen.average, weights=chosen.weights, tolerance=tolerance)
    _print_graph(out, source, chosen.models[0], difference)


def _print_graph(out: Path, source: str, model: Pretrained, difference: float, when: str = "") -> None:
    settings = model.settings
    typer.echo(
        f"{out}: {source}wave (batch, {settings.crop_samples}) at {settings.sr} Hz "
        f"to probs (batch, {len(model.tags)}); "
        f"{when}onnxruntime differs from torch by at most {difference:.1e}"
    )


def _export_page(
    run: Path, out: Path, fold: int | None, tolerance: float, step_s: float | None, package: Path | None
) -> None:
    """Write one fold, or the average of all, as a page that tags sounds in the browser."""
    from fatai.experiment.run_folder import Tagger, trained_model
    from fatai.web.onnxruntime_web import load_onnxruntime_web
    from fatai.web.static_page import write_static_page
    from fatai.web.tagger_app import page_title

    runtime = load_onnxruntime_web(package)
    if fold is None:
        tagger = Tagger(run, step_s=step_s).only_part()
    else:
        tagger = trained_model(run, fold).tagger(step_s=step_s)
    difference = write_static_page(tagger, out, page_title(run), runtime, tolerance=tolerance)
    n_bytes = sum(file.stat().st_size for file in out.iterdir())
    networks = f"mean of {len(tagger.networks)} networks" if len(tagger.networks) > 1 else "one network"
    typer.echo(
        f"{out}: {networks}, {len(tagger.tags)} tags, {n_bytes / 1e6:.1f} MB with onnxruntime-web {runtime.version}; "
        f"onnxruntime differs from torch by at most {difference:.1e}. Copy the folder to any web server, or try it: "
        f"python -m http.server -d {shlex.quote(str(out))}"
    )


def _export_folder(run: Path, out: Path, fold: int | None, folds: str | None) -> None:
    """Write one fold as a model folder."""
    from fatai.errors import OptionError
    from fatai.experiment.held_out import scored_model

    numbers = _fold_numbers(run)
    if folds is not None and len(numbers) > 1:
        raise OptionError(
            f"--folds all is given, but a model folder such as {out} holds one fold; give a name that ends in .onnx, "
            f"or --fold K for one of {', '.join(map(str, numbers))}"
        )
    chosen = numbers[:1] if fold is None else [fold]
    model = scored_model(run, *chosen)
    typer.echo(
        f"{model.save(out)}: {_name_fold(run, chosen, numbers)}{len(model.tags)} tags; load it with load_pretrained, "
        "or give it as RUN"
    )


@app.command(rich_help_panel="Models")
def push(
    run: Run,
    repository: Annotated[
        str,
        typer.Argument(metavar="REPOSITORY", help="owner/name on the Hugging Face Hub; created if there is none."),
    ],
    fold: Annotated[
        int | None,
        typer.Option("--fold", min=0, help="Fold of the run, counted from 0; by default the first one."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="Name of the training data for the card; by default that of its folder."),
    ] = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="License of the model for the card, such as cc-by-4.0.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository visible to its owner only.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Upload nothing; print the card.")
    ] = False,
) -> None:
    """Upload one fold to the Hugging Face Hub: the model folder of export, and a model card with its scores.

    load_pretrained("owner/name") loads it on any machine. Log in by hf auth login, or set HF_TOKEN.

    Example: fatai-submit push runs/mine owner/dawn-birds --license cc-by-4.0
    """
    from fatai.experiment.held_out import scored_model

    numbers = _fold_numbers(run)
    chosen = numbers[:1] if fold is None else [fold]
    model = scored_model(run, *chosen)
    if dry_run:
        typer.echo(model.model_card(repository, dataset=dataset, license=license_), nl=False)
        return
    commit = model.push_to_hub(repository, dataset=dataset, license=license_, private=private or None)
    typer.echo(
        f"{repository}: {_name_fold(run, chosen, numbers)}{len(model.tags)} tags, commit {commit}; load it with "
        f'load_pretrained("{repository}"), or this very model with revision="{commit}"'
    )


def _fold_numbers(run: Path) -> list[int]:
    """Return the folds of a run, or of the run with the highest weight of an ensemble; none of a model folder."""
    from fatai.experiment.ensemble_folder import main_run
    from fatai.experiment.run_folder import FinishedRun
    from fatai.export.pretrained import is_model_folder

    return [] if is_model_folder(run) else FinishedRun.open(main_run(run)).fold_numbers


def _name_fold(run: Path, chosen: list[int], numbers: list[int]) -> str:
    """Name the run of an ensemble and the fold that is taken of several; empty where there is no choice."""
    from fatai.experiment.ensemble_folder import is_ensemble_folder, main_run

    member = f"run {main_run(run).name} alone of the ensemble, " if is_ensemble_folder(run) else ""
    return member + (f"fold {chosen[0]} alone of {len(numbers)} folds, " if len(numbers) > 1 else "")


@app.command(rich_help_panel="Predict")
def embed(
    run: Run,
    sounds: Annotated[list[Path], typer.Argument(metavar="SOUND", help="Sound files, or folders of them.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", dir_okay=False,
            help="embeddings.npy: float32 (clips, features); the names go into a .csv beside it.",
        ),
    ],
    fold: ModelFold = 0,
    tta: Tta = None,
    n_views: NViews = None,
    num_workers: NumWorkers = None,
) -> None:
    """Write an embedding of each sound, the input of the network's last layer. For search, clustering and other tags.

    Example: fatai-submit embed runs/ninth my_sounds/ --out embeddings.npy
    """
    import pandas as pd

    from fatai.cli.paths import sound_files
    from fatai.errors import OptionError
    from fatai.experiment.run_folder import trained_model
    from fatai.io.lock import lock_output

    if out.suffix != ".npy":
        raise OptionError(f"--out is {out}; expected a name that ends in .npy")
    items = pd.DataFrame(sound_files(sounds), columns=["fname", "path"])
    with lock_output(out):
        embeddings = trained_model(run, fold).embed(items, views=tta or "even", n=n_views, num_workers=num_workers or 0)
        embeddings.save(out)
    n_clips, n_features = embeddings.values.shape
    source = _name_fold(run, [fold], _fold_numbers(run))
    typer.echo(f"{out}: {source}{n_clips} clips, {n_features} features; names in {out.with_suffix('.csv')}")
