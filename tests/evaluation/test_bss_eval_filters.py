"""ISR, SIR and SAR of BSSEval v4 against museval, closed forms and a projection written out."""

import shutil
import sys
import types

import numpy as np
import pytest
import scipy.linalg
import scipy.signal

from examples.demo import example_path, read_stems
from umx_model.evaluation import bss_eval as module
from umx_model.evaluation import distortion_filters
from umx_model.evaluation.bss_eval import bss_eval, windowed_sdr

if shutil.which("ffmpeg") is None:
    # museval imports musdb, which refuses to be imported without ffmpeg; nothing here reads MUSDB18.
    sys.modules.setdefault("musdb", types.ModuleType("musdb"))
museval = pytest.importorskip("museval")

RATE = 2000
METRICS = ("SDR", "ISR", "SIR", "SAR")


def noise(seed, seconds=3.4, channels=2, targets=2):
    generator = np.random.default_rng(seed)
    return generator.standard_normal((round(seconds * RATE), channels, targets)) * 0.1


def leaking(references, seed=2):
    """Estimates that are quieter than the references, leak into each other, echo and hiss."""
    hiss = np.random.default_rng(seed).standard_normal(references.shape) * np.std(references)
    return (
        0.8 * references + 0.1 * references.sum(axis=-1, keepdims=True) + 0.1 * np.roll(references, 9, 0) + 0.02 * hiss
    )


def decoded_music():
    """Six seconds of drums, bass, other and vocals, as the AAC decoder gives them: nothing above 16 kHz."""
    stems, _ = read_stems(example_path())
    return np.stack(list(stems.values()), axis=-1)


def real_music():
    """The same, to 16 bits as files have it."""
    return np.round(decoded_music() * 32768) / np.float32(32768)


def museval_scores(references, estimates, window, hop, taps):
    """Metric to `[windows, targets]`, infinity as NaN, as museval's TrackStore does."""
    references, estimates = (np.moveaxis(wave, -1, 0) for wave in (references, estimates))
    if taps == 512:
        scores = museval.evaluate(references, estimates, win=window, hop=hop, mode="v4")
    else:
        scores = museval.metrics.bss_eval(references, estimates, window, hop, filters_len=taps)[:4]
    return {metric: np.where(np.isinf(score.T), np.nan, score.T) for metric, score in zip(METRICS, scores, strict=True)}


def assert_equals_museval(references, estimates, window=RATE, hop=RATE, taps=32):
    ours = bss_eval(references, estimates, window, hop, taps)
    assert tuple(ours) == METRICS
    for metric, expected in museval_scores(references, estimates, window, hop, taps).items():
        assert ours[metric].dtype == np.float64
        tolerance = 1e-6 if metric == "SDR" else 1e-3
        np.testing.assert_allclose(ours[metric], expected, rtol=0, atol=tolerance, err_msg=metric)
    return ours


@pytest.mark.parametrize(("channels", "targets"), [(1, 2), (1, 5), (2, 2), (2, 3), (2, 4), (2, 5), (3, 2)])
def test_equals_museval(channels, targets):
    references = noise(1, 3.4, channels, targets)
    assert_equals_museval(references, leaking(references))


@pytest.mark.parametrize(("channels", "targets"), [(1, 2), (2, 3)])
def test_equals_museval_with_all_taps(channels, targets):
    references = noise(1, 4.7, channels, targets)
    assert_equals_museval(references, leaking(references), taps=512)


def test_equals_museval_on_real_music():
    music = real_music()[: round(3.3 * 44100)]
    pair = np.stack([music[..., 3], music[..., :3].sum(axis=-1)], axis=-1)  # vocals and accompaniment
    assert_equals_museval(pair, leaking(pair).astype(np.float32), 44100, 44100, 512)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2])
def test_equals_museval_on_four_stems(channels):
    music = real_music()[:, :channels]
    assert_equals_museval(music, leaking(music).astype(np.float32), 44100, 44100, 512)
    _, _, spectrum = scipy.signal.stft(music, nperseg=4096, axis=0)
    ideal = (
        np.abs(spectrum) / (np.abs(spectrum).sum(axis=2, keepdims=True) + 1e-9) * spectrum.sum(axis=2, keepdims=True)
    )
    _, masked = scipy.signal.istft(ideal, nperseg=4096, freq_axis=0, time_axis=-1)
    assert_equals_museval(music, np.moveaxis(masked, -1, 0), 44100, 44100, 512)


