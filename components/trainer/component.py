"""Trainer: an index of a database in, a model folder out."""

from tfx.dsl.components.base import base_component, executor_spec
from tfx.orchestration.data_types import RuntimeParameter
from tfx.types import BaseChannel, Channel, standard_artifacts
from tfx.types.component_spec import ChannelParameter as Artifacts
from tfx.types.component_spec import ComponentSpec, ExecutionParameter

from components.code_version import code_version
from components.trainer import custom_job as custom_job_executor
from components.trainer import executor
from components.trainer.custom_job import WorkerPool
from umx_model.profile import Profile


class TrainerSpec(ComponentSpec):
    """What goes in and out; see `Trainer`."""

    PARAMETERS = {
        "profile": ExecutionParameter(type=str),
        "training_folder": ExecutionParameter(type=str),
        "push_destination": ExecutionParameter(type=str),
        "warm_start": ExecutionParameter(type=int),
        "init_from": ExecutionParameter(type=str),
        "targets": ExecutionParameter(type=str, optional=True),
        "epochs": ExecutionParameter(type=int, optional=True),
        "batch_size": ExecutionParameter(type=int, optional=True),
        "excerpt_seconds": ExecutionParameter(type=float, optional=True),
        "custom_job": ExecutionParameter(type=str, optional=True),
        "code_version": ExecutionParameter(type=str),
    }
    INPUTS = {
        "examples": Artifacts(type=standard_artifacts.Examples),
        "anomalies": Artifacts(type=standard_artifacts.ExampleAnomalies),
    }
    OUTPUTS = {
        "model": Artifacts(type=standard_artifacts.Model),
        "model_run": Artifacts(type=standard_artifacts.ModelRun),
    }


class Trainer(base_component.BaseComponent):
    """Trains a model on the files of an index, unless the index has anomalies.

    The output `model` is a model folder (profile.json, model.weights.h5, saved_model/), and
    `model_run` holds the TensorBoard logs.

    While it trains, checkpoints and logs are in `<training_folder>/<key>`, where the key stands
    for the profile and the state of the database: a training that was stopped continues there
    when it is run again. Of a remote folder, what is there is a copy, brought up to date in the background.
    The folder is removed when the model has been written.

    Args:
        examples: index made by SampleGen.
        anomalies: of that index, found by ExampleValidator.
        profile: what to train and how; history and other traces of an earlier training are ignored.
        training_folder: a folder that outlives the run.
        push_destination: folder of served versions.
        warm_start: whether training starts from the weights of the version that is served when it starts, where
            there is one of the same architecture, targets and sizes; else from random ones. Which version that is
            does not make a finished training run again.
        init_from: model whose weights training starts from where it does not from served ones: the name of one
            that comes with the program, or a model folder; empty for random weights. Which weights it holds does
            not make a finished training run again either.
        targets, epochs, batch_size, excerpt_seconds: in place of the profile's; targets comma-separated.
        custom_job: machines of Vertex AI to train on; None for the one that the component runs on.
    """

    SPEC_CLASS = TrainerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        examples: BaseChannel,
        anomalies: BaseChannel,
        profile: Profile,
        training_folder: str,
        push_destination: str | RuntimeParameter = "",
        warm_start: bool | RuntimeParameter = False,
        init_from: str = "",
        targets: str | RuntimeParameter | None = None,
        epochs: int | RuntimeParameter | None = None,
        batch_size: int | RuntimeParameter | None = None,
        excerpt_seconds: float | RuntimeParameter | None = None,
        custom_job: WorkerPool | None = None,
    ) -> None:
        super().__init__(
            TrainerSpec(
                examples=examples,
                anomalies=anomalies,
                profile=Profile(model=profile.model, train=profile.train).model_dump_json(),
                training_folder=training_folder,
                push_destination=push_destination,
                warm_start=int(warm_start) if isinstance(warm_start, bool) else warm_start,
                init_from=init_from,
                targets=targets,
                epochs=epochs,
                batch_size=batch_size,
                excerpt_seconds=excerpt_seconds,
                custom_job=custom_job.model_dump_json() if custom_job else None,
                code_version=code_version(
                    "umx_model.profile",
                    "umx_model.model",
                    "umx_model.data",
                    "umx_model.train",
                    "umx_model.inference.xla",
                    "umx_model.pretrained",
                    "components.trainer",
                    "components.pusher.versions",
                    "data_schema",
                ),
                model=Channel(type=standard_artifacts.Model),
                model_run=Channel(type=standard_artifacts.ModelRun),
            ),
            custom_executor_spec=executor_spec.ExecutorClassSpec(custom_job_executor.Executor) if custom_job else None,
        )
