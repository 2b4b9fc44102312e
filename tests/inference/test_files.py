"""Stems on disk: layout, formats, exactness, and nothing half-written."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import tensorflow as tf
from helpers import PointwiseStream, stem

from umx_model.data import audio
from umx_model.errors import InputError
from umx_model.inference import files, writers
from umx_model.inference.files import SeparatedFile, stem_paths
from umx_model.inference.separator import Separator
from umx_model.inference.stems import StemSelection
from umx_model.profile import ModelProfile

RATE = 8000
PROFILE = ModelProfile(targets=("vocals", "drums"), sample_rate=RATE, n_fft=512, hop_length=128)
RAW = StemSelection(consistency=False)


def separator_of(*gains):
    """A separator whose estimates are the mixture times a gain each."""
    return Separator(lambda channels: PointwiseStream(lambda x: x[..., None] * np.array(gains, np.float32)), PROFILE)


@pytest.fixture
def separator():
    return separator_of(0.5, -1)


@pytest.fixture
def song(tmp_path):
    waveform = stem("vocals", 1.0, RATE)
    sf.write(tmp_path / "a song.wav", waveform, RATE, "FLOAT")
    return tmp_path / "a song.wav", waveform


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


@pytest.mark.parametrize(
    ("stem_format", "bit_depth", "form", "tolerance"),
    [
        ("wav", None, "WAV/PCM_16", 2**-16),
        ("wav", "16", "WAV/PCM_16", 2**-16),
        ("wav", "24", "WAV/PCM_24", 2**-23),
        ("wav", "32f", "WAV/FLOAT", 0),
        ("flac", None, "FLAC/PCM_16", 2**-16),
        ("flac", "24", "FLAC/PCM_24", 2**-23),
        ("ogg", None, "OGG/VORBIS", 0.02),
        ("mp3", None, "MP3/MPEG_LAYER_III", 0.05),
    ],
)
def test_writes_what_was_estimated(separator, song, tmp_path, stem_format, bit_depth, form, tolerance):
    path, waveform = song
    done = separator.separate_file(path, tmp_path / "out", RAW, stem_format=stem_format, bit_depth=bit_depth)
    expected = {target: str(tmp_path / "out" / "a song" / f"{target}.{stem_format}") for target in ("vocals", "drums")}
    assert done == SeparatedFile(str(path), expected, 1.0, 1.0, done.seconds)
    assert 0 < done.seconds < 60
    assert tree(tmp_path / "out") == ["a song", f"a song/drums.{stem_format}", f"a song/vocals.{stem_format}"]
    for target, gain in (("vocals", 0.5), ("drums", -1)):
        info = sf.info(done.stems[target])
        assert (f"{info.format}/{info.subtype}", info.samplerate, info.channels, info.frames) == (form, RATE, 2, RATE)
        np.testing.assert_allclose(sf.read(done.stems[target])[0], gain * waveform, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("rate", "channels", "samples"), [(11025, 1, 11026), (44100, 8, 3000), (192_000, 2, 200_001)])
@pytest.mark.parametrize("selection", [None, StemSelection(["drums"], residual=True), StemSelection(two_stems="drums")])
def test_float_stems_null_against_the_mixture(separator, tmp_path, rate, channels, samples, selection):
    """Whatever the rate, and so what resampling took: below -100 dB of the mixture."""
    mixture = np.random.default_rng(0).uniform(-0.9, 0.9, (samples, channels)).astype(np.float32)
    sf.write(tmp_path / "song.wav", mixture, rate, "FLOAT")
    done = separator.separate_file(tmp_path / "song.wav", tmp_path / "out", selection, bit_depth="32f")
    stems = []
    for file in done.stems.values():
        waveform, stem_rate = sf.read(file, always_2d=True)
        assert (stem_rate, waveform.shape) == (rate, mixture.shape)
        stems.append(waveform)
    assert 10 * np.log10(np.mean((sum(stems) - mixture) ** 2) / np.mean(mixture**2)) < -130
    assert 10 * np.log10(np.mean((sum(stems[:-1]) - mixture) ** 2) / np.mean(mixture**2)) > -100  # it can fail


@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize("rate", [RATE, 44100])
@pytest.mark.parametrize("stem_format", ["wav", "flac", "ogg", "mp3"])
def test_shortest_files(separator, tmp_path, samples, rate, stem_format):
    sf.write(tmp_path / "song.wav", np.full((samples, 2), 0.25), rate)
    done = separator.separate_file(tmp_path / "song.wav", tmp_path / "out", stem_format=stem_format)
    assert [sf.info(file).frames for file in done.stems.values()] == [samples] * 2


def test_stems_that_would_clip_share_one_gain(song, tmp_path):
    path, waveform = song
    gain = (1 - 2**-15) / (8 * np.abs(waveform).max())
    for stem_format, bit_depth in (("wav", "16"), ("wav", "24"), ("flac", "16")):
        done = separator_of(8, -7).separate_file(
            path, tmp_path / bit_depth / stem_format, stem_format=stem_format, bit_depth=bit_depth
        )
        assert done.gain == pytest.approx(gain, rel=1e-6)
        vocals, drums = (sf.read(done.stems[target])[0] for target in ("vocals", "drums"))
        np.testing.assert_allclose(vocals, 8 * gain * waveform, rtol=0, atol=2**-15)
        np.testing.assert_allclose(vocals + drums, gain * waveform, rtol=0, atol=2**-14)
        assert np.abs(vocals).max() == pytest.approx(1 - 2**-15, abs=2**-17)


def test_full_scale_is_not_clipping(tmp_path):
    sf.write(tmp_path / "song.wav", np.array([[-(2**15), 2**15 - 1]] * 100, np.int16), RATE)
    done = separator_of(1, 0).separate_file(tmp_path / "song.wav", tmp_path / "out", RAW, clipping="refuse")
    assert done.gain == 1
    np.testing.assert_array_equal(sf.read(done.stems["vocals"], dtype="int16")[0], [[-(2**15), 2**15 - 1]] * 100)


def test_float_is_never_touched(song, tmp_path):
    done = separator_of(8, -7).separate_file(song[0], tmp_path / "out", bit_depth="32f", clipping="refuse")
    assert done.gain == 1
    np.testing.assert_allclose(sf.read(done.stems["vocals"])[0], 8 * song[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("stem_format", ["wav", "mp3"])
def test_clipping_may_be_refused(song, tmp_path, stem_format):
    with pytest.raises(InputError, match=r"a song.wav: vocals clips \(\+\d\.\d dB at 0 s\); write 32-bit float"):
        separator_of(8, -7).separate_file(song[0], tmp_path / "out", stem_format=stem_format, clipping="refuse")
    assert tree(tmp_path) == ["a song.wav"]


def test_long_wav_becomes_rf64(separator, song, tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "_WAV_BYTES", 30_000)
    done = separator.separate_file(song[0], tmp_path / "out")
    assert done.stems["drums"].endswith("drums.wav")
    assert sf.info(done.stems["drums"]).format == "RF64"
    np.testing.assert_allclose(audio.read(done.stems["drums"]), -song[1] + 0.75 * song[1], rtol=0, atol=2**-15)


def test_remote_output(separator, song, tmp_path):
    done = separator.separate_file(song[0], f"ram://{tmp_path.name}", bit_depth="32f")
    assert tf.io.gfile.listdir(f"ram://{tmp_path.name}/a song") == ["drums.wav", "vocals.wav"]
    stems = [audio.read(file) for file in done.stems.values()]
    np.testing.assert_allclose(sum(stems), song[1], rtol=0, atol=1e-6)


def test_progress_goes_on_while_encoding(separator, tmp_path):
    sf.write(tmp_path / "song.wav", np.zeros((400_000, 1)), RATE)
    reports = []
    separator.separate_file(
        tmp_path / "song.wav", tmp_path / "out", stem_format="mp3", progress=lambda *report: reports.append(report)
    )
    assert reports == sorted(reports)
    assert reports[0] == (0, 50.0)
    assert reports[-1] == (50.0, 50.0)
    assert len(reports) > 6


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("{track}/{target}.{ext}", "a song/drums.flac"),
        ("{target}/{track}.{ext}", "drums/a song.flac"),
        ("{track} - {target}.flac", "a song - drums.flac"),
        ("./x/../{target}.{ext}", "drums.flac"),
    ],
)
def test_names(name, file, separator, song, tmp_path):
    done = separator.separate_file(song[0], tmp_path / "out", stem_format="flac", name=name)
    assert done.stems["drums"] == str(tmp_path / "out" / file)
    assert stem_paths(song[0], tmp_path / "out", ("vocals", "drums"), "flac", name) == done.stems
    assert len(list((tmp_path / "out").rglob("*.flac"))) == 2
    assert not list((tmp_path / "out").rglob("*.partial"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{track}.{ext}", r"vocals and drums would both be .*a song.wav; use {target} in it"),
        ("{target}/../{track}.{ext}", "would both be"),
        ("{artist}/{target}.{ext}", r"field {artist} is not known, or has a format; use {track}, {target}, {ext}"),
        ("{}.{ext}", "field {} is not known"),
        ("{track:d}/{target}.{ext}", "field {track} is not known, or has a format"),
        ("{target!x}.{ext}", "field {target} is not known, or has a format"),
        ("{target.__class__}.{ext}", "field {target.__class__} is not known"),
        ("{target.{ext}", "not a template"),
        ("../{target}.{ext}", r"\.\./vocals.wav is not in the output folder"),
        ("/tmp/{target}.{ext}", "/tmp/vocals.wav is not in the output folder"),
        ("{target}", r"vocals does not end in .wav; end it in .{ext}"),
        ("{target}.mp3", r"vocals.mp3 does not end in .wav"),
    ],
)
def test_refuses_names(separator, song, tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        separator.separate_file(song[0], tmp_path / "out", name=name)
    assert tree(tmp_path) == ["a song.wav"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem_format": "aac"}, "format: 'aac' is not one of wav, flac, ogg, mp3"),
        ({"stem_format": "flac", "bit_depth": "32f"}, "flac does not offer '32f', only 16, 24"),
        ({"stem_format": "ogg", "bit_depth": "16"}, "ogg does not offer '16'; leave it out"),
        ({"selection": StemSelection(["vocals", "piano"])}, "the model has no piano; it has vocals, drums"),
        ({"clipping": "ignore"}, "clipping: 'ignore' is not one of scale, refuse"),
    ],
)
def test_refuses_options(separator, song, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        separator.separate_file(song[0], tmp_path / "out", **options)
    assert tree(tmp_path) == ["a song.wav"]


@pytest.mark.parametrize(
    ("rate", "channels", "stem_format"),
    [(96_000, 2, "mp3"), (44100, 3, "mp3"), (44100, 6, "ogg"), (352_800, 2, "ogg"), (44100, 12, "flac")],
)
def test_refuses_what_a_format_cannot_hold_before_separating(tmp_path, rate, channels, stem_format):
    sf.write(tmp_path / "song.wav", np.zeros((100, channels)), rate)

    def start(channels):
        raise AssertionError("separated for nothing")

    with pytest.raises(InputError, match=f"{stem_format} files cannot hold {channels} channels at {rate} Hz; use wav"):
        Separator(start, PROFILE).separate_file(tmp_path / "song.wav", tmp_path / "out", stem_format=stem_format)
    assert tree(tmp_path) == ["song.wav"]


def test_existing_stems_are_kept_unless_told(separator, song, tmp_path):
    done = separator.separate_file(song[0], tmp_path / "out")
    Path(done.stems["drums"]).write_bytes(b"precious")
    with pytest.raises(InputError, match=r"exists already; overwrite it with --overwrite"):
        separator.separate_file(song[0], tmp_path / "out")
    assert Path(done.stems["drums"]).read_bytes() == b"precious"
    separator.separate_file(song[0], tmp_path / "out", overwrite=True)
    assert sf.info(done.stems["drums"]).frames == RATE


def test_the_mixture_is_never_overwritten(separator, tmp_path):
    (tmp_path / "vocals").mkdir()
    sf.write(tmp_path / "vocals" / "vocals.wav", np.zeros((10, 2)), RATE)
    before = (tmp_path / "vocals" / "vocals.wav").read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    for output in (tmp_path, tmp_path / "link"):
        with pytest.raises(InputError, match=r"vocals.wav: would be replaced by its own stem"):
            separator.separate_file(tmp_path / "vocals" / "vocals.wav", output, overwrite=True)
    assert (tmp_path / "vocals" / "vocals.wav").read_bytes() == before


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError("broken")])
@pytest.mark.parametrize("place", ["separating", "writing", "encoding", "publishing"])
def test_failure_leaves_what_was_there(separator, song, tmp_path, monkeypatch, failure, place):
    done = separator.separate_file(song[0], tmp_path / "out")
    before = {file: Path(file).read_bytes() for file in done.stems.values()}

    def failing(*args, **options):
        raise failure

    if place == "separating":
        monkeypatch.setattr(PointwiseStream, "finish", failing)
    elif place == "writing":
        monkeypatch.setattr(writers.StemWriter, "write", failing)
    elif place == "encoding":
        monkeypatch.setattr(writers, "_as_int16", failing)
    else:
        replace = os.replace
        monkeypatch.setattr(
            files.os, "replace", lambda a, b: failing() if str(b).endswith("drums.wav") else replace(a, b)
        )
    for output in (tmp_path / "out", tmp_path / "new" / "deeper"):
        with pytest.raises((KeyboardInterrupt, OSError, InputError), match="broken|cannot be written|^$"):
            separator.separate_file(song[0], output, overwrite=True)
    assert {file: Path(file).read_bytes() for file in done.stems.values()} == before
    assert tree(tmp_path) == ["a song.wav", "out", "out/a song", "out/a song/drums.wav", "out/a song/vocals.wav"]


def test_interrupt_ends_encoding_at_once(separator, tmp_path):
    """A real Ctrl-C while long stems are encoded: no waiting for the rest, and no trace."""
    sf.write(tmp_path / "song.wav", np.zeros((3_000_000, 2), np.int16), RATE)
    code = (
        "import sys; sys.path[:0] = ['.', 'tests']; import test_files as t; "
        "t.separator_of(0.5, -1).separate_file(sys.argv[1], sys.argv[2], stem_format='mp3')"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "song.wav"), str(tmp_path / "out")]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'tests'}:{Path(__file__).parent}"}
    process = subprocess.Popen(arguments, cwd=root, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/.*.partial/.*.partial")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert errors.strip().endswith("KeyboardInterrupt")
    assert time.monotonic() - sent < 5
    assert tree(tmp_path) == ["song.wav"]


@contextmanager
def small_device(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ("600k", {}),
        ("600k", {"bit_depth": "32f"}),
        ("1200k", {"bit_depth": "24"}),  # room for the raw stems, and for little else
        ("1200k", {"stem_format": "flac", "bit_depth": "24"}),
        ("1064k", {"stem_format": "mp3"}),
    ],
)
def test_no_space_left(separator, tmp_path, monkeypatch, size, options):
    """Found beforehand, or when it happens."""
    mixture = np.random.default_rng(0).uniform(-0.9, 0.9, (8 * RATE, 2))
    sf.write(tmp_path / "song.wav", mixture, RATE)
    with small_device(tmp_path / "small", size):
        for early in (True, False):
            if not early:
                monkeypatch.setattr(files, "_check_space", lambda *_: None)
            with pytest.raises(InputError, match=r"small/out: no space left on the device") as refusal:
                separator.separate_file(tmp_path / "song.wav", tmp_path / "small" / "out", **options)
            assert "\n" not in str(refusal.value)
            assert tree(tmp_path / "small") == []
            if size == "600k":
                assert ("are needed" in str(refusal.value)) == early


def test_refuses_an_output_that_cannot_be_written(separator, song, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match=r"file/out: cannot be written; choose another output folder"):
        separator.separate_file(song[0], tmp_path / "file" / "out")


@pytest.mark.parametrize("in_the_way", ["a song", "a song/drums.wav"])
def test_refuses_an_output_with_something_in_the_way_before_separating(song, tmp_path, in_the_way):
    path = tmp_path / "out" / in_the_way
    path.parent.mkdir(parents=True)
    path.write_text("precious") if in_the_way == "a song" else path.mkdir()
    before = sorted(os.walk(tmp_path))

    def start(channels):
        raise AssertionError("separated for nothing")

    with pytest.raises(InputError, match=f"{path}: (cannot be written|is a folder)"):
        Separator(start, PROFILE).separate_file(song[0], tmp_path / "out", overwrite=True)
    assert sorted(os.walk(tmp_path)) == before


@pytest.mark.parametrize("name", ["{track}/{target}.{ext}", "{track}-{target}.{ext}"])
def test_names_of_any_length(separator, song, tmp_path, name):
    path = tmp_path / f"{'x' * 251}.wav"
    song[0].rename(path)
    if name.startswith("{track}/"):
        assert separator.separate_file(path, tmp_path / "out", name=name).stems
    else:
        with pytest.raises(InputError, match="-vocals.wav: cannot be written"):
            separator.separate_file(path, tmp_path / "out", name=name)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"this is not audio, whatever its name says" * 10, b""])
def test_refuses_a_bad_file_without_a_trace(separator, tmp_path, content):
    (tmp_path / "text.wav").write_bytes(content)
    with pytest.raises(InputError, match=r"text\.wav"):
        separator.separate_file(tmp_path / "text.wav", tmp_path / "out")
    assert tree(tmp_path) == ["text.wav"]


def test_refuses_non_finite_samples_without_a_trace(separator, tmp_path):
    mixture = np.zeros((200_000, 2), np.float32)
    mixture[150_000] = np.nan
    sf.write(tmp_path / "song.wav", mixture, RATE, "FLOAT")
    with pytest.raises(InputError, match=r"song.wav: non-finite sample \(nan\) at 150000 \(18.750 s\), channel 1"):
        separator.separate_file(tmp_path / "song.wav", tmp_path / "out")
    assert tree(tmp_path) == ["song.wav"]
