"""Runs a compiled pipeline as a platform does: every container's command, as a process of this machine.

    platform = PlatformRun(compile_pipeline(settings), tmp_path, environment)
    first = platform.run({"epochs": 2})
    first.states["Trainer"]  # "succeeded", "failed", "cached" or "not run"

What stands between the tasks is done as Vertex AI or Kubeflow do it: parameters and artifacts are handed over as
`ExecutorInput` in place of `{{$}}`, artifacts get names, resolvers search what earlier runs made, and the cache is
looked up where a task allows it. Containers on Kubeflow are told no types of input artifacts, as its driver has lost
them (kubeflow/pipelines, backend/src/v2/metadata/client.go, `GetOutputArtifactsByExecutionId`).
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.compiled import CompiledPipeline

_BLESSED = re.compile(r'schema_title="tfx.ModelBlessing" AND state=LIVE AND metadata.blessed.number_value=1(\.0)?')
_NAMED = re.compile(
    r"""schema_title="tfx.Model" AND state=LIVE AND name="{{\$\.inputs\.artifacts\['(\w+)'\]\.metadata\['(\w+)'\]}}\""""
)


@dataclass
class Finished:
    """A run that has ended.

    Attributes:
        states: of every task, `succeeded`, `failed`, `cached` or `not run`.
        outputs: artifacts by task and name, as `RuntimeArtifact`.
        logs: what containers wrote to stdout and stderr.
        inputs: the `ExecutorInput` of each container.
    """

    states: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)

    def said(self, task: str, output: str) -> dict[str, Any]:
        """Return the properties of an artifact."""
        return dict(self.outputs[task][output].get("metadata", {}))


