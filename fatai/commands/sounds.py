"""The sound files that a command was pointed at."""

from __future__ import annotations

from pathlib import Path

__all__ = ["sound_files"]


def sound_files(sounds: list[Path]) -> list[tuple[str, Path]]:
    """Names and paths of files and of all sounds below folders; the name of one below a folder is relative to it."""
    from fatai.errors import DataError
    from fatai.sound.files import AUDIO_EXTENSIONS

    found: list[tuple[str, Path]] = []
    for sound in sounds:
        if sound.is_dir():
            below = sorted(f for f in sound.rglob("*") if f.suffix.lower() in AUDIO_EXTENSIONS and f.is_file())
            if not below:
                raise DataError(f"there are no sound files below {sound}; expected .wav, .flac, .ogg, .mp3 or the like")
            found += [(str(f.relative_to(sound)), f) for f in below]
        elif sound.is_file():
            found.append((sound.name, sound))
        else:
            raise DataError(f"there is no file or folder {sound}")
    return found
