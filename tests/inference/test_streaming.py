"""Live separation against the model that sees the whole."""

from __future__ import annotations

import pickle
from pathlib import Path

import keras
import numpy as np
import pytest

from umx_model.errors import InputError
from umx_model.inference.streaming import StreamingSeparator
from umx_model.model.folder import write_model_folder
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.model.umx import UMX
from umx_model.profile import ModelProfile, Profile

SIZES = {"n_fft": 64, "hop_length": 16, "sample_rate": 8000, "bandwidth": 3000.0, "hidden_size": 6}


def make_model(seed: int = 3, **settings) -> UMX:
    """A causal model with random weights, whose estimates differ from target to target and frame to frame."""
    keras.utils.set_random_seed(seed)
    settings = {"targets": ("vocals", "other"), "unidirectional": True, **SIZES, **settings}
    spectral_filter = get_joint_spectral_filter(ModelProfile(**settings))
    generator = np.random.default_rng(seed)
    for variable in spectral_filter.variables:
        if "lstm" in variable.path or "norm" in variable.path or "output" in variable.path:
            positive = "variance" in variable.path
            variable.assign(generator.uniform(0.5 if positive else -1.0, 1.5, variable.shape))
    return UMX(spectral_filter, niter=0)


def noise(samples: int, channels: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.2, (samples, channels)).astype(np.float32)


