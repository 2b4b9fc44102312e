"""What training leaves on disk so that it can go on: regular checkpoints, and the best weights apart.

checkpoints/step-1234.*          model, optimizer and `LoopState` after so many steps, within an epoch
checkpoints/epoch-3-step-1240.*  the same after the third epoch and its validation
checkpoints/best/step-1240.*     the model at its best validation loss
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from umx_model.errors import InputError
from umx_model.model.checkpoint_files import DamagedError, damage, list_checkpoints, write
from umx_model.model.folder import BEST, WEIGHTS, checkpointable
from umx_model.profile import Profile
from umx_model.train.copying import probe
from umx_model.train.schedule import EarlyStopping, PlateauDecay

_log = logging.getLogger(__name__)

FOLDER = "checkpoints"


@dataclasses.dataclass
class LoopState:
    """Where the loop stands, besides the model's and the optimizer's variables.

    Attributes:
        plateau: learning rate decay.
        stopping: early stopping, which knows the best loss.
        epoch: epochs finished.
        step: optimizer steps made.
        excerpts: excerpts used, which is the position in the stream of training data.
        epoch_excerpts: those of the current epoch.
        loss_sums: loss per target, summed over the excerpts of the current epoch.
        seconds: time spent training.
        setbacks: how often training went back to a checkpoint since the last finished epoch.
        history: one entry per finished epoch, as in `Profile.history`.
        made_with: as in `Profile.made_with`.
        started_from: the model whose weights training started from; None where they were random.
        resumed: steps at which another process took over.
    """

    plateau: PlateauDecay
    stopping: EarlyStopping
    loss_sums: list[float]
    epoch: int = 0
    step: int = 0
    excerpts: int = 0
    epoch_excerpts: int = 0
    seconds: float = 0.0
    setbacks: int = 0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    made_with: dict[str, str] = dataclasses.field(default_factory=dict)
    started_from: str | None = None
    resumed: list[int] = dataclasses.field(default_factory=list)

    @classmethod
    def start(cls, profile: Profile) -> LoopState:
        """Return the state before the first step."""
        settings = profile.train
        return cls(
            plateau=PlateauDecay(settings.plateau_factor, settings.plateau_patience, settings.plateau_cooldown),
            stopping=EarlyStopping(settings.patience),
            loss_sums=[0.0] * len(profile.model.targets),
        )

    def document(self) -> dict[str, Any]:
        """Return the state as JSON can hold it, apart from what happens to it later."""
        return dataclasses.asdict(self)

    def resume(self, saved: dict[str, Any]) -> None:
        """Take over a saved state; settings stay as they are here, so that a resumed run may change them."""
        for name, value in saved.items():
            if name == "plateau":
                for key in ("best", "bad_epochs", "cooldown_left"):
                    setattr(self.plateau, key, value[key])
            elif name == "stopping":
                for key in ("best", "bad_epochs"):
                    setattr(self.stopping, key, value[key])
            else:
                setattr(self, name, value)


class _Json(tf.train.experimental.PythonState):
    """A JSON document inside a checkpoint."""

    def __init__(self, document: dict[str, Any] | None = None) -> None:
        self.document = document or {}

    def serialize(self) -> str:
        return json.dumps(self.document)

    def deserialize(self, text: str | bytes) -> None:
        self.document = json.loads(text)


class Copy(NamedTuple):
    """What a checkpoint holds, at one moment: variables, or their values, and `LoopState.document`."""

    model: dict[str, tf.Variable | tf.Tensor]
    optimizer: list[tf.Variable | tf.Tensor]
    state: dict[str, Any]


class Checkpoints:
    """Reads and writes the checkpoints of one training run.

    Each is written under another name first and renamed, its index last: those that can be seen are
    whole. TensorFlow's checksums, which reading compares, tell what has become damaged since.

    Args:
        output: the run's model folder.
        spectral_filter: the joint model.
        optimizer: built.
        profile: of this run.
        data_fingerprint: of the database that is trained on.

    Attributes:
        current: path prefix of the checkpoint that was written or read last; None before.
    """

    def __init__(
        self,
        output: str,
        spectral_filter: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        profile: Profile,
        data_fingerprint: str | None,
    ) -> None:
        self.folder = os.path.join(output, FOLDER)
        self._best_folder = os.path.join(self.folder, BEST)
        self.current: str | None = None
        self._keep = profile.train.keep_checkpoints
        self._about = {
            "model": profile.model.model_dump(mode="json"),
            "data_fingerprint": data_fingerprint,
            "learning_rate": profile.train.learning_rate,  # at the start; the optimizer's may be lower
            "precision": profile.train.precision,
            "floor_db": profile.train.floor_db,  # decides what losses are
        }
        # Variables one by one: given Keras objects, tf.train.Checkpoint leaves out those held in lists.
        self._model = checkpointable(spectral_filter)
        self._optimizer = [variable.value for variable in optimizer.variables]
        self._writing = threading.Lock()

    @property
    def latest(self) -> str | None:
        """The newest checkpoint's path prefix."""
        return next(iter(list_checkpoints(self.folder)), None)

    def save(self, state: LoopState) -> None:
        """Write model, optimizer and `state`, and forget the oldest checkpoint beyond the number to keep."""
        self.save_copy(Copy(self._model, self._optimizer, state.document()))

    def copy(self, state: LoopState) -> Copy:
        """Take note of model, optimizer and `state` as they are, for `save_copy`.

        Costs memory, and a copy of every variable when it is changed next.
        """
        model = {name: variable.read_value() for name, variable in self._model.items()}
        return Copy(model, [variable.read_value() for variable in self._optimizer], state.document())

    def save_copy(self, copy: Copy) -> None:
        """Write what `copy` returned earlier; may be called while the model is being trained."""
        loop = _Json({**self._about, "state": copy.state})
        model = {name: _variable(value) for name, value in copy.model.items()}
        checkpoint = tf.train.Checkpoint(model=model, optimizer=[*map(_variable, copy.optimizer)], loop=loop)
        with self._writing:
            self.current = write(checkpoint, self.folder, _name(copy.state), self._keep)

    def restore(self, state: LoopState) -> set[str]:
        """Read the newest checkpoint that is not damaged into the model, the optimizer and `state`.

        Returns:
            What is another one now than in the checkpoint: `data_fingerprint`, `floor_db`, `learning_rate`.

        Raises:
            InputError: it belongs to another model profile or to another precision, or all are damaged.
        """
        damaged: list[str] = []
        for prefix in list_checkpoints(self.folder):
            try:
                about = self._read(prefix)
            except DamagedError as error:
                _log.warning("%s: damaged (%s); going back to the checkpoint before it", prefix, error)
                damaged.append(f"{os.path.basename(prefix)} ({error})")
                continue
            state.resume(about["state"])
            self.current = prefix
            return {name for name, value in self._about.items() if about.get(name, value) != value}
        raise InputError(
            f"{self.folder}: no checkpoint can be read: {'; '.join(damaged) or 'there is none'}; "
            f"remove the folder to start anew, or train into another one"
        )

    def save_best(self, state: LoopState) -> None:
        """Write the model as the best so far."""
        with self._writing:
            write(tf.train.Checkpoint(model=self._model), self._best_folder, _name(state.document()), keep=1)

    def restore_best(self, state: LoopState) -> None:
        """Read the best weights into the model; where they are damaged, those of the newest checkpoint.

        Raises:
            InputError: those are damaged, too.
        """
        checkpoint = tf.train.Checkpoint(model=self._model)
        for prefix in list_checkpoints(self._best_folder):
            try:
                with damage():
                    checkpoint.read(prefix).assert_existing_objects_matched()
                return
            except DamagedError as error:
                _log.warning("%s: damaged (%s)", prefix, error)
        self.restore(state)
        _log.warning("the best weights are lost; the model gets those of %s", self.current)

    def _read(self, prefix: str) -> dict[str, Any]:
        """Read a checkpoint into the model and the optimizer, and return its description."""
        loop = _Json()
        with damage():
            # The description alone first: another model's variables would not fit.
            tf.train.Checkpoint(loop=loop).read(prefix).expect_partial()
            about = loop.document
            self._check_model(prefix, about["model"])
            self._check_precision(prefix, about.get("precision", "float32"))
            checkpoint = tf.train.Checkpoint(model=self._model, optimizer=self._optimizer, loop=loop)
            checkpoint.read(prefix).assert_existing_objects_matched()
        return about

    def _check_precision(self, latest: str, saved: str) -> None:
        wanted = self._about["precision"]
        if "float16" in (saved, wanted) and saved != wanted:
            raise InputError(
                f"{latest}: train.precision is {saved} there and {wanted} in the profile; float16 has a loss scale "
                f"besides, so resume with {saved}, or train into another folder"
            )

    def _check_model(self, latest: str, saved: dict[str, Any]) -> None:
        wanted = self._about["model"]
        assert isinstance(wanted, dict)
        differing = [
            f"model.{key} is {json.dumps(saved.get(key))} there and {json.dumps(wanted.get(key))} in the profile"
            for key in sorted(saved.keys() | wanted.keys())
            if saved.get(key) != wanted.get(key)
        ]
        if differing:
            raise InputError(
                f"{latest}: checkpoint of another model: {'; '.join(differing)}; "
                f"use its profile to resume it, or train into another folder"
            )


