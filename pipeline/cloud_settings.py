"""Settings of the pipeline on Vertex AI or Kubeflow: what `pipeline.settings` has, and where and on what it runs."""

from __future__ import annotations

import posixpath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.settings import RunSettings
from umx_model.pretrained import shipped_models

COMPONENTS = ("SampleGen", "StatisticsGen", "ImportSchemaGen", "ExampleValidator", "Trainer", "Evaluator", "Pusher")
# These do their work as Beam jobs.
BEAM_COMPONENTS = ("SampleGen", "StatisticsGen", "Evaluator")

PlatformName = Literal["vertex", "kubeflow"]


class Machine(BaseModel):
    """What a component runs on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cpu: float = Field(2, gt=0, description="virtual CPUs")
    memory_gb: float = Field(8, gt=0, description="GiB")
    gpu: str = Field(
        "", description="type: Vertex AI's name, as NVIDIA_TESLA_T4; on Kubeflow the resource, as nvidia.com/gpu"
    )
    gpus: int = Field(0, ge=0, description="how many of them")
    machine_type: str = Field(
        "", description="Compute Engine's name, as n1-standard-8; for a Trainer that is a Vertex AI custom job"
    )
    machines: int = Field(1, ge=1, description="how many of these train together; Trainer on Vertex AI only")
    spot: bool = Field(False, description="cheaper, and may be taken away at any time; the Trainer then continues")
    retries: int = Field(2, ge=0, le=10, description="times to start again after a failure")

    @model_validator(mode="after")
    def _consistent(self) -> Machine:
        if bool(self.gpu) != bool(self.gpus):
            raise ValueError("gpu and gpus: name both the type and how many, or neither")
        if (self.machines > 1) and not self.machine_type:
            raise ValueError("machines: several need a machine_type, as n1-standard-8")
        return self


class Prices(BaseModel):
    """US dollars, as in Google's list of the region us-central1 in 2025; other regions and years differ."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cpu_hour: float = Field(0.038, ge=0, description="of a virtual CPU")
    memory_gb_hour: float = Field(0.0051, ge=0, description="of a GiB")
    gpu_hour: dict[str, float] = Field(
        {
            "NVIDIA_TESLA_T4": 0.40,
            "NVIDIA_L4": 0.64,
            "NVIDIA_TESLA_V100": 2.85,
            "NVIDIA_TESLA_A100": 3.37,
            "NVIDIA_A100_80GB": 4.52,
            "NVIDIA_H100_80GB": 11.27,
        },
        description="of a GPU, by type",
    )
    spot_factor: float = Field(0.4, gt=0, le=1, description="what spot machines cost of that")


class CloudSettings(RunSettings):
    """Everything that a run on a platform depends on."""

    platform: PlatformName = Field("vertex", description="vertex or kubeflow")
    image: str = Field(min_length=1, description="container image that every component runs in, with its registry")
    gpu_image: str = Field("", description="the Trainer's, where it has a GPU; image if empty")
    pipeline_root: str = Field(
        min_length=1, description="folder for what runs make: gs://BUCKET/FOLDER, on Kubeflow also s3://"
    )
    project: str = Field("", description="Google Cloud project; Vertex AI and Dataflow need it")
    region: str = Field("us-central1", description="of Vertex AI and Dataflow; the bucket should be there, too")
    service_account: str = Field("", description="that runs use; the project's default one if empty")
    vertex_endpoint: str = Field("", description="Vertex AI's address where it is not REGION-aiplatform.googleapis.com")
    kubeflow_host: str = Field(
        "", description="address of Kubeflow Pipelines, as https://kubeflow.example.com/pipeline"
    )
    namespace: str = Field("kubeflow", description="of the runs on Kubeflow")
    kubeflow_time_zone: str = Field(
        "UTC", description="that Kubeflow's schedules are in: CRON_SCHEDULE_TIMEZONE of its controller"
    )
    experiment: str = Field("umx-pro", description="that runs on Kubeflow are grouped under")
    machine: Machine = Field(Machine(), description="of every component that machines does not name")
    machines: dict[str, Machine] = Field(
        {
            "SampleGen": Machine(cpu=4, memory_gb=16),
            "Trainer": Machine(cpu=8, memory_gb=30),
            "Evaluator": Machine(cpu=4, memory_gb=16),
        },
        description="by component",
    )
    beam_runner: Literal["direct", "dataflow", "flink"] = Field(
        "direct",
        description="where SampleGen, StatisticsGen and Evaluator do their work: in their containers, or there",
    )
    flink_job_server: str = Field("", description="HOST:PORT of Beam's job server for Flink, mostly port 8099")
    prices: Prices = Prices()

    @field_validator("machines")
    @classmethod
    def _components_exist(cls, machines: dict[str, Machine]) -> dict[str, Machine]:
        unknown = sorted(set(machines) - set(COMPONENTS))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no such component; there are {', '.join(COMPONENTS)}")
        return machines

    @model_validator(mode="after")
    def _fits_platform(self) -> CloudSettings:
        vertex = self.platform == "vertex"
        for name, folder in (
            ("pipeline_root", self.pipeline_root),
            ("data", self.data),
            ("push_destination", self.serving_folder),
        ):
            if vertex and "://" not in folder:
                raise ValueError(
                    f"{name}: {folder} is on this machine, which Vertex AI does not see; expected gs://..."
                )
            if "://" not in folder and not folder.startswith("/"):
                raise ValueError(
                    f"{name}: expected gs://... or a path that containers see, as /mnt/..., found {folder}"
                )
        if vertex and not self.pipeline_root.startswith("gs://"):
            raise ValueError(f"pipeline_root: Vertex AI writes to gs:// only, found {self.pipeline_root}")
        # kubeflow/pipelines, backend/src/v2/objectstore/config.go; minio:// is not known to TensorFlow.
        if not self.pipeline_root.startswith(("gs://", "s3://")):
            raise ValueError(f"pipeline_root: Kubeflow writes to gs:// or s3:// only, found {self.pipeline_root}")
        if self.init_from.startswith("/") and vertex:
            raise ValueError(
                f"init_from: {self.init_from} is on this machine, which Vertex AI does not see; expected gs://... or "
                f"a model that comes with the program: {', '.join(shipped_models())}"
            )
        for machine in (self.machine, *self.machines.values()):
            if machine.gpu and ("/" in machine.gpu) == vertex:
                expected = (
                    "Vertex AI's name, as NVIDIA_TESLA_T4" if vertex else "a Kubernetes resource, as nvidia.com/gpu"
                )
                raise ValueError(f"gpu: expected {expected}, found {machine.gpu}")
        for name, lone in self.machines.items():
            if lone.machines > 1 and (name != "Trainer" or not vertex):
                raise ValueError(f"machines: {name} has several, which only the Trainer can have, on Vertex AI")
        return self

    @property
    def serving_folder(self) -> str:
        """Where versions are pushed to."""
        return self.push_destination or posixpath.join(self.pipeline_root, "serving")

    def machine_of(self, component: str) -> Machine:
        """Return what a component runs on."""
        return self.machines.get(component, self.machine)

    def image_of(self, component: str) -> str:
        """Return the container image that a component runs in."""
        return self.gpu_image if self.gpu_image and self.machine_of(component).gpus else self.image
