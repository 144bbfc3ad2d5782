"""The sound files that a command was pointed at."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

__all__ = ["sound_files"]


def sound_files(sounds: list[Path]) -> list[tuple[str, Path]]:
    """Names and paths of files and of all sounds below folders.

    The name of one below a folder is relative to it; where two have the same name, the path as it was given. Links to nowhere are listed too:
    every sound has an answer.
    """
    from fatai.errors import DataError
    from fatai.sound.files import AUDIO_EXTENSIONS

    found: list[tuple[str, Path]] = []
    for sound in sounds:
        if sound.is_dir():
            below = sorted(f for f in sound.rglob("*") if f.suffix.lower() in AUDIO_EXTENSIONS and not f.is_dir())
            if not below:
                raise DataError(f"there are no sound files below {sound}; expected .wav, .flac, .ogg, .mp3 or the like")
            found += [(str(f.relative_to(sound)), f) for f in below]
        elif sound.is_file():
            found.append((sound.name, sound))
        else:
            raise DataError(f"there is no file or folder {sound}")
    found = list(dict.fromkeys(found))
    count = Counter(name for name, _ in found)
    return [(name if count[name] == 1 else str(path), path) for name, path in found]
