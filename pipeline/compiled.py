"""A compiled pipeline: the YAML file that Vertex AI and Kubeflow run.

    pipeline = CompiledPipeline.read("umx_pro.yaml")
    pipeline.settings.platform, pipeline.parameters["epochs"].default

Its first line is a comment that says with which settings, and by which version of this software, it was made.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml  # type: ignore[import-untyped]
from pydantic import ValidationError

from pipeline.cloud_settings import CloudSettings
from umx_model import __version__
from umx_model.errors import InputError

_HEADER = "# umx-pro: "
_CACHING = "cachingOptions"


@dataclass(frozen=True)
class Parameter:
    """What can be chosen when a run is started.

    Attributes:
        name: of the parameter.
        type: `STRING`, `NUMBER_INTEGER`, `NUMBER_DOUBLE` or `BOOLEAN`, as the pipeline specification calls them.
        default: the value of runs that do not choose.
        description: for people.
    """

    name: str
    type: str
    default: str | int | float | bool
    description: str

    def parse(self, text: str) -> str | int | float | bool:
        """Read a value.

        Raises:
            InputError: it is of another type.
        """
        try:
            if self.type == "BOOLEAN":
                return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
            if self.type == "NUMBER_INTEGER":
                return int(text)
            if self.type == "NUMBER_DOUBLE":
                number = float(text)
                if not math.isfinite(number):
                    raise ValueError(text)
                return number
        except (KeyError, ValueError):
            expected = {"BOOLEAN": "true or false", "NUMBER_INTEGER": "a whole number", "NUMBER_DOUBLE": "a number"}
            raise InputError(f"--param {self.name}={text}: expected {expected[self.type]}") from None
        return text


@dataclass(frozen=True)
class CompiledPipeline:
    """A compiled pipeline.

    Attributes:
        settings: what it was made with.
        spec: the pipeline specification, version 2.1.
        platform_spec: what only Kubernetes knows of; empty where there is nothing.
    """

    settings: CloudSettings
    spec: dict[str, Any]
    platform_spec: dict[str, Any]

    @classmethod
    def read(cls, path: str) -> CompiledPipeline:
        """Read a file that `compile` wrote.

        Raises:
            InputError: there is no such file, `compile` has not written it, or that of another version has.
        """
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise InputError(f"{path}: cannot be read ({reason}); `pipeline_runner.py compile` writes it") from None
        header = text.split("\n", 1)[0]
        if not header.startswith(_HEADER):
            raise InputError(f"{path}: not written by `pipeline_runner.py compile`; write it with that")
        damaged = InputError(f"{path}: damaged; compile it again")
        try:
            made = json.loads(header.removeprefix(_HEADER))
            version, settings = str(made["version"]), made["settings"]
        except (KeyError, TypeError, ValueError):
            raise damaged from None
        if version != __version__:
            raise InputError(f"{path}: compiled by version {version}, this is {__version__}; compile it again")
        try:
            spec, *rest = yaml.safe_load_all(text)
            found = cls(CloudSettings.model_validate(settings), dict(spec), dict(rest[0]) if rest else {})
            found.parameters  # noqa: B018 (raises where they are not whole)
        except (AttributeError, KeyError, TypeError, ValueError, ValidationError, yaml.YAMLError):
            raise damaged from None
        return found

    @property
    def name(self) -> str:
        """Name of the pipeline."""
        return str(self.spec["pipelineInfo"]["name"])

    @property
    def parameters(self) -> dict[str, Parameter]:
        """What can be chosen when a run is started, by name."""
        found = self.spec["root"]["inputDefinitions"]["parameters"]
        return {
            name: Parameter(name, entry["parameterType"], entry["defaultValue"], entry["description"])
            for name, entry in sorted(found.items())
        }

    def parse(self, assignments: Mapping[str, str]) -> dict[str, Any]:
        """Read values of parameters.

        Args:
            assignments: name to text.

        Raises:
            InputError: no such parameter, or a value of another type; one line per problem.
        """
        problems, values = [], {}
        for name, text in assignments.items():
            if name not in self.parameters:
                problems.append(f"--param {name}: no such parameter; there are {', '.join(self.parameters)}")
                continue
            try:
                values[name] = self.parameters[name].parse(text)
            except InputError as error:
                problems.append(str(error))
        if problems:
            raise InputError("\n".join(problems))
        return values

    def text(self) -> str:
        """Return the file's content."""
        header = {"version": __version__, "settings": self.settings.model_dump(mode="json")}
        documents = [self.spec, self.platform_spec] if self.platform_spec else [self.spec]
        return f"{_HEADER}{json.dumps(header, sort_keys=True)}\n{yaml.safe_dump_all(documents, sort_keys=True)}"

    def write(self, path: str) -> None:
        """Write the file, at once.

        Raises:
            InputError: it cannot be written.
        """
        partial = f"{path}.partial"
        try:
            with open(partial, "w", encoding="utf-8") as file:
                file.write(self.text())
            os.replace(partial, path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another --output") from None

    def with_cache(self, *, index: bool) -> CompiledPipeline:
        """Return a copy whose SampleGen may, or may not, be skipped because its parameters are those of an earlier run.

        Only who names the state of the database as `data_version` may skip it: otherwise new samples go unnoticed.
        """
        tasks = {name: dict(task) for name, task in self.spec["root"]["dag"]["tasks"].items()}
        tasks["SampleGen"][_CACHING] = {"enableCache": True} if index else {}
        dag = {**self.spec["root"]["dag"], "tasks": tasks}
        return CompiledPipeline(
            self.settings, {**self.spec, "root": {**self.spec["root"], "dag": dag}}, self.platform_spec
        )
