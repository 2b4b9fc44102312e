"""Small pieces of music-like sound and databases of it, for all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import av
import numpy as np
import soundfile as sf

TARGETS = ("vocals", "drums")


def stem(target: str, seconds: float, sample_rate: int = 44100, channels: int = 2, seed: int = 0) -> np.ndarray:
    """Make a stem that sounds unlike the other targets' and differs with every seed.

    `drums` are bursts of decaying noise, `bass` low tones, all else gliding harmonic tones.

    Returns:
        float32 `[samples, channels]`, peaks below 0.5, channels differing.
    """
    generator = np.random.default_rng([seed, *target.encode()])
    samples = round(seconds * sample_rate)
    time = np.arange(samples) / sample_rate
    if target == "drums":
        beat = generator.uniform(0.15, 0.3)
        mono = generator.standard_normal(samples) * np.exp(-30 * (time % beat)) * 0.1
    else:
        pitch = generator.uniform(50, 90) if target == "bass" else generator.uniform(200, 400)
        phase = 2 * np.pi * pitch * (time + 0.01 * np.sin(2 * np.pi * 3 * time))
        mono = sum(np.sin(k * phase) / k for k in range(1, 6)) * 0.15
    pan = generator.uniform(0.4, 1.0, channels)
    return (np.clip(mono[:, np.newaxis], -0.49, 0.49) * pan).astype(np.float32)


def make_sample(
    folder: str | os.PathLike[str],
    targets: Sequence[str] = TARGETS,
    seconds: float = 2.0,
    sample_rate: int = 44100,
    channels: int = 2,
    seed: int = 0,
    subtype: str = "PCM_16",
    extension: str = "wav",
) -> Path:
    """Write one sample folder and return it."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for target in targets:
        waveform = stem(target, seconds, sample_rate, channels, seed)
        sf.write(path / f"{target}.{extension}", waveform, sample_rate, subtype=subtype)
    return path


def make_database(
    root: str | os.PathLike[str],
    splits: Mapping[str, int] | None = None,
    targets: Sequence[str] = TARGETS,
    seconds: float = 2.0,
    sample_rate: int = 44100,
    channels: int = 2,
    subtype: str = "PCM_16",
    extension: str = "wav",
) -> Path:
    """Write a database with so many samples per split (default train 3, valid 2) and return its folder.

    Samples are named `song00`, `song01`, ... within each split, and all differ.
    """
    path = Path(root)
    seed = 0
    for split, count in (splits or {"train": 3, "valid": 2}).items():
        for number in range(count):
            folder = path / split / f"song{number:02d}"
            make_sample(folder, targets, seconds, sample_rate, channels, seed, subtype, extension)
            seed += 1
    return path


def write_m4a(path: Path, waveform: np.ndarray, sample_rate: int = 44100) -> None:
    """Write a stereo waveform float32 `[samples, 2]` as AAC, which libsndfile does not read."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=sample_rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform.T), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = sample_rate, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


class PointwiseStream:
    """Stands in for `Chunks` with an estimate that is known: a function of each sample, returned late and in chunks.

        separator = Separator(lambda channels: PointwiseStream(lambda x: np.stack([x / 2, -x], axis=-1)), profile)

    Args:
        estimate: `[samples, channels]` -> `[samples, channels, targets]`.
        chunk: samples that are returned together.
    """

    def __init__(self, estimate: Callable[[np.ndarray], np.ndarray], chunk: int = 5000) -> None:
        self._estimate = estimate
        self._chunk = chunk
        self._waiting: np.ndarray | None = None

    def push(self, block: np.ndarray) -> np.ndarray:
        self._waiting = block if self._waiting is None else np.concatenate([self._waiting, block])
        whole = len(self._waiting) // self._chunk * self._chunk
        done, self._waiting = self._waiting[:whole], self._waiting[whole:]
        return np.asarray(self._estimate(done), np.float32)

    def finish(self) -> np.ndarray:
        return np.asarray(self._estimate(self._waiting), np.float32)
