"""What is measured of an audio file, block by block.

measurement = Measurement(sample_rate=44100)
for block in blocks:                      # [samples, channels]
    measurement.add(block)
statistics = measurement.result()
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np

QUIETEST_DB = -120.0  # stands for digital silence
FULL_SCALE = 32767 / 32768  # the greatest value of 16-bit audio

_CLIPPED_RUN = 3  # samples
_SILENCE = 1e-3  # RMS, -60 dB
_SILENCE_SECONDS = 0.1
_SPECTRUM_SAMPLES = 4096
_SPECTRUM_EVERY = 4  # spectra are taken of one in so many pieces, which is plenty and cheap
_BANDWIDTH_RANGE = 1e-8  # power, -80 dB
_KAISER_BETA = 14  # side lobes below -100 dB

# How a cutoff is looked for; see `find_cutoff`. Levels are of bands, in dB.
_BAND_HZ = 100.0
_LOWEST_CUTOFF_HZ = 8000.0
_HIGHEST_CUTOFF_HZ = 20500.0  # converters cut above, whatever the origin
_HALF_TRANSITION = 3  # bands on either side of the edge that may be on their way down
_SHELF = 10  # bands below it that are looked at, and as many above
_SLOPE_DB = 4.0  # how much the shelf may fall from one half to the other
_CUTOFF_DB = 15.0  # how much the level falls at a cutoff
_AUDIBLE_BAND_DB = -110.0  # of full scale: quieter bands may be noise that dither has shaped


@dataclass(frozen=True)
class TargetStatistics:
    """What was measured over a whole file.

    Attributes:
        peak: greatest magnitude; full scale is 1.
        loudness_db: RMS over all samples and channels in dB below full scale, at least -120.
        silence_fraction: part of the file's tenths of a second whose RMS is below -60 dB.
        bandwidth_hz: highest frequency whose mean power is within 80 dB of the strongest one. 0 for silence.
        cutoff_hz: where a brick-wall edge ends the spectrum, as lossy codecs and conversions from lower
            sample rates leave it; 0 where there is none. See `find_cutoff`.
        clipping: part of the values that are clipped: equal to their neighbours in time, three or more
            in a row, and at full scale (32767/32768) or beyond.
        dc_offset: the mean of the channel where it is farthest from 0, as a magnitude.
        non_finite: number of NaN or infinite values; the other figures take them as 0.
        content: digest of the decoded audio, equal for equal audio in whatever format.
    """

    peak: float
    loudness_db: float
    silence_fraction: float
    bandwidth_hz: float
    cutoff_hz: float
    clipping: float
    dc_offset: float
    non_finite: int
    content: str


class Measurement:
    """Takes in a file's audio, block by block, and tells its `TargetStatistics`.

    Args:
        sample_rate: Hz.

    Attributes:
        block_samples: length of the blocks to be given, of which only the last may be shorter.
    """

    def __init__(self, sample_rate: int) -> None:
        self._rate = sample_rate
        self._tenth = max(1, round(_SILENCE_SECONDS * sample_rate))
        self.block_samples = 10 * self._tenth
        self._peak, self._energy, self._samples, self._values = 0.0, 0.0, 0, 0
        self._quiet, self._tenths, self._non_finite, self._clipped = 0, 0, 0, 0
        self._sums: np.ndarray | float = 0.0
        self._last: np.ndarray | None = None  # samples before this block
        self._spectrum, self._spectra = np.zeros(_SPECTRUM_SAMPLES // 2 + 1), 0
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, block: np.ndarray) -> np.ndarray:
        """Take in float32 `[samples, channels]`; return it with zeros in place of what is not finite."""
        self._digest.update((block + np.float32(0)).tobytes())  # so that -0 equals 0
        finite = np.isfinite(block)
        if not finite.all():
            self._non_finite += int(block.size - finite.sum())
            block = np.where(finite, block, np.float32(0))
        peak = float(np.abs(block).max())
        self._peak = max(self._peak, peak)
        self._samples, self._values = self._samples + len(block), self._values + block.size
        self._sums = self._sums + np.sum(block, axis=0, dtype=np.float64)
        self._count_clipped(block, peak)
        power = np.mean(np.square(block, dtype=np.float64), axis=1)
        self._energy += float(power.sum())
        edges = np.arange(0, len(power), self._tenth)
        counts = np.minimum(self._tenth, len(power) - edges)
        self._quiet += int(np.sum(np.add.reduceat(power, edges) / counts < _SILENCE**2))
        self._tenths += len(edges)
        for start in range(0, len(block), _SPECTRUM_SAMPLES * _SPECTRUM_EVERY):
            self._spectrum += _power_spectrum(block[start : start + _SPECTRUM_SAMPLES])
            self._spectra += 1
        return block

    def result(self) -> TargetStatistics:
        """Return what was measured. At least one block must have been given."""
        audible = np.flatnonzero(self._spectrum > self._spectrum.max() * _BANDWIDTH_RANGE)
        return TargetStatistics(
            peak=self._peak,
            loudness_db=max(QUIETEST_DB, 10 * float(np.log10(self._energy / self._samples + 1e-30))),
            silence_fraction=self._quiet / self._tenths,
            bandwidth_hz=float(audible[-1] * self._rate / _SPECTRUM_SAMPLES) if len(audible) else 0.0,
            cutoff_hz=find_cutoff(self._spectrum / self._spectra, self._rate),
            clipping=self._clipped / self._values,
            dc_offset=float(np.max(np.abs(self._sums / self._samples))),
            non_finite=self._non_finite,
            content=self._digest.hexdigest(),
        )

    def _count_clipped(self, block: np.ndarray, peak: float) -> None:
        """Count values in runs of equal ones at full scale."""
        before = np.zeros((3, block.shape[1]), block.dtype) if self._last is None else self._last
        held = np.concatenate([before, block])
        self._last = held[-3:]
        if peak < FULL_SCALE:
            return
        alike = (held[1:] == held[:-1]) & (np.abs(held[1:]) >= FULL_SCALE)
        third = alike[1:] & alike[:-1]  # or later in a run; the first row is about the block before
        first = third[1:] & ~third[:-1]
        self._clipped += int(third[1:].sum()) + 2 * int(first.sum())


def find_cutoff(spectrum: np.ndarray, sample_rate: int) -> float:
    """Find the frequency from which on a spectrum is cut off.

    Encoders of lossy formats leave out everything above a frequency (LAME: 16 to 17 kHz at 128 kbit/s, 20 kHz at
    320), and so do conversions from lower sample rates. Sounds that have little above some frequency
    fade out towards it. So a cutoff is an edge: the level, in bands of 100 Hz, falls by more than 15 dB
    within 600 Hz and stays down, and the kilohertz below it, which is not yet that quiet, does not slope so.

    Args:
        spectrum: mean power per bin relative to full scale, `[bins]`, see `Measurement`.
        sample_rate: Hz.

    Returns:
        Hz; 0 where there is none between 8 and 20.5 kHz.
    """
    band = max(1, round(_BAND_HZ * _SPECTRUM_SAMPLES / sample_rate))
    bands = spectrum[: len(spectrum) // band * band].reshape(-1, band)
    # The median does not hear single tones.
    levels = 10 * np.log10(np.median(bands, axis=1) * band + 1e-30)
    hertz = band * sample_rate / _SPECTRUM_SAMPLES
    highest = int(_HIGHEST_CUTOFF_HZ / hertz)
    best, best_fall = 0.0, _CUTOFF_DB
    for edge in range(int(_LOWEST_CUTOFF_HZ / hertz), min(highest, len(levels) - 2 * _HALF_TRANSITION)):
        shelf = levels[edge - _HALF_TRANSITION - _SHELF : edge - _HALF_TRANSITION]
        farther, nearer = np.median(shelf[: _SHELF // 2]), np.median(shelf[_SHELF // 2 :])
        beyond = levels[edge + _HALF_TRANSITION :]
        fall = nearer - np.max(beyond[:_SHELF])
        slopes = abs(farther - nearer) > _SLOPE_DB
        if fall > best_fall and not slopes and nearer > _AUDIBLE_BAND_DB and np.max(beyond) < nearer - _CUTOFF_DB:
            best, best_fall = edge * hertz, fall
    return best


def _power_spectrum(piece: np.ndarray) -> np.ndarray:
    """Power per bin of a piece `[samples, channels]`, averaged over channels; the sum over bins is the mean square."""
    window, scale = _window(len(piece))
    transform = np.fft.rfft(piece * window, _SPECTRUM_SAMPLES, axis=0)
    power: np.ndarray = np.mean(np.square(transform.real) + np.square(transform.imag), axis=1) * scale
    return power


@functools.lru_cache(maxsize=4)
def _window(samples: int) -> tuple[np.ndarray, float]:
    window = np.kaiser(samples, _KAISER_BETA)
    return window[:, np.newaxis], 2 / (_SPECTRUM_SAMPLES * float(np.sum(window**2)))
