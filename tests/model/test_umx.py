"""The end-to-end model: shapes, round trips, and a SavedModel that plain TensorFlow loads."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from umx_model.errors import InputError
from umx_model.model import folder
from umx_model.model.folder import checkpointable, read_model, write_model_folder
from umx_model.model.spectral_filter import JointSpectralFilter, get_joint_spectral_filter
from umx_model.model.umx import UMX
from umx_model.profile import ModelProfile, Profile

PROFILE = Profile(
    model=ModelProfile(
        targets=("vocals", "drums", "other"), n_fft=256, hop_length=64, sample_rate=8000, bandwidth=4000, hidden_size=8
    )
)


@pytest.fixture(scope="module")
def spectral_filter() -> keras.Model:
    keras.utils.set_random_seed(5)
    return get_joint_spectral_filter(PROFILE.model)


def mixture(samples: int = 3000, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.2, (batch, samples, 2)).astype(np.float32)


@pytest.mark.parametrize("samples", [1, 63, 64, 1000])
@pytest.mark.parametrize("niter", [0, 1])
def test_estimates_are_as_long_as_the_mixture(spectral_filter, samples, niter):
    estimates = UMX(spectral_filter, niter=niter)(mixture(samples, batch=2))
    assert estimates.shape == (2, samples, 2, 3)
    assert np.isfinite(estimates).all()


def test_em_makes_estimates_sum_to_the_mixture(spectral_filter):
    waveform = mixture()
    total = tf.reduce_sum(UMX(spectral_filter, niter=1)(waveform), axis=-1)
    np.testing.assert_allclose(total, waveform, atol=1e-3)


def test_batch_items_do_not_mix(spectral_filter):
    model, waveforms = UMX(spectral_filter), mixture(batch=3)
    together = model(waveforms)
    for index in range(3):
        np.testing.assert_allclose(together[index], model(waveforms[index : index + 1])[0], atol=1e-5)


@pytest.mark.parametrize("make", [get_joint_spectral_filter, JointSpectralFilter])
def test_keras_file_round_trip(make, tmp_path):
    model = UMX(make(PROFILE.model), niter=2, softmask=True)
    expected = model(mixture())
    model.save(tmp_path / "umx.keras")
    loaded = keras.models.load_model(tmp_path / "umx.keras")
    assert loaded.get_config() == model.get_config()
    np.testing.assert_allclose(loaded(mixture()), expected, atol=1e-6)


def test_keras_file_round_trip_of_an_extended_filter(tmp_path):
    @keras.saving.register_keras_serializable(package="tests")
    class Halved(JointSpectralFilter):
        def call(self, magnitude, training=False):
            return 0.5 * super().call(magnitude, training=training)

    model = UMX(Halved(PROFILE.model), niter=0)
    model.save(tmp_path / "umx.keras")
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "umx.keras")(mixture()), model(mixture()), atol=1e-6)


def test_a_filter_without_profile_is_refused(spectral_filter):
    with pytest.raises(ValueError, match="spectral_filter has no `profile`"):
        UMX(keras.models.clone_model(spectral_filter))


def test_no_click_at_the_end_of_half_overlapping_frames():
    profile = PROFILE.model.model_copy(update={"hop_length": 128})
    model = UMX(get_joint_spectral_filter(profile))
    for samples in (127, 128 * 9 + 127):
        assert np.abs(model(mixture(samples))).max() < 3


def test_a_target_may_be_called_anything():
    profile = PROFILE.model.model_copy(update={"targets": ("magnitude", "stack", "joint_spectral_filter")})
    assert UMX(get_joint_spectral_filter(profile))(mixture()).shape[-1] == 3


def test_weights_round_trip(spectral_filter, tmp_path):
    model = UMX(spectral_filter)
    model.save_weights(tmp_path / "umx.weights.h5")
    other = UMX(get_joint_spectral_filter(PROFILE.model))
    other.load_weights(tmp_path / "umx.weights.h5")
    np.testing.assert_allclose(other(mixture()), model(mixture()), atol=1e-6)


def test_model_folder_round_trip(spectral_filter, tmp_path):
    write_model_folder(tmp_path / "model", spectral_filter, PROFILE, saved_model=False)
    expected = UMX(spectral_filter)(mixture())
    for path in (tmp_path / "model", tmp_path / "model" / "model.weights.h5"):
        model, profile = read_model(path)
        assert profile.model_copy(update={"weights_sha256": None}) == PROFILE
        np.testing.assert_allclose(model(mixture()), expected, atol=1e-6)
    assert not list(tmp_path.rglob("*.partial"))


def test_failed_export_leaves_the_old_model(spectral_filter, tmp_path, monkeypatch):
    def contents():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(model, profile, path):
        os.makedirs(path)
        raise OSError("disk full")

    write_model_folder(tmp_path, spectral_filter, PROFILE)
    before, other = contents(), get_joint_spectral_filter(PROFILE.model)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "export_saved_model", fail)
        with pytest.raises(OSError, match="disk full"):
            write_model_folder(tmp_path, other, PROFILE)
    assert contents() == before
    write_model_folder(tmp_path, other, PROFILE)  # over what the failure left
    served = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["serving_default"](mixture=mixture())
    np.testing.assert_allclose(served["drums"], UMX(other)(mixture())[..., 1], atol=1e-5)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("optimizer", [True, False])
def test_reads_checkpoints(spectral_filter, tmp_path, optimizer):
    PROFILE.write(tmp_path)
    parts = {"optimizer": keras.optimizers.Adam()} if optimizer else {}
    checkpoint = tf.train.Checkpoint(model=checkpointable(spectral_filter), **parts)
    prefix = tf.train.CheckpointManager(checkpoint, str(tmp_path / "checkpoints"), max_to_keep=2).save()
    expected = UMX(spectral_filter)(mixture())
    for path in (tmp_path, tmp_path / "checkpoints", prefix):
        np.testing.assert_allclose(read_model(path)[0](mixture()), expected, atol=1e-6)


def test_reads_the_best_checkpoint(spectral_filter, tmp_path, monkeypatch):
    PROFILE.write(tmp_path)
    newest, best = tmp_path / "checkpoints", tmp_path / "checkpoints" / "best"
    best_filter = get_joint_spectral_filter(PROFILE.model)
    prefixes = {}
    for path, model in ((newest, spectral_filter), (best, best_filter)):
        checkpoint = tf.train.Checkpoint(model=checkpointable(model))
        prefixes[path] = tf.train.CheckpointManager(checkpoint, str(path), max_to_keep=1).save()
    monkeypatch.chdir(newest)
    for path in (tmp_path, best, prefixes[best], "best"):
        np.testing.assert_allclose(read_model(path)[0](mixture()), UMX(best_filter)(mixture()), atol=1e-6)
    np.testing.assert_allclose(read_model(newest)[0](mixture()), UMX(spectral_filter)(mixture()), atol=1e-6)


def test_weights_without_a_profile_are_refused(spectral_filter, tmp_path):
    PROFILE.write(tmp_path)
    write_model_folder(tmp_path / "a" / "b" / "c", spectral_filter, PROFILE, saved_model=False)
    (tmp_path / "a" / "b" / "c" / "profile.json").unlink()
    with pytest.raises(InputError, match=r"c/model\.weights\.h5: no profile\.json beside it"):
        read_model(tmp_path / "a" / "b" / "c")


def test_weights_of_another_profile_are_refused(spectral_filter, tmp_path):
    write_model_folder(tmp_path, spectral_filter, PROFILE, saved_model=False)
    PROFILE.updated({"model.hidden_size": 10}).write(tmp_path)
    with pytest.raises(InputError, match=r"model\.weights\.h5: damaged, or not of the model"):
        read_model(tmp_path)


def test_damaged_weights_are_refused(spectral_filter, tmp_path):
    write_model_folder(tmp_path, spectral_filter, PROFILE, saved_model=False)
    (tmp_path / "model.weights.h5").write_bytes(b"not HDF5")
    with pytest.raises(InputError, match=r"model\.weights\.h5: damaged"):
        read_model(tmp_path)


@pytest.mark.parametrize("path", ["missing", "empty", "profile.json"])
def test_not_a_model(path, tmp_path):
    (tmp_path / "empty").mkdir()
    PROFILE.write(tmp_path)
    with pytest.raises(InputError, match=f"{path}: (no such|not a) model"):
        read_model(tmp_path / path)
