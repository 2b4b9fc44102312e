"""Stems on disk: layout, formats, and nothing half-written."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import tensorflow as tf

from umx_model.data import audio
from umx_model.errors import InputError
from umx_model.inference.files import separate_file
from umx_model.inference.separator import Separator
from umx_model.profile import ModelProfile

RATE = 8000
PROFILE = ModelProfile(targets=("vocals", "drums"), sample_rate=RATE, n_fft=512, hop_length=128)


@pytest.fixture
def separator():
    return Separator(lambda mixture: tf.stack([mixture / 2, -mixture], axis=-1), PROFILE)


@pytest.fixture
def song(tmp_path):
    time = np.arange(RATE)[:, None] / RATE
    waveform = (0.5 * np.sin(2 * np.pi * np.array([220, 330]) * time)).astype(np.float32)
    sf.write(tmp_path / "a song.wav", waveform, RATE, "FLOAT")
    return tmp_path / "a song.wav", waveform


@pytest.mark.parametrize(
    ("stem_format", "bit_depth", "form", "tolerance"),
    [
        ("wav", None, "WAV/PCM_16", 2**-15),
        ("wav", "24", "WAV/PCM_24", 2**-23),
        ("wav", "32f", "WAV/FLOAT", 1e-7),
        ("flac", None, "FLAC/PCM_16", 2**-15),
        ("flac", "24", "FLAC/PCM_24", 2**-23),
        ("ogg", None, "OGG/VORBIS", 0.05),
    ],
)
def test_writes_the_sample_layout(separator, song, tmp_path, stem_format, bit_depth, form, tolerance):
    path, waveform = song
    written = separator.separate_file(path, tmp_path / "out", stem_format, bit_depth)
    assert written == {
        target: str(tmp_path / "out" / "a song" / f"{target}.{stem_format}") for target in ("vocals", "drums")
    }
    assert sorted(os.listdir(tmp_path / "out")) == ["a song"]
    assert sorted(os.listdir(tmp_path / "out" / "a song")) == [f"drums.{stem_format}", f"vocals.{stem_format}"]
    for target, gain in (("vocals", 0.5), ("drums", -1)):
        info = sf.info(written[target])
        assert (f"{info.format}/{info.subtype}", info.samplerate, info.channels, info.frames) == (form, RATE, 2, RATE)
        np.testing.assert_allclose(sf.read(written[target])[0], gain * waveform, rtol=0, atol=tolerance)


def test_keeps_rate_length_and_channels_of_the_file(separator, tmp_path):
    sf.write(tmp_path / "mono.flac", np.zeros(11025), 11025)
    written = separator.separate_file(tmp_path / "mono.flac", tmp_path / "out")
    info = sf.info(written["vocals"])
    assert (info.samplerate, info.channels, info.frames) == (11025, 1, 11025)


def test_chosen_targets_only(separator, song, tmp_path):
    assert list(separator.separate_file(song[0], tmp_path / "out", targets=["drums"])) == ["drums"]
    assert os.listdir(tmp_path / "out" / "a song") == ["drums.wav"]


def test_existing_stems_are_kept_unless_told(separator, song, tmp_path):
    written = separator.separate_file(song[0], tmp_path / "out")
    with open(written["drums"], "wb") as file:
        file.write(b"precious")
    with pytest.raises(InputError, match=r"exists already; overwrite it with --overwrite"):
        separator.separate_file(song[0], tmp_path / "out")
    with open(written["drums"], "rb") as file:
        assert file.read() == b"precious"
    separator.separate_file(song[0], tmp_path / "out", overwrite=True)
    assert sf.info(written["drums"]).frames == RATE


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError("No space left on device")])
def test_failure_while_writing_leaves_nothing(separator, song, tmp_path, monkeypatch, failure):
    real = audio.write

    def failing(path, *args):
        if "drums" in path:
            raise failure
        real(path, *args)

    monkeypatch.setattr(audio, "write", failing)
    with pytest.raises(failure if isinstance(failure, type) else type(failure)):
        separator.separate_file(song[0], tmp_path / "out")
    assert os.listdir(tmp_path) == ["a song.wav"]


def test_failure_keeps_what_was_there(separator, song, tmp_path, monkeypatch):
    written = separator.separate_file(song[0], tmp_path / "out")
    before = {target: Path(path).read_bytes() for target, path in written.items()}

    def failing(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(audio, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        separator.separate_file(song[0], tmp_path / "out", overwrite=True)
    assert {target: Path(path).read_bytes() for target, path in written.items()} == before
    assert os.listdir(tmp_path / "out") == ["a song"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem_format": "aac"}, "format: 'aac' is not one of wav, flac, ogg"),
        ({"stem_format": "flac", "bit_depth": "32f"}, "flac does not offer '32f', only 16, 24"),
        ({"stem_format": "ogg", "bit_depth": "16"}, "ogg does not offer '16'; leave it out"),
        ({"targets": ["vocals", "piano"]}, "the model has no piano; it has vocals, drums"),
    ],
)
def test_refuses_options(separator, song, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        separate_file(separator, song[0], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_refuses_an_output_that_cannot_be_written(separator, song, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match=r"file/out/a song: cannot be written; choose another output folder"):
        separator.separate_file(song[0], tmp_path / "file" / "out")


@pytest.mark.parametrize("in_the_way", ["a song", "a song/drums.wav"])
def test_refuses_an_output_with_something_in_the_way_before_separating(separator, song, tmp_path, in_the_way):
    path = tmp_path / "out" / in_the_way
    path.parent.mkdir(parents=True)
    path.write_text("precious") if in_the_way == "a song" else path.mkdir()
    before = sorted(os.walk(tmp_path))

    def separated(*args):
        raise AssertionError("separated for nothing")

    separator._estimate = separated
    with pytest.raises(InputError, match=f"{path}: (cannot be written|is a folder)"):
        separator.separate_file(song[0], tmp_path / "out", overwrite=True)
    assert sorted(os.walk(tmp_path)) == before


@pytest.mark.parametrize("made_before", [True, False])
def test_refuses_an_output_that_stops_taking_files(separator, song, tmp_path, monkeypatch, made_before):
    if made_before:
        (tmp_path / "out").mkdir()
    before = sorted(os.walk(tmp_path))

    def failing(*args, **options):
        raise tf.errors.PermissionDeniedError(None, None, "no longer")

    monkeypatch.setattr(tf.io.gfile, "rename", failing)
    with pytest.raises(InputError, match=r"vocals\.wav: cannot be written; choose another output folder"):
        separator.separate_file(song[0], tmp_path / "out")
    assert sorted(os.walk(tmp_path)) == before


def test_refuses_a_bad_file_without_a_trace(separator, tmp_path):
    (tmp_path / "text.wav").write_text("this is not audio, whatever its name says" * 10)
    with pytest.raises(InputError, match=r"text\.wav"):
        separator.separate_file(tmp_path / "text.wav", tmp_path / "out")
    assert not (tmp_path / "out").exists()