@pytest.mark.slow
def test_undetermined_filters_are_nearly_musevals():
    """The same music times three moves museval's own figures by 0.015 dB."""
    music = decoded_music()
    estimates = leaking(music).astype(np.float32)
    ours = bss_eval(music, estimates)
    for metric, expected in museval_scores(music, estimates, 44100, 44100, 512).items():
        np.testing.assert_allclose(ours[metric], expected, rtol=0, atol=0.05, err_msg=metric)


@pytest.mark.parametrize(
    ("seconds", "window", "hop"),
    [
        (2.7, RATE, RATE // 2),
        (2.7, RATE // 3, RATE),
        (3.0, RATE, RATE),
        (0.4, RATE, RATE),
        (12.3, RATE // 2, RATE // 2),
    ],
)
def test_windows_are_musevals_at_any_length(seconds, window, hop):
    references = noise(1, seconds)
    assert_equals_museval(references, leaking(references), window, hop)


def test_equals_museval_in_float32_and_other_lengths():
    references = noise(1).astype(np.float32)
    estimates = leaking(noise(1, 4.2)).astype(np.float32)
    for length in (len(estimates), round(2.5 * RATE)):
        padded = np.zeros_like(references)
        padded[: min(length, len(padded))] = estimates[: min(length, len(padded))]
        expected = museval_scores(references, padded, RATE, RATE, 32)
        ours = bss_eval(references, estimates[:length], RATE, RATE, 32)
        for metric in METRICS:
            np.testing.assert_allclose(ours[metric], expected[metric], rtol=0, atol=1e-3)


@pytest.mark.parametrize("silent", ["reference", "estimate", "opposite channels"])
def test_silent_windows_are_nan_for_all_targets(silent):
    references = noise(1)
    estimates = leaking(references)
    if silent == "reference":
        references[RATE : 2 * RATE, :, 1] = 0
    elif silent == "estimate":
        estimates[RATE : 2 * RATE, :, 1] = 0
    else:
        references[RATE : 2 * RATE, 1, 0] = -references[RATE : 2 * RATE, 0, 0]
    ours = assert_equals_museval(references, estimates)
    for figures in ours.values():
        assert np.isnan(figures).all(axis=1).tolist() == [False, True, False]
        assert np.isfinite(figures[[0, 2]]).all()


def test_a_target_that_is_never_heard():
    """museval refuses such a track; here it has no scores, as each of its windows would have none."""
    references = noise(1)
    references[..., 0] = 0
    for figures in bss_eval(references, noise(2), RATE, RATE, 32).values():
        assert figures.shape == (3, 2)
        assert np.isnan(figures).all()


def test_sdr_is_windowed_sdr():
    references = noise(1)
    estimates = leaking(references)
    estimates[:RATE, :, 1] = references[:RATE, :, 1]
    sdr = bss_eval(references, estimates, RATE, RATE, 32)["SDR"]
    np.testing.assert_array_equal(np.isnan(sdr[0]), [False, True])
    np.testing.assert_array_equal(sdr, windowed_sdr(references, estimates, RATE, RATE))


def test_leakage_alone():
    """A tenth of the other target: all distortion is interference, and there is none from space."""
    references = noise(1, 20)
    estimates = references + 0.1 * references[..., ::-1]
    ours = bss_eval(references, estimates, 20 * RATE, 20 * RATE, 32)
    np.testing.assert_allclose(ours["SDR"], 20, atol=0.1)
    np.testing.assert_allclose(ours["SIR"], 20, atol=0.1)
    assert (ours["ISR"] > 40).all()
    assert (ours["SAR"] > 100).all()


def test_filters_alone():
    """A quieter and later copy: all distortion is spatial."""
    references = noise(1, 20)
    references[-5:] = 0
    estimates = np.zeros_like(references)
    estimates[5:] = 0.5 * references[:-5]
    ours = bss_eval(references, estimates, 20 * RATE, 20 * RATE, 32)
    np.testing.assert_allclose(ours["ISR"], -10 * np.log10(1.25), atol=0.1)  # |s|^2 / |s - s_later / 2|^2
    np.testing.assert_allclose(ours["SDR"], ours["ISR"], atol=1e-2)
    assert (ours["SIR"] > 100).all()
    assert (ours["SAR"] > 100).all()


def test_noise_alone():
    """Noise of a tenth of the power: all distortion is artifacts, but for what the filters make of noise."""
    references = noise(1, 60)
    estimates = references + 10 ** (-10 / 20) * noise(2, 60)
    ours = bss_eval(references, estimates, 60 * RATE, 60 * RATE, 32)
    np.testing.assert_allclose(ours["SAR"], 10, atol=0.5)
    assert (ours["SIR"] > 30).all()
    assert (ours["ISR"] > 30).all()


def written_out(references, estimates, window, taps):
    """Projections by a pseudo-inverse, in the time domain, for any rank."""
    length, channels, targets = references.shape

    def delayed(piece):
        return np.hstack([scipy.linalg.convolution_matrix(signal, taps, "full") for signal in piece.T])

    def padded(piece):
        return np.vstack([piece, np.zeros((taps - 1, channels))])

    inverse = np.linalg.pinv(delayed(references.reshape(length, -1)), rcond=1e-9)
    scores = {metric: np.empty((length // window, targets)) for metric in METRICS[1:]}
    for target in range(targets):
        everything = inverse @ padded(estimates[..., target])
        own = np.linalg.pinv(delayed(references[..., target]), rcond=1e-9) @ padded(estimates[..., target])
        for index in range(length // window):
            piece = slice(index * window, (index + 1) * window)
            true, estimate = padded(references[piece, :, target]), padded(estimates[piece, :, target])
            filtered = delayed(references[piece, :, target]) @ own
            joint = delayed(references[piece].reshape(window, -1)) @ everything
            for metric, signal, error in (
                ("ISR", true, filtered - true),
                ("SIR", filtered, joint - filtered),
                ("SAR", joint, estimate - joint),
            ):
                scores[metric][index, target] = 20 * np.log10(np.linalg.norm(signal) / np.linalg.norm(error))
    return scores


@pytest.mark.parametrize("case", ["independent", "mono as stereo", "one channel silent", "a target twice"])
def test_equals_projection_written_out(case):
    references = noise(1, 0.6, targets=3)
    estimates = leaking(references) + 0.01 * noise(3, 0.6, targets=3)
    if case == "mono as stereo":
        references[:, 1] = references[:, 0]
    elif case == "one channel silent":
        references[:, 1, 0] = 0
    elif case == "a target twice":
        references[..., 1] = references[..., 0]
    ours = bss_eval(references, estimates, 400, 400, 16)
    for metric, expected in written_out(references, estimates, 400, 16).items():
        np.testing.assert_allclose(ours[metric], expected, rtol=0, atol=1e-6, err_msg=metric)


def test_mono_as_stereo_is_nearly_musevals():
    """museval solves singular equations with rounding errors for pivots; its figures follow those a little."""
    references = np.repeat(noise(1, channels=1), 2, axis=1)
    estimates = leaking(references)
    ours = bss_eval(references, estimates, RATE, RATE, 32)
    for metric, expected in museval_scores(references, estimates, RATE, RATE, 32).items():
        np.testing.assert_allclose(ours[metric], expected, rtol=0, atol=0.05, err_msg=metric)


def test_batches_make_no_difference(monkeypatch):
    references = noise(1, 7.3)
    estimates = leaking(references)
    expected = bss_eval(references, estimates, RATE, RATE, 32)
    monkeypatch.setattr(module, "_WINDOWS_AT_ONCE", 1)
    monkeypatch.setattr(module, "_BINS_AT_ONCE", 100)
    monkeypatch.setattr(distortion_filters, "_BLOCKS_AT_ONCE", 2)
    monkeypatch.setattr(distortion_filters, "_FFT_LENGTH", 128)
    for metric, figures in bss_eval(references, estimates, RATE, RATE, 32).items():
        np.testing.assert_allclose(figures, expected[metric], rtol=0, atol=1e-9)


def test_refuses():
    with pytest.raises(ValueError, match=r"\(10, 2, 3\) and \(10, 1, 3\)"):
        bss_eval(np.ones((10, 2, 3)), np.ones((10, 1, 3)))
    with pytest.raises(ValueError, match="filter_taps must be at least 1, got 0"):
        bss_eval(noise(1), noise(2), RATE, RATE, 0)
    broken = noise(2)
    broken[RATE, 0, 0] = np.nan
    with pytest.raises(ValueError, match="non-finite values in window 1"):
        bss_eval(noise(1), broken, RATE, RATE, 32)
    broken = noise(2)
    broken[-1, 0, 0] = np.inf  # behind the last window
    with pytest.raises(ValueError, match="non-finite values"):
        bss_eval(noise(1), broken, RATE, RATE, 32)
