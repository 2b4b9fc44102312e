"""What a run takes, in hours and US dollars, at most: early stopping and caches make it less.

print("\\n".join(estimate(pipeline, {"epochs": 20}).lines()))
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from pipeline.cloud_settings import COMPONENTS, CloudSettings, Machine, Prices
from pipeline.compiled import CompiledPipeline
from umx_model.data.track_folder import list_sample_folders
from umx_model.errors import InputError
from umx_model.profile import ModelProfile, Profile

# Training speeds are in seconds of audio per second, for one target of the default model. Measured on two CPU cores:
# a step of 16 excerpts of 6 s for four targets takes 17 s.
_PER_CPU = 16 * 6 * 4 / 17 / 2
# Not measured. A second of audio takes about 2.3 GFLOP: 8.9 million weights, 43 frames, two operations each, three
# times for both directions. Recurrent layers use little of a GPU, so a twentieth of the float32 operations per second
# in NVIDIA's data sheets is reckoned with; on a CPU core the measured speed is 26 GFLOP/s.
_GFLOP = 2.3
_GPU_SHARE = 1 / 20
_GPU_GFLOPS = {
    "NVIDIA_TESLA_T4": 8_100,
    "NVIDIA_L4": 30_300,
    "NVIDIA_TESLA_V100": 15_700,
    "NVIDIA_TESLA_A100": 19_500,
    "NVIDIA_A100_80GB": 19_500,
    "NVIDIA_H100_80GB": 67_000,
}
_UNKNOWN_GPU = "NVIDIA_TESLA_T4"
# Of which forward passes, as in validation, take a third.
_FORWARD = 3

# MUSDB18's, where the database is not to be seen.
_SAMPLES = {"train": 86, "valid": 14, "test": 50}
_SAMPLE_SECONDS = 240
# Seconds of audio per second and CPU; not measured.
_READING = 50
_SCORING = 0.5
_START_MINUTES = 5


@dataclass(frozen=True)
class Part:
    """What a component takes.

    Attributes:
        name: the component's.
        hours: at most.
        machine: what it runs on.
        dollars: None where prices are not known.
    """

    name: str
    hours: float
    machine: Machine
    dollars: float | None


@dataclass(frozen=True)
class Estimate:
    """What a run takes, at most.

    Attributes:
        parts: by component, in the order of their start.
        training: what is trained, in words.
        assumptions: that it rests on, one line each.
    """

    parts: tuple[Part, ...]
    training: str
    assumptions: tuple[str, ...]

    @property
    def hours(self) -> float:
        """One component after the other."""
        return sum(part.hours for part in self.parts)

    @property
    def dollars(self) -> float | None:
        """Of all components; None where one's are not known."""
        known = [part.dollars for part in self.parts if part.dollars is not None]
        return sum(known) if len(known) == len(self.parts) else None

    def lines(self) -> list[str]:
        """Return lines that a person can check."""
        rows = [(part.name, _hours(part.hours), _machine(part.machine), _dollars(part.dollars)) for part in self.parts]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        total = f"At most {_hours(self.hours)}" + (f", {_dollars(self.dollars)}" if self.dollars is not None else "")
        return [
            f"{total}; less where training stops early or components come from the cache",
            f"  training: {self.training}",
            *(
                "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                for row in rows
            ),
            *(f"  assumed: {assumption}" for assumption in self.assumptions),
        ]


def estimate(pipeline: CompiledPipeline, parameters: Mapping[str, Any]) -> Estimate:
    """Estimate what a run takes.

    Args:
        pipeline: to run.
        parameters: values; those that are not named have their defaults.

    Raises:
        InputError: a value is none that a profile can have.
    """
    settings = pipeline.settings
    values = {name: parameter.default for name, parameter in pipeline.parameters.items()} | dict(parameters)
    profile = settings.profile.updated(
        {
            "model.targets": values["targets"],
            "train.epochs": values["epochs"],
            "train.batch_size": values["batch_size"],
            "train.excerpt_seconds": values["excerpt_seconds"],
        }
    )
    samples, assumptions = _samples(str(values["data"]))
    trainer = settings.machine_of("Trainer")
    speed, assumed_speed = _speed(profile.model, trainer)
    assumptions += [f"a sample lasts {_SAMPLE_SECONDS // 60} minutes", assumed_speed]
    seconds = dict.fromkeys(COMPONENTS, 0.0)
    seconds["Trainer"], training = _train_seconds(profile, samples, speed)
    audio = sum(samples.values()) * _SAMPLE_SECONDS
    scored = (samples["test"] or samples["valid"]) * _SAMPLE_SECONDS
    for component, work in (
        ("SampleGen", audio / _READING),
        ("StatisticsGen", audio / _READING),
        ("Evaluator", scored / _SCORING),
    ):
        seconds[component] = work / settings.machine_of(component).cpu
    assumptions.append(
        f"per CPU, reading goes {_READING} times as fast as the music plays and scoring {_SCORING:g} times, and "
        f"{_START_MINUTES} minutes pass before each component starts (not measured)"
    )
    parts = []
    for component in COMPONENTS:
        hours = seconds[component] / 3600 + _START_MINUTES / 60
        machine = settings.machine_of(component)
        parts.append(Part(component, hours, machine, _price(settings, machine, hours)))
    assumptions += _price_assumptions(settings)
    return Estimate(tuple(parts), training, tuple(assumptions))


