"""Figures of whole tracks, without windows: neither of them is the SDR of BSSEval v4.

`umx_model.evaluation.bss_eval` has the SDR that the field reports for MUSDB18, a median over windows; these two
take a track as one piece, so that loud passages count most. The three differ by decibels on the same
estimates: name the figure wherever one is quoted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from umx_model.evaluation.waveforms import Figures, Waveforms, check_pair, copy_piece, energies

_MDX_EPSILON = 1e-7
_BLOCK = 1 << 18  # samples


def si_sdr(references: Waveforms, estimates: Waveforms) -> Figures:
    """Scale-invariant SDR: `10 log10(|a s|^2 / |a s - s_hat|^2)`, where `a = <s_hat, s> / |s|^2`.

    One scale for all samples and channels of a target, and no mean taken off, as in J. Le Roux et al.,
    "SDR - half-baked or well done?", ICASSP 2019. A database's score is the mean over its tracks there.

    Args:
        references: true targets, `[samples, channels, targets]`.
        estimates: `[samples, channels, targets]`; cut, or padded with zeros, to the references' length.

    Returns:
        `[targets]` float64 in dB; NaN where it is not finite: silence, a perfect estimate up to scale, or
        one that has nothing of the reference.

    Raises:
        ValueError: shapes that do not match, or non-finite audio.
    """
    projection = np.zeros(references.shape[-1])
    signal = np.zeros_like(projection)
    for reference, estimate in _blocks(references, estimates):
        signal += energies(reference).sum(axis=0)
        projection += np.einsum("cts,cts->t", reference, estimate)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = projection / signal
    distortion = np.zeros_like(projection)
    for reference, estimate in _blocks(references, estimates):
        distortion += energies(scale[:, np.newaxis] * reference - estimate).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        decibels = 10 * np.log10(scale**2 * signal / distortion)
    return np.where(np.isfinite(decibels), decibels, np.nan)


def mdx_sdr(references: Waveforms, estimates: Waveforms) -> Figures:
    """SDR of the Music Demixing Challenge: `10 log10((|s|^2 + 1e-7) / (|s - s_hat|^2 + 1e-7))` over the whole song.

    Over all samples and channels, as in Y. Mitsufuji et al., "Music Demixing Challenge 2021", Frontiers in
    Signal Processing 1, 2022. There a song's score is the mean over its targets, the challenge's the mean
    over songs. Silence and perfect estimates have finite figures, which mean little.

    Args:
        references: as in `si_sdr`.
        estimates: as in `si_sdr`.

    Returns:
        `[targets]` float64 in dB.

    Raises:
        ValueError: as `si_sdr`.
    """
    signal = np.full(references.shape[-1], _MDX_EPSILON)
    distortion = signal.copy()
    for reference, estimate in _blocks(references, estimates):
        signal += energies(reference).sum(axis=0)
        distortion += energies(reference - estimate).sum(axis=0)
    return 10 * np.log10(signal / distortion)


def _blocks(references: Waveforms, estimates: Waveforms) -> Iterator[tuple[Figures, Figures]]:
    """Yield blocks of both, `[channels, targets, samples]`, so that long tracks need no copy in float64."""
    check_pair(references, estimates)
    length, *signals = references.shape
    for start in range(0, length, _BLOCK):
        pair = np.empty((2, math.prod(signals), min(_BLOCK, length - start)))
        copy_piece(pair[0], references, start)
        copy_piece(pair[1], estimates, start)
        if not np.isfinite(pair).all():
            raise ValueError(f"references or estimates hold non-finite values in samples from {start} on")
        reference, estimate = pair.reshape(2, *signals, -1)
        yield reference, estimate
