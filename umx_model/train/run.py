"""One training run: its model and optimizer, where the loop stands, and what lies in its folder."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from umx_model.data.track_folder import Sample
from umx_model.errors import InputError
from umx_model.model.folder import read_profile, write_model_folder
from umx_model.model.spectral_filter import freeze_filters, get_joint_spectral_filter, set_input_statistics
from umx_model.profile import Profile
from umx_model.train.adam import make_optimizer
from umx_model.train.backup import Backup
from umx_model.train.checkpoints import Checkpoints, Copy, LoopState
from umx_model.train.provenance import continued, provenance
from umx_model.train.schedule import share_done
from umx_model.train.statistics import input_statistics
from umx_model.train.strategy import Workers
from umx_model.train.warm_start import take_weights

_log = logging.getLogger(__name__)


class NonFiniteError(Exception):
    """A loss or a weight is NaN or infinite.

    Args:
        what: what is no longer finite.
        excerpts: number of the first excerpt of the step that did it; None where it was not a step.
    """

    def __init__(self, what: str, excerpts: int | None = None) -> None:
        super().__init__(what)
        self.excerpts = excerpts


class TrainingFailedError(RuntimeError):
    """Training cannot go on, and not for want of good input; the last checkpoint is good."""


class Run:
    """Holds together what a training changes, and keeps it on disk.

    Args:
        profile: of the model and its training.
        samples: to train on and to validate on, under `train` and `valid`.
        output: the model folder to write.
        strategy: which devices take part.
        workers: the processes that do.
        data_fingerprint: of the database.
        quiet: show no progress bar.
        start_from: model folder or checkpoint whose weights a new training starts from; None for random ones.

    Attributes:
        profile: as it is written, with history.
        state: where the loop stands.
        spectral_filter: the joint model, made in the strategy's scope.
        optimizer: made and built there.
        checkpoints: those in `output`, from `start` on.
        lock: held while weights and state change, or are written.
        backup: asked for a copy after each checkpoint, if any.
    """

    def __init__(
        self,
        profile: Profile,
        samples: Mapping[str, Sequence[Sample]],
        output: str,
        strategy: tf.distribute.Strategy,
        workers: Workers,
        data_fingerprint: str | None,
        quiet: bool,
        start_from: str | None = None,
    ) -> None:
        self._began = time.monotonic()
        self.profile = profile.model_copy(
            update={"data_fingerprint": data_fingerprint, "history": (), "scores": {}, "weights_sha256": None}
        )
        self.settings = profile.train
        self.samples = samples
        self.output = output
        self.strategy = strategy
        self.workers = workers
        self.quiet = quiet
        self._start_from = start_from
        self.state = LoopState.start(profile)
        self.state.made_with = provenance(strategy)
        self.lock = threading.RLock()
        self._saved: tuple[int, int, int] | None = None  # the progress that the last checkpoint holds
        self._resumed: int | None = None  # the step at which this process took over, until it is recorded
        self.backup: Backup | None = None

        keras.utils.set_random_seed(self.settings.seed)
        with strategy.scope():
            precision = self.settings.precision
            dtype = None if precision == "float32" else f"mixed_{precision}"
            self.spectral_filter = get_joint_spectral_filter(profile.model, dtype)
            if self.settings.freeze_filters:
                freeze_filters(self.spectral_filter)
            self.optimizer = make_optimizer(self.settings.learning_rate, precision)
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

    @property
    def checkpoint_bytes(self) -> int:
        """What a checkpoint takes on disk."""
        variables = [*self.spectral_filter.variables, *self.optimizer.variables]
        return sum(int(np.prod(variable.shape)) * tf.as_dtype(variable.dtype).size for variable in variables)

    def start(self, resume: bool) -> None:
        """Restore the newest checkpoint, or prepare a new model and write the first one."""
        self.checkpoints = Checkpoints(
            self.output, self.spectral_filter, self.optimizer, self.profile, self.profile.data_fingerprint
        )
        if self.workers.chief:
            if resume and self.checkpoints.latest:
                self._resume()
            else:
                self._prepare()
        self._follow_chief()

    def _resume(self) -> None:
        """Take over the newest checkpoint."""
        changed = self._restore()
        self._inherit_license(self.output)
        self._began -= self.state.seconds
        self._adapt(changed)
        self.state.made_with = continued(self.state.made_with, provenance(self.strategy), self.state.step)
        self._resumed = self.state.step
        _log.info("resumed %s: epoch %d, step %d", self.checkpoints.current, self.state.epoch + 1, self.state.step)
        self.write_profile()

    def go_back(self) -> None:
        """Take over the newest checkpoint in the midst of training."""
        with self.lock:
            if self.workers.chief:
                self._adapt(self._restore())
            self._follow_chief()

    def _restore(self) -> set[str]:
        changed = self.checkpoints.restore(self.state)
        self._saved = self._progress()
        return changed

    def _prepare(self) -> None:
        """Take over another model's weights, or measure the music; then write the first checkpoint."""
        try:
            if self._start_from is not None:
                self.state.started_from = take_weights(self.spectral_filter, self.profile.model, self._start_from)
                self._inherit_license(self._start_from)
            elif self.settings.freeze_filters:
                raise InputError(
                    "train.freeze_filters: would leave filters with random weights as they are; name a model to start "
                    "from (--init-from), or set it to false"
                )
            else:
                mean, std = input_statistics(self.profile, self.samples["train"], self.samples["valid"], self.quiet)
                set_input_statistics(self.spectral_filter, mean, std)
        except BaseException:
            with contextlib.suppress(tf.errors.OpError):
                if not tf.io.gfile.listdir(self.output):  # nothing is written yet
                    tf.io.gfile.rmtree(self.output)
            raise
        self.write_profile()
        self.save()

    def _inherit_license(self, model: str) -> None:
        """Keep to the licence of the weights that training starts from, besides the one that the profile states."""
        ours, theirs = self.profile.license, read_profile(model).license
        if ours and theirs:
            theirs = theirs if ours in theirs else f"{theirs} AND {ours}"
        self.profile = self.profile.model_copy(update={"license": theirs or ours})

    def _follow_chief(self) -> None:
        """Give every worker the chief's model, optimizer and state."""
        self.workers.share_variables([*self.spectral_filter.variables, *self.optimizer.variables])
        self.state.resume(json.loads(self.workers.share_text(json.dumps(self.state.document()))))
        if not self.workers.chief:
            self._began = time.monotonic() - self.state.seconds
            self._saved = self._progress()

    def _adapt(self, changed: set[str]) -> None:
        """Take account of what is not as it was when the checkpoint was written."""
        state = self.state
        for name, what in (("data_fingerprint", "the database"), ("floor_db", "train.floor_db")):
            if name in changed:
                _log.warning(
                    "%s has changed since %s was written; validation losses from before no longer count",
                    what,
                    self.checkpoints.current,
                )
                state.plateau.reset()
                state.stopping.reset()
        if "learning_rate" in changed:
            _log.info("the learning rate is now train.learning_rate, %g", self.settings.learning_rate)
            self.optimizer.learning_rate = self.settings.learning_rate
            state.plateau.restart_count()
        done = self.share_done(state.epoch)
        if self.settings.decay == "cosine" and done < 1 and float(self.optimizer.learning_rate.numpy()) == 0:
            # It had ended, and is to last longer now.
            rate = self.settings.learning_rate * (1 + math.cos(math.pi * done)) / 2
            _log.info("the learning rate goes on from %.3g", rate)
            self.optimizer.learning_rate = rate

    def share_done(self, epochs: int) -> float:
        """Return how much of the training was done after so many epochs, from 0 to 1."""
        seconds = self.state.history[epochs - 1]["seconds"] if epochs else 0.0
        return share_done(epochs, seconds, self.settings.epochs, self.settings.max_minutes)

    def save(self) -> None:
        """Write a checkpoint, unless nothing has happened since the last one was written or read.

        Raises:
            NonFiniteError: a weight is not finite, and must not replace a good checkpoint.
        """
        with self.lock:
            if self._progress() == self._saved:
                return
            self._expect_finite_weights()
            if self._resumed is not None:
                self.state.resumed.append(self._resumed)
                self._resumed = None
            self.state.seconds = self.seconds
            if self.workers.chief:
                self.checkpoints.save(self.state)
            self._saved = self._progress()
        self._request_backup()

    def copy(self) -> Copy:
        """Take note of all that a checkpoint written now would hold."""
        self.state.seconds = self.seconds
        return self.checkpoints.copy(self.state)

    def holds(self, copy: Copy) -> bool:
        """Whether the last checkpoint holds what was copied."""
        return (copy.state["epoch"], copy.state["step"], copy.state["epoch_excerpts"]) == self._saved

    def save_best(self) -> None:
        """Write the model as the best so far."""
        self._expect_finite_weights()
        if self.workers.chief:
            self.checkpoints.save_best(self.state)

    def write_profile(self) -> None:
        """Keep `profile.json` up to date, which checkpoints need to be loaded."""
        made_with = dict(self.state.made_with)
        if self.state.started_from is not None:
            made_with["started_from"] = self.state.started_from
        if self.state.resumed:
            made_with["resumed"] = f"at step {', '.join(map(str, self.state.resumed))}"
        self.profile = self.profile.model_copy(update={"made_with": made_with, "history": tuple(self.state.history)})
        if self.workers.chief:
            self.profile.write(self.output)

    def finish(self) -> Profile:
        """Write the model folder with the best weights."""
        profile = self.profile
        if self.workers.chief:
            self.checkpoints.restore_best(self.state)
            profile = write_model_folder(self.output, self.spectral_filter, self.profile)
            self._request_backup()
        return Profile.parse(self.workers.share_text(profile.model_dump_json()))

    def _request_backup(self) -> None:
        if self.backup is not None:
            self.backup.request()

    def _progress(self) -> tuple[int, int, int]:
        return self.state.epoch, self.state.step, self.state.epoch_excerpts

    def _expect_finite_weights(self) -> None:
        if not all(bool(tf.reduce_all(tf.math.is_finite(weight))) for weight in self.spectral_filter.weights):
            raise NonFiniteError("the model's weights are no longer numbers")

    def failure(self, what: str) -> TrainingFailedError:
        """Return an error that says what is not finite, where, and where to go on from."""
        return TrainingFailedError(
            f"{what} (epoch {self.state.epoch + 1}, step {self.state.step}); the last good checkpoint is "
            f"{self.checkpoints.current or 'with the chief'}. "
            "A lower train.learning_rate may help, or train.on_non_finite=lower_rate"
        )
