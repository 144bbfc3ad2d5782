"""The report: all sections, self-contained, safe with untrusted names, with a sentence for what is missing."""

import base64
import dataclasses
import io
import re
import shutil
import warnings
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from helpers.once import once
from scipy.special import expit
from torch import nn
from typer.testing import CliRunner

from fatai.cli import app
from fatai.data.config import ClipConfig
from fatai.errors import CheckpointError
from fatai.experiment import run as run_module
from fatai.export.pretrained import Pretrained
from fatai.inference.learner import fat_learner
from fatai.inference.predictions import Predictions
from fatai.metrics.calibration import Calibration
from fatai.metrics.calibration_curve import expected_calibration_error
from fatai.report import data as report_data
from fatai.report import html as page
from fatai.report import learner as learner_report
from fatai.report import media
from fatai.report.data import ReportData, SectionUnavailable, load_report_data
from fatai.report.html import report_html, run_report
from fatai.report.sections import examples, metrics, training

SECTIONS = [
    "overall",
    "costs",
    "tags",
    "confusions",
    "clips",
    "calibration",
    "background",
    "curves",
    "data",
    "folds",
    "amount",
    "filters",
    "speed",
    "manifest",
]


class Page(HTMLParser):
    """A parsed page: its elements, the text of its sections, and the sentences shown for missing sections."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self.missing = [], {}, []
        self.section, self.quiet, self.in_missing = None, None, False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.quiet = tag if tag in ("style", "script") else self.quiet
        if tag == "section":
            self.section = dict(attrs)["id"]
            self.texts[self.section] = ""
        if dict(attrs).get("class") == "missing":
            self.in_missing = True
            self.missing.append("")

    def handle_endtag(self, tag):
        self.quiet = None if tag == self.quiet else self.quiet
        self.section = None if tag == "section" else self.section
        self.in_missing = self.in_missing and tag != "p"

    def handle_data(self, data):
        if self.section and not self.quiet:
            self.texts[self.section] += data
        if self.in_missing:
            self.missing[-1] += data

    def of(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def sounds(page):
    """Seconds of every player's sound."""
    seconds = []
    for player in page.of("audio"):
        kind, data = player["src"].split(",", 1)
        assert kind in ("data:audio/mpeg;base64", "data:audio/wav;base64")
        seconds.append(sf.info(io.BytesIO(base64.b64decode(data, validate=True))).duration)
    return seconds


