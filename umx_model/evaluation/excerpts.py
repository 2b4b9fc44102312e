"""What to listen to: the best and the worst windows of tracks, with what is around them, as small files.

excerpts = best_and_worst(scores, references, estimates, mixture, sample_rate)
choose_excerpts([*those_of_one_track, *those_of_another])
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import soundfile as sf

from umx_model.data.audio import BLOCK_SAMPLES
from umx_model.data.resampling import resample
from umx_model.evaluation.scores import SDR, Excerpt, TrackScores

Waveform = npt.NDArray[np.floating]

SECONDS = 5.0

_HIGHEST_RATE = 48000  # Hz; browsers need no more
_COMPRESSION = 0.5  # about 130 kbit/s for stereo


def best_and_worst(
    scores: TrackScores, references: Waveform, estimates: Waveform, mixture: Waveform, sample_rate: int
) -> list[Excerpt]:
    """Cut out the windows of a track that have the highest and the lowest SDR, per target.

    Args:
        scores: of the track.
        references: true targets, `[samples, channels, targets]`.
        estimates: `[samples, channels, targets]`.
        mixture: `[samples, channels]`.
        sample_rate: Hz.

    Returns:
        Per target the best and then the worst, `SECONDS` long with the window in the middle, as far as the
        track goes; one where there is one window, none where no window has a score. Ogg Vorbis, mono or
        stereo (the mean of more channels), turned down where something would clip.
    """
    excerpts = []
    for index, target in enumerate(scores.targets):
        windows = scores.windows[SDR][:, index]
        if np.isnan(windows).all():
            continue
        for window in dict.fromkeys([int(np.nanargmax(windows)), int(np.nanargmin(windows))]):
            middle = window * scores.hop_seconds + scores.window_seconds / 2
            latest = max(0.0, len(mixture) / sample_rate - SECONDS)
            start = min(max(0.0, middle - SECONDS / 2), latest)
            piece = slice(round(start * sample_rate), round((start + SECONDS) * sample_rate))
            waveforms = (mixture[piece], references[piece, :, index], estimates[piece, :, index])
            peak = max(1.0, *(float(np.abs(waveform).max(initial=0)) for waveform in waveforms))
            files = [_encode(waveform / peak, sample_rate) for waveform in waveforms]
            excerpts.append(Excerpt(scores.name, target, start, float(windows[window]), *files))
    return excerpts


def choose_excerpts(excerpts: Sequence[Excerpt], per_target: int = 2) -> list[Excerpt]:
    """Choose from the excerpts of many tracks.

    Args:
        excerpts: of any number of tracks.
        per_target: how many of the best, and how many of the worst, each of another track.

    Returns:
        Per target, in the order in which targets appear, the best and the worst, from the highest SDR
        to the lowest.
    """
    chosen = []
    for target in dict.fromkeys(excerpt.target for excerpt in excerpts):
        falling = sorted(
            (excerpt for excerpt in excerpts if excerpt.target == target), key=lambda excerpt: excerpt.sdr, reverse=True
        )
        best = _of_different_tracks(falling, per_target)
        worst = _of_different_tracks([excerpt for excerpt in reversed(falling) if excerpt not in best], per_target)
        chosen += [*best, *reversed(worst)]
    return chosen


def _of_different_tracks(excerpts: Sequence[Excerpt], count: int) -> list[Excerpt]:
    """Return the first excerpt of each track, for the first `count` tracks."""
    by_track: dict[str, Excerpt] = {}
    for excerpt in excerpts:
        by_track.setdefault(excerpt.track, excerpt)
    return list(by_track.values())[:count]


def _encode(waveform: Waveform, sample_rate: int) -> bytes:
    if waveform.shape[1] > 2:
        waveform = waveform.mean(axis=1, keepdims=True)
    if sample_rate > _HIGHEST_RATE:
        waveform, sample_rate = resample(waveform, sample_rate, _HIGHEST_RATE), _HIGHEST_RATE
    content = io.BytesIO()
    with sf.SoundFile(
        content, "w", sample_rate, waveform.shape[1], "VORBIS", format="OGG", compression_level=_COMPRESSION
    ) as file:
        for start in range(0, len(waveform), BLOCK_SAMPLES):  # libsndfile crashes on much Vorbis at once
            file.write(waveform[start : start + BLOCK_SAMPLES])
    return content.getvalue()