class PlatformRun:
    """A platform with its record of runs.

    Args:
        pipeline: what to run.
        folder: for what containers see as their own disk.
        environment: of the containers.

    Attributes:
        pipeline: may be changed between runs.
    """

    def __init__(self, pipeline: CompiledPipeline, folder: Path, environment: Mapping[str, str]) -> None:
        self.pipeline = pipeline
        self._folder = folder
        self._environment = dict(environment)
        self._kubeflow = pipeline.settings.platform == "kubeflow"
        self._record: list[dict[str, Any]] = []  # artifacts, oldest first
        self._cache: dict[str, dict[str, dict[str, Any]]] = {}
        self._ids = itertools.count(1)
        self._runs = itertools.count(1)

    def run(self, parameters: Mapping[str, Any] | None = None) -> Finished:
        """Run all tasks, each after those that it depends on, until one fails."""
        root = self.pipeline.spec["root"]
        values = {name: entry["defaultValue"] for name, entry in root["inputDefinitions"]["parameters"].items()}
        unknown = set(parameters or {}) - set(values)
        assert not unknown, unknown
        values |= parameters or {}
        finished = Finished(dict.fromkeys(root["dag"]["tasks"], "not run"))
        place = f"{self.pipeline.settings.pipeline_root}/run-{next(self._runs)}"
        for name in _in_order(root["dag"]["tasks"]):
            self._run_task(name, values, place, finished)
            if finished.states[name] == "failed":
                break
        return finished

    def _run_task(self, name: str, values: Mapping[str, Any], place: str, finished: Finished) -> None:
        task = self.pipeline.spec["root"]["dag"]["tasks"][name]
        component = self.pipeline.spec["components"][task["componentRef"]["name"]]
        executor = self.pipeline.spec["deploymentSpec"]["executors"][component["executorLabel"]]
        artifacts = {}
        for key, source in task.get("inputs", {}).get("artifacts", {}).items():
            made = source["taskOutputArtifact"]
            found = finished.outputs[made["producerTask"]].get(made["outputArtifactKey"])
            artifacts[key] = {"artifacts": [found] if found else []}
        if "resolver" in executor:
            finished.outputs[name] = self._resolve(executor["resolver"], artifacts)
            finished.states[name] = "succeeded"
            return
        parameters = {
            key: values[source["componentInputParameter"]]
            if "componentInputParameter" in source
            else source["runtimeValue"]["constant"]
            for key, source in task.get("inputs", {}).get("parameters", {}).items()
        }
        cacheable = task.get("cachingOptions", {}).get("enableCache", False)
        cache_key = json.dumps([component, executor, parameters, artifacts], sort_keys=True)
        if cacheable and cache_key in self._cache:
            finished.outputs[name], finished.states[name] = self._cache[cache_key], "cached"
            return

        outputs = {
            key: {"uri": f"{place}/{name}/{key}", "type": entry["artifactType"], "metadata": entry.get("metadata", {})}
            for key, entry in component.get("outputDefinitions", {}).get("artifacts", {}).items()
        }
        told = json.loads(json.dumps(artifacts))
        if self._kubeflow:
            for entry in told.values():
                for artifact in entry["artifacts"]:
                    artifact["type"] = {"instanceSchema": ""}
        own = self._folder / f"disk-{next(self._ids)}"
        own.mkdir(parents=True)
        output_file = f"{own}/output_metadata.json" if self._kubeflow else f"{place}/{name}/executor_output.json"
        executor_input = {
            "inputs": {"parameterValues": parameters, "artifacts": told},
            "outputs": {
                "artifacts": {key: {"artifacts": [artifact]} for key, artifact in outputs.items()},
                "outputFile": output_file,
            },
        }
        finished.inputs[name] = executor_input
        container = executor["container"]
        command = [
            part.replace("{{$}}", json.dumps(executor_input)) for part in (*container["command"], *container["args"])
        ]
        assert command[0] == "python"
        done = subprocess.run(
            [sys.executable, *command[1:]],
            cwd=own,
            env={**self._environment, "TMPDIR": str(own), "HOME": str(own)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        finished.logs[name] = done.stdout
        finished.states[name] = "succeeded" if done.returncode == 0 else "failed"
        finished.logs[f"{name} exit code"] = str(done.returncode)
        if done.returncode == 0:
            written = json.loads(self._read(output_file))["artifacts"]
            for key, artifact in outputs.items():
                [said] = written[key]["artifacts"]
                artifact["uri"] = said["uri"]
                artifact["metadata"] = said.get("metadata", {})
                number = str(next(self._ids))
                artifact["name"] = number if self._kubeflow else f"projects/1/metadataStores/default/artifacts/{number}"
                self._record.append(artifact)
            finished.outputs[name] = outputs
            if cacheable:
                self._cache[cache_key] = outputs

    def _resolve(self, resolver: Mapping[str, Any], artifacts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Find the latest artifacts that queries ask for."""
        found = {}
        for key, query in resolver["outputArtifactQueries"].items():
            blessed, named = _BLESSED.fullmatch(query["filter"]), _NAMED.fullmatch(query["filter"])
            assert blessed or named, query["filter"]
            for artifact in self._record:
                title = yaml.safe_load(artifact["type"]["instanceSchema"])["title"]
                if blessed and title == "tfx.ModelBlessing" and artifact["metadata"].get("blessed") == 1:
                    found[key] = artifact
                if named and title == "tfx.Model":
                    asking = artifacts[named[1]]["artifacts"]
                    if asking and asking[0]["metadata"][named[2]] == artifact["name"]:
                        found[key] = artifact
        return found

    def _read(self, path: str) -> str:
        """Read a file that a container wrote, where it sees it."""
        if "://" not in path:
            return Path(path).read_text()
        program = f"import tensorflow as tf; print(tf.io.gfile.GFile({path!r}).read())"
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env=self._environment, check=True, capture_output=True, text=True).stdout


def _in_order(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names of tasks, each after those that it depends on."""
    order: list[str] = []
    while len(order) < len(tasks):
        ready = [name for name, task in tasks.items() if name not in order and set(_before(task)) <= set(order)]
        assert ready, "tasks wait for each other"
        order += sorted(ready)
    return order


def _before(task: Mapping[str, Any]) -> list[str]:
    sources = task.get("inputs", {}).get("artifacts", {}).values()
    return [*task.get("dependentTasks", []), *(source["taskOutputArtifact"]["producerTask"] for source in sources)]
