"""Time of a training step of the joint model, against one Open-Unmix model per target on the same cores.

    python -m benchmarks.training_step [--open-unmix-python PYTHON] [--hidden-size 512] [--batch 16] [--seconds 6]
                                       [--targets 4] [--repeat 4] [--threads 2]

PYTHON is one of an environment with openunmix 1.3.0, a CPU build of PyTorch and NumPy (not torchaudio);
without it ours runs alone, as while optimising. A step takes waveforms and ends with updated weights:
transforms, forward, backward, weight decay, Adam; Open-Unmix's as in its `scripts/train.py`, one model
after another. The excerpts are noise and the same in every step; nothing is read. Both programs are held
to the same cores, in processes of their own, and run in two turns each, never at once.

Prints the median seconds of each program's step, their ratio, and the floor: the seconds that the network's
matrix products alone (three times those of the forward pass) would take at the rate of large ones.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.separation import SAMPLE_RATE, WORKER, matrix_rate, network_flop


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open-unmix-python", metavar="PYTHON")
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--targets", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=4, help="steps per turn")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    # Before TensorFlow counts the cores; the other program inherits it.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"WARNING: the machine is busy (load average {load:.1f}), which slows OpenMP, so Open-Unmix, most")
    shape = [options.batch, round(options.seconds * SAMPLE_RATE), 2, options.targets]
    excerpts = (0.1 * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)
    print(
        f"batch {options.batch} of {options.seconds:g} s stereo, {options.targets} targets, "
        f"hidden {options.hidden_size}, {options.threads} threads"
    )
    with tempfile.TemporaryDirectory() as work:
        path = os.path.join(work, "excerpts.npy")
        np.save(path, excerpts)
        python = options.open_unmix_python
        theirs = _OpenUnmix(python, path, options.hidden_size) if python else None
        flop = 3 * options.batch * network_flop(shape[1], options.hidden_size) * options.targets / 4
        rate = matrix_rate()
        ours = _Ours(excerpts, options.hidden_size)
        programs = [("ours", ours.step), *([("Open-Unmix", theirs.step)] if theirs else [])]
        times: dict[str, list[float]] = {name: [] for name, _ in programs}
        for turn in range(2):
            for name, step in programs:
                first = step()  # compiles, or brings back what the system has taken from a program that waits
                if turn == 0:
                    print(f"first step {first:.2f} s ({name})")
                times[name] += [step() for _ in range(options.repeat)]
        if theirs:
            theirs.close()
    print(f"floor      {flop / rate:.2f} s ({flop / 1e9:.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s)")
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, seconds in times.items():
        print(f"{name:10} {medians[name]:.2f} s (from {min(seconds):.2f} to {max(seconds):.2f})")
    if theirs:
        print(f"ratio      {medians['ours'] / medians['Open-Unmix']:.2f}")


class _Ours:
    """The joint model's step, as the trainer compiles it."""

    def __init__(self, excerpts: np.ndarray, hidden_size: int) -> None:
        import umx_model  # noqa: F401  (sets TensorFlow up as the package uses it)

        import tensorflow as tf  # isort: skip

        from umx_model.model.spectral_filter import get_joint_spectral_filter
        from umx_model.profile import Profile
        from umx_model.train.adam import make_optimizer
        from umx_model.train.steps import Steps

        targets = [f"target{index}" for index in range(excerpts.shape[-1])]
        profile = Profile.parse(
            {"model": {"targets": targets, "hidden_size": hidden_size}, "train": {"batch_size": len(excerpts)}}
        )
        spectral_filter = get_joint_spectral_filter(profile.model)
        optimizer = make_optimizer(1e-3)
        optimizer.build(spectral_filter.trainable_variables)
        self._excerpts = tf.constant(excerpts)
        steps = Steps(tf.distribute.get_strategy(), spectral_filter, optimizer, profile)
        self._step = steps.compile_train(tf.TensorSpec(excerpts.shape, tf.float32))

    def step(self) -> float:
        began = time.perf_counter()
        for result in self._step(self._excerpts):
            result.numpy()
        return time.perf_counter() - began


class _OpenUnmix:
    """The other program, which waits while ours runs."""

    def __init__(self, python: str, excerpts: str, hidden_size: int) -> None:
        self._process = subprocess.Popen(
            [python, WORKER, "train", excerpts, str(hidden_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        print(f"Open-Unmix: {self._read()}")

    def step(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return float(self._read()["seconds"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


if __name__ == "__main__":
    main()
