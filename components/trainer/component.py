"""Trainer: an index of a database in, a model folder out."""

from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import BaseChannel, Channel, standard_artifacts
from tfx.types.component_spec import ChannelParameter as Artifacts
from tfx.types.component_spec import ComponentSpec, ExecutionParameter

from components.code_version import code_version
from components.trainer import executor
from umx_model.profile import Profile


class TrainerSpec(ComponentSpec):
    """What goes in and out; see `Trainer`."""

    PARAMETERS = {
        "profile": ExecutionParameter(type=str),
        "training_folder": ExecutionParameter(type=str),
        "warm_start_from": ExecutionParameter(type=str),
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
    when it is run again. The folder is removed when the model has been written.

    Args:
        examples: index made by SampleGen.
        anomalies: of that index, found by ExampleValidator.
        profile: what to train and how; history and other traces of an earlier training are ignored.
        training_folder: a folder that outlives the run.
        warm_start_from: folder of served versions: training starts from the weights of the current one, read when
            it starts, where there is one of the same architecture, targets and sizes. Which one that is does not
            make a finished training run again. Empty: training starts from random weights.
    """

    SPEC_CLASS = TrainerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        examples: BaseChannel,
        anomalies: BaseChannel,
        profile: Profile,
        training_folder: str,
        warm_start_from: str = "",
    ) -> None:
        super().__init__(
            TrainerSpec(
                examples=examples,
                anomalies=anomalies,
                profile=Profile(model=profile.model, train=profile.train).model_dump_json(),
                training_folder=training_folder,
                warm_start_from=warm_start_from,
                code_version=code_version(
                    "umx_model.profile",
                    "umx_model.model",
                    "umx_model.data",
                    "umx_model.train",
                    "umx_model.inference.xla",
                    "components.trainer",
                    "components.pusher.versions",
                    "data_schema",
                ),
                model=Channel(type=standard_artifacts.Model),
                model_run=Channel(type=standard_artifacts.ModelRun),
            )
        )
