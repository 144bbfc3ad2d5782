"""A run folder on the bundled sample with label issues in three clips."""

import json

import pandas as pd

from fatai.data.datasets.fat2019 import load_dataset


def write_issue_run(sample, out):
    """Write a folder with oof.csv and manifest.json; return it and the three clips as (fname, given tag).

    The first clip of the table is predicted as Rain instead of its tag, the second as its tag and Rooster, the third as
    Rain with a lower probability. All others are predicted as their tag.
    """
    data = load_dataset(sample)
    rows, issues = [], []
    for fname, (given, *_) in zip(data.curated["fname"], data.curated["labels"], strict=True):
        probs = dict.fromkeys(data.tags, 0.01) | {given: 0.9}
        if len(issues) < 3 and given not in ("Rain", "Rooster") and given not in [tag for _, tag in issues]:
            probs |= [{given: 0.02, "Rain": 0.95}, {"Rooster": 0.8}, {given: 0.3, "Rain": 0.45}][len(issues)]
            issues.append((fname, given))
        rows.append({"fname": fname, **probs})
    out.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(out / "oof.csv", index=False)
    manifest = {"run_options": {"data": str(sample)}, "data": {"folder": sample.name, "digest": "0" * 64}}
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out, issues
