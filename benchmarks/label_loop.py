"""The label loop with a scripted user on ESC-10: from one example of a class, answers of yes and no, to a ranking.

    python -m benchmarks.label_loop DATA --weights mn04_as_mAP_432.pt [--work FOLDER] [--epochs 60] [--only mn04]

DATA is as in benchmarks.esc10: 400 clips of ten classes. For each class, and for each of some examples of it, the loop
of `fatai-submit review INDEX --tag CLASS` is run: five questions, five answers from the truth, train again, and so on.
The score is the average precision of the class over all clips that are neither the example nor answered.

Features are those of mn04 with its published weights, and of networks of recipe `default`, of which one is trained on
the clips of five classes and asked about the other five, and one the other way round: no network is asked about a class
that it was trained on. Indexes and networks are kept in FOLDER.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.esc10 import read_list
from benchmarks.timing import write_report
from fatai.data.datasets.fat2019 import load_dataset
from fatai.experiment.encoder import load_encoder
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run import run_recipe
from fatai.inference.search.index import SoundIndex, index_sounds
from fatai.inference.search.label_loop import LabelLoop
from fatai.inference.search.labels import window_name
from fatai.inference.search.questions import HOLDOUT, held_out_rows
from fatai.io.atomic import write_text
from fatai.metrics.classification import mean_ap

CHECKPOINTS = (5, 10, 20, 40)
WINDOW_S = 5.0


def build_index(folder: Path, network: str | Path, clips: pd.DataFrame, weights: Path | None = None) -> SoundIndex:
    """Index the clips, one window for each, or continue an index; return it."""
    encoder, source = load_encoder(network, weights=weights, window_s=WINDOW_S)
    index_sounds(folder, encoder, clips["path"], source=source, step_s=WINDOW_S)
    return SoundIndex(folder)


def train_default(folder: Path, clips: pd.DataFrame, epochs: int) -> Path:
    """Train one fold of recipe `default` on clips; return its run folder."""
    table = folder / "clips.csv"
    write_text(table, clips[["path", "labels"]].rename(columns={"path": "file"}).to_csv(index=False))
    data = load_dataset(table)
    recipe = load_recipe("default").override(epochs=epochs, n_folds=2, values={"clips.cache": "none"})
    run_recipe(data, recipe, folder / "run", run_folds=[0], predict_test=False, resume=True, num_workers=0)
    return folder / "run"


def run_loop(
    index: SoundIndex, truth: dict[str, str], tag: str, example: int, *, n_answers: int, batch: int, holdout: float
) -> tuple[dict[int, float], float | None]:
    """Answer the questions of one loop from the truth.

    Parameters
    ----------
    index, truth
        The windows, and the class of each path.
    tag, example
        The class, and the row of its example.
    n_answers, batch
        Answers in all, and between two trainings.
    holdout
        Fraction of held-out sounds, as in `LabelLoop`.

    Returns
    -------
    Number of answers to the average precision over the clips that are not answered, and the loop's own score at the
    end, on answered clips that it held out.
    """
    table = index.table(range(len(index)))
    names = [window_name(row.file, row.start, row.end) for row in table.itertuples()]
    present = np.array([truth[file] == tag for file in table["file"]])
    features, scores, answered = np.concatenate([f for _, f in index.blocks()]), {}, {example}
    with tempfile.TemporaryDirectory() as folder:
        loop = LabelLoop(index, tag, Path(folder, "labels.csv"), holdout=holdout)
        loop.file.write(names[example], [tag])
        own = None
        while len(answered) <= n_answers:
            for row in loop.questions(batch).index:
                loop.file.write(names[row], *(([tag], []) if present[row] else ([], [tag])))
                answered.add(int(row))
            own = loop.train().ap
            if loop.probe is not None:
                rest = np.setdiff1d(np.arange(len(index)), list(answered))
                probs = loop.probe.probs(features[rest], tag)
                scores[len(answered) - 1] = mean_ap(probs[:, None], present[rest][:, None])
    return scores, own


def measure(
    indexes: list[tuple[SoundIndex, list[str]]], truth: dict[str, str], n_examples: int, holdout: float
) -> list[str]:
    """Return a row of Markdown for each class: AP over unanswered clips after some numbers of answers."""
    rows, all_means = [], []
    for index, classes in indexes:
        paths, held_out = index.table(range(len(index)))["file"], held_out_rows(index, HOLDOUT)
        for tag in classes:
            candidates = [k for k, path in enumerate(paths) if truth[path] == tag and not held_out[k]]
            examples = [candidates[k] for k in np.linspace(0, len(candidates) - 1, n_examples).astype(int)]
            loops = [
                run_loop(index, truth, tag, example, n_answers=CHECKPOINTS[-1], batch=5, holdout=holdout)
                for example in examples
            ]
            # Before there are answers of both kinds, there is no probe.
            at = [[scores.get(n, float("nan")) for scores, _ in loops] for n in CHECKPOINTS]
            all_means.append([np.mean(values) for values in at])
            reached = [min((n for n, ap in scores.items() if ap >= 0.9), default=None) for scores, _ in loops]
            own = [ap for _, ap in loops if ap is not None]
            rows.append(
                f"| {tag} | {' | '.join(_mean(values) for values in at)} | {min(at[-1]):.3f} | "
                f"{'no' if None in reached else max(reached)} | {_mean(own) if own else 'none'} |"
            )
            print(rows[-1], file=sys.stderr, flush=True)
    mean = [_mean(values) for values in np.array(all_means).T]
    return [*rows, f"| mean | {' | '.join(mean)} | | | |"]


def _mean(values: list[float]) -> str:
    return "none yet" if np.isnan(values).any() else f"{np.mean(values):.3f}"


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and write its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, help="file of mn04's published weights, if it is not in the cache")
    parser.add_argument("--work", type=Path, default=Path("runs") / "label_loop")
    parser.add_argument("--epochs", type=int, default=60, help="of the networks of recipe default")
    parser.add_argument("--examples", type=int, default=3, help="first examples of each class, one loop each")
    parser.add_argument("--only", nargs="+", choices=["mn04", "default"], default=["mn04", "default"])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "label_loop.md")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    listed = read_list(args.data)
    clips = listed.assign(path=[str((args.data / "audio" / name).absolute()) for name in listed["fname"]])
    truth, classes = dict(zip(clips["path"], clips["labels"], strict=True)), sorted(set(clips["labels"]))
    lines = []
    for name in args.only:
        if name == "mn04":
            indexes = [(build_index(args.work / "mn04", "mn04", clips, args.weights), classes)]
            about = "mn04, published weights of AudioSet, 512 features"
        else:
            indexes, half = [], len(classes) // 2
            for k, asked in enumerate((classes[:half], classes[half:])):
                folder = args.work / f"default_{k}"
                run = train_default(folder, clips[~clips["labels"].isin(asked)], args.epochs)
                indexes.append((build_index(folder / "index", run, clips), asked))
            n_features = indexes[0][0].settings.n_features
            about = (
                f"recipe default, {args.epochs} epochs on half of the clips of five classes, asked about the other "
                f"five; {n_features} features"
            )
        for holdout in (0.0, HOLDOUT):
            kind = "nothing held out" if holdout == 0 else f"{holdout:.0%} of sounds and questions held out"
            lines += [
                f"### {about}; {kind}", "",
                f"| class | {' | '.join(f'AP after {n}' for n in CHECKPOINTS)} | lowest after {CHECKPOINTS[-1]} | "
                "answers to 0.9, at most | own score |",
                "|---" * (len(CHECKPOINTS) + 4) + "|",
                *measure(indexes, truth, args.examples, holdout), "",
            ]
    text = "\n".join([
        f"{len(clips)} clips, {len(classes)} classes; {args.examples} loops a class, each from another example. AP is "
        "over the clips that are neither the example nor answered, mean over the loops; \"lowest\" is the lowest of "
        "the loops, \"answers to 0.9\" the number of answers after which the slowest loop first had 0.9, \"own "
        "score\" the loop's own average precision on the answered clips of held-out sounds, mean over the loops that "
        "have one. The published folds are not used, so clips of one recording may be on both sides. mn04 was trained "
        "on AudioSet, which has all ten kinds of sound, and the order of the questions was chosen on these clips with "
        "its features (likely windows alone, uncertain ones alone, and mixtures of both were tried); the networks of "
        "recipe default have seen neither the classes that they are asked about nor this choice.",
        "", *lines,
    ])
    write_report("The label loop with a scripted user", f"python -m benchmarks.label_loop {args.data.name}", text,
                 args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
