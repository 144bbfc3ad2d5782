"""Run commands in a process that reports their output, the time of each file, and every access outside of a folder.

The process may end in any way - a crash of a decoder, a hang, no memory remaining - and the outcome says so; the next
command gets a new one.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Outcome", "commands_in_child"]

TIMEOUT_S = 180.0
"""Seconds without a report after which a process is killed; a report comes at the start and for each file."""
_MEMORY = 10 << 30  # addresses, most of which are libraries
_FORBIDDEN_EVENTS = frozenset(
    {
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.fork",
        "os.forkpty",
        "pty.spawn",
        "subprocess.Popen",
        "socket.connect",
        "socket.bind",
        "socket.getaddrinfo",
        "urllib.Request",
        "webbrowser.open",
        "ftplib.connect",
        "http.client.connect",
    }
)
_WRITE_EVENTS = frozenset(
    {
        "os.remove",
        "os.rename",
        "os.mkdir",
        "os.rmdir",
        "os.link",
        "os.symlink",
        "os.truncate",
        "os.chmod",
        "os.chown",
        "os.utime",
        "shutil.rmtree",
        "shutil.move",
        "shutil.copyfile",
        "shutil.copytree",
        "shutil.unpack_archive",
    }
)
_LOG = "output.log"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CODE_IN_PICKLES = frozenset(
    {"os", "posix", "nt", "subprocess", "sys", "shutil", "runpy", "importlib", "code", "pty", "socket"}
)


class Outcome(NamedTuple):
    """How a command ended.

    Attributes
    ----------
    code
        Its exit code; None if the process crashed, hung or was killed.
    violations
        Events that no command needs: processes, connections, changes outside of its folder, code in its input.
    slowest, slowest_s
        The file with the longest step, and its seconds of computing.
    """

    args: tuple[str, ...]
    code: int | None
    out: str
    err: str
    violations: tuple[str, ...]
    seconds: float
    slowest: str
    slowest_s: float

    @property
    def fault(self) -> str:
        """The fault of the outcome; "" if the command did its work or ended with one sentence for its user."""
        lines = self.err.strip().splitlines()
        if self.code is None:
            return f"the process {self.err}, last at {self.slowest}"
        if self.violations:
            return f"violations: {'; '.join(self.violations[:3])}"
        if self.slowest_s > 10:
            return f"{self.slowest_s:.1f} s for {self.slowest}"
        if "Traceback" in self.err or self.code not in (0, 1, 2):
            return f"exit {self.code}: {' | '.join(lines[-4:])}"
        return "" if self.code == 0 or lines else f"exit {self.code} without a message"


def commands_in_child(
    commands: Sequence[Sequence[str]], allowed: Path, *, timeout_s: float = TIMEOUT_S
) -> Iterator[Outcome]:
    """Yield the outcome of every command; `allowed`, the current folder, is the only one that it may write to."""
    remaining, context = [tuple(map(str, command)) for command in commands], multiprocessing.get_context("spawn")
    while remaining:
        parent_end, child_end = context.Pipe()
        child = context.Process(target=_serve, args=(child_end, remaining, str(allowed)), daemon=True)
        child.start()
        child_end.close()
        last, ended = "its start", ""
        while remaining and not ended:
            if not parent_end.poll(timeout_s):
                ended = f"hung for {timeout_s:g} s"
                break
            try:
                report = parent_end.recv()
            except EOFError:
                child.join()
                ended = f"crashed with exit code {child.exitcode}"
                break
            if isinstance(report, str):
                last = report
            else:
                yield Outcome(*report)
                remaining, last = remaining[1:], "its start"
        if ended:
            child.kill()
            log = (allowed / _LOG).read_text(errors="replace") if (allowed / _LOG).exists() else ""
            yield Outcome(remaining[0], None, "", f"{ended}: {log[-300:]}", (), timeout_s, last, 0.0)
            remaining = remaining[1:]
        child.join(5)
        parent_end.close()


def _serve(pipe: Any, commands: Sequence[tuple[str, ...]], allowed: str) -> None:
    _confine(allowed)
    timer = _Timer(pipe.send)
    timer.install()
    pipe.send("imported")
    # matplotlib lists the fonts of the machine, and urllib3 opens a socket, when they are imported, at their first use.
    import matplotlib.font_manager
    import urllib3

    assert matplotlib.font_manager.fontManager and urllib3
    monitor = _AccessMonitor(Path(os.path.realpath(allowed)))
    sys.addaudithook(monitor.hook)
    for args in commands:
        pipe.send(_run(args, monitor, timer))


def _confine(allowed: str) -> None:
    """Make libraries that write files by themselves write into the allowed folder."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    sys.dont_write_bytecode = True
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR"):
        os.environ[name] = allowed
    os.environ["PATH"] = ""  # no ffmpeg, which tests/audio/test_ffmpeg.py tries: the commands decode by themselves
    tempfile.tempdir = allowed  # it may be cached already
    os.chdir(allowed)
    # Decoders write to the file descriptors themselves.
    log = os.open(_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")


class _Timer:
    """Measures the functions that process one sound file each."""

    def __init__(self, report: Callable[[str], None]):
        self.report, self.slowest, self.slowest_s, self.file, self.started = report, "", 0.0, "", 0.0

    def install(self) -> None:
        import fatai.data.audit.dataset
        import fatai.data.config
        import fatai.data.tables
        import fatai.inference.events.tagger

        for holder, name in (
            (fatai.data.audit.dataset, "check_audio_file"),
            (fatai.data.tables, "check_audio"),
            (fatai.data.config, "load_audio"),
            (fatai.inference.events.tagger.SlidingWindowTagger, "tag"),
        ):
            setattr(holder, name, self._timed(getattr(holder, name), position=int(isinstance(holder, type))))
        # Long sounds take long; the time between two steps counts.
        fatai.inference.events.tagger.stream_audio = self._stepwise(fatai.inference.events.tagger.stream_audio)

    def _timed(self, function: Callable[..., Any], position: int) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            self.file = ascii(str(args[position]))
            self._begin()
            try:
                return function(*args, **options)
            finally:
                self._end()

        return timed

    def _stepwise(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def stepwise(*args: Any, **options: Any) -> Any:
            for step in function(*args, **options):
                self._end()
                self._begin()
                yield step

        return stepwise

    def _begin(self) -> None:
        self.report(self.file)
        # Processor time, so that other load does not count; a wait without work ends by the timeout above.
        self.started = time.process_time()

    def _end(self) -> None:
        seconds = time.process_time() - self.started
        if seconds > self.slowest_s:
            self.slowest, self.slowest_s = self.file, seconds


class _AccessMonitor:
    """An audit hook that records events that no command needs."""

    def __init__(self, allowed: Path):
        self.allowed, self.noted, self.on = allowed, [], False  # type: ignore[var-annotated]

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "subprocess.Popen" and args[0] == "uname":
            return  # as platform.platform() does
        if event in _FORBIDDEN_EVENTS:
            self.noted.append(f"{event} {args!r:.200}")
        elif event == "open":
            path, mode, flags = args
            if (isinstance(flags, int) and flags & _WRITING) or (isinstance(mode, str) and set(mode) & set("wax+")):
                self._check_path(event, path)
        elif event in _WRITE_EVENTS:
            for path in args[:2] if event in ("os.rename", "os.link", "shutil.move", "shutil.copyfile") else args[:1]:
                self._check_path(event, path)
        elif event == "pickle.find_class" and str(args[0]).split(".")[0] in _CODE_IN_PICKLES:
            self.noted.append(f"{event} {args!r:.200}")

    def _check_path(self, event: str, path: Any) -> None:
        if isinstance(path, (str, bytes, os.PathLike)):
            real = os.path.realpath(os.fsdecode(path))
            if not real.startswith((str(self.allowed) + os.sep, "/dev/null")) and real != str(self.allowed):
                self.noted.append(f"{event} {real!r:.200}")


def _run(args: tuple[str, ...], monitor: _AccessMonitor, timer: _Timer) -> tuple[Any, ...]:
    from fatai.cli import main

    # As in a pipe: text that cannot be encoded is an error on stdout, not on stderr.
    out, err = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors) for errors in ("strict", "backslashreplace")
    )
    before = sys.stdout, sys.stderr, sys.argv, warnings.showwarning
    sys.stdout, sys.stderr, sys.argv = out, err, ["fatai-submit", *args]
    modules, timer.slowest, timer.slowest_s, monitor.noted, code = set(sys.modules), "", 0.0, [], None
    started, monitor.on = time.monotonic(), True
    try:
        with warnings.catch_warnings():
            main()
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except BaseException:
        traceback.print_exc(file=err)
        code = 3
    finally:
        monitor.on = False
        sys.stdout, sys.stderr, sys.argv, warnings.showwarning = before
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None)
        if file and os.path.realpath(file).startswith(str(monitor.allowed)):
            monitor.noted.append(f"imported {file}")
    output = tuple(stream.buffer.getvalue().decode("utf-8", "replace") for stream in (out, err) if not stream.flush())  # type: ignore
    return args, code, *output, tuple(monitor.noted), time.monotonic() - started, timer.slowest, timer.slowest_s
