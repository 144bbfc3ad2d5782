"""The label loop: labels of windows as files, probes on answers alone, honest scores, and questions."""

import math

import numpy as np
import pytest
import soundfile as sf
from helpers.tone_index import SR, tone, tone_encoder, write_tones

from fatai.data.tables import read_sound_table
from fatai.errors import DataError, LabelError, OptionError
from fatai.inference.search.index import SoundIndex, index_sounds
from fatai.inference.search.label_loop import LabelLoop
from fatai.inference.search.labels import (
    WindowLabelFile,
    label_windows,
    merge_labels,
    read_window_labels,
    window_label_table,
    window_name,
)
from fatai.inference.search.questions import fit_probe, held_out_rows, held_out_score, next_questions
from fatai.metrics.classification import mean_ap


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """An index of 60 tones by a network without tags."""
    folder = tmp_path_factory.mktemp("tones")
    index_sounds(folder / "index", tone_encoder(()), write_tones(folder / "sounds", 60), part_windows=25)
    return SoundIndex(folder / "index")


def answers(index, rows, tag="low"):
    table = index.table(rows)
    return window_label_table(
        {"file": row.file, "start": row.start, "end": row.end,
         **({"labels": [tag]} if "low" in row.file else {"absent": [tag]})}
        for row in table.itertuples()
    )


def test_labels_are_written_at_once_and_a_table_of_sounds_that_run_reads(tones, tmp_path):
    file = WindowLabelFile(tmp_path / "labels.csv", "anna")
    (a, b), names = tones.table([0, 1])["file"], []
    for path in (a, b):
        names.append(window_name(path, 0.0, 1.0))
    file.write(names[0], ["low", "loud"])
    assert file.write(names[1], [], ["low"]) == 2
    assert file.decisions() == {
        names[0]: {"labels": ["low", "loud"], "absent": []}, names[1]: {"labels": [], "absent": ["low"]}
    }
    assert (tmp_path / "labels.csv").read_text() == (
        f'file,start,end,labels,absent,user\n{a},0.0,1.0,"low,loud",,anna\n{b},0.0,1.0,,low,anna\n'
    )
    table = read_sound_table(tmp_path / "labels.csv")
    assert table["path"].tolist() == [f"{a}#t=0,1", f"{b}#t=0,1"] and table["exists"].all()
    assert table["labels"].tolist() == [["low", "loud"], []]
    # Another process continues, and an answer is withdrawn.
    again = WindowLabelFile(tmp_path / "labels.csv")
    assert again.write(names[0], None) == 1 and [*again.decisions()] == [names[1]]
    with pytest.raises(LabelError, match="both present and absent"):
        again.write(names[0], ["low"], ["low"])


@pytest.mark.parametrize(("row", "words"), [
    ("a.wav,1,0.5,low", r"row 1 \(line 2\).*an end after the start"), ("a.wav,x,2,low", "start 'x'"),
    (",0,1,low", "expected a file"),
])
def test_wrong_times_of_labels_name_the_row(tmp_path, row, words):
    (tmp_path / "labels.csv").write_text(f"file,start,end,labels\n{row}\n")
    with pytest.raises(DataError, match=words):
        read_window_labels(tmp_path / "labels.csv")


def test_labels_of_several_users_merge_and_contradictions_are_left_out_and_listed():
    def row(user, labels, absent=(), start=0.0):
        return {"file": "a.wav", "start": start, "end": start + 1, "labels": [*labels], "absent": [*absent],
                "user": user}

    anna = window_label_table([row("anna", ["low"]), row("anna", ["loud"], start=2.0), row("anna", ["x"], start=4.0)])
    ben = window_label_table([row("ben", [], ["low"]), row("ben", ["low"], start=2.0), row("ben", ["x"], start=4.0)])
    merged, conflicts = merge_labels([anna, ben])
    assert merged[["start", "labels", "user"]].values.tolist() == [
        [2.0, ["loud", "low"], "anna ben"], [4.0, ["x"], "anna ben"]
    ]
    assert conflicts.values.tolist() == [["a.wav", 0.0, 1.0, "low", "anna", "ben"]]


def test_labels_describe_windows_by_times_by_overlap_and_by_the_name_of_a_sound(tones):
    path = tones.paths[0]
    table = window_label_table([
        {"file": path, "start": 0.0, "end": 1.0, "labels": ["low"]}, {"file": "high1.wav", "absent": ["low"]},
        {"file": path, "start": 0.9, "end": 2.0, "labels": ["nothing"]}, {"file": "elsewhere.wav", "labels": ["low"]},
    ])
    found = label_windows(tones, table)
    assert found.rows.tolist() == [0, 1] and found.tags == ("low", "nothing") and found.n_unmatched == 2
    assert found.of("low")[1].tolist() == [True, False] and np.isnan(found.targ[:, 1]).all()
    assert [len(part) for part in found.of("unknown")] == [0, 0]


