"""Settings of the pipeline: every knob, typed, from a file, the environment or the command line.

A settings file is YAML (or JSON) with the fields of `PipelineSettings`; environment variables are
named after them (`UMX_PRO_DATA`, `UMX_PRO_FLOOR_DB`); options of the command line win over both.
`profile` may be a profile inline or the path of one. Two more names shape it: `targets`, and
`set`, a mapping of dotted names like `train.epochs` to values. A floor for each target is a mapping, or
text like `vocals=2,drums=1`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from typing_extensions import Self

from umx_model.data.track_folder import found_targets
from umx_model.errors import InputError
from umx_model.evaluation.gate import GateRule, check_floors
from umx_model.model.folder import locate_profile
from umx_model.pretrained import locate_model, shipped_models
from umx_model.profile import FILE_NAME, Profile, explain
from umx_model.train.warm_start import check_start

ENVIRONMENT_PREFIX = "UMX_PRO_"

# What an earlier training left in a profile.
_TRACES = ("made_with", "data_fingerprint", "history", "license", "scores", "weights_sha256")


class Folders(BaseModel):
    """Where runs are recorded and models are served from; all that looking back needs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    output: str = Field(
        os.path.abspath("umx-pro-output"), min_length=1, description="local folder for everything that a run leaves"
    )
    push_destination: str = Field(
        "", description="folder of served versions, local or remote; <output>/serving if empty"
    )

    @field_validator("output", "push_destination")
    @classmethod
    def _absolute(cls, folder: str) -> str:
        """The same folder from wherever a component runs; remote ones (`gs://`) are absolute already."""
        return absolute(folder)

    @field_validator("output")
    @classmethod
    def _plain(cls, folder: str) -> str:
        """A folder that SQLite can write to, and that Beam finds again."""
        if "://" in folder:
            raise ValueError(
                f"{folder} is remote; a run is kept in a local folder, only models are pushed elsewhere: "
                "name a local one, and the remote one as --push-destination"
            )
        if set(folder) & set("[]*?"):
            raise ValueError(
                f"{folder} has one of [ ] * ? in its name, which Beam takes for a pattern; choose another folder"
            )
        return folder

    @property
    def serving_folder(self) -> str:
        """Where versions are pushed to."""
        return self.push_destination or os.path.join(self.output, "serving")

    @classmethod
    def find(
        cls, options: Mapping[str, Any], file: str | None = None, environment: Mapping[str, str] | None = None
    ) -> Folders:
        """Take the folders from settings; arguments and errors are those of `PipelineSettings.load`."""
        document = _gather(PipelineSettings, options, file, environment)
        try:
            return cls.model_validate({name: document[name] for name in cls.model_fields if name in document})
        except ValidationError as error:
            raise InputError(explain(error)) from None