def assert_self_contained(html):
    page = Page(html)
    for tag, attrs in page.elements:
        for name, value in attrs.items():
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                assert value.startswith(("data:", "#")), (tag, name, value[:60])
            assert not name.startswith("on"), (tag, name)
    assert not re.findall(r"url\((?!#)|@import|\bimport\(|fetch\(|XMLHttpRequest", html)
    policy = next(m["content"] for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; media-src data:;")
    assert len(page.of("script")) == 1 and not page.of("iframe")


@pytest.fixture(scope="module")
def html(tiny_run, sample, tmp_path_factory):
    path = run_report(tiny_run.out, sample, tmp_path_factory.mktemp("report") / "report.html")
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def seen(html):
    return Page(html)


@pytest.fixture(scope="module")
def report(tiny_run, sample):
    return load_report_data(tiny_run.out, sample)


def test_every_section_is_drawn(seen):
    assert list(seen.texts) == SECTIONS and seen.missing == []
    links = [a["href"] for a in seen.of("a")]
    assert links == [f"#{name}" for name in SECTIONS[1:]]
    assert len([s for s in seen.of("svg") if s.get("class") == "figure"]) == 5
    assert seen.of("meta")[1]["content"] == "width=device-width, initial-scale=1"


def test_a_report_is_self_contained(html):
    assert_self_contained(html)


def test_it_shows_the_scores_of_the_run(seen, tiny_run):
    overall = seen.texts["overall"]
    assert f"{tiny_run.oof_score:.3f}" in overall and "120" in overall and "95 % interval" in overall
    assert all(f"{score:.3f}" in seen.texts["folds"] for score in tiny_run.fold_scores.values())
    assert all(tag in seen.texts["tags"] for tag in tiny_run.oof.tags)
    assert (
        "100 clips with 1, 20 clips with 2" in seen.texts["data"]
        and "No broken or missing files" in seen.texts["data"]
    )
    history = pd.read_csv(tiny_run.out / "fold_1" / "history.csv")
    assert f"{history['lwlrap'].iloc[-1]:.3f}" in seen.texts["curves"] and "fit" in seen.texts["curves"]
    assert "8 of 8 filters of fold 0: 3 bands (upwards) by 3 frames (47 ms" in seen.texts["filters"]
    assert '"recipe": "quick"' in seen.texts["manifest"] and 'arch = "m1"' in seen.texts["manifest"]


def test_clips_have_players_and_spectrograms(seen, sample):
    seconds = sounds(seen)
    assert len(seconds) == 12 and min(seconds) > 0.4
    pictures = [s for s in seen.of("svg") if s.get("class") == "spectrogram"]
    assert 24 <= len(pictures) <= 36 and all(p["aria-label"] for p in pictures)
    assert "seconds" in seen.texts["clips"] and "Hz" in seen.texts["clips"]
    names = [h for h in re.findall(r"[0-9a-f]{8}\.ogg", seen.texts["clips"])]
    labels = pd.read_csv(sample / "train_curated.csv").set_index("fname")["labels"]
    assert len(set(names)) == 12 and set(names) <= set(labels.index)
    assert all(tag in seen.texts["clips"] for name in names for tag in labels[name].split(","))


def test_the_worst_come_before_the_best(report):
    cards = examples.best_and_worst_clips(report)
    _, probs, targ = report.scored()
    precisions = {side: [card.precision for card in cards[side]] for side in ("worst", "best")}
    assert precisions["worst"] == sorted(precisions["worst"]) and precisions["best"] == sorted(
        precisions["best"], reverse=True
    )
    assert max(precisions["worst"]) < min(precisions["best"])
    for card in (*cards["worst"], *cards["best"]):
        row = report.predictions.select([card.fname]).probs[0]
        assert [tag for tag, _, _ in card.top] == [report.tags[k] for k in np.argsort(-row)[:3]]
        present = [k for k, tag in enumerate(report.tags) if tag in card.labels.split(", ")]
        ranks = [(row >= row[k]).sum() for k in present]
        assert card.lowest[1] == max(ranks) and card.fold == report.folds[card.fname]
        assert card.precision == pytest.approx(
            np.mean([(row[present] >= row[k]).sum() / r for k, r in zip(present, ranks, strict=True)])
        )


def test_the_same_run_gives_the_same_bytes_by_command(tiny_run, sample, tmp_path, html):
    ended = CliRunner().invoke(
        app, ["report", str(tiny_run.out), "--data", str(sample), "--out", str(tmp_path / "again.html")]
    )
    assert ended.exception is None, ended.exception
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == html
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/again.html: \d\.\d MB\n", ended.stdout)


@pytest.mark.usefixtures("undrawn")
def test_without_its_data_a_run_still_has_its_scores(tiny_run, tmp_path):
    path = run_report(tiny_run.out, out=tmp_path / "alone.html")
    alone = Page(path.read_text(encoding="utf-8"))
    assert f"{tiny_run.oof_score:.3f}" in alone.texts["overall"] and sounds(alone) == []
    assert any(
        "The sounds are not available, so there are no players: give the data with --data." in s
        for s in alone.missing
    )
    assert any("lengths are not shown" in s for s in alone.missing) and "Its sound is not available." in alone.missing
    assert_self_contained(path.read_text(encoding="utf-8"))


EVIL = '</script><script>alert(1)</script>"\'><img src=x onerror=alert(2)> $\\frac{1} {{ 7*7 }} &amp;'


def test_untrusted_names_are_escaped(report):
    tags = tuple(f"{EVIL}{tag}" for tag in report.tags)
    known = report.predictions
    network = report.network

    def renamed(fold):
        return dataclasses.replace(network(fold), tags=tags)

    evil = dataclasses.replace(
        report,
        name=EVIL,
        tags=tags,
        predictions=Predictions(tuple(EVIL + f for f in known.fnames), tags, known.probs),
        truth={EVIL + f: row for f, row in report.truth.items()},
        folds={EVIL + f: k for f, k in report.folds.items()},
        paths={EVIL + f: path for f, path in report.paths.items()},
        parts={EVIL: report.parts["test"]},
        broken=(EVIL,),
        histories={EVIL: report.histories["fold_0"].assign(stage=EVIL)},
        manifest={"machine": {EVIL: EVIL}, "finished": EVIL},
        notes={EVIL: EVIL},
        network=renamed,
    )
    html = report_html(evil)
    assert_self_contained(html)
    shown = Page(html)
    assert "<img src=x onerror=alert(2)> $\\frac" in shown.texts["tags"] and "49" not in shown.of("title")
    assert len(shown.of("img")) == 1, "the filters"
    assert len(sounds(shown)) == 12 and any(EVIL in s["aria-label"] for s in shown.of("svg"))


class Small(nn.Module):
    """A network whose Grad-CAM costs little."""

    def __init__(self, n_tags):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.last = nn.Linear(4, n_tags)

    def forward(self, spec):
        return self.last(self.conv(spec).mean((2, 3)))


@pytest.mark.parametrize("mp3", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_no_run_makes_more_than_15_megabytes(mp3, tmp_path, rng, monkeypatch):
    n, n_tags = 3000, 300
    monkeypatch.setattr(media, "_encode_mp3", once(media._encode_mp3))  # all clips are the same noise
    if not mp3:
        monkeypatch.setattr(sf, "available_formats", lambda: {"WAV": "WAV"})
    # Noise is what packs worst, and a front end of many bands and frames makes the largest pictures.
    sf.write(tmp_path / "noise.wav", rng.uniform(-1, 1, 44100 * 11).astype(np.float32), 44100)
    fnames = tuple(f"{k:05d}{'long' * 100}.wav" for k in range(n))
    tags = tuple(f"{k:04d} {'tag ' * 50}" for k in range(n_tags))
    settings = ClipConfig(front_end=ClipConfig().front_end.replace(n_mels=256, hop_length=441))
    network = Pretrained(Small(n_tags), tags, settings, np.zeros(n_tags), None, {}, {})
    epochs = pd.DataFrame(rng.random((3000, 4)), columns=["train_loss", "valid_loss", "lwlrap", "seconds"])
    large = ReportData(
        name="large",
        kind="run",
        tags=tags,
        predictions=Predictions(fnames, tags, rng.random((n, n_tags))),
        truth=dict(zip(fnames, rng.random((n, n_tags)) < 0.005, strict=True)),
        folds={f: k % 20 for k, f in enumerate(fnames)},
        paths=dict.fromkeys(fnames, tmp_path / "noise.wav"),
        parts={"curated": [tmp_path / "noise.wav"] * 50},
        broken=tuple("broken " * 100 for _ in range(5000)),
        histories={
            f"fold_{k}": epochs.assign(epoch=range(3000), stage=[f"{i // 9}" for i in range(3000)]) for k in range(20)
        },
        network=lambda fold: network,
        manifest={"machine": {"cpu": "fast" * 1000}},
        notes={"Manifest": "x" * 100_000},
    )
    html = report_html(large)
    assert len(html.encode()) < 15e6
    shown = Page(html)
    assert len(sounds(shown)) == 12 and max(sounds(shown)) < media.MAX_SECONDS + 0.2
    assert sum("vidence for" in t for t in re.findall(r"<figcaption>([^<]*)", html)) >= 12
    assert "100 more" in shown.texts["tags"] and "4800 more" in shown.texts["data"]


def scored_report(probs, targ, tags, **given):
    fnames = tuple(f"{k}.wav" for k in range(len(probs)))
    truth = dict(zip(fnames, np.array(targ, dtype=bool), strict=True))
    folds = {fname: k % 2 for k, fname in enumerate(fnames)}
    return ReportData(
        name="small", kind="run", tags=tags, predictions=Predictions(fnames, tags, np.array(probs)), truth=truth,
        folds=folds, **given,
    )


@pytest.mark.usefixtures("undrawn")
def test_with_one_tag_average_precision_is_reported_and_lwlrap_is_not_applicable():
    # Present: 0.9 (rank 1) and 0.4 (rank 3): AP = (1/1 + 2/3) / 2; three of four pairs are in order.
    report = scored_report(
        [[0.9], [0.2], [0.6], [0.4]], [[1], [0], [0], [1]], ("Rain",), manifest={"map": {"folds": {"0": 0.75}}}
    )
    overall = metrics.overall(report)
    assert overall["lwlrap"] is None and overall["auc"] == 0.75
    assert overall["map"] == overall["interval"].value == pytest.approx(5 / 6)
    html = report_html(report)
    texts = Page(html).texts
    assert "0.833average precision" in texts["overall"] and "lwlrap: not applicable" in texts["overall"]
    assert "not applicable to one tag. Between clips: average precision 0.833, AUC 0.750." in texts["costs"]
    assert "No tag" not in texts["costs"] + texts["confusions"]
    assert re.search(r"Rain\s*2\s*–", texts["tags"]), "lwlrap is a dash"
    assert "average precision" in texts["folds"] and "0.750" in texts["folds"]


def test_the_matrix_of_confusions_has_the_percentages_as_numbers():
    # Of three clips with Rain alone one ranks Wind as high; of two with Wind alone both rank Rain as high.
    probs = np.array([[0.9, 0.1], [0.8, 0.1], [0.3, 0.6], [0.7, 0.2], [0.5, 0.5]])
    targ = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1]], dtype=bool)
    drawn = metrics.confusions(scored_report(probs, targ, ("Rain", "Wind")))["figure"]
    numbers = re.findall(r">(\d+)</text>", drawn)
    assert numbers.count("33") == 1 and numbers.count("100") == 2, "one 100 is a tick of the colors"


