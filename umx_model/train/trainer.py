"""Training: a database of samples in, a model folder out.

    profile = train(Profile.read("profile.json"), data="database", output="model")

The loop draws excerpts, steps, validates after every epoch, and leaves behind at any time what is
needed to go on: `train(..., resume=True)` continues where a run ended, as if it had not.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from umx_model.data.check import check_fits
from umx_model.data.track_folder import Sample, database_fingerprint, read_database
from umx_model.errors import InputError
from umx_model.model.folder import write_model_folder
from umx_model.model.spectral_filter import get_joint_spectral_filter, set_input_statistics
from umx_model.profile import Profile
from umx_model.progress import ProgressBar
from umx_model.train.batches import piece_batches, readable, training_batches
from umx_model.train.checkpoints import Checkpoints, LoopState, prepare_output
from umx_model.train.interrupt import DeferredInterrupt
from umx_model.train.statistics import input_statistics
from umx_model.train.steps import Steps

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0  # between looks at the loss; each waits for the device
_LOG_SECONDS = 10.0  # between points in TensorBoard


class TrainingFailedError(RuntimeError):
    """Training cannot go on, and not for want of good input; the last checkpoint is good."""


def train(
    profile: Profile,
    data: str | os.PathLike[str] | Mapping[str, Sequence[Sample]],
    output: str | os.PathLike[str],
    *,
    resume: bool = False,
    quiet: bool = False,
    data_fingerprint: str | None = None,
) -> Profile:
    """Train a model.

    The recipe is Open-Unmix's (`scripts/train.py`, v1.3.0) as far as the profile does not say
    otherwise. Work is shared out over all GPUs of the machine, or runs under the `tf.distribute`
    strategy whose scope is entered. Python's, NumPy's and TensorFlow's global random seeds are set.

    Args:
        profile: of the model and its training.
        data: a database, or its samples under `train` and `valid`.
        output: the model folder to write: `profile.json`, `model.weights.h5` (the best by
            validation loss) and `saved_model/` at the end, `checkpoints/` and `logs/` (for
            TensorBoard) underway.
        resume: continue from the newest checkpoint in `output`, or start where there is none. The
            model must be the checkpoint's, settings of the training may differ. The learning rate
            (unless `train.learning_rate` was changed) and the time spent (`max_minutes`) continue
            too. Where the database has changed, losses from before do not count any more.
        quiet: show no progress bar.
        data_fingerprint: of the database, to be recorded; computed where `data` is a folder.

    Returns:
        The profile as written: with history, package versions and data fingerprint.

    Raises:
        InputError: data, profile, output folder or checkpoint cannot be used.
        TrainingFailedError: the loss is no longer a number.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is written.
    """
    strategy = _choose_strategy()  # must come before any other TensorFlow operation
    if isinstance(data, Mapping):
        samples = data
    else:
        samples = read_database(os.fspath(data), profile.model.targets, splits=("train", "valid"))
        data_fingerprint = data_fingerprint or database_fingerprint(os.fspath(data))
    check_trainable(profile, samples, strategy.num_replicas_in_sync)
    folder = os.fspath(output)
    run = _Run(profile, samples, folder, strategy, data_fingerprint, quiet)
    prepare_output(folder, resume)  # not before the model is built, which may refuse the profile
    run.start(resume)
    with DeferredInterrupt() as interrupt:
        try:
            run.train(interrupt)
        except InputError as error:
            raise InputError(f"{error}; resuming (--resume) then continues from the last checkpoint") from None
    return run.finish()


class _Run:
    """One training run: the model, the data, and where the loop stands."""

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
        self._profile = profile.model_copy(
            update={"made_with": _package_versions(), "data_fingerprint": data_fingerprint, "history": ()}
        )
        self._settings = profile.train
        self._samples = samples
        self._output = output
        self._strategy = strategy
        self._quiet = quiet
        self._epoch_excerpts = len(samples["train"]) * self._settings.excerpts_per_sample
        self._state = LoopState.start(profile)

        keras.utils.set_random_seed(self._settings.seed)
        with strategy.scope():
            self._filter = get_joint_spectral_filter(profile.model)
            # The recipe's Adam is PyTorch's, whose epsilon is ten times smaller than Keras'.
            self._optimizer = keras.optimizers.Adam(self._settings.learning_rate, epsilon=1e-8)
            self._optimizer.build(self._filter.trainable_variables)

    def start(self, resume: bool) -> None:
        """Restore the newest checkpoint, or prepare a new model and write the first one."""
        self._checkpoints = Checkpoints(
            self._output, self._filter, self._optimizer, self._profile, self._profile.data_fingerprint
        )
        if resume and self._checkpoints.latest:
            with self._strategy.scope():
                changed = self._checkpoints.restore(self._state)
            self._adapt(changed)
            _log.info(
                "resumed %s: epoch %d, step %d", self._checkpoints.latest, self._state.epoch + 1, self._state.step
            )
            self._began -= self._state.seconds
            self._write_profile()
            return
        try:
            mean, std = input_statistics(self._profile, self._samples["train"], self._samples["valid"], self._quiet)
        except BaseException:
            if not tf.io.gfile.listdir(self._output):  # nothing is written yet
                tf.io.gfile.rmtree(self._output)
            raise
        set_input_statistics(self._filter, mean, std)
        self._write_profile()
        self._save()

    def _adapt(self, changed: set[str]) -> None:
        """Take account of what is not as it was when the checkpoint was written."""
        state = self._state
        if "data_fingerprint" in changed:
            _log.warning(
                "the database has changed since %s was written; validation losses from before no longer count",
                self._checkpoints.latest,
            )
            state.plateau.reset()
            state.stopping.reset()
        if "learning_rate" in changed:
            _log.info("the learning rate is now train.learning_rate, %g", self._settings.learning_rate)
            self._optimizer.learning_rate = self._settings.learning_rate
            state.plateau.restart_count()

    def train(self, interrupt: DeferredInterrupt) -> None:
        """Run epochs until there are enough of them, patience or time is up."""
        steps = Steps(self._strategy, self._filter, self._optimizer, self._profile)
        train = training_batches(self._strategy, self._profile, self._samples["train"], self._state.excerpts)
        valid = self._strategy.distribute_datasets_from_function(
            lambda context: piece_batches(
                self._profile, self._samples["valid"], context.get_per_replica_batch_size(self._settings.batch_size)
            )
        )
        train_step, valid_step = steps.compile_train(train.element_spec), steps.compile_valid(valid.element_spec)
        batches = readable(train)
        writer = tf.summary.create_file_writer(os.path.join(self._output, "logs"))
        with writer.as_default():
            while not self._done():
                self._train_epoch(batches, train_step, interrupt)
                self._finish_epoch(self._validate(valid, valid_step, interrupt))
        writer.close()

    def finish(self) -> Profile:
        """Write the model folder with the best weights."""
        with self._strategy.scope():
            self._checkpoints.restore_best()
        return write_model_folder(self._output, self._filter, self._profile)

    def _done(self) -> bool:
        state = self._state
        if state.epoch_excerpts:  # an epoch that was begun is validated
            return False
        if state.epoch >= self._settings.epochs:
            reason = f"all {state.epoch} epochs are done"
        elif state.stopping.stop:
            reason = f"no better validation loss for {state.stopping.bad_epochs} epochs"
        elif state.epoch and self._over_time():
            reason = f"{self._settings.max_minutes:g} minutes are over"
        else:
            return False
        _log.info("training ends: %s", reason)
        return True

    def _over_time(self) -> bool:
        limit = self._settings.max_minutes
        return limit is not None and time.monotonic() - self._began >= 60 * limit

    def _train_epoch(self, batches: Any, step: Any, interrupt: DeferredInterrupt) -> None:
        """Step through what is left of the epoch, or until time is up."""
        state = self._state
        batch_size = self._settings.batch_size
        sums = tf.constant(state.loss_sums, tf.float64)
        looked = saved = time.monotonic()
        logged = (looked, state.epoch_excerpts, np.array(state.loss_sums))
        title = f"epoch {state.epoch + 1}/{self._settings.epochs}"
        with ProgressBar(title, self._epoch_excerpts, "excerpts", self._quiet) as bar:
            note = ""
            bar.advance(state.epoch_excerpts)
            over = self._epoch_over()
            while not over:
                # Not read here: the device works on while the next batch is fetched.
                sums = sums + batch_size * step(next(batches))
                state.step += 1
                state.excerpts += batch_size
                state.epoch_excerpts += batch_size
                over, now = self._epoch_over(), time.monotonic()
                if not over and not interrupt.requested and now - looked < _LOOK_SECONDS:
                    bar.advance(batch_size, note)
                    continue
                looked = now
                state.loss_sums = sums.numpy().tolist()
                self._expect_finite(state.loss_sums, "training")
                note = self._note(float(np.mean(state.loss_sums)) / state.epoch_excerpts)
                bar.advance(batch_size, note)
                if over or now - logged[0] >= _LOG_SECONDS:
                    self._log_training(logged, now)
                    logged = (now, state.epoch_excerpts, np.array(state.loss_sums))
                self._stop_if_asked(interrupt)
                if now - saved >= 60 * self._settings.checkpoint_minutes:
                    self._save()
                    saved = now

    def _epoch_over(self) -> bool:
        """Whether all of the epoch's excerpts are used, or, after a first step, time is up."""
        used = self._state.epoch_excerpts
        return used >= self._epoch_excerpts or (used > 0 and self._over_time())

    def _validate(self, batches: Any, step: Any, interrupt: DeferredInterrupt) -> np.ndarray:
        """Return the loss per target over all frames of the valid samples."""
        model = self._profile.model
        errors, frames = np.zeros(len(model.targets)), 0.0
        seconds = sum(sample.length for sample in self._samples["valid"]) / model.sample_rate
        with ProgressBar("validating", seconds, "s", self._quiet) as bar:
            for batch in readable(batches):
                batch_errors, batch_frames = step(batch)
                errors += batch_errors.numpy()
                frames += float(batch_frames)
                bar.advance(float(batch_frames) * model.hop_length / model.sample_rate)
                self._stop_if_asked(interrupt)
        return errors / frames

    def _finish_epoch(self, valid_losses: np.ndarray) -> None:
        """Judge the epoch, keep the best weights, and prepare the next one."""
        state, targets = self._state, self._profile.model.targets
        train_losses = np.array(state.loss_sums) / state.epoch_excerpts
        valid_loss = float(np.mean(valid_losses))
        self._expect_finite(valid_losses, "validation")
        if state.stopping.step(valid_loss):
            self._expect_finite_weights()
            self._checkpoints.save_best(state)
        learning_rate = float(self._optimizer.learning_rate.numpy())
        entry = {
            "epoch": float(state.epoch + 1),
            "step": float(state.step),
            "train_loss": float(np.mean(train_losses)),
            "valid_loss": valid_loss,
            "learning_rate": learning_rate,
            "seconds": round(time.monotonic() - self._began, 3),
        }
        for target, loss in zip(targets, valid_losses, strict=True):
            entry[f"valid_loss/{target}"] = float(loss)
            tf.summary.scalar(f"valid_loss/{target}", loss, step=state.step)
        tf.summary.scalar("valid_loss", valid_loss, step=state.step)
        self._optimizer.learning_rate = state.plateau.step(valid_loss, learning_rate)
        state.history.append(entry)
        state.epoch += 1
        state.epoch_excerpts = 0
        state.loss_sums = [0.0] * len(targets)
        self._save()
        self._write_profile()
        _log.info(
            "epoch %d: training loss %.6g, validation loss %.6g (best %.6g), learning rate %.3g, %.0f s",
            *(state.epoch, entry["train_loss"], valid_loss, state.stopping.best, learning_rate, entry["seconds"]),
        )

    def _log_training(self, since: tuple[float, int, np.ndarray], now: float) -> None:
        """Give TensorBoard what happened since the last point."""
        state = self._state
        then, excerpts, sums = since
        count = state.epoch_excerpts - excerpts
        losses = (np.array(state.loss_sums) - sums) / count
        for target, loss in zip(self._profile.model.targets, losses, strict=True):
            tf.summary.scalar(f"train_loss/{target}", loss, step=state.step)
        tf.summary.scalar("train_loss", np.mean(losses), step=state.step)
        tf.summary.scalar("learning_rate", self._optimizer.learning_rate, step=state.step)
        tf.summary.scalar("excerpts_per_second", count / (now - then), step=state.step)

    def _note(self, loss: float) -> str:
        best = self._state.stopping.best
        return f"loss {loss:.4g}" + (f", best validated {best:.4g}" if best < np.inf else "")

    def _save(self) -> None:
        self._expect_finite_weights()
        self._state.seconds = time.monotonic() - self._began
        self._checkpoints.save(self._state)

    def _write_profile(self) -> None:
        """Keep `profile.json` up to date, which checkpoints need to be loaded."""
        self._profile = self._profile.model_copy(update={"history": tuple(self._state.history)})
        self._profile.write(self._output)

    def _stop_if_asked(self, interrupt: DeferredInterrupt) -> None:
        if interrupt.requested:
            self._save()
            raise KeyboardInterrupt

    def _expect_finite(self, losses: Sequence[float] | np.ndarray, kind: str) -> None:
        targets = self._profile.model.targets
        bad = [target for target, loss in zip(targets, losses, strict=True) if not np.isfinite(loss)]
        if bad:
            self._fail(f"the {kind} loss of {', '.join(bad)} is no longer a number")

    def _expect_finite_weights(self) -> None:
        if not all(bool(tf.reduce_all(tf.math.is_finite(weight))) for weight in self._filter.weights):
            self._fail("the model's weights are no longer numbers")

    def _fail(self, what: str) -> None:
        raise TrainingFailedError(
            f"{what} (epoch {self._state.epoch + 1}, step {self._state.step}); "
            f"the last good checkpoint is {self._checkpoints.latest}. A lower train.learning_rate may help"
        )


