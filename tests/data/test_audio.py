"""Audio files, held against what soundfile reads and against the waveforms that were written."""

import os
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile as sf
import tensorflow as tf
from helpers import write_m4a

from umx_model.data import audio
from umx_model.data.containers import check_chunks, find_wav_data
from umx_model.errors import InputError

RATE = 44100


def noise(samples: int, channels: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.9, 0.9, (samples, channels)).astype(np.float32)


def tone(samples: int, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(samples) / rate).astype(np.float32)[:, np.newaxis]


FORMATS = [
    ("x.wav", None, RATE),
    ("x.wav", "PCM_24", RATE),
    ("x.wav", "PCM_32", RATE),
    ("x.wav", "FLOAT", RATE),
    ("x.wav", "DOUBLE", RATE),
    ("x.flac", None, RATE),
    ("x.ogg", None, RATE),
    ("x.opus", None, 48000),
    ("x.mp3", None, RATE),
    ("x.aiff", None, RATE),
]


@pytest.mark.parametrize(("file", "subtype", "rate"), FORMATS)
def test_written_file_probes_and_reads_as_soundfile_says(
    tmp_path: Path, file: str, subtype: str | None, rate: int
) -> None:
    path = tmp_path / file
    audio.write(path, noise(100_003), rate, subtype)
    expected, expected_rate = sf.read(path, dtype="float32", always_2d=True)
    info = audio.probe(path)
    assert (info.sample_rate, info.channels, info.samples) == (expected_rate, 2, 100_003)
    assert info.format == f"{sf.info(path).format}/{sf.info(path).subtype}"
    np.testing.assert_array_equal(audio.read(path), expected)
    np.testing.assert_array_equal(audio.read(path, 1000, 70_000), expected[1000:71_000])
    blocks = list(audio.stream(path, block_samples=30_000))
    assert [len(block) for block in blocks] == [30_000, 30_000, 30_000, 10_003]
    np.testing.assert_array_equal(np.concatenate(blocks), expected)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("subtype", "tolerance"), [("PCM_16", 2**-15), ("PCM_24", 2**-23), ("FLOAT", 0)])
def test_lossless_round_trip(tmp_path: Path, subtype: str, tolerance: float) -> None:
    waveform = noise(5000, channels=3)
    audio.write(tmp_path / "x.wav", waveform, RATE, subtype)
    assert np.abs(audio.read(tmp_path / "x.wav") - waveform).max() <= tolerance


def test_integer_files_clip_instead_of_wrapping(tmp_path: Path) -> None:
    audio.write(tmp_path / "x.wav", np.array([1.5, -1.5], np.float32), RATE)
    np.testing.assert_allclose(audio.read(tmp_path / "x.wav")[:, 0], [1, -1], atol=2**-15)


def test_long_vorbis_is_written_without_crashing(tmp_path: Path) -> None:
    samples = 40 * RATE  # libsndfile crashes on this in one call
    audio.write(tmp_path / "x.ogg", np.zeros((samples, 2), np.float32), RATE)
    assert audio.probe(tmp_path / "x.ogg").samples == samples


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_S8", "ULAW", "ALAW", "MS_ADPCM"])
def test_few_bits_are_read(tmp_path: Path, channels: int, subtype: str) -> None:
    path = tmp_path / ("x.aiff" if subtype == "PCM_S8" else "x.wav")
    waveform = np.repeat(tone(1001), channels, axis=1)  # an odd number of bytes
    sf.write(path, waveform, RATE, subtype)
    assert audio.probe(path).format.endswith(subtype)
    np.testing.assert_allclose(audio.read(path)[:1001], waveform, rtol=0, atol=0.05)


def test_samples_of_one_bit_are_read_as_the_bytes_that_hold_them(tmp_path: Path) -> None:
    waveform = np.where(noise(1001, 1) > 0, 0.5, -0.5).astype(np.float32)
    sf.write(tmp_path / "x.wav", waveform, RATE, "PCM_U8")
    content = bytearray((tmp_path / "x.wav").read_bytes())
    content[34:36] = (1).to_bytes(2, "little")
    (tmp_path / "x.wav").write_bytes(content)
    assert audio.probe(tmp_path / "x.wav").samples == 1001
    np.testing.assert_array_equal(audio.read(tmp_path / "x.wav"), waveform)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("channels", [2, 3, 4, 5, 6, 7])
def test_channels_come_in_the_order_of_wav(tmp_path: Path, subtype: str, channels: int) -> None:
    """As FFmpeg gives them; libsndfile leaves Vorbis' order, in which the centre comes second."""
    tones = np.concatenate([tone(2 * 48000, 48000, 300 * (channel + 1)) for channel in range(channels)], axis=1)
    with sf.SoundFile(tmp_path / "x.ogg", "w", 48000, channels, subtype) as file:
        for start in range(0, len(tones), 4800):
            file.write(tones[start : start + 4800])
    with av.open(str(tmp_path / "x.ogg")) as container:
        expected = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1).T
    middle = slice(20_000, 60_000)
    assert expected.dtype == np.float32
    np.testing.assert_allclose(audio.read(tmp_path / "x.ogg")[middle], expected[middle], rtol=0, atol=0.02)


