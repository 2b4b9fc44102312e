"""BSSEval v4, aggregated as the median of medians.

    windows = windowed_sdr(references, estimates)      # SDR alone: [windows, targets] dB
    windows = bss_eval(references, estimates)          # {"SDR": [windows, targets], "ISR": ..., "SIR": ..., "SAR": ...}
    track = track_score(windows["SDR"])                # [targets], median over windows
    database = database_score([track, ...])            # [targets], median over tracks

The figures are those of `museval.evaluate(..., mode="v4")` (sigsep/sigsep-mus-eval 0.4.1, Liutkus,
Stöter and Ito, "The 2018 Signal Separation Evaluation Campaign", LVA/ICA 2018). SDR needs no distortion
filter, which makes it fast and exact; the other three take more than ten times as long.
`umx_model.evaluation.whole_track` has other figures that are called SDR, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.fft

from umx_model.evaluation.distortion_filters import distortion_filters
from umx_model.evaluation.waveforms import Figures, Waveforms, check_pair, copy_piece, energies, in_threads

_WINDOWS_AT_ONCE = 4
_BINS_AT_ONCE = 1024


def windowed_sdr(references: Waveforms, estimates: Waveforms, window: int = 44100, hop: int = 44100) -> Figures:
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
    return _decibels(*_signal_and_distortion(references, estimates, window, hop))


def bss_eval(
    references: Waveforms, estimates: Waveforms, window: int = 44100, hop: int = 44100, filter_taps: int = 512
) -> dict[str, Figures]:
    """SDR, ISR, SIR and SAR of each window.

    An estimate is split into `s + e_spat + e_interf + e_artif`: the true target; what filters turn that
    into; what filters of the other targets add; what no filter explains. The filters are those that fit
    best over the whole track; each window is filtered by itself, with silence around it.

        SDR = |s|^2 / |e_spat + e_interf + e_artif|^2          ISR = |s|^2 / |e_spat|^2
        SIR = |s + e_spat|^2 / |e_interf|^2                    SAR = |s + e_spat + e_interf|^2 / |e_artif|^2

    `track_score` and `database_score` aggregate each of them: the median over tracks of medians over windows.

    Args:
        references: as in `windowed_sdr`.
        estimates: as in `windowed_sdr`.
        window: as in `windowed_sdr`.
        hop: as in `windowed_sdr`.
        filter_taps: length of the filters in samples.

    Returns:
        "SDR", "ISR", "SIR" and "SAR", each `[windows, targets]` float64 in dB. SDR is that of
        `windowed_sdr`; the others are NaN in the same silent windows, and where they are infinite.

    Raises:
        ValueError: as `windowed_sdr`, or `filter_taps` below 1.
    """
    if filter_taps < 1:
        raise ValueError(f"filter_taps must be at least 1, got {filter_taps}")
    signal, distortion = _signal_and_distortion(references, estimates, window, hop)
    figures = {metric: np.full(signal.shape, np.nan) for metric in ("ISR", "SIR", "SAR")}
    scored = np.flatnonzero(~np.isnan(signal).any(axis=1))
    if len(scored):
        parts = _Parts(*distortion_filters(references, estimates, filter_taps), min(window, len(references)))
        batches = np.array_split(scored, -(-len(scored) // _WINDOWS_AT_ONCE))
        results = in_threads(lambda some: parts.energies(references, estimates, some * hop), batches)
        for some, (own, spatial, joint, interference, artifacts) in zip(batches, results, strict=True):
            figures["ISR"][some] = _decibels(signal[some], spatial)
            figures["SIR"][some] = _decibels(own, interference)
            figures["SAR"][some] = _decibels(joint, artifacts)
    return {"SDR": _decibels(signal, distortion)} | figures


def track_score(windows: npt.NDArray[np.floating]) -> Figures:
    """Median over windows, leaving NaN out: `[windows, targets]` -> `[targets]` (NaN where all are)."""
    return _nanmedian(np.asarray(windows, np.float64))


def database_score(tracks: Sequence[npt.NDArray[np.floating]]) -> Figures:
    """Median over tracks of their scores, leaving NaN out: a sequence of `[targets]` -> `[targets]`."""
    return _nanmedian(np.stack([np.asarray(track, np.float64) for track in tracks]))


def _signal_and_distortion(
    references: Waveforms, estimates: Waveforms, window: int, hop: int
) -> tuple[Figures, Figures]:
    """`|s|^2` and `|s_hat - s|^2`, each `[windows, targets]`; NaN in silent windows."""
    check_pair(references, estimates)
    if window < 1 or hop < 1:
        raise ValueError(f"window and hop must be at least 1 sample, got {window} and {hop}")
    length, channels, targets = references.shape
    count = (length - window + hop) // hop if window < length else min(length, 1)
    signal, distortion = np.full((2, count, targets), np.nan)
    reference, estimate = np.empty((2, channels * targets, min(window, length)))
    for index in range(count):
        copy_piece(reference, references, index * hop)
        copy_piece(estimate, estimates, index * hop)
        silent = _any_silent(reference, targets) or _any_silent(estimate, targets)
        estimate -= reference
        figures = [energies(piece).reshape(channels, targets).sum(axis=0) for piece in (reference, estimate)]
        if not np.isfinite(figures).all():
            raise ValueError(f"references or estimates hold non-finite values in window {index}")
        if not silent:
            signal[index], distortion[index] = figures
    return signal, distortion


class _Parts:
    """The parts of estimates, as spectra of windows: their energies need no waveforms (Parseval)."""

    def __init__(self, joint: Figures, own: Figures, length: int) -> None:
        """Take filters (see `distortion_filters`) to windows of `length` samples."""
        self._length = length
        self._size = 2 * scipy.fft.next_fast_len((length + joint.shape[-1]) // 2, real=True)  # even
        self._joint = scipy.fft.rfft(joint, n=self._size)
        self._own = scipy.fft.rfft(own, n=self._size)

    def energies(self, references: Waveforms, estimates: Waveforms, starts: npt.NDArray[np.int_]) -> Figures:
        """Energies of `s + e_spat`, `e_spat`, `s + e_spat + e_interf`, `e_interf` and `e_artif`.

        `[5, windows, targets]` for the windows that start at these samples.
        """
        _, channels, targets, bins = self._own.shape
        count = channels * targets
        windows = np.zeros((len(starts), 2 * count, self._size))
        for window, start in zip(windows, starts, strict=True):
            copy_piece(window[:count, : self._length], references, start)
            copy_piece(window[count:, : self._length], estimates, start)
        spectra = scipy.fft.rfft(windows, overwrite_x=True)
        spectra[..., [0, -1]] *= np.sqrt(0.5)  # each other bin stands for two: itself and its mirror image

        sums = np.zeros((5, len(starts), count))
        for start in range(0, bins, _BINS_AT_ONCE):  # few enough to stay in the cache
            some = slice(start, start + _BINS_AT_ONCE)
            true, estimated = np.split(spectra[..., some], 2, axis=1)
            joint = _filtered(true, self._joint[..., some])
            own = _filtered(true.reshape(-1, channels, targets, true.shape[-1]), self._own[..., some])
            own = own.reshape(true.shape)
            parts = (own, own - true, joint, joint - own, estimated - joint)
            sums += [energies(part.view(np.float64)) for part in parts]
        return 2 / self._size * sums.reshape(5, -1, channels, targets).sum(axis=2)


def _filtered(spectra: npt.NDArray[np.complex128], filters: npt.NDArray[np.complex128]) -> npt.NDArray[np.complex128]:
    """`[windows, inputs, ..., bins]`, `[inputs, outputs, ..., bins]` -> `[windows, outputs, ..., bins]`."""
    result = spectra[:, 0, np.newaxis] * filters[0]
    for index in range(1, len(filters)):
        result += spectra[:, index, np.newaxis] * filters[index]
    return result


def _any_silent(piece: Figures, targets: int) -> bool:
    """Whether a target's channels sum to zero throughout (museval's rule, so an opposite pair counts)."""
    channels = piece.reshape(-1, targets, piece.shape[1])
    if channels[..., channels.shape[-1] // 2].sum(axis=0).all():
        return False  # one sample that is not silent will do
    return bool((channels.sum(axis=0) == 0).all(axis=-1).any())


def _decibels(signal: Figures, distortion: Figures) -> Figures:
    """`10 log10(signal / distortion)`, NaN where that is not finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        decibels = 10 * np.log10(signal / distortion)
    return np.where(np.isfinite(decibels), decibels, np.nan)


def _nanmedian(scores: Figures) -> Figures:
    """`np.nanmedian` over the first axis, without its warning where there is nothing but NaN."""
    return np.array([np.median(finite) if len(finite := column[~np.isnan(column)]) else np.nan for column in scores.T])
