"""BSSEval v4 source-to-distortion ratios, aggregated as the median of medians.

    windows = windowed_sdr(references, estimates)      # [windows, targets] dB
    track = track_score(windows)                       # [targets], median over windows
    database = database_score([track, ...])            # [targets], median over tracks

The figures are those of `museval.evaluate(..., mode="v4")` (sigsep/sigsep-mus-eval 0.4.1, Liutkus,
Stöter and Ito, "The 2018 Signal Separation Evaluation Campaign", LVA/ICA 2018). SDR is the only one
of the four BSSEval metrics that needs no distortion filter, which makes it fast and exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def windowed_sdr(
    references: npt.NDArray[np.floating],
    estimates: npt.NDArray[np.floating],
    window: int = 44100,
    hop: int = 44100,
) -> npt.NDArray[np.float64]:
    """SDR of each window: `10 log10(sum |s|^2 / sum |s_hat - s|^2)` over all samples and channels of it.

    Args:
        references: true targets, `[samples, channels, targets]`.
        estimates: `[samples, channels, targets]`; cut, or padded with zeros, to the references' length.
        window: window length in samples; a track that is not longer is one window.
        hop: samples from one window to the next. Audio after the last whole window is not scored.

    Returns:
        `[floor((samples - window + hop) / hop), targets]` float64 in dB. As in museval, a window in
        which any target's reference or estimate is silent (its channels sum to zero throughout) is NaN
        for all targets, and a perfect estimate is NaN, too.

    Raises:
        ValueError: shapes that do not match, a window or hop below 1, or non-finite audio.
    """
    if references.ndim != 3 or estimates.ndim != 3 or references.shape[1:] != estimates.shape[1:]:
        raise ValueError(
            "references and estimates must both be [samples, channels, targets], "
            f"got {references.shape} and {estimates.shape}"
        )
    if window < 1 or hop < 1:
        raise ValueError(f"window and hop must be at least 1 sample, got {window} and {hop}")
    length, _, targets = references.shape
    count = (length - window + hop) // hop if window < length else min(length, 1)
    scores = np.full((count, targets), np.nan)
    for index in range(count):
        reference = _piece(references, index * hop, min(window, length))
        estimate = _piece(estimates, index * hop, min(window, length))
        if not (np.isfinite(reference).all() and np.isfinite(estimate).all()):
            raise ValueError(f"references or estimates hold non-finite values in window {index}")
        if not (_any_silent(reference) or _any_silent(estimate)):
            scores[index] = _sdr(reference, estimate)
    return scores


def track_score(windows: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Median over windows, leaving NaN out: `[windows, targets]` -> `[targets]` (NaN where all are)."""
    return _nanmedian(np.asarray(windows, np.float64))


def database_score(tracks: Sequence[npt.NDArray[np.floating]]) -> npt.NDArray[np.float64]:
    """Median over tracks of their scores, leaving NaN out: a sequence of `[targets]` -> `[targets]`."""
    return _nanmedian(np.stack([np.asarray(track, np.float64) for track in tracks]))


def _piece(waveforms: npt.NDArray[np.floating], start: int, length: int) -> npt.NDArray[np.float64]:
    piece = waveforms[start : start + length].astype(np.float64)
    return np.pad(piece, [(0, length - len(piece)), (0, 0), (0, 0)])


def _any_silent(piece: npt.NDArray[np.float64]) -> bool:
    """Whether a target's channels sum to zero throughout (museval's rule, so an opposite pair counts)."""
    return bool((piece.sum(axis=1) == 0).all(axis=0).any())


def _sdr(reference: npt.NDArray[np.float64], estimate: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    signal = np.sum(reference**2, axis=(0, 1))
    distortion = np.sum((estimate - reference) ** 2, axis=(0, 1))
    perfect = distortion == 0
    return np.where(perfect, np.nan, 10 * np.log10(signal / np.where(perfect, 1, distortion)))


def _nanmedian(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """`np.nanmedian` over the first axis, without its warning where there is nothing but NaN."""
    return np.array([np.median(finite) if len(finite := column[~np.isnan(column)]) else np.nan for column in scores.T])