def test_wav_beyond_its_own_counting_is_rf64(tmp_path: Path) -> None:
    for samples, form in ((2**29 - 2**14, "WAV/FLOAT"), (2**29, "RF64/FLOAT")):
        with audio.create(tmp_path / "x.wav", RATE, 2, "FLOAT", samples) as file:
            file.write(noise(100))
        assert audio.probe(tmp_path / "x.wav").format == form
        np.testing.assert_array_equal(audio.read(tmp_path / "x.wav"), noise(100))


def test_lossy_files_are_of_a_high_bit_rate(tmp_path: Path) -> None:
    for file in ("x.mp3", "x.ogg"):
        audio.write(tmp_path / file, noise(5 * RATE), RATE)
        assert (tmp_path / file).stat().st_size * 8 / 5 > 250_000


def test_m4a_and_video_are_decoded_by_ffmpeg(tmp_path: Path) -> None:
    waveform = np.repeat(tone(RATE), 2, axis=1)
    write_m4a(tmp_path / "x.m4a", waveform)
    info = audio.probe(tmp_path / "x.m4a")
    assert (info.format, info.sample_rate, info.channels) == ("PyAV/aac", RATE, 2)
    decoded = audio.read(tmp_path / "x.m4a")
    assert len(decoded) == info.samples
    middle = slice(5000, 40_000)
    assert np.sqrt(np.mean((decoded[middle] - waveform[middle]) ** 2)) < 0.01
    np.testing.assert_array_equal(audio.read(tmp_path / "x.m4a", 1234, 20_000), decoded[1234:21_234])
    blocks = list(audio.stream(tmp_path / "x.m4a", block_samples=10_000))
    assert {len(block) for block in blocks[:-1]} == {10_000}
    np.testing.assert_array_equal(np.concatenate(blocks), decoded)


@pytest.mark.parametrize("file", ["x.wav", "x.flac", "x.ogg"])
def test_files_on_another_file_system(tmp_path: Path, file: str) -> None:
    audio.write(tmp_path / file, noise(70_001), RATE)
    remote = f"ram://{tmp_path.name}-{file}"
    tf.io.gfile.copy(str(tmp_path / file), remote)
    assert audio.probe(remote).samples == 70_001
    np.testing.assert_array_equal(audio.read(remote, 100, 66_000), audio.read(tmp_path / file, 100, 66_000))
    audio.write(f"ram://written-{file}", noise(1000), RATE)
    assert audio.probe(f"ram://written-{file}").samples == 1000


CHUNKED = ["x.wav", "x.rf64", "x.w64", "x.aiff", "x.au"]


def write_noise(path: Path) -> None:
    if path.suffix == ".m4a":
        write_m4a(path, noise(3 * RATE))
    elif path.name in CHUNKED or path.suffix == ".caf":
        sf.write(path, noise(3 * RATE), RATE, "PCM_16")
    else:
        audio.write(path, noise(3 * RATE), RATE)


def damaged(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        content = content[: len(content) * 2 // 3]
    elif kind == "corrupt":
        middle = len(content) // 2
        content[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    elif kind == "zero-length":
        content = bytearray()
    elif kind == "not an audio file":
        content = bytearray(np.random.default_rng(0).bytes(5000))
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        *[(file, "truncated") for file in (*CHUNKED, "x.caf", "x.flac", "x.ogg", "x.mp3", "x.m4a")],
        ("x.flac", "corrupt"),
        *[(file, kind) for file in ("x.wav", "x.m4a") for kind in ("zero-length", "not an audio file")],
    ],
)
def test_damaged_file_is_refused_in_one_line_that_names_it(tmp_path: Path, file: str, kind: str) -> None:
    path = tmp_path / file
    write_noise(path)
    damaged(path, kind)
    with pytest.raises(InputError, match=kind) as caught:
        audio.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", [*CHUNKED, "x.ogg", "x.m4a"])
def test_probe_notices_truncation(tmp_path: Path, file: str) -> None:
    path = tmp_path / file
    write_noise(path)
    damaged(path, "truncated")
    with pytest.raises(InputError, match="truncated"):
        audio.probe(path)


def test_ogg_cut_between_pages_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ogg"
    audio.write(path, noise(3 * RATE), RATE)
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"OggS")])
    with pytest.raises(InputError, match="truncated: its end-of-stream page is missing"):
        audio.probe(path)


def test_wav_of_unknown_length_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    sf.write(path, noise(5000), RATE)
    expected = audio.read(path)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"  # as written by a program that streams
    path.write_bytes(content)
    np.testing.assert_array_equal(audio.read(path), expected)


