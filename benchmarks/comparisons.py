"""What a change of the model, the loss or the data is worth, in equal time.

    python -m benchmarks.comparisons DATABASE --work FOLDER [--profile FILE] [--minutes 10] [--seeds 42 43]
                                     [--only NAME ...] [--more DATABASE]

trains PROFILE (the one of `vocals-accompaniment` by default) with what so short a time suits (hidden size 256, squared
errors, batches of 16, targets drawn apart, no refiner), and with one thing changed at a time, each for so many minutes,
one after the other, with the learning rate along half a cosine. Prints a line for each in Markdown: epochs, the best
validation loss (of `decibels` in dB, so not to be compared), and the median SDR of whole validation excerpts, with EM.

`--more` names another database, whose training samples are joined to those of the first in the comparison
`more data`. Trainings that have ended stay in FOLDER and are not repeated.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.shipped_models import score, separated
from umx_model.data.track_folder import Sample, read_database
from umx_model.inference.restore import load_separator
from umx_model.inference.separator import Separator
from umx_model.model.folder import WEIGHTS
from umx_model.model.spectral_filter import BLSTMSpectralFilterLayer, register_spectral_filter
from umx_model.profile import Profile
from umx_model.train.trainer import train

HERE = os.path.dirname(os.path.abspath(__file__))
PROFILE = os.path.join(os.path.dirname(HERE), "examples", "profiles", "vocals-accompaniment.json")

BASE = {
    "model.hidden_size": 256,
    "model.refiner_channels": 0,
    "train.floor_db": None,
    "train.learning_rate": 2e-3,
    "train.batch_size": 16,
    "train.random_track_mix": True,
}
MORE = "more data"
CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "decibels": {"train.floor_db": -30.0},
    "X-UMX objective": {"train.combination_loss": True, "train.sdr_weight": 10.0},
    "X-UMX bridges": {"model.bridges": True},
    "refiner": {"model.refiner_channels": 16},
    "log magnitudes": {"model.architecture": "blstm-log"},
    "learning rate 0.001": {"train.learning_rate": 1e-3},
    "hidden size 128": {"model.hidden_size": 128},
    "hidden size 384": {"model.hidden_size": 384},
    "hidden size 512": {"model.hidden_size": 512},
    "hop 1024": {"model.hop_length": 1024},
    "batch size 8": {"train.batch_size": 8},
    "dropout 0.4": {"model.dropout": 0.4},
    "no changes of speed": {"train.speed_range": None},
    "no silent targets": {"train.silent_targets": 0.0},
    "targets of one song": {"train.random_track_mix": False},
    MORE: {},
}


@register_spectral_filter("blstm-log")
class LogBLSTM(BLSTMSpectralFilterLayer):
    """Reads the logarithm of magnitudes, standardised per bin."""

    FLOOR = 0.01  # of magnitudes: below -90 dB of full scale

    def set_input_statistics(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Standardise logarithms whose spread is that of music: close to Rayleigh's within a bin, and level besides."""
        self.input_mean.assign(0.5 - np.log(np.maximum(mean[: self.max_bin], self.FLOOR)))
        self.input_scale.assign(np.full(self.max_bin, 1 / 1.2))

    def encode(self, magnitude: tf.Tensor, training: bool) -> tf.Tensor:
        """Crop, standardise the logarithm, and encode."""
        return super().encode(tf.math.log(tf.maximum(magnitude, self.FLOOR)), training)


def main() -> None:
    """Run the comparisons that have not been run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database")
    parser.add_argument("--work", required=True, metavar="FOLDER")
    parser.add_argument("--profile", default=PROFILE, metavar="FILE")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES), metavar="NAME")
    parser.add_argument("--more", metavar="DATABASE")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # in this process
    arguments = parser.parse_args()
    if arguments.alone:
        run(arguments.database, arguments.work, arguments.profile, arguments.minutes, *arguments.seeds, *arguments.only)
        return
    names = [name for name in arguments.only if name != MORE or arguments.more]
    print("| change | seed | epochs | validation loss | SDR in dB |\n| --- | --- | --- | --- | --- |", flush=True)
    for name in names:
        for seed in arguments.seeds:
            folder = os.path.join(arguments.work, f"{name} {seed}".replace(" ", "-"))
            data = f"{arguments.database},{arguments.more}" if name == MORE else arguments.database
            command = [sys.executable, "-m", "benchmarks.comparisons", data, "--alone", "--work", folder]
            command += ["--profile", arguments.profile, "--minutes", str(arguments.minutes)]
            if not os.path.exists(os.path.join(folder, WEIGHTS)):
                subprocess.run([*command, "--seeds", str(seed), "--only", name], check=True)
            print(describe(name, seed, folder, arguments.database), flush=True)


def run(databases: str, folder: str, profile_file: str, minutes: float, seed: int, name: str) -> None:
    """Train once."""
    first, *others = databases.split(",")
    budget = {"train.max_minutes": minutes, "train.decay": "cosine", "train.epochs": 10**6, "train.patience": 10**6}
    profile = Profile.read(profile_file).updated({**budget, **BASE, "train.seed": seed, **CHANGES[name]})
    if profile.model.architecture != "blstm":
        profile = profile.updated({"model.normalize_level": False})
    samples: dict[str, tuple[Sample, ...]] = dict(read_database(first, profile.mixture_targets))
    for other in others:
        samples["train"] += read_database(other, profile.mixture_targets)["train"]
    train(profile, samples, folder, quiet=True)


def describe(name: str, seed: int, folder: str, database: str) -> str:
    """Return a line about a training."""
    history = Profile.read(folder).history
    best = min(entry["valid_loss"] for entry in history)
    separator = load_separator(folder)
    scores = median_sdr(separator, read_database(database, separator.targets)["valid"])
    decibels = ", ".join(f"{target} {score:.2f}" for target, score in scores.items())
    return f"| {name} | {seed} | {len(history)} | {best:.3f} | {decibels} |"


def median_sdr(separator: Separator, samples: Sequence[Sample]) -> dict[str, float]:
    """Return the median SDR of whole samples per target, in dB."""
    _, whole = score(functools.partial(separated, separator), samples, separator.targets)
    return whole


if __name__ == "__main__":
    main()
