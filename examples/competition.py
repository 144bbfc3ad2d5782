"""Learn to blend runs and submit: python examples/competition.py DATA OUT.

DATA has the competition's layout. Two recipes are trained in folds, compared on their out-of-fold predictions,
blended with weights that are fitted on these, and written as a submission that is checked against the sample. The
score of the blend is nested: the weights of each fold are fitted on the other folds. Without arguments it uses the
bundled sounds and two narrow networks for three epochs each: 13 s of processor time, lwlrap 0.35, little more than
chance; with others, recipes `quick` and `ninth`.
"""

import sys
import tempfile
from pathlib import Path

from fatai.all import Recipe, check_submission, compare_runs, ensemble_report, fat_sample, load_recipe, run_recipe


def main(data: Path, out: Path, recipes: list[Recipe]) -> None:
    """Train the recipes, compare and blend them, and write a checked submission."""
    runs = [run_recipe(data, recipe, out / f"run_{k}").out for k, recipe in enumerate(recipes)]
    truth, sample = data / "train_curated.csv", data / "sample_submission.csv"
    print(compare_runs(runs, truth))
    blend = ensemble_report(runs, "forward", truth=truth)
    print(blend)
    blend.predictions.to_submission(out / "submission.csv", sample=sample)
    check_submission(out / "submission.csv", sample)
    print(f"{out / 'submission.csv'}: {len(blend.predictions)} clips, checked")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        main(Path(sys.argv[1]), Path(sys.argv[2]), [load_recipe("quick"), load_recipe("ninth")])
    else:
        quick = load_recipe("quick").override(arch="m1", width=0.125, epochs=3, crop_s=1.0, n_views=1)
        with tempfile.TemporaryDirectory() as scratch:
            main(fat_sample(), Path(scratch), [quick, quick.override(arch="m0", seed=1)])
