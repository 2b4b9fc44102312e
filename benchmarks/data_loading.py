"""Excerpts per second of the data pipeline, against reading alone and against Open-Unmix's; its memory and start-up.

    python -m benchmarks.data_loading [--open-unmix-python PYTHON] [--data DIR] [--formats wav16,wav24,flac,ogg]
                                      [--seconds 6] [--excerpts 100] [--repeat 3] [--threads 2]
                                      [--many-excerpts 10000] [--samples 10000]

For each format the same excerpts of four targets are read from the same files, with all augmentations, by
  ours         FixedSourcesTrackFolderDataset,
  soundfile    soundfile alone, opening, seeking and reading float32 in a pool of as many threads: a ceiling
               for whoever decodes with libsndfile; nothing is summed, scaled or kept,
and, for wav files, by
  Open-Unmix   its FixedSourcesTrackFolderDataset in a DataLoader with two worker processes, by PYTHON of an
               environment with openunmix 1.3.0, PyTorch and soundfile, which reads in place of torchaudio.
All are held to the same cores and run in turns, never at once; the files are in the page cache. Without --data
(a database whose train samples are converted), music-like stems are generated.

Then memory: the peak after 1000 excerpts of 1 s and after `--many-excerpts`; and start-up: the time to the first
excerpt, and the memory, of a database of `--samples` tiny samples. 0 leaves a part out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile as sf

WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "open_unmix_data.py")
TARGETS = ("vocals", "drums", "bass", "other")
RATE = 44100
FORMATS = {"wav16": ("wav", "PCM_16"), "wav24": ("wav", "PCM_24"), "flac": ("flac", "PCM_16"), "ogg": ("ogg", "VORBIS")}
# A draw of pieces: path, first sample and length, for each target of each excerpt.
Pieces = list[list[tuple[str, int, int]]]


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open-unmix-python", metavar="PYTHON")
    parser.add_argument("--data", metavar="DIR")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--seconds", type=float, default=6.0, help="length of an excerpt")
    parser.add_argument("--excerpts", type=int, default=100, help="per turn")
    parser.add_argument("--repeat", type=int, default=3, help="turns")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--many-excerpts", type=int, default=10_000, help="for the part on memory")
    parser.add_argument("--samples", type=int, default=10_000, help="for the part on start-up")
    parser.add_argument("--part", choices=("memory", "start-up"), help=argparse.SUPPRESS)
    parser.add_argument("--database", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # before TensorFlow counts the cores
    if options.part == "memory":
        measure_memory(options.database, options.many_excerpts)
        return
    if options.part == "start-up":
        measure_start(options.database)
        return
    if (load := os.getloadavg()[0]) > 0.5:
        print(f"WARNING: the machine is busy (load average {load:.1f})")
    with tempfile.TemporaryDirectory() as work:
        originals = read_stems(options.data) if options.data else generate_stems()
        print(f"excerpts per second ({options.seconds:g} s stereo, 4 targets, {options.threads} cores)")
        for name in options.formats.split(","):
            root = Path(work, name)
            write_database(root, originals, *FORMATS[name])
            compare(name, root, options)
            if name != "wav16":
                shutil.rmtree(root)
        # In processes of their own, whose memory is theirs alone.
        if options.many_excerpts:
            root = Path(work, "wav16")
            if not root.exists():
                write_database(root, originals, *FORMATS["wav16"])
            run_part("memory", root, "--many-excerpts", str(options.many_excerpts))
        if options.samples:
            root = Path(work, "many")
            write_many(root, options.samples)
            run_part("start-up", root)


def compare(name: str, root: Path, options: argparse.Namespace) -> None:
    """Measure one format in turns and print a line."""
    import umx_model as umx

    dataset = umx.FixedSourcesTrackFolderDataset(root, "train", TARGETS, options.seconds)
    excerpts = iter(dataset)
    pieces = draw_pieces(dataset, options.excerpts, options.seconds)
    theirs = None
    if options.open_unmix_python and FORMATS[name][0] == "wav":
        theirs = _OpenUnmix(options.open_unmix_python, root, options.seconds)
    rates: dict[str, list[float]] = {"ours": [], "soundfile": [], "Open-Unmix": []}
    with ThreadPoolExecutor(options.threads) as pool:
        for turn in range(options.repeat + 1):  # the first one warms up
            # What was read ahead while the others had their turn is not counted.
            for _ in islice(excerpts, 2 * options.threads + 2):
                pass
            began = time.perf_counter()
            for _ in islice(excerpts, options.excerpts):
                pass
            ours = options.excerpts / (time.perf_counter() - began)
            time.sleep(0.3)  # until reading ahead is over
            began = time.perf_counter()
            for _ in pool.map(read_pieces, pieces):
                pass
            alone = options.excerpts / (time.perf_counter() - began)
            others = theirs.read(options.excerpts) if theirs else 0.0
            if turn:
                for who, rate in zip(rates, (ours, alone, others), strict=True):
                    rates[who].append(rate)
    if theirs:
        theirs.close()
    ours, alone, others = (statistics.median(values) for values in rates.values())
    line = f"{name:6s} ours {ours:6.1f}   soundfile alone {alone:6.1f} (ours {100 * ours / alone:.0f} % of it)"
    print(line + (f"   Open-Unmix {others:6.1f} (ours {ours / others:.1f}x)" if theirs else ""), flush=True)


def draw_pieces(dataset: object, excerpts: int, seconds: float) -> Pieces:
    """Draw pieces as the dataset does: for every target an independent sample and start."""
    generator = np.random.default_rng(0)
    length = round(seconds * RATE)
    drawn = []
    for _ in range(excerpts):
        chosen = [dataset.samples[generator.integers(len(dataset.samples))] for _ in TARGETS]  # type: ignore[attr-defined]
        drawn.append(
            [
                (sample.files[target].path, int(generator.integers(sample.length - length + 1)), length)
                for sample, target in zip(chosen, TARGETS, strict=True)
            ]
        )
    return drawn


def read_pieces(pieces: list[tuple[str, int, int]]) -> list[np.ndarray]:
    """Read the pieces of an excerpt with soundfile, and do nothing else."""
    waveforms = []
    for path, start, length in pieces:
        with sf.SoundFile(path) as file:
            file.seek(start)
            waveforms.append(file.read(length, dtype="float32", always_2d=True))
    return waveforms


class _OpenUnmix:
    """The other program, which waits while others have their turn."""

    def __init__(self, python: str, root: Path, seconds: float) -> None:
        self._process = subprocess.Popen(
            [python, WORKER, str(root), ",".join(TARGETS), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def read(self, excerpts: int) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{excerpts}\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline())["rate"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def generate_stems(samples: int = 6, seconds: float = 120.0) -> list[dict[str, np.ndarray]]:
    """Make music-like stems float32 `[samples, 2]`, which compress about as music does."""
    generator = np.random.default_rng(0)
    time_axis = np.arange(round(seconds * RATE)) / RATE
    made = []
    for _ in range(samples):
        stems = {}
        for target in TARGETS:
            pitch = generator.uniform(40, 90) if target == "bass" else generator.uniform(150, 500)
            phase = 2 * np.pi * pitch * (time_axis + 0.02 * np.sin(2 * np.pi * 0.4 * time_axis))
            tone = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 9)) * 0.1
            beat = np.exp(-12 * (time_axis % generator.uniform(0.2, 0.5)))
            noise = generator.standard_normal((len(time_axis), 2)) * (0.2 if target == "drums" else 0.02)
            stems[target] = (
                (tone + noise.T).T * beat[:, np.newaxis] if target == "drums" else (tone + noise.T).T
            ) * 0.5
            stems[target] = stems[target].astype(np.float32)
        made.append(stems)
    return made


def read_stems(data: str) -> list[dict[str, np.ndarray]]:
    """Read the train samples of a database."""
    from umx_model.data import audio
    from umx_model.data.track_folder import read_database

    samples = read_database(data, TARGETS, ("train",))["train"]
    return [{target: audio.read(sample.files[target].path) for target in TARGETS} for sample in samples]


def write_database(root: Path, originals: list[dict[str, np.ndarray]], extension: str, subtype: str) -> None:
    """Write stems in a format."""
    from umx_model.data import audio

    for index, stems in enumerate(originals):
        folder = root / "train" / f"sample{index:02d}"
        folder.mkdir(parents=True)
        for target, waveform in stems.items():
            audio.write(folder / f"{target}.{extension}", waveform, RATE, subtype)


def write_many(root: Path, samples: int) -> None:
    """Write a database of tiny samples, of which most files are hard links."""
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, (4000, 2))
    for index in range(samples):
        folder = root / "train" / f"sample{index:05d}"
        folder.mkdir(parents=True)
        for target in TARGETS:
            path = folder / f"{target}.wav"
            if index % 1000:
                os.link(root / "train" / f"sample{index // 1000 * 1000:05d}" / path.name, path)
            else:
                sf.write(path, waveform, RATE)


def run_part(part: str, root: Path, *options: str) -> None:
    """Measure something in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.data_loading", "--part", part, "--database", str(root), *options]
    subprocess.run(command, check=True)


