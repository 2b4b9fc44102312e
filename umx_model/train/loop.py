"""The training loop: epochs of steps, each followed by a validation."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from umx_model.progress import ProgressBar
from umx_model.train.batches import readable, training_batches, validation_batches
from umx_model.train.blame import blame_excerpts, blame_validation
from umx_model.train.checkpoints import Copy
from umx_model.train.interrupt import Interrupt
from umx_model.train.run import NonFiniteError, Run
from umx_model.train.schedule import cosine_decay
from umx_model.train.steps import Steps
from umx_model.train.summaries import Summaries

_log = logging.getLogger(__name__)

_LOG_SECONDS = 10.0  # between points in TensorBoard
_LONG_STEP_SECONDS = 2.0  # after SIGTERM, longer ones may not be waited for
_MOST_SETBACKS = 3  # within an epoch


class Loop:
    """Trains until there are enough epochs, patience or time is up.

    Args:
        run: started.
        interrupt: asked after every step whether to stop.
    """

    def __init__(self, run: Run, interrupt: Interrupt) -> None:
        self._run = run
        self._interrupt = interrupt
        self._settings = run.settings
        self._epoch_excerpts = len(run.samples["train"]) * run.settings.excerpts_per_sample
        self._pending: Any = None  # the result of the latest step, which the device may still be working on
        self._before_step: Copy | None = None  # where steps are long: what was there before the one underway
        self._meter = _Meter(len(run.profile.model.targets))

    def train(self) -> None:
        """Run epochs.

        Raises:
            TrainingFailedError: the loss is not finite, and going back is not wanted or does not help.
        """
        run = self._run
        steps = Steps(run.strategy, run.spectral_filter, run.optimizer, run.profile)
        train = self._batches()
        valid = validation_batches(run.strategy, run.profile, run.samples["valid"])
        train_step, valid_step = steps.compile_train(train.element_spec), steps.compile_valid(valid.element_spec)
        if run.workers.chief:
            self._summaries = Summaries(
                run.output, run.spectral_filter, run.profile, run.samples["valid"], run.state.step
            )
        batches = readable(train)
        while not self._done():
            try:
                self._train_epoch(batches, train_step)
                self._finish_epoch(self._validate(valid, valid_step))
            except NonFiniteError as error:
                self._go_back(error)
                batches = readable(self._batches())
        if run.workers.chief:
            self._summaries.close()

    def rescue(self) -> None:
        """Save from another thread what the main one, held up by a step or by reading, has not saved; back it up."""
        run, copy = self._run, self._before_step
        if run.lock.acquire(blocking=copy is None):  # otherwise a long step is underway
            try:
                self._save()
            finally:
                run.lock.release()
        elif copy is not None and not run.holds(copy):
            run.checkpoints.save_copy(copy)
        if run.backup is not None:
            run.backup.hurry()

    def _batches(self) -> Any:
        run = self._run
        return training_batches(run.strategy, run.profile, run.samples["train"], run.state.excerpts)

    def _done(self) -> bool:
        state = self._run.state
        if state.epoch_excerpts:  # an epoch that was begun is validated
            return False
        if state.epoch >= self._settings.epochs:
            reason = f"all {state.epoch} epochs are done"
        elif state.stopping.stop:
            reason = f"no better validation loss for {state.stopping.bad_epochs} epochs"
        elif state.epoch and self._agree(self._run.over_time)[0]:
            reason = f"{self._settings.max_minutes:g} minutes are over"
        else:
            return False
        _log.info("training ends: %s", reason)
        return True

    def _train_epoch(self, batches: Any, step: Any) -> None:
        """Step through what is left of the epoch, or until time is up."""
        state, batch_size = self._run.state, self._settings.batch_size
        self._meter.restart()
        saved = time.monotonic()
        title = f"epoch {state.epoch + 1}/{self._settings.epochs}"
        with ProgressBar(title, self._epoch_excerpts, "excerpts", self._run.quiet) as bar:
            bar.advance(state.epoch_excerpts)
            (over,) = self._agree(self._epoch_over())
            while not over:
                with self._meter.waiting():
                    batch = next(batches)
                start = time.monotonic()
                with self._run.lock:
                    result = step(batch)
                    state.step += 1
                    state.excerpts += batch_size
                    state.epoch_excerpts += batch_size
                    # The step before this one: reading its losses does not keep the device from working on.
                    self._settle()
                    self._pending = result, state.excerpts - batch_size
                    self._expect_long_step(time.monotonic() - start)
                bar.advance(batch_size, self._note())
                now = time.monotonic()
                over, log, save, stop = self._agree(
                    self._epoch_over(),
                    now - self._meter.since >= _LOG_SECONDS,
                    now - saved >= 60 * self._settings.checkpoint_minutes,
                    self._interrupt.requested,
                )
                if over or log:
                    self._settle()
                    if self._run.workers.chief:
                        self._log_training()
                    self._meter.restart()
                if stop:
                    self._stop()
                if save:
                    self._save()
                    saved = now

    def _expect_long_step(self, seconds: float) -> None:
        """Keep what is to be saved if SIGTERM comes in the midst of the next step, where the last one took long."""
        self._before_step = None
        if seconds > _LONG_STEP_SECONDS and self._run.strategy.num_replicas_in_sync == 1:
            self._settle()
            self._before_step = self._run.copy()

    def _epoch_over(self) -> bool:
        """Whether all of the epoch's excerpts are used, or, after a first step, time is up."""
        used = self._run.state.epoch_excerpts
        return used >= self._epoch_excerpts or (used > 0 and self._run.over_time)

    def _settle(self) -> None:
        """Take in the losses of the latest step."""
        with self._run.lock:
            if self._pending is None:
                return
            (result, first_excerpt), self._pending = self._pending, None
            losses = result.losses.numpy()
            self._expect_finite(losses, "training", first_excerpt)
            if self._settings.precision != "float16" and not np.isfinite(result.gradient_norm):
                raise NonFiniteError("the gradient is no longer a number", first_excerpt)
            if not np.isfinite(float(result.objective)):  # of waveforms, which magnitudes say nothing about
                raise NonFiniteError("the training objective is no longer a number", first_excerpt)
            state, share = self._run.state, self._settings.batch_size * losses
            state.loss_sums = [float(sum_ + loss) for sum_, loss in zip(state.loss_sums, share, strict=True)]
            self._meter.count(losses, float(result.gradient_norm))

    def _validate(self, batches: Any, step: Any) -> np.ndarray:
        """Return the loss per target over all frames of the valid samples."""
        model = self._run.profile.model
        errors, frames = np.zeros(len(model.targets)), 0.0
        seconds = sum(sample.length for sample in self._run.samples["valid"]) / model.sample_rate
        with ProgressBar("validating", seconds, "s", self._run.quiet) as bar:
            for batch in readable(batches):
                batch_errors, batch_frames = step(batch)
                errors += batch_errors.numpy()
                frames += float(batch_frames)
                bar.advance(float(batch_frames) * model.hop_length / model.sample_rate)
                if self._agree(self._interrupt.requested)[0]:
                    self._stop()
        return errors / frames

    def _go_back(self, error: NonFiniteError) -> None:
        """Go on from the last good checkpoint with a lower rate, behind the excerpts used since; or fail."""
        run, state = self._run, self._run.state
        self._pending = self._before_step = None
        excerpts, setbacks = state.excerpts, state.setbacks + 1
        rate = float(run.optimizer.learning_rate.numpy())
        failure = run.failure(str(error))
        run.go_back()
        if not run.workers.chief:
            pass  # one is enough to look for the cause
        elif error.excerpts is None:
            blame_validation(run.profile, run.samples["valid"], run.spectral_filter)
        else:
            batch_size = self._settings.batch_size
            blame_excerpts(run.profile, run.samples["train"], run.spectral_filter, error.excerpts, batch_size)
        if self._settings.on_non_finite == "stop" or setbacks > _MOST_SETBACKS:
            raise failure
        state.excerpts, state.setbacks = max(excerpts, state.excerpts), setbacks
        rate = min(rate, float(run.optimizer.learning_rate.numpy())) * self._settings.plateau_factor
        run.optimizer.learning_rate = rate
        _log.warning(
            "%s; going on from %s with other excerpts and a learning rate of %.3g", error, run.checkpoints.current, rate
        )

    def _finish_epoch(self, valid_losses: np.ndarray) -> None:
        """Judge the epoch, keep the best weights, and prepare the next one."""
        run, state, targets = self._run, self._run.state, self._run.profile.model.targets
        train_losses = np.array(state.loss_sums) / state.epoch_excerpts
        valid_loss = float(np.mean(valid_losses))
        self._expect_finite(valid_losses, "validation")
        (seconds,) = run.workers.maximum(run.seconds)  # the rate may depend on it
        with run.lock:
            if state.stopping.step(valid_loss):
                run.save_best()
            learning_rate = float(run.optimizer.learning_rate.numpy())
            entry = {
                "epoch": float(state.epoch + 1),
                "step": float(state.step),
                "train_loss": float(np.mean(train_losses)),
                "valid_loss": valid_loss,
                "learning_rate": learning_rate,
                "seconds": round(seconds, 3),
            }
            entry |= {f"valid_loss/{target}": float(loss) for target, loss in zip(targets, valid_losses, strict=True)}
            state.history.append(entry)
            state.epoch += 1
            rate = state.plateau.step(valid_loss, learning_rate)
            if self._settings.decay == "cosine":
                before = run.share_done(state.epoch - 1)
                rate = cosine_decay(learning_rate, before, run.share_done(state.epoch))
            run.optimizer.learning_rate = rate
            state.setbacks = 0
            state.epoch_excerpts = 0
            state.loss_sums = [0.0] * len(targets)
            run.save()
            run.write_profile()
            if self._before_step is not None:
                self._before_step = run.copy()  # the epoch counts as finished from here on
        if run.workers.chief:
            self._summaries.validation(state.step, valid_losses)
            self._summaries.excerpts(state.step, state.epoch, lambda: self._interrupt.requested)
        _log.info(
            "epoch %d: training loss %.6g, validation loss %.6g (best %.6g), learning rate %.3g, %.0f s",
            *(state.epoch, entry["train_loss"], valid_loss, state.stopping.best, learning_rate, entry["seconds"]),
        )

    def _log_training(self) -> None:
        """Give TensorBoard what happened since the last point."""
        state, meter = self._run.state, self._meter
        seconds = time.monotonic() - meter.since
        self._summaries.training(
            state.step,
            state.epoch + state.epoch_excerpts / self._epoch_excerpts,
            losses=meter.losses / meter.steps,
            learning_rate=float(self._run.optimizer.learning_rate.numpy()),
            gradient_norm=meter.gradient_norm,
            excerpts_per_second=meter.steps * self._settings.batch_size / seconds,
            step_seconds=(seconds - meter.waited) / meter.steps,
        )

    def _note(self) -> str:
        """What the progress bar says besides."""
        state = self._run.state
        done = state.epoch_excerpts - self._settings.batch_size * (self._pending is not None)
        loss = f"loss {np.mean(state.loss_sums) / done:.4g}" if done else ""
        best = state.stopping.best
        loss += f", best validated {best:.4g}" if best < np.inf else ""
        return f"{loss}, all within {self._time_left()}" if done else loss

    def _time_left(self) -> str:
        """How long the rest of the training takes at most: until the last epoch, or until time is up."""
        run, state = self._run, self._run.state
        epochs = state.epoch + state.epoch_excerpts / self._epoch_excerpts
        seconds = run.seconds / epochs * (self._settings.epochs - epochs)
        if self._settings.max_minutes is not None:
            seconds = min(seconds, 60 * self._settings.max_minutes - run.seconds)
        for length, unit in ((86400, "days"), (3600, "h")):
            if seconds > 2 * length:
                return f"{seconds / length:.1f} {unit}"
        return f"{max(1, round(seconds / 60))} min"

    def _save(self) -> None:
        with self._run.lock:
            self._settle()
            self._run.save()

    def _stop(self) -> None:
        """Save, and end as the signal says that this worker or another was sent."""
        self._interrupt.acknowledge()
        self._save()
        (number,) = self._run.workers.maximum(self._interrupt.number)  # the chief has saved when it gets here
        self._interrupt.stop(int(number))

    def _agree(self, *due: bool) -> list[bool]:
        """Return what is due on any worker: their clocks and signals differ, and they must decide alike."""
        return [bool(value) for value in self._run.workers.maximum(*due)]

    def _expect_finite(self, losses: Sequence[float] | np.ndarray, kind: str, excerpts: int | None = None) -> None:
        targets = self._run.profile.model.targets
        bad = [target for target, loss in zip(targets, losses, strict=True) if not np.isfinite(loss)]
        if bad:
            raise NonFiniteError(f"the {kind} loss of {', '.join(bad)} is no longer a number", excerpts)


class _Meter:
    """What has happened since the last point in TensorBoard.

    Attributes:
        since: when that was, on the monotonic clock.
        steps: made since.
        losses: per target, summed over these steps.
        gradient_norm: its mean over these steps, without those that overflowed.
        waited: seconds for data.
    """

    def __init__(self, targets: int) -> None:
        self._targets = targets
        self.restart()

    def restart(self) -> None:
        """Begin a new stretch now."""
        self.since = time.monotonic()
        self.steps = 0
        self.losses = np.zeros(self._targets)
        self._norms: list[float] = []
        self.waited = 0.0

    @property
    def gradient_norm(self) -> float:
        return float(np.mean(self._norms)) if self._norms else np.nan

    def count(self, losses: np.ndarray, gradient_norm: float) -> None:
        """Count a step."""
        if np.isfinite(gradient_norm):
            self._norms.append(gradient_norm)
        self.steps += 1
        self.losses += losses

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure a wait for data."""
        start = time.monotonic()
        yield
        self.waited += time.monotonic() - start
