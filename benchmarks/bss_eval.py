"""BSSEval v4 against museval: the same figures, and how much sooner.

    python -m benchmarks.bss_eval [--seconds 60] [--targets 4] [--channels 2] [--repeat 3]

Scores made-up stems, and estimates of them that leak and are noisy, with `museval.evaluate(mode="v4")`, with
`umx_model.evaluation.bss_eval` and with its SDR alone. Each runs in processes of its own, in turns, so that all see
the same machine; printed are the fastest run of each, the peak of its memory, and the largest difference from
museval's figures. Takes a minute a round on two cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import sys
import time
import types
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np

RATE = 44100
METRICS = ("SDR", "ISR", "SIR", "SAR")
Scores = dict[str, np.ndarray]


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of audio")
    parser.add_argument("--targets", type=int, default=4)
    parser.add_argument("--channels", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3, help="rounds; the fastest counts")
    options = parser.parse_args()

    shape = (round(options.seconds * RATE), options.channels, options.targets)
    seconds: dict[str, float] = {}
    peaks: dict[str, float] = {}
    scores: dict[str, Scores] = {}
    for _ in range(options.repeat):
        for name in ("museval", "bss_eval", "SDR alone"):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                scores[name], took, peak = pool.submit(measure, name, shape).result()
            seconds[name] = min(took, seconds.get(name, took))
            peaks[name] = max(peak, peaks.get(name, peak))

    print(f"{options.targets} targets, {options.channels} channels, {options.seconds:g} s at {RATE} Hz")
    for name in seconds:
        difference = max(np.nanmax(np.abs(scores[name][metric] - scores["museval"][metric])) for metric in scores[name])
        print(
            f"{name:10} {seconds[name]:8.2f} s {seconds['museval'] / seconds[name]:7.1f} times museval's speed, "
            f"peak memory {peaks[name]:5.0f} MB, at most {difference:.1e} dB from museval"
        )


def measure(name: str, shape: tuple[int, int, int]) -> tuple[Scores, float, float]:
    """Return the scores, the seconds that they took, and the peak of memory in MB, the audio included."""
    score = prepare(name)
    references, estimates = stems(shape)
    started = time.perf_counter()
    scores = score(references, estimates)
    return scores, time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def prepare(name: str) -> Callable[[np.ndarray, np.ndarray], Scores]:
    """Import what is measured, and nothing else."""
    if name == "museval":
        if shutil.which("ffmpeg") is None:
            # museval imports musdb, which refuses to be imported without ffmpeg; MUSDB18 is not read here.
            sys.modules["musdb"] = types.ModuleType("musdb")
        import museval

        def score(references: np.ndarray, estimates: np.ndarray) -> Scores:
            figures = museval.evaluate(np.moveaxis(references, -1, 0), np.moveaxis(estimates, -1, 0), mode="v4")
            return {metric: figure.T for metric, figure in zip(METRICS, figures, strict=True)}

        return score
    from umx_model.evaluation.bss_eval import bss_eval, windowed_sdr

    if name == "bss_eval":
        return bss_eval
    return lambda references, estimates: {"SDR": windowed_sdr(references, estimates)}


def stems(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Make references and estimates, float32 `[samples, channels, targets]`."""
    generator = np.random.default_rng(0)
    references = generator.standard_normal(shape, np.float32)
    references *= 0.1
    estimates = references + 0.2 * np.roll(references, 1, axis=2) + 0.1 * np.roll(references, 7, axis=0)
    for block in np.array_split(estimates, 100):
        block += 0.02 * generator.standard_normal(block.shape, np.float32)
    return references, estimates


if __name__ == "__main__":
    main()