def stream(separator: StreamingSeparator, mixture: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Push blocks of the sizes given, over and over, and flush; checks the promise of equal sizes."""
    pieces, position, turn = [], 0, 0
    while position < len(mixture):
        block = mixture[position : position + sizes[turn % len(sizes)]]
        pieces.append(separator.push(block))
        assert pieces[-1].shape == (*block.shape, len(separator.targets))
        assert pieces[-1].dtype == np.float32
        position, turn = position + len(block), turn + 1
    pieces.append(separator.flush())
    assert len(pieces[-1]) == separator.latency
    return np.concatenate(pieces)


@pytest.fixture(scope="module")
def model() -> UMX:
    return make_model()


@pytest.fixture(scope="module")
def separator(model) -> StreamingSeparator:
    return StreamingSeparator(model)


@pytest.mark.parametrize("sizes", [[1], [16], [64], [1000], [5, 0, 33, 1, 0, 0, 200, 17]])
def test_equals_the_whole(model, separator, sizes):
    mixture = noise(700)
    estimates = stream(separator, mixture, sizes)
    expected = model(mixture[np.newaxis])[0].numpy()
    assert expected.std() > 0.01
    assert np.abs(expected[..., 0] - expected[..., 1]).max() > 0.01
    assert not estimates[: separator.latency].any()
    np.testing.assert_allclose(estimates[separator.latency :], expected, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 2, 15, 16, 17, 31, 32, 33, 34, 47, 48, 49, 63, 64, 65, 79, 80])
@pytest.mark.parametrize("sizes", [[7], [1000]])
def test_short_streams(model, separator, samples, sizes):
    mixture = noise(samples, seed=samples)
    estimates = stream(separator, mixture, sizes)[separator.latency :]
    np.testing.assert_allclose(estimates, model(mixture[np.newaxis])[0], atol=1e-5)


@pytest.mark.parametrize("hop_length", [5, 16, 25, 31, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_hop_and_channel_count(hop_length, channels):
    model = make_model(hop_length=hop_length, channels=channels)
    separator = StreamingSeparator(model)
    for samples in (20, 32, 33, 64, 65, 333):
        mixture = noise(samples, channels)
        estimates = stream(separator, mixture, [13, 1, 50])[separator.latency :]
        np.testing.assert_allclose(estimates, model(mixture[np.newaxis])[0], atol=1e-5)


def test_latency_is_as_short_as_any_block_size_allows(model):
    """Some estimate depends on the very newest sample, but for one at the window's edge, which is zero."""
    separator = StreamingSeparator(model)
    mixture = noise(320)
    before = stream(separator, mixture, [1])
    first_changed = []
    for position in range(200, 216):  # one hop
        changed = mixture.copy()
        changed[position] += 1
        difference = np.abs(stream(separator, changed, [1]) - before).max(axis=(1, 2))
        first_changed.append(int(np.argmax(difference > 1e-7)) - position)
    assert min(first_changed) == 1


def test_longer_blocks_than_run_at_once():
    model = make_model(hop_length=4)
    mixture = noise(4 * 200)
    separator = StreamingSeparator(model)
    estimates = stream(separator, mixture, [len(mixture)])[separator.latency :]
    np.testing.assert_allclose(estimates, model(mixture[np.newaxis])[0], atol=1e-5)


@pytest.mark.parametrize("softmask", [None, True, False])
def test_softmask(softmask):
    spectral_filter = make_model(softmask=True).spectral_filter
    mixture = noise(300)
    mixture[100:200] = 0
    separator = StreamingSeparator(UMX(spectral_filter), softmask=softmask)
    estimates = stream(separator, mixture, [40])[separator.latency :]
    expected = UMX(spectral_filter, niter=0, softmask=softmask)(mixture[np.newaxis])[0]
    np.testing.assert_allclose(estimates, expected, atol=1e-5)


def test_flush_and_reset_begin_anew(model, separator):
    mixture, other = noise(150), noise(90, seed=1)
    expected = stream(separator, mixture, [50])
    np.testing.assert_array_equal(stream(separator, mixture, [50]), expected)
    separator.push(other)
    separator.reset()
    np.testing.assert_array_equal(stream(separator, mixture, [50]), expected)
    assert not separator.flush().any()


def test_states_are_snapshots(model, separator):
    mixture = noise(400)
    separator.reset()
    separator.push(mixture[:150])
    state = separator.state()
    kept = pickle.dumps(state)
    expected = np.concatenate([separator.push(mixture[150:]), separator.flush()])
    separator.push(noise(70, seed=9))[:] = 5  # what was returned is the caller's
    separator.restore(state)
    separator.push(np.empty([0, 2], np.float32))
    separator.push(mixture[150:160])[:] = 5
    separator.restore(state)
    np.testing.assert_array_equal(np.concatenate([separator.push(mixture[150:]), separator.flush()]), expected)
    another = StreamingSeparator(model)
    another.restore(pickle.loads(kept))
    np.testing.assert_array_equal(np.concatenate([another.push(mixture[150:]), another.flush()]), expected)


def test_refuses_blocks_and_goes_on(model, separator):
    mixture = noise(200)
    separator.reset()
    first = separator.push(mixture[:100])
    infinite = mixture[100:].copy()
    infinite[3, 1] = np.inf
    for block, complaint in [
        (infinite, "non-finite"),
        (mixture[100:, :1], r"expected \[samples, 2 channels\], got \[100, 1\]"),
        (mixture[100:, 0], r"got \[100\]"),
        ((mixture[100:] * 1000).astype(np.int16), "got int16"),
    ]:
        with pytest.raises(InputError, match=complaint):
            separator.push(block)
    rest = [separator.push(mixture[100:].astype(np.float64)), separator.flush()]
    estimates = np.concatenate([first, *rest])[separator.latency :]
    np.testing.assert_allclose(estimates, model(mixture[np.newaxis])[0], atol=1e-5)


def test_of_a_model_folder(model, tmp_path: Path):
    write_model_folder(tmp_path, model.spectral_filter, Profile(model=model.profile), saved_model=False)
    separator = StreamingSeparator(tmp_path)
    assert (separator.targets, separator.sample_rate, separator.channels) == (("vocals", "other"), 8000, 2)
    mixture = noise(200)
    estimates = stream(separator, mixture, [64])[separator.latency :]
    np.testing.assert_allclose(estimates, model(mixture[np.newaxis])[0], atol=1e-5)


def test_models_that_need_the_future_are_refused(tmp_path: Path):
    model = make_model(unidirectional=False)
    write_model_folder(tmp_path, model.spectral_filter, Profile(model=model.profile), saved_model=False)
    for source, name in [(model, "model"), (tmp_path, str(tmp_path))]:
        with pytest.raises(InputError, match=f"^{name}: .*model.unidirectional=true"):
            StreamingSeparator(source)
