"""`predict --engine`, Parquet and URLs of sounds from the command line."""

import functools
import http.server
import shutil
import threading

import fsspec
import pandas as pd
import pytest

pytest.importorskip("pyarrow")


@pytest.fixture
def sounds(sample, tmp_path):
    folder = tmp_path / "sounds"
    folder.mkdir()
    for path in sorted((sample / "test").iterdir())[:3]:
        shutil.copy(path, folder)
    return folder


def test_parquet_has_the_rows_of_the_csv(main_with, tiny_run, sounds, tmp_path):
    for out in ("tags.csv", "tags.parquet"):
        ended = main_with("predict", tiny_run.out, sounds, "--out", tmp_path / out)
        assert ended.returncode == 0 and f"{out}: 3 clips" in ended.stdout
    wanted, found = pd.read_csv(tmp_path / "tags.csv"), pd.read_parquet(tmp_path / "tags.parquet")
    pd.testing.assert_frame_equal(found.drop(columns=["status", "reason"]), wanted, check_dtype=False)


def test_without_any_readable_sound_there_is_no_table(main_with, tiny_run, sounds, tmp_path):
    for path in sounds.iterdir():
        path.write_bytes(b"")
    ended = main_with("predict", tiny_run.out, sounds, "--out", tmp_path / "tags.parquet")
    assert ended.returncode == 2 and "none of the 3 sounds can be read; the first: " in ended.stderr
    assert not list(tmp_path.glob("tags*"))


def test_sounds_of_a_web_server_are_predicted_and_missing_ones_marked(main_with, tiny_run, sounds, tmp_path):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sounds)
    pytest.importorskip("aiohttp", reason="fsspec reads http by aiohttp")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        names = [path.name for path in sorted(sounds.iterdir())]
        (tmp_path / "urls.txt").write_text("\n".join(f"{address}/{name}" for name in [*names, "none.ogg"]))
        ended = main_with(
            "predict", tiny_run.out, "--input-list", tmp_path / "urls.txt", "--out", tmp_path / "tags.csv", "--strict"
        )
        server.shutdown()
    assert ended.returncode == 3, ended.stderr
    found = pd.read_csv(tmp_path / "tags.csv")
    assert list(found["fname"]) == [*names, "none.ogg"]
    assert list(found["status"]) == ["ok", "ok", "ok", "unreadable"]
    main_with("predict", tiny_run.out, sounds, "--out", tmp_path / "files.csv")
    wanted = pd.read_csv(tmp_path / "files.csv")
    pd.testing.assert_frame_equal(found.iloc[:3].drop(columns="status"), wanted, atol=1e-6)


def test_tag_and_predict_take_addresses_as_arguments(main_with, tiny_run, sounds, tmp_path):
    names = [path.name for path in sorted(sounds.iterdir())]
    for name in names:
        fsspec.filesystem("memory").pipe_file(f"/arguments/{name}", (sounds / name).read_bytes())
    urls = [f"memory://arguments/{name}" for name in names]
    for options in ([], ["--format", "audacity"]):
        for place, paths in (("urls", urls), ("files", [sounds / name for name in names])):
            out = tmp_path / "".join([place, *options])
            ended = main_with("tag", tiny_run.out, *paths, "--threshold", "0.1", "--out", out, *options)
            assert ended.returncode == 0, ended.stderr
    found, wanted = (pd.read_csv(tmp_path / place) for place in ("urls", "files"))
    assert len(wanted) and set(found["file"]) <= set(urls)
    pd.testing.assert_frame_equal(found.drop(columns="file"), wanted.drop(columns="file"))
    for name in names:
        texts = [(tmp_path / f"{place}--formataudacity" / f"{name}.txt").read_text() for place in ("urls", "files")]
        assert texts[0] == texts[1]
    ended = main_with("predict", tiny_run.out, *urls, "--out", tmp_path / "tags.csv")
    assert ended.returncode == 0 and list(pd.read_csv(tmp_path / "tags.csv")["fname"]) == names


def test_an_engine_without_out_is_refused(main_with, tiny_run, sounds):
    ended = main_with("predict", tiny_run.out, sounds, "--engine", "local")
    assert ended.returncode == 2 and "need --out" in ended.stderr
