"""Pictures of spectrograms, drawn without a plotting library.

    picture = draw([[("mixture", mixture), ("vocals", vocals)]], sample_rate=44100, hop_length=1024)

Frequency runs upwards on a logarithmic axis, time to the right; colours are dB below the loudest
place of the first spectrogram.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DECIBELS = 80.0  # from the darkest colour to the brightest
_LOWEST = 50.0  # Hz; below it, bins are wider than what the picture shows
_TICKS = (50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)  # Hz

_WIDTH, _HEIGHT = 320, 160  # pixels of one spectrogram
_GAP = 8
_LEFT = 40  # room for frequencies
_SCALE = 2  # pixels per dot of a letter
_LETTER = 5 * _SCALE  # height
_LINE = _LETTER + 6

_DARK, _LIGHT = np.array([18, 18, 24]), np.array([225, 225, 225])
# From silent to loud, evenly in lightness, as perceptual colour maps are.
_COLOURS = np.array([[0, 0, 6], [46, 14, 90], [124, 30, 120], [202, 62, 86], [248, 140, 56], [252, 252, 190]])

# Letters of 3 x 5 dots, a row per octal digit: "A", 25755, is 010 101 111 101 101.
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_. "
_DOTS = (
    "25755656563444365556746477464434553557557222711152556554444757755655552555265644255736565534216"
    "722225555755552557755525555222712477555726227717477171755711747177475771122757577571700700000070000200000"
)


def draw(rows: Sequence[Sequence[tuple[str, np.ndarray]]], sample_rate: int, hop_length: int) -> np.ndarray:
    """Draw spectrograms in rows and columns, each under its name.

    Args:
        rows: of names and magnitudes, float `[frames, bins]`, all of one shape and not negative.
        sample_rate: Hz.
        hop_length: samples between frames.

    Returns:
        The picture, uint8 `[height, width, 3]`.
    """
    columns = max(len(row) for row in rows)
    frames = rows[0][0][1].shape[0]
    step = _HEIGHT + _LINE + _GAP
    picture = np.empty([_GAP + len(rows) * step + 2 * _LINE, _LEFT + columns * (_WIDTH + _GAP), 3], np.uint8)
    picture[:] = _DARK
    powers = [[(name, _resample(magnitudes, sample_rate)) for name, magnitudes in row] for row in rows]
    loudest = max(powers[0][0][1].max(), np.finfo(np.float64).tiny)
    for number, row in enumerate(powers):
        top = _GAP + _LINE + number * step
        for hertz, y in _frequency_ticks(sample_rate):
            label = f"{hertz // 1000}K" if hertz >= 1000 else str(hertz)
            _write(picture, label, top + y - _LETTER // 2, _LEFT - 6, right=True)
            picture[top + y, _LEFT - 4 : _LEFT] = _LIGHT
        for column, (name, power) in enumerate(row):
            left = _LEFT + column * (_WIDTH + _GAP)
            picture[top : top + _HEIGHT, left : left + _WIDTH] = _colour(power / loudest)
            _write(picture, name, top - _LINE + 2, left)
    bottom = _GAP + _LINE + (len(rows) - 1) * step + _HEIGHT
    seconds = frames * hop_length / sample_rate
    for column in range(columns):
        for second in np.arange(0, 0.95 * seconds, max(1, round(seconds / 8))):
            x = _LEFT + column * (_WIDTH + _GAP) + int(second / seconds * (_WIDTH - 1))
            picture[bottom : bottom + 4, x] = _LIGHT
            _write(picture, f"{second:.0f}S", bottom + 6, x)
    _draw_scale(picture, picture.shape[0] - _LINE)
    return picture


def _resample(magnitudes: np.ndarray, sample_rate: int) -> np.ndarray:
    """Take the highest power that falls on each pixel: `[_HEIGHT, _WIDTH]`, high frequencies first."""
    frames, bins = magnitudes.shape
    hertz = _LOWEST * (sample_rate / 2 / _LOWEST) ** np.linspace(0, 1, _HEIGHT + 1)
    # Bin k is what is within half a bin of its frequency.
    power = _highest(np.square(magnitudes.astype(np.float64)), hertz / (sample_rate / 2) * (bins - 1) + 0.5)
    return _highest(power.T[::-1], np.linspace(0, frames, _WIDTH + 1))


def _highest(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Reduce `[rows, places]` to the highest between edges, place k reaching from k to k + 1: `[rows, edges - 1]`."""
    starts = np.minimum(edges[:-1].astype(int), values.shape[1] - 1)
    return np.maximum.reduceat(values, starts, axis=1)


def _frequency_ticks(sample_rate: int) -> list[tuple[int, int]]:
    """Frequencies in Hz, and their distance from the top in pixels."""
    octaves = np.log(sample_rate / 2 / _LOWEST)
    return [
        (hertz, round(np.log(sample_rate / 2 / hertz) / octaves * (_HEIGHT - 1)))
        for hertz in _TICKS
        if _LOWEST <= hertz <= sample_rate / 2
    ]


def _colour(power: np.ndarray) -> np.ndarray:
    """Map power, 1 being the loudest, to colours `[..., 3]`."""
    decibels = 10 * np.log10(np.maximum(power, 1e-30))
    place = np.clip(1 + decibels / DECIBELS, 0, 1) * (len(_COLOURS) - 1)
    known = np.arange(len(_COLOURS))
    return np.stack([np.interp(place, known, channel) for channel in _COLOURS.T], axis=-1).astype(np.uint8)


def _draw_scale(picture: np.ndarray, top: int) -> None:
    """Say which colour is how loud."""
    right = picture.shape[1] - _GAP
    _write(picture, "0 DB", top, right, right=True)
    left = right - 4 * 4 * _SCALE - 2 * _GAP - 100
    picture[top : top + _LETTER, left : left + 100] = _colour(10 ** (np.linspace(-DECIBELS, 0, 100) / 10))
    _write(picture, f"-{DECIBELS:.0f} DB", top, left - _GAP, right=True)


def _write(picture: np.ndarray, text: str, top: int, x: int, right: bool = False) -> None:
    """Write a line of text from `x` on, or up to `x`, as far as there is room."""
    places = [5 * _LETTERS.index(letter) for letter in text.upper()]
    dots = [[int(dot) for dot in f"{int(_DOTS[place : place + 5], 8):015b}"] for place in places]
    image = np.concatenate([np.pad(np.reshape(letter, [5, 3]), [(0, 0), (0, 1)]) for letter in dots], axis=1)
    image = np.kron(image, np.ones([_SCALE, _SCALE], int)).astype(bool)
    left = max(0, x - image.shape[1] + _SCALE if right else x)
    place = picture[max(0, top) : max(0, top) + _LETTER, left : left + image.shape[1]]
    place[image[: place.shape[0], : place.shape[1]]] = _LIGHT
