"""Profiles: everything needed to rebuild, continue or serve a model, in one JSON file.

A profile has two parts, `model` (what the network is) and `train` (how it learns). Both are
frozen, typed and validated; every field has the reference recipe as its default, so the smallest
useful profile is `{"model": {"targets": ["vocals", "accompaniment"]}}`.

    profile = Profile.read("examples/profiles/quick.json").updated({"train.epochs": "2"})
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

import tensorflow as tf
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from umx_model.errors import InputError

FILE_NAME = "profile.json"

TargetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelProfile(_Settings):
    """What the network is: enough to build it, not to train it.

    Defaults are Open-Unmix's (`openunmix/model.py`, v1.3.0).
    """

    targets: tuple[TargetName, ...] = Field(min_length=1, description="sources to estimate, in this order everywhere")
    sample_rate: StrictInt = Field(44100, ge=1000, description="Hz; audio of another rate is resampled or refused")
    channels: StrictInt = Field(2, ge=1, le=16, description="channels of the mixture and of every estimate")
    n_fft: StrictInt = Field(4096, ge=16, description="STFT window and transform length in samples")
    hop_length: StrictInt = Field(1024, ge=1, description="samples between STFT frames")
    architecture: str = Field("blstm", description="name of a registered spectral filter")
    hidden_size: StrictInt = Field(512, ge=2, description="width of the encoding and of the recurrent output")
    layers: StrictInt = Field(3, ge=1, description="recurrent layers")
    bandwidth: StrictFloat = Field(16000.0, gt=0, description="Hz; bins above are not read by the network")
    unidirectional: bool = Field(False, description="causal recurrent layers")
    dropout: StrictFloat = Field(0.4, ge=0, lt=1, description="between recurrent layers, while training")
    bridges: bool = Field(
        False, description="average between the filters, as X-UMX does, so that targets learn jointly"
    )
    refiner_channels: StrictInt = Field(
        0, ge=0, description="of the first convolution of a small U-Net that refines all targets' masks; 0 for none"
    )
    niter: StrictInt = Field(1, ge=0, description="EM iterations when separating")
    normalize_level: bool = Field(
        False, description="show the network mixtures at the level of the training music, whatever level they have"
    )
    softmask: bool = Field(False, description="start EM from a soft mask instead of the mixture's phase")
    window_frames: StrictInt = Field(300, ge=1, description="frames that EM refines together; bounds its memory")

    @field_validator("targets")
    @classmethod
    def _targets_differ(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(targets)) != len(targets):
            raise ValueError(f"targets must differ, got {', '.join(targets)}")
        return targets

    @model_validator(mode="after")
    def _consistent(self) -> ModelProfile:
        if self.n_fft % 2:
            raise ValueError(f"n_fft must be even, got {self.n_fft}")
        if self.hop_length > self.n_fft // 2:
            raise ValueError(f"hop_length must be at most n_fft / 2 = {self.n_fft // 2}, got {self.hop_length}")
        if not self.unidirectional and self.hidden_size % 2:
            raise ValueError(f"hidden_size must be even (half per direction), got {self.hidden_size}")
        if self.normalize_level and self.unidirectional:
            raise ValueError(
                "normalize_level needs all frames of a mixture; unidirectional models do not wait for them"
            )
        if self.refiner_channels and self.unidirectional:
            raise ValueError("refiner_channels: a refiner looks ahead; unidirectional models do not wait for that")
        return self

    @property
    def bins(self) -> int:
        """Bins of the one-sided spectrum."""
        return self.n_fft // 2 + 1

    @property
    def network_channels(self) -> int:
        """Magnitudes that the network reads of each bin; see `network_input`."""
        return 3 if self.refiner_channels and self.channels == 2 else self.channels


class TrainProfile(_Settings):
    """How the network learns. Defaults are Open-Unmix's recipe (`scripts/train.py`, v1.3.0)."""

    excerpt_seconds: StrictFloat = Field(6.0, gt=0, description="length of a training excerpt")
    batch_size: StrictInt = Field(16, ge=1, description="excerpts per step, over all devices")
    excerpts_per_sample: StrictInt = Field(64, ge=1, description="excerpts drawn per sample and epoch")
    epochs: StrictInt = Field(1000, ge=1, description="at most this many")
    max_minutes: StrictFloat | None = Field(None, gt=0, description="stop after the epoch that reaches this time")
    learning_rate: StrictFloat = Field(1e-3, gt=0, description="Adam's, at the start")
    weight_decay: StrictFloat = Field(1e-5, ge=0, description="L2 factor, coupled (added to the gradients)")
    patience: StrictInt = Field(140, ge=1, description="epochs without a better validation loss before stopping")
    decay: Literal["plateau", "cosine"] = Field(
        "plateau",
        description="of the learning rate: where the validation loss no longer falls, or along half a cosine to 0 "
        "after the last epoch or minute",
    )
    plateau_factor: StrictFloat = Field(0.3, gt=0, lt=1, description="learning rate multiplier on a plateau")
    plateau_patience: StrictInt = Field(80, ge=0, description="epochs without improvement that make a plateau")
    plateau_cooldown: StrictInt = Field(10, ge=0, description="epochs to wait after a reduction")
    freeze_filters: bool = Field(False, description="train the refiner (model.refiner_channels) alone")
    mixture_targets: tuple[TargetName, ...] | None = Field(
        None, description="targets whose sum is the mixture, where more than the model's; null for the model's"
    )
    combination_loss: bool = Field(
        False, description="compare the sums of 1 to N-1 of the N targets (X-UMX), not each target alone"
    )
    floor_db: StrictFloat | None = Field(
        None,
        lt=0,
        description="judge each excerpt by its error in dB, which from so far below the mixture on counts no more; "
        "null for the mean of squared errors",
    )
    sdr_weight: StrictFloat = Field(0.0, ge=0, description="of a loss of waveforms, weighted SDR; 10 in X-UMX")
    precision: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="of matrix products while training; weights and saved models are float32 always"
    )
    xla: bool = Field(False, description="compile with XLA what of the training step it can compile")
    random_track_mix: bool = Field(True, description="draw each target from an independent sample and start")
    gain_range: tuple[float, float] | None = Field((0.25, 1.25), description="uniform gain per target, or null")
    swap_channels: StrictFloat = Field(0.5, ge=0, le=1, description="probability of swapping left and right per target")
    silent_targets: StrictFloat = Field(
        0.0, ge=0, lt=1, description="probability that a target is left out of an excerpt, and its silence to be learnt"
    )
    speed_range: tuple[float, float] | None = Field(
        None, description="random speed per target, pitch and tempo together as on a tape, or null"
    )
    on_non_finite: Literal["stop", "lower_rate"] = Field(
        "stop",
        description="where the loss is NaN or infinite: stop, or go on from the last good checkpoint with other "
        "excerpts and the learning rate times plateau_factor, up to three times an epoch",
    )
    seed: StrictInt = Field(42, ge=0, le=2**32 - 1, description="of initial weights, excerpts and augmentation")
    checkpoint_minutes: StrictFloat = Field(1.0, gt=0, description="time between checkpoints inside an epoch")
    keep_checkpoints: StrictInt = Field(3, ge=1, description="checkpoints kept; the best weights are kept besides")
    summary_epochs: StrictInt = Field(5, ge=1, description="epochs between excerpts and pictures in TensorBoard")

    @field_validator("mixture_targets")
    @classmethod
    def _targets_differ(cls, targets: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if targets is not None and len(set(targets)) != len(targets):
            raise ValueError(f"mixture_targets must differ, got {', '.join(targets)}")
        return targets

    @field_validator("gain_range")
    @classmethod
    def _range_ascends(cls, gain_range: tuple[float, float] | None) -> tuple[float, float] | None:
        if gain_range is not None and not 0 <= gain_range[0] <= gain_range[1]:
            raise ValueError(f"gain_range must be [low, high] with 0 <= low <= high, got {list(gain_range)}")
        return gain_range

    @field_validator("speed_range")
    @classmethod
    def _speeds_are_possible(cls, speed_range: tuple[float, float] | None) -> tuple[float, float] | None:
        if speed_range is not None and not 0.25 <= speed_range[0] <= speed_range[1] <= 4:
            raise ValueError(f"speed_range must be [low, high] with 0.25 <= low <= high <= 4, got {list(speed_range)}")
        return speed_range

    @model_validator(mode="after")
    def _one_objective(self) -> TrainProfile:
        if self.floor_db is not None and (self.combination_loss or self.sdr_weight):
            raise ValueError("floor_db is an objective of its own; leave out combination_loss and sdr_weight")
        return self

    @property
    def read_seconds(self) -> float:
        """What the fastest excerpt takes of a sample."""
        return self.excerpt_seconds * max(1.0, self.speed_range[1] if self.speed_range else 1.0)


class Profile(_Settings):
    """A model and its training, as stored in `profile.json` of a model folder.

    `made_with`, `data_fingerprint` and `history` are written by the trainer, `weights_sha256` with the weights.
    """

    model: ModelProfile
    train: TrainProfile = TrainProfile()
    made_with: dict[str, str] = Field({}, description="package versions that made the weights")
    data_fingerprint: str | None = Field(None, description="of the database that was trained on")
    history: tuple[dict[str, float], ...] = Field((), description="one entry per epoch")
    license: str | None = Field(None, description="of the weights, an SPDX identifier where there is one")
    scores: dict[str, float] = Field({}, description="SDR in dB per target, as the model's card says how")
    weights_sha256: str | None = Field(None, description="of model.weights.h5 beside this profile")

    @model_validator(mode="after")
    def _something_is_trained(self) -> Profile:
        if self.train.freeze_filters and not self.model.refiner_channels:
            raise ValueError("train.freeze_filters: leaves nothing to train without model.refiner_channels")
        return self

    @model_validator(mode="after")
    def _targets_are_heard(self) -> Profile:
        lacking = [target for target in self.model.targets if target not in self.mixture_targets]
        if lacking:
            raise ValueError(
                f"train.mixture_targets: must hold all that the model separates, and lacks {', '.join(lacking)}"
            )
        return self

    @property
    def mixture_targets(self) -> tuple[str, ...]:
        """The targets that every training sample has, in the order of its excerpts; their sum is the mixture.

        They are the model's, or `train.mixture_targets` where a model separates only some of a database's
        targets. All that is drawn at random depends on this order, not on the model's: a model of one
        target hears the mixtures that a model of all of them would.
        """
        return self.train.mixture_targets or self.model.targets

    @classmethod
    def parse(
        cls,
        document: str | bytes | Mapping[str, Any],
        source: str = "profile",
        find_targets: Callable[[], Sequence[str]] | None = None,
    ) -> Profile:
        """Make a profile of a JSON document.

        Args:
            document: the JSON text, or what it holds.
            source: where it came from, for the error message.
            find_targets: asked for the targets where the document names none.

        Raises:
            InputError: not JSON, an unknown key, a missing key or an impossible value.
        """
        try:
            content = json.loads(document) if isinstance(document, str | bytes) else dict(document)
        except ValueError as error:
            raise InputError(f"{source}: not JSON ({error})") from None
        if find_targets is not None and isinstance(content, dict):
            model = content.get("model", {})
            if isinstance(model, dict) and "targets" not in model:
                content = {**content, "model": {**model, "targets": list(find_targets())}}
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise InputError(f"{source}: {explain(error)}") from None

    @classmethod
    def read(cls, path: str | os.PathLike[str], find_targets: Callable[[], Sequence[str]] | None = None) -> Profile:
        """Read `profile.json`, or the one in a model folder; local or `gs://`.

        Args:
            path: the file or the folder.
            find_targets: asked for the targets where the profile names none.

        Raises:
            InputError: there is no such file, or it is not a profile.
        """
        name = os.fspath(path)
        if tf.io.gfile.isdir(name):
            name = os.path.join(name, FILE_NAME)
        try:
            with tf.io.gfile.GFile(name, "rb") as file:
                text = file.read()
        except tf.errors.OpError:
            raise InputError(f"{name}: no such profile; expected a JSON file or a model folder") from None
        return cls.parse(text, source=name, find_targets=find_targets)

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write `profile.json` into a folder, replacing an older one at once."""
        path = os.path.join(os.fspath(folder), FILE_NAME)
        with tf.io.gfile.GFile(path + ".partial", "w") as file:
            file.write(self.model_dump_json(indent=2) + "\n")
        tf.io.gfile.rename(path + ".partial", path, overwrite=True)

    def updated(self, settings: Mapping[str, Any]) -> Profile:
        """Return a copy with settings changed by dotted name.

        Args:
            settings: for example `{"train.epochs": 2, "model.targets": "vocals,accompaniment"}`.
                Text is read as JSON where it is JSON; lists may also be comma-separated.

        Raises:
            InputError: unknown name or impossible value.
        """
        document = self.model_dump(mode="json")
        parts: dict[str, type[_Settings]] = {"model": ModelProfile, "train": TrainProfile}
        for name, value in settings.items():
            part, _, key = name.partition(".")
            if part not in parts or key not in parts[part].model_fields:
                known = [f"{part}.{key}" for part, fields in parts.items() for key in fields.model_fields]
                raise InputError(f"{name}: unknown setting; known are {', '.join(known)}")
            document[part][key] = _from_text(value) if isinstance(value, str) else value
            if isinstance(document[part][key], str) and _is_list(parts[part].model_fields[key]):
                document[part][key] = [item.strip() for item in document[part][key].split(",")]
        return Profile.parse(document, source="settings")


def _from_text(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _is_list(field: FieldInfo) -> bool:
    return any(get_origin(kind) is tuple for kind in (field.annotation, *get_args(field.annotation)))


def explain(error: ValidationError) -> str:
    """Say in one line what is wrong: each offending key, what was expected and what it held."""
    problems = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key"
        elif item["type"] not in ("missing", "value_error"):
            message += f" (found {item['input']!r})"
        problems.append(f"{where}: {message}" if where else message)
    return "; ".join(problems)
