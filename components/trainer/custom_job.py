"""Training on machines of its own: a custom job of Vertex AI, that the Trainer's container starts and waits for.

The job runs `components.trainer.executor` with the same inputs, outputs and settings on every machine. Vertex AI tells
each by TF_CONFIG who the others are. Artifacts come back as files; nothing is recorded of them in the job.

https://cloud.google.com/vertex-ai/docs/training/distributed-training
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from pydantic import BaseModel, ConfigDict
from tfx.dsl.components.base import base_executor
from tfx.types import Artifact, artifact_utils

from components.trainer.executor import chosen_profile, find_start, refuse_anomalies, training_key
from umx_model.errors import InputError

_log = logging.getLogger(__name__)

_LABEL = "umx-pro-training"
_UNDERWAY = ("JOB_STATE_QUEUED", "JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_UPDATING")
_ANSWER_SECONDS = 60.0
_PATIENCE_SECONDS = 900.0  # without an answer, before giving up a training that may well go on
_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 1.0, 30.0


class WorkerPool(BaseModel):
    """The machines, all alike.

    Attributes:
        project: of Google Cloud.
        region: of Vertex AI.
        machine_type: as `n1-standard-8`.
        accelerator_type: as `NVIDIA_TESLA_T4`; empty for none.
        accelerator_count: GPUs of each machine.
        machines: how many.
        image: container image of this repository.
        spot: cheaper machines, that may be taken away.
        service_account: that the job acts as; the project's default one if empty.
        endpoint: Vertex AI's address where it is not the region's; `http://...` for a server that asks for no
            credentials.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: str
    region: str
    machine_type: str
    accelerator_type: str = ""
    accelerator_count: int = 0
    machines: int = 1
    image: str
    spot: bool = False
    service_account: str = ""
    endpoint: str = ""


