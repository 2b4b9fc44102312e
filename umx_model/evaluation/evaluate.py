"""Scoring estimates: those of a model on the samples of a database, or any others.

    tracks = [evaluate_sample(separator, sample)[0] for sample in samples]
    print(table(tracks))                     # a line per target
    columns(tracks)["SDR"]                   # {"vocals": 5.2, "drums": 4.1}

What is scored is what `umx_model.evaluation.bss_eval` and `whole_track` define, on windows of 1 s one after
the other. The mixture taken for each target is scored, too: it is what doing nothing gets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from umx_model.data import audio
from umx_model.data.track_folder import Sample
from umx_model.errors import InputError
from umx_model.evaluation.bss_eval import bss_eval, windowed_sdr
from umx_model.evaluation.excerpts import best_and_worst
from umx_model.evaluation.scores import METRICS, SDR, Excerpt, TrackScores, summarize, summarize_mixture
from umx_model.evaluation.whole_track import mdx_sdr, si_sdr
from umx_model.inference.separator import Separator
from umx_model.inference.stems import REST

Waveforms = npt.NDArray[np.floating]
Figures = npt.NDArray[np.float64]
Evaluated = tuple[TrackScores, list[Excerpt]]

# To be quoted with every figure: other aggregations of the same estimates differ by decibels.
METRIC = "BSSEval v4 in dB: median over samples of the median over 1 s windows"

# Of the time that a sample takes; the rest is for its scores.
_SEPARATION_SHARE = 0.8


def score_track(
    name: str,
    references: Waveforms,
    estimates: Waveforms,
    targets: Sequence[str],
    sample_rate: int,
    mixture: Waveforms | None = None,
    metrics: Sequence[str] = METRICS,
) -> TrackScores:
    """Score the estimates of one track.

    Args:
        name: of the track.
        references: true targets, `[samples, channels, targets]`.
        estimates: `[samples, channels, targets]`; cut, or padded with zeros, to the references' length.
        targets: names, in the order of the last axis.
        sample_rate: Hz; also the length of a window in samples.
        mixture: `[samples, channels]`; the sum of the references if None.
        metrics: which of `METRICS`; SDR alone takes a tenth of the time.

    Raises:
        ValueError: shapes that do not match, or non-finite audio.
    """
    if mixture is None:
        mixture = references.sum(axis=-1)
    windows = windowed_sdr if set(metrics) <= {SDR} else bss_eval
    figures = windows(references, estimates, sample_rate, sample_rate)
    by_metric = figures if isinstance(figures, dict) else {SDR: figures}
    unseparated = np.broadcast_to(mixture[..., np.newaxis], references.shape)
    return TrackScores(
        name=name,
        targets=tuple(targets),
        windows={metric: by_metric[metric] for metric in METRICS if metric in {SDR, *metrics}},
        mixture=windowed_sdr(references, unseparated, sample_rate, sample_rate),
        si_sdr=si_sdr(references, estimates),
        mdx_sdr=mdx_sdr(references, estimates),
    )


def evaluate_sample(
    separator: Separator,
    sample: Sample,
    progress: Callable[[float, float], None] | None = None,
    metrics: Sequence[str] = METRICS,
    pair: str | None = None,
    excerpts: bool = True,
) -> Evaluated:
    """Separate the sum of a sample's stems and score the estimates.

    Args:
        separator: the model to score.
        sample: a sample with every target of the model; targets that the model does not have are
            part of the mixture only.
        progress: called now and then with the seconds of audio done and their total.
        metrics: as in `score_track`.
        pair: as in `evaluate_stems`.
        excerpts: as in `evaluate_stems`.

    Returns:
        As `evaluate_stems`.

    Raises:
        InputError: a target is missing or a file cannot be read, the model does not take the sample, or there
            is no such pair.
    """
    targets = separator.targets
    stems = read_stems(sample, targets)
    if pair is not None:
        _rest(sample.id, pair, targets, stems.shape[-1])  # refused before the work rather than after it
    seconds = sample.length / sample.sample_rate
    report = progress or (lambda done, total: None)
    estimates = separator.separate(
        stems.sum(axis=-1), sample.sample_rate, lambda done, total: report(_SEPARATION_SHARE * done, total)
    )
    stacked = np.stack([estimates[target] for target in targets], axis=-1)
    del estimates
    evaluated = evaluate_stems(sample.id, stems, stacked, targets, sample.sample_rate, metrics, pair, excerpts)
    report(seconds, seconds)
    return evaluated


def evaluate_stems(
    name: str,
    stems: Waveforms,
    estimates: Waveforms,
    targets: Sequence[str],
    sample_rate: int,
    metrics: Sequence[str] = METRICS,
    pair: str | None = None,
    excerpts: bool = True,
) -> Evaluated:
    """Score the estimates of one track, and cut out what is worth listening to.

    With `pair`, that target and the rest of the mixture are scored as museval's `eval_mus_track` does it: their
    figures are those of a track of just these two, the figures of the other targets those of the track without
    the rest. The rest is called `accompaniment` beside vocals, else `no_<target>`. Its estimate is the sum of
    the other estimates or, where the mixture holds more than the targets, what the estimate of the target
    leaves of the mixture. Two targets that make up the mixture are a pair as they are.

    Args:
        name: of the track.
        stems: all that its mixture is the sum of, `[samples, channels, stems]`, the targets first.
        estimates: of the targets, `[samples, channels, targets]`; cut or padded as in `score_track`.
        targets: names, in the order of the estimates.
        sample_rate: Hz.
        metrics: as in `score_track`.
        pair: the target to score against all the rest, as `vocals`; None for no pair.
        excerpts: whether to cut out and encode what is worth listening to, which takes a second or two.

    Returns:
        The scores; and excerpts of 5 s around the best and the worst window of each target.

    Raises:
        InputError: `pair` is no target, has no rest, or the rest would have the name of a target.
        ValueError: as `score_track`.
    """
    references, mixture = stems[..., : len(targets)], stems.sum(axis=-1)
    missing = max(0, len(stems) - len(estimates))
    estimates = np.pad(estimates[: len(stems)], ((0, missing), (0, 0), (0, 0))) if missing else estimates[: len(stems)]
    complete = stems.shape[-1] == len(targets)

    def evaluate(references: Waveforms, estimates: Waveforms, targets: Sequence[str]) -> Evaluated:
        scores = score_track(name, references, estimates, targets, sample_rate, mixture, metrics)
        return scores, best_and_worst(scores, references, estimates, mixture, sample_rate) if excerpts else []

    if pair is None:
        return evaluate(references, estimates, targets)
    rest = _rest(name, pair, targets, stems.shape[-1])
    if complete and len(targets) == 2:
        return evaluate(references, estimates, targets)
    index = list(targets).index(pair)
    others = np.delete(estimates, index, axis=-1).sum(axis=-1) if complete else mixture - estimates[..., index]
    two = evaluate(
        np.stack([references[..., index], mixture - references[..., index]], axis=-1),
        np.stack([estimates[..., index], others], axis=-1),
        (pair, rest),
    )
    return two if len(targets) == 1 else _merged(evaluate(references, estimates, targets), two, index)


def read_stems(sample: Sample, first: Sequence[str]) -> npt.NDArray[np.float32]:
    """Read all stems of a sample, `[samples, channels, stems]`, some of them first.

    Raises:
        InputError: a stem of `first` is missing, a file cannot be read or holds non-finite values.
    """
    missing = [target for target in first if target not in sample.files]
    if missing:
        raise InputError(f"{sample.id}: lacks {', '.join(missing)}, which the model estimates")
    names = [*first, *(target for target in sample.files if target not in first)]
    stems = np.empty((sample.length, sample.channels, len(names)), np.float32)
    for index, name in enumerate(names):
        stems[..., index] = read_finite(sample.files[name].path)
    return stems


def read_finite(path: str) -> npt.NDArray[np.float32]:
    """Read an audio file, `[samples, channels]`.

    Raises:
        InputError: it cannot be read or holds non-finite values.
    """
    waveform = audio.read(path)
    if not np.isfinite(waveform).all():
        raise InputError(f"{path}: holds NaN or infinite values; replace the file")
    return waveform


def columns(
    tracks: Sequence[TrackScores], baseline: Sequence[TrackScores] | None = None
) -> dict[str, dict[str, float]]:
    """Return the scores of a database in dB, figure to target to value; NaN for none.

    Figures are the metrics, each the median over tracks of the median over windows; `mixture`, the SDR that the
    mixtures themselves get, and `gain`, how far the SDR is above it; and where there is a baseline, its SDR as
    `baseline` and how far the SDR is above that as `change`.
    """
    figures = {metric: summarize(tracks, metric) for metric in tracks[0].windows}
    figures["mixture"] = summarize_mixture(tracks)
    figures["gain"] = _difference(figures[SDR], figures["mixture"])
    if baseline is not None:
        figures["baseline"] = summarize(baseline)
        figures["change"] = _difference(figures[SDR], figures["baseline"])
    return figures


def table(tracks: Sequence[TrackScores], baseline: Sequence[TrackScores] | None = None) -> str:
    """Return the `columns` of a database as lines of text, one per target; a dash stands for no score."""
    figures = columns(tracks, baseline)
    width = max(len(target) for target in [*tracks[0].targets, "target"])
    lines = [f"{'target':<{width}}" + "".join(f"  {name:>8}" for name in figures)]
    for target in tracks[0].targets:
        cells = (_shown(name, values.get(target, math.nan)) for name, values in figures.items())
        lines.append(f"{target:<{width}}" + "".join(f"  {cell:>8}" for cell in cells))
    return "\n".join(lines)


def _difference(scores: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    return {target: score - others.get(target, math.nan) for target, score in scores.items()}


def _shown(column: str, value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.2f}" if column in ("gain", "change") else f"{value:.2f}"


def _rest(name: str, pair: str, targets: Sequence[str], stems: int) -> str:
    """Return what the rest is called beside a target."""
    if pair not in targets:
        raise InputError(f"pair {pair}: no such target; there are {', '.join(targets)}")
    if stems < 2:
        raise InputError(f"{name}: holds nothing but {pair}, so there is no pair to score")
    rest = "accompaniment" if pair == "vocals" else REST.format(pair)
    if rest in targets and (stems, len(targets)) != (2, 2):
        raise InputError(f"pair {pair}: the rest would be called {rest}, as one of the targets is; leave the pair out")
    return rest


def _merged(all_targets: Evaluated, two: Evaluated, index: int) -> Evaluated:
    """Put the figures of a pair in the place of those of its target, and at the end."""
    (scores, excerpts), (pair, of_pair) = all_targets, two

    def merged(figures: Figures, both: Figures) -> Figures:
        figures = np.concatenate([figures, both[..., 1:]], axis=-1)
        figures[..., index] = both[..., 0]
        return figures

    return TrackScores(
        name=scores.name,
        targets=(*scores.targets, pair.targets[1]),
        windows={metric: merged(figures, pair.windows[metric]) for metric, figures in scores.windows.items()},
        mixture=merged(scores.mixture, pair.mixture),
        si_sdr=merged(scores.si_sdr, pair.si_sdr),
        mdx_sdr=merged(scores.mdx_sdr, pair.mdx_sdr),
    ), [excerpt for excerpt in excerpts if excerpt.target != pair.targets[0]] + of_pair
