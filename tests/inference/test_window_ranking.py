"""Windows by example, tag and uncertainty; the approximate index agrees with comparing all windows."""

import numpy as np
import pytest
import soundfile as sf
from helpers.tone_index import SR, tone, tone_encoder, write_tones

from fatai.errors import OptionError, ShapeError
from fatai.inference.search import ranking
from fatai.inference.search.index import SoundIndex, index_sounds
from fatai.inference.search.ranking import likely_windows, rank_windows, similar_windows, uncertain_windows


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    index_sounds(folder / "index", tone_encoder(), write_tones(folder / "sounds", 12), part_windows=5, bs=2)
    return SoundIndex(folder / "index")


def kinds(index, ranked):
    return ["low" if "low" in file else "high" for file in index.table(ranked.rows)["file"]]


def test_similar_windows_are_of_the_kind_of_the_example(tones):
    example = tone_encoder().encode_sound(tone(2530, seed=99)).features
    ranked = similar_windows(tones, example, 6)
    assert kinds(tones, ranked) == ["high"] * 6 and (np.diff(ranked.scores) <= 0).all()
    assert 0.9 < ranked.scores[0] <= 1 + 1e-6
    # Each window is nearest to itself; of several examples the nearest counts.
    own = similar_windows(tones, tones.features([3, 4]), 2)
    assert sorted(own.rows.tolist()) == [3, 4] and np.allclose(own.scores, 1, atol=1e-6)
    assert 3 not in similar_windows(tones, tones.features([3]), 12, exclude=[3]).rows


def test_likely_and_uncertain_windows_by_the_network(tones):
    assert kinds(tones, likely_windows(tones, "low", 6)) == ["low"] * 6
    uncertain = uncertain_windows(tones, 12)
    probs = np.concatenate([values for _, values in tones.blocks("probs")])[:, 0]
    assert uncertain.rows[0] == np.abs(probs - 0.5).argmin() and len(uncertain.rows) == 12
    with pytest.raises(OptionError, match="no tag 'lo'; did you mean low"):
        likely_windows(tones, "lo", 6)


def test_of_overlapping_windows_only_the_best_is_listed(tmp_path):
    sf.write(tmp_path / "a.wav", np.concatenate([tone(2500, 2), tone(300, 2)]), SR)
    index_sounds(tmp_path / "index", tone_encoder(), [tmp_path / "a.wav"])
    index = SoundIndex(tmp_path / "index")
    apart = index.table(likely_windows(index, "low", 3).rows)
    assert (apart.sort_values("start")["start"].diff().dropna() >= 1).all() and len(apart) == 3
    assert len(likely_windows(index, "low", 7, overlapping=True).rows) == 7


def test_short_steps_leave_as_many_windows_that_do_not_overlap(tmp_path):
    sf.write(tmp_path / "a.wav", np.concatenate([tone(2500, 2), tone(300, 2)]), SR)
    index_sounds(tmp_path / "index", tone_encoder(), [tmp_path / "a.wav"], step_s=0.02)
    index = SoundIndex(tmp_path / "index")
    starts = np.sort(index.start_s[likely_windows(index, "low", 2).rows])
    assert len(index) == 151 and len(starts) == 2 and np.diff(starts)[0] >= 1


def test_the_approximate_index_finds_what_comparing_all_does_and_grows(tones, tmp_path, monkeypatch):
    pytest.importorskip("usearch")
    monkeypatch.setattr(ranking, "APPROXIMATE_WINDOWS", 4)
    sounds = write_tones(tmp_path / "sounds", 12)
    index_sounds(tmp_path / "index", tone_encoder(), sounds[:6])
    example = tone_encoder().encode_sound(tone(310, seed=5)).features
    found = similar_windows(SoundIndex(tmp_path / "index"), example, 3)
    assert (tmp_path / "index" / ranking.VECTORS).is_file()
    index_sounds(tmp_path / "index", tone_encoder(), sounds)
    index = SoundIndex(tmp_path / "index")
    grown = similar_windows(index, example, 6, exclude=[0])
    monkeypatch.setattr(ranking, "APPROXIMATE_WINDOWS", 10**9)
    exact = similar_windows(index, example, 6, exclude=[0])
    assert grown.rows.tolist() == exact.rows.tolist() and np.allclose(grown.scores, exact.scores)
    assert set(found.rows.tolist()) <= {0, 2, 4}


def test_wrong_numbers_are_refused(tones):
    with pytest.raises(OptionError, match="n is 0"):
        rank_windows(tones, lambda features: features[:, 0], 0)
    with pytest.raises(ShapeError, match=r"\(1, 3\)"):
        similar_windows(tones, np.ones((1, 3)), 1)
