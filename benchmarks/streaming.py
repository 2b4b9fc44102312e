"""Real-time factor of live separation: the time per block against the block's duration.

    python -m benchmarks.streaming [--block 1024] [--seconds 20] [--model DIR] [--hidden 512] [--targets 4]

Below 1 the machine keeps up; the slowest block tells how much must be buffered so that nothing drops
out. Without a model, one of the usual size with random weights; times do not depend on the weights.
"""

from __future__ import annotations

import argparse
import os
import time

import umx_model  # noqa: F401  (sets TensorFlow up as the package uses it)

import numpy as np  # isort: skip
from umx_model.inference.streaming import StreamingSeparator
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.model.umx import UMX
from umx_model.profile import ModelProfile


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", type=int, default=1024, help="samples pushed at a time")
    parser.add_argument("--seconds", type=float, default=20.0, help="of noise to separate")
    parser.add_argument("--model", help="folder of a unidirectional model", metavar="DIR")
    parser.add_argument("--hidden", type=int, default=512, help="hidden size without a model")
    parser.add_argument("--targets", type=int, default=4, help="number of targets without a model")
    options = parser.parse_args()

    began = time.perf_counter()
    targets = tuple(f"target{index}" for index in range(options.targets))
    profile = ModelProfile(targets=targets, hidden_size=options.hidden, unidirectional=True)
    separator = StreamingSeparator(options.model or UMX(get_joint_spectral_filter(profile)))
    profile, rate = separator.profile, separator.sample_rate
    shape = (int(options.seconds * rate) // options.block * options.block, separator.channels)
    if not shape[0]:
        parser.error("--seconds must be at least one block")
    mixture = np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)
    separator.push(mixture[: 2 * profile.n_fft])
    separator.flush()
    print(
        f"{len(separator.targets)} targets, hidden size {profile.hidden_size}, {separator.channels} channels at "
        f"{rate} Hz, {os.cpu_count()} cores; ready after {time.perf_counter() - began:.1f} s"
    )

    times = []
    for position in range(0, len(mixture), options.block):
        began = time.perf_counter()
        separator.push(mixture[position : position + options.block])
        times.append(time.perf_counter() - began)
    block_seconds = options.block / rate
    median, slow, slowest = np.quantile(times, [0.5, 0.99, 1.0])
    print(f"latency           {separator.latency} samples, {1000 * separator.latency / rate:.1f} ms")
    print(f"blocks            {options.block} samples, {1000 * block_seconds:.1f} ms each")
    print(f"time per block    median {1000 * median:.1f} ms, 99 % {1000 * slow:.1f} ms, most {1000 * slowest:.1f} ms")
    print(f"real-time factor  {sum(times) / (len(times) * block_seconds):.3f}")


if __name__ == "__main__":
    main()
