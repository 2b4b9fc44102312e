"""Distortion filters of BSSEval: the best explanation of estimates as filtered references.

The filters are causal FIR filters, one set for a whole track, that minimise
`sum |estimate - sum over references (filter * reference)|^2`. They solve normal equations whose matrix
holds the correlations of the references at all lags below the filters' length (block-Toeplitz).

After E. Vincent, R. Gribonval and C. Févotte, "Performance measurement in blind audio source
separation", IEEE TASLP 14(4), 2006, in the way of `museval.metrics` (sigsep/sigsep-mus-eval 0.4.1, MIT
licence). Here correlations come from short FFTs, summed over blocks of the track, and the equations are
solved once for all estimates.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
import scipy.linalg

from umx_model.evaluation.waveforms import Figures, Waveforms, copy_piece

_FFT_LENGTH = 8192
_BLOCKS_AT_ONCE = 32


def distortion_filters(references: Waveforms, estimates: Waveforms, taps: int) -> tuple[Figures, Figures]:
    """Least-squares filters from references to estimates.

    Args:
        references: `[samples, channels, targets]`; silence before and after is part of the model.
        estimates: likewise; cut, or padded with zeros, to the references' length.
        taps: length of the filters in samples.

    Returns:
        Two float64 arrays `[taps, references, estimates]`, the last two axes counting channels and
        targets as `channel * targets + target`: filters from all references to each estimate, and those
        from the references of the same target only, zero for the others.
    """
    targets = references.shape[2]
    among, across = _correlations(references, estimates, taps)
    joint = _solve(among, across)
    own = np.zeros_like(joint)
    for target in range(targets):
        channels = slice(target, None, targets)
        own[:, channels, channels] = _solve(among[:, channels, channels], across[:, channels, channels])
    return joint, own


def _correlations(references: Waveforms, estimates: Waveforms, taps: int) -> tuple[Figures, Figures]:
    """`sum over t of reference_a[t] signal_b[t + lag]` for lags from 0, `[lag, a, b]`.

    Of the references with each other, and of the references with the estimates.
    """
    length = len(references)
    count = references[0].size
    size = scipy.fft.next_fast_len(min(max(_FFT_LENGTH, 4 * taps), length + taps - 1), real=True)
    step = size - taps + 1  # so that no lag wraps around
    spectrum = np.zeros((size // 2 + 1, count, 2 * count), np.complex128)
    for first in range(0, length, step * _BLOCKS_AT_ONCE):
        starts = range(first, min(length, first + step * _BLOCKS_AT_ONCE), step)
        signals = np.zeros((len(starts), size, 2 * count))
        for signal, start in zip(signals, starts, strict=True):
            stop = min(size, length - start)
            copy_piece(signal[:stop, :count], references, start)
            copy_piece(signal[:stop, count:], estimates, start)
        blocks = scipy.fft.rfft(signals[:, :step, :count], n=size, axis=1, workers=-1)
        signals = scipy.fft.rfft(signals, axis=1, overwrite_x=True, workers=-1)
        spectrum += np.conj(blocks, out=blocks).transpose(1, 2, 0) @ signals.transpose(1, 0, 2)
    correlations = scipy.fft.irfft(spectrum, n=size, axis=0)[:taps]
    return correlations[..., :count], correlations[..., count:]


def _solve(among: Figures, across: Figures) -> Figures:
    """Solve the normal equations: correlations `[lag, a, b]` and `[lag, a, e]` -> filters `[tap, a, e]`."""
    taps, count, outputs = across.shape
    right = across.transpose(1, 0, 2).reshape(count * taps, outputs)
    try:
        # The matrix is symmetric: its transpose is itself, in the order that LAPACK overwrites in place.
        factor = scipy.linalg.cho_factor(_gram(among).T, lower=True, overwrite_a=True, check_finite=False)
        filters = scipy.linalg.cho_solve(factor, right, check_finite=False)
    except scipy.linalg.LinAlgError:
        filters = _solve_singular(_gram(among), right)
    return filters.reshape(count, taps, outputs).transpose(1, 0, 2)


def _solve_singular(gram: Figures, right: Figures) -> Figures:
    """Use as many delayed references as are independent (pivoted Cholesky); the others get no share."""
    factor, pivots, rank, _ = scipy.linalg.lapack.dpstrf(gram.T, lower=1, overwrite_a=True)
    kept = pivots[:rank] - 1
    filters = np.zeros_like(right)
    filters[kept] = scipy.linalg.cho_solve((factor[:rank, :rank], True), right[kept], check_finite=False)
    return filters


def _gram(among: Figures) -> Figures:
    """Inner products of the delayed references, `[count * taps, count * taps]`, from their correlations."""
    taps, count, _ = among.shape
    gram = np.empty((count, taps, count, taps))
    for a in range(count):
        for b in range(count):
            lags = np.concatenate([among[:0:-1, b, a], among[:, a, b]])  # from 1 - taps to taps - 1
            gram[a, :, b] = np.lib.stride_tricks.sliding_window_view(lags, taps)[:, ::-1]
    return gram.reshape(count * taps, count * taps)
