"""Published weights: their entries, the folder of their files, downloads, and files that are refused."""

import hashlib
import pickle
from dataclasses import replace

import pytest
import torch
from helpers.weights import published_mn04

from fatai.errors import CheckpointError, DataError, OptionError, StorageError, UnknownNameError
from fatai.models import MODELS, create_model
from fatai.models import weights as weights_module
from fatai.models.checkpoint import save_checkpoint
from fatai.models.weights import WEIGHTS, find_published, get_weights, locate_weights, weights_folder
from fatai.registry import FRONT_ENDS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The user's folder of weights, empty."""
    monkeypatch.delenv("FATAI_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fatai" / "weights"


@pytest.fixture
def release(server, tmp_path, monkeypatch, folder):
    """Serve a small file as the release of mn04, and return its bytes."""
    def publish(content, checksum=None):
        checksum = f"sha256:{hashlib.sha256(content).hexdigest()}" if checksum is None else checksum
        server.files["mn04_as_mAP_432.pt"] = content
        entry = replace(WEIGHTS["mn04_as"], url=server.url + "mn04_as_mAP_432.pt", checksum=checksum)
        monkeypatch.setitem(WEIGHTS, "mn04_as", entry)
        return content

    return publish


def file_of(model, tmp_path):
    save_checkpoint(tmp_path / "made.pt", model.state_dict())
    return (tmp_path / "made.pt").read_bytes()


def nothing_left(folder):
    return not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("name", WEIGHTS)
def test_entries_name_a_network_and_a_front_end_that_exist(name):
    entry = WEIGHTS[name]
    assert entry.name == name and entry.arch in MODELS.names() and entry.front_end in FRONT_ENDS.names()
    assert 0.3 < entry.score < 0.5 and entry.url.startswith("https://") and entry.license
    digits = str(entry.score).removeprefix("0.").ljust(3, "0")
    assert digits in entry.file_name and "%" not in entry.file_name, "the authors' file names state the score"
    with torch.device("meta"):
        state = create_model(entry.arch, 527).state_dict()
    n_bytes = sum(value.numel() * value.element_size() for value in state.values())
    # PANNs' files hold the transform and the mel filters too, 4.3 MB.
    extra = 4 * (2 * 513 * 1024 + 513 * 64) if entry.front_end == "panns" else 0
    assert entry.n_bytes == pytest.approx(n_bytes + extra, rel=0.03, abs=300_000)


def test_every_network_has_its_own_weights_for_true():
    assert {find_published(arch).arch for arch in weights_module.archs_with_weights()} == {
        entry.arch for entry in WEIGHTS.values()
    }
    assert find_published("m3") is None and find_published("mn04", None) is None
    assert find_published("mn04", "elsewhere/mine.pt") is None
    assert find_published("cnn14", "elsewhere/Cnn14_mAP=0.431.pth").name == "cnn14"


def test_the_local_file_of_mn04_has_the_stated_checksum_and_size(monkeypatch):
    monkeypatch.setenv("FATAI_WEIGHTS", str(published_mn04()))
    path = locate_weights("mn04", True)
    assert path.stat().st_size == WEIGHTS["mn04_as"].n_bytes and path.parent == published_mn04()
    assert not create_model("mn04", 527, pretrained="mn04_as").pretrained.initialized


def test_the_folder_is_in_the_users_cache_or_where_the_variable_says(folder, tmp_path, monkeypatch):
    assert weights_folder() == folder
    monkeypatch.setenv("FATAI_WEIGHTS", str(tmp_path / "elsewhere"))
    assert weights_folder() == tmp_path / "elsewhere"


def test_named_weights_are_downloaded_once_and_loaded(release, server, folder, tmp_path):
    model = create_model("mn04", 6)
    release(file_of(model, tmp_path))
    for pretrained in (True, "mn04_as"):
        again = create_model("mn04", 6, pretrained=pretrained)
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
    assert len(server.requests) == 1 and [p.name for p in folder.iterdir()] == ["mn04_as_mAP_432.pt"]


def test_nothing_is_downloaded_without_weights_or_with_a_path(release, server, folder, tmp_path):
    release(b"x")
    create_model("mn04", 6)
    save_checkpoint(tmp_path / "mine.pt", create_model("mn04", 6).state_dict())
    create_model("mn04", 6, pretrained=tmp_path / "mine.pt")
    create_model("mn04", 6, pretrained=False)
    assert not server.requests and nothing_left(folder)


def test_an_interrupted_download_is_resumed(release, server, folder):
    content = release(bytes(range(256)) * 20_000)
    server.breaks["mn04_as_mAP_432.pt"] = 3_000_000
    assert get_weights("mn04_as").read_bytes() == content
    assert server.requests[1] == ("mn04_as_mAP_432.pt", "bytes=3000000-")


def test_half_a_file_is_not_taken_for_the_file(release, server, folder):
    content = release(bytes(range(256)) * 20_000)
    server.breaks["mn04_as_mAP_432.pt"] = 3_000_000
    with pytest.raises(CheckpointError, match=r"mn04_as \(4 MB\) are not on this machine, and the download failed"):
        create_model("mn04", 6, pretrained=True)
    assert [p.name for p in folder.iterdir()] == ["mn04_as_mAP_432.pt.part"], "what the next call resumes"
    assert get_weights("mn04_as").read_bytes() == content


def test_a_wrong_hash_is_refused_and_nothing_is_left(release, folder):
    release(b"another file", checksum="sha256:" + "0" * 64)
    with pytest.raises(DataError, match="the sha256 is .*, expected 0{64}; the file was removed"):
        get_weights("mn04_as")
    with pytest.raises(CheckpointError, match="the download failed: .*expected 0{64}"):
        create_model("mn04", 6, pretrained=True)
    assert nothing_left(folder)


def test_a_file_of_the_user_with_another_hash_is_refused_and_left_alone(release, folder):
    release(b"published")
    folder.mkdir(parents=True)
    (folder / "mn04_as_mAP_432.pt").write_bytes(b"mine")
    for act in (lambda: get_weights("mn04_as"), lambda: create_model("mn04", 6, pretrained=True)):
        with pytest.raises(CheckpointError, match="is not the published file of mn04_as: its sha256 is .*; remove it"):
            act()
    assert (folder / "mn04_as_mAP_432.pt").read_bytes() == b"mine"


def test_a_file_of_another_network_is_refused_in_one_sentence(release, tmp_path):
    release(file_of(create_model("m1", 6, width=0.125), tmp_path))
    with pytest.raises(CheckpointError, match="mn04_as_mAP_432.pt does not fit EfficientAT: it lacks ") as caught:
        create_model("mn04", 6, pretrained=True)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_weights_of_another_network_are_refused_by_name():
    with pytest.raises(CheckpointError, match="mn04_as are of mn04, not of mn10; choose mn10_as, or build mn04"):
        create_model("mn10", 6, pretrained="mn04_as")
    with pytest.raises(CheckpointError, match="no file .*mn04as, and no published .*; did you mean mn04_as"):
        create_model("mn04", 6, pretrained="mn04as")
    with pytest.raises(UnknownNameError, match="no published weights named 'mn04as'; did you mean mn04_as"):
        get_weights("mn04as")
    with pytest.raises(OptionError, match="pretrained=True for m3; .*mn04, mn05"):
        locate_weights("m3", True)


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('executed').touch()",)


def test_code_in_a_file_is_not_executed(release, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Code()}, tmp_path / "code.pt")
    for content in ((tmp_path / "code.pt").read_bytes(), pickle.dumps({"features.0.0.weight": Code()})):
        release(content)
        (weights_folder() / "mn04_as_mAP_432.pt").unlink(missing_ok=True)
        with pytest.raises(CheckpointError, match="mn04_as_mAP_432.pt "):
            create_model("mn04", 6, pretrained=True)
    assert not (tmp_path / "executed").exists()


