"""Distortion filters of BSSEval: the best explanation of estimates as filtered references.

The filters are causal FIR filters, one set for a whole track, that minimise
`sum |estimate - sum over references (filter * reference)|^2`. They solve normal equations whose matrix
holds the correlations of the references at all lags below the filters' length (block-Toeplitz).

After E. Vincent, R. Gribonval and C. Févotte, "Performance measurement in blind audio source
separation", IEEE TASLP 14(4), 2006, in the way of `museval.metrics` (sigsep/sigsep-mus-eval 0.4.1, MIT
licence). Here correlations come from short FFTs, summed over blocks of the track, and the equations are
solved once for all estimates.

References with nothing at all in some band, as decoders of lossy formats give them in floating point,
leave the filters undetermined there. What windows cut off then leaks into that band, and rounding errors
move SIR and SAR by some 0.01 dB, museval's own as much; 16 bits have noise enough to prevent it. Exact
dependence (mono as stereo, a silent channel) is solved exactly.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.linalg

from umx_model.evaluation.waveforms import Figures, Waveforms, copy_piece, in_threads

_FFT_LENGTH = 4096
_BLOCKS_AT_ONCE = 32


def distortion_filters(references: Waveforms, estimates: Waveforms, taps: int) -> tuple[Figures, Figures]:
    """Least-squares filters from references to estimates.

    Args:
        references: `[samples, channels, targets]`; silence before and after is part of the model.
        estimates: likewise; cut, or padded with zeros, to the references' length.
        taps: length of the filters in samples.

    Returns:
        Float64 filters from all references to all estimates, `[channels * targets, channels * targets, taps]`,
        and from the reference of each target to the estimate of it, `[channels, channels, targets, taps]`.

    Raises:
        ValueError: non-finite audio.
    """
    _, channels, targets = references.shape
    among, across = _correlations(references, estimates, taps)
    if not (np.isfinite(among).all() and np.isfinite(across).all()):
        raise ValueError("references or estimates hold non-finite values")
    joint = _solve(among, across)
    shape = (channels, targets, channels, targets, taps)
    among, across = among.reshape(shape), across.reshape(shape)
    own = [_solve(among[:, target, :, target], across[:, target, :, target]) for target in range(targets)]
    return joint, np.stack(own, axis=2)


def _correlations(references: Waveforms, estimates: Waveforms, taps: int) -> tuple[Figures, Figures]:
    """`sum over t of reference_a[t] signal_b[t + lag]` for lags from 0, `[a, b, lag]`.

    Of the references with each other, and of the references with the estimates.
    """
    length = len(references)
    count = references[0].size
    size = scipy.fft.next_fast_len(min(max(_FFT_LENGTH, 4 * taps), length + taps - 1), real=True)
    step = size - taps + 1  # so that no lag wraps around

    def cross_spectra(first: int) -> npt.NDArray[np.complex128]:
        starts = range(first, min(length, first + step * _BLOCKS_AT_ONCE), step)
        signals = np.zeros((len(starts), 2 * count, size))
        for signal, start in zip(signals, starts, strict=True):
            copy_piece(signal[:count], references, start)
            copy_piece(signal[count:], estimates[:length], start)
        blocks = np.conj(scipy.fft.rfft(signals[:, :count, :step], n=size))
        spectra = scipy.fft.rfft(signals, overwrite_x=True)
        # Copies: a matrix product for each bin is much faster where its rows lie together.
        blocks, spectra = (
            np.ascontiguousarray(blocks.transpose(2, 1, 0)),
            np.ascontiguousarray(spectra.transpose(2, 0, 1)),
        )
        with np.errstate(invalid="ignore"):  # non-finite audio, which is refused later
            return blocks @ spectra

    spectrum = sum(in_threads(cross_spectra, range(0, length, step * _BLOCKS_AT_ONCE)))
    correlations = np.moveaxis(scipy.fft.irfft(spectrum, n=size, axis=0)[:taps], 0, -1)
    return correlations[:, :count], correlations[:, count:]


def _solve(among: Figures, across: Figures) -> Figures:
    """Solve the normal equations: correlations `[a, b, lag]` and `[a, e, lag]` -> filters `[a, e, tap]`."""
    count, outputs, taps = across.shape
    right = across.swapaxes(1, 2).reshape(count * taps, outputs)
    try:
        # The matrix is symmetric: its transpose is itself, in the order that LAPACK overwrites in place.
        factor = scipy.linalg.cho_factor(_gram(among).T, lower=True, overwrite_a=True, check_finite=False)
        filters = scipy.linalg.cho_solve(factor, right, check_finite=False)
    except scipy.linalg.LinAlgError:
        filters = _solve_singular(_gram(among), right)
    return filters.reshape(count, taps, outputs).swapaxes(1, 2)


def _solve_singular(gram: Figures, right: Figures) -> Figures:
    """Use as many delayed references as are independent (pivoted Cholesky); the others get no share."""
    factor, pivots, rank, _ = scipy.linalg.lapack.dpstrf(gram.T, lower=1, overwrite_a=True)
    kept = pivots[:rank] - 1
    filters = np.zeros_like(right)
    filters[kept] = scipy.linalg.cho_solve((factor[:rank, :rank], True), right[kept], check_finite=False)
    return filters


def _gram(among: Figures) -> Figures:
    """Inner products of the delayed references, `[count * taps, count * taps]`, from their correlations."""
    count, _, taps = among.shape
    gram = np.empty((count, taps, count, taps))
    for a in range(count):
        for b in range(count):
            lags = np.concatenate([among[b, a, :0:-1], among[a, b]])  # from 1 - taps to taps - 1
            gram[a, :, b] = np.lib.stride_tricks.sliding_window_view(lags, taps)[:, ::-1]
    return gram.reshape(count * taps, count * taps)
