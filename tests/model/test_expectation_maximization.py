"""EM against norbert, and on signals that break naive implementations."""

import itertools

import norbert
import numpy as np
import pytest
import tensorflow as tf

from umx_model.model.expectation_maximization import ExpectationMaximization
from umx_model.model.stft import STFTLayer

FRAMES, BINS = 23, 9
EPS = 1e-10


def random_problem(channels: int, targets: int, magnitude_channels: int | None = None, level: float = 30.0):
    rng = np.random.default_rng(channels * 10 + targets)
    x = level * (rng.normal(size=(FRAMES, BINS, channels)) + 1j * rng.normal(size=(FRAMES, BINS, channels)))
    v = level * rng.uniform(size=(FRAMES, BINS, magnitude_channels or channels, targets))
    return x, v


def by_norbert(x, v, niter, softmask, residual):
    """Open-Unmix's way to norbert: initial estimates, optional residual, scaling, EM."""
    y = norbert.wiener(v, x.copy(), 0, use_softmask=softmask, eps=EPS)
    if residual:
        y = np.concatenate([y, x[..., None] - y.sum(-1, keepdims=True)], axis=-1)
    if niter:
        scale = max(1.0, np.abs(x).max() / 10.0)
        y = norbert.expectation_maximization(y / scale, x / scale, niter, eps=EPS)[0] * scale
    return y


