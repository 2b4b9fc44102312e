"""Pusher: a blessed model in, a new version of the served SavedModel out."""

from tfx.dsl.components.base import base_component, executor_spec
from tfx.orchestration.data_types import RuntimeParameter
from tfx.types import BaseChannel, Channel, standard_artifacts
from tfx.types.component_spec import ChannelParameter as Artifacts
from tfx.types.component_spec import ComponentSpec, ExecutionParameter

from components.code_version import code_version
from components.pusher import executor


class PusherSpec(ComponentSpec):
    """What goes in and out; see `Pusher`."""

    PARAMETERS = {
        "push_destination": ExecutionParameter(type=str),
        "keep_versions": ExecutionParameter(type=int),
        "vertex_registry": ExecutionParameter(type=str),
        "code_version": ExecutionParameter(type=str),
    }
    INPUTS = {
        "model": Artifacts(type=standard_artifacts.Model),
        "model_blessing": Artifacts(type=standard_artifacts.ModelBlessing),
        "evaluation": Artifacts(type=standard_artifacts.ModelEvaluation),
    }
    OUTPUTS = {"pushed_model": Artifacts(type=standard_artifacts.PushedModel)}


class Pusher(base_component.BaseComponent):
    """Makes a blessed model the next version, `<push_destination>/<number>`; see `components.pusher.versions`.

    The end-to-end SavedModel has the EM settings of the profile, as the evaluation does. Versions are numbers
    that increase, as TensorFlow Serving expects, and appear complete or not at all; a card and `lineage.json`
    tell where each comes from. The destination stays as it is where the model was not blessed, was
    withdrawn by a rollback, or is what the current version serves already.

    The output `pushed_model` says in its custom properties whether (`pushed`) and where to
    (`pushed_destination`, `pushed_version`), or why not (`reason`), and which model (`weights_sha256`).

    Args:
        model: model folder made by Trainer.
        model_blessing: of that model, made by Evaluator.
        evaluation: of that model, made by Evaluator.
        push_destination: folder of versions, local or remote.
        keep_versions: how many versions to leave.
        vertex_registry: where to enter versions too, `projects/PROJECT/locations/LOCATION`; empty for nowhere.
    """

    SPEC_CLASS = PusherSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        model: BaseChannel,
        model_blessing: BaseChannel,
        evaluation: BaseChannel,
        push_destination: str | RuntimeParameter,
        keep_versions: int,
        vertex_registry: str = "",
    ) -> None:
        super().__init__(
            PusherSpec(
                model=model,
                model_blessing=model_blessing,
                evaluation=evaluation,
                push_destination=push_destination,
                keep_versions=keep_versions,
                vertex_registry=vertex_registry,
                code_version=code_version(
                    "umx_model.profile", "umx_model.model", "umx_model.data.remote", "components.pusher"
                ),
                pushed_model=Channel(type=standard_artifacts.PushedModel),
            )
        )
