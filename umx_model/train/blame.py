"""Which samples a loss that is not finite comes from."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import keras
import tensorflow as tf

from umx_model.data import augmentation
from umx_model.data.track_folder import Sample
from umx_model.model.network_input import network_input
from umx_model.model.stft import STFTLayer
from umx_model.profile import Profile
from umx_model.train.batches import excerpt_length, piece_batches, readable, training_batches
from umx_model.train.losses import spectra

_log = logging.getLogger(__name__)


def describe_excerpts(profile: Profile, samples: Sequence[Sample], first: int, count: int) -> list[str]:
    """Say where training excerpts were taken from.

    Nothing needs to be remembered for that: what excerpt number i is made of depends on the seed and i alone.

    Args:
        profile: of the model and its training.
        samples: the training samples.
        first: number of the first excerpt.
        count: how many.

    Returns:
        A line for each, such as `excerpt 7: vocals from song a at 1.20 s, drums from song b at 0.35 s`.
    """
    settings, targets = profile.train, profile.mixture_targets
    lengths = tf.constant([sample.length for sample in samples], tf.int64)
    orders = augmentation.sample_order(
        settings.seed, len(samples), len(targets) if settings.random_track_mix else 1, first
    )
    lines = []
    for number, order in orders.take(count):
        drawn = augmentation.draw(
            number,
            order,
            seed=settings.seed,
            lengths=lengths,
            excerpt_samples=excerpt_length(profile),
            targets=len(targets),
            gain_range=settings.gain_range,
            swap_channels=settings.swap_channels,
            speed_range=settings.speed_range,
            silent_targets=settings.silent_targets,
        )
        places = [
            f"{target} from {samples[sample].id} at {start / profile.model.sample_rate:.2f} s"
            for target, sample, start, gain in zip(
                targets, drawn.samples.numpy(), drawn.starts.numpy(), drawn.gains.numpy(), strict=True
            )
            if gain
        ]
        lines.append(f"excerpt {int(number)}: {', '.join(places)}")
    return lines


def blame_excerpts(
    profile: Profile, samples: Sequence[Sample], spectral_filter: keras.Model, first: int, count: int
) -> None:
    """Log which of the excerpts of a training step a good model cannot be trained on, or all if it could be any."""
    lines = describe_excerpts(profile, samples, first, count)
    one = profile.model_copy(update={"train": profile.train.model_copy(update={"batch_size": 1})})
    batches = training_batches(tf.distribute.OneDeviceStrategy("CPU:0"), one, samples, first)
    bad = [
        line for line, batch in zip(lines, readable(batches), strict=False) if not _finite(one, spectral_filter, batch)
    ]
    for line in bad:
        _log.error("the loss is not finite on %s; look at these files", line)
    if not bad:
        _log.error("the loss is finite on each excerpt of the step alone, so training diverged; they were:")
        for line in lines:
            _log.error("  %s", line)


def blame_validation(profile: Profile, samples: Sequence[Sample], spectral_filter: keras.Model) -> None:
    """Log the validation samples on which the loss is not finite."""
    for sample in samples:
        pieces = readable(piece_batches(profile, [sample], 1))
        if not all(_finite(profile, spectral_filter, piece) for piece in pieces):
            _log.error("the loss is not finite on validation sample %s; look at its files", sample.id)


def _finite(profile: Profile, spectral_filter: keras.Model, excerpt: tf.Tensor) -> bool:
    """Whether neither an excerpt's references nor its estimates are beyond what a loss can hold."""
    mixture, references = spectra(excerpt, STFTLayer(profile.model.n_fft, profile.model.hop_length, center=False))
    estimates = spectral_filter(network_input(mixture, profile.model), training=False)
    return all(bool(tf.math.is_finite(tf.reduce_mean(tf.square(tf.abs(values))))) for values in (references, estimates))
