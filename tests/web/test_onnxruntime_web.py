"""The files of the npm package onnxruntime-web: from a server, an archive or a folder, and nothing else of it."""

import base64
import hashlib
import io
import json
import tarfile

import pytest

from fatai.errors import DataError
from fatai.web import onnxruntime_web
from fatai.web.onnxruntime_web import VERSION, load_onnxruntime_web, npm_registry

ABOUT = json.dumps({"name": "onnxruntime-web", "version": "9.9.9"}).encode()
FILES = {
    "package/package.json": ABOUT,
    "package/dist/ort.wasm.bundle.min.mjs": b"export {}",
    "package/dist/ort-wasm-simd-threaded.wasm": b"\0asm",
}


def archive(files, links=()):
    """Bytes of a .tgz with these files by name, and links as pairs of a name and a target."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def npm(tmp_path, monkeypatch):
    """An empty home and cache, and no configuration of npm in the environment."""
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY", "npm_config_userconfig", "NPM_CONFIG_USERCONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def written(tmp_path, content):
    (tmp_path / "package.tgz").write_bytes(content)
    return tmp_path / "package.tgz"


@pytest.fixture
def pinned(server, monkeypatch):
    """A registry whose package is the pinned one."""
    content = archive(FILES)
    server.files[f"onnxruntime-web-{VERSION}.tgz"] = content
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    monkeypatch.setattr(onnxruntime_web, "_SHA512", digest)
    monkeypatch.setenv("npm_config_registry", server.url + "some/mirror")
    return server


def test_the_package_is_downloaded_once_and_checked_in_the_cache(pinned, tmp_path):
    for _ in range(2):
        assert load_onnxruntime_web() == ("9.9.9", b"export {}", b"\0asm")
    assert len(pinned.requests) == 1
    cached, = (tmp_path / "cache" / "fatai" / "onnxruntime-web").iterdir()
    cached.write_bytes(b"another")
    with pytest.raises(DataError, match="the sha512 is .* the file was removed, start again"):
        load_onnxruntime_web()
    assert load_onnxruntime_web().wasm == b"\0asm" and len(pinned.requests) == 2


def test_a_package_with_another_checksum_or_too_many_bytes_is_refused(pinned, tmp_path, monkeypatch):
    name = f"onnxruntime-web-{VERSION}.tgz"
    pinned.files[name] = archive({**FILES, "package/dist/ort-wasm-simd-threaded.wasm": b"evil"})
    with pytest.raises(DataError, match="the sha512 is"):
        load_onnxruntime_web()
    monkeypatch.setattr(onnxruntime_web, "_MAX_PACKAGE_BYTES", 100)
    with pytest.raises(DataError, match="bytes or more; expected at most 100"):
        load_onnxruntime_web()
    assert not (tmp_path / "cache" / "fatai" / "onnxruntime-web").exists(), "nothing is left of it"


def test_a_registry_that_does_not_answer_is_named(server, monkeypatch):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", server.url)
    with pytest.raises(DataError, match="returned 404"):
        load_onnxruntime_web(tries=1)


def test_the_registry_is_that_of_npm(tmp_path, monkeypatch):
    assert npm_registry() == "https://registry.npmjs.org/"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".npmrc").write_text("; registry=x\nregistry = https://one.example\nloglevel=warn\n")
    assert npm_registry() == "https://one.example/"
    (tmp_path / "other").write_text('registry="https://two.example/npm/"\n')
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(tmp_path / "other"))
    assert npm_registry() == "https://two.example/npm/"
    monkeypatch.setenv("npm_config_registry", "https://three.example/")
    assert npm_registry() == "https://three.example/"


def test_an_archive_and_a_folder_are_read_alike(tmp_path):
    folder = tmp_path / "node_modules" / "onnxruntime-web"
    (folder / "dist").mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name.removeprefix("package/")).write_bytes(content)
    path = written(tmp_path, archive(FILES))
    assert load_onnxruntime_web(folder) == load_onnxruntime_web(path) == ("9.9.9", b"export {}", b"\0asm")


def test_nothing_but_the_named_files_is_read_and_nothing_unpacked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    others = {
        "../outside.txt": b"x", "/tmp/fatai-absolute.txt": b"x", "package/../../up.txt": b"x",
        "package/dist/other": b"x",
    }
    path = written(tmp_path, archive({**others, **FILES}))
    assert load_onnxruntime_web(path).script == b"export {}"
    assert [file.name for file in tmp_path.iterdir()] == ["package.tgz"]


def test_links_in_place_of_the_files_are_refused(tmp_path):
    (tmp_path / "secret").write_text("of the user")
    name = "package/dist/ort-wasm-simd-threaded.wasm"
    files = {key: value for key, value in FILES.items() if key != name}
    with pytest.raises(DataError, match="has no dist/ort-wasm-simd-threaded.wasm; .* npm pack onnxruntime-web@"):
        load_onnxruntime_web(written(tmp_path, archive(files, [(name, str(tmp_path / "secret"))])))


@pytest.mark.parametrize(("content", "message"), [
    (b"no archive", "cannot be read"),
    (archive(FILES)[:60], "cannot be read"),
    (archive({}), "has no dist/ort.wasm.bundle.min.mjs"),
    (archive({**FILES, "package/package.json": b'{"name": "left-pad", "version": "1"}'}), "is left-pad; expected"),
    (archive({**FILES, "package/package.json": b"{"}), "is a package without a name; expected"),
], ids=["text", "cut", "empty", "another-package", "broken-json"])  # gzip writes the time into the bytes
def test_other_files_are_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        load_onnxruntime_web(written(tmp_path, content))


def test_files_and_archives_that_grow_without_end_are_refused(tmp_path, monkeypatch):
    path = written(tmp_path, archive({"package/filler": bytes(5000), **FILES}))
    monkeypatch.setattr(onnxruntime_web, "_MAX_UNPACKED_BYTES", 4000)
    with pytest.raises(DataError, match="has more than 4,000 bytes"):
        load_onnxruntime_web(path)
    monkeypatch.setattr(onnxruntime_web, "_MAX_UNPACKED_BYTES", 1 << 20)
    monkeypatch.setitem(onnxruntime_web._MAX_FILE_BYTES, "dist/ort-wasm-simd-threaded.wasm", 3)
    with pytest.raises(DataError, match="ort-wasm-simd-threaded.wasm has more than 3 bytes"):
        load_onnxruntime_web(path)


def test_a_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match="none.tgz does not exist; expected an archive"):
        load_onnxruntime_web(tmp_path / "none.tgz")
