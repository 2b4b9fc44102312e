"""References and estimates `[samples, channels, targets]`, taken piece by piece in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Waveforms = npt.NDArray[np.floating]
Figures = npt.NDArray[np.float64]


def check_pair(references: Waveforms, estimates: Waveforms) -> None:
    """Raise ValueError unless both are `[samples, channels, targets]`, alike but for the samples."""
    if references.ndim != 3 or estimates.ndim != 3 or references.shape[1:] != estimates.shape[1:]:
        raise ValueError(
            "references and estimates must both be [samples, channels, targets], "
            f"got {references.shape} and {estimates.shape}"
        )


def copy_piece(piece: Figures, waveforms: Waveforms, start: int) -> None:
    """Fill `piece`, `[samples, channels * targets]`, from `start` on; what lies behind the end is zero."""
    present = waveforms[start : start + len(piece)]
    piece[: len(present)] = present.reshape(len(present), piece.shape[1])
    piece[len(present) :] = 0


def energy(piece: Figures, targets: int) -> Figures:
    """Energy per target, `[targets]`, of `[samples, channels * targets]`."""
    # The diagonal of a matrix product: more arithmetic than a sum of squares along columns, yet faster.
    return np.diagonal(piece.T @ piece).reshape(-1, targets).sum(axis=0)
