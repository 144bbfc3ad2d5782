"""The journal of many files: whole lines or none, resumed where it stopped."""

import json

import pytest

from fatai.errors import AudioError, DataError
from fatai.inference.events.progress_log import FileEvents, read_event_log, tag_files
from fatai.inference.events.segments import SoundEvent


class Ear:
    """Hears one event whose end is the length of the name; stops at `until` files, cannot read what starts with "bad"."""

    def __init__(self, until=10**9):
        self.heard, self.until = [], until

    def __call__(self, path):
        if len(self.heard) == self.until:
            raise KeyboardInterrupt
        self.heard.append(path)
        if path.startswith("bad"):
            raise AudioError(f"{path}: broken")
        return [SoundEvent(0.0, float(len(path)), "Bark", 0.5)] if path != "quiet" else []


def told(path):
    return FileEvents(path, [SoundEvent(0.0, float(len(path)), "Bark", 0.5)])


def test_every_file_is_tagged_once(tmp_path):
    out = tmp_path / "new" / "journal"
    counts = tag_files(Ear(), ["a", "quiet", "a", "bbb"], out, {"top": 1})
    assert (counts.tagged, counts.skipped, counts.faults) == (3, 1, {})
    assert list(read_event_log(out)) == [told("a"), FileEvents("quiet", []), told("bbb")]


@pytest.mark.parametrize("stopped_at", range(5))
def test_a_stopped_run_goes_on_where_it_was(tmp_path, stopped_at):
    names, out = ["a", "bb", "ccc", "dddd"], tmp_path / "journal"
    if stopped_at < 4:
        with pytest.raises(KeyboardInterrupt):
            tag_files(Ear(stopped_at), names, out, {})
    else:
        tag_files(Ear(), names, out, {})
    second = Ear()
    counts = tag_files(second, names, out, {})
    assert second.heard == names[stopped_at:] and counts.skipped == stopped_at
    assert list(read_event_log(out)) == [told(name) for name in names]


def test_wherever_a_killed_process_leaves_the_journal_the_result_is_the_same(tmp_path):
    names, out = ["a", "bb", "ccc"], tmp_path / "journal"
    tag_files(Ear(), names, out, {"top": None})
    whole = out.read_bytes()
    for cut in range(len(whole)):
        out.write_bytes(whole[:cut])
        second = Ear()
        tag_files(second, names, out, {"top": None})
        assert out.read_bytes() == whole and second.heard == names[max(0, whole[:cut].count(b"\n") - 1):], cut


def test_a_half_line_longer_than_a_block_is_taken_off(tmp_path):
    out = tmp_path / "journal"
    tag_files(Ear(), ["a"], out, {})
    whole = out.read_bytes()
    out.write_bytes(whole + b'{"file": "' + b"x" * 200_000)
    tag_files(Ear(), ["a"], out, {})
    assert out.read_bytes() == whole


def test_files_that_could_not_be_read_are_tried_again(tmp_path):
    out = tmp_path / "journal"
    assert tag_files(Ear(), ["bad", "a"], out, {}).faults == {"bad": "bad: broken"}
    counts = tag_files(lambda path: [SoundEvent(0.0, 3.0, "Bark", 0.5)], ["bad", "a"], out, {})
    assert (counts.tagged, counts.skipped, counts.faults) == (1, 1, {})
    assert list(read_event_log(out)) == [told("a"), told("bad")]


def test_a_journal_of_other_settings_is_refused_and_kept(tmp_path):
    out = tmp_path / "journal"
    tag_files(Ear(), ["a"], out, {"threshold": 0.5})
    before = out.read_bytes()
    with pytest.raises(DataError, match="was begun with other networks or settings"):
        tag_files(Ear(), ["a", "b"], out, {"threshold": 0.4})
    assert out.read_bytes() == before


def test_a_name_that_is_not_utf8_comes_back(tmp_path):
    tag_files(Ear(), ["\udcff.wav"], tmp_path / "journal", {})
    assert [result.file for result in read_event_log(tmp_path / "journal")] == ["\udcff.wav"]


HEAD = json.dumps({"made": "fatai events 1", "by": {}}) + "\n"


@pytest.mark.parametrize(("text", "said"), [
    ("file,start_s\n", "line 1: this is no journal"), ("{}\n", "line 1"), ("[]\n", "line 1"), ("\x00\xff\n", "line 1"),
    (HEAD + "{\n", "line 2"), (HEAD + '{"file": 3}\n', "line 2"), (HEAD + "[" * 100_000 + "\n", "line 2"),
    (HEAD + '{"file": "a", "events": [[1, 2]]}\n', "line 2: its events are not rows"),
    (HEAD + '{"file": "a", "events": 3}\n', "line 2: its events are not rows"),
])
def test_what_is_no_journal_is_refused_with_its_line(tmp_path, text, said):
    out = tmp_path / "journal"
    out.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=said):
        list(read_event_log(out))
    assert out.read_bytes() == text.encode("latin-1")


def test_a_journal_that_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match="cannot be opened"):
        list(read_event_log(tmp_path / "nothing"))
