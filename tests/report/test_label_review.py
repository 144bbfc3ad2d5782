"""Label issues of a run, as a page, as corrections.csv, and in the next run."""

import base64
import hashlib
import json
import re
import warnings
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from fatai.data.datasets.fat2019 import load_dataset
from fatai.data.labels import read_corrections
from fatai.errors import DataError, LabelError
from fatai.report.decisions import Decisions
from fatai.report.label_review import clip_media, load_review, review_page, write_review


def test_issues_are_ordered_by_tag_the_most_suspect_first(issue_run):
    run, ((first, a), (second, b), (third, c)) = issue_run
    review = load_review(run)
    # Log-odds: 6.8 of the first's tag against Rain, 1.4 of Rooster in the second, 0.6 of the third's tag against Rain.
    assert [clip.fname for clip in review.clips] == [first, second, third]
    found = {(review.clips[s.clip].fname, s.tag, s.kind, s.instead) for s in review.issues}
    assert found == {
        (first, a, "wrong", "Rain"),
        (first, "Rain", "missing", ""),
        (second, "Rooster", "missing", ""),
        (third, c, "wrong", "Rain"),
    }
    assert [s.tag for s in review.issues] == sorted((s.tag for s in review.issues), key=review.tags.index)
    assert review.given == {first: (a,), second: (b,), third: (c,)}


def test_scores_are_those_of_the_likeliest_and_the_given_tags(issue_run):
    run, ((first, a), *_) = issue_run
    clip = next(c for c in load_review(run).clips if c.fname == first)
    assert clip.scores[0] == ("Rain", 0.95) and dict(clip.scores)[a] == 0.02 and len(clip.scores) == 6


def test_n_keeps_the_most_suspect_clips(issue_run):
    run, ((first, _), *_) = issue_run
    assert [clip.fname for clip in load_review(run, n=1).clips] == [first]


def test_the_path_of_the_data_is_that_of_the_manifest_or_an_error(issue_run, sample):
    run, _ = issue_run
    assert len(load_review(run).clips) == 3
    manifest = json.loads((run / "manifest.json").read_text())
    for lacking in ({"run_options": {"data": "gone"}}, {"run_options": {}}, {"run_options": "words"}):
        (run / "manifest.json").write_text(json.dumps({**manifest, **lacking, "data": {"folder": "gone"}}))
        with pytest.raises(DataError, match="names no data that exist.*gone.*--data"):
            load_review(run)
    assert len(load_review(run, sample).clips) == 3


def test_no_issue_and_no_common_clip_are_errors(issue_run, sample):
    run, _ = issue_run
    table = pd.read_csv(run / "oof.csv")
    labels = load_dataset(sample).curated.set_index("fname")["labels"]
    for k, fname in enumerate(table["fname"]):
        table.iloc[k, 1:] = [0.9 if tag in labels[fname] else 0.1 for tag in table.columns[1:]]
    table.to_csv(run / "oof.csv", index=False)
    with pytest.raises(DataError, match="contradict no label of 120 clips"):
        load_review(run)
    table.assign(fname=[f"x{k}.wav" for k in range(len(table))]).to_csv(run / "oof.csv", index=False)
    with pytest.raises(DataError, match="has none of the 120 clips"):
        load_review(run)


def test_media_of_a_clip_are_cut_and_a_broken_file_gives_its_error(issue_run, tmp_path):
    run, _ = issue_run
    clip = load_review(run).clips[0]
    media = clip_media(clip, 0.25)
    assert media["seconds"] == 0.25 < media["total_seconds"]
    assert media["sound"].startswith("data:audio/") and media["picture"].startswith("data:image/png")
    (tmp_path / "broken.ogg").write_bytes(b"words")
    broken = type(clip)("broken.ogg", tmp_path / "broken.ogg", (), ())
    media = clip_media(broken, 1)
    assert list(media) == ["error"] and media["error"].startswith("broken.ogg: this is text")


class Page(HTMLParser):
    """The scripts, styles and addresses of a page."""

    def __init__(self, html):
        super().__init__()
        self.inside, self.parts, self.links = None, {}, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.inside = f"{tag}{dict(attrs).get('type', '')}" if tag in ("script", "style") else None
        self.links += [value for name, value in attrs if name in ("src", "href", "action", "data")]

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.parts[self.inside] = self.parts.get(self.inside, "") + data


def test_the_page_is_self_contained_and_forbids_everything_else(issue_run, tmp_path):
    run, _ = issue_run
    write_review(run, tmp_path / "review.html")
    html = (tmp_path / "review.html").read_text()
    page = Page(html)
    assert set(page.links) == {"data:,", "#"}
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1].replace("&#39;", "'")
    for part in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.parts[part].encode()).digest()).decode()
        assert f"{part}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    data = json.loads(page.parts["scriptapplication/json"])
    assert [clip["seconds"] > 0 for clip in data["clips"]] == [True] * 3 and data["decided"] == {}


def test_names_with_markup_are_escaped(issue_run, tmp_path):
    run, _ = issue_run
    review = load_review(run)
    evil = "</script><script>alert(1)</script>"
    html = review_page(type(review)(evil, (evil,), (), ()), {"title": evil, "decided": {evil: None}})
    assert html.count("<script>") == 1 and "alert(1)</script>" not in html
    assert json.loads(Page(html).parts["scriptapplication/json"])["title"] == evil


