"""One training run: its model and optimizer, where the loop stands, and what lies in its folder."""

from __future__ import annotations

import importlib.metadata
import logging
import time
from collections.abc import Mapping, Sequence
from typing import NoReturn

import keras
import tensorflow as tf

from umx_model.data.track_folder import Sample
from umx_model.model.folder import write_model_folder
from umx_model.model.spectral_filter import get_joint_spectral_filter, set_input_statistics
from umx_model.profile import Profile
from umx_model.train.backup import Backup
from umx_model.train.checkpoints import Checkpoints, LoopState
from umx_model.train.statistics import input_statistics

_log = logging.getLogger(__name__)


class TrainingFailedError(RuntimeError):
    """Training cannot go on, and not for want of good input; the last checkpoint is good."""


class Run:
    """Holds together what a training changes, and keeps it on disk.

    Args:
        profile: of the model and its training.
        samples: to train on and to validate on, under `train` and `valid`.
        output: the model folder to write.
        strategy: which devices take part.
        data_fingerprint: of the database.
        quiet: show no progress bar.

    Attributes:
        profile: as it is written, with history.
        state: where the loop stands.
        spectral_filter: the joint model, made in the strategy's scope.
        optimizer: made and built there.
        checkpoints: those in `output`, from `start` on.
        backup: asked for a copy after each checkpoint, if any.
    """

    def __init__(
        self,
        profile: Profile,
        samples: Mapping[str, Sequence[Sample]],
        output: str,
        strategy: tf.distribute.Strategy,
        data_fingerprint: str | None,
        quiet: bool,
    ) -> None:
        self._began = time.monotonic()
        self.profile = profile.model_copy(
            update={"made_with": _package_versions(), "data_fingerprint": data_fingerprint, "history": ()}
        )
        self.settings = profile.train
        self.samples = samples
        self.output = output
        self.strategy = strategy
        self.quiet = quiet
        self.state = LoopState.start(profile)
        self.backup: Backup | None = None

        keras.utils.set_random_seed(self.settings.seed)
        with strategy.scope():
            self.spectral_filter = get_joint_spectral_filter(profile.model)
            # The recipe's Adam is PyTorch's, whose epsilon is ten times smaller than Keras'.
            self.optimizer = keras.optimizers.Adam(self.settings.learning_rate, epsilon=1e-8)
            self.optimizer.build(self.spectral_filter.trainable_variables)

    @property
    def seconds(self) -> float:
        """Time spent training, in this process and those before it."""
        return time.monotonic() - self._began

    @property
    def over_time(self) -> bool:
        """Whether `max_minutes` have passed."""
        limit = self.settings.max_minutes
        return limit is not None and self.seconds >= 60 * limit

    def start(self, resume: bool) -> None:
        """Restore the newest checkpoint, or prepare a new model and write the first one."""
        self.checkpoints = Checkpoints(
            self.output, self.spectral_filter, self.optimizer, self.profile, self.profile.data_fingerprint
        )
        if resume and self.checkpoints.latest:
            with self.strategy.scope():
                changed = self.checkpoints.restore(self.state)
            self._adapt(changed)
            _log.info("resumed %s: epoch %d, step %d", self.checkpoints.latest, self.state.epoch + 1, self.state.step)
            self._began -= self.state.seconds
            self.write_profile()
            return
        try:
            mean, std = input_statistics(self.profile, self.samples["train"], self.samples["valid"], self.quiet)
        except BaseException:
            if not tf.io.gfile.listdir(self.output):  # nothing is written yet
                tf.io.gfile.rmtree(self.output)
            raise
        set_input_statistics(self.spectral_filter, mean, std)
        self.write_profile()
        self.save()

    def _adapt(self, changed: set[str]) -> None:
        """Take account of what is not as it was when the checkpoint was written."""
        state = self.state
        if "data_fingerprint" in changed:
            _log.warning(
                "the database has changed since %s was written; validation losses from before no longer count",
                self.checkpoints.latest,
            )
            state.plateau.reset()
            state.stopping.reset()
        if "learning_rate" in changed:
            _log.info("the learning rate is now train.learning_rate, %g", self.settings.learning_rate)
            self.optimizer.learning_rate = self.settings.learning_rate
            state.plateau.restart_count()

    def save(self) -> None:
        """Write a checkpoint."""
        self.expect_finite_weights()
        self.state.seconds = self.seconds
        self.checkpoints.save(self.state)
        self._request_backup()

    def save_best(self) -> None:
        """Write the model as the best so far."""
        self.expect_finite_weights()
        self.checkpoints.save_best(self.state)

    def write_profile(self) -> None:
        """Keep `profile.json` up to date, which checkpoints need to be loaded."""
        self.profile = self.profile.model_copy(update={"history": tuple(self.state.history)})
        self.profile.write(self.output)

    def finish(self) -> Profile:
        """Write the model folder with the best weights."""
        with self.strategy.scope():
            self.checkpoints.restore_best()
        profile = write_model_folder(self.output, self.spectral_filter, self.profile)
        self._request_backup()
        return profile

    def _request_backup(self) -> None:
        if self.backup is not None:
            self.backup.request()

    def expect_finite_weights(self) -> None:
        """Raise TrainingFailedError where a weight is not finite: it must not replace a good checkpoint."""
        if not all(bool(tf.reduce_all(tf.math.is_finite(weight))) for weight in self.spectral_filter.weights):
            self.fail("the model's weights are no longer numbers")

    def fail(self, what: str) -> NoReturn:
        """Raise TrainingFailedError that says where to go on from."""
        raise TrainingFailedError(
            f"{what} (epoch {self.state.epoch + 1}, step {self.state.step}); "
            f"the last good checkpoint is {self.checkpoints.latest}. A lower train.learning_rate may help"
        )


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in ("umx-pro", "tensorflow", "keras", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # run from a checkout
    return versions
