"""The command `umx-pro`: what it prints, writes and returns."""

import json
import os
import signal
import subprocess
import sys
import time

import helpers
import numpy as np
import pytest
import soundfile as sf

from umx_model import cli
from umx_model.data import audio
from umx_model.model.folder import write_model_folder
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.profile import ModelProfile, Profile

RATE = 8000
SETTINGS = {
    "model.sample_rate": RATE,
    "model.n_fft": 512,
    "model.hop_length": 128,
    "model.bandwidth": 3500,
    "model.hidden_size": 8,
    "model.layers": 1,
    "train.excerpt_seconds": 1.0,
    "train.batch_size": 2,
    "train.excerpts_per_sample": 2,
    "train.epochs": 1,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder with random weights."""
    profile = Profile(model=ModelProfile(targets=("vocals", "drums"))).updated(SETTINGS)
    folder = tmp_path_factory.mktemp("model")
    write_model_folder(folder, get_joint_spectral_filter(profile.model), profile, saved_model=False)
    return str(folder)


@pytest.fixture
def songs(tmp_path, monkeypatch):
    """A working folder with two songs and a broken one."""
    monkeypatch.chdir(tmp_path)
    sf.write("one.wav", helpers.stem("vocals", 1.0, RATE), RATE)
    sf.write("two.flac", helpers.stem("vocals", 0.5, 11025, channels=1), 11025)
    (tmp_path / "broken.wav").write_bytes(b"RIFF, but not really" * 20)
    return tmp_path


@pytest.fixture
def umx_pro(capsys):
    """Run the command in this process: arguments -> (exit code, stdout, stderr)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


def test_help_answers_at_once(umx_pro):
    code, out, _ = umx_pro("--help")
    assert code == 0
    for command in ("separate", "train", "evaluate"):
        assert command in out
        assert umx_pro(command, "--help")[0] == 0


def test_separate(umx_pro, model, songs):
    code, out, err = umx_pro("separate", "one.wav", "two.flac", "--model", model, "-o", "out")
    assert (code, err) == (0, "")
    assert out == (
        "one.wav -> out/one: vocals.wav, drums.wav\n"
        "two.flac -> out/two: vocals.wav, drums.wav\n"
    )  # fmt: skip
    info = sf.info("out/two/drums.wav")
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (11025, 1, 5512, "PCM_16")
    assert sf.info("out/one/vocals.wav").frames == RATE


def test_separate_options(umx_pro, model, songs):
    options = ["--targets", "drums", "--format", "flac", "--bit-depth", "24", "--niter", "0"]
    code, out, _ = umx_pro("separate", "one.wav", "--model", model, *options)
    assert (code, out) == (0, "one.wav -> separated/one: drums.flac\n")
    assert sf.info("separated/one/drums.flac").subtype == "PCM_24"
    assert os.listdir("separated/one") == ["drums.flac"]


def test_one_bad_file_among_several(umx_pro, model, songs):
    code, out, err = umx_pro("separate", "broken.wav", "nowhere.wav", "one.wav", "--model", model, "-o", "out")
    assert code == 2
    assert out == "one.wav -> out/one: vocals.wav, drums.wav\n"
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("umx-pro: error: broken.wav: ")
    assert lines[1] == "umx-pro: error: nowhere.wav: no such file"
    assert os.listdir("out") == ["one"]


def test_existing_stems(umx_pro, model, songs):
    arguments = ["separate", "one.wav", "--model", model, "-o", "out"]
    assert umx_pro(*arguments)[0] == 0
    code, _, err = umx_pro(*arguments)
    assert code == 2
    assert "out/one/vocals.wav: exists already; overwrite it with --overwrite" in err
    assert umx_pro(*arguments, "--overwrite")[0] == 0


def test_interrupt(model, songs):
    """A real Ctrl-C in the middle of the work: one line, 130, and no trace."""
    sf.write("long.wav", np.zeros((600 * RATE, 2), np.int16), RATE)
    code = "import sys; from umx_model.cli import main; main(sys.argv[1:])"
    arguments = ["separate", "long.wav", "--model", model, "-o", "out", "--niter", "3"]
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(cli.__file__))}
    del environment["TF_CPP_MIN_LOG_LEVEL"]  # set for tests; users start without
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True, env=environment
    )
    deadline = time.monotonic() + 60
    while not os.path.isdir("out") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert any(name.endswith(".partial") for name in os.listdir("out"))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (130, "umx-pro: interrupted")
    assert not os.path.exists("out")


def test_other_failures_are_one_line(umx_pro, model, songs, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audio, "write", fail)
    code, _, err = umx_pro("separate", "one.wav", "--model", model)
    assert code == 1
    assert err == "umx-pro: failed: OSError: [Errno 28] No space left on device (UMX_PRO_DEBUG=1 shows where)\n"
    monkeypatch.setenv("UMX_PRO_DEBUG", "1")
    code, _, err = umx_pro("separate", "one.wav", "--model", model)
    assert code == 1
    assert "Traceback" in err


def test_train_separate_evaluate(umx_pro, songs):
    """The commands fit together, with targets found in the database."""
    database = helpers.make_database(songs / "database", {"train": 2, "valid": 2}, seconds=2.0, sample_rate=RATE)
    settings = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    code, out, err = umx_pro("train", "--data", database, "--output", "model", *settings)
    assert (code, err) == (0, "")
    assert out.endswith("model: model\nuse:   umx-pro separate --model model FILES...\n")
    assert Profile.read("model").model.targets == ("drums", "vocals")
    assert len(Profile.read("model").history) == 1

    code, out, err = umx_pro("train", "--data", database, "--output", "model", "--resume", "--set", "train.epochs=2")
    assert (code, err) == (0, "")
    assert len(Profile.read("model").history) == 2

    assert umx_pro("separate", "one.wav", "--model", "model/saved_model", "-o", "out")[0] == 0

    code, out, err = umx_pro("evaluate", "--model", "model", "--data", database / "valid", "--json", "scores.json")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "BSSEval v4 SDR in dB: median over samples of the median over 1 s windows (2 samples)"
    assert lines[1].split() == ["target", "mixture", "estimate", "gain"]
    scores = json.loads((songs / "scores.json").read_text())
    for line, target in zip(lines[2:], ("drums", "vocals"), strict=True):
        name, mixture, estimate, gain = line.split()
        assert name == target
        assert float(mixture) == pytest.approx(scores["targets"][target]["mixture"], abs=0.01)
        assert float(estimate) == pytest.approx(scores["targets"][target]["estimates"], abs=0.01)
        assert float(gain) == pytest.approx(float(estimate) - float(mixture), abs=0.011)
    assert [sample["id"] for sample in scores["samples"]] == ["song00", "song01"]
