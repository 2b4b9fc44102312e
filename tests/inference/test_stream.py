"""Streams of every shape through separations whose estimates are known."""

import queue
import threading
import time

import numpy as np
import pytest
import soxr
from helpers import PointwiseStream

from umx_model.errors import InputError
from umx_model.inference.stream import StreamSeparation, channel_groups, in_background
from umx_model.profile import ModelProfile

RATE = 8000
PROFILE = ModelProfile(targets=("vocals", "drums", "bass"), sample_rate=RATE, n_fft=512, hop_length=128)
GAINS = np.array([2, -1, 0.25], np.float32)


def scaled(mixture):
    return mixture[..., None] * GAINS


def start(channels):
    return PointwiseStream(scaled)


def noise(samples, channels=2, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (samples, channels)).astype(np.float32)


def blocks_of(mixture, size):
    return [mixture[first : first + size] for first in range(0, len(mixture), size)]


def separated(blocks, rate, channels, start=start, profile=PROFILE):
    separation = StreamSeparation(start, profile, rate, channels)
    pieces = list(separation.restore(separation.estimate(blocks)))
    assert all(len(mixture) == len(estimates) > 0 for mixture, estimates in pieces)
    return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]


@pytest.mark.parametrize(
    ("channels", "model_channels", "groups"),
    [
        (1, 1, [[0]]),
        (2, 1, [[0], [1]]),
        (6, 1, [[0], [1], [2], [3], [4], [5]]),
        (1, 2, [[0]]),
        (2, 2, [[0, 1]]),
        (3, 2, [[0, 1], [2]]),
        (4, 2, [[0, 1], [2, 3]]),
        (5, 2, [[0, 1], [2], [3, 4]]),
        (6, 2, [[0, 1], [2], [3], [4, 5]]),
        (7, 2, [[0, 1], [2], [3], [4], [5, 6]]),
        (8, 2, [[0, 1], [2], [3], [4, 5], [6, 7]]),
        (9, 2, [[0, 1], [2, 3], [4, 5], [6, 7], [8]]),
        (12, 2, [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]),
        (6, 6, [[0, 1, 2, 3, 4, 5]]),
        (2, 6, [[0], [1]]),
    ],
)
def test_channel_groups(channels, model_channels, groups):
    assert channel_groups(channels, model_channels) == groups


def test_groups_are_separated_on_their_own():
    """A model that averages its channels mixes those of a group and no others."""
    counts = []

    def averaging(channels):
        counts.append(channels)
        return PointwiseStream(lambda x: np.broadcast_to(x.mean(1)[:, None, None], (*x.shape, 3)))

    mixture = noise(12_345, 6)
    _, estimates = separated(blocks_of(mixture, 1000), RATE, 6, averaging)
    assert counts == [2, 1, 1, 2]
    for group in ([0, 1], [2], [3], [4, 5]):
        for channel in group:
            np.testing.assert_allclose(estimates[:, channel, 0], mixture[:, group].mean(1), rtol=0, atol=1e-6)


def test_groups_may_come_at_different_times():
    mixture = noise(30_000, 3)
    _, estimates = separated(
        blocks_of(mixture, 1000),
        RATE,
        3,
        lambda channels: PointwiseStream(scaled, chunk=4000 if channels == 1 else 7000),
    )
    np.testing.assert_array_equal(estimates, scaled(mixture))


@pytest.mark.parametrize("samples", [1, 2, 3, 4999, 5000, 80_001])
@pytest.mark.parametrize("size", [1000, 7001, 100_000])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_at_the_models_rate_every_sample_comes_back(samples, size, channels):
    mixture = noise(samples, channels)
    returned, estimates = separated(blocks_of(mixture, size), RATE, channels)
    np.testing.assert_array_equal(returned, mixture)
    np.testing.assert_array_equal(estimates, scaled(mixture))