def test_without_a_network_the_message_says_what_to_do(folder, monkeypatch):
    entry = replace(WEIGHTS["mn04_as"], url="http://127.0.0.1:9/mn04_as_mAP_432.pt")  # the port of no server
    monkeypatch.setitem(WEIGHTS, "mn04_as", entry)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(CheckpointError, match="download failed: .*; for a machine without network, download http"):
        create_model("mn04", 6, pretrained=True)
    assert nothing_left(folder)


def test_with_the_variable_nothing_is_downloaded_by_a_network(release, server, tmp_path, monkeypatch):
    release(b"x")
    monkeypatch.setenv("FATAI_WEIGHTS", str(tmp_path))
    with pytest.raises(CheckpointError, match="not in FATAI_WEIGHTS, .*; copy mn04_as_mAP_432.pt into it, or"):
        create_model("mn04", 6, pretrained=True)
    assert not server.requests


def test_without_room_on_the_disk_nothing_is_left(release, folder, monkeypatch):
    release(b"x" * 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(StorageError, match="needs 1,000 more bytes, and .* has 10 free; make room"):
        get_weights("mn04_as")
    with pytest.raises(CheckpointError, match="download failed: .*make room"):
        create_model("mn04", 6, pretrained=True)
    assert nothing_left(folder)
