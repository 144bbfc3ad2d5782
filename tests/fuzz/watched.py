"""Commands in a process of its own that reports what they said, how long each file took, and whatever they did outside of their folder.

The process may end in any way - a crash of a decoder, a hang, no memory left - and the outcome says so; the next
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

PATIENCE_S = 180.0
"""A process that says nothing for so long is ended; between two words it handles one file, or starts, maybe on a busy machine."""
_MEMORY = 10 << 30  # addresses, most of which are libraries
_DOING = frozenset(
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
_CHANGING = frozenset(
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
_LOG = "said.log"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CODE_IN_PICKLES = frozenset(
    {"os", "posix", "nt", "subprocess", "sys", "shutil", "runpy", "importlib", "code", "pty", "socket"}
)


class Outcome(NamedTuple):
    """How a command ended.

    Attributes
    ----------
    code
        Its exit code; None if the process crashed, hung or was ended.
    strayed
        What it did that no command has to do: processes, connections, changes outside of its folder, code in its input.
    slowest, slowest_s
        The file that nothing went on with for longest, and for how many seconds of computing.
    """

    args: tuple[str, ...]
    code: int | None
    out: str
    err: str
    strayed: tuple[str, ...]
    seconds: float
    slowest: str
    slowest_s: float

    @property
    def fault(self) -> str:
        """What is wrong with it; "" if it ended as a command has to: with its work, or with one sentence for its user."""
        told = self.err.strip().splitlines()
        if self.code is None:
            return f"the process {self.err}, last at {self.slowest}"
        if self.strayed:
            return f"strayed: {'; '.join(self.strayed[:3])}"
        if self.slowest_s > 10:
            return f"{self.slowest_s:.1f} s for {self.slowest}"
        if "Traceback" in self.err or self.code not in (0, 1, 2):
            return f"exit {self.code}: {' | '.join(told[-4:])}"
        return "" if self.code == 0 or told else f"exit {self.code} without a word"


def commands_in_child(
    commands: Sequence[Sequence[str]], allowed: Path, *, patience_s: float = PATIENCE_S
) -> Iterator[Outcome]:
    """The outcome of every command, arguments of `fatai-submit`; `allowed`, their current folder, is the one that they may write to."""
    left, context = [tuple(map(str, command)) for command in commands], multiprocessing.get_context("spawn")
    while left:
        ours, theirs = context.Pipe()
        child = context.Process(target=_serve, args=(theirs, left, str(allowed)), daemon=True)
        child.start()
        theirs.close()
        last, ended = "its start", ""
        while left and not ended:
            if not ours.poll(patience_s):
                ended = f"hung for {patience_s:g} s"
                break
            try:
                said = ours.recv()
            except EOFError:
                child.join()
                ended = f"crashed with exit code {child.exitcode}"
                break
            if isinstance(said, str):
                last = said
            else:
                yield Outcome(*said)
                left, last = left[1:], "its start"
        if ended:
            child.kill()
            log = (allowed / _LOG).read_text(errors="replace") if (allowed / _LOG).exists() else ""
            yield Outcome(left[0], None, "", f"{ended}: {log[-300:]}", (), patience_s, last, 0.0)
            left = left[1:]
        child.join(5)
        ours.close()


def _serve(pipe: Any, commands: Sequence[tuple[str, ...]], allowed: str) -> None:
    _settle(allowed)
    timer = _Timer(pipe.send)
    timer.attend()
    pipe.send("imported")
    watcher = _Watcher(Path(os.path.realpath(allowed)))
    sys.addaudithook(watcher.hook)
    for args in commands:
        pipe.send(_run(args, watcher, timer))


def _settle(allowed: str) -> None:
    """What writes by itself, writes into the allowed folder."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    sys.dont_write_bytecode = True
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR"):
        os.environ[name] = allowed
    tempfile.tempdir = allowed  # it may have been asked for already
    os.chdir(allowed)
    # Decoders write to the file descriptors themselves.
    log = os.open(_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")


class _Timer:
    """How long the functions take that are given one sound file each."""

    def __init__(self, say: Callable[[str], None]):
        self.say, self.slowest, self.slowest_s, self.file, self.started = say, "", 0.0, "", 0.0

    def attend(self) -> None:
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
        # Hours of sound take their time; what counts is how long nothing goes on.
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
        self.say(self.file)
        # What the machine does besides doesn't count; a wait without work ends by the patience above.
        self.started = time.process_time()

    def _end(self) -> None:
        seconds = time.process_time() - self.started
        if seconds > self.slowest_s:
            self.slowest, self.slowest_s = self.file, seconds


class _Watcher:
    """An audit hook that notes what no command has to do."""

    def __init__(self, allowed: Path):
        self.allowed, self.noted, self.on = allowed, [], False  # type: ignore[var-annotated]

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "subprocess.Popen" and args[0] == "uname":
            return  # as platform.platform() does
        if event in _DOING:
            self.noted.append(f"{event} {args!r:.200}")
        elif event == "open":
            path, mode, flags = args
            if (isinstance(flags, int) and flags & _WRITING) or (isinstance(mode, str) and set(mode) & set("wax+")):
                self._place(event, path)
        elif event in _CHANGING:
            for path in args[:2] if event in ("os.rename", "os.link", "shutil.move", "shutil.copyfile") else args[:1]:
                self._place(event, path)
        elif event == "pickle.find_class" and str(args[0]).split(".")[0] in _CODE_IN_PICKLES:
            self.noted.append(f"{event} {args!r:.200}")

    def _place(self, event: str, path: Any) -> None:
        if isinstance(path, (str, bytes, os.PathLike)):
            real = os.path.realpath(os.fsdecode(path))
            if not real.startswith((str(self.allowed) + os.sep, "/dev/null")) and real != str(self.allowed):
                self.noted.append(f"{event} {real!r:.200}")


def _run(args: tuple[str, ...], watcher: _Watcher, timer: _Timer) -> tuple[Any, ...]:
    from fatai.cli import main

    # As a pipe takes them: what can't be encoded is an error, but for messages.
    out, err = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors) for errors in ("strict", "backslashreplace")
    )
    before = sys.stdout, sys.stderr, sys.argv, warnings.showwarning
    sys.stdout, sys.stderr, sys.argv = out, err, ["fatai-submit", *args]
    modules, timer.slowest, timer.slowest_s, watcher.noted, code = set(sys.modules), "", 0.0, [], None
    started, watcher.on = time.monotonic(), True
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
        watcher.on = False
        sys.stdout, sys.stderr, sys.argv, warnings.showwarning = before
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None)
        if file and os.path.realpath(file).startswith(str(watcher.allowed)):
            watcher.noted.append(f"imported {file}")
    told = tuple(stream.buffer.getvalue().decode("utf-8", "replace") for stream in (out, err) if not stream.flush())  # type: ignore
    return args, code, *told, tuple(watcher.noted), time.monotonic() - started, timer.slowest, timer.slowest_s
