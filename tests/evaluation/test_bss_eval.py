"""BSSEval v4 SDR against museval and closed forms."""

import shutil
import sys
import types

import numpy as np
import pytest

from umx_model.evaluation.bss_eval import database_score, track_score, windowed_sdr

if shutil.which("ffmpeg") is None:
    # museval imports musdb, which refuses to be imported without ffmpeg; nothing here reads MUSDB18.
    sys.modules.setdefault("musdb", types.ModuleType("musdb"))
museval = pytest.importorskip("museval")

RATE = 2000


def noise(seed, seconds=3.4, channels=2, targets=2):
    generator = np.random.default_rng(seed)
    return generator.standard_normal((int(seconds * RATE), channels, targets)) * 0.1


def museval_sdr(references, estimates, window=RATE, hop=RATE):
    """[windows, targets], +inf stored as NaN as museval's TrackStore does."""
    sdr = museval.evaluate(np.moveaxis(references, -1, 0), np.moveaxis(estimates, -1, 0), win=window, hop=hop)[0].T
    return np.where(np.isposinf(sdr), np.nan, sdr)


@pytest.mark.parametrize(("channels", "targets"), [(1, 2), (2, 3)])
@pytest.mark.parametrize(("window", "hop"), [(RATE, RATE), (RATE, RATE // 2), (RATE // 3, RATE)])
def test_equals_museval(channels, targets, window, hop):
    references = noise(1, 2.7, channels, targets)
    estimates = references + 0.3 * references[..., ::-1] + noise(2, 2.7, channels, targets) * 0.1
    expected = museval_sdr(references, estimates, window, hop)
    np.testing.assert_allclose(windowed_sdr(references, estimates, window, hop), expected, rtol=0, atol=1e-6)


def test_equals_museval_in_float32():
    references = noise(1).astype(np.float32)
    estimates = (references + noise(2) * 0.2).astype(np.float32)
    expected = museval_sdr(references, estimates)
    np.testing.assert_allclose(windowed_sdr(references, estimates, RATE, RATE), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seconds", [0.4, 1.0, 1.0 + 1 / RATE, 1.999, 2.0])
def test_windows_are_musevals_at_any_length(seconds):
    references, estimates = noise(1, seconds), noise(2, seconds)
    ours = windowed_sdr(references, estimates, RATE, RATE)
    assert ours.shape == (max(1, int(seconds)), 2)
    np.testing.assert_allclose(ours, museval_sdr(references, estimates), rtol=0, atol=1e-6)


@pytest.mark.parametrize("silent", ["reference", "estimate", "opposite channels"])
def test_silent_window_is_nan_for_all_targets(silent):
    references, estimates = noise(1), noise(2)
    if silent == "reference":
        references[RATE : 2 * RATE, :, 1] = 0
    elif silent == "estimate":
        estimates[RATE : 2 * RATE, :, 1] = 0
    else:
        references[RATE : 2 * RATE, 1, 0] = -references[RATE : 2 * RATE, 0, 0]
    ours = windowed_sdr(references, estimates, RATE, RATE)
    assert np.isnan(ours).any(axis=1).tolist() == [False, True, False]
    assert np.isnan(ours[1]).all()
    np.testing.assert_allclose(ours, museval_sdr(references, estimates), rtol=0, atol=1e-6)


def test_perfect_window_is_nan():
    references = noise(1)
    estimates = noise(2)
    estimates[:RATE, :, 1] = references[:RATE, :, 1]
    ours = windowed_sdr(references, estimates, RATE, RATE)
    np.testing.assert_array_equal(np.isnan(ours[0]), [False, True])
    np.testing.assert_allclose(ours[1:], museval_sdr(references, estimates)[1:], rtol=0, atol=1e-6)


def test_estimates_are_padded_or_cut():
    references, estimates = noise(1), noise(2, 4.0)
    for length in (len(estimates), int(2.5 * RATE)):
        expected = museval_sdr(references, estimates[:length])
        ours = windowed_sdr(references, estimates[:length], RATE, RATE)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("gain", "decibels"), [(0.5, 6.0206), (0.9, 20.0)])
def test_scaled_reference(gain, decibels):
    references = noise(1)
    scores = track_score(windowed_sdr(references, gain * references, RATE, RATE))
    np.testing.assert_allclose(scores, [decibels] * 2, atol=1e-4)


def test_white_noise_at_minus_ten_decibels():
    references, distortion = noise(1, 60), noise(2, 60)
    estimates = references + distortion * 10 ** (-10 / 20)
    scores = track_score(windowed_sdr(references, estimates, window=10 * RATE, hop=10 * RATE))
    np.testing.assert_allclose(scores, 10, atol=0.1)


def test_medians_leave_nan_out():
    np.testing.assert_array_equal(
        track_score(np.array([[1.0, np.nan], [np.nan, np.nan], [4.0, np.nan]])), [2.5, np.nan]
    )
    tracks = [np.array([1.0, np.nan]), np.array([2.0, 7.0]), np.array([9.0, 5.0])]
    np.testing.assert_array_equal(database_score(tracks), [2.0, 6.0])


def test_refuses():
    with pytest.raises(ValueError, match=r"\(10, 2, 3\) and \(10, 1, 3\)"):
        windowed_sdr(np.ones((10, 2, 3)), np.ones((10, 1, 3)))
    with pytest.raises(ValueError, match="at least 1 sample"):
        windowed_sdr(np.ones((10, 2, 3)), np.ones((10, 2, 3)), hop=0)
    estimates = noise(2)
    estimates[-RATE, 0, 0] = np.nan
    with pytest.raises(ValueError, match="non-finite values in window 2"):
        windowed_sdr(noise(1), estimates, RATE, RATE)
