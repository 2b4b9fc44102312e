"""The training loop: epochs of steps, each followed by a validation."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from umx_model.progress import ProgressBar
from umx_model.train.batches import piece_batches, readable, training_batches
from umx_model.train.interrupt import DeferredInterrupt
from umx_model.train.run import Run
from umx_model.train.steps import Steps
from umx_model.train.summaries import Summaries

_log = logging.getLogger(__name__)

_LOG_SECONDS = 10.0  # between points in TensorBoard


class Loop:
    """Trains until there are enough epochs, patience or time is up.

    Args:
        run: started.
        interrupt: asked after every step whether to stop.
    """

    def __init__(self, run: Run, interrupt: DeferredInterrupt) -> None:
        self._run = run
        self._interrupt = interrupt
        self._settings = run.settings
        self._epoch_excerpts = len(run.samples["train"]) * run.settings.excerpts_per_sample
        self._pending: Any = None  # the result of the latest step, which the device may still be working on
        self._meter = _Meter(len(run.profile.model.targets))

    def train(self) -> None:
        """Run epochs."""
        run = self._run
        steps = Steps(run.strategy, run.spectral_filter, run.optimizer, run.profile)
        train = training_batches(run.strategy, run.profile, run.samples["train"], run.state.excerpts)
        valid = run.strategy.distribute_datasets_from_function(
            lambda context: piece_batches(
                run.profile, run.samples["valid"], context.get_per_replica_batch_size(self._settings.batch_size)
            )
        )
        train_step, valid_step = steps.compile_train(train.element_spec), steps.compile_valid(valid.element_spec)
        batches = readable(train)
        self._summaries = Summaries(run.output, run.spectral_filter, run.profile, run.samples["valid"], run.state.step)
        while not self._done():
            self._train_epoch(batches, train_step)
            self._finish_epoch(self._validate(valid, valid_step))
        self._summaries.close()

    def _done(self) -> bool:
        state = self._run.state
        if state.epoch_excerpts:  # an epoch that was begun is validated
            return False
        if state.epoch >= self._settings.epochs:
            reason = f"all {state.epoch} epochs are done"
        elif state.stopping.stop:
            reason = f"no better validation loss for {state.stopping.bad_epochs} epochs"
        elif state.epoch and self._run.over_time:
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
            over = self._epoch_over()
            while not over:
                with self._meter.waiting():
                    batch = next(batches)
                result = step(batch)
                state.step += 1
                state.excerpts += batch_size
                state.epoch_excerpts += batch_size
                # The step before this one: reading its losses does not keep the device from working on.
                self._settle()
                self._pending = result
                bar.advance(batch_size, self._note())
                over, now = self._epoch_over(), time.monotonic()
                if over or now - self._meter.since >= _LOG_SECONDS:
                    self._settle()
                    self._log_training()
                self._stop_if_asked()
                if now - saved >= 60 * self._settings.checkpoint_minutes:
                    self._save()
                    saved = now

    def _epoch_over(self) -> bool:
        """Whether all of the epoch's excerpts are used, or, after a first step, time is up."""
        used = self._run.state.epoch_excerpts
        return used >= self._epoch_excerpts or (used > 0 and self._run.over_time)

    def _settle(self) -> None:
        """Take in the losses of the latest step."""
        if self._pending is None:
            return
        losses, self._pending = self._pending.numpy(), None
        self._expect_finite(losses, "training")
        state, batch_size = self._run.state, self._settings.batch_size
        state.loss_sums = [sum_ + batch_size * float(loss) for sum_, loss in zip(state.loss_sums, losses, strict=True)]
        self._meter.count(losses)

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
                self._stop_if_asked()
        return errors / frames

    def _finish_epoch(self, valid_losses: np.ndarray) -> None:
        """Judge the epoch, keep the best weights, and prepare the next one."""
        run, state, targets = self._run, self._run.state, self._run.profile.model.targets
        train_losses = np.array(state.loss_sums) / state.epoch_excerpts
        valid_loss = float(np.mean(valid_losses))
        self._expect_finite(valid_losses, "validation")
        if state.stopping.step(valid_loss):
            run.save_best()
        learning_rate = float(run.optimizer.learning_rate.numpy())
        entry = {
            "epoch": float(state.epoch + 1),
            "step": float(state.step),
            "train_loss": float(np.mean(train_losses)),
            "valid_loss": valid_loss,
            "learning_rate": learning_rate,
            "seconds": round(run.seconds, 3),
        }
        entry |= {f"valid_loss/{target}": float(loss) for target, loss in zip(targets, valid_losses, strict=True)}
        run.optimizer.learning_rate = state.plateau.step(valid_loss, learning_rate)
        state.history.append(entry)
        state.epoch += 1
        state.epoch_excerpts = 0
        state.loss_sums = [0.0] * len(targets)
        run.save()
        run.write_profile()
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
            gradient_norm=float("nan"),
            excerpts_per_second=meter.steps * self._settings.batch_size / seconds,
            step_seconds=(seconds - meter.waited) / meter.steps,
        )
        meter.restart()

    def _note(self) -> str:
        """What the progress bar says besides."""
        state = self._run.state
        done = state.epoch_excerpts - self._settings.batch_size * (self._pending is not None)
        loss = f"loss {np.mean(state.loss_sums) / done:.4g}" if done else ""
        best = state.stopping.best
        return loss + (f", best validated {best:.4g}" if best < np.inf else "")

    def _save(self) -> None:
        self._settle()
        self._run.save()

    def _stop_if_asked(self) -> None:
        if self._interrupt.requested:
            self._save()
            raise KeyboardInterrupt

    def _expect_finite(self, losses: Sequence[float] | np.ndarray, kind: str) -> None:
        targets = self._run.profile.model.targets
        bad = [target for target, loss in zip(targets, losses, strict=True) if not np.isfinite(loss)]
        if bad:
            self._run.fail(f"the {kind} loss of {', '.join(bad)} is no longer a number")


class _Meter:
    """What has happened since the last point in TensorBoard.

    Attributes:
        since: when that was, on the monotonic clock.
        steps: made since.
        losses: per target, summed over these steps.
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
        self.waited = 0.0

    def count(self, losses: np.ndarray) -> None:
        """Count a step."""
        self.steps += 1
        self.losses += losses

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure a wait for data."""
        start = time.monotonic()
        yield
        self.waited += time.monotonic() - start
