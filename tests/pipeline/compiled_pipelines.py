"""A small compiled pipeline, made by hand: what platforms are asked to run in tests that need no more than its form."""

from __future__ import annotations

from typing import Any

from pipeline.cloud_settings import CloudSettings
from pipeline.compiled import CompiledPipeline

_PARAMETERS: dict[str, tuple[str, str | int | float | bool, str]] = {
    "data": ("STRING", "gs://bucket/music", "root of the database"),
    "targets": ("STRING", "vocals,drums", "what to separate, comma-separated"),
    "epochs": ("NUMBER_INTEGER", 100, "times that training sees every sample"),
    "batch_size": ("NUMBER_INTEGER", 16, "excerpts per step"),
    "excerpt_seconds": ("NUMBER_DOUBLE", 6.0, "length of an excerpt"),
    "floor_db": ("STRING", "0.0", "dB above the mixture that a target needs to be pushed"),
    "push_destination": ("STRING", "gs://bucket/root/serving", "folder of served versions"),
    "warm_start": ("BOOLEAN", False, "start from the weights of the served version"),
    "data_version": ("STRING", "", "state of the database; empty to read it as it is"),
}


def settings(**changes: Any) -> CloudSettings:
    """Settings for Vertex AI; `platform="kubeflow"` and the like change them."""
    given = {
        "data": "gs://bucket/music",
        "profile": {"model": {"targets": ["vocals", "drums"]}},
        "platform": "vertex",
        "image": "us-central1-docker.pkg.dev/a-project/images/umx-pro:1",
        "pipeline_root": "gs://bucket/root",
        "project": "a-project",
        "region": "us-central1",
    }
    return CloudSettings.model_validate(given | changes)


def compiled(**changes: Any) -> CompiledPipeline:
    """A pipeline of one container task, with the parameters of the real one.

    Args:
        changes: of the settings.
    """
    chosen = settings(**changes)
    container = {
        "image": chosen.image,
        "command": ["python", "-m", "tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor"],
        "args": ["--json_serialized_invocation_args", "{{$}}"],
    }
    inputs = {name: {"parameterType": kind} for name, (kind, _, _) in _PARAMETERS.items()}
    spec = {
        "pipelineInfo": {"name": "umx-pro"},
        "schemaVersion": "2.1.0",
        "sdkVersion": "tfx-1.16.0",
        "deploymentSpec": {"executors": {"SampleGen_executor": {"container": container}}},
        "components": {
            "SampleGen": {"executorLabel": "SampleGen_executor", "inputDefinitions": {"parameters": inputs}}
        },
        "root": {
            "inputDefinitions": {
                "parameters": {
                    name: {"parameterType": kind, "defaultValue": default, "description": description}
                    for name, (kind, default, description) in _PARAMETERS.items()
                }
            },
            "dag": {
                "tasks": {
                    "SampleGen": {
                        "taskInfo": {"name": "SampleGen"},
                        "componentRef": {"name": "SampleGen"},
                        "cachingOptions": {},
                        "inputs": {"parameters": {name: {"componentInputParameter": name} for name in _PARAMETERS}},
                    }
                }
            },
        },
    }
    return CompiledPipeline(chosen, spec, {})
