"""Chromium for tests: found or installed, without a screen, and with an eye on what a page asks for and complains of."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--no-sandbox", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
)


def chromium_path():
    """Where Chromium is: FATAI_CHROMIUM, the system's, else installed by apt-get or playwright; None is the one of playwright.

    A machine that can have none fails these tests; FATAI_NO_BROWSER=1 skips them on purpose.
    """
    if os.environ.get("FATAI_NO_BROWSER"):
        pytest.skip("FATAI_NO_BROWSER is set: pages are not tried in a browser")
    found = os.environ.get("FATAI_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return found
    told = []
    if shutil.which("apt-get"):
        root = [] if os.geteuid() == 0 else ["sudo", "-n"]
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
            told.append(_ran([*root, *command]))
        if shutil.which("chromium"):
            return shutil.which("chromium")
    told.append(_ran([sys.executable, "-m", "playwright", "install", "chromium"]))
    if told[-1]:
        pytest.fail(
            "there is no Chromium and none can be installed; install it, name it in FATAI_CHROMIUM, or set FATAI_NO_BROWSER=1 "
            "to leave these tests out:\n" + "\n".join(told),
            pytrace=False,
        )
    return None


def _ran(command):
    """What a command said if it failed, else nothing."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=900,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"{' '.join(command)}: {e}"
    return "" if done.returncode == 0 else f"{' '.join(command)}: {done.stderr.strip()[-300:]}"


@contextmanager
def started():
    """A running Chromium."""
    from playwright.sync_api import expect, sync_playwright

    path = chromium_path()
    expect.set_options(timeout=60_000)  # a busy machine takes its time
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def watched(browser, address, *, expected="", **options):
    """A page at an address; at the end nothing may have been asked for elsewhere and nothing complained of, but for what is expected."""
    outside, complaints = [], []
    context = browser.new_context(**options)
    page = context.new_page()
    page.on(
        "request",
        lambda r: (
            None if r.url.startswith((address, "data:", f"blob:{address}", "blob:null")) else outside.append(r.url)
        ),
    )
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.goto(address)
    yield page
    context.close()
    unexpected = [complaint for complaint in complaints if not expected or expected not in complaint]
    if outside or unexpected:
        raise AssertionError(f"the page asked for {outside} and complained of {unexpected}")


@contextmanager
def serving(*args):
    """`fatai-submit ARGS --port 0` in a process of its own; yields it and its address."""
    command = [sys.executable, "-m", "fatai.cli", *map(str, args), "--port", "0"]
    own = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=own)
    try:
        heard = []
        for line in process.stdout:
            heard.append(line)
            if "http://" in line:
                break
        else:
            raise AssertionError(f"the server ended: {''.join(heard)}")
        yield process, "http://" + line.split("http://")[1].split("/")[0] + "/"
    finally:
        process.terminate()
        process.wait(timeout=20)
        process.stdout.close()


def players(page):
    """Seconds of every player on a page, once all know theirs."""
    page.wait_for_timeout(200)
    return page.evaluate("""() => Promise.all([...document.querySelectorAll('audio')].map(a => new Promise((done, failed) => {
        if (a.readyState) done(a.duration);
        a.addEventListener('loadedmetadata', () => done(a.duration));
        a.addEventListener('error', () => failed(new Error('a player has no sound')));
    })))""")
