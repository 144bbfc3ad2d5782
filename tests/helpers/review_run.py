"""A run on the bundled sample that doubts three of its clips, made by hand."""

import json

import pandas as pd

from fatai.data.datasets.fat2019 import load_dataset


def doubtful_run(sample, out):
    """A folder with oof.csv and manifest.json; returns it and the three clips, as (fname, tag that is given).

    The first clip of the table looks like Rain instead of what it is, the second like what it is and Rooster, the third like Rain and less
    so. All the others look like what they are.
    """
    layout = load_dataset(sample)
    rows, doubted = [], []
    for fname, (given, *_) in zip(layout.curated["fname"], layout.curated["labels"]):
        probs = dict.fromkeys(layout.tags, 0.01) | {given: 0.9}
        if len(doubted) < 3 and given not in ("Rain", "Rooster") and given not in [tag for _, tag in doubted]:
            probs |= [{given: 0.02, "Rain": 0.95}, {"Rooster": 0.8}, {given: 0.3, "Rain": 0.45}][len(doubted)]
            doubted.append((fname, given))
        rows.append({"fname": fname, **probs})
    out.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(out / "oof.csv", index=False)
    manifest = {"run_options": {"data": str(sample)}, "data": {"folder": sample.name, "digest": "0" * 64}}
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out, doubted