@pytest.mark.usefixtures("undrawn")
def test_the_score_by_clips_per_tag_and_the_frozen_network_are_those_of_the_manifest():
    manifest = {
        "clips_per_tag": {"counts": [1, 2, 4.5], "scores": [0.5, 0.7, 0.8], "twice": 0.85},
        "frozen_baseline": {"text": "a frozen mn04 <b>: 0.937"},
    }
    report = scored_report([[0.5, 0.4], [0.1, 0.2]], [[1, 0], [0, 1]], ("a", "b"), manifest=manifest)
    texts = Page(report_html(report)).texts
    assert "on the same folds: a frozen mn04 <b>: 0.937" in texts["overall"]
    assert "not the network of this run" in texts["amount"]
    assert "With 4.5 of each tag the lwlrap of the held-out clips is 0.800; twice the clips" in texts["amount"]
    assert "about 0.850" in texts["amount"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("noted", [None, [], {"counts": [1, 2], "scores": [0.5], "twice": 1}, {"counts": ["x", {}]}])
def test_a_manifest_without_a_curve_gives_a_sentence(noted):
    report = scored_report([[0.5, 0.4], [0.1, 0.2]], [[1, 0], [0, 1]], ("a", "b"), manifest={"clips_per_tag": noted})
    assert "was not measured against the number of clips" in Page(report_html(report)).texts["amount"]


@pytest.mark.usefixtures("undrawn")
def test_a_perfect_lwlrap_beside_a_poor_auc_is_not_called_without_cost():
    # Every clip ranks its own tag first, but the third, without a tag, scores highest of all.
    # AUC: a 1/2, b 0; AP: a 1/2, b 1/3.
    report = scored_report([[0.5, 0.4], [0.1, 0.2], [0.9, 0.8]], [[1, 0], [0, 1], [0, 0]], ("a", "b"))
    text = Page(report_html(report)).texts["costs"]
    assert "lwlrap is 1" in text and "Between clips: average precision 0.417, AUC 0.250." in text
    assert "No tag costs" not in text


def test_the_best_epoch_of_a_stage_is_the_one_that_is_selected():
    part = pd.DataFrame({"stage": "fit", "valid_loss": [0.5, 0.2, 0.2, 0.1], "map": [1.0, 1.0, 1.0, 0.9]})
    assert training._stage_row(part, "map")["best_epoch"] == 3


def test_a_calibrated_run_shows_both_curves(rng):
    # Known probabilities, drawn tags, and predictions that are four times too confident in log-odds.
    logits = rng.normal(size=(900, 4))
    targ = rng.random((900, 4)) < expit(logits)
    fnames, tags = tuple(f"{k}.wav" for k in range(900)), tuple("abcd")
    report = ReportData(
        name="overconfident", kind="run", tags=tags, predictions=Predictions(fnames, tags, expit(4 * logits)),
        truth=dict(zip(fnames, targ, strict=True)), folds={fname: k % 3 for k, fname in enumerate(fnames)},
    )
    calibration = Calibration.fit(*report.scored()[1:], tags)
    before, after = (metrics.calibration(dataclasses.replace(report, calibration=c)) for c in (None, calibration))
    assert list(before["errors"]) == ["as predicted"] and list(after["errors"]) == ["as predicted", "calibrated"]
    assert before["errors"]["as predicted"] == pytest.approx(expected_calibration_error(*report.scored()[1:]))
    assert after["errors"]["calibrated"] < 0.05 and after["errors"]["as predicted"] > 0.15
    assert before["pairs"] == 3600 and "calibrated: error" in after["figure"] and "calibrated" not in before["figure"]


@pytest.fixture
def copied(tiny_run, tmp_path):
    return shutil.copytree(tiny_run.out, tmp_path / "run")


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_out_of_fold_predictions_has_sentences_instead(copied, sample):
    (copied / "oof.csv").unlink()
    shown = Page(run_report(copied, sample).read_text(encoding="utf-8"))
    assert sum("no predictions of held-out clips (oof.csv)" in s for s in shown.missing) == 6
    assert (
        "fit" in shown.texts["curves"] and "8 of 8 filters" in shown.texts["filters"] and "60" in shown.texts["folds"]
    )


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("file", "text", "section", "shown_text"), [
    ("oof.csv", "fname,Bark\na.wav,loud\n", "overall", "no predictions of held-out clips"),
    ("folds.csv", "fname,fold,labels\na.wav\n", "overall", "labels of the held-out clips are not available"),
    ("manifest.json", "{", "manifest", "Recipe"),
    ("recipe.toml", "name = 3", "filters", "no single network here"),
    ("fold_0/history.csv", "PK\x03\x04", "curves", "fold 1"),
    ("fold_0/model.safetensors", "no weights", "filters", "fold 1"),
    ("calibration.json", "[]", "calibration", "as predicted"),
])
def test_a_damaged_file_removes_its_section_only(copied, sample, file, text, section, shown_text):
    (copied / file).write_text(text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shown = Page(run_report(copied).read_text(encoding="utf-8"))
    assert shown_text in shown.texts[section] and list(shown.texts) == SECTIONS
    assert any(file.split("/")[-1] in str(w.message) or "scores" in str(w.message) for w in caught) or "/" in file


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_stored_labels_takes_them_from_the_data(copied, sample, tiny_run):
    table = pd.read_csv(copied / "folds.csv")
    table[["fname", "fold"]].to_csv(copied / "folds.csv", index=False)
    assert any("give the data with --data" in s for s in Page(run_report(copied).read_text(encoding="utf-8")).missing)
    overall = metrics.overall(load_report_data(copied, sample))
    assert overall["lwlrap"].value == pytest.approx(tiny_run.oof_score) and overall["clips"] == 120


def test_a_missing_sound_is_reported_on_its_card(report, tmp_path):
    gone = dataclasses.replace(
        report, paths={f: tmp_path / f for f in report.paths}, parts={"curated": [tmp_path / "none.wav"]}
    )
    cards = examples.best_and_worst_clips(gone, 2)
    assert all(
        c.fault.startswith("Its sound cannot be read: ") and not c.player for c in (*cards["worst"], *cards["best"])
    )
    (row,) = training.data_summary(gone)["parts"]
    assert row == {"part": "curated", "files": 1, "n_read": 1, "unreadable": 1}


def test_a_network_without_feature_maps_is_reported_once(report):
    class Flat(nn.Module):
        def forward(self, spec):
            return spec.mean((1, 2, 3))[:, None].expand(-1, 10)

    settings = report.recipe.settings()
    flat = dataclasses.replace(
        report, network=lambda fold: Pretrained(Flat(), report.tags, settings, np.zeros(10), None, {}, {})
    )
    cards = examples.best_and_worst_clips(flat, 2)
    assert re.fullmatch(r"Grad-CAM is not shown: Flat has no .*convolution.*\.", cards["trouble"])
    assert all(c.player and len(c.pictures) == 1 and not c.fault for c in (*cards["worst"], *cards["best"]))
    with pytest.raises(SectionUnavailable, match="The filters are not shown: Flat has no convolution"):
        examples.first_layer_filters(flat)


def test_a_network_that_cannot_be_built_is_reported(report, tiny_run, sample, monkeypatch):
    def unreachable(run, fold):
        raise OSError("the hub does not answer")

    monkeypatch.setattr(report_data, "trained_model", unreachable)
    cards = examples.best_and_worst_clips(load_report_data(tiny_run.out, sample), 1)
    assert "cannot be built: the hub does not answer" in cards["trouble"] and cards["best"][0].player


def test_predictions_of_other_tags_than_the_network_are_reported(report):
    other = dataclasses.replace(
        report, network=lambda fold: dataclasses.replace(report.network(fold), tags=tuple("abcdefghij")),
    )
    assert "the network of the run lacks the tag" in examples.best_and_worst_clips(other, 1)["trouble"]


@pytest.mark.usefixtures("undrawn")
def test_an_ensemble_has_its_scores_and_links_to_its_members(tiny_run, sample, tmp_path):
    for name in ("one", "two & three"):
        shutil.copytree(tiny_run.out, tmp_path / name)
    shutil.copy(tiny_run.out / "oof.csv", tmp_path / "oof.csv")
    (tmp_path / "blend.txt").write_text("mean of <two>\n")
    shown = Page(run_report(tmp_path, sample).read_text(encoding="utf-8"))
    assert f"{tiny_run.oof_score:.3f}" in shown.texts["overall"] and "mean of <two>" in shown.texts["manifest"]
    assert [a["href"] for a in shown.of("a") if "report" in a["href"]] == [
        "one/report.html",
        "two%20%26%20three/report.html",
    ]
    assert any("no single network here" in s for s in shown.missing) and len(sounds(shown)) == 12


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"is no run; expected a folder with recipe.toml, oof.csv, folds.csv"):
        run_report(tmp_path)


