"""Settings of the pipeline: every knob, typed, from a file, the environment or the command line.

A settings file is YAML (or JSON) with the fields of `PipelineSettings`; environment variables are
named after them (`UMX_PRO_DATA`, `UMX_PRO_FLOOR_DB`); options of the command line win over both.
`profile` may be a profile inline or the path of one. Two more names shape it: `targets`, and
`set`, a mapping of dotted names like `train.epochs` to values.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from umx_model.data.track_folder import found_targets
from umx_model.errors import InputError
from umx_model.profile import FILE_NAME, Profile, explain

ENVIRONMENT_PREFIX = "UMX_PRO_"


class PipelineSettings(BaseModel):
    """Everything that a run of the pipeline depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    data: str = Field(min_length=1, description="root of the database: a folder with train/ and valid/")
    profile: Profile = Field(description="model to train, and how")
    output: str = Field(
        os.path.abspath("umx-pro-output"), min_length=1, description="local folder for everything that a run leaves"
    )
    push_destination: str = Field(
        "", description="folder of served versions, local or remote; <output>/serving if empty"
    )
    floor_db: float = Field(0.0, description="dB of SDR above the mixture that every target needs to be pushed")
    beam_args: tuple[str, ...] = Field((), description="Beam options of SampleGen, StatisticsGen and Evaluator")

    @field_validator("data", "output", "push_destination")
    @classmethod
    def _absolute(cls, folder: str) -> str:
        """The same folder from wherever a component runs; remote ones (`gs://`) are absolute already."""
        return os.path.abspath(folder) if folder and "://" not in folder else folder

    @property
    def serving_folder(self) -> str:
        """Where versions are pushed to."""
        return self.push_destination or os.path.join(self.output, "serving")

    @classmethod
    def load(
        cls,
        options: Mapping[str, Any],
        file: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> PipelineSettings:
        """Put settings together.

        Args:
            options: from the command line; None means not given.
            file: YAML file with settings.
            environment: where to look for `UMX_PRO_*`; None for this process's.

        Raises:
            InputError: unknown name, impossible value, no such file; or targets were not named and
                the database, where they are looked for, cannot be read.
        """
        document = _read_mapping(file) if file else {}
        document |= _from_environment(os.environ if environment is None else environment)
        document |= {name: value for name, value in options.items() if value is not None}
        targets, changes = document.pop("targets", None), document.pop("set", None) or {}
        unknown = document.keys() - cls.model_fields
        if unknown:
            known = ", ".join((*cls.model_fields, "targets", "set"))
            raise InputError(f"{', '.join(sorted(unknown))}: unknown setting; known are {known}")
        data = document.get("data")
        if not data:
            raise InputError("data: no database named; give --data DIR, a folder with train/ and valid/")
        document["profile"] = _profile(document.get("profile") or {}, targets, changes, str(data))
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise InputError(explain(error)) from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    names = {ENVIRONMENT_PREFIX + name.upper(): name for name in (*PipelineSettings.model_fields, "targets", "set")}
    found = {name: environment[variable] for variable, name in names.items() if environment.get(variable)}
    return {name: yaml.safe_load(text) if text[:1] in "[{" else text for name, text in found.items()}


def _profile(source: str | dict[str, Any], targets: Any, changes: Mapping[str, Any], data: str) -> Profile:
    """Build the profile; its targets are those asked for, else its own, else those found in the database."""
    name = source if isinstance(source, str) else "profile"
    document = _read_mapping(_profile_file(source)) if isinstance(source, str) else source
    # Traces of an earlier training are no settings.
    document = {key: part for key, part in document.items() if key not in ("made_with", "data_fingerprint", "history")}
    if targets:
        changes = {**changes, "model.targets": targets}
    asked = changes.get("model.targets")

    def find_targets() -> list[str]:
        if not asked:
            return found_targets(data)
        return asked.split(",") if isinstance(asked, str) else list(asked)

    return Profile.parse(document, name, find_targets).updated(changes)


def _profile_file(path: str) -> str:
    return os.path.join(path, FILE_NAME) if tf.io.gfile.isdir(path) else path


def _read_mapping(path: str) -> dict[str, Any]:
    try:
        with tf.io.gfile.GFile(path) as file:
            document = yaml.safe_load(file.read())
    except (tf.errors.OpError, UnicodeDecodeError):
        raise InputError(f"{path}: cannot be read; expected a YAML or JSON file") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML or JSON: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected names and values, found {type(document).__name__}")
    return document