def _choose_strategy() -> tf.distribute.Strategy:
    """Take the strategy in whose scope we are, all GPUs where there are several, else one device."""
    if not tf.distribute.has_strategy() and len(tf.config.list_logical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def check_trainable(profile: Profile, samples: Mapping[str, Sequence[Sample]], replicas: int) -> None:
    """Refuse what cannot be trained on before anything is written.

    Args:
        profile: of the model and its training.
        samples: to train on and to validate on, under `train` and `valid`.
        replicas: devices that share each batch.

    Raises:
        InputError: settings that do not go together, or samples that do not fit them.
    """
    model, settings = profile.model, profile.train
    if settings.excerpt_seconds * model.sample_rate < model.n_fft:
        raise InputError(
            f"train.excerpt_seconds: {settings.excerpt_seconds:g} s is shorter than one frame of "
            f"{model.n_fft} samples (model.n_fft); use at least {model.n_fft / model.sample_rate:.3g} s"
        )
    if settings.batch_size % replicas:
        raise InputError(
            f"train.batch_size: {settings.batch_size} excerpts cannot be shared out evenly over "
            f"{replicas} devices; use a multiple of {replicas}"
        )
    for split in ("train", "valid"):
        if not samples.get(split):
            raise InputError(f"{split}: no samples; a database needs at least one to train on and one to validate on")
    check_fits(samples["train"], model, settings.excerpt_seconds)
    check_fits(samples["valid"], model, model.n_fft / model.sample_rate)


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in ("umx-pro", "tensorflow", "keras", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # run from a checkout
    return versions
