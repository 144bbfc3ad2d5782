"""Downloads from a local server: resumed, verified, unpacked safely, converted to the layout."""

import csv
import hashlib
import io
import json
import stat
import struct
import zipfile

import numpy as np
import pytest
import soundfile as sf

from fatai.data.datasets import download as download_module
from fatai.data.datasets.archives import unpack
from fatai.data.datasets.download import DATASETS, DatasetSource, download
from fatai.data.datasets.fat2019 import load_dataset
from fatai.errors import DataError, OptionError

# Archives


def zipped(files, **info):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = info.get("mode", 0o100644) << 16
            archive.writestr(entry, data)
    return buffer.getvalue()


def into(folder):
    return lambda name: folder / name


@pytest.mark.parametrize("name", ["../out.wav", "a/../../out.wav", "/tmp/out.wav", "C:/out.wav", "..\\out.wav"])
def test_names_outside_the_folder_raise(tmp_path, name):
    (tmp_path / "a.zip").write_bytes(zipped({"good.wav": b"1", name: b"2"}))
    with pytest.raises(DataError, match="outside its folder"):
        unpack([tmp_path / "a.zip"], into(tmp_path / "in"), max_bytes=100)
    assert [p.name for p in tmp_path.rglob("*")] == ["a.zip"]


def test_links_and_too_many_bytes_are_refused(tmp_path):
    (tmp_path / "link.zip").write_bytes(zipped({"a": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777))
    with pytest.raises(DataError, match="contains a link, 'a'"):
        unpack([tmp_path / "link.zip"], into(tmp_path / "in"), max_bytes=100)
    (tmp_path / "bomb.zip").write_bytes(zipped({"a": bytes(1000)}))
    with pytest.raises(DataError, match="unpack to 1,000 bytes; expected at most 999"):
        unpack([tmp_path / "bomb.zip"], into(tmp_path / "in"), max_bytes=999)
    # A directory with a wrong size: zipfile stops there, and the checksum no longer matches.
    wrong_size = bytearray(zipped({"a": bytes(1000)}))
    at = wrong_size.rfind(b"PK\x01\x02")
    wrong_size[at + 24:at + 28] = struct.pack("<I", 10)
    (tmp_path / "wrong_size.zip").write_bytes(wrong_size)
    with pytest.raises(DataError, match="damaged"):
        unpack([tmp_path / "wrong_size.zip"], into(tmp_path / "in"), max_bytes=100)
    (tmp_path / "text.zip").write_text("<html>")
    with pytest.raises(DataError, match="damaged or no zip archive"):
        unpack([tmp_path / "text.zip"], into(tmp_path / "in"), max_bytes=100)
    assert not (tmp_path / "in").exists() or not list((tmp_path / "in").iterdir())


def split(data, cuts):
    """Split a zip archive as `zip -s`: a signature in front, each entry's offset counted from its part."""
    whole = bytearray(b"PK\x07\x08" + data)
    starts = [0, *cuts]

    def part_of(offset):
        return max(k for k, start in enumerate(starts) if start <= offset)

    end = whole.rfind(b"PK\x05\x06")
    n, _, directory = struct.unpack("<HII", whole[end + 10:end + 20])
    at = directory + 4
    for _ in range(n):
        name, extra, comment = struct.unpack("<HHH", whole[at + 28:at + 34])
        offset = struct.unpack("<I", whole[at + 42:at + 46])[0] + 4
        k = part_of(offset)
        whole[at + 34:at + 36] = struct.pack("<H", k)
        whole[at + 42:at + 46] = struct.pack("<I", offset - starts[k])
        at += 46 + name + extra + comment
    k = part_of(directory + 4)
    whole[end + 4:end + 8] = struct.pack("<HH", len(starts) - 1, k)
    whole[end + 16:end + 20] = struct.pack("<I", directory + 4 - starts[k])
    return [bytes(whole[a:b]) for a, b in zip(starts, [*cuts, len(whole)], strict=True)]


@pytest.mark.parametrize("last", [15003, -300])  # the last cut: among the files, and inside the directory behind them
def test_the_parts_of_a_split_archive_are_read_as_one(tmp_path, last):
    rng = np.random.default_rng(0)
    files = {f"f/{k}.wav": rng.bytes(1000) for k in range(20)}
    whole = zipped(files)
    parts = split(whole, [5000, 11000, last % len(whole)])
    paths = [tmp_path / name for name in ("a.z01", "a.z02", "a.z03", "a.zip")]
    for path, part in zip(paths, parts, strict=True):
        path.write_bytes(part)
    assert unpack(paths, into(tmp_path / "out"), max_bytes=10**6) == 20
    assert {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*.wav")} == files
    with pytest.raises(DataError, match="get all parts|damaged"):
        unpack([paths[0], paths[3]], into(tmp_path / "less"), max_bytes=10**6)


# Data sets


def wav(seed):
    buffer = io.BytesIO()
    sf.write(buffer, np.random.default_rng(seed).uniform(-0.1, 0.1, 4410), 44100, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


@pytest.fixture
def fsd(server, monkeypatch):
    """A small FSDKaggle2019 on the server, its noisy part split, with checksums."""
    top = "FSDKaggle2019"
    meta = {
        "train_curated_post_competition.csv": "fname,labels,freesound_id,license\na.wav,Bark,1,x\n"
        "b.wav,\"Bark,Meow\",2,x\n",
        "train_noisy_post_competition.csv": "fname,labels\nn.wav,Purr\n",
        "test_post_competition.csv": "fname,labels,usage\nt2.wav,Meow,Private\nt1.wav,Purr,Public\n",
        "vocabulary.csv": "0,Bark\n1,Meow\n2,Purr\n",
    }
    noisy = split(zipped({f"{top}.audio_train_noisy/n.wav": wav(3)}), [1000])
    server.files = {
        f"{top}.meta.zip": zipped({f"{top}.meta/{name}": text for name, text in meta.items()}),
        f"{top}.audio_train_curated.zip": zipped(
            {f"{top}.audio_train_curated/{n}.wav": wav(k) for k, n in enumerate("ab")}
        ),
        f"{top}.audio_test.zip": zipped({f"{top}.audio_test/t{k}.wav": wav(10 + k) for k in (1, 2)}),
        f"{top}.audio_train_noisy.z01": noisy[0],
        f"{top}.audio_train_noisy.zip": noisy[1],
    }
    listing = {
        "files": [
            {"key": name, "checksum": f"md5:{hashlib.md5(data).hexdigest()}"} for name, data in server.files.items()
        ]
    }
    server.files["listing"] = json.dumps(listing).encode()

    def urls(names):
        return tuple(server.url + name for name in names)

    archives = {"meta": urls([f"{top}.meta.zip"]), "curated": urls([f"{top}.audio_train_curated.zip"]),
                "test": urls([f"{top}.audio_test.zip"]),
                "noisy": urls([f"{top}.audio_train_noisy.z01", f"{top}.audio_train_noisy.zip"])}
    local = DatasetSource(archives, server.url + "listing", 10**6, "")
    monkeypatch.setitem(download_module.DATASETS, "fsdkaggle2019", local)
    return server


def test_fsdkaggle2019_arrives_in_the_layout(fsd, tmp_path):
    data = load_dataset(download("fsdkaggle2019", tmp_path / "d"), corrupted_files="keep")
    assert data.tags == ("Bark", "Meow", "Purr")
    assert list(data.curated["fname"]) == ["a.wav", "b.wav"] and list(data.curated["labels"]) == [
        ["Bark"],
        ["Bark", "Meow"],
    ]
    assert list(data.noisy["fname"]) == ["n.wav"] and list(data.test["fname"]) == ["t1.wav", "t2.wav"]
    assert (tmp_path / "d" / "train_noisy" / "n.wav").read_bytes() == wav(3)
    truth = list(csv.reader((tmp_path / "d" / "truth" / "test.csv").open()))
    assert truth[1][:2] == ["t1.wav", "Purr"] and not (tmp_path / "d" / ".download").exists()


def test_the_noisy_part_can_be_left_out(fsd, tmp_path):
    download("fsdkaggle2019", tmp_path, noisy=False, keep_archives=True)
    assert not (tmp_path / "train_noisy.csv").exists() and not any("noisy" in name for name, _ in fsd.requests)
    assert (tmp_path / ".download" / "FSDKaggle2019.audio_test.zip").is_file()


def test_a_damaged_archive_is_found_by_the_listed_checksum(fsd, tmp_path):
    fsd.files["FSDKaggle2019.audio_test.zip"] += b"\0"
    with pytest.raises(DataError, match="audio_test.zip: the md5 is"):
        download("fsdkaggle2019", tmp_path)


def test_without_the_listing_there_is_a_warning(fsd, tmp_path):
    del fsd.files["listing"]
    with pytest.warns(UserWarning, match="checksums .* cannot be read"):
        download("fsdkaggle2019", tmp_path)
    assert (tmp_path / "sample_submission.csv").read_text() == "fname,Bark,Meow,Purr\nt1.wav,0,0,0\nt2.wav,0,0,0\n"


def test_an_interrupted_download_is_resumed(fsd, tmp_path):
    name = "FSDKaggle2019.audio_train_curated.zip"
    whole = fsd.files.pop(name)
    with pytest.raises(DataError, match="returned 404"):
        download("fsdkaggle2019", tmp_path)
    fsd.files[name] = whole
    (tmp_path / ".download" / f"{name}.part").write_bytes(whole[:500])
    download("fsdkaggle2019", tmp_path)
    assert (name, "bytes=500-") in fsd.requests and sum(n == "FSDKaggle2019.meta.zip" for n, _ in fsd.requests) == 1


def test_the_fifth_fold_of_esc50_is_the_test_part(server, tmp_path, monkeypatch):
    rows = [("1-1-A-0.wav", 1, "dog"), ("4-2-A-1.wav", 4, "rain"), ("5-3-A-0.wav", 5, "dog")]
    table = "filename,fold,target,category,esc10,src_file,take\n" + "".join(
        f"{f},{fold},0,{c},True,1,A\n" for f, fold, c in rows
    )
    server.files["master.zip"] = zipped({"ESC-50-master/meta/esc50.csv": table, "ESC-50-master/README.md": "x",
                                         **{f"ESC-50-master/audio/{f}": wav(k) for k, (f, _, _) in enumerate(rows)}})
    monkeypatch.setitem(
        download_module.DATASETS, "esc50", DatasetSource({"all": (server.url + "master.zip",)}, "", 10**6, "")
    )
    data = load_dataset(download("esc50", tmp_path))
    assert data.tags == ("dog", "rain") and list(data.curated["fname"]) == ["1-1-A-0.wav", "4-2-A-1.wav"]
    assert list(data.curated["fold"]) == ["1", "4"] and list(data.test["fname"]) == ["5-3-A-0.wav"]
    assert not (tmp_path / "README.md").exists()


def test_the_sources_are_the_published_addresses():
    fsd = DATASETS["fsdkaggle2019"].archives
    assert all(
        u.startswith("https://zenodo.org/records/3612637/files/FSDKaggle2019.") for urls in fsd.values() for u in urls
    )
    assert [u[-3:] for u in fsd["noisy"]] == ["z01", "z02", "z03", "z04", "z05", "z06", "zip"]
    assert DATASETS["esc50"].archives["all"] == ("https://github.com/karoldvl/ESC-50/archive/master.zip",)


def test_an_unknown_data_set_raises(tmp_path):
    with pytest.raises(OptionError, match="'fsdkagle2019'; did you mean fsdkaggle2019"):
        download("fsdkagle2019", tmp_path)
