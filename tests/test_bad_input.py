"""What a user can get wrong at the command line: one clear line on stderr, exit code 2, nothing written."""

import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import av
import helpers
import keras
import numpy as np
import pytest
import soundfile as sf

from umx_model import cli
from umx_model.data import audio
from umx_model.model.folder import write_model_folder
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.profile import Profile
from umx_model.train.checkpoints import Checkpoints, LoopState

RATE = 8000
MODEL = {"sample_rate": RATE, "n_fft": 512, "hop_length": 128, "bandwidth": 3500, "hidden_size": 8, "layers": 1}
PROFILE = Profile.model_validate(
    {"model": {"targets": ["vocals", "drums"], **MODEL}, "train": {"excerpt_seconds": 0.5, "epochs": 1}}
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A database and a model folder, to be copied."""
    root = tmp_path_factory.mktemp("originals")
    helpers.make_database(root / "database", {"train": 2, "valid": 1}, seconds=1.0, sample_rate=RATE)
    write_model_folder(root / "model", get_joint_spectral_filter(PROFILE.model), PROFILE, saved_model=False)
    return root


@pytest.fixture
def here(originals, tmp_path, monkeypatch):
    """A working folder with a database, a model, a profile and a song."""
    shutil.copytree(originals, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    PROFILE.write(tmp_path)
    os.rename("profile.json", "my.json")
    sf.write("song.wav", helpers.stem("vocals", 1.0, RATE), RATE)
    return tmp_path


@pytest.fixture
def refuses(capsys):
    """Run `umx-pro` with arguments that it must refuse with one line for each expected message, writing nothing."""

    def run(*arguments, messages):
        before = sorted(os.walk("."))
        with pytest.raises(SystemExit) as end:
            cli.main(list(arguments))
        captured = capsys.readouterr()
        assert end.value.code == 2
        assert captured.out == ""
        assert captured.err.startswith("umx-pro: error: ")
        lines = captured.err.splitlines()
        assert len(lines) == len(messages), captured.err
        for line, message in zip(lines, messages, strict=True):
            assert re.search(message, line), line
        assert sorted(os.walk(".")) == before

    return run


def train(*more):
    return ("train", "my.json", "--data", "database", "--output", "out", *more)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"Missing command \(see `umx-pro --help`\)"),
        (["seperate"], "No such command 'seperate'"),
        (["separate"], "Missing argument 'FILES_OR_FOLDERS...'"),
        (["separate", "song.wav", "--modle", "model"], "No such option: --modle"),
        (
            ["separate", "song.wav", "--model", "model", "--format", "aac"],
            "'aac' is not one of 'wav', 'flac', 'ogg', 'mp3'",
        ),
        (["separate", "song.wav", "--model", "model", "--niter", "-1"], "'--niter': -1 is not in the range x>=0"),
        (["separate", "song.wav", "--model", "nowhere"], "nowhere: no such model"),
        (["separate", "song.wav", "--model", "song.wav"], "song.wav: not a model; expected a model folder"),
        (["separate", "song.wav", "--model", "database"], "database: not a model folder"),
        (["separate", "song.wav", "--model", "model", "--targets", "piano"], "no piano; it has vocals, drums"),
        (["separate", "song.wav", "--model", "model", "--format", "flac", "--bit-depth", "32f"], "only 16, 24"),
        (["separate", "song.wav", "--model", "model", "-o", "song.wav/out"], "song.wav/out: cannot be written"),
        (["separate", "song.wav", "x/song.mp3", "--model", "model"], "would both be written to separated/song"),
        (["separate", "song.wav", "--model", "model", "--two-stems", "piano"], "no piano; it has vocals, drums"),
        (["separate", "song.wav", "--model", "model", "--aggregate", "rest"], "--aggregate rest: expected NAME=TARGET"),
        (["separate", "song.wav", "--model", "model", "--aggregate", "a=drums+"], r"--aggregate a=drums\+: expected"),
        (["separate", "song.wav", "--model", "model", "--aggregate", "a=piano"], "no piano; it has vocals, drums"),
        (["separate", "song.wav", "--model", "model", *["--aggregate", "a=drums"] * 2], "a is given twice"),
        (["separate", "song.wav", "--model", "model", "--name", "{song}/{target}.{ext}"], "name.*song"),
        (["separate", "song.wav", "--model", "model", "--name", "{track}.{ext}"], "name.*{track}.{ext}"),
        (
            ["separate", "song.wav", "--model", "model", "--name", "../{target}.{ext}"],
            "name .*: ../vocals.wav is not in the output folder",
        ),
        (
            ["separate", "song.wav", "--model", "model", "--chunk-seconds", "0"],
            "chunk seconds: expected more than 0 and at most 600, got 0",
        ),
        (["separate", "song.wav", "--model", "model", "--chunk-seconds", "nan"], "chunk seconds: expected more than 0"),
        (["separate", "song.wav", "--model", "model", "--device", "gpu"], "--device gpu: TensorFlow finds no GPU here"),
        (["separate", "song.wav", "--model", "model", "--format", "mp3", "--bit-depth", "16"], "bit depth: mp3"),
        (["separate", ".", "--model", "model", "-o", "."], r"\.: is the output folder too"),
        (["models", "nowhere"], "nowhere: no such folder"),
        (["train", "--output", "out"], "Missing option '--data'"),
        (train("--set", "train.epochs"), "expected NAME=VALUE"),
        (train("--set", "train.epoch=1"), "train.epoch: unknown setting; known are .*train.epochs"),
        (train("--set", "train.epochs=0"), r"train.epochs: .*greater than or equal to 1 \(found 0\)"),
        (train("--set", "train.epochs=true"), r"train.epochs: .*integer \(found True\)"),
        (train("--set", "train.seed=4294967296"), r"train.seed: .*4294967295 \(found 4294967296\)"),
        (train("--targets", "vocals,../etc"), "model.targets"),
        (["evaluate", "--model", "model", "--data", "nowhere"], "nowhere: no such folder"),
        (["evaluate", "--model", "nowhere", "--data", "database/valid"], "nowhere: no such model"),
        (
            ["evaluate", "--model", "model", "--data", "database"],
            "database: a whole database; name one split of it, such as database/valid",
        ),
        (["evaluate", "--model", "model", "--data", "database/valid", "--json", "no/x.json"], "there is no folder no"),
    ],
)
def test_options(here, refuses, arguments, message):
    refuses(*arguments, messages=[message])


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (None, "my.json: no such profile"),
        ("{", "my.json: .*JSON"),
        ('{"model": {"targets": ["vocals"], "hiden_size": 8}}', "my.json: model.hiden_size: unknown key"),
        (PROFILE.model_dump_json().replace("blstm", "cnn"), "model.architecture: 'cnn' is not registered"),
        ('{"model": {"targets": ["vocals"], "hidden_size": 0}}', r"my.json: model.hidden_size: .* \(found 0\)"),
    ],
    ids=["missing", "no JSON", "unknown key", "architecture", "impossible value"],
)
def test_profile(here, refuses, profile, message):
    os.remove("my.json")
    if profile is not None:
        (here / "my.json").write_text(profile)
    refuses(*train(), messages=[message])


def remove_root(root):
    shutil.rmtree(root)


def empty_root(root):
    shutil.rmtree(root)
    root.mkdir()


def remove_valid(root):
    shutil.rmtree(root / "valid")


def remove_train(root):
    shutil.rmtree(root / "train")


def lose_target(root):
    os.remove(root / "train" / "song01" / "drums.wav")


def two_files_for_one_target(root):
    sf.write(root / "train" / "song01" / "drums.flac", np.zeros((RATE, 2)), RATE)


def unknown_target(root):
    sf.write(root / "train" / "song01" / "piano.wav", np.zeros((RATE, 2)), RATE)


def other_length(root):
    sf.write(root / "train" / "song01" / "drums.wav", np.zeros((RATE - 1, 2)), RATE)


def other_rate(root):
    sf.write(root / "train" / "song01" / "drums.wav", np.zeros((RATE, 2)), RATE + 1)


def other_channels(root):
    sf.write(root / "train" / "song01" / "drums.wav", np.zeros((RATE, 1)), RATE)


def zero_length(root):
    (root / "train" / "song01" / "drums.wav").write_bytes(b"")


def corrupt(root):
    (root / "train" / "song01" / "drums.wav").write_bytes(b"RIFF, but not really" * 20)


def truncated(root):
    path = root / "train" / "song01" / "drums.wav"
    path.write_bytes(path.read_bytes()[:-1000])


def another_rate_than_the_profiles(root):
    shutil.rmtree(root)
    helpers.make_database(root, {"train": 1, "valid": 1}, seconds=1.0, sample_rate=11025)


def shorter_than_the_excerpt(root):
    shutil.rmtree(root / "train" / "song01")
    helpers.make_sample(root / "train" / "song01", seconds=0.4, sample_rate=RATE)


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (remove_root, ["database: no such folder"]),
        (empty_root, ["database: empty folder"]),
        (remove_valid, ["database: no folder 'valid'"]),
        (remove_train, ["database: no folder 'train'"]),
        (lose_target, ["train/song01: lacks the target 'drums'"]),
        (two_files_for_one_target, ["train/song01: 2 files for the target 'drums'"]),
        (unknown_target, ["piano.wav: unknown target 'piano'; expected vocals, drums"]),
        (other_length, [r"train/song01: the targets differ in length \(vocals 8000, drums 7999 samples\)"]),
        (other_rate, [r"train/song01: the targets differ in sample rate"]),
        (other_channels, [r"train/song01: the targets differ in channel count"]),
        (zero_length, ["song01/drums.wav: zero-length file"]),
        (corrupt, ["song01/drums.wav: "]),
        (truncated, ["song01/drums.wav: truncated"]),
        (
            another_rate_than_the_profiles,
            ["train/song00: 11025 Hz, the profile has 8000; set model.sample_rate=11025 or resample"],
        ),
        (shorter_than_the_excerpt, ["song01.*excerpt"]),
    ],
)
def test_database(here, refuses, damage, messages):
    damage(here / "database")
    refuses(*train(), messages=messages)


@pytest.mark.parametrize(
    ("folder", "subtype", "value"),
    [
        ("train/song01", "FLOAT", np.nan),
        ("train/song01", "DOUBLE", np.inf),
        ("valid/song00", "FLOAT", np.inf),
        ("valid/song00", "DOUBLE", np.nan),
    ],
)
def test_non_finite_sample(here, refuses, folder, subtype, value):
    path = here / "database" / folder / "drums.wav"
    waveform, _ = sf.read(path)
    waveform[RATE // 2] = value
    sf.write(path, waveform, RATE, subtype)
    refuses(*train(), messages=[f"{folder}/drums.wav: holds NaN or infinite values; replace the file$"])


@pytest.mark.parametrize("folder", ["train/song01", "valid/song00"])
def test_damage_behind_the_header(here, refuses, folder):
    path = here / "database" / folder / "drums.wav"
    waveform, _ = sf.read(path)
    os.remove(path)
    sf.write(path.with_suffix(".flac"), waveform, RATE)
    content = path.with_suffix(".flac").read_bytes()
    path.with_suffix(".flac").write_bytes(content[: len(content) // 2])
    refuses(*train(), messages=[f"{folder}/drums.flac: truncated or corrupt .*; replace the file$"])


def test_several_problems_take_one_line_each(here, refuses):
    lose_target(here / "database")
    (here / "database" / "valid" / "song00" / "vocals.wav").write_bytes(b"")
    refuses(*train(), messages=["lacks the target 'drums'", "vocals.wav: zero-length file"])


def write_song(waveform, rate=RATE, subtype="PCM_16", name="song.wav"):
    sf.write(name, waveform, rate, subtype)


def noise(samples, channels=2):
    return helpers.stem("drums", samples / RATE, RATE, channels)


def wav_of_bits(bits):
    """Write a wav file with a header that only says how many bits a sample has."""
    form = struct.pack("<HHIIHH", 1, 1, RATE, RATE, 1, bits)
    data = bytes(range(256)) * 4
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    Path("song.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)


def one_bit_of_super_audio_cd():
    """Write a stereo DSD Stream File (Sony's specification 1.01) of one block per channel."""
    bits = np.random.default_rng(0).bytes(2 * 4096)
    form = struct.pack("<4sQIIIIIIQII", b"fmt ", 52, 1, 0, 2, 2, 2822400, 1, 8 * 4096, 4096, 0)
    data = struct.pack("<4sQ", b"data", 12 + len(bits)) + bits
    Path("song.dsf").write_bytes(struct.pack("<4sQQQ", b"DSD ", 28, 28 + len(form) + len(data), 0) + form + data)


def non_finite(value):
    waveform = noise(RATE)
    waveform[RATE // 2, 1] = value
    write_song(waveform, subtype="FLOAT")


def truncated_song(extension):
    write_song(noise(5 * RATE), name=f"whole.{extension}", subtype=None)
    content = Path(f"whole.{extension}").read_bytes()
    os.remove(f"whole.{extension}")
    Path("song.wav").unlink()
    Path(f"song.{extension}").write_bytes(content[: len(content) // 2])


def video(name, with_audio):
    with av.open(name, "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 16
        sound = container.add_stream("aac", rate=RATE, layout="mono") if with_audio else None
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))))
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(noise(RATE, 1).T.copy(), "fltp", "mono")
            frame.sample_rate, frame.pts = RATE, 0
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
        container.mux(stream.encode(None))


def folder_of(*names):
    os.mkdir("folder")
    for name in names:
        shutil.copy("song.wav", os.path.join(os.fsencode("folder"), os.fsencode(name)))


def damaged_weights():
    content = bytearray(Path("model/model.weights.h5").read_bytes())
    content[len(content) // 2] ^= 1
    Path("model/model.weights.h5").write_bytes(content)
    assert Profile.read("model").weights_sha256 is not None


def lost_weights():
    os.remove("model/model.weights.h5")


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        pytest.param(lambda: None, ["nowhere.wav"], "nowhere.wav: no such file", id="missing"),
        pytest.param(lambda: None, ["my.json"], "my.json: not an audio file", id="not audio"),
        pytest.param(lambda: os.mkdir("song"), ["song"], "song: no audio file in it", id="empty folder"),
        pytest.param(lambda: None, ["model"], "model: no audio file in it", id="folder without audio"),
        pytest.param(
            lambda: video("clip.mp4", False), ["clip.mp4"], "clip.mp4: has no audio", id="video without audio"
        ),
        pytest.param(
            lambda: Path("song.wav").write_bytes(b""), ["song.wav"], "song.wav: zero-length", id="zero-length"
        ),
        pytest.param(lambda: write_song(noise(0)), ["song.wav"], r"song.wav: holds no audio", id="no samples"),
        pytest.param(
            lambda: Path("song.wav").write_bytes(b"RIFF, but not really" * 20), ["song.wav"], "song.wav: ", id="corrupt"
        ),
        pytest.param(lambda: truncated_song("wav"), ["song.wav"], "song.wav: truncated", id="truncated wav"),
        pytest.param(lambda: truncated_song("flac"), ["song.flac"], "song.flac: truncated", id="truncated flac"),
        pytest.param(lambda: truncated_song("ogg"), ["song.ogg"], "song.ogg: truncated", id="truncated ogg"),
        pytest.param(lambda: wav_of_bits(0), ["song.wav"], "song.wav: FFmpeg has no decoder", id="0 bits"),
        pytest.param(lambda: wav_of_bits(33), ["song.wav"], "song.wav: FFmpeg has no decoder", id="33 bits"),
        pytest.param(lambda: non_finite(np.nan), ["song.wav"], "song.wav: .*4000", id="NaN"),
        pytest.param(lambda: non_finite(-np.inf), ["song.wav"], "song.wav: .*4000", id="infinite"),
        pytest.param(
            lambda: folder_of(b"caf\xe9.wav"), ["folder"], r"folder/caf\\xe9.wav: its name is not UTF-8", id="not UTF-8"
        ),
        pytest.param(
            lambda: None,
            ["song.wav", "-o", ".", "--name", "{track}.{ext}", "--targets", "vocals", "--overwrite"],
            "song.wav: a stem would be written over ./song.wav, which is to be separated",
            id="output equal to input",
        ),
        pytest.param(damaged_weights, ["song.wav"], "model.weights.h5: .*damaged", id="damaged weights"),
        pytest.param(lost_weights, ["song.wav"], "model: not a model folder", id="no weights"),
    ],
)
def test_separate(here, refuses, prepare, arguments, message):
    prepare()
    refuses("separate", *arguments, "--model", "model", messages=[message])


@pytest.mark.parametrize(
    ("prepare", "name", "form", "shape"),
    [
        (lambda: wav_of_bits(1), "song.wav", "WAV/PCM_U8", (1024, 1)),
        (lambda: write_song(noise(RATE), subtype="PCM_U8"), "song.wav", "WAV/PCM_U8", (RATE, 2)),
        (one_bit_of_super_audio_cd, "song.dsf", "PyAV/dsd_lsbf_planar", (4096, 2)),
        (lambda: write_song(noise(RATE), 192000), "song.wav", "WAV/PCM_16", (RATE, 2)),
        (lambda: write_song(noise(3)), "song.wav", "WAV/PCM_16", (3, 2)),
        (lambda: write_song(noise(1, 1)), "song.wav", "WAV/PCM_16", (1, 1)),
        (lambda: write_song(noise(RATE, 8)), "song.wav", "WAV/PCM_16", (RATE, 8)),
        (lambda: write_song(noise(RATE, 3)), "song.wav", "WAV/PCM_16", (RATE, 3)),
        (lambda: write_song(np.zeros((RATE, 2))), "song.wav", "WAV/PCM_16", (RATE, 2)),
        (lambda: write_song(noise(RATE), name="{track} %s.WAV"), "{track} %s.WAV", "WAV/PCM_16", (RATE, 2)),
        (lambda: video("song.mp4", True), "song.mp4", "PyAV/aac", None),
    ],
    ids=[
        *("1-bit wav", "8-bit wav", "1-bit dsf", "192 kHz", "3 samples", "1 sample"),
        *("8 channels", "3 channels", "silence", "odd name", "video"),
    ],
)
def test_odd_audio_is_separated(here, capsys, prepare, name, form, shape):
    prepare()
    info = audio.probe(name)
    assert info.format == form
    assert shape in (None, (info.samples, info.channels))
    with pytest.raises(SystemExit) as end:
        cli.main(["separate", name, "--model", "model", "-o", "out", "--bit-depth", "32f"])
    assert (end.value.code, capsys.readouterr().err) == (0, "")
    stems = []
    for target in ("vocals", "drums"):
        stem, rate = sf.read(os.path.join("out", os.path.splitext(name)[0], f"{target}.wav"), always_2d=True)
        assert rate == info.sample_rate
        stems.append(stem)
    np.testing.assert_allclose(sum(stems), audio.read(name), atol=1e-6)


@pytest.mark.parametrize("options", [[], ["--bit-depth", "32f"], ["--format", "flac"], ["--format", "mp3"]])
def test_no_space_left(here, capsys, options):
    write_song(noise(10 * RATE, 2), subtype="FLOAT")
    os.mkdir("small")
    size = "size=16k"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", "small"], capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    try:
        with pytest.raises(SystemExit) as end:
            cli.main(["separate", "song.wav", "--model", "model", "-o", "small/out", *options])
        captured = capsys.readouterr()
        assert end.value.code in (1, 2)
        assert captured.out == ""
        assert re.fullmatch(r"umx-pro: .*[Nn]o space left.*\n", captured.err), captured.err
        assert os.listdir("small") == []
    finally:
        subprocess.run(["umount", "small"], check=True)


def test_output_that_cannot_be_written(here, refuses):
    refuses("train", "my.json", "--data", "database", "--output", "song.wav/out", messages=["song.wav/out: "])


def test_stem_folder_that_is_a_file(here, refuses):
    os.mkdir("out")
    (here / "out" / "song").write_text("precious")
    refuses("separate", "song.wav", "--model", "model", "-o", "out", messages=["out/song: cannot be written"])


def test_output_that_holds_a_model(here, refuses):
    refuses("train", "my.json", "--data", "database", "--output", "model", messages=["model: holds a trained model"])


def test_resuming_a_model_without_checkpoints(here, refuses):
    message = r"model: holds a trained model .*no checkpoints to resume; choose another output folder"
    refuses("train", "my.json", "--data", "database", "--output", "model", "--resume", messages=[message])


def test_weights_of_another_profile(here, refuses):
    Profile.read("model").updated({"model.hidden_size": 16}).write("model")
    refuses("separate", "song.wav", "--model", "model", messages=["model.weights.h5: damaged, or not of the model"])


def test_checkpoint_of_another_profile(here, refuses):
    spectral_filter = get_joint_spectral_filter(PROFILE.model)
    Checkpoints("out", spectral_filter, keras.optimizers.Adam(), PROFILE, None).save(LoopState.start(PROFILE))
    message = "checkpoint of another model: model.hidden_size is 8 there and 16 in the profile"
    refuses(*train("--resume", "--set", "model.hidden_size=16"), messages=[message])
