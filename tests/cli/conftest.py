"""A model, songs, and the command itself."""

import functools
import os

import helpers
import pytest
import soundfile as sf

from umx_model import cli
from umx_model.inference import restore
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
    "model.niter": 0,
    "train.excerpt_seconds": 1.0,
    "train.batch_size": 2,
    "train.excerpts_per_sample": 2,
    "train.epochs": 1,
}


@pytest.fixture(scope="session")
def settings():
    """What makes a model tiny, and its training short."""
    return SETTINGS


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A model folder with random weights."""
    profile = Profile(model=ModelProfile(targets=("vocals", "drums", "bass"))).updated(SETTINGS)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_model_folder(folder, get_joint_spectral_filter(profile.model), profile, saved_model=False)
    return str(folder)


@pytest.fixture(autouse=True)
def load_once(monkeypatch):
    """Tests that separate with the same model share its separator, which takes seconds to load and compile."""
    monkeypatch.setattr(restore, "load_separator", load_cached)


def load_cached(path, **options):
    """As `load_separator`, once per folder and options."""
    return load_real(os.path.realpath(path) if os.path.exists(path) else path, **options)


load_real = functools.cache(restore.load_separator)


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
        return end.value.code, captured.out, captured.err

    return run