class RunSettings(GateRule):
    """What a run does, wherever it runs."""

    data: str = Field(min_length=1, description="root of the database: a folder with train/ and valid/")
    profile: Profile = Field(description="model to train, and how")
    push_destination: str = Field("", description="folder of served versions, local or remote")
    keep_versions: int = Field(5, ge=1, description="versions to leave in the push destination")
    warm_start: bool = Field(False, description="start training from the weights of the served version")
    init_from: str = Field(
        "", description="start training from this model's weights, where not from the served ones: a name or a path"
    )
    vertex_registry: str = Field(
        "", description="enter versions into this registry too: projects/PROJECT/locations/LOCATION"
    )
    beam_args: tuple[str, ...] = Field((), description="Beam options of SampleGen, StatisticsGen and Evaluator")

    @model_validator(mode="after")
    def _floors_have_targets(self) -> Self:
        check_floors(self, self.profile.model.targets)
        return self

    @property
    def rule(self) -> GateRule:
        """What a model must reach to be pushed."""
        return GateRule(**{name: getattr(self, name) for name in GateRule.model_fields})

    @classmethod
    def load(
        cls,
        options: Mapping[str, Any],
        file: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Self:
        """Put settings together.

        Args:
            options: from the command line; None means not given.
            file: YAML file with settings.
            environment: where to look for `UMX_PRO_*`; None for this process's.

        Raises:
            InputError: unknown name, impossible value, no such file; or targets were not named and
                the database, where they are looked for, cannot be read.
        """
        document = _gather(cls, options, file, environment)
        targets, changes = document.pop("targets", None), document.pop("set", None) or {}
        if not isinstance(changes, Mapping):
            raise InputError(f"set: expected names and values, as in {{train.epochs: 2}}, found {changes!r}")
        unknown = document.keys() - cls.model_fields
        if unknown:
            known = ", ".join(sorted((*cls.model_fields, "targets", "set")))
            raise InputError(f"{', '.join(sorted(map(str, unknown)))}: unknown setting; known are {known}")
        data = document.get("data")
        if not data:
            raise InputError("data: no database named; give --data DIR, a folder with train/ and valid/")
        init_from = document.get("init_from") or ""
        if init_from:
            document["init_from"] = _find_model(str(init_from))
        source: Any = document.get("profile") or (
            locate_profile(locate_model(document["init_from"])) if init_from else {}
        )
        document["profile"] = _profile(source, targets, changes, str(data))
        if init_from:
            check_start(document["profile"].model, locate_model(document["init_from"]))
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise InputError(explain(error)) from None


class PipelineSettings(Folders, RunSettings):
    """Everything that a run on this machine depends on."""

    @field_validator("data")
    @classmethod
    def _absolute_data(cls, folder: str) -> str:
        return absolute(folder)


def absolute(folder: str) -> str:
    """Return a local folder's whole path; remote ones (`gs://`) and none stay as they are."""
    return os.path.abspath(folder) if folder and "://" not in folder else folder


def _gather(
    settings: type[BaseModel], options: Mapping[str, Any], file: str | None, environment: Mapping[str, str] | None
) -> dict[str, Any]:
    """Lay the options over the environment over the file."""
    document = _read_mapping(file) if file else {}
    document |= _from_environment(settings, os.environ if environment is None else environment)
    return document | {name: value for name, value in options.items() if value is not None}


def _from_environment(settings: type[BaseModel], environment: Mapping[str, str]) -> dict[str, Any]:
    names = {ENVIRONMENT_PREFIX + name.upper(): name for name in (*settings.model_fields, "targets", "set")}
    found = {variable: environment[variable] for variable in names if environment.get(variable)}
    return {names[variable]: _parse(text, variable) if text[0] in "[{" else text for variable, text in found.items()}


def _profile(source: Any, targets: Any, changes: Mapping[str, Any], data: str) -> Profile:
    """Build the profile; its targets are those asked for, else its own, else those found in the database."""
    name = source if isinstance(source, str) else "profile"
    document = _read_mapping(_profile_file(source)) if isinstance(source, str) else source
    if not isinstance(document, Mapping):
        raise InputError(f"profile: expected a file, a model folder, or names and values, found {document!r}")
    # Traces of an earlier training are no settings.
    document = {key: part for key, part in document.items() if key not in _TRACES}
    changes = {str(key): value for key, value in changes.items()}
    if targets:
        changes["model.targets"] = targets

    def find_targets() -> list[str]:
        if "model.targets" in changes:
            return ["named-below"]  # a stand-in, which `updated` replaces
        try:
            return found_targets(data)
        except InputError as error:
            raise InputError(f"{error}; where it is not to be seen from here, name the targets (--targets)") from None

    return Profile.parse(document, name, find_targets).updated(changes)


def _find_model(name_or_path: str) -> str:
    """Return a model's name where it is a shipped one, which is there wherever the program is, else its whole path."""
    path = locate_model(name_or_path)
    return name_or_path if path == shipped_models().get(name_or_path) else absolute(path)


def _profile_file(path: str) -> str:
    return os.path.join(path, FILE_NAME) if tf.io.gfile.isdir(path) else path


def _read_mapping(path: str) -> dict[str, Any]:
    try:
        with tf.io.gfile.GFile(path) as file:
            text = file.read()
    except (tf.errors.OpError, UnicodeDecodeError):
        raise InputError(f"{path}: cannot be read; expected a YAML or JSON file") from None
    document = _parse(text, path)
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected names and values, found {type(document).__name__}")
    return document


def _parse(text: str, source: str) -> Any:
    """Read JSON or YAML. JSON first: YAML 1.1 refuses tabs in it, and reads 1e3 as text."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # the latter for what looks like a date
        raise InputError(f"{source}: not YAML or JSON: {' '.join(str(error).split())}") from None
