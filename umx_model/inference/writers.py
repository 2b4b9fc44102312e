"""Writing the stems of one separation while they come, into a folder of their own.

A float file is written as it is to be. Whether a stem clips in the others is known only at the end, and
then all stems get one gain; so they wait as raw float32 next to where they will be, and are encoded
together, each in a thread.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from umx_model.data import audio
from umx_model.errors import InputError

Waveform = npt.NDArray[np.float32]

# How much of the whole time encoding takes, roughly, where separating runs at 25 times real time.
ENCODING_SHARE = {"wav": 0.05, "flac": 0.1, "ogg": 0.4, "mp3": 0.6}

# Per sample, of the encodings that are not floats; what compresses takes about 1.
_ENCODED_BYTES = {"PCM_16": 2, "PCM_24": 3}

# What stems that clip are brought down to: the largest sample that 16 bits hold.
_FULL_SCALE = 1 - 2**-15


class StemWriter:
    """Files for stems, `<folder>/<number>.<extension>`.

        with StemWriter(folder, names, "flac", "PCM_16", info, clipping="scale") as writer:
            for stems in pieces:
                writer.write(stems)
            gain = writer.finish()

    Args:
        folder: local, existing; all that is written is in it.
        names: of the stems, for messages.
        extension: of the files, and so their format.
        subtype: their encoding as libsndfile names it.
        info: the mixture's; the files have its rate, channels and length.
        clipping: "scale" or "refuse", where a stem exceeds full scale; floats do not clip.
    """

    def __init__(
        self, folder: str, names: Sequence[str], extension: str, subtype: str, info: audio.AudioInfo, clipping: str
    ) -> None:
        self.files = [os.path.join(folder, f"{number}.{extension}") for number in range(len(names))]
        self._names = names
        self._subtype = subtype
        self._info = info
        self._clipping = clipping
        self._peak = 0.0
        self._written = 0  # samples of each stem
        self._encoded = [0] * len(names)
        self._open = contextlib.ExitStack()
        self._outputs: list[Any] = []

    @property
    def needed_bytes(self) -> int:
        """What the device must have free at least."""
        encoded = 0 if self._subtype == "FLOAT" else _ENCODED_BYTES.get(self._subtype, 1)
        return self._info.samples * self._info.channels * (4 + encoded) * len(self.files)

    @property
    def seconds(self) -> float:
        """Length of what is written so far."""
        return self._written / self._info.sample_rate

    def __enter__(self) -> StemWriter:
        for file in self.files:
            output = self._create(file) if self._subtype == "FLOAT" else open(_raw(file), "wb")
            self._outputs.append(self._open.enter_context(output))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def write(self, stems: Waveform) -> None:
        """Write the next piece, `[stems, samples, channels]`.

        Raises:
            InputError: a stem clips, and `clipping` says "refuse".
        """
        if self._subtype != "FLOAT":
            peaks = [max(float(stem.max()), -float(stem.min())) for stem in stems]
            if self._clipping == "refuse" and max(peaks) > 1:
                loudest = int(np.argmax(peaks))
                raise InputError(
                    f"{self._info.path}: {self._names[loudest]} clips ({20 * math.log10(peaks[loudest]):+.1f} dB at "
                    f"{self.seconds:.0f} s); write 32-bit float wav (bit depth 32f), or let it be scaled"
                )
            self._peak = max(self._peak, *peaks)
        for output, stem in zip(self._outputs, stems, strict=True):
            output.write(stem)
        self._written += stems.shape[1]

    def finish(self, report: Callable[[float], None] = lambda share: None) -> float:
        """Complete the files and return the gain that all of them got, 1.0 where none clips.

        Args:
            report: called now and then with the share of the encoding that is done.
        """
        self._open.close()
        if self._subtype == "FLOAT":
            return 1.0
        gain = _FULL_SCALE / self._peak if self._peak > 1 else 1.0
        stop = threading.Event()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                running = {pool.submit(self._encode, number, gain, stop) for number in range(len(self.files))}
                while running:
                    done, running = wait(running, timeout=0.2)
                    for stem in done:
                        stem.result()
                    report(sum(self._encoded) / (len(self.files) * self._written))
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        return gain

    def _encode(self, number: int, gain: float, stop: threading.Event) -> None:
        """Encode one stem and remove its raw file."""
        file, channels = self.files[number], self._info.channels
        with open(_raw(file), "rb") as raw, self._create(file) as output:
            while not stop.is_set():
                block = np.fromfile(raw, np.float32, audio.BLOCK_SAMPLES * channels).reshape(-1, channels)
                if not len(block):
                    break
                if gain != 1:
                    block *= np.float32(gain)
                output.write(_as_int16(block) if self._subtype == "PCM_16" else block)
                self._encoded[number] += len(block)
        os.remove(_raw(file))

    def _create(self, file: str) -> contextlib.AbstractContextManager[Any]:
        info = self._info
        return audio.create(file, info.sample_rate, info.channels, self._subtype, info.samples)


def _raw(file: str) -> str:
    return file + ".f32"


def _as_int16(block: Waveform) -> npt.NDArray[np.int16]:
    """Do what libsndfile does, in half its time."""
    scaled = block * np.float32(2**15)
    np.rint(scaled, out=scaled)
    np.clip(scaled, -(2**15), 2**15 - 1, out=scaled)
    return scaled.astype(np.int16)
