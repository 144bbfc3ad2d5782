#!/usr/bin/env python3
"""Make the sample that is bundled with fatai: short real clips, two training parts and a test part, at most 4 MB.

    python examples/make_sample.py --audio ESC10/audio --csv ESC10/esc10.csv --out fatai/data/datasets/sample

Uses only the CC0 recordings of ESC-10. The test part comes from the published fold 5 and the training parts from folds
1 to 4; all clips of a recording are in one fold, so no recording is in both. The same arguments and the same libsndfile
give the same bytes. It takes ten seconds on one core.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import shutil
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile as sf
from scipy.signal import butter, sosfilt

SR = 44100
BLOCK = SR // 20
TEST_FOLD = "5"
# libsndfile's scale: 0 is Vorbis quality 10, 1 is quality 0. At 0.7 (about 60 kbit/s) the whole sample stays well below
# its 4 MB.
COMPRESSION = 0.7
README = """# The bundled sample

{n_curated} curated, {n_noisy} noisy and {n_test} test clips of 10 kinds of sound, in the layout of Freesound Audio
Tagging 2019: 44.1 kHz, mono, Ogg Vorbis, {minutes:.1f} minutes in all. `fatai.data.datasets.fat2019.fat_sample()`
returns this folder.

Every clip is cut from one or two of the {n_recordings} CC0 recordings of ESC-10 (K. J. Piczak, "ESC: Dataset for
Environmental Sound Classification", ACM Multimedia 2015, doi 10.1145/2733373.2806390), around a loud moment. CC0
waives all rights; `attribution.csv` still lists each recording with its title, author, license, address, and the
files made from it.

| path | content |
|---|---|
| `train_curated/`, `train_curated.csv` | correct labels; about one clip in six has two tags |
| `train_noisy/`, `train_noisy.csv` | worse recordings; in four of ten a label is wrong, missing or added |
| `test/`, `sample_submission.csv` | clips of other recordings than the two training parts (the published fold 5) |
| `truth/` | the true labels of the test and the noisy part, for scoring only: no loader of fatai reads them |

Several curated clips may be cut from the same recording, and curated and noisy clips share recordings: a score over
random folds of the curated part is optimistic. Group the folds by recording (`attribution.csv`) or use the test
part.

The script `examples/make_sample.py` of the project made this folder.
"""


@dataclass
class Clip:
    """A file to be written: its sound, its true tags and the recordings (rows of the ESC-10 table) in it."""

    wave: np.ndarray
    labels: list[str]
    rows: list[dict[str, str]]
    fname: str = ""
    given: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Moment:
    """A loud moment of a source clip: its sample `peak`, and the part [first, last) that is not silent."""

    row: dict[str, str]
    wave: np.ndarray
    peak: int
    first: int
    last: int


def block_power(wave: np.ndarray) -> np.ndarray:
    """Return the energy of each 50 ms of a wave, shape (blocks,)."""
    return np.add.reduceat(wave.astype(np.float64) ** 2, np.arange(0, len(wave), BLOCK))


def moments_of(row: dict[str, str], wave: np.ndarray) -> list[Moment]:
    """Return the loud moments of a clip, loudest first, at least 0.8 s apart and within 20 dB of the loudest."""
    power = block_power(wave)
    loudest, remaining = power.max(), power.copy()
    audible = np.flatnonzero(power > loudest * 1e-5)
    first, last = int(audible[0]) * BLOCK, min(len(wave), (int(audible[-1]) + 1) * BLOCK)
    found = []
    while remaining.max() > loudest * 1e-2:
        block = int(remaining.argmax())
        remaining[max(0, block - 16):block + 17] = 0
        found.append(Moment(row, wave, block * BLOCK, first, last))
    return found


def cut(moment: Moment, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Return about `seconds` of the part of the clip that is not silent, with the loud moment inside."""
    n = int(min(seconds * SR, max(moment.last - moment.first, 0.5 * SR), len(moment.wave)))
    low = max(0, moment.first, moment.peak + BLOCK - n)
    high = min(moment.peak, moment.last - n)
    start = int(rng.integers(low, high + 1)) if high > low else max(0, min(low, len(moment.wave) - n))
    wave = moment.wave[start:start + n].copy()
    fade = np.linspace(0, 1, SR // 200, dtype=np.float32)
    wave[:len(fade)] *= fade
    wave[-len(fade):] *= fade[::-1]
    return wave / max(float(np.abs(wave).max()), 1e-4)


def in_turn(moments: Sequence[Moment], rng: np.random.Generator) -> Iterator[Moment]:
    """Cycle over all moments: first one of every recording, then a second one of each that has more, and so on."""
    of_recording: dict[str, list[Moment]] = {}
    for k in rng.permutation(len(moments)):
        of_recording.setdefault(moments[k].row["freesound_id"], []).append(moments[k])
    rounds = itertools.zip_longest(*of_recording.values())
    return itertools.cycle([m for one_round in rounds for m in one_round if m is not None])


def length_s(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a length; short lengths are more probable."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def mixed(waves: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Return two sounds in sequence, or the second mixed with the first, up to 6 dB softer."""
    if rng.random() < 0.5:
        gap = np.zeros(int(rng.uniform(0, 0.3) * SR), np.float32)
        return np.concatenate([waves[0], gap, waves[1]])
    out = np.zeros(max(map(len, waves)), np.float32)
    for wave in waves:
        at = int(rng.integers(0, len(out) - len(wave) + 1))
        out[at:at + len(wave)] += wave * 10 ** (rng.uniform(-6, 0) / 20)
    return out


def make_part(turns: dict[str, Iterator[Moment]], singles: int, pairs: int, rng: np.random.Generator) -> list[Clip]:
    """Return `singles` clips of each tag, and `pairs` mixtures in which every tag occurs equally often."""
    tags, clips = sorted(turns), []
    for tag in tags:
        for k in range(singles):
            moment = next(turns[tag])
            # The last of each tag is one of the few long ones.
            seconds = length_s(rng, 2.5, 4.0) if k == singles - 1 and rng.random() < 0.6 else length_s(rng, 0.5, 2.0)
            clips.append(Clip(cut(moment, seconds, rng), [tag], [moment.row]))
    while pairs > 0:
        order = [tags[k] for k in rng.permutation(len(tags))]
        for a, b in list(zip(order[::2], order[1::2], strict=False))[:pairs]:
            moments = [next(turns[a]), next(turns[b])]
            waves = [cut(m, length_s(rng, 0.5, 1.4), rng) for m in moments]
            clips.append(Clip(mixed(waves, rng), [a, b], [m.row for m in moments]))
            pairs -= 1
    return clips


def worsened(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a worse recording: quiet around the event, a band limit, brown noise 3 to 20 dB below the sound."""
    total = max(len(wave), int(SR * rng.uniform(0.8, 1.8)))
    at = int(rng.integers(0, total - len(wave) + 1))
    wave = np.pad(wave, (at, total - len(wave) - at))
    wave = sosfilt(butter(4, rng.uniform(3000, 12000), fs=SR, output="sos"), wave)
    noise = sosfilt(butter(1, 50, "high", fs=SR, output="sos"), np.cumsum(rng.standard_normal(total)))
    noise *= np.sqrt(np.mean(wave**2) / np.mean(noise**2)) * 10 ** (-rng.uniform(3, 20) / 20)
    return (wave + noise).astype(np.float32)


def mislabel(clips: list[Clip], tags: Sequence[str], rng: np.random.Generator) -> None:
    """Corrupt the labels of about four clips in ten: a wrong one instead of the first, one too many, or one too few."""
    for clip in clips:
        clip.given, draw = list(clip.labels), rng.random()
        wrong = [t for t in tags if t not in clip.labels]
        if draw < 0.28:
            clip.given[0] = wrong[int(rng.integers(len(wrong)))]
        elif draw < 0.36:
            clip.given.append(wrong[int(rng.integers(len(wrong)))])
        elif len(clip.labels) > 1 and draw < 0.75:
            clip.given.pop()


def ogg_checksum(page: bytes) -> int:
    """Return the CRC of an Ogg page (polynomial 0x04c11db7, most significant bit first, start 0; RFC 3533)."""
    crc = 0
    for byte in page:
        crc = ((crc << 8) & 0xFFFFFFFF) ^ CRC_TABLE[(crc >> 24) ^ byte]
    return crc


def _crc_entry(byte: int) -> int:
    crc = byte << 24
    for _ in range(8):
        crc = ((crc << 1) ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


CRC_TABLE = [_crc_entry(byte) for byte in range(256)]


def with_fixed_serial(data: bytes, serial: int) -> bytes:
    """Return the same Ogg stream with another serial number.

    libsndfile draws a random one, so that equal sounds would differ in bytes.
    """
    pages, at = [], 0
    while at < len(data):
        n_segments = data[at + 26]
        end = at + 27 + n_segments + sum(data[at + 27:at + 27 + n_segments])
        page = bytearray(data[at:end])
        page[14:18] = struct.pack("<I", serial)
        page[22:26] = bytes(4)
        page[22:26] = struct.pack("<I", ogg_checksum(bytes(page)))
        pages.append(bytes(page))
        at = end
    return b"".join(pages)


def write_clip(path: Path, clip: Clip, rng: np.random.Generator) -> None:
    """Write the sound at a random level, 1 to 12 dB below full scale."""
    wave = clip.wave / max(float(np.abs(clip.wave).max()), 1e-4) * 10 ** (rng.uniform(-12, -1) / 20)
    sf.write(path, wave, SR, format="OGG", subtype="VORBIS", compression_level=COMPRESSION)
    path.write_bytes(with_fixed_serial(path.read_bytes(), serial=int(Path(clip.fname).stem, 16)))


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def attribution(parts: dict[str, list[Clip]]) -> list[tuple[str, ...]]:
    """Return one row per recording: title, author, license and the files made from it."""
    rows: dict[str, dict[str, str]] = {}
    sources: dict[str, set[str]] = {}
    files: dict[str, set[str]] = {}
    for part, clips in parts.items():
        for clip in clips:
            for row in clip.rows:
                key = row["freesound_id"]
                rows[key] = row
                sources.setdefault(key, set()).add(row["filename"])
                files.setdefault(key, set()).add(f"{part}/{clip.fname}")
    return [
        (
            key,
            r["source_title"],
            r["author"],
            r["license"],
            r["license_url"],
            f"https://freesound.org/s/{key}/",
            r["label"],
            r["fold"],
            " ".join(sorted(sources[key])),
            " ".join(sorted(files[key])),
        )
        for key, r in sorted(rows.items(), key=lambda item: int(item[0]))
    ]


def read_sources(audio: Path, table: Path) -> tuple[list[Moment], list[Moment]]:
    """Return the loud moments of all CC0 clips: those for training and those for the test."""
    train: list[Moment] = []
    test: list[Moment] = []
    with table.open(newline="", encoding="utf-8") as f:
        for row in sorted(csv.DictReader(f), key=lambda r: r["filename"]):
            if row["license"] != "CC0":
                continue
            wave, sr = sf.read(audio / row["filename"], dtype="float32", always_2d=True)
            if sr != SR:
                raise SystemExit(f"{row['filename']} has {sr} Hz; ESC-10 comes at {SR} Hz")
            (test if row["fold"] == TEST_FOLD else train).extend(moments_of(row, wave.mean(1)))
    return train, test


def turns_of(moments: Sequence[Moment], rng: np.random.Generator) -> dict[str, Iterator[Moment]]:
    """Return an endless sequence of moments for each tag."""
    tags = sorted({m.row["label"] for m in moments})
    return {tag: in_turn([m for m in moments if m.row["label"] == tag], rng) for tag in tags}


def main(audio: Path, table: Path, out: Path, seed: int = 2019) -> dict[str, list[Clip]]:
    """Write the sample to `out`, replacing an earlier one; return the clips by part."""
    rng = np.random.default_rng(seed)
    train, test = read_sources(audio, table)
    turns = turns_of(train, rng)
    tags = sorted(turns)
    parts = {
        "train_curated": make_part(turns, singles=10, pairs=20, rng=rng),
        "train_noisy": make_part(turns, singles=6, pairs=12, rng=rng),
        "test": make_part(turns_of(test, rng), singles=5, pairs=10, rng=rng),
    }
    for clip in parts["train_noisy"]:
        clip.wave = worsened(clip.wave, rng)
    mislabel(parts["train_noisy"], tags, rng)
    names = rng.choice(2**32, size=sum(map(len, parts.values())), replace=False)
    for name, clip in zip(names, itertools.chain(*parts.values()), strict=True):
        clip.fname = f"{name:08x}.ogg"
    for part, clips in parts.items():
        shutil.rmtree(out / part, ignore_errors=True)
        (out / part).mkdir(parents=True)
        clips.sort(key=lambda c: c.fname)
        for clip in clips:
            write_clip(out / part / clip.fname, clip, rng)
    write_csv(
        out / "train_curated.csv", ("fname", "labels"), [(c.fname, ",".join(c.labels)) for c in parts["train_curated"]]
    )
    write_csv(
        out / "train_noisy.csv", ("fname", "labels"), [(c.fname, ",".join(c.given)) for c in parts["train_noisy"]]
    )
    write_csv(out / "sample_submission.csv", ("fname", *tags), [(c.fname, *[0] * len(tags)) for c in parts["test"]])
    for part in ("test", "train_noisy"):
        write_csv(
            out / "truth" / f"{part}.csv", ("fname", "labels"), [(c.fname, ",".join(c.labels)) for c in parts[part]]
        )
    rows = attribution(parts)
    write_csv(
        out / "attribution.csv",
        (
            "freesound_id",
            "title",
            "author",
            "license",
            "license_url",
            "url",
            "tag",
            "esc10_fold",
            "esc10_clips",
            "files",
        ),
        rows,
    )
    minutes = sum(len(c.wave) for clips in parts.values() for c in clips) / SR / 60
    (out / "README.md").write_text(README.format(
        n_curated=len(parts["train_curated"]), n_noisy=len(parts["train_noisy"]), n_test=len(parts["test"]),
        n_recordings=len(rows), minutes=minutes), encoding="utf-8")
    return parts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, required=True, help="folder with the ESC-10 clips")
    parser.add_argument("--csv", type=Path, required=True, help="its table: filename, fold, label, license, ...")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=2019)
    options = parser.parse_args()
    made = main(options.audio, options.csv, options.out, options.seed)
    size = sum(f.stat().st_size for f in options.out.rglob("*") if f.is_file())
    counts = ", ".join(f"{len(clips)} {part}" for part, clips in made.items())
    print(f"{options.out}: {counts} clips, {size / 1e6:.2f} MB")
