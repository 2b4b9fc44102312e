"""What training leaves on disk so that it can go on: regular checkpoints, and the best weights apart.

checkpoints/step-1234.*      model, optimizer and `LoopState` after so many steps
checkpoints/best/step-1000.* the model at its best validation loss
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import keras
import tensorflow as tf

from umx_model.errors import InputError
from umx_model.model.folder import BEST, WEIGHTS, checkpointable
from umx_model.profile import Profile
from umx_model.train.schedule import EarlyStopping, PlateauDecay

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
        history: one entry per finished epoch, as in `Profile.history`.
    """

    plateau: PlateauDecay
    stopping: EarlyStopping
    loss_sums: list[float]
    epoch: int = 0
    step: int = 0
    excerpts: int = 0
    epoch_excerpts: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)

    @classmethod
    def start(cls, profile: Profile) -> LoopState:
        """Return the state before the first step."""
        settings = profile.train
        return cls(
            plateau=PlateauDecay(settings.plateau_factor, settings.plateau_patience, settings.plateau_cooldown),
            stopping=EarlyStopping(settings.patience),
            loss_sums=[0.0] * len(profile.model.targets),
        )

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

    def __init__(self) -> None:
        self.document: dict[str, Any] = {}

    def serialize(self) -> str:
        return json.dumps(self.document)

    def deserialize(self, text: str | bytes) -> None:
        self.document = json.loads(text)


class Checkpoints:
    """Reads and writes the checkpoints of one training run.

    Args:
        output: the run's model folder.
        spectral_filter: the joint model.
        optimizer: built.
        profile: of this run.
        data_fingerprint: of the database that is trained on.
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
        self._about = {
            "model": profile.model.model_dump(mode="json"),
            "data_fingerprint": data_fingerprint,
            "learning_rate": profile.train.learning_rate,  # at the start; the optimizer's may be lower
        }
        self._spectral_filter = spectral_filter
        self._loop = _Json()
        # Variables one by one: given Keras objects, tf.train.Checkpoint leaves out those held in lists.
        model, optimizer_state = checkpointable(spectral_filter), [variable.value for variable in optimizer.variables]
        self._manager = tf.train.CheckpointManager(
            tf.train.Checkpoint(model=model, optimizer=optimizer_state, loop=self._loop),
            self.folder,
            max_to_keep=profile.train.keep_checkpoints,
            checkpoint_name="step",
        )
        self._best = tf.train.CheckpointManager(
            tf.train.Checkpoint(model=model),
            os.path.join(self.folder, BEST),
            max_to_keep=1,
            checkpoint_name="step",
        )

    @property
    def latest(self) -> str | None:
        """The newest checkpoint's path prefix."""
        return self._manager.latest_checkpoint

    def save(self, state: LoopState) -> None:
        """Write model, optimizer and `state`, and forget the oldest checkpoint beyond the number to keep."""
        self._loop.document = {**self._about, "state": dataclasses.asdict(state)}
        self._manager.save(checkpoint_number=state.step)

    def restore(self, state: LoopState) -> set[str]:
        """Read the newest checkpoint into the model, the optimizer and `state`.

        Returns:
            What is another one now than in the checkpoint: `data_fingerprint`, `learning_rate`.

        Raises:
            InputError: it belongs to another model profile, or is damaged.
        """
        latest = self.latest
        assert latest is not None
        try:
            # The description alone first: another model's variables would not fit.
            tf.train.Checkpoint(loop=self._loop).restore(latest).expect_partial()
            about = self._loop.document
            self._check_model(latest, about["model"])
            self._manager.checkpoint.restore(latest).assert_existing_objects_matched()
        except InputError:
            raise
        except (tf.errors.OpError, ValueError, LookupError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(
                f"{latest}: not a checkpoint of this program, or damaged ({reason}); "
                f"remove it to go on from an older one, or train into another folder"
            ) from None
        state.resume(about["state"])
        return {name for name, value in self._about.items() if about.get(name, value) != value}

    def save_best(self, state: LoopState) -> None:
        """Write the model as the best so far."""
        self._best.save(checkpoint_number=state.step)

    def restore_best(self) -> None:
        """Read the best weights into the model."""
        self._best.checkpoint.restore(self._best.latest_checkpoint).assert_existing_objects_matched()

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
        if tf.io.gfile.exists(os.path.join(output, WEIGHTS)) and not tf.train.latest_checkpoint(checkpoints):
            raise InputError(
                f"{output}: holds a trained model ({WEIGHTS}) and no checkpoints to resume; "
                f"choose another output folder, or remove that file"
            )
        tf.io.gfile.makedirs(output)
        probe = os.path.join(output, ".writable")
        with tf.io.gfile.GFile(probe, "w") as file:
            file.write("")
        tf.io.gfile.remove(probe)
    except tf.errors.OpError as error:
        reason = error.message.strip().splitlines()[0] if error.message else type(error).__name__
        raise InputError(f"{output}: output folder cannot be written ({reason}); choose another one") from None