class Executor(base_executor.BaseExecutor):
    """Trains in a custom job; see `components.trainer.component.Trainer`.

    Not TFX's `start_cloud_training`, which cannot be told an endpoint or credentials, does not find the job again
    after the container was restarted, and leaves it running when the container is stopped.
    """

    def Do(  # noqa: N802 (TFX's name)
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Start the job, or find the one that does this training already, and wait for its end.

        Raises:
            InputError: the index has anomalies, a setting is impossible, or Vertex AI refuses the job.
            RuntimeError: the job failed, or Vertex AI does not answer any more.
        """
        refuse_anomalies(artifact_utils.get_single_instance(input_dict["anomalies"]))
        examples = artifact_utils.get_single_instance(input_dict["examples"])
        profile = chosen_profile(exec_properties)
        start = find_start(profile, exec_properties)
        key = training_key(profile, examples.get_string_custom_property("data_version"), start)
        pool = WorkerPool.model_validate_json(exec_properties["custom_job"])
        # One that runs on machines of its own needs no others.
        properties = {name: value for name, value in exec_properties.items() if name != "custom_job"}
        job = describe_job(pool, key, container_command(input_dict, output_dict, properties))
        _Jobs(pool).run(job, key)


def container_command(
    input_dict: dict[str, list[Artifact]], output_dict: dict[str, list[Artifact]], exec_properties: dict[str, Any]
) -> list[str]:
    """Return what each machine runs: the Trainer's usual executor, with everything that it is given here."""
    return [
        "python",
        "-m",
        "components.container",
        "--executor_class_path=components.trainer.executor.Executor",
        f"--inputs={artifact_utils.jsonify_artifact_dict(input_dict)}",
        f"--outputs={artifact_utils.jsonify_artifact_dict(output_dict)}",
        f"--exec-properties={json.dumps(exec_properties, sort_keys=True)}",
    ]


def describe_job(pool: WorkerPool, key: str, command: list[str]) -> dict[str, Any]:
    """Return a CustomJob of Vertex AI's API (v1).

    Args:
        pool: the machines. The first is the chief, the others are workers.
        key: of the training, by which the job is found again.
        command: that each runs.
    """
    machine: dict[str, Any] = {"machine_type": pool.machine_type}
    if pool.accelerator_count:
        machine |= {"accelerator_type": pool.accelerator_type, "accelerator_count": pool.accelerator_count}
    container = {"image_uri": pool.image, "command": command}
    counts = [1, pool.machines - 1] if pool.machines > 1 else [1]
    # A training that lost a machine ends on all of them; started together again, they go on from the last checkpoint.
    scheduling: dict[str, Any] = {"restart_job_on_worker_restart": True}
    if pool.spot:
        scheduling["strategy"] = "SPOT"
    spec: dict[str, Any] = {
        "worker_pool_specs": [
            {"machine_spec": machine, "replica_count": count, "container_spec": container} for count in counts
        ],
        "scheduling": scheduling,
    }
    if pool.service_account:
        spec["service_account"] = pool.service_account
    return {"display_name": f"umx-pro training {key}", "labels": {_LABEL: key}, "job_spec": spec}


class _Jobs:
    """Custom jobs of a region."""

    def __init__(self, pool: WorkerPool) -> None:
        # Imported here: it takes seconds, and few train there.
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.aiplatform_v1 import JobServiceClient

        self._pool = pool
        self._parent = f"projects/{pool.project}/locations/{pool.region}"
        local = pool.endpoint.startswith("http://")
        self._client = JobServiceClient(
            client_options={"api_endpoint": pool.endpoint or f"{pool.region}-aiplatform.googleapis.com"},
            transport="rest" if local else None,
            credentials=AnonymousCredentials() if local else None,
        )

    def run(self, job: dict[str, Any], key: str) -> None:
        """Start a job unless it is underway, and wait for its end; a container that is stopped stops its job."""
        from google.api_core.exceptions import GoogleAPICallError
        from google.auth.exceptions import GoogleAuthError

        request = {"parent": self._parent, "custom_job": job}
        try:
            name = self._find(key) or self._client.create_custom_job(request, timeout=_ANSWER_SECONDS).name
        except (GoogleAPICallError, GoogleAuthError) as error:
            raise InputError(
                f"{self._parent}: Vertex AI does not take the training as a custom job ({_first_line(error)}); look at "
                "machine_type, gpu, quota, and the roles of the service account"
            ) from None
        _log.info("training in the custom job %s", self._link(name))
        try:
            self._wait(name)
        except (KeyboardInterrupt, SystemExit):
            self._client.cancel_custom_job(name=name, timeout=5.0)
            raise

    def _find(self, key: str) -> str | None:
        """Return the job of a training that was started before and goes on."""
        states = " OR ".join(f'state="{state}"' for state in _UNDERWAY)
        request = {"parent": self._parent, "filter": f'labels.{_LABEL}="{key}" AND ({states})'}
        return next((job.name for job in self._client.list_custom_jobs(request, timeout=_ANSWER_SECONDS)), None)

    def _wait(self, name: str) -> None:
        from google.api_core.exceptions import GoogleAPICallError, RetryError

        pause, answered = _FIRST_PAUSE_SECONDS, time.monotonic()
        while True:
            try:
                job = self._client.get_custom_job(name=name, timeout=_ANSWER_SECONDS)
                answered = time.monotonic()
            except (GoogleAPICallError, RetryError, OSError) as error:
                if time.monotonic() - answered > _PATIENCE_SECONDS:
                    raise RuntimeError(
                        f"{self._link(name)}: Vertex AI does not answer any more ({_first_line(error)}); the training "
                        "may go on, and a retry finds it"
                    ) from None
            else:
                if job.state.name == "JOB_STATE_SUCCEEDED":
                    return
                if job.state.name not in _UNDERWAY:
                    said = job.error.message or job.state.name.removeprefix("JOB_STATE_").lower()
                    raise RuntimeError(f"the custom job ended without a model: {said}; its log: {self._link(name)}")
            time.sleep(pause)
            pause = min(1.5 * pause, _LAST_PAUSE_SECONDS)

    def _link(self, name: str) -> str:
        """Return the page of a job."""
        place = f"{self._pool.region}/training/{name.rsplit('/', 1)[-1]}?project={self._pool.project}"
        return f"https://console.cloud.google.com/ai/platform/locations/{place}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
