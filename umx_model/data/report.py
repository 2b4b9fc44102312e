"""A database checked in one pass: every problem, every oddity, and what its audio is like.

report = check_database("music")
report.problems        # training would refuse these
report.warnings        # worth knowing
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from umx_model.data.check import SampleCheck, check_sample
from umx_model.data.measure import TargetStatistics
from umx_model.data.track_folder import SPLITS, found_targets, list_sample_folders
from umx_model.errors import InputError
from umx_model.profile import TrainProfile
from umx_model.progress import ProgressBar

FORMAT = "umx-pro check-data 1"

_THREADS = 4  # libsndfile, NumPy and hashing mostly run outside Python's lock
_CLIPPING = 1e-5  # part of the values; less is common in loud music
_DC_OFFSET = 0.01
_MIXTURE_PEAK = 1.0001
_LOWEST_PEAK = 1e-4  # -80 dB: below, a file counts as silent


@dataclass(frozen=True)
class CheckedSample:
    """A sample and what was found in it.

    Attributes:
        split: `train`, `valid` or `test`.
        id: the folder's name.
        sample_rate: Hz; 0 where the sample cannot be used.
        channels: the same.
        length: samples per channel; the same.
        formats: by target, `WAV/PCM_16`.
        statistics: by target, of the files that could be read.
        mixture_peak: greatest magnitude of the targets' sum, if known.
    """

    split: str
    id: str
    sample_rate: int
    channels: int
    length: int
    formats: dict[str, str]
    statistics: dict[str, TargetStatistics]
    mixture_peak: float | None

    @property
    def name(self) -> str:
        """Split and folder."""
        return f"{self.split}/{self.id}"

    @property
    def seconds(self) -> float:
        """Length; 0 where the sample cannot be used."""
        return self.length / self.sample_rate if self.sample_rate else 0.0


@dataclass(frozen=True)
class DatabaseReport:
    """What `check_database` found.

    Attributes:
        data: the database.
        targets: of every sample.
        problems: for which training would refuse the database, one line each.
        warnings: what is worth knowing, one line each.
        samples: in order.
    """

    data: str
    targets: tuple[str, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    samples: tuple[CheckedSample, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document that `from_json` reads."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, document: Any, source: str) -> DatabaseReport:
        """Read what `to_json` returned.

        Raises:
            InputError: it is something else.
        """
        try:
            if document["format"] != FORMAT:
                raise KeyError
            samples = [
                CheckedSample(
                    **{
                        **sample,
                        "statistics": {
                            target: TargetStatistics(**figures) for target, figures in sample["statistics"].items()
                        },
                    }
                )
                for sample in document["samples"]
            ]
            return cls(
                document["data"],
                tuple(document["targets"]),
                tuple(document["problems"]),
                tuple(document["warnings"]),
                tuple(samples),
            )
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{source}: not a report of `umx-pro check-data --json`; make it again") from None


def check_database(data: str, targets: Sequence[str] | None = None, quiet: bool = False) -> DatabaseReport:
    """Read all audio of a database, a few samples at a time, and report all that is wrong with it.

    Problems are those of `check_sample`, splits that are missing or empty, and samples that differ from most
    in rate or channels. Warnings are about clipping, cutoffs, offsets, silence, mixtures beyond full scale,
    samples shorter than an excerpt of the default length, and audio that is there twice, above all in two splits.

    Args:
        data: the database, local or anything that `tf.io.gfile` opens.
        targets: of every sample; None for those of most samples.
        quiet: show no progress bar.

    Raises:
        InputError: there is no such folder, it is empty, or no target is in most samples.
    """
    folders, problems = _find_folders(data)
    targets = tuple(targets) if targets else tuple(found_targets(data, sorted({split for split, _ in folders})))
    samples: list[CheckedSample] = []
    for (split, name), check in zip(folders, _check_all(data, folders, targets, quiet), strict=True):
        problems += check.problems
        samples.append(_checked(split, name, check))
    problems += _misfits(samples)
    problems += _nothing_to_hear(samples)
    return DatabaseReport(data, targets, tuple(problems), tuple(_warnings(samples)), tuple(samples))


def _find_folders(data: str) -> tuple[list[tuple[str, str]], list[str]]:
    """List the samples of all splits, and what is wrong with splits."""
    try:
        return list_sample_folders(data), []
    except InputError as error:
        problems = str(error).splitlines()
    folders: list[tuple[str, str]] = []
    for split in SPLITS:
        try:
            folders += list_sample_folders(data, [split])
        except InputError:
            continue
    if not folders:
        raise InputError("\n".join(problems))
    return folders, problems


def _check_all(
    data: str, folders: Sequence[tuple[str, str]], targets: Sequence[str], quiet: bool
) -> Iterator[SampleCheck]:
    """Check samples in parallel; yield in order. On Ctrl-C, threads stop at their next block."""
    stop, done = threading.Event(), [0.0] * len(folders)

    def check(index: int) -> SampleCheck:
        def progress(part: float) -> None:
            if stop.is_set():
                raise InterruptedError
            done[index] += part

        found = check_sample(data, *folders[index], targets, progress)
        done[index] = 1.0
        return found

    with ProgressBar("checking", len(folders), "samples", quiet) as bar, ThreadPoolExecutor(_THREADS) as pool:
        try:
            futures: list[Future[SampleCheck]] = [pool.submit(check, index) for index in range(len(folders))]
            shown = 0.0
            for (_, name), future in zip(folders, futures, strict=True):
                while not future.done():
                    bar.advance(sum(done) - shown, name)
                    shown = sum(done)
                    wait([future], timeout=0.2)
                yield future.result()
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _checked(split: str, name: str, check: SampleCheck) -> CheckedSample:
    sample = check.sample
    return CheckedSample(
        split=split,
        id=name,
        sample_rate=sample.sample_rate if sample else 0,
        channels=sample.channels if sample else 0,
        length=sample.length if sample else 0,
        formats={target: info.format for target, info in sample.files.items()} if sample else {},
        statistics=check.statistics,
        mixture_peak=check.mixture_peak,
    )


def _misfits(samples: Sequence[CheckedSample]) -> Iterator[str]:
    """A line for each sample of another rate or channel count than most."""
    usable = [sample for sample in samples if sample.sample_rate]
    kinds = Counter((sample.sample_rate, sample.channels) for sample in usable)
    if len(kinds) < 2:
        return
    (rate, channels), count = kinds.most_common(1)[0]
    for sample in usable:
        if (sample.sample_rate, sample.channels) != (rate, channels):
            yield (
                f"{sample.name}: {sample.sample_rate} Hz, {sample.channels} channels; {count} of {len(usable)} samples "
                f"have {rate} Hz, {channels}; convert its files"
            )


def _nothing_to_hear(samples: Sequence[CheckedSample]) -> Iterator[str]:
    heard = [sample.mixture_peak for sample in samples if sample.split == "train" and sample.mixture_peak is not None]
    if heard and not any(heard):
        yield "train: all mixtures are silent; there is nothing to learn from them"


def _warnings(samples: Sequence[CheckedSample]) -> Iterator[str]:
    yield from _duplicates(samples)
    yield from _short(samples)
    for sample in samples:
        for target, found in sample.statistics.items():
            for oddity in _oddities(found):
                yield f"{sample.name}/{target}: {oddity}"
        if sample.mixture_peak is not None and sample.mixture_peak > _MIXTURE_PEAK:
            yield (
                f"{sample.name}: the sum of the targets reaches {sample.mixture_peak:.2f} "
                f"({20 * np.log10(sample.mixture_peak):+.1f} dB): it would clip in a file of integers"
            )


def _oddities(found: TargetStatistics) -> Iterator[str]:
    if found.peak < _LOWEST_PEAK:
        yield "silent from beginning to end"
        return
    if found.clipping > _CLIPPING:
        yield f"clips: {found.clipping:.3%} of its values are in flat runs at full scale"
    if found.cutoff_hz:
        yield (
            f"sharp cut at {found.cutoff_hz / 1000:.1f} kHz: looks like a lossy original, or one of a lower sample rate"
        )
    if found.dc_offset > _DC_OFFSET:
        yield f"its mean is {found.dc_offset:.3f} off zero (DC offset)"


def _short(samples: Sequence[CheckedSample]) -> Iterator[str]:
    """One line about the train samples that are shorter than an excerpt of the default length."""
    excerpt = TrainProfile().excerpt_seconds
    short = [sample for sample in samples if sample.split == "train" and 0 < sample.seconds < excerpt]
    if short:
        shortest = min(short, key=lambda sample: sample.seconds)
        yield (
            f"train: {_count(short, 'sample')} shorter than an excerpt of {excerpt:g} s, the shortest {shortest.name} "
            f"with {shortest.seconds:.2f} s: shorten train.excerpt_seconds to train on them"
        )


def _duplicates(samples: Sequence[CheckedSample]) -> Iterator[str]:
    """A line for each set of places that hold the same audio; those in several splits first."""
    places: dict[str, list[tuple[CheckedSample, str]]] = defaultdict(list)
    for sample in samples:
        for target, found in sample.statistics.items():
            if found.peak > 0:
                places[found.content].append((sample, target))
    shared: dict[tuple[str, ...], list[str]] = defaultdict(list)  # names of samples -> targets
    splits: dict[tuple[str, ...], set[str]] = {}
    within = []
    for same in places.values():
        homes = tuple(dict.fromkeys(sample.name for sample, _ in same))
        targets = list(dict.fromkeys(target for _, target in same))
        if len(homes) > 1:
            shared[homes].append("/".join(targets))
            splits[homes] = {sample.split for sample, _ in same}
        elif len(same) > 1:
            within.append(f"{homes[0]}: {' and '.join(targets)} are the same audio")
    for homes in sorted(shared, key=lambda homes: len(splits[homes]) < 2):
        line = f"{' and '.join(homes)}: the same audio ({', '.join(shared[homes])})"
        leak = f": what is trained on must not be in {' or '.join(sorted(splits[homes] - {'train'}))}"
        yield line + (leak if len(splits[homes]) > 1 and "train" in splits[homes] else "")
    yield from within


def _count(items: Sequence[object], noun: str) -> str:
    return f"1 {noun} is" if len(items) == 1 else f"{len(items)} {noun}s are"
