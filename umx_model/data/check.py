"""Deep checks: is every second of a sample's audio usable, and do samples fit a profile?"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np

from umx_model.data.audio import AudioInfo, stream
from umx_model.data.measure import Measurement, TargetStatistics
from umx_model.data.track_folder import Path, Sample, inspect_sample, list_sample_folders
from umx_model.errors import InputError
from umx_model.profile import ModelProfile

__all__ = ["SampleCheck", "TargetStatistics", "check_fits", "check_sample", "list_sample_folders"]


@dataclass(frozen=True)
class SampleCheck:
    """What `check_sample` found.

    Attributes:
        sample: None where there are problems.
        problems: one line each.
        statistics: by target, of the files that could be read.
        mixture_peak: greatest magnitude of the targets' sum; None where a file could not be read.
    """

    sample: Sample | None
    problems: list[str] = field(default_factory=list)
    statistics: dict[str, TargetStatistics] = field(default_factory=dict)
    mixture_peak: float | None = None


def check_sample(
    root: Path, split: str, name: str, targets: Sequence[str], progress: Callable[[float], None] | None = None
) -> SampleCheck:
    """Read all audio of one sample, all targets side by side, block by block.

    Args:
        root: the database.
        split: of the sample.
        name: of its folder.
        targets: names of all targets.
        progress: called with the part of the sample that was read since the last call. What it raises ends
            the check.

    Returns:
        The sample with statistics of each file, or the problems: those of `inspect_sample`, and
        truncated, corrupt and non-finite audio.
    """
    sample, problems = inspect_sample(root, split, name, targets)
    if sample is None:
        return SampleCheck(None, problems)
    readers = {target: _Reader(info) for target, info in sample.files.items()}
    mixture_peak = 0.0
    for blocks in zip_longest(*readers.values()):
        there = [block for block in blocks if block is not None]
        if len(there) == len(readers) and len({len(block) for block in there}) == 1:  # else one is truncated
            mixture_peak = max(mixture_peak, float(np.abs(np.sum(there, axis=0)).max()))
        if progress is not None:
            progress(max(len(block) for block in there) / sample.length)
    statistics = {}
    for target, reader in readers.items():
        if reader.problem:
            problems.append(reader.problem)
            continue
        statistics[target] = reader.measurement.result()
        if count := statistics[target].non_finite:
            problems.append(f"{reader.info.path}: {count} values are NaN or infinite; replace the file")
    whole = len(statistics) == len(readers)
    return SampleCheck(None if problems else sample, problems, statistics, mixture_peak if whole else None)


class _Reader:
    """Reads and measures a file, up to where it cannot be read.

    Attributes:
        info: of the file.
        measurement: of what was read.
        problem: that ended the reading, if any.
    """

    def __init__(self, info: AudioInfo) -> None:
        self.info = info
        self.measurement = Measurement(info.sample_rate)
        self.problem = ""

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the blocks, with zeros in place of what is not finite."""
        try:
            for block in stream(self.info.path, self.measurement.block_samples):
                yield self.measurement.add(block)
        except InputError as problem:
            self.problem = str(problem)


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
        "shorten train.excerpt_seconds (or lower train.speed_range, where it is set) or remove the sample"
        for sample in samples
        if sample.length < (wanted := round(excerpt_seconds * sample.sample_rate))
    ]
