"""Open-Unmix's side of `benchmarks/data_loading.py`, run there by a Python that has openunmix 1.3.0 and PyTorch.

PYTHON benchmarks/open_unmix_data.py ROOT TARGETS SECONDS     # then a number of excerpts per line of stdin
"""

from __future__ import annotations

import json
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

# openunmix imports it for reading audio, which soundfile does here: torchaudio has no build for CPUs alone.
sys.modules["torchaudio"] = types.ModuleType("torchaudio")

import soundfile as sf  # noqa: E402
import torch  # noqa: E402
from openunmix import data  # type: ignore[import-not-found]  # noqa: E402


def load_info(path: str) -> dict[str, Any]:
    """Read a header, as `openunmix.data.load_info` does."""
    info = sf.info(path)
    return {"samplerate": info.samplerate, "samples": info.frames, "duration": info.frames / info.samplerate}


def load_audio(
    path: str, start: float = 0.0, dur: float | None = None, info: dict[str, Any] | None = None
) -> tuple[torch.Tensor, int]:
    """Read a piece as float32 `[channels, samples]`, as `openunmix.data.load_audio` does."""
    with sf.SoundFile(path) as file:
        frames = -1 if dur is None else int(dur * file.samplerate)
        file.seek(int(start * file.samplerate))
        waveform = file.read(frames, dtype="float32", always_2d=True)
    return torch.from_numpy(waveform.T), file.samplerate


data.load_info, data.load_audio = load_info, load_audio


def excerpts(root: str, targets: list[str], seconds: float) -> Iterator[Any]:
    """Yield excerpts one by one, augmented as in `scripts/train.py`, from two worker processes."""
    dataset = data.FixedSourcesTrackFolderDataset(
        root=root,
        split="train",
        target_file=targets[0] + ".wav",
        interferer_files=[target + ".wav" for target in targets[1:]],
        seq_duration=seconds,
        random_chunks=True,
        random_track_mix=True,
        source_augmentations=data.aug_from_str(["gain", "channelswap"]),
        sample_rate=44100.0,
    )
    endless = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=10**9)
    yield from torch.utils.data.DataLoader(dataset, batch_size=1, sampler=endless, num_workers=2)


def main() -> None:
    """Read as many excerpts as each line says, and answer how many per second."""
    root, targets, seconds = sys.argv[1:]
    iterator = excerpts(root, targets.split(","), float(seconds))
    next(iterator)
    print("ready", flush=True)
    for line in sys.stdin:
        for _ in range(4):  # read ahead while others had their turn
            next(iterator)
        began = time.perf_counter()
        for _ in range(int(line)):
            next(iterator)
        print(json.dumps({"rate": int(line) / (time.perf_counter() - began)}), flush=True)


if __name__ == "__main__":
    main()
