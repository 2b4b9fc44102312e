"""Pusher: a blessed model in, a new version of the served SavedModel out."""

from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import BaseChannel, Channel, standard_artifacts
from tfx.types.component_spec import ChannelParameter as Artifacts
from tfx.types.component_spec import ComponentSpec, ExecutionParameter

from components.code_version import code_version
from components.pusher import executor


class PusherSpec(ComponentSpec):
    """What goes in and out; see `Pusher`."""

    PARAMETERS = {
        "push_destination": ExecutionParameter(type=str),
        "code_version": ExecutionParameter(type=str),
    }
    INPUTS = {
        "model": Artifacts(type=standard_artifacts.Model),
        "model_blessing": Artifacts(type=standard_artifacts.ModelBlessing),
    }
    OUTPUTS = {"pushed_model": Artifacts(type=standard_artifacts.PushedModel)}


class Pusher(base_component.BaseComponent):
    """Exports the end-to-end SavedModel of a blessed model as `<push_destination>/<version>`.

    Versions are numbers that increase, as TensorFlow Serving expects, and appear complete or not
    at all. A model that was not blessed leaves the destination as it is.

    The output `pushed_model` says in its custom properties whether (`pushed`) and where to
    (`pushed_destination`, `pushed_version`).

    Args:
        model: model folder made by Trainer.
        model_blessing: of that model, made by Evaluator.
        push_destination: folder of versions, local or remote.
    """

    SPEC_CLASS = PusherSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(self, model: BaseChannel, model_blessing: BaseChannel, push_destination: str) -> None:
        super().__init__(
            PusherSpec(
                model=model,
                model_blessing=model_blessing,
                push_destination=push_destination,
                code_version=code_version(
                    "umx_model.profile", "umx_model.model", "umx_model.data.remote", "components.pusher"
                ),
                pushed_model=Channel(type=standard_artifacts.PushedModel),
            )
        )