def test_a_probe_is_fitted_on_known_windows_that_are_not_held_out(tones):
    is_held_out = held_out_rows(tones, 0.3)
    assert 5 < is_held_out.sum() < 35
    rows = np.flatnonzero(~is_held_out)[:16]
    probe = fit_probe(tones, label_windows(tones, answers(tones, rows)), holdout=0.3)
    assert probe.n_present["low"] + probe.n_absent["low"] == 16
    features = np.concatenate([values for _, values in tones.blocks()])
    is_low = np.array(["low" in file for file in tones.table(range(60))["file"]])
    assert mean_ap(probe.probs(features, "low")[:, None], is_low[:, None]) > 0.9
    # Wrong answers on held-out windows change the score and not the probe.
    held_out = np.flatnonzero(is_held_out)[:6]
    wrong = answers(tones, held_out)
    wrong["labels"], wrong["absent"] = wrong["absent"].tolist(), wrong["labels"].tolist()
    right = label_windows(tones, answers(tones, [*rows, *held_out]))
    swapped = label_windows(tones, merge_labels([answers(tones, rows), wrong]).table)
    same = fit_probe(tones, swapped, holdout=0.3)
    assert np.array_equal(same.probe.coef, probe.probe.coef)
    assert held_out_score(tones, right, probe, "low", holdout=0.3).ap == 1
    assert held_out_score(tones, swapped, probe, "low", holdout=0.3).ap < 0.8
    only_low = label_windows(tones, answers(tones, [k for k in rows if is_low[k]]))
    assert fit_probe(tones, only_low, holdout=0.3) is None
    assert held_out_score(tones, only_low, probe, "low", holdout=0.3).ap is None


def test_held_out_sounds_stay_the_same_when_others_are_added(tones, tmp_path):
    index_sounds(tmp_path / "index", tone_encoder(()), tones.paths[10:20])
    fewer = SoundIndex(tmp_path / "index")
    assert held_out_rows(fewer, 0.3).tolist() == held_out_rows(tones, 0.3)[10:20].tolist()
    with pytest.raises(OptionError, match="held-out sounds is 1"):
        held_out_rows(tones, 1)


def test_questions_begin_with_similar_and_random_windows_and_go_on_with_likely_and_uncertain_ones(tones):
    nothing = label_windows(tones, window_label_table([]))
    example = tone_encoder(()).encode_sound(tone(303, seed=77)).features
    first = next_questions(tones, nothing, "low", 10, examples=example, holdout=0.2)
    assert first["why"].value_counts().to_dict() == {"similar": 4, "random": 4, "held out": 2}
    assert all("low" in file for file in first["file"][first["why"] == "similar"]) and first.index.is_unique
    is_held_out = held_out_rows(tones, 0.2)
    assert (is_held_out[first.index] == (first["why"] == "held out")).all()
    known = label_windows(tones, answers(tones, first.index))
    probe = fit_probe(tones, known)
    then = next_questions(tones, known, "low", 10, probe=probe)
    assert then["why"].value_counts().to_dict() == {"uncertain": 6, "held out": 2, "likely": 2}
    assert not set(then.index) & set(first.index) and len(then) == 10
    probs = dict(zip(then.index, then["score"], strict=True))
    likely = [probs[row] for row in then.index[then["why"] == "likely"]]
    assert min(likely) > max(probs[row] for row in then.index[then["why"] == "uncertain"])
    with pytest.raises(OptionError, match="nothing is known of the tag 'low'.*give an example"):
        next_questions(tones, nothing, "low", 10)


def test_questions_end_when_all_windows_are_known(tones):
    known = label_windows(tones, answers(tones, range(60)))
    assert len(next_questions(tones, known, "low", 10, probe=fit_probe(tones, known))) == 0
    rest = label_windows(tones, answers(tones, range(57)))
    assert sorted(next_questions(tones, rest, "low", 10, probe=fit_probe(tones, rest), holdout=0).index) == [57, 58, 59]


def test_a_loop_learns_from_its_answers_and_writes_its_rounds(tones, tmp_path):
    example = tone_encoder(()).encode_sound(tone(303, seed=77)).features
    loop = LabelLoop(tones, "low", tmp_path / "labels.csv", examples=example, holdout=0.3)
    assert loop.train().ap is None and loop.probe is None
    for _ in range(3):
        for row in loop.questions(8).itertuples():
            has_tag = "low" in row.file
            loop.file.write(
                window_name(row.file, row.start, row.end), ["low"] if has_tag else [], [] if has_tag else ["low"]
            )
        last = loop.train()
    assert last.answers == 24 and last.ap == 1 and last.held_out_present + last.held_out_absent == 6
    # The example is one of the windows with the tag.
    assert last.present + last.absent == 24 - 6 + 1
    rows = (tmp_path / "labels.rounds.csv").read_text().splitlines()
    assert rows[0].startswith("answers,present,absent,ap,") and len(rows) == 5
    # A later session begins with the answers of the first one.
    again = LabelLoop(tones, "low", tmp_path / "labels.csv", holdout=0.3)
    assert again.probe is not None and not set(again.questions(8).index) & set(again.labeled().rows)


def test_a_round_without_a_probe_counts_its_held_out_answers(tones, tmp_path):
    loop = LabelLoop(tones, "low", tmp_path / "labels.csv", holdout=0.3)
    low = tones.table(range(60)).query("file.str.contains('low')")
    for row in low.itertuples():
        loop.file.write(window_name(row.file, row.start, row.end), ["low"])
    entry, n_held_out = loop.train(), int(held_out_rows(tones, 0.3)[low.index].sum())
    assert (entry.answers, entry.present, entry.absent, entry.ap) == (30, 0, 0, None)
    assert entry.held_out_present == n_held_out > 0 == entry.held_out_absent


def test_overlapping_windows_of_a_long_recording_are_not_asked_twice(tmp_path):
    parts = [tone(300 if k % 3 else 2500, 2, seed=k) for k in range(12)]
    sf.write(tmp_path / "a.wav", np.concatenate(parts), SR)
    index_sounds(tmp_path / "index", tone_encoder(), [tmp_path / "a.wav"])
    index = SoundIndex(tmp_path / "index")
    asked = next_questions(index, label_windows(index, window_label_table([])), "low", 8, holdout=0)
    likely = asked[asked["why"] == "likely"].sort_values("start")
    assert (likely["start"].diff().dropna() >= 1).all() and not math.isnan(likely["score"].max())
