"""A separator restored from each of the forms that models are stored in gives the same estimates."""

import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from umx_model.errors import InputError
from umx_model.inference.restore import load_separator
from umx_model.model.folder import checkpointable, write_model_folder
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.model.umx import UMX
from umx_model.profile import ModelProfile, Profile

PROFILE = Profile(
    model=ModelProfile(
        targets=("vocals", "drums"),
        sample_rate=8000,
        n_fft=512,
        hop_length=128,
        bandwidth=3500,
        hidden_size=8,
        layers=1,
        niter=1,
    )
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A model folder with a checkpoint, and the model it was made from."""
    folder = str(tmp_path_factory.mktemp("models") / "model")
    spectral_filter = get_joint_spectral_filter(PROFILE.model)
    write_model_folder(folder, spectral_filter, PROFILE)
    os.makedirs(os.path.join(folder, "checkpoints"))
    checkpoint = tf.train.Checkpoint(model=checkpointable(spectral_filter))
    tf.train.CheckpointManager(checkpoint, os.path.join(folder, "checkpoints"), max_to_keep=1).save()
    return folder, spectral_filter


@pytest.fixture(scope="module")
def mixture():
    return np.random.default_rng(0).uniform(-0.5, 0.5, (8000, 2)).astype(np.float32)


@pytest.mark.parametrize("part", ["", "model.weights.h5", "checkpoints", "saved_model"])
def test_every_form_gives_the_same(stored, mixture, part):
    folder, spectral_filter = stored
    expected = UMX(spectral_filter)(mixture[None]).numpy()[0]
    separator = load_separator(os.path.join(folder, part))
    assert separator.targets == ("vocals", "drums")
    assert (separator.sample_rate, separator.channels) == (8000, 2)
    estimates = separator.separate(mixture)
    for index, target in enumerate(separator.targets):
        np.testing.assert_allclose(estimates[target], expected[..., index], rtol=0, atol=1e-5)


def test_niter_wins_over_the_profile(stored, mixture):
    folder, spectral_filter = stored
    expected = UMX(spectral_filter, niter=0)(mixture[None]).numpy()[0]
    estimates = load_separator(folder, niter=0).separate(mixture)
    np.testing.assert_allclose(estimates["vocals"], expected[..., 0], rtol=0, atol=1e-5)
    assert np.abs(load_separator(folder).separate(mixture)["vocals"] - expected[..., 0]).max() > 1e-3


def test_saved_model_takes_any_niter(stored, mixture):
    folder, spectral_filter = stored
    expected = UMX(spectral_filter, niter=0)(mixture[None]).numpy()[0]
    estimates = load_separator(os.path.join(folder, "saved_model"), niter=0).separate(mixture)
    np.testing.assert_allclose(estimates["vocals"], expected[..., 0], rtol=0, atol=1e-5)


def test_damaged_weights_are_noticed(stored, tmp_path):
    """Also where HDF5 would read them: its format has no checksums."""
    folder = tmp_path / "model"
    shutil.copytree(stored[0], folder, ignore=shutil.ignore_patterns("saved_model", "checkpoints"))
    weights = folder / "model.weights.h5"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.weights\.h5: damaged: its SHA-256 is"):
        load_separator(folder)


def test_refuses_what_is_no_model(tmp_path):
    with pytest.raises(InputError, match="no such model"):
        load_separator(tmp_path / "nothing")
    with pytest.raises(InputError, match="not a model folder"):
        load_separator(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"not a graph")
    with pytest.raises(InputError, match="no such profile"):
        load_separator(tmp_path)
    os.makedirs(tmp_path / "assets.extra")
    PROFILE.write(tmp_path / "assets.extra")
    with pytest.raises(InputError, match="damaged, or not a SavedModel"):
        load_separator(tmp_path)
