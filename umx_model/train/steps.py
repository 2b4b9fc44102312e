"""The two compiled functions of the loop: a training step, and the error on a batch of validation pieces."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from umx_model.model.stft import STFTLayer
from umx_model.profile import Profile
from umx_model.train.losses import add_weight_decay, magnitudes, squared_error


class Steps:
    """Training and validation on all replicas of a strategy at once.

    Args:
        strategy: which devices take part.
        spectral_filter: the joint model, made in the strategy's scope.
        optimizer: made and built there.
        profile: of the model and its training.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        spectral_filter: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        profile: Profile,
    ) -> None:
        self._strategy = strategy
        self._filter = spectral_filter
        self._optimizer = optimizer
        self._settings = profile.train
        # Frames start at sample 0 and none is padded, as in the recipe.
        self._stft = STFTLayer(profile.model.n_fft, profile.model.hop_length, center=False)
        self._targets = [profile.mixture_targets.index(target) for target in profile.model.targets]
        weights = {id(weight) for weight in spectral_filter.weights}
        self._generators = [state for state in spectral_filter.variables if id(state) not in weights]
        replicas, generators = strategy.num_replicas_in_sync, len(self._generators)
        seeds = np.random.SeedSequence(self._settings.seed).generate_state(replicas * generators)
        self._seeds = (seeds >> 1).astype(np.int64).reshape(replicas, generators)

    def compile_train(self, spec: Any) -> tf.types.experimental.GenericFunction:
        """Return the training step for batches of a dataset's `element_spec`.

        The step takes excerpts `[batch, samples, channels, targets]` on every replica, updates the
        model, and returns the loss of each target, float64 `[targets]`.
        """

        def step(excerpts: Any) -> tf.Tensor:
            losses = self._strategy.run(self._train_replica, args=(excerpts,))
            return self._strategy.reduce("SUM", losses, axis=None)

        return tf.function(step, input_signature=[spec], autograph=False)

    def compile_valid(self, spec: Any) -> tf.types.experimental.GenericFunction:
        """Return the validation step for batches of a dataset's `element_spec`.

        The step takes pieces `[batch, samples, channels, targets]` on every replica, none or any number
        of them, and returns the squared error of each target summed over frames, float64
        `[targets]`, and the number of frames, float64.
        """

        def step(pieces: Any) -> tuple[tf.Tensor, tf.Tensor]:
            errors, frames = self._strategy.run(self._valid_replica, args=(pieces,))
            return self._strategy.reduce("SUM", errors, axis=None), self._strategy.reduce("SUM", frames, axis=None)

        return tf.function(step, input_signature=[spec], autograph=False)

    def _train_replica(self, excerpts: tf.Tensor) -> tf.Tensor:
        self._seed_generators()
        mixture, references = self._magnitudes(excerpts)
        # A replica contributes its share of the mean over the whole batch; gradients are summed.
        frames = self._settings.batch_size * tf.shape(mixture)[1]
        with tf.GradientTape() as tape:
            estimates = self._filter(mixture, training=True)
            losses = squared_error(estimates, references) / tf.cast(frames, tf.float64)
            # Summed, so that each target's filter sees the recipe's loss, whatever the other targets.
            loss = tf.reduce_sum(losses)
        variables = self._filter.trainable_variables
        gradients = tape.gradient(loss, variables)
        if self._settings.weight_decay:
            share = self._settings.weight_decay / self._strategy.num_replicas_in_sync
            gradients = add_weight_decay(gradients, variables, share)
        self._optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return losses

    def _valid_replica(self, pieces: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def measure() -> tuple[tf.Tensor, tf.Tensor]:
            mixture, references = self._magnitudes(pieces)
            errors = squared_error(self._filter(mixture, training=False), references)
            return errors, tf.cast(tf.size(mixture[..., 0, 0]), tf.float64)

        if self._strategy.num_replicas_in_sync == 1:
            return measure()
        # At the end of the data some replicas get an empty batch.
        nothing = tf.zeros([len(self._targets)], tf.float64), tf.zeros([], tf.float64)
        return tf.cond(tf.size(pieces) > 0, measure, lambda: nothing)

    def _magnitudes(self, excerpts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return those of the mixture, the sum of all that excerpts hold, and of the targets that the model has."""
        mixture, references = magnitudes(excerpts, self._stft)
        if self._targets == list(range(excerpts.shape[-1])):
            return mixture, references
        return mixture, tf.gather(references, self._targets, axis=-1)

    def _seed_generators(self) -> None:
        """Make dropout depend on the seed, the step and the replica alone.

        So a resumed run draws what an uninterrupted one would, and replicas differ.
        """
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        calls = tf.convert_to_tensor(self._optimizer.iterations) * 256  # leaves room for several calls per step
        for index, state in enumerate(self._generators):
            state.assign(tf.stack([tf.gather(self._seeds[:, index], replica), calls]))