def _variable(value: Any) -> tf.Variable:
    return value if isinstance(value, tf.Variable) else tf.Variable(value, trainable=False)


def _name(state: dict[str, Any]) -> str:
    """Name a checkpoint: `step-120` within an epoch, `epoch-3-step-120` when three are finished."""
    return ("" if state["epoch_excerpts"] else f"epoch-{state['epoch']}-") + f"step-{state['step']}"


def prepare_output(output: str, resume: bool) -> None:
    """Create the output folder, or make sure that it may be used.

    Raises:
        InputError: it cannot be written; or it holds checkpoints and this is no resumption, or a model
            without checkpoints, which training would replace.
    """
    checkpoints = os.path.join(output, FOLDER)
    try:
        if not resume and tf.io.gfile.exists(checkpoints):
            raise InputError(
                f"{output}: holds checkpoints of a training; resume it (--resume), or choose another output folder"
            )
        if tf.io.gfile.exists(os.path.join(output, WEIGHTS)) and not list_checkpoints(checkpoints):
            raise InputError(
                f"{output}: holds a trained model ({WEIGHTS}) and no checkpoints to resume; "
                f"choose another output folder, or remove that file"
            )
        probe(output)
    except tf.errors.OpError as error:
        reason = error.message.strip().splitlines()[0] if error.message else type(error).__name__
        raise InputError(f"{output}: output folder cannot be written ({reason}); choose another one") from None
