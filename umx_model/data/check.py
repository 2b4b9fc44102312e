"""Deep checks: is every second of a sample's audio usable, and do samples fit a profile?"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from umx_model.data.audio import AudioInfo, stream
from umx_model.data.track_folder import Path, Sample, inspect_sample, list_sample_folders
from umx_model.errors import InputError
from umx_model.profile import ModelProfile

__all__ = ["SampleCheck", "TargetStatistics", "check_fits", "check_sample", "list_sample_folders"]

QUIETEST_DB = -120.0  # stands for digital silence
_SILENCE = 1e-3  # RMS, -60 dB
_SILENCE_SECONDS = 0.1
_SPECTRUM_SAMPLES = 4096
_SPECTRUM_EVERY = 4  # spectra are taken of one in so many pieces, which is plenty and cheap
_BANDWIDTH_RANGE = 1e-8  # power, -80 dB
_KAISER_BETA = 14  # side lobes below -100 dB


@dataclass(frozen=True)
class TargetStatistics:
    """What was measured over a whole file.

    Attributes:
        peak: greatest magnitude; full scale is 1.
        loudness_db: RMS over all samples and channels in dB below full scale, at least -120.
        silence_fraction: part of the file's tenths of a second whose RMS is below -60 dB.
        bandwidth_hz: highest frequency whose mean power is within 80 dB of the strongest one; lossy
            codecs show here. 0 for silence.
        non_finite: number of NaN or infinite values; the other figures take them as 0.
    """

    peak: float
    loudness_db: float
    silence_fraction: float
    bandwidth_hz: float
    non_finite: int


@dataclass(frozen=True)
class SampleCheck:
    """What `check_sample` found.

    Attributes:
        sample: None where there are problems.
        problems: one line each.
        statistics: by target, of the files that could be read.
    """

    sample: Sample | None
    problems: list[str] = field(default_factory=list)
    statistics: dict[str, TargetStatistics] = field(default_factory=dict)


def check_sample(root: Path, split: str, name: str, targets: Sequence[str]) -> SampleCheck:
    """Read all audio of one sample, block by block.

    Args:
        root: the database.
        split: of the sample.
        name: of its folder.
        targets: names of all targets.

    Returns:
        The sample with statistics of each file, or the problems: those of `inspect_sample`, and
        truncated, corrupt and non-finite audio.
    """
    sample, problems = inspect_sample(root, split, name, targets)
    if sample is None:
        return SampleCheck(None, problems)
    statistics = {}
    for target, info in sample.files.items():
        try:
            statistics[target] = measure(info)
        except InputError as problem:
            problems.append(str(problem))
            continue
        if statistics[target].non_finite:
            count = statistics[target].non_finite
            problems.append(f"{info.path}: {count} values are NaN or infinite; replace the file")
    return SampleCheck(None if problems else sample, problems, statistics)


def measure(info: AudioInfo) -> TargetStatistics:
    """Measure one file; see `TargetStatistics`.

    Raises:
        InputError: the file is truncated or corrupt.
    """
    peak, energy, non_finite, quiet, tenths = 0.0, 0.0, 0, 0, 0
    tenth = max(1, round(_SILENCE_SECONDS * info.sample_rate))
    spectrum = np.zeros(_SPECTRUM_SAMPLES // 2 + 1)
    for block in stream(info.path, block_samples=tenth * 10):
        finite = np.isfinite(block)
        if not finite.all():
            non_finite += int(block.size - finite.sum())
            block = np.where(finite, block, 0)
        peak = max(peak, float(np.abs(block).max()))
        power = np.mean(np.square(block, dtype=np.float64), axis=1)
        energy += float(power.sum())
        edges = np.arange(0, len(power), tenth)
        counts = np.minimum(tenth, len(power) - edges)
        quiet += int(np.sum(np.add.reduceat(power, edges) / counts < _SILENCE**2))
        tenths += len(edges)
        for start in range(0, len(block), _SPECTRUM_SAMPLES * _SPECTRUM_EVERY):
            piece = block[start : start + _SPECTRUM_SAMPLES]
            window = np.kaiser(len(piece), _KAISER_BETA)[:, np.newaxis]
            transform = np.fft.rfft(piece * window, _SPECTRUM_SAMPLES, axis=0)
            spectrum += np.mean(np.abs(transform) ** 2, axis=1)
    audible = np.flatnonzero(spectrum > spectrum.max() * _BANDWIDTH_RANGE)
    return TargetStatistics(
        peak=peak,
        loudness_db=max(QUIETEST_DB, 10 * float(np.log10(energy / info.samples + 1e-30))),
        silence_fraction=quiet / tenths,
        bandwidth_hz=float(audible[-1] * info.sample_rate / _SPECTRUM_SAMPLES) if len(audible) else 0.0,
        non_finite=non_finite,
    )


def check_fits(samples: Sequence[Sample], profile: ModelProfile, excerpt_seconds: float | None = None) -> None:
    """Hold samples against what a model expects.

    Args:
        samples: to train on, or to validate with.
        profile: of the model.
        excerpt_seconds: shortest length that a sample may have; None for any.

    Raises:
        InputError: a line for each rate or channel count other than the profile's, and for each
            sample shorter than an excerpt.
    """
    problems = [] if excerpt_seconds is None else too_short(samples, excerpt_seconds)
    others: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.sample_rate != profile.sample_rate:
            others[
                f"{sample.sample_rate} Hz, the profile has {profile.sample_rate}; "
                f"set model.sample_rate={sample.sample_rate} or resample the files"
            ].append(sample)
        if sample.channels != profile.channels:
            others[
                f"{sample.channels} channels, the profile has {profile.channels}; "
                f"set model.channels={sample.channels} or convert the files"
            ].append(sample)
    for problem, those in others.items():
        more = f" and {len(those) - 1} more" if len(those) > 1 else ""
        problems.append(f"{os.path.join(those[0].split, those[0].id)}{more}: {problem}")
    if problems:
        raise InputError("\n".join(problems))


def too_short(samples: Sequence[Sample], excerpt_seconds: float) -> list[str]:
    """Return a line for each sample that is shorter than an excerpt."""
    return [
        f"{os.path.join(sample.split, sample.id)}: {sample.length / sample.sample_rate:.2f} s long, an excerpt takes "
        f"{excerpt_seconds:g} s ({sample.length} of {wanted} samples); "
        "shorten train.excerpt_seconds or remove the sample"
        for sample in samples
        if sample.length < (wanted := round(excerpt_seconds * sample.sample_rate))
    ]
