"""Chromium for tests: found or installed, headless, recording the requests and errors of a page."""

import base64
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--no-sandbox", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
)


def chromium_path():
    """Return the path of Chromium: FATAI_CHROMIUM, the system's, else installed by apt-get or playwright.

    None means the one of playwright. Without any Chromium the tests fail; FATAI_NO_BROWSER=1 skips them on purpose.
    """
    if os.environ.get("FATAI_NO_BROWSER"):
        pytest.skip("FATAI_NO_BROWSER is set: pages are not tested in a browser")
    with _one_at_a_time():
        found = os.environ.get("FATAI_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
        return found or _install()


@contextmanager
def _one_at_a_time():
    """Wait for other processes of the tests, which would install at the same time."""
    with open(Path(tempfile.gettempdir()) / f"fatai-chromium-{os.getuid() if fcntl else ''}.lock", "w") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install():
    """Install Chromium; return its path, or None for the one of playwright."""
    errors = []
    if shutil.which("apt-get"):
        root = [] if os.geteuid() == 0 else ["sudo", "-n"]
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
            errors.append(_run([*root, *command]))
        if shutil.which("chromium"):
            return shutil.which("chromium")
    errors.append(_run([sys.executable, "-m", "playwright", "install", "chromium"]))
    if errors[-1]:
        pytest.fail(
            "no Chromium was found, and none can be installed; install it, set FATAI_CHROMIUM to its path, or set "
            "FATAI_NO_BROWSER=1 to skip these tests:\n" + "\n".join(errors),
            pytrace=False,
        )
    return None


def _run(command):
    """Run a command; return its error message, or "" if it succeeded."""
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
def launch_chromium():
    """Start Chromium."""
    from playwright.sync_api import expect, sync_playwright

    path = chromium_path()
    expect.set_options(timeout=60_000)  # a busy machine is slow
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def open_page(browser, address, *, expected="", **options):
    """Open a page; at the end it must have made no request to another server and logged no error or warning.

    Messages that contain `expected` are allowed.
    """
    outside, messages, origin = [], [], "/".join(address.split("/")[:3])
    context = browser.new_context(**options)
    page = context.new_page()
    page.on(
        "request",
        lambda r: (
            None if r.url.startswith((f"{origin}/", "data:", f"blob:{origin}/", "blob:null")) else outside.append(r.url)
        ),
    )
    page.on("console", lambda m: messages.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: messages.append(str(e)))
    page.goto(address)
    yield page
    context.close()
    unexpected = [message for message in messages if not expected or expected not in message]
    if outside or unexpected:
        raise AssertionError(f"the page requested {outside} and logged {unexpected}")


@contextmanager
def serving(*args, option="--port"):
    """Run `fatai-submit ARGS --port 0` in a process; yield the process and its address."""
    command = [sys.executable, "-m", "fatai.cli", *map(str, args), option, "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        output = []
        for line in process.stdout:
            output.append(line)
            if "http://" in line:
                break
        else:
            raise AssertionError(f"the server ended: {''.join(output)}")
        yield process, "http://" + line.split("http://")[1].split("/")[0] + "/"
    finally:
        process.terminate()
        process.wait(timeout=20)
        process.stdout.close()


DROP = """([name, text]) => {
    const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0)), data = new DataTransfer();
    data.items.add(new File([bytes], name, {type: 'audio/wav'}));
    const event = new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true});
    document.getElementById('drop').dispatchEvent(event);
}"""


def drop(page, name, content):
    """Drop a file with this content, bytes, on the page."""
    page.evaluate(DROP, [name, base64.b64encode(content).decode()])


def players(page):
    """Return the duration in seconds of every audio player on a page, once all are loaded."""
    page.wait_for_timeout(200)
    return page.evaluate("""() => {
        const load = audio => new Promise((resolve, reject) => {
            if (audio.readyState) resolve(audio.duration);
            audio.addEventListener('loadedmetadata', () => resolve(audio.duration));
            audio.addEventListener('error', () => reject(new Error('a player has no sound')));
        });
        return Promise.all([...document.querySelectorAll('audio')].map(load));
    }""")