def _samples(data: str) -> tuple[Counter[str], list[str]]:
    """Return how many samples each split has, and what was assumed."""
    try:
        # What a path means in a container is not known here.
        if "://" in data:
            return Counter(split for split, _ in list_sample_folders(data)), []
    except (InputError, OSError, tf.errors.OpError):
        pass
    numbers = ", ".join(f"{number} {split}" for split, number in _SAMPLES.items())
    return Counter(_SAMPLES), [f"samples as in MUSDB18 ({numbers}), for {data} cannot be listed from here"]


def _train_seconds(profile: Profile, samples: Counter[str], speed: float) -> tuple[float, str]:
    """Return how long training takes, and what it is, in words."""
    train = profile.train
    # Batches are whole.
    steps = math.ceil(samples["train"] * train.excerpts_per_sample / train.batch_size)
    epoch = steps * train.batch_size * train.excerpt_seconds / speed
    epoch += samples["valid"] * _SAMPLE_SECONDS / speed / _FORWARD
    words = (
        f"{train.epochs} epochs of {samples['train']} samples x {train.excerpts_per_sample} excerpts of "
        f"{train.excerpt_seconds:g} s, {len(profile.model.targets)} targets, {_hours(epoch / 3600)} each"
    )
    whole = train.epochs * epoch
    limit = math.inf if train.max_minutes is None else train.max_minutes * 60
    if limit < whole:
        words += f", stopped after {train.max_minutes:g} minutes (train.max_minutes)"
    return min(whole, limit), words


def _speed(model: ModelProfile, machine: Machine) -> tuple[float, str]:
    """Return how many seconds of audio are trained on per second, and where the figure is from."""
    share = _work(ModelProfile(targets=("one",))) / _work(model) / len(model.targets)
    if machine.gpus:
        known = machine.gpu if machine.gpu in _GPU_GFLOPS else _UNKNOWN_GPU
        speed = _GPU_GFLOPS[known] * _GPU_SHARE / _GFLOP * machine.gpus * machine.machines * share
        source = "by a data sheet, not measured" if known == machine.gpu else f"as fast as {known}, not measured"
        hardware = f"{machine.gpus * machine.machines} {machine.gpu}"
    else:
        speed = _PER_CPU * machine.cpu * machine.machines * share
        source = "as measured on two CPUs with the default model"
        hardware = f"{machine.cpu * machine.machines:g} CPUs"
    return speed, f"{hardware} train on {speed:.3g} s of audio a second ({source})"


def _work(model: ModelProfile) -> float:
    """Return multiplications per second of audio and target: those of the weights, for every frame."""
    hidden = model.hidden_size
    read = min(model.bins, int(model.bandwidth / model.sample_rate * model.n_fft) + 1)
    directions = 1 if model.unidirectional else 2
    units = hidden // directions
    recurrent = model.layers * directions * 4 * units * (hidden + units)
    dense = model.channels * (read + model.bins) * hidden + 2 * hidden * hidden
    return (recurrent + dense) * model.sample_rate / model.hop_length


def _price(settings: CloudSettings, machine: Machine, hours: float) -> float | None:
    """Return dollars; None where they are not known: a cluster of one's own has no price list."""
    prices = settings.prices
    if settings.platform == "kubeflow" and prices == Prices():
        return None
    if machine.gpus and machine.gpu not in prices.gpu_hour:
        return None
    hourly = machine.cpu * prices.cpu_hour + machine.memory_gb * prices.memory_gb_hour
    if machine.gpus:
        hourly += machine.gpus * prices.gpu_hour[machine.gpu]
    return hourly * hours * machine.machines * (prices.spot_factor if machine.spot else 1)


def _price_assumptions(settings: CloudSettings) -> list[str]:
    machines = {component: settings.machine_of(component) for component in COMPONENTS}
    lines = [
        f"{component}'s {machine.machine_type} is {machine.cpu:g} CPUs and {machine.memory_gb:g} GiB (cpu, memory_gb)"
        for component, machine in machines.items()
        if machine.machine_type
    ]
    if settings.platform == "kubeflow" and settings.prices == Prices():
        return [*lines, "no prices for this cluster; `prices` in the settings gives them"]
    unknown = {machine.gpu for machine in machines.values() if machine.gpus} - set(settings.prices.gpu_hour)
    lines += [f"no price for {gpu}; `prices.gpu_hour` in the settings gives it" for gpu in sorted(unknown)]
    return [*lines, "prices as in the settings (`prices`), without storage, network and fees"]


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min"


def _dollars(dollars: float | None) -> str:
    return "" if dollars is None else f"${dollars:.2f}"


def _machine(machine: Machine) -> str:
    text = f"{machine.cpu:g} CPU, {machine.memory_gb:g} GiB"
    if machine.gpus:
        text += f", {machine.gpus} {machine.gpu}"
    if machine.machines > 1:
        text = f"{machine.machines} x ({text})"
    return f"{text}, spot" if machine.spot else text
