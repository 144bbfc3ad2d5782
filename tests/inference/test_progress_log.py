"""The log of many files: complete lines or none, resumed where it stopped."""

import json

import pytest

from fatai.errors import AudioError, DataError
from fatai.inference.events.progress_log import FileEvents, read_event_log, tag_files
from fatai.inference.events.segments import SoundEvent


class FakeTagger:
    """Return an event whose end is the length of the name; stop at `until` files, fail for names like "bad"."""

    def __init__(self, until=10**9):
        self.paths, self.until = [], until

    def __call__(self, path):
        if len(self.paths) == self.until:
            raise KeyboardInterrupt
        self.paths.append(path)
        if path.startswith("bad"):
            raise AudioError(f"{path}: broken")
        return [SoundEvent(0.0, float(len(path)), "Bark", 0.5)] if path != "quiet" else []


def events_of(path):
    return FileEvents(path, [SoundEvent(0.0, float(len(path)), "Bark", 0.5)])


def test_every_file_is_tagged_once(tmp_path):
    out = tmp_path / "new" / "log"
    counts = tag_files(FakeTagger(), ["a", "quiet", "a", "bbb"], out, {"top": 1})
    assert (counts.tagged, counts.skipped, counts.errors) == (3, 1, {})
    assert list(read_event_log(out)) == [events_of("a"), FileEvents("quiet", []), events_of("bbb")]


@pytest.mark.parametrize("stopped_at", range(5))
def test_a_stopped_run_continues_where_it_was(tmp_path, stopped_at):
    names, out = ["a", "bb", "ccc", "dddd"], tmp_path / "log"
    if stopped_at < 4:
        with pytest.raises(KeyboardInterrupt):
            tag_files(FakeTagger(stopped_at), names, out, {})
    else:
        tag_files(FakeTagger(), names, out, {})
    second = FakeTagger()
    counts = tag_files(second, names, out, {})
    assert second.paths == names[stopped_at:] and counts.skipped == stopped_at
    assert list(read_event_log(out)) == [events_of(name) for name in names]


def test_wherever_a_killed_process_leaves_the_log_the_result_is_the_same(tmp_path):
    names, out = ["a", "bb", "ccc"], tmp_path / "log"
    tag_files(FakeTagger(), names, out, {"top": None})
    whole = out.read_bytes()
    for cut in range(len(whole)):
        out.write_bytes(whole[:cut])
        second = FakeTagger()
        tag_files(second, names, out, {"top": None})
        assert out.read_bytes() == whole and second.paths == names[max(0, whole[:cut].count(b"\n") - 1):], cut


def test_an_incomplete_line_longer_than_a_block_is_removed(tmp_path):
    out = tmp_path / "log"
    tag_files(FakeTagger(), ["a"], out, {})
    whole = out.read_bytes()
    out.write_bytes(whole + b'{"file": "' + b"x" * 200_000)
    tag_files(FakeTagger(), ["a"], out, {})
    assert out.read_bytes() == whole


def test_unreadable_files_are_tried_again(tmp_path):
    out = tmp_path / "log"
    assert tag_files(FakeTagger(), ["bad", "a"], out, {}).errors == {"bad": "bad: broken"}
    counts = tag_files(lambda path: [SoundEvent(0.0, 3.0, "Bark", 0.5)], ["bad", "a"], out, {})
    assert (counts.tagged, counts.skipped, counts.errors) == (1, 1, {})
    assert list(read_event_log(out)) == [events_of("a"), events_of("bad")]


def test_a_log_of_other_settings_is_an_error_and_unchanged(tmp_path):
    out = tmp_path / "log"
    tag_files(FakeTagger(), ["a"], out, {"threshold": 0.5})
    before = out.read_bytes()
    with pytest.raises(DataError, match="was started with other networks or settings"):
        tag_files(FakeTagger(), ["a", "b"], out, {"threshold": 0.4})
    assert out.read_bytes() == before


def test_a_name_that_is_not_utf8_is_preserved(tmp_path):
    tag_files(FakeTagger(), ["\udcff.wav"], tmp_path / "log", {})
    assert [result.file for result in read_event_log(tmp_path / "log")] == ["\udcff.wav"]


HEAD = json.dumps({"format": "fatai events 1", "settings": {}}) + "\n"


@pytest.mark.parametrize(("text", "message"), [
    ("file,start_s\n", "line 1: not a log of events"), ("{}\n", "line 1"), ("[]\n", "line 1"), ("\x00\xff\n", "line 1"),
    (HEAD + "{\n", "line 2"), (HEAD + '{"file": 3}\n', "line 2"), (HEAD + "[" * 100_000 + "\n", "line 2"),
    (HEAD + '{"file": "a", "events": [[1, 2]]}\n', "line 2: the events are not rows"),
    (HEAD + '{"file": "a", "events": 3}\n', "line 2: the events are not rows"),
])
def test_files_that_are_not_logs_are_an_error_with_the_line(tmp_path, text, message):
    out = tmp_path / "log"
    out.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        list(read_event_log(out))
    assert out.read_bytes() == text.encode("latin-1")


def test_a_missing_log_is_an_error(tmp_path):
    with pytest.raises(DataError, match="cannot be opened"):
        list(read_event_log(tmp_path / "nothing"))
