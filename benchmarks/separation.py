"""Time of separating a piece, against Open-Unmix with the same weights on the same cores; and cost of chunking.

    python -m benchmarks.separation --open-unmix-python PYTHON [--seconds 60] [--file MUSIC] [--niter 0 1]
                                    [--repeat 5] [--threads 2] [--hidden-size 512] [--work FOLDER]
    python -m benchmarks.separation --work FOLDER [...]                # ours alone, as while optimising
    python -m benchmarks.separation --model NAME [--seconds 60] [--file MUSIC] [--niter 0 1] [--threads 2]
    python -m benchmarks.separation --chunking DATABASE/SPLIT --model FOLDER [--chunk-seconds 10 60] [--niter 0 1]

PYTHON is one of an environment with openunmix 1.3.0, a CPU build of PyTorch and NumPy (not torchaudio).
Weights are random; they are made and converted once and kept in FOLDER, with Open-Unmix's estimates, with
which ours are compared even when run alone. Both programs are held to the same cores, in processes of their
own, and run in turns, never at once.

The first form prints the median seconds of each program and their ratio; what the first call costs on top
(tracing, compiling); the relative RMS difference of the estimates, which includes what chunking does; and
the floor: the seconds that the network's matrix products alone would take at the rate of large ones.

The third form times a model by itself, as `umx-pro separate` would run it but for reading and writing files.

The last form joins the samples of a split end to end, separates their sum in chunks and undivided, and
prints by how many dB their SDR differs (BSSEval v4, median over 1 s windows).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from umx_model.inference.separator import Separator

Waveform = npt.NDArray[np.float32]

SAMPLE_RATE = 44100
WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "open_unmix.py")


def main() -> None:
    """Run one of the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open-unmix-python", metavar="PYTHON")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--file", help="44.1 kHz stereo to separate, instead of tones and noise")
    parser.add_argument("--niter", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--work", metavar="FOLDER")
    parser.add_argument("--chunking", metavar="DATABASE/SPLIT")
    parser.add_argument("--model", metavar="FOLDER")
    parser.add_argument("--chunk-seconds", type=float, nargs="+", default=[10.0, 60.0])
    options = parser.parse_args()
    # Before TensorFlow counts the cores; the other program inherits it.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    if options.chunking:
        if not options.model:
            parser.error("--chunking needs --model")
        compare_chunking(options.chunking, options.model, options.chunk_seconds, options.niter)
        return
    if options.model:
        time_model(options)
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or scratch
        if not options.open_unmix_python and not os.path.exists(os.path.join(work, "open-unmix")):
            parser.error("--open-unmix-python is needed to make the weights")
        compare_programs(options, work)


def compare_programs(options: argparse.Namespace, work: str) -> None:
    """Time both programs in turns."""
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"WARNING: the machine is busy (load average {load:.1f}), which slows OpenMP, so Open-Unmix, most")
    os.makedirs(work, exist_ok=True)
    checkpoints, folder = os.path.join(work, "open-unmix"), os.path.join(work, "model")
    if not os.path.exists(checkpoints):
        arguments = [WORKER, "weights", checkpoints, str(options.hidden_size)]
        subprocess.run([options.open_unmix_python, *arguments], check=True)
    imported, umx_model = timed(lambda: __import__("umx_model.convert.open_unmix"))
    if not os.path.exists(folder):
        umx_model.convert.open_unmix.convert_open_unmix(checkpoints, folder)
    mixture = read(options.file, options.seconds) if options.file else synthetic(options.seconds)
    piece = os.path.join(work, "mixture.npy")
    np.save(piece, mixture)
    seconds = len(mixture) / SAMPLE_RATE
    flop, rate = network_flop(len(mixture), options.hidden_size), matrix_rate()
    print(
        f"{seconds:.1f} s stereo, 4 targets, hidden {options.hidden_size}, {options.threads} threads\n"
        f"floor: {flop / 1e9:.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s = {flop / rate:.2f} s"
    )
    theirs = OpenUnmix(options.open_unmix_python, checkpoints) if options.open_unmix_python else None
    for niter in options.niter:
        output = os.path.join(work, f"open-unmix-niter{niter}-{len(mixture)}.npy")
        request = {"mixture": piece, "niter": niter}
        loaded, separator = timed(functools.partial(umx_model.load_separator, folder, niter=niter))
        run = _Separation(separator, mixture)
        first, their_first = run(), theirs.separate({**request, "output": output}) if theirs else 0.0
        times, their_times = [], []
        for _ in range(options.repeat):
            times.append(run())
            if theirs:
                their_times.append(theirs.separate(request))
        median = statistics.median(times)
        print(
            f"niter {niter}: ours       {median:6.2f} s ({listed(times)}), {seconds / median:.0f}x real time, "
            f"{median * rate / flop:.2f}x floor; first call +{first - median:.1f} s, loading {loaded:.1f} s"
            + (f", import {imported:.1f} s" if niter == options.niter[0] else "")
        )
        if theirs:
            their_median = statistics.median(their_times)
            print(
                f"         Open-Unmix {their_median:6.2f} s ({listed(their_times)}), "
                f"first call +{their_first - their_median:.1f} s\n         ratio      {their_median / median:6.2f}"
            )
        if os.path.exists(output):
            print("         difference: " + difference(run.estimates, np.load(output), separator.targets), flush=True)
    if theirs:
        theirs.close()


def time_model(options: argparse.Namespace) -> None:
    """Time one model."""
    import umx_model as umx

    mixture = read(options.file, options.seconds) if options.file else synthetic(options.seconds)
    seconds = len(mixture) / SAMPLE_RATE
    for niter in options.niter:
        run = _Separation(umx.load_separator(options.model, niter=niter), mixture)
        first, times = run(), [run() for _ in range(options.repeat)]
        median = statistics.median(times)
        print(
            f"niter {niter}: {seconds:.1f} s of audio in {median:.2f} s ({listed(times)}), "
            f"{seconds / median:.0f}x real time; first call +{first - median:.1f} s"
        )


