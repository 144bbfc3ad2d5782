"""One data set in the shapes in which people write tables: the right number of clips with the right tags, or a reason.

The tables are made by `odd_tables.py`, which lies beside the project where it is developed; elsewhere these tests are
skipped. What is expected of each was written by hand: the true tag of a clip is in the name of its file.
"""

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from helpers.weights import SHARED

from fatai.audio.segments import split_segment
from fatai.data.tables import read_sound_table
from fatai.errors import DataError

MAKER, SOUNDS = SHARED / "tools" / "odd_tables.py", SHARED / "data" / "esc10"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MAKER.is_file() or not SOUNDS.is_dir(), reason=f"needs {MAKER} and {SOUNDS}"),
]

TAGS = {"dog": "Dog_bark", "rain": "Rain", "roo": "Rooster"}
NUMBER = {"Dog_bark": "0", "Rain": "1", "Rooster": "2"}


def true_tag(path):
    name = Path(path).name
    return next(tag for start, tag in TAGS.items() if name.startswith(start))


def of_tag(function):
    """Return the tags expected of a clip from its true tag alone."""
    return lambda path: function(true_tag(path))


def soft_or_loud(path):
    return [true_tag(path), "loud" if int(Path(path).stem[-1]) % 2 else "soft"]


SAME = of_tag(lambda tag: [tag])
LOUD = of_tag(lambda tag: [tag, "loud"])
EXPECTED = {
    "absolute.csv": SAME,
    "backslash.csv": SAME,
    "backslash_only_below.csv": SAME,
    "birdclef.csv": LOUD,
    "bom.csv": SAME,
    "comma_in_tag.csv": of_tag(lambda tag: [tag, "adult"]),
    "comment_col.csv": SAME,
    "crlf_blank.csv": SAME,
    "dot.csv": SAME,
    "empty_cell.csv": of_tag(lambda tag: [] if tag == "Rain" else [tag]),
    "esc50.csv": SAME,
    "floatnum.csv": of_tag(lambda tag: [NUMBER[tag]]),
    "formula_tag.csv": of_tag(lambda tag: [f"=1+{NUMBER[tag]}"]),
    "latin1.csv": of_tag(lambda tag: ["Gewöhnlich" if tag == "Rain" else tag]),
    "list_repr.csv": LOUD,
    "long.csv": soft_or_loud,
    "long_exact_dup.csv": SAME,
    "missing_some.csv": SAME,
    "nan_cell.csv": of_tag(lambda tag: [] if tag == "Rain" else [tag]),
    "nfd.csv": of_tag(lambda tag: ["Café" if tag == "Rain" else tag]),
    "numeric.csv": of_tag(lambda tag: [NUMBER[tag]]),
    "ogg_ext.csv": SAME,
    "onehot.csv": SAME,
    "onehot_index.csv": SAME,
    "pandas_index.csv": SAME,
    "pipe.csv": LOUD,
    "plain.csv": SAME,
    "plain.tsv": SAME,
    "presence.csv": of_tag(lambda tag: [str(int(tag == "Rain"))]),
    "presence_col.csv": of_tag(lambda tag: ["present"] if tag == "Rain" else []),
    "raven.txt": SAME,
    "segments.csv": SAME,
    "segments_one.csv": SAME,
    "semicolon.csv": SAME,
    "semicolon_two.csv": LOUD,
    "single.csv": of_tag(lambda tag: ["Rain"]),
    "single_or_none.csv": of_tag(lambda tag: ["Rain"] if tag == "Rain" else []),
    "slash_tag.csv": of_tag(lambda tag: [f"{tag}/loud"]),
    "space.csv": of_tag(lambda tag: [f"{tag} loud"]),
    "tab.csv": SAME,
    "trailing_comma.csv": SAME,
    "trailing_comma_all.csv": SAME,
    "two_unnamed.csv": SAME,
    "upper_ext.csv": SAME,
    "urbansound.csv": SAME,
    "utf16.csv": SAME,
}
TIMES = {
    "segments.csv": {(0.0, 1.0), (1.0, 2.0)},
    "segments_one.csv": {(0.0, 0.5)},
    "raven.txt": {(0.1, 1.2)},
}
REFUSED = {"empty_rows.csv": "has a header but no rows; expected a file name and its labels in each"}
PARTLY = {"rare.csv"}  # one clip has a second, rare tag


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    subprocess.run([sys.executable, MAKER, SOUNDS, folder], check=True, capture_output=True)
    return folder


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_sound_table(path)


def test_every_table_has_an_expectation(tables):
    assert {f.name for f in tables.iterdir() if f.is_file()} == {*EXPECTED, *REFUSED, *PARTLY}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_clips_and_tags_of_a_table(tables, name):
    table = read(tables / name)
    found = table[table["exists"]]
    assert len(found) == 18 * len(TIMES.get(name, [None]))
    for path, labels in zip(found["path"], found["labels"], strict=True):
        file, start, end = split_segment(path)
        assert set(labels) == set(EXPECTED[name](file)), path
        assert ((start, end) in TIMES[name]) if name in TIMES else end is None


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_without_an_answer_says_why(tables, name):
    with pytest.raises(DataError, match=re.escape(REFUSED[name])):
        read(tables / name)


def test_a_rare_second_tag_is_kept(tables):
    table = read(tables / "rare.csv")
    assert len(table) == 18 and all(true_tag(p) in row for p, row in zip(table["path"], table["labels"], strict=True))
    assert sum("unicorn" in row for row in table["labels"]) == 1
