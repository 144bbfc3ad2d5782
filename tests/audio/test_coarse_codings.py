"""Codings with few bits for each sample: a notice says that their noise may change tags, once for each folder."""

import warnings

import numpy as np
import pytest
import soundfile
import torch

from fatai.audio.io import check_audio, load_audio
from fatai.audio.stream import stream_audio

SR = 8000
TONE = 0.5 * np.sin(np.arange(SR) * 0.7)


@pytest.fixture
def write(tmp_path):
    def write_coded(subtype, name="a", sr=SR):
        path = tmp_path / f"{name}.{'au' if subtype.startswith('G72') else 'wav'}"
        soundfile.write(path, TONE, sr, subtype=subtype)
        return path

    return write_coded


def notices(read):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read()
    return [str(w.message) for w in caught]


@pytest.mark.parametrize("read", [
    lambda path: load_audio(path, SR), lambda path: torch.cat(list(stream_audio(path, SR))), check_audio,
])
@pytest.mark.parametrize(("subtype", "notice"), [
    ("PCM_U8", "coded with 8 bits for each sample: sound below their noise, -53 dB of full scale, is lost"),
    ("ALAW", "coded as A-law, with 8 bits"), ("ULAW", "coded as mu-law, with 8 bits"),
    ("IMA_ADPCM", "coded as IMA ADPCM, with 4 bits"), ("MS_ADPCM", "coded as MS ADPCM, with 4 bits"),
    ("GSM610", "coded as GSM 06.10, with 2 bits"), ("G721_32", "coded as G.721, with 4 bits"),
    ("PCM_16", ""), ("PCM_24", ""), ("FLOAT", ""),
])
def test_a_coarse_coding_is_named_however_the_file_is_read(write, read, subtype, notice):
    path = write(subtype)
    found = notices(lambda: read(path))
    assert len(found) == bool(notice) and (not notice or found[0].startswith(f"{path}: {notice}"))


def test_one_file_speaks_for_those_of_its_coding_in_a_folder(write):
    paths = [write(subtype, name) for name, subtype in (("a", "PCM_U8"), ("b", "PCM_U8"), ("c", "ALAW"))]
    found = [notices(lambda path=path: load_audio(path)) for path in paths * 2]
    assert [len(each) for each in found] == [1, 0, 1, 0, 0, 0] and "files of this coding beside it" in found[0][0]


def test_the_noise_of_8_bits_is_at_the_level_that_the_notice_names(write):
    # libsndfile rounds down to a step, which is an offset of half a step, besides the noise.
    noise = load_audio(write("PCM_U8"), None).numpy() - TONE
    assert noise.mean() == pytest.approx(-1 / 256, abs=1e-4)
    assert 10 * np.log10(noise.var()) == pytest.approx(-53, abs=1)


def test_a_low_rate_is_named_in_streams_as_in_files(write):
    for read in (load_audio, lambda path: list(stream_audio(path, 44100))):
        path = write("PCM_16", f"{read}"[:12].strip("<"), sr=2000)
        assert "its rate is 2,000 Hz" in notices(lambda read=read, path=path: read(path))[0]
