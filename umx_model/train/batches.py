"""Batches of excerpts to train on, and of pieces of whole samples to validate on and to measure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from umx_model.data.dataset import FixedSourcesTrackFolderDataset, reading_error
from umx_model.data.track_folder import Sample
from umx_model.profile import Profile


def training_batches(
    strategy: tf.distribute.Strategy, profile: Profile, samples: Sequence[Sample], first_excerpt: int
) -> Any:
    """Make the endless stream of training excerpts, shared out to the replicas.

    What all replicas of all workers get for a step is what one device would get: `batch_size` excerpts
    in a row. A worker reads its share only.

    Args:
        strategy: whose replicas take part in a step.
        profile: of the model and its training.
        samples: the training samples.
        first_excerpt: where in the stream to start; excerpts before it were used already.

    Returns:
        A distributed dataset of excerpts float32 `[batch per replica, samples, channels, targets]`,
        targets as in `profile.mixture_targets`.
    """
    settings = profile.train

    def make(context: tf.distribute.InputContext) -> tf.data.Dataset:
        excerpts = FixedSourcesTrackFolderDataset.from_samples(
            samples,
            split="train",
            targets=profile.mixture_targets,
            excerpt_seconds=settings.excerpt_seconds,
            random_track_mix=settings.random_track_mix,
            gain_range=settings.gain_range,
            swap_channels=settings.swap_channels,
            speed_range=settings.speed_range,
            silent_targets=settings.silent_targets,
            seed=settings.seed,
            first_excerpt=first_excerpt,
            shards=context.num_input_pipelines,
            shard=context.input_pipeline_id,
            shard_block=settings.batch_size // context.num_input_pipelines,
        )
        batches = excerpts.batch(context.get_per_replica_batch_size(settings.batch_size), drop_remainder=True)
        # Otherwise several workers would ask each other before every batch whether they all have one.
        endless = batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
        return endless.prefetch(tf.data.AUTOTUNE)

    return strategy.distribute_datasets_from_function(make)


def validation_batches(strategy: tf.distribute.Strategy, profile: Profile, samples: Sequence[Sample]) -> Any:
    """Make the batches of `piece_batches`, shared out to the replicas; a worker reads its share only.

    Args:
        strategy: whose replicas take part.
        profile: of the model and its training.
        samples: the validation samples.

    Returns:
        A distributed dataset of pieces float32 `[<= batch per replica, samples, channels, targets]`, as many
        batches for every replica: the last of some are empty.
    """

    def make(context: tf.distribute.InputContext) -> tf.data.Dataset:
        batch_size = context.get_per_replica_batch_size(profile.train.batch_size)
        return piece_batches(profile, samples, batch_size, context.num_input_pipelines, context.input_pipeline_id)

    return strategy.distribute_datasets_from_function(make)


def piece_batches(
    profile: Profile, samples: Sequence[Sample], batch_size: int, shards: int = 1, shard: int = 0
) -> tf.data.Dataset:
    """Cut whole samples, unaugmented and in order, into pieces as long as an excerpt.

    Args:
        profile: of the model and its training.
        samples: to read from beginning to end.
        batch_size: pieces per batch.
        shards: workers that share the pieces.
        shard: which of them this is.

    Returns:
        A dataset of pieces float32 `[<= batch_size, samples, channels, targets]`, targets as in
        `profile.mixture_targets`. Pieces in a batch are equally long: the shorter last pieces of samples
        come one by one, and are left out where they do not fill one STFT frame.
    """
    model = profile.model
    pieces = FixedSourcesTrackFolderDataset.from_samples(
        samples,
        split="valid",
        targets=profile.mixture_targets,
        excerpt_seconds=profile.train.excerpt_seconds,
        shards=shards,
        shard=shard,
        shard_block=batch_size,
    )
    pieces = pieces.filter(lambda piece: tf.shape(piece)[0] >= model.n_fft)
    batches = pieces.bucket_by_sequence_length(
        element_length_func=lambda piece: tf.shape(piece)[0],
        bucket_boundaries=[excerpt_length(profile)],
        bucket_batch_sizes=[1, batch_size],
    )
    return batches.prefetch(tf.data.AUTOTUNE)


def excerpt_length(profile: Profile) -> int:
    """Return the samples per channel of an excerpt."""
    return round(profile.train.excerpt_seconds * profile.model.sample_rate)


def readable(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield batches.

    Raises:
        InputError: a file could not be read; the message names it.
    """
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            unreadable = reading_error(error)
            if unreadable is None:
                raise
            raise unreadable from None
        yield batch
