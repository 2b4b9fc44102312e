"""What a listener would try on a model of vocals and accompaniment.

    python -m benchmarks.listening MODEL DATABASE/valid [--instrumentals FOLDER]

Prints

* the level of the vocals' estimate for instrumental music (the samples' accompaniments, and the audio files below
  FOLDER), and of the accompaniment's for singing alone, relative to the input: medians over pieces, in dB;
* by how much SDR changes where the input is 20 dB quieter, and the estimates are made louder again;
* by how much it changes where the input is mono, or at 22.05 kHz, and the references are so, too.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import soundfile as sf

from umx_model import load_separator
from umx_model.data.resampling import resample
from umx_model.data.track_folder import Sample, read_database
from umx_model.evaluation.evaluate import read_stems
from umx_model.evaluation.whole_track import mdx_sdr
from umx_model.inference.separator import Separator

Waveform = npt.NDArray[np.float32]

VOCALS, ACCOMPANIMENT = "vocals", "accompaniment"
_LONGEST = 30  # seconds of an instrumental piece, from its middle


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("split")
    parser.add_argument("--instrumentals", metavar="FOLDER")
    arguments = parser.parse_args()
    separator = load_separator(arguments.model)
    root, name = os.path.split(os.path.abspath(arguments.split))
    stems = [read_stems(sample, (VOCALS, ACCOMPANIMENT)) for sample in _samples(root, name)]
    rate = separator.sample_rate

    leaks = [leak(separator, sample[..., 1:].sum(axis=-1), rate, VOCALS) for sample in stems]
    print(f"vocals in {len(leaks)} accompaniments: {_summary(leaks)}")
    if arguments.instrumentals:
        leaks = [leak(separator, *piece, VOCALS) for piece in pieces(arguments.instrumentals)]
        print(f"vocals in {len(leaks)} instrumental pieces: {_summary(leaks)}")
    leaks = [leak(separator, sample[..., 0], rate, ACCOMPANIMENT) for sample in stems]
    print(f"accompaniment of {len(leaks)} voices alone: {_summary(leaks)}")

    plain = median_sdr(separator, stems, rate)
    print(f"SDR of whole excerpts, median: {_decibels(plain)}")
    quiet = median_sdr(separator, [0.1 * sample for sample in stems], rate)
    print(f"20 dB quieter: {_decibels(quiet - plain, '+')}")
    mono = median_sdr(separator, [sample.mean(axis=1, keepdims=True) for sample in stems], rate)
    print(f"mono: {_decibels(mono - plain, '+')}")
    low = median_sdr(separator, [_at(sample, rate, 22050) for sample in stems], 22050)
    print(f"22.05 kHz: {_decibels(low - plain, '+')}")


def leak(separator: Separator, mixture: Waveform, rate: int, target: str) -> float:
    """Return the level of a target's estimate relative to the mixture, in dB."""
    estimate = separator.separate(mixture, rate)[target]
    return float(10 * np.log10(np.sum(np.square(estimate)) / np.sum(np.square(mixture)) + 1e-12))


def median_sdr(separator: Separator, stems: Sequence[Waveform], rate: int) -> npt.NDArray[np.float64]:
    """Return the median SDR of whole samples, vocals and accompaniment."""
    scores = []
    for sample in stems:
        estimates = separator.separate(sample.sum(axis=-1), rate)
        # Of quiet music, the figure's epsilon would be heard.
        gain = np.float32(1 / np.abs(sample).max())
        stacked = np.stack([estimates[VOCALS], estimates[ACCOMPANIMENT]], axis=-1)
        scores.append(mdx_sdr(gain * sample, gain * stacked))
    return np.asarray(np.median(scores, axis=0))


def pieces(folder: str) -> Iterator[tuple[Waveform, int]]:
    """Yield the middle of each audio file below a folder, and its rate."""
    for path, _, files in sorted(os.walk(folder)):
        for file in sorted(files):
            with sf.SoundFile(os.path.join(path, file)) as sound:
                length = min(sound.frames, _LONGEST * sound.samplerate)
                sound.seek((sound.frames - length) // 2)
                yield sound.read(length, dtype="float32", always_2d=True), sound.samplerate


def _samples(root: str, split: str) -> Sequence[Sample]:
    return read_database(root, splits=(split,))[split]


def _at(stems: Waveform, rate: int, wanted: int) -> Waveform:
    return np.stack([resample(stems[..., index], rate, wanted) for index in range(stems.shape[-1])], axis=-1)


def _summary(leaks: Sequence[float]) -> str:
    return f"median {np.median(leaks):.1f} dB, from {min(leaks):.1f} to {max(leaks):.1f} dB"


def _decibels(figures: npt.NDArray[np.float64], sign: str = "") -> str:
    return f"vocals {figures[0]:{sign}.2f} dB, accompaniment {figures[1]:{sign}.2f} dB"


if __name__ == "__main__":
    main()
