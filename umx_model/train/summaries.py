"""What TensorBoard shows of a training: `tensorboard --logdir MODEL/logs`.

logs/events...           curves: losses, learning rate, gradients, speed
logs/excerpts/events...  excerpts of validation samples, as sound and as pictures: one file per occasion
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from umx_model.data import audio
from umx_model.data.remote import is_remote
from umx_model.data.track_folder import Sample, concurrently
from umx_model.errors import InputError
from umx_model.model.umx import UMX
from umx_model.profile import Profile
from umx_model.train.pictures import draw

_log = logging.getLogger(__name__)

FOLDER = "logs"
EXCERPTS = "excerpts"

_EXCERPTS = 3
_SECONDS = 5.0  # of an excerpt
_PLACES = 5  # in a sample, among which an excerpt is chosen
_SOUNDS = 10 ** (-50 / 20)  # RMS above which a target is heard
_KEPT = 10  # occasions, the first among them: as many as TensorBoard shows, and 25 MB each with four stereo targets


class Summaries:
    """Writes TensorBoard's curves, sounds and pictures for one process of a training.

    What cannot be written is left out with a warning, and tried again after the next epoch. Nothing here
    draws random numbers or changes the model.

    Args:
        output: the model folder, local or remote.
        spectral_filter: the joint model, whose weights are those of the moment.
        profile: of the model and its training.
        valid: validation samples, of which excerpts are chosen.
        step: where training starts or resumes. What an earlier process that was killed wrote about
            later steps is not shown.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        spectral_filter: keras.Model,
        profile: Profile,
        valid: Sequence[Sample],
        step: int,
    ) -> None:
        self._folder = os.path.join(os.fspath(output), FOLDER)
        self._profile = profile
        self._valid = valid
        self._step = step  # of the last point
        self._writer: Any = None
        self._warned = False
        self._excerpts: list[tuple[str, np.ndarray]] | None = None
        self._umx = UMX(spectral_filter, niter=0)
        self._analyse = tf.function(self._separate_and_transform, autograph=False)

    def training(
        self,
        step: int,
        epoch: float,
        losses: Sequence[float] | np.ndarray,
        learning_rate: float,
        gradient_norm: float,
        excerpts_per_second: float,
        step_seconds: float,
    ) -> None:
        """Write a point of the training curves.

        Args:
            step: optimizer steps made.
            epoch: epochs made, with the part of the current one.
            losses: of each target, the mean since the last point.
            learning_rate: of the moment.
            gradient_norm: L2 norm of all gradients, the mean since the last point.
            excerpts_per_second: since the last point.
            step_seconds: duration of a step, the mean since the last point.
        """
        if self._warned and self._writer is None:
            return  # until the epoch is over
        values = {
            **self._losses("train_loss", losses),
            "epoch": epoch,
            "learning_rate": learning_rate,
            "gradient_norm": gradient_norm,
            "excerpts_per_second": excerpts_per_second,
            "step_seconds": step_seconds,
        }
        self._write_curves(step, values)

    def validation(self, step: int, losses: Sequence[float] | np.ndarray) -> None:
        """Write a point of the validation curves: the loss of each target."""
        self._write_curves(step, self._losses("valid_loss", losses), flush=True)

    def excerpts(self, step: int, epoch: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Write excerpts after the first and every `train.summary_epochs`-th epoch.

        Args:
            step: optimizer steps made.
            epoch: epochs finished.
            stop: whether to leave it at that, asked before each excerpt.
        """
        if epoch != 1 and epoch % self._profile.train.summary_epochs:
            return
        with self._guarded():
            if self._excerpts is None:
                self._excerpts = choose_excerpts(self._valid, self._profile.mixture_targets)
            folder = os.path.join(self._folder, EXCERPTS)
            writer = _create_writer(folder, step, f".step-{step}")
            try:
                with writer.as_default(step):
                    for name, waveforms in self._excerpts:
                        if stop():
                            return
                        self._write_excerpt(name, waveforms)
            finally:
                writer.close()
            _remove_old(folder)

    def close(self) -> None:
        """Write what is held back."""
        if self._writer is not None:
            with self._guarded():
                self._writer.close()

    def _losses(self, kind: str, losses: Sequence[float] | np.ndarray) -> dict[str, float]:
        each = {f"{kind}/{target}": loss for target, loss in zip(self._profile.model.targets, losses, strict=True)}
        return {**each, kind: float(np.mean(losses))}

    def _write_curves(self, step: int, values: dict[str, float], flush: bool = False) -> None:
        with self._guarded():
            if self._writer is None:
                # Every flush sends the whole file to a bucket again.
                seconds = 120 if is_remote(self._folder) else 1
                self._writer = _create_writer(self._folder, self._step + 1, ".curves", seconds)
            if step < self._step:  # training has gone back
                _forget(self._writer, step)
            with self._writer.as_default(step):
                for name, value in values.items():
                    tf.summary.scalar(name, value)
            if flush:
                self._writer.flush()
            self._step = step
            self._warned = False

    def _write_excerpt(self, name: str, waveforms: np.ndarray) -> None:
        """Write the sound and the picture of an excerpt, float32 `[samples, channels, mixture targets]`."""
        model, mixture_targets = self._profile.model, self._profile.mixture_targets
        mixture = waveforms.sum(axis=-1)
        targets = waveforms[..., [mixture_targets.index(target) for target in model.targets]]
        estimates, magnitudes = (result.numpy() for result in self._analyse(mixture, targets))
        self._write_sound(f"{name}/mixture", mixture)
        rows = []
        for index, target in enumerate(model.targets):
            self._write_sound(f"{name}/{target}", targets[..., index])
            self._write_sound(f"{name}/{target} estimate", estimates[..., index])
            places = 0, 1 + index, 1 + len(model.targets) + index
            names = "mixture", target, f"{target} estimate"
            rows.append([(name, magnitudes[place]) for name, place in zip(names, places, strict=True)])
        picture = draw(rows, model.sample_rate, model.hop_length)
        tf.summary.image(f"{name}/spectrograms", picture[np.newaxis])

    def _separate_and_transform(self, mixture: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return estimates, and the magnitudes of mixture, targets and estimates, over channels.

        Args:
            mixture: float32 `[samples, channels]`.
            targets: float32 `[samples, channels, targets]`.

        Returns:
            float32 `[samples, channels, targets]` and `[1 + 2 targets, frames, bins]`.
        """
        estimates = self._umx(mixture[tf.newaxis])[0]
        every = tf.concat([mixture[..., tf.newaxis], targets, estimates], axis=-1)
        power = tf.square(tf.abs(self._umx.stft(tf.transpose(every, [2, 0, 1]))))
        return estimates, tf.sqrt(tf.reduce_mean(power, axis=-1))

    def _write_sound(self, name: str, waveform: np.ndarray) -> None:
        tf.summary.audio(name, waveform[np.newaxis], self._profile.model.sample_rate, encoding="wav")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Keep training going, whatever happens to its logs."""
        try:
            yield
        except (tf.errors.OpError, OSError, InputError) as error:
            # A file into which writing failed may end in half a record: go on in another one.
            self._writer = None
            if not self._warned:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                _log.warning("%s: TensorBoard's logs cannot be written (%s); training goes on", self._folder, reason)
            self._warned = True


def choose_excerpts(
    samples: Sequence[Sample], targets: Sequence[str], count: int = _EXCERPTS, seconds: float = _SECONDS
) -> list[tuple[str, np.ndarray]]:
    """Choose excerpts to look at, always the same, of samples at even distances.

    Of several places in a sample, the one where most targets are heard is taken, of those the loudest.

    Args:
        samples: to choose from.
        targets: names, in the order wanted.
        count: of excerpts, at most one per sample.
        seconds: length of an excerpt, where samples are that long.

    Returns:
        The sample's id and float32 `[samples, channels, targets]`, all equally long.

    Raises:
        InputError: a file cannot be read.
    """
    count = min(count, len(samples))
    chosen = [samples[(2 * index + 1) * len(samples) // (2 * count)] for index in range(count)]
    length = min(round(seconds * chosen[0].sample_rate), *(sample.length for sample in chosen))

    def read(sample: Sample, start: int) -> np.ndarray:
        return np.stack([audio.read(sample.files[target].path, start, length) for target in targets], axis=-1)

    def loudness(place: tuple[Sample, int]) -> tuple[int, float]:
        waveforms = read(*place)
        rms = np.sqrt(np.mean(np.square(waveforms), axis=(0, 1)))
        return int(np.sum(rms > _SOUNDS)), float(rms.sum())

    excerpts = []
    for sample in chosen:
        starts = sorted({(sample.length - length) * place // (_PLACES - 1) for place in range(_PLACES)})
        heard = concurrently(loudness, [(sample, start) for start in starts])
        best = max(range(len(starts)), key=heard.__getitem__)
        excerpts.append((sample.id, read(sample, starts[best])))
    return excerpts


def _create_writer(folder: str, step: int, suffix: str, flush_seconds: float = 3600) -> Any:
    """Start an events file of what happens from a step on."""
    writer = tf.summary.create_file_writer(
        folder, max_queue=10_000, flush_millis=round(flush_seconds * 1000), filename_suffix=suffix
    )
    _forget(writer, step)
    return writer


def _forget(writer: Any, step: int) -> None:
    """Have TensorBoard forget what it knows of a step and later ones."""
    session = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
    event = tf.compat.v1.Event(wall_time=time.time(), step=step, session_log=session)
    tf.raw_ops.ImportEvent(writer=writer._resource, event=event.SerializeToString())


def _remove_old(folder: str) -> None:
    """Keep the first and the newest events files of a folder."""
    names = sorted(
        (name for name in tf.io.gfile.listdir(folder) if re.search(r"\.step-\d+$", name)),
        key=lambda name: int(name.rpartition("-")[2]),
    )
    for name in names[1 : 1 - _KEPT]:
        tf.io.gfile.remove(os.path.join(folder, name))
