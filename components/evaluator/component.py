"""Evaluator: a model and an index in, scores and a blessing out."""

from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import BaseChannel, Channel, standard_artifacts
from tfx.types.component_spec import ChannelParameter as Artifacts
from tfx.types.component_spec import ComponentSpec, ExecutionParameter

from components.code_version import code_version
from components.evaluator import executor


class EvaluatorSpec(ComponentSpec):
    """What goes in and out; see `Evaluator`."""

    PARAMETERS = {
        "floor_db": ExecutionParameter(type=float),
        "code_version": ExecutionParameter(type=str),
    }
    INPUTS = {
        "examples": Artifacts(type=standard_artifacts.Examples),
        "model": Artifacts(type=standard_artifacts.Model),
        "baseline_model": Artifacts(type=standard_artifacts.Model, optional=True),
    }
    OUTPUTS = {
        "evaluation": Artifacts(type=standard_artifacts.ModelEvaluation),
        "blessing": Artifacts(type=standard_artifacts.ModelBlessing),
    }


class Evaluator(base_beam_component.BaseBeamComponent):
    """Separates every test sample (valid, where there is no test) and judges the estimates.

    The output `evaluation` holds `scores.json`: BSSEval v4 SDR in dB per sample and target, of the
    mixture and of the estimate, and their medians. The output `blessing` says whether the model is
    good enough: every target's median above the mixture's by more than a floor, and not below the
    baseline's where there is a baseline.

    Args:
        examples: index made by SampleGen.
        model: model folder made by Trainer.
        floor_db: dB by which a target's median must exceed the mixture's.
        baseline_model: optional; model folder not to fall behind.
    """

    SPEC_CLASS = EvaluatorSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self, examples: BaseChannel, model: BaseChannel, floor_db: float, baseline_model: BaseChannel | None = None
    ) -> None:
        super().__init__(
            EvaluatorSpec(
                examples=examples,
                model=model,
                baseline_model=baseline_model,
                floor_db=floor_db,
                code_version=code_version(
                    "umx_model.profile",
                    "umx_model.model",
                    "umx_model.pretrained",
                    "umx_model.data",
                    "umx_model.inference",
                    "umx_model.evaluation",
                    "components.evaluator",
                    "data_schema",
                ),
                evaluation=Channel(type=standard_artifacts.ModelEvaluation),
                blessing=Channel(type=standard_artifacts.ModelBlessing),
            )
        )