def test_a_report_that_fails_leaves_the_run(copied, sample, monkeypatch):
    def fail(*args):
        raise ZeroDivisionError("of some kind")

    monkeypatch.setattr(page, "report_html", fail)
    lines = []
    with pytest.warns(
        UserWarning,
        match=r"run is finished, but its report could not be drawn \(ZeroDivisionError: of some kind\); try again",
    ):
        run_module.draw_report(run_report, copied, sample, lines.append)
    assert not lines and not list(copied.glob("*report*"))


@pytest.mark.usefixtures("undrawn")
def test_a_learner_reports_its_held_out_clips(small_dls, tmp_path, monkeypatch):
    learn = fat_learner(small_dls, "m1", width=0.125, precision="fp32")
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    preds = learn.tta(n=1)
    path = learn.report(tmp_path / "held.html", preds=preds)
    shown = Page(path.read_text(encoding="utf-8"))
    assert f"{preds.oof_score:.3f}" in shown.texts["overall"] and "30" in shown.texts["overall"]
    assert shown.missing == [
        "A learner holds out one part of its clips; it has no folds.",
        "The times were not recorded.",
    ]
    assert (
        len(sounds(shown)) == 12 and "training" in shown.texts["data"] and '"network": "m1"' in shown.texts["manifest"]
    )
    assert f"{learn.recorder.values[-1][2]:.3f}" in shown.texts["curves"]
    assert_self_contained(path.read_text(encoding="utf-8"))
    monkeypatch.setattr(type(learn), "tta", lambda self, **options: preds if options == {"n": 1} else None)
    assert learn.report(tmp_path / "again.html", n=1).read_bytes() == path.read_bytes()


