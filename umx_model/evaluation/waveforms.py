"""References and estimates `[samples, channels, targets]`, taken piece by piece in float64."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Waveforms = npt.NDArray[np.floating]
Figures = npt.NDArray[np.float64]
Item = TypeVar("Item")
Result = TypeVar("Result")

_THREADS = 4  # each works on up to 60 MB


def check_pair(references: Waveforms, estimates: Waveforms) -> None:
    """Raise ValueError unless both are `[samples, channels, targets]`, alike but for the samples."""
    if references.ndim != 3 or estimates.ndim != 3 or references.shape[1:] != estimates.shape[1:]:
        raise ValueError(
            "references and estimates must both be [samples, channels, targets], "
            f"got {references.shape} and {estimates.shape}"
        )


def copy_piece(piece: Figures, waveforms: Waveforms, start: int) -> None:
    """Fill `piece`, `[channels * targets, samples]`, from `start` on; what lies behind the end is zero."""
    present = waveforms[start : start + piece.shape[1]]
    piece[:, : len(present)] = present.reshape(len(present), len(piece)).T
    piece[:, len(present) :] = 0


def energies(signals: Figures) -> Figures:
    """`sum x^2` over the last axis."""
    return np.einsum("...s,...s->...", signals, signals)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield what the function returns for each item, in order. NumPy and SciPy let threads run side by side."""
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        yield from pool.map(function, items)