@pytest.mark.parametrize("samples", [1, 2, 3, 100, 70_001])
@pytest.mark.parametrize("rate", [6000, 11025, 44100, 192_000])
def test_other_rates_go_through_soxr_there_and_back(samples, rate):
    mixture = noise(samples)
    returned, estimates = separated(blocks_of(mixture, 3000), rate, 2)
    np.testing.assert_array_equal(returned, mixture)
    assert estimates.shape == (samples, 2, 3)
    there = soxr.resample(mixture, rate, RATE, "VHQ")
    back = soxr.resample(there, RATE, rate, "VHQ")[:samples]
    if len(back) > 1000:  # the ends are padded to whole samples
        inner = slice(0, len(back) - 1000)
        np.testing.assert_allclose(estimates[inner], scaled(back[inner]), rtol=0, atol=1e-5)


def test_empty_blocks_are_no_matter():
    mixture = noise(6000)
    blocks = [mixture[:0], mixture[:100], mixture[:0], mixture[100:], mixture[:0]]
    np.testing.assert_array_equal(separated(blocks, 44100, 2)[0], mixture)


def test_estimates_come_before_the_audio_ends():
    """And what is held back is bounded: a chunk, whatever the length."""
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1000
            yield noise(1000)

    separation = StreamSeparation(start, PROFILE, RATE, 2)
    returned = 0
    for mixture, _ in separation.restore(separation.estimate(endless())):
        returned += len(mixture)
        assert taken - returned <= 6000
        if returned > 100_000:
            break


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_samples_are_told_by_place(value):
    mixture = noise(10_000)
    mixture[7500, 1] = value
    with pytest.raises(InputError, match=rf"mixture: non-finite sample \({value}\) at 7500 \(0.938 s\), channel 2"):
        separated(blocks_of(mixture, 1000), RATE, 2)


def test_refuses_impossible_shapes():
    with pytest.raises(InputError, match=r"has 1000 channels; expected 1 to 64 \(waveforms are \[samples, channels\]"):
        StreamSeparation(start, PROFILE, RATE, 1000)
    with pytest.raises(InputError, match=r"expected blocks \[samples, 2\], got shape \(100, 3\)"):
        separated([noise(100), noise(100, 3)], RATE, 2)
    with pytest.raises(InputError, match=r"sample rate of 0 Hz"):
        StreamSeparation(start, PROFILE, 0, 2)


def test_background_gets_everything_in_order():
    got = []

    def consume(items):
        for item in items:
            time.sleep(0.001)
            got.append(item)

    with in_background(consume) as put:
        for item in range(50):
            put(item)
    assert got == list(range(50))


def test_failure_in_the_background_ends_the_work():
    def consume(items):
        next(items)
        raise OSError("disk full")

    def produce():
        with in_background(consume) as put:
            for item in range(10_000):
                put(item)
                time.sleep(0.001)
            raise AssertionError("was not told")

    with pytest.raises(OSError, match="disk full"):
        produce()
    assert threading.active_count() == 1 or "umx-pro-background" not in {t.name for t in threading.enumerate()}


def test_interrupt_waits_for_the_background():
    done = threading.Event()

    def consume(items):
        for _ in items:
            time.sleep(0.05)
        done.set()

    def interrupted():
        with in_background(consume) as put:
            put(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done.is_set()


def test_an_interrupt_inside_the_queue_does_not_hang(monkeypatch):
    """Ctrl-C between the steps of `Queue.put` leaves a consumer that nobody wakes."""

    class Interrupted(queue.Queue):
        def __init__(self, size):
            super().__init__(size)
            self.not_empty.notify = lambda: None

    def work():
        with in_background(lambda items: got.extend(items)) as put:
            put(1)

    monkeypatch.setattr(queue, "Queue", Interrupted)
    got = []
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(timeout=20)
    assert (worker.is_alive(), got) == (False, [1])


def test_a_failure_after_the_last_item_does_not_hang():
    def consume(items):
        assert list(items) == [1]
        raise OSError("full")

    with pytest.raises(OSError, match="full"), in_background(consume) as put:
        put(1)


def test_estimates_that_are_not_finite_are_an_error():
    separation = StreamSeparation(
        lambda channels: PointwiseStream(lambda x: np.full((*x.shape, 3), np.nan, np.float32)), PROFILE, 44100, 2
    )
    with pytest.raises(InputError, match="estimates are not finite"):
        list(separation.restore(separation.estimate([np.zeros((1000, 2), np.float32)])))
