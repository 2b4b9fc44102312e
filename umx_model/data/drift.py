"""Has a database drifted from an older one? Held against each other by what was measured of them.

Per target, the distributions over samples of loudness, peak, silence, bandwidth and cutoff are compared, and
over samples that of the length. A difference is told where it is both

* beyond chance: the two-sample Kolmogorov-Smirnov statistic D, the greatest distance between the two
  distribution functions, exceeds 1.95 sqrt((n + m) / (n m)), its 99.9 % point for n and m samples (Smirnov, 1948);
* large enough to matter: the earth mover's distance, the area between the two functions, which says how far values
  moved on average and in their own unit, exceeds a limit (1 dB, say).

The first alone would tell of hundredths of a decibel between databases of thousands of samples; the second alone of
any two handfuls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from umx_model.data.measure import QUIETEST_DB, TargetStatistics
from umx_model.data.report import CheckedSample, DatabaseReport

_SIGNIFICANT = 1.949  # sqrt(-ln(0.001 / 2) / 2)
_SHARE = 0.1  # by which the part of samples with some rate, channel count or format may change


@dataclass(frozen=True)
class Difference:
    """How a figure differs between two databases.

    Attributes:
        what: the figure, `vocals loudness`.
        unit: of it.
        old: median in the old database.
        new: median in the new one.
        moved: earth mover's distance, in `unit`.
        distance: Kolmogorov-Smirnov statistic, 0 to 1.
        critical: what `distance` must exceed to be beyond chance.
        drifted: whether the difference is beyond chance, and large.
    """

    what: str
    unit: str
    old: float
    new: float
    moved: float
    distance: float
    critical: float
    drifted: bool


@dataclass(frozen=True)
class Drift:
    """What `compare` found.

    Attributes:
        differences: of all figures, drifted or not.
        warnings: one line for each drift, in figures, kinds of files, targets or splits.
        added: samples that only the new database has, `train/song`.
        removed: those that only the old one has.
        changed: those whose audio differs.
    """

    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


@dataclass(frozen=True)
class _Figure:
    name: str
    unit: str
    limit: float  # of the earth mover's distance
    value: Callable[[TargetStatistics, float], float]  # of the statistics and the sample rate


_FIGURES = (
    _Figure("loudness", "dB", 1.0, lambda found, _: found.loudness_db),
    _Figure("peak", "dB", 1.0, lambda found, _: max(QUIETEST_DB, 20 * float(np.log10(found.peak + 1e-30)))),
    _Figure("silence", "%", 5.0, lambda found, _: 100 * found.silence_fraction),
    _Figure("bandwidth", "kHz", 0.5, lambda found, _: found.bandwidth_hz / 1000),
    _Figure("cutoff", "kHz", 0.5, lambda found, rate: (found.cutoff_hz or rate / 2) / 1000),
)
_LENGTH_LIMIT = 0.1  # of the old median


def compare(new: DatabaseReport, old: DatabaseReport) -> Drift:
    """Hold a database against an older one; see the module."""
    differences = [*_figures(new, old)]
    warnings = [
        f"{one.what}: median {one.new:.1f} {one.unit}, was {one.old:.1f}; values moved by {one.moved:.1f} "
        f"{one.unit} (D = {one.distance:.2f})"
        for one in differences
        if one.drifted
    ]
    before, now = ({sample.name: sample for sample in report.samples} for report in (old, new))
    return Drift(
        differences=tuple(differences),
        warnings=(*_targets(new, old), *_splits(new, old), *_kinds(new, old), *warnings),
        added=tuple(name for name in now if name not in before),
        removed=tuple(name for name in before if name not in now),
        changed=tuple(name for name in now if name in before and _content(now[name]) != _content(before[name])),
    )


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the two-sample Kolmogorov-Smirnov statistic of values `[n]` and `[m]`."""
    places, first, second = _distribution_functions(a, b)
    return float(np.max(np.abs(first - second))) if len(places) else 0.0


def earth_movers_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Wasserstein-1 distance of values `[n]` and `[m]`, in their unit."""
    places, first, second = _distribution_functions(a, b)
    return float(np.sum(np.abs(first - second)[:-1] * np.diff(places)))


def _distribution_functions(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All values, sorted, and the part of `a` and of `b` up to each."""
    places = np.sort(np.concatenate([a, b]))
    first, second = (np.searchsorted(np.sort(values), places, side="right") / len(values) for values in (a, b))
    return places, first, second


def _figures(new: DatabaseReport, old: DatabaseReport) -> Iterator[Difference]:
    lengths = [np.array([sample.seconds for sample in report.samples if sample.length]) for report in (old, new)]
    if all(map(len, lengths)):
        yield _difference("length", "s", _LENGTH_LIMIT * float(np.median(lengths[0])), *lengths)
    for target in new.targets:
        if target not in old.targets:
            continue
        for figure in _FIGURES:
            values = [
                np.array(
                    [
                        figure.value(sample.statistics[target], sample.sample_rate)
                        for sample in report.samples
                        if target in sample.statistics and sample.sample_rate
                    ]
                )
                for report in (old, new)
            ]
            if all(map(len, values)):
                yield _difference(f"{target} {figure.name}", figure.unit, figure.limit, *values)


def _difference(what: str, unit: str, limit: float, old: np.ndarray, new: np.ndarray) -> Difference:
    distance, moved = ks_distance(old, new), earth_movers_distance(old, new)
    critical = _SIGNIFICANT * float(np.sqrt((len(old) + len(new)) / (len(old) * len(new))))
    return Difference(
        what=what,
        unit=unit,
        old=float(np.median(old)),
        new=float(np.median(new)),
        moved=moved,
        distance=distance,
        critical=critical,
        drifted=bool(distance > critical and moved > limit),
    )


def _targets(new: DatabaseReport, old: DatabaseReport) -> Iterator[str]:
    if set(new.targets) != set(old.targets):
        yield f"targets: {', '.join(sorted(new.targets))}; were {', '.join(sorted(old.targets))}"


def _splits(new: DatabaseReport, old: DatabaseReport) -> Iterator[str]:
    now, before = (Counter(sample.split for sample in report.samples) for report in (new, old))
    for split, count in before.items():
        if 2 * now[split] < count:
            yield f"{split}: {now[split]} samples, were {count}"


def _kinds(new: DatabaseReport, old: DatabaseReport) -> Iterator[str]:
    """A line for each rate, channel count or format that other parts of the samples have than before."""
    kinds: dict[str, Callable[[CheckedSample], list[str]]] = {
        "sample rate": lambda sample: [f"{sample.sample_rate} Hz"],
        "channels": lambda sample: [str(sample.channels)],
        "format": lambda sample: list(sample.formats.values()),
    }
    for what, values in kinds.items():
        shares = []
        for report in (old, new):
            counts = Counter(value for sample in report.samples if sample.sample_rate for value in values(sample))
            shares.append({value: count / counts.total() for value, count in counts.items()})
        before, now = shares
        for value in sorted({*before, *now}):
            share, was = now.get(value, 0.0), before.get(value, 0.0)
            if before and now and abs(share - was) > _SHARE:
                yield f"{what} {value}: {share:.0%} of the files, were {was:.0%}"


def _content(sample: CheckedSample) -> list[tuple[str, str]]:
    return sorted((target, found.content) for target, found in sample.statistics.items())
