"""From the wiring to a file that Vertex AI and Kubeflow run.

TFX compiles the components (`KubeflowV2DagRunner`, pipeline specification 2.1). It drops what its own
data types have no place for; that is put in afterwards: defaults and descriptions of parameters, true or
false as their type, retries, what may not come from the cache, and what Kubernetes alone knows of.
"""

from __future__ import annotations

import json
import posixpath
from typing import Any

from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineDeploymentConfig
from tfx.dsl.components.base.base_component import BaseComponent
from tfx.orchestration.data_types import RuntimeParameter
from tfx.orchestration.kubeflow.v2.kubeflow_v2_dag_runner import KubeflowV2DagRunner, KubeflowV2DagRunnerConfig

from components.trainer.custom_job import WorkerPool
from pipeline.cloud_settings import BEAM_COMPONENTS, CloudSettings, Machine
from pipeline.compiled import CompiledPipeline
from pipeline.pipeline import Choices, create_pipeline
from umx_model.errors import InputError

_ENTRY_POINT = ("python", "-m", "components.container")
# Their work depends on more than their inputs: on the data, and on what is served.
_NEVER_CACHED = ("SampleGen", "Evaluator", "Pusher")

_Container = PipelineDeploymentConfig.PipelineContainerSpec
_RETRY = {"backoffDuration": "30s", "backoffFactor": 2.0, "backoffMaxDuration": "600s"}

# https://cloud.google.com/kubernetes-engine/docs/concepts/spot-vms
_GKE_SPOT = "cloud.google.com/gke-spot"

# For people who see nothing but the form of a user interface.
_DESCRIPTIONS = {
    "data": "Database: a folder with train/, valid/ and perhaps test/, each with one folder per song that holds one "
    "file per target (vocals.wav, ...).",
    "targets": "What to separate, comma-separated: names of files in the database.",
    "epochs": "Train for at most so many rounds; training ends before where nothing gets better.",
    "batch_size": "Excerpts per training step, over all GPUs. Less where memory runs out.",
    "excerpt_seconds": "Length of the pieces of songs that are trained on, in seconds.",
    "floor_db": "A model is pushed only if it is so many dB better than the mixture: one number, or one per target as "
    "in vocals=4,drums=3.",
    "push_destination": "Folder of served models; a model that is good enough becomes its next numbered version.",
    "warm_start": "Train on from the model that is served, not from scratch.",
    "data_version": "Fingerprint that the database must have, else the run stops. Empty: as it is then.",
}


def compile_pipeline(settings: CloudSettings) -> CompiledPipeline:
    """Compile the pipeline.

    Args:
        settings: what to run, and on what.

    Returns:
        The same for the same settings and code.

    Raises:
        InputError: settings contradict each other, or the platform.
    """
    parameters = _parameters(settings)
    pipeline = create_pipeline(
        settings,
        _choices(settings, parameters),
        root=settings.pipeline_root,
        training_folder=posixpath.join(settings.pipeline_root, "training"),
        # Kubeflow has no resolver: there the Evaluator compares with what is served, or else the mixture.
        resolve_baseline=settings.platform == "vertex",
        custom_job=_custom_job(settings),
    )
    beam_args = _beam_args(settings)
    for component in pipeline.components:
        if isinstance(component, BaseComponent):
            component.with_platform_config(_resources(settings.machine_of(component.id)))
        if component.id in BEAM_COMPONENTS:
            component.with_beam_pipeline_args(beam_args)
    images = {component.id: settings.image_of(component.id) for component in pipeline.components}
    config = KubeflowV2DagRunnerConfig(
        default_image={**images, "default_image": settings.image},
        default_commands=list(_ENTRY_POINT),
        use_pipeline_spec_2_1=True,
    )
    spec = KubeflowV2DagRunner(config).run(pipeline, write_out=False)["pipelineSpec"]
    _describe_parameters(spec, parameters)
    for name, task in spec["root"]["dag"]["tasks"].items():
        if name in _NEVER_CACHED:
            task["cachingOptions"] = {}
        retries = settings.machine_of(name).retries
        if retries and "container" in spec["deploymentSpec"]["executors"][f"{name}_executor"]:
            task["retryPolicy"] = {"maxRetryCount": retries, **_RETRY}
    return CompiledPipeline(settings, spec, _kubernetes(settings) if settings.platform == "kubeflow" else {})


def _parameters(settings: CloudSettings) -> dict[str, RuntimeParameter]:
    """Return what can be chosen when a run is started."""
    train = settings.profile.train
    floor = settings.floor_db
    floors = ",".join(f"{target}={db:g}" for target, db in floor.items()) if isinstance(floor, dict) else f"{floor:g}"
    values: dict[str, str | int | float] = {
        "data": settings.data,
        "targets": ",".join(settings.profile.model.targets),
        "epochs": train.epochs,
        "batch_size": train.batch_size,
        "excerpt_seconds": train.excerpt_seconds,
        "floor_db": floors,
        "push_destination": settings.serving_folder,
        "warm_start": int(settings.warm_start),
        "data_version": "",
    }
    return {name: RuntimeParameter(name, type(value), value, _DESCRIPTIONS[name]) for name, value in values.items()}


