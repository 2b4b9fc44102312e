"""The two compiled functions of the loop: a training step, and the error on a batch of validation pieces."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from umx_model.inference.xla import start_xla
from umx_model.model.network_input import network_input
from umx_model.model.recurrent import fastest
from umx_model.model.stft import ISTFTLayer, STFTLayer
from umx_model.profile import Profile
from umx_model.train.losses import (
    add_weight_decay,
    combination_error,
    decibel_error,
    phases,
    source_combinations,
    spectra,
    squared_error,
    weighted_sdr,
    wiener_filtered,
)


class StepResult(NamedTuple):
    """What a training step says of itself.

    Attributes:
        losses: of each target, float64 `[targets]`: the mean squared error of magnitudes; with `floor_db`, decibels.
        objective: what the step made smaller, float64 scalar. Where it is finite and `gradient_norm` is not,
            float16 has overflowed: weights are as before, and the loss scale is half as large.
        gradient_norm: of all gradients together, float32 scalar, in L2 and without weight decay.
    """

    losses: tf.Tensor
    objective: tf.Tensor
    gradient_norm: tf.Tensor


class Steps:
    """Training and validation on all replicas of a strategy at once.

    The objective is, by profile,

    * the recipe's: the mean squared error of magnitudes, summed over targets, so that each target's filter
      learns as if alone;
    * with `combination_loss` or `sdr_weight`, X-UMX's (Sawata et al., 2021): the mean of the squared errors over
      the combinations of targets, plus `sdr_weight` times the mean of `weighted_sdr` over the same combinations;
      without `combination_loss` those are the single targets;
    * with `floor_db`, `decibel_error`, averaged over excerpts and summed over targets: of the estimates, and, where
      EM follows and all of the mixture is estimated, of what a Wiener filter makes of them, half each.

    Validation is by `decibel_error` with `floor_db`, because the squared error does not follow it, and otherwise by
    the mean squared error of magnitudes, so that models trained on different objectives, and learning rate
    decay and early stopping with them, are judged alike; X-UMX validates by its objective.

    Args:
        strategy: which devices take part.
        spectral_filter: the joint model, made in the strategy's scope.
        optimizer: made by `make_optimizer` and built there; one of Keras does on a single replica.
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
        self._input = functools.partial(network_input, profile=profile.model)
        self._istft = ISTFTLayer(profile.model.n_fft, profile.model.hop_length, center=False)
        self._targets = [profile.mixture_targets.index(target) for target in profile.model.targets]
        targets = len(self._targets)
        self._wiener = profile.model.niter > 0 and 1 < targets == len(profile.mixture_targets)
        combine = self._settings.combination_loss
        self._combinations = source_combinations(targets) if combine else np.eye(targets, dtype=np.float32)
        if self._settings.xla:
            start_xla()
        weights = {id(weight) for weight in spectral_filter.weights}
        self._generators = [state for state in spectral_filter.variables if id(state) not in weights]
        replicas, generators = strategy.num_replicas_in_sync, len(self._generators)
        seeds = np.random.SeedSequence(self._settings.seed).generate_state(replicas * generators)
        self._seeds = (seeds >> 1).astype(np.int64).reshape(replicas, generators)

    def compile_train(self, spec: Any) -> tf.types.experimental.GenericFunction:
        """Return the training step for batches of a dataset's `element_spec`.

        The step takes excerpts `[batch, samples, channels, targets]` on every replica, updates the
        model, and returns a `StepResult`.
        """

        def step(excerpts: Any) -> StepResult:
            losses, objective, norm = self._strategy.run(self._train_replica, args=(excerpts,))
            return StepResult(
                self._strategy.reduce("SUM", losses, axis=None),
                self._strategy.reduce("SUM", objective, axis=None),
                self._strategy.reduce("MEAN", norm, axis=None),  # all have the same
            )

        return tf.function(step, input_signature=[spec], autograph=False)

    def compile_valid(self, spec: Any) -> tf.types.experimental.GenericFunction:
        """Return the validation step for batches of a dataset's `element_spec`.

        The step takes pieces `[batch, samples, channels, targets]` on every replica, none or any number
        of them, and returns the error of each target summed over frames, float64 `[targets]`, and the number of
        frames, float64.
        """

        def step(pieces: Any) -> tuple[tf.Tensor, tf.Tensor]:
            errors, frames = self._strategy.run(self._valid_replica, args=(pieces,))
            return self._strategy.reduce("SUM", errors, axis=None), self._strategy.reduce("SUM", frames, axis=None)

        return tf.function(step, input_signature=[spec], autograph=False)

    def _train_replica(self, excerpts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        with tf.xla.experimental.jit_scope(compile_ops=self._settings.xla):
            losses, objective, gradients, scale = self._differentiate(excerpts)
        # Summed here and not by the optimizer, because their norm, and whether they overflowed, is for all replicas.
        gradients = tf.distribute.get_replica_context().all_reduce("SUM", gradients)
        norm = tf.linalg.global_norm(gradients) / scale
        if self._settings.weight_decay:
            # Scaled like the gradients, to which it is added.
            gradients = add_weight_decay(
                gradients, self._filter.trainable_variables, self._settings.weight_decay * scale
            )
        self._optimizer.apply_gradients(zip(gradients, self._filter.trainable_variables, strict=True))
        return losses, objective, norm

    def _differentiate(self, excerpts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor], tf.Tensor]:
        """Return this replica's share of the losses and of the objective, its gradients, and their scale."""
        self._seed_generators()
        mixture, references = spectra(excerpts, self._stft)
        references = self._of_model(references)
        # A replica contributes its share of the mean over the whole batch; gradients are summed.
        frames = tf.cast(self._settings.batch_size * tf.shape(mixture)[1], tf.float64)
        scale = tf.cast(self._optimizer.scale_loss(tf.ones([])), tf.float32)
        with tf.GradientTape() as tape, fastest():
            estimates = tf.cast(self._filter(self._input(mixture), training=True), tf.float32)
            losses = self._error(estimates, references, mixture) / frames
            if self._settings.combination_loss or self._settings.sdr_weight:
                objective = combination_error(estimates, tf.abs(references), self._combinations) / frames
                if self._settings.sdr_weight:
                    objective += self._settings.sdr_weight * self._weighted_sdr(excerpts, mixture, estimates)
            else:
                objective = tf.reduce_sum(losses)
            scaled = tf.cast(objective, tf.float32) * scale
        gradients = tape.gradient(scaled, self._filter.trainable_variables)
        return losses, objective, gradients, scale

    def _weighted_sdr(self, excerpts: tf.Tensor, mixture: tf.Tensor, estimates: tf.Tensor) -> tf.Tensor:
        """Return this replica's share of the weighted SDR of waveforms, made with the mixture's phase.

        Of frames that are not centred, those at the ends are covered by the edge of one window only; what
        they would give is left out up to where the window has half its height.
        """
        n_fft, hop_length = self._stft.n_fft, self._stft.hop_length
        batch, channels = tf.shape(excerpts)[0], excerpts.shape[2]
        frames, bins = tf.shape(mixture)[1], mixture.shape[2]
        targets = len(self._targets)
        spectrum = tf.cast(estimates, tf.complex64) * phases(mixture)[..., tf.newaxis]
        spectrum = tf.reshape(spectrum, [batch, frames, bins, channels * targets])
        end = (frames - 1) * hop_length + n_fft
        waveforms = tf.reshape(self._istft(spectrum, length=end), [batch, end, channels, targets])
        inner = slice(n_fft // 4, end - n_fft // 4)
        heard = excerpts[:, inner]
        losses = weighted_sdr(
            waveforms[:, inner], self._of_model(heard), tf.reduce_sum(heard, axis=-1), self._combinations
        )
        return tf.cast(tf.reduce_sum(losses), tf.float64) / self._settings.batch_size

    def _valid_replica(self, pieces: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def measure() -> tuple[tf.Tensor, tf.Tensor]:
            mixture, references = spectra(pieces, self._stft)
            estimates = tf.cast(self._filter(self._input(mixture), training=False), tf.float32)
            errors = self._error(estimates, self._of_model(references), mixture)
            return errors, tf.cast(tf.size(mixture[..., 0, 0]), tf.float64)

        if self._strategy.num_replicas_in_sync == 1:
            return measure()
        # At the end of the data some replicas get an empty batch.
        nothing = tf.zeros([len(self._targets)], tf.float64), tf.zeros([], tf.float64)
        return tf.cond(tf.size(pieces) > 0, measure, lambda: nothing)

    def _error(self, estimates: tf.Tensor, references: tf.Tensor, mixture: tf.Tensor) -> tf.Tensor:
        """Return the error of each target summed over batch and frames, float64 `[targets]`."""
        if self._settings.floor_db is None:
            return squared_error(estimates, tf.abs(references))
        decibels = decibel_error(estimates, references, mixture, self._settings.floor_db)
        if self._wiener:
            filtered = wiener_filtered(estimates, tf.abs(mixture))
            decibels = (decibels + decibel_error(filtered, references, mixture, self._settings.floor_db)) / 2
        return tf.cast(tf.reduce_sum(decibels, axis=0), tf.float64) * tf.cast(tf.shape(mixture)[1], tf.float64)

    def _of_model(self, targets: tf.Tensor) -> tf.Tensor:
        """Return those of an excerpt's targets, on the last axis, that the model has."""
        return (
            targets if self._targets == list(range(targets.shape[-1])) else tf.gather(targets, self._targets, axis=-1)
        )

    def _seed_generators(self) -> None:
        """Make dropout depend on the seed, the step and the replica alone.

        So a resumed run draws what an uninterrupted one would, and replicas differ.
        """
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        calls = tf.convert_to_tensor(self._optimizer.iterations) * 256  # leaves room for several calls per step
        for index, state in enumerate(self._generators):
            state.assign(tf.stack([tf.gather(self._seeds[:, index], replica), calls]))
