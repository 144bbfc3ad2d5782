"""`serve --open` opens the page, and only then."""

import webbrowser

import pytest

from fatai.web import server


@pytest.mark.parametrize(("options", "opened"), [(["--open"], ["http://127.0.0.1:8123/"]), ([], [])])
def test_open_opens_the_address_that_is_printed(main_with, tiny_run, monkeypatch, options, opened):
    calls = []
    monkeypatch.setattr(webbrowser, "open", calls.append)
    monkeypatch.setattr(
        server, "serve", lambda app, host, port, log: log("http://127.0.0.1:8123/  (press Ctrl-C to stop)")
    )
    ended = main_with("serve", tiny_run.out, *options)
    assert ended.returncode == 0 and "http://127.0.0.1:8123/" in ended.stdout
    assert calls == opened
