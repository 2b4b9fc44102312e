"""What a user can get wrong at the command line: one clear line on stderr, exit code 2, nothing written."""

import os
import re
import shutil

import helpers
import keras
import numpy as np
import pytest
import soundfile as sf

from umx_model import cli
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
        (["separate"], "Missing argument 'FILES...'"),
        (["separate", "song.wav", "--modle", "model"], "No such option: --modle"),
        (["separate", "song.wav", "--model", "model", "--format", "aac"], "'aac' is not one of 'wav', 'flac', 'ogg'"),
        (["separate", "song.wav", "--model", "model", "--niter", "-1"], "'--niter': -1 is not in the range x>=0"),
        (["separate", "song.wav"], "no model given: add --model DIR"),
        (["separate", "song.wav", "--model", "nowhere"], "nowhere: no such model"),
        (["separate", "song.wav", "--model", "song.wav"], "song.wav: not a model; expected a model folder"),
        (["separate", "song.wav", "--model", "database"], "database: not a model folder"),
        (["separate", "song.wav", "--model", "model", "--targets", "piano"], "no piano; it has vocals, drums"),
        (["separate", "song.wav", "--model", "model", "--format", "flac", "--bit-depth", "32f"], "only 16, 24"),
        (["separate", "song.wav", "--model", "model", "-o", "song.wav/out"], "song.wav/out/song: cannot be written"),
        (["separate", "song.wav", "x/song.mp3", "--model", "model"], "would both be written to separated/song"),
        (["separate", "my.json", "--model", "model"], "my.json: not an audio file"),
        (["separate", "database", "--model", "model"], "database: is a folder; expected an audio file"),
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


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_song(here, refuses, value):
    sf.write("song.wav", np.full((RATE, 2), value, np.float32), RATE, "FLOAT")
    refuses("separate", "song.wav", "--model", "model", messages=["song.wav: holds non-finite samples"])


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
