"""Peak memory of separating a long file: the same for an hour as for eight.

    python -m benchmarks.memory [--hours 1] [--model DIR] [--hidden 16] [--format wav] [--channels 2]

Generates a file of so many hours (16-bit wav), separates it into files and prints the peak of resident memory and
how fast it was. Without a model, a small one of the usual four targets with random weights: memory hardly
depends on the weights (28 MB per target at hidden size 512). Disk needed: 2 bytes per sample of the
mixture, 4 per sample of each stem, and the stems.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile

import umx_model  # noqa: F401  (sets TensorFlow up as the package uses it)

import numpy as np  # isort: skip
from umx_model.data import audio
from umx_model.inference.restore import as_separator, load_separator
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.model.umx import UMX
from umx_model.profile import ModelProfile
from umx_model.progress import ProgressBar

TARGETS = ("vocals", "drums", "bass", "other")
RATE = 44100


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0, help="length of the file")
    parser.add_argument("--channels", type=int, default=2, help="of the file")
    parser.add_argument("--model", help="a model to use", metavar="DIR")
    parser.add_argument("--hidden", type=int, default=16, help="hidden size without a model")
    parser.add_argument("--niter", type=int, default=1, help="EM iterations")
    parser.add_argument("--format", default="wav", help="of the stems")
    parser.add_argument("--bit-depth", help="of the stems")
    parser.add_argument("--folder", help="where to work; the system's temporary folder by default", metavar="DIR")
    options = parser.parse_args()

    if options.model:
        separator = load_separator(options.model, niter=options.niter)
    else:
        profile = ModelProfile(targets=TARGETS, hidden_size=options.hidden)
        separator = as_separator(UMX(get_joint_spectral_filter(profile), niter=options.niter))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = os.path.join(folder, "song.wav")
        write_song(path, round(options.hours * 3600 * RATE), options.channels)
        before = peak()
        done = 0.0
        with ProgressBar("separating", total=options.hours * 3600, unit="s of audio") as bar:

            def progress(seconds: float, total: float) -> None:
                nonlocal done
                bar.advance(seconds - done)
                done = seconds

            result = separator.separate_file(
                path, folder, stem_format=options.format, bit_depth=options.bit_depth, progress=progress
            )
        size = sum(os.path.getsize(file) for file in result.stems.values())
    print(f"audio        {options.hours:g} h, {options.channels} channels at {RATE} Hz -> {size / 1e9:.1f} GB of stems")
    print(f"time         {result.seconds:.0f} s, {result.audio_seconds / result.seconds:.1f} times real time")
    print(f"peak memory  {peak() / 1e6:.0f} MB, {before / 1e6:.0f} MB of it before separating")


def write_song(path: str, samples: int, channels: int) -> None:
    """Write tones and bursts of noise that never repeat."""
    generator = np.random.default_rng(0)
    with audio.create(path, RATE, channels, samples=samples) as file:
        for start in range(0, samples, RATE):
            seconds = (start + np.arange(min(RATE, samples - start)))[:, np.newaxis] / RATE
            tones = 0.2 * np.sin(2 * np.pi * generator.uniform(100, 2000, channels) * seconds)
            bursts = 0.1 * np.exp(-20 * (seconds % 0.5)) * generator.standard_normal((len(seconds), channels))
            file.write((tones + bursts).astype(np.float32))


def peak() -> float:
    """Return the most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


if __name__ == "__main__":
    main()