def test_an_untrained_learner_has_no_curves(small_dls):
    learn = fat_learner(small_dls, "m1", width=0.125, precision="fp32")
    valid = learn.dls.files(1)
    guessed = Predictions(tuple(valid["fname"]), learn.tags, np.full((len(valid), 10), 0.5))
    with pytest.raises(SectionUnavailable, match="there are no curves"):
        training.training_curves(learner_report.learner_report_data(learn, guessed))


def test_the_plots_of_the_start_page_run(small_dls, tmp_path, monkeypatch):
    plt.close("all")  # those of other tests
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "start.md").read_text(encoding="utf-8")
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "learn.report(" in b]
    learn = fat_learner(small_dls, "m1", width=0.125, precision="fp32")
    with learn.no_bar():
        exec(compile(block, "docs/start.md", "exec"), {"learn": learn})
    assert (
        len(plt.get_fignums()) == 4
        and list(Page((tmp_path / "report.html").read_text(encoding="utf-8")).texts) == SECTIONS
    )
    plt.close("all")


@pytest.mark.usefixtures("undrawn")
def test_the_command_finds_the_data_of_the_run_for_players(tiny_run, main_with, tmp_path):
    ended = main_with("report", tiny_run.out, "--out", tmp_path / "again.html")
    assert ended.returncode == 0 and "<audio" in (tmp_path / "again.html").read_text()