# Where the header says how many bytes the samples take, and what a streaming program writes there.
STREAMED = [
    ("wav", "FILE", 40, b"\x00\xf0\xff\x7f"),  # sox
    ("wav", "BIG", 40, b"\xff\xff\xff\xff"),
    ("aiff", "FILE", 42, b"\x7f\x00\x00\x08"),  # sox
    ("au", "FILE", 8, b"\xff\xff\xff\xff"),
    ("au", "LITTLE", 8, b"\xff\xff\xff\xff"),
    ("w64", "FILE", 96, b"\xff\xff\xff\xff\xff\xff\xff\xff"),
    ("rf64", "FILE", 28, b"\xff\xff\xff\xff\xff\xff\xff\xff"),
]


@pytest.mark.parametrize(("form", "endian", "where", "unknown"), STREAMED)
def test_other_containers_of_unknown_length_are_not_refused(
    tmp_path: Path, form: str, endian: str, where: int, unknown: bytes
) -> None:
    path = tmp_path / f"x.{form}"
    sf.write(path, noise(5000), RATE, "PCM_16", format=form.upper(), endian=endian)
    content = path.read_bytes()
    order = "big" if form == "aiff" or (form, endian) in (("au", "FILE"), ("wav", "BIG")) else "little"
    promised = int.from_bytes(content[where : where + len(unknown)], order) - (24 if form == "w64" else 0)
    assert 20_000 <= promised <= 20_008
    check_chunks(str(path))
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"truncated: its header promises {promised} bytes of audio"):
        check_chunks(str(path))
    path.write_bytes(content[:where] + unknown + content[where + len(unknown) :])
    check_chunks(str(path))


def test_only_little_endian_wav_is_located_for_reading_in_place(tmp_path: Path) -> None:
    waveform = np.round(noise(100) * 2**15).astype(np.int16)
    path = str(tmp_path / "x.wav")
    sf.write(path, waveform, RATE, "PCM_16")
    start, size = find_wav_data(path)
    assert (tmp_path / "x.wav").read_bytes()[start : start + size] == waveform.astype("<i2").tobytes()
    sf.write(path, waveform, RATE, "PCM_16", endian="BIG")
    assert find_wav_data(path) is None


def test_missing_file_folder_and_empty_audio_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        audio.probe(tmp_path / "x.wav")
    with pytest.raises(InputError, match="is a folder"):
        audio.probe(tmp_path)
    sf.write(tmp_path / "x.wav", np.zeros((0, 2)), RATE)
    with pytest.raises(InputError, match="0 samples"):
        audio.probe(tmp_path / "x.wav")
    (tmp_path / "x.txt").write_text("no audio")
    with pytest.raises(InputError, match=r"x\.txt"):
        audio.probe(tmp_path / "x.txt")


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav")
    sf.write(tmp_path / "x.wav", noise(10), RATE)
    os.rename(tmp_path / "x.wav", path)
    with pytest.raises(InputError, match=r"\\xff.wav: its name is not UTF-8; rename it") as caught:
        audio.probe(path)
    str(caught.value).encode()


def test_reading_behind_the_end_is_refused(tmp_path: Path) -> None:
    audio.write(tmp_path / "x.wav", noise(1000), RATE)
    with pytest.raises(InputError, match="1000 samples found, 1001 expected"):
        audio.read(tmp_path / "x.wav", 500, 501)


def test_unwritable_targets_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="make it first"):
        audio.write(tmp_path / "missing" / "x.wav", noise(10), RATE)
    with pytest.raises(InputError, match="use one of wav, flac"):
        audio.write(tmp_path / "x.m4a", noise(10), RATE)
    with pytest.raises(InputError, match="cannot hold FLOAT"):
        audio.write(tmp_path / "x.flac", noise(10), RATE, "FLOAT")
    with pytest.raises(InputError, match="ogg files cannot hold 6 channels"):
        audio.write(tmp_path / "x.ogg", noise(10, channels=6), RATE)
    with pytest.raises(InputError, match="mp3 files cannot hold 2 channels at 96000 Hz"):
        audio.write(tmp_path / "x.mp3", noise(10), 96000)
    with pytest.raises(InputError, match="opus files cannot hold 2 channels at 44100 Hz; use wav"):
        audio.write(tmp_path / "x.opus", noise(10), RATE)

    def interrupted() -> None:
        with audio.create(tmp_path / "x.wav", RATE, 2) as file:
            file.write(noise(10))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    def failing() -> None:
        with audio.create(tmp_path / "x.wav", RATE, 2) as file:
            file.write(noise(10))
            raise OSError("elsewhere")

    with pytest.raises(OSError, match="elsewhere"):
        failing()
    assert list(tmp_path.iterdir()) == []