@pytest.mark.parametrize("niter", [0, 1, 2, 3])
@pytest.mark.parametrize("softmask", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_equals_norbert(niter, softmask, residual):
    for channels, targets in itertools.product((1, 2, 3), (1, 2, 3, 4)):
        x, v = random_problem(channels, targets)
        expected = by_norbert(x, v, niter, softmask, residual)
        layer = ExpectationMaximization(niter, window_frames=None, softmask=softmask, residual=residual, eps=EPS)
        x_before, v_before = x.copy(), v.copy()
        found = layer(x[None], v[None])[0].numpy()
        assert np.linalg.norm(found - expected) <= 1e-9 * np.linalg.norm(expected), (channels, targets)
        np.testing.assert_array_equal(x, x_before)
        np.testing.assert_array_equal(v, v_before)


@pytest.mark.parametrize("level", [0.4, 2.0, 1e3, 1e6])
def test_equals_norbert_at_any_level_above_a_peak_of_one(level):
    x, v = random_problem(2, 3, level=level)
    assert np.abs(x).max() > 1
    expected = by_norbert(x, v, 2, softmask=False, residual=False)
    found = ExpectationMaximization(2, window_frames=None, eps=EPS)(x[None], v[None])[0].numpy()
    assert np.linalg.norm(found - expected) <= 1e-9 * np.linalg.norm(expected)


@pytest.mark.parametrize("level", [1e-6, 1e-3, 0.1])
def test_quiet_signals_are_treated_like_loud_ones(level):
    x, v = random_problem(2, 3, level=1.0)
    layer, scale = ExpectationMaximization(2), 100 / np.abs(x).max()
    loud = layer((scale * x)[None], (scale * v)[None]).numpy() / scale
    quiet = layer((0.9 * level * x / np.abs(x).max())[None], (0.9 * level * v / np.abs(x).max())[None]).numpy()
    np.testing.assert_allclose(quiet / (0.9 * level / np.abs(x).max()), loud, rtol=1e-9, atol=1e-9)


def test_equals_norbert_wiener_with_magnitudes_shared_by_channels():
    x, v = random_problem(2, 3, magnitude_channels=1)
    expected = norbert.wiener(np.broadcast_to(v, (*x.shape, 3)), x.copy(), 2, use_softmask=False, eps=EPS)
    found = ExpectationMaximization(2, window_frames=None, eps=EPS)(x[None], v[None])[0].numpy()
    assert np.linalg.norm(found - expected) <= 1e-9 * np.linalg.norm(expected)


@pytest.mark.parametrize("window", [1, 5, 23, 300])
def test_windows_are_independent(window):
    x, v = random_problem(2, 2)
    found = ExpectationMaximization(1, window_frames=window, eps=EPS)(x[None], v[None])[0].numpy()
    for start in range(0, FRAMES, window):
        part = slice(start, start + window)
        expected = by_norbert(x[part], v[part], 1, softmask=False, residual=False)
        np.testing.assert_allclose(found[part], expected, rtol=1e-8, atol=1e-8)


def test_batch_items_are_independent():
    problems = [random_problem(2, 2, level=level) for level in (1.0, 500.0)]
    layer = ExpectationMaximization(1)
    together = layer(np.stack([x for x, _ in problems]), np.stack([v for _, v in problems])).numpy()
    for index, (x, v) in enumerate(problems):
        np.testing.assert_allclose(together[index], layer(x[None], v[None])[0], rtol=1e-12, atol=1e-12)


def signal(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Targets of a waveform [samples, channels, targets], by name."""
    rng = np.random.default_rng(1)
    targets = 0.1 * rng.normal(size=(20000, 2, 3))
    if case == "dual mono":
        targets[:, 1] = targets[:, 0]
    elif case == "digital silence":
        targets[:] = 0
    elif case == "one silent target":
        targets[..., 1] = 0
    elif case == "one silent channel":
        targets[:, 0] = 0
    elif case == "half silence":
        targets[:10000] = 0
    elif case.startswith("amplitude"):
        targets *= float(case.split()[1]) / np.abs(targets.sum(-1)).max()
    return targets


CASES = ["dual mono", "digital silence", "one silent target", "one silent channel", "half silence"]
CASES += [f"amplitude {level}" for level in ("1e-6", "1e-3", "1", "1e4")]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("niter", [1, 3])
@pytest.mark.parametrize("softmask", [False, True])
def test_finite_and_sums_to_the_mixture(case, niter, softmask):
    targets = signal(case)
    stft = STFTLayer(512, 128)
    folded = stft(targets.reshape(1, len(targets), 6).astype(np.float32)).numpy()
    magnitudes = np.abs(folded.reshape(*folded.shape[:3], 2, 3))
    mixture = stft(targets.sum(-1)[None].astype(np.float32)).numpy()
    estimates = ExpectationMaximization(niter, window_frames=50, softmask=softmask)(mixture, magnitudes).numpy()
    assert estimates.dtype == np.complex64
    assert np.isfinite(estimates).all()
    error = np.abs(estimates.sum(-1) - mixture)
    assert error.max() <= 1e-3 * np.abs(mixture).max() + 1e-30


def test_dual_mono_equals_mono():
    # What float32 gets wrong: the model of two equal channels is singular.
    targets = signal("dual mono")[:, :, :2]
    stft = STFTLayer(512, 128)
    folded = stft(targets.reshape(1, len(targets), 4)).numpy()
    magnitudes = np.abs(folded.reshape(*folded.shape[:3], 2, 2)).astype(np.float32)
    mixture = stft(targets.sum(-1)[None]).numpy().astype(np.complex64)
    layer = ExpectationMaximization(1)
    stereo = layer(mixture, magnitudes).numpy()
    mono = layer(mixture[..., :1], magnitudes[..., :1, :]).numpy()
    np.testing.assert_allclose(stereo[..., :1, :], mono, atol=1e-3 * np.abs(mono).max())
    np.testing.assert_allclose(stereo[..., 0, :], stereo[..., 1, :], atol=1e-5 * np.abs(mono).max())


def test_in_a_graph_of_unknown_sizes():
    layer = ExpectationMaximization(1, window_frames=10)
    signature = [tf.TensorSpec([None, None, BINS, 2], tf.complex64), tf.TensorSpec([None, None, BINS, 2, 3])]
    compiled = tf.function(layer, input_signature=signature)
    x, v = random_problem(2, 3)
    x, v = x[None].astype(np.complex64), v[None].astype(np.float32)
    for frames in (1, 10, 23):
        found = compiled(x[:, :frames], v[:, :frames])
        assert found.shape == (1, frames, BINS, 2, 3)
        np.testing.assert_allclose(found, layer(x[:, :frames], v[:, :frames]), rtol=1e-5, atol=1e-4)


def test_config_round_trip():
    layer = ExpectationMaximization(3, 12, True, True, 1e-7)
    assert ExpectationMaximization.from_config(layer.get_config()).get_config() == layer.get_config()


@pytest.mark.parametrize("setting", [{"niter": -1}, {"window_frames": 0}, {"eps": 0.0}])
def test_impossible_settings(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        ExpectationMaximization(**setting)