class _Separation:
    """Separates a piece when called, and returns the seconds that it took."""

    def __init__(self, separator: Separator, mixture: Waveform) -> None:
        self.separator = separator
        self.mixture = mixture
        self.estimates: Waveform

    def __call__(self) -> float:
        seconds, estimates = timed(lambda: self.separator.separate(self.mixture))
        self.estimates = np.stack([estimates[target] for target in self.separator.targets], axis=-1)
        return seconds


class OpenUnmix:
    """Open-Unmix in a process of its own, which sleeps unless asked."""

    def __init__(self, python: str, checkpoints: str) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        self._process = subprocess.Popen(
            [python, WORKER, "separate", checkpoints],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        print(f"Open-Unmix: {self._answer()}")

    def separate(self, request: dict[str, Any]) -> float:
        """Return the seconds that a separation took; see `open_unmix.answer`."""
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()["seconds"]

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("Open-Unmix ended; its message is above")
        return json.loads(line)


def compare_chunking(split: str, model: str, chunk_seconds: list[float], niters: list[int]) -> None:
    """Print how chunked estimates differ from those of the undivided piece."""
    import umx_model as umx
    from umx_model.data import audio
    from umx_model.data.track_folder import read_database
    from umx_model.evaluation.bss_eval import track_score, windowed_sdr
    from umx_model.model.folder import read_model

    root, name = os.path.split(split.rstrip("/"))
    for niter in niters:
        whole, profile = read_model(model, niter=niter)
        targets = profile.model.targets
        samples = read_database(root or ".", targets, splits=[name])[name]
        references = np.concatenate(
            [np.stack([audio.read(sample.files[target].path) for target in targets], axis=-1) for sample in samples]
        )
        mixture = references.sum(axis=-1)
        undivided = whole(mixture[np.newaxis]).numpy()[0]
        scores = track_score(windowed_sdr(references, undivided))
        print(f"niter {niter}: {len(mixture) / profile.model.sample_rate:.0f} s of {len(samples)} samples, SDR in dB")
        print(f"{'target':>14} {'undivided':>9}" + "".join(f"   {length:g} s chunks" for length in chunk_seconds))
        columns = []
        for length in chunk_seconds:
            run = _Separation(umx.load_separator(model, niter=niter, chunk_seconds=length), mixture)
            run()
            change = track_score(windowed_sdr(references, run.estimates)) - scores
            columns.append((change, track_score(windowed_sdr(undivided, run.estimates))))
        for index, target in enumerate(targets):
            cells = [f" {change[index]:+.3f} ({close[index]:4.0f} dB)" for change, close in columns]
            print(f"{target:>14} {scores[index]:9.2f}" + "".join(cells), flush=True)
    print("in brackets: the undivided estimates over their difference to the chunked ones")


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call took, and its result."""
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


def listed(times: list[float]) -> str:
    """Every measurement, fastest first."""
    return " ".join(f"{seconds:.2f}" for seconds in sorted(times))


def synthetic(seconds: float) -> Waveform:
    """Tones that come and go and noise bursts, differing between the channels; `[samples, 2]`."""
    generator = np.random.default_rng(0)
    moments = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    audio = 0.003 * generator.standard_normal((len(moments), 2))
    for _ in range(20):
        pitch, beat, pan = generator.uniform(50, 4000), generator.uniform(0.3, 3), generator.uniform(0.1, 1, 2)
        audio += 0.05 * (np.sin(2 * np.pi * pitch * moments) * np.exp(-3 * (moments % beat)))[:, np.newaxis] * pan
    audio += 0.1 * np.exp(-20 * (moments % 0.5))[:, np.newaxis] * generator.standard_normal(audio.shape)
    return audio.astype(np.float32)


def read(path: str, seconds: float) -> Waveform:
    """Return a stereo file at 44.1 kHz, repeated or cut to so many seconds."""
    from umx_model.data import audio

    info = audio.probe(path)
    if (info.sample_rate, info.channels) != (SAMPLE_RATE, 2):
        sys.exit(f"{path}: expected {SAMPLE_RATE} Hz stereo")
    return np.resize(audio.read(path), (round(seconds * SAMPLE_RATE), 2))


def network_flop(samples: int, hidden: int) -> float:
    """Operations in the matrix products of four networks as `open_unmix.py` makes them."""
    frames, bins, read_bins, channels, layers, units = 1 + samples // 1024, 2049, 1487, 2, 3, hidden // 2
    lstm = layers * 2 * 4 * units * (hidden + units)
    products = channels * read_bins * hidden + lstm + 2 * hidden * hidden + hidden * channels * bins
    return 4.0 * frames * 2 * products


def matrix_rate(size: int = 2048) -> float:
    """Operations per second of large float32 matrix products in TensorFlow, at their best."""
    import tensorflow as tf

    a, b = tf.random.normal([size, size]), tf.random.normal([size, size])
    return 2.0 * size**3 / min(timed(lambda: tf.matmul(a, b).numpy())[0] for _ in range(12))


def difference(estimates: Waveform, reference: Waveform, targets: tuple[str, ...]) -> str:
    """Relative RMS difference per target, for `[samples, channels, targets]`."""
    error = np.sqrt(np.mean(np.square(estimates - reference), axis=(0, 1)))
    level = np.sqrt(np.mean(np.square(reference), axis=(0, 1)))
    return ", ".join(f"{target} {ratio:.1e}" for target, ratio in zip(targets, error / level, strict=True))


if __name__ == "__main__":
    main()
