"""Evaluator: a model and an index in, scores, a report and a blessing out."""

from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.orchestration.data_types import RuntimeParameter
from tfx.types import BaseChannel, Channel, standard_artifacts
from tfx.types.component_spec import ChannelParameter as Artifacts
from tfx.types.component_spec import ComponentSpec, ExecutionParameter

from components.code_version import code_version
from components.evaluator import executor
from system import HTML
from umx_model.evaluation.gate import GateRule


class EvaluatorSpec(ComponentSpec):
    """What goes in and out; see `Evaluator`."""

    PARAMETERS = {
        "rule": ExecutionParameter(type=str),
        "floor_db": ExecutionParameter(type=str, optional=True),
        "push_destination": ExecutionParameter(type=str),
        "code_version": ExecutionParameter(type=str),
    }
    INPUTS = {
        "examples": Artifacts(type=standard_artifacts.Examples),
        "model": Artifacts(type=standard_artifacts.Model),
        "baseline_model": Artifacts(type=standard_artifacts.Model, optional=True),
    }
    OUTPUTS = {
        "evaluation": Artifacts(type=standard_artifacts.ModelEvaluation),
        "report": Artifacts(type=HTML),
        "blessing": Artifacts(type=standard_artifacts.ModelBlessing),
    }


class Evaluator(base_beam_component.BaseBeamComponent):
    """Separates every test sample (valid, where there is no test), scores the estimates and judges the model.

    The same is done with the baseline: the version that is served when the component runs, or the model that
    the pipeline has found as baseline where nothing is served. Both separate with the EM settings of their
    profiles, as they do when they are served.

    The output `evaluation` holds `scores.json`, with all scores and all that led to the verdict. The output
    `report` shows them, as one page: at its URI where a pipelines UI looks for it, on this machine in a folder as
    `report.html`. The output `blessing` says whether the model may be pushed, by the rule of
    `umx_model.evaluation.gate`. Its custom properties name the model and what was served
    (`model_weights_sha256`, `baseline_weights_sha256`, empty where nothing is served).

    Args:
        examples: index made by SampleGen.
        model: model folder made by Trainer.
        rule: what the model must reach.
        push_destination: folder of served versions. Which of them is served does not make a finished
            evaluation run again.
        floor_db: in place of the rule's: dB, or dB per target as in `vocals=2,drums=1`.
        baseline_model: model folder to compare with where nothing is served, such as the latest blessed one; may
            be empty.
    """

    SPEC_CLASS = EvaluatorSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self,
        examples: BaseChannel,
        model: BaseChannel,
        rule: GateRule,
        push_destination: str | RuntimeParameter,
        floor_db: str | RuntimeParameter | None = None,
        baseline_model: BaseChannel | None = None,
    ) -> None:
        super().__init__(
            EvaluatorSpec(
                examples=examples,
                model=model,
                rule=rule.model_dump_json(),
                push_destination=push_destination,
                floor_db=floor_db,
                baseline_model=baseline_model,
                code_version=code_version(
                    "umx_model.profile",
                    "umx_model.model",
                    "umx_model.pretrained",
                    "umx_model.data",
                    "umx_model.inference",
                    "umx_model.evaluation",
                    "components.evaluator",
                    "components.pusher.versions",
                    "data_schema",
                ),
                evaluation=Channel(type=standard_artifacts.ModelEvaluation),
                report=Channel(type=HTML),
                blessing=Channel(type=standard_artifacts.ModelBlessing),
            )
        )
