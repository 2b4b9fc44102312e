"""SI-SDR and the MDX SDR against closed forms, and against their formulas taken literally."""

import numpy as np
import pytest

from umx_model.evaluation import whole_track
from umx_model.evaluation.whole_track import mdx_sdr, si_sdr

RATE = 2000


def noise(seed, samples=3 * RATE, channels=2, targets=3):
    generator = np.random.default_rng(seed)
    return (generator.standard_normal((samples, channels, targets)) * 0.1).astype(np.float32)


def literal_mdx_sdr(references, estimates):
    """As the challenge's evaluation computes it for one song, sources first."""
    references, estimates = (np.moveaxis(wave.astype(np.float64), -1, 0) for wave in (references, estimates))
    signal = np.sum(np.square(references), axis=(1, 2)) + 1e-7
    distortion = np.sum(np.square(references - estimates), axis=(1, 2)) + 1e-7
    return 10 * np.log10(signal / distortion)


def literal_si_sdr(references, estimates):
    """Projection on the line through the reference."""
    scores = []
    for target in range(references.shape[2]):
        true, estimate = (wave[..., target].astype(np.float64).ravel() for wave in (references, estimates))
        explained = true * (estimate @ true) / (true @ true)
        scores.append(20 * np.log10(np.linalg.norm(explained) / np.linalg.norm(estimate - explained)))
    return scores


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("block", [977, 1 << 18])
def test_equals_formula(channels, block, monkeypatch):
    monkeypatch.setattr(whole_track, "_BLOCK", block)
    references = noise(1, channels=channels)
    estimates = 0.7 * references + 0.2 * references[..., ::-1] + 0.3 * noise(2, channels=channels)
    np.testing.assert_allclose(mdx_sdr(references, estimates), literal_mdx_sdr(references, estimates), atol=1e-9)
    np.testing.assert_allclose(si_sdr(references, estimates), literal_si_sdr(references, estimates), atol=1e-9)


def test_scale_counts_in_one_only():
    references, estimates = noise(1), noise(1) + 0.5 * noise(2)
    np.testing.assert_allclose(si_sdr(references, 0.25 * estimates), si_sdr(references, estimates), atol=1e-5)
    np.testing.assert_allclose(mdx_sdr(references, 0.5 * references), 20 * np.log10(2), atol=1e-6)


def test_one_scale_for_all_channels():
    """Channels that are scaled apart are distorted: `(1, 0)` is half `(1, 1)` and as much again."""
    references = np.repeat(noise(1, channels=1), 2, axis=1)
    estimates = references * np.array([1.0, 0.0])[:, np.newaxis]
    np.testing.assert_allclose(si_sdr(references, estimates), 0, atol=1e-9)


def test_without_a_finite_figure():
    references, estimates = noise(1), noise(2)
    references[..., 0] = 0
    estimates[..., 1] = 0
    estimates[..., 2] = 0.5 * references[..., 2]
    assert np.isnan(si_sdr(references, estimates)).all()
    scores = mdx_sdr(references, estimates)
    np.testing.assert_allclose(scores, literal_mdx_sdr(references, estimates), atol=1e-9)
    assert scores[0] < -80
    assert scores[1] == 0
    np.testing.assert_allclose(mdx_sdr(noise(1), noise(1)), literal_mdx_sdr(noise(1), noise(1)), atol=1e-9)


@pytest.mark.parametrize("score", [si_sdr, mdx_sdr])
def test_estimates_are_padded_or_cut(score):
    references, estimates = noise(1), noise(2)
    short = estimates.copy()
    short[-500:] = 0
    np.testing.assert_array_equal(score(references, estimates[:-500]), score(references, short))
    np.testing.assert_array_equal(
        score(references, np.concatenate([estimates, estimates])), score(references, estimates)
    )


@pytest.mark.parametrize("score", [si_sdr, mdx_sdr])
def test_refuses(score):
    with pytest.raises(ValueError, match=r"\(10, 2, 3\) and \(10, 1, 3\)"):
        score(np.ones((10, 2, 3)), np.ones((10, 1, 3)))
    broken = noise(2)
    broken[7, 0, 0] = np.inf
    with pytest.raises(ValueError, match="non-finite"):
        score(noise(1), broken)