def test_decisions_become_corrections_that_loaders_read(tmp_path):
    given = {"a.wav": ("Bark",), "b.wav": ("Bark",), "c,1.wav": ("Meow",)}
    decisions = Decisions(tmp_path / "corrections.csv", ("Bark", "Meow"), given)
    assert decisions.read() == {}
    counts = [decisions.decide(*one) for one in (("a.wav", ["Meow", "Bark"]), ("b.wav", ["Bark"]), ("c,1.wav", None))]
    assert counts == [1, 2, 3]
    assert decisions.read() == {"a.wav": ["Meow", "Bark"], "b.wav": ["Bark"], "c,1.wav": None}
    assert (tmp_path / "corrections.csv").read_text() == 'fname,labels\na.wav,"Meow,Bark"\n"c,1.wav",remove\n'
    assert (tmp_path / "corrections.confirmed.csv").read_text() == "fname\nb.wav\n"
    assert read_corrections(tmp_path / "corrections.csv")["fname"].tolist() == ["a.wav", "c,1.wav"]
    # Changed and undone decisions.
    assert decisions.decide("a.wav", ["Bark"]) == 3 and decisions.undo("c,1.wav") == 2
    assert decisions.read() == {"a.wav": ["Bark"], "b.wav": ["Bark"]}
    assert (tmp_path / "corrections.csv").read_text() == "fname,labels\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corrections.confirmed.csv", "corrections.csv"]


def test_changes_of_the_file_by_others_are_kept(tmp_path):
    decisions = Decisions(tmp_path / "corrections.csv", ("Bark", "Meow"), {"a.wav": ("Bark",)})
    (tmp_path / "corrections.csv").write_text("fname,labels\nother.wav,Meow\n")
    assert decisions.decide("a.wav", ["Meow"]) == 1
    assert read_corrections(tmp_path / "corrections.csv")["fname"].tolist() == ["a.wav", "other.wav"]


@pytest.mark.parametrize(
    ("fname", "labels", "words"),
    [
        ("x.wav", ["Bark"], "'x.wav' is no clip of this review"),
        ("../a.wav", None, "no clip of this review"),
        ("a.wav", [], "no tag left"),
        ("a.wav", ["Bakr"], "unknown tag 'Bakr'; did you mean Bark"),
        ("a.wav", ["remove"], "unknown tag"),
        ("a.wav", ["=1+1"], "unknown tag"),
    ],
)
def test_invalid_decisions_are_errors_and_write_nothing(tmp_path, fname, labels, words):
    with pytest.raises(LabelError, match=re.escape(words)):
        Decisions(tmp_path / "corrections.csv", ("Bark", "Meow"), {"a.wav": ("Bark",)}).decide(fname, labels)
    assert list(tmp_path.iterdir()) == []


def test_a_clip_without_tags_can_be_right(tmp_path):
    decisions = Decisions(tmp_path / "c.csv", ("Bark",), {"a.wav": ()})
    assert decisions.decide("a.wav", []) == 1 and decisions.read() == {"a.wav": []}


def test_a_run_applies_the_corrections_of_a_review(issue_run, sample, tmp_path, tiny_recipe):
    from fatai.experiment.run import run_recipe

    run, ((first, _), (second, b), (third, _)) = issue_run
    review = load_review(run)
    decisions = Decisions(run / "corrections.csv", review.tags, review.given)
    decisions.decide(first, ["Rain"])
    decisions.decide(second, [b])
    decisions.decide(third, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a correction that fits no clip would warn
        labels = load_dataset(sample, run / "corrections.csv").curated.set_index("fname")["labels"]
    assert labels[first] == ["Rain"] and labels[second] == [b] and third not in labels
    done = run_recipe(
        sample,
        tiny_recipe.override(epochs=1),
        tmp_path / "again",
        corrections=run / "corrections.csv",
        num_workers=0,
        predict_test=False,
    )
    assert third not in done.oof.fnames and len(done.oof.fnames) == 119
    truth = done.oof.align_with(pd.DataFrame({"fname": labels.index, "labels": list(labels)}))
    assert np.isfinite(truth.probs).all()


def test_the_command_writes_the_page_and_continues_with_corrections(issue_run, main_with, tmp_path):
    run, ((first, _), *_) = issue_run
    (run / "corrections.csv").write_text(f"fname,labels\n{first},Rain\nelsewhere.wav,remove\n")
    ended = main_with("review", run, "--max-seconds", "0.2", "-n", "2")
    assert ended.returncode == 0 and "review.html: 2 clips, " in ended.stdout
    data = json.loads(Page((run / "review.html").read_text()).parts["scriptapplication/json"])
    assert data["decided"] == {first: ["Rain"], "elsewhere.wav": None}
    (run / "corrections.csv").write_text("fname,labels\na.wav,Nosuch\n")
    ended = main_with("review", run, "--serve", "--port", "0")
    assert ended.returncode == 2 and "unknown tag 'Nosuch'" in ended.stderr