def measure_memory(root: str, excerpts: int) -> None:
    """Print the peak of resident memory after few and after many excerpts."""
    import umx_model as umx

    dataset = umx.FixedSourcesTrackFolderDataset(root, "train", TARGETS, excerpt_seconds=1.0)
    peaks = {}
    for number, _ in enumerate(dataset.take(excerpts), 1):
        if number in (1000, excerpts):
            peaks[number] = peak()
    print("memory: " + ", ".join(f"{megabytes:.0f} MB after {number} excerpts" for number, megabytes in peaks.items()))


def measure_start(root: str) -> None:
    """Print how long the first excerpt of a large database takes, and the memory."""
    import umx_model as umx

    before = peak()
    began = time.perf_counter()
    dataset = umx.FixedSourcesTrackFolderDataset(root, "train", TARGETS, excerpt_seconds=0.05)
    excerpts = iter(dataset)
    next(excerpts)
    seconds = time.perf_counter() - began
    first = peak()
    for _ in islice(excerpts, 10_000):
        pass
    print(
        f"{len(dataset.samples)} samples: first excerpt after {seconds:.1f} s; "
        f"memory {before:.0f} MB before, {first:.0f} MB then, {peak():.0f} MB after 10000 excerpts"
    )


def peak() -> float:
    """Return the peak of resident memory in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