def _choices(settings: CloudSettings, parameters: dict[str, RuntimeParameter]) -> Choices:
    fixed = settings.profile.train.mixture_targets
    return Choices(**parameters, mixture_targets=",".join(fixed) if fixed else parameters["targets"])


def _describe_parameters(spec: dict[str, Any], parameters: dict[str, RuntimeParameter]) -> None:
    """Add defaults and descriptions, and make warm_start, for which TFX has no type, true or false."""
    inputs = spec["root"]["inputDefinitions"]["parameters"]
    for name, parameter in parameters.items():
        inputs[name] |= {"defaultValue": parameter.default, "description": parameter.description}
    inputs["warm_start"] |= {"parameterType": "BOOLEAN", "defaultValue": bool(inputs["warm_start"]["defaultValue"])}
    definitions = spec["components"]["Trainer"]["inputDefinitions"]
    definitions["parameters"]["warm_start"]["parameterType"] = "BOOLEAN"
    args = spec["deploymentSpec"]["executors"]["Trainer_executor"]["container"]["args"]
    args[args.index("--json_serialized_inputs_spec_args") + 1] = json.dumps(definitions, indent=2, sort_keys=True)


def _resources(machine: Machine) -> Any:
    resources = _Container.ResourceSpec(cpu_limit=machine.cpu, memory_limit=machine.memory_gb)
    if machine.gpus:
        resources.accelerator.CopyFrom(_Container.ResourceSpec.AcceleratorConfig(type=machine.gpu, count=machine.gpus))
    return resources


def _custom_job(settings: CloudSettings) -> WorkerPool | None:
    """Return the machines of a Vertex AI custom job where the Trainer wants what its container cannot have."""
    machine = settings.machine_of("Trainer")
    if settings.platform != "vertex" or not (machine.machines > 1 or machine.spot):
        return None
    lacking = [
        name for name, value in (("project", settings.project), ("machine_type", machine.machine_type)) if not value
    ]
    if lacking:
        raise InputError(f"{', '.join(lacking)}: missing; the Trainer's custom job on Vertex AI needs to know")
    return WorkerPool(
        project=settings.project,
        region=settings.region,
        machine_type=machine.machine_type,
        accelerator_type=machine.gpu,
        accelerator_count=machine.gpus,
        machines=machine.machines,
        image=settings.image_of("Trainer"),
        spot=machine.spot,
        service_account=settings.service_account,
        endpoint=settings.vertex_endpoint,
    )


def _beam_args(settings: CloudSettings) -> list[str]:
    """Return Beam's options: where it works, then those of the user, which win."""
    if settings.beam_runner == "dataflow":
        if not settings.project:
            raise InputError("project: missing; Dataflow needs to know")
        args = [
            "--runner=DataflowRunner",
            f"--project={settings.project}",
            f"--region={settings.region}",
            f"--temp_location={posixpath.join(settings.pipeline_root, 'beam')}",
            "--experiments=use_runner_v2",
            f"--sdk_container_image={settings.image}",
        ]
        args += [f"--service_account_email={settings.service_account}"] if settings.service_account else []
    elif settings.beam_runner == "flink":
        if not settings.flink_job_server:
            raise InputError("flink_job_server: missing; expected HOST:PORT of Beam's job server for Flink")
        args = [
            "--runner=PortableRunner",
            f"--job_endpoint={settings.flink_job_server}",
            # Our image, as a worker pool beside each of Flink's task managers.
            "--environment_type=EXTERNAL",
            "--environment_config=localhost:50000",
        ]
    else:
        # The container's own cores. The image is named only because TFX otherwise packs itself up for workers
        # elsewhere, which takes seconds.
        args = ["--direct_running_mode=multi_threading", "--direct_num_workers=0", "--sdk_container_image=none"]
    return [*args, *settings.beam_args]


def _kubernetes(settings: CloudSettings) -> dict[str, Any]:
    """Return what only Kubernetes knows of: which nodes to run on."""
    executors = {
        f"{name}_executor": {
            "nodeSelector": {"labels": {_GKE_SPOT: "true"}},
            "tolerations": [{"key": _GKE_SPOT, "operator": "Equal", "value": "true", "effect": "NoSchedule"}],
        }
        for name in settings.machines
        if settings.machine_of(name).spot
    }
    if not executors:
        return {}
    return {"platforms": {"kubernetes": {"deploymentSpec": {"executors": executors}}}}
