"""Which data made which version, as the record of runs has it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from ml_metadata.proto import metadata_store_pb2
from tfx.orchestration import metadata
from tfx.types import artifact_utils

from components.pusher.executor import WEIGHTS_SHA256
from components.pusher.versions import current_version, list_versions, number, read_lineage
from data_schema.index import read_index
from pipeline.settings import Folders
from umx_model.errors import InputError


@dataclass(frozen=True)
class Step:
    """What one component did for a version.

    Attributes:
        component: its name.
        run: of the pipeline, the time when it started.
        parameters: of the component.
        outputs: name to URI.
    """

    component: str
    run: str
    parameters: dict[str, Any]
    outputs: dict[str, str]


@dataclass(frozen=True)
class Lineage:
    """Where a version comes from.

    Attributes:
        version: its number.
        pushed_as: number under which the model was first pushed; another one where a rollback brought it back.
        folder: of the version, which may be gone.
        recorded: its `lineage.json`; empty where that is gone.
        steps: of the pipeline that made it, SampleGen first; empty where the record of runs does not know it.
        samples: ids of the samples that it was made with, by split.
    """

    version: str
    pushed_as: str
    folder: str
    recorded: dict[str, Any]
    steps: tuple[Step, ...]
    samples: dict[str, list[str]]

    def find(self, component: str) -> Step | None:
        """Return what a component did."""
        return next((step for step in self.steps if step.component == component), None)


def trace(folders: Folders, version: str) -> Lineage:
    """Trace a version back to its data.

    Args:
        folders: of the runs and of the versions.
        version: its number; the folder may have been removed since.

    Raises:
        InputError: no number, or neither the folder of versions nor the record of runs knows it.
    """
    if not version.isdecimal():
        raise InputError(f"version {version}: expected a number, as the folders in {folders.serving_folder} have")
    folder = os.path.join(folders.serving_folder, version)
    recorded = read_lineage(folder)
    pushed_as = recorded.get("pushed_as") or version
    steps: tuple[Step, ...] = ()
    samples: dict[str, list[str]] = {}
    file = os.path.join(folders.output, "metadata.db")
    if os.path.exists(file):
        with metadata.Metadata(metadata.sqlite_metadata_connection_config(file)) as handle:
            record = _Record(handle)
            pushed = record.find_push(os.path.join(folders.serving_folder, pushed_as), recorded.get(WEIGHTS_SHA256))
            if pushed is not None:
                found = record.upstream(pushed)
                steps = tuple(record.step(execution) for execution in sorted(found, key=lambda one: one.id))
                samples = record.samples(found)
    if not recorded and not steps:
        known = ", ".join(map(number, list_versions(folders.serving_folder))) or "none"
        raise InputError(
            f"version {version}: not in {folders.serving_folder} (there: {known}), nor pushed there by a run in {file}"
        )
    return Lineage(version, pushed_as, folder, recorded, steps, samples)


def describe(lineage: Lineage) -> str:
    """Say in a few lines where a version comes from."""
    recorded = lineage.recorded
    served = current_version(os.path.dirname(lineage.folder)) == lineage.folder
    lines = [f"{lineage.folder} ({'served' if served else 'not served' if recorded else 'removed'})"]

    def add(name: str, text: object) -> None:
        lines.append(f"  {name:<10}  {text}")

    if recorded.get("rolled_back_from"):
        add("copy of", f"version {recorded['rolled_back_from']}, by a rollback on {recorded['time']}")
    for component, name, output in (("Trainer", "trained", "model"), ("Evaluator", "evaluated", "evaluation")):
        step = lineage.find(component)
        if step is not None:
            add(name, f"{step.run}  {step.outputs[output]}")
    sample_gen = lineage.find("SampleGen")
    if sample_gen is not None:
        counts = ", ".join(f"{len(ids)} {split}" for split, ids in lineage.samples.items())
        add("data", f"{sample_gen.run}  {sample_gen.parameters['data']}: {counts or 'unknown'} samples")
    if recorded:
        add("", f"fingerprint {recorded.get('data_fingerprint', 'unknown')}")
        if recorded.get("started_from"):
            add("started", f"from {recorded['started_from']}")
        add("weights", f"SHA-256 {recorded.get('weights_sha256', 'unknown')}")
        add(
            "baseline", f"version {recorded['baseline_version']}" if recorded.get("baseline_version") else "the mixture"
        )
        for sentence in recorded.get("verdict", ()):
            add("", sentence)
    return "\n".join(lines)


class _Record:
    """The record of runs, read upstream."""

    def __init__(self, handle: metadata.Metadata) -> None:
        self._store = handle.store

    def find_push(self, folder: str, weights_sha256: str | None) -> metadata_store_pb2.Artifact | None:
        """Find what the Pusher said when it first pushed a model there."""
        for artifact in sorted(self._store.get_artifacts_by_type("PushedModel"), key=lambda one: one.id):
            said = artifact.custom_properties
            if "pushed_destination" not in said or said["pushed_destination"].string_value != folder:
                continue
            # Numbers begin anew where somebody has emptied the folder.
            if weights_sha256 is None or said[WEIGHTS_SHA256].string_value == weights_sha256:
                return artifact
        return None

    def upstream(self, artifact: metadata_store_pb2.Artifact) -> list[metadata_store_pb2.Execution]:
        """Return the executions that an artifact came about by, its own included."""
        found: dict[int, metadata_store_pb2.Execution] = {}
        waiting = [artifact.id]
        while waiting:
            execution = self._maker(waiting.pop())
            if execution is not None and execution.id not in found:
                found[execution.id] = execution
                waiting += self._artifact_ids(execution, metadata_store_pb2.Event.INPUT)
        return list(found.values())

    def step(self, execution: metadata_store_pb2.Execution) -> Step:
        """Describe an execution."""
        names = {
            self._context_types()[context.type_id]: context.name
            for context in self._store.get_contexts_by_execution(execution.id)
        }
        outputs = {}
        for event in self._store.get_events_by_execution_ids([execution.id]):
            if event.type == metadata_store_pb2.Event.OUTPUT:
                [artifact] = self._store.get_artifacts_by_id([event.artifact_id])
                outputs[event.path.steps[0].key] = artifact.uri
        parameters = {
            name: getattr(value, value.WhichOneof("value") or "string_value")
            for name, value in execution.custom_properties.items()
            if not name.startswith("__")
        }
        return Step(names["node"].rpartition(".")[2], names["pipeline_run"], parameters, outputs)

    def samples(self, executions: Iterable[metadata_store_pb2.Execution]) -> dict[str, list[str]]:
        """Return the ids of the samples of the index that executions made, by split, where it is still there."""
        [examples_type] = [kind for kind in self._store.get_artifact_types() if kind.name == "Examples"]
        for execution in executions:
            for artifact in self._store.get_artifacts_by_id(
                self._artifact_ids(execution, metadata_store_pb2.Event.OUTPUT)
            ):
                if artifact.type_id == examples_type.id and tf.io.gfile.exists(artifact.uri):
                    examples = artifact_utils.deserialize_artifact(examples_type, artifact)
                    return {
                        split: [sample.id for sample in read_index(artifact_utils.get_split_uri([examples], split))]
                        for split in artifact_utils.decode_split_names(examples.split_names)
                    }
        return {}

    def _maker(self, artifact_id: int) -> metadata_store_pb2.Execution | None:
        """Return the execution that made an artifact, rather than those that found it in the cache."""
        events = self._store.get_events_by_artifact_ids([artifact_id])
        ids = [event.execution_id for event in events if event.type == metadata_store_pb2.Event.OUTPUT]
        complete = metadata_store_pb2.Execution.COMPLETE
        made = [one for one in self._store.get_executions_by_id(ids) if one.last_known_state == complete]
        return min(made, key=lambda one: one.id, default=None)

    def _artifact_ids(self, execution: metadata_store_pb2.Execution, kind: int) -> list[int]:
        events = self._store.get_events_by_execution_ids([execution.id])
        return [event.artifact_id for event in events if event.type == kind]

    def _context_types(self) -> dict[int, str]:
        return {kind.id: kind.name for kind in self._store.get_context_types()}
