"""The wiring of the components, top-down like the diagram.

SampleGen -> StatisticsGen -> ImportSchemaGen -> ExampleValidator -+
    |                                                              v
    +------------------------------------------------------->  Trainer -> Evaluator -> Pusher
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_metadata.proto import metadata_store_pb2
from tfx.components import ExampleValidator, StatisticsGen
from tfx.components.schema_gen.import_schema_gen.component import ImportSchemaGen
from tfx.dsl.components.base.executor_spec import ExecutorClassSpec
from tfx.dsl.components.common.resolver import Resolver
from tfx.dsl.input_resolution.strategies.latest_blessed_model_strategy import LatestBlessedModelStrategy
from tfx.orchestration.data_types import RuntimeParameter
from tfx.orchestration.pipeline import Pipeline
from tfx.types import Channel
from tfx.types.standard_artifacts import Model, ModelBlessing

from components.evaluator.component import Evaluator
from components.pusher.component import Pusher
from components.sample_gen.component import SampleGen
from components.trainer.component import Trainer
from components.trainer.custom_job import WorkerPool
from data_schema.index import SCHEMA_FILE
from pipeline.settings import RunSettings

NAME = "umx-pro"


@dataclass(frozen=True)
class Choices:
    """What can be chosen anew for every run: on this machine values, on a platform parameters of the compiled pipeline.

    Attributes:
        data: root of the database.
        data_version: fingerprint of the database as it is now; a component is skipped only if its inputs,
            settings, code and this stayed the same.
        mixture_targets: comma-separated; the targets that every sample has.
        push_destination: folder of served versions.
        warm_start: whether to start training from the weights of the served version.
        targets, epochs, batch_size, excerpt_seconds: in place of the profile's.
        floor_db: in place of the rule's.
    """

    data: str | RuntimeParameter
    data_version: str | RuntimeParameter
    mixture_targets: str | RuntimeParameter
    push_destination: str | RuntimeParameter
    warm_start: bool | RuntimeParameter
    targets: RuntimeParameter | None = None
    epochs: RuntimeParameter | None = None
    batch_size: RuntimeParameter | None = None
    excerpt_seconds: RuntimeParameter | None = None
    floor_db: RuntimeParameter | None = None


def create_pipeline(
    settings: RunSettings,
    choices: Choices,
    *,
    root: str,
    training_folder: str,
    metadata_connection_config: metadata_store_pb2.ConnectionConfig | None = None,
    beam_args: Sequence[str] = (),
    resolve_baseline: bool = False,
    custom_job: WorkerPool | None = None,
) -> Pipeline:
    """Wire the components.

    Args:
        settings: what to run.
        choices: what may differ from run to run.
        root: folder for what components make.
        training_folder: for checkpoints of a training that has not finished.
        metadata_connection_config: where the record of runs is kept; None where the platform keeps it.
        beam_args: Beam's options.
        resolve_baseline: ask the record for the latest blessed model, to compare with where nothing is served.
        custom_job: machines to train on, other than the Trainer's container.
    """
    sample_gen = SampleGen(data=choices.data, targets=choices.mixture_targets, data_version=choices.data_version)
    statistics_gen = StatisticsGen(examples=sample_gen.outputs["examples"])
    schema_gen = _import_schema(SCHEMA_FILE)
    validator = ExampleValidator(statistics=statistics_gen.outputs["statistics"], schema=schema_gen.outputs["schema"])
    trainer = Trainer(
        examples=sample_gen.outputs["examples"],
        anomalies=validator.outputs["anomalies"],
        profile=settings.profile,
        training_folder=training_folder,
        # Where to push to is no reason to train again.
        push_destination=choices.push_destination if choices.warm_start else "",
        warm_start=choices.warm_start,
        init_from=settings.init_from,
        targets=choices.targets,
        epochs=choices.epochs,
        batch_size=choices.batch_size,
        excerpt_seconds=choices.excerpt_seconds,
        custom_job=custom_job,
    )
    components = [sample_gen, statistics_gen, schema_gen, validator, trainer]
    baseline_model = None
    if resolve_baseline:
        resolver = Resolver(
            strategy_class=LatestBlessedModelStrategy,
            baseline_model=Channel(type=Model),
            baseline_blessing=Channel(type=ModelBlessing),
        ).with_id("Resolver")
        components.append(resolver)
        baseline_model = resolver.outputs["baseline_model"]
    evaluator = Evaluator(
        examples=sample_gen.outputs["examples"],
        model=trainer.outputs["model"],
        rule=settings.rule,
        push_destination=choices.push_destination,
        floor_db=choices.floor_db,
        baseline_model=baseline_model,
    )
    pusher = Pusher(
        model=trainer.outputs["model"],
        model_blessing=evaluator.outputs["blessing"],
        evaluation=evaluator.outputs["evaluation"],
        push_destination=choices.push_destination,
        keep_versions=settings.keep_versions,
        vertex_registry=settings.vertex_registry,
    )
    return Pipeline(
        pipeline_name=NAME,
        pipeline_root=root,
        metadata_connection_config=metadata_connection_config,
        components=[*components, evaluator, pusher],
        enable_cache=True,
        beam_pipeline_args=list(beam_args),
    )


def _import_schema(schema_file: str) -> ImportSchemaGen:
    """ImportSchemaGen that is not skipped when the file has been edited under the same name."""
    schema_gen = ImportSchemaGen(schema_file=schema_file)
    digest = hashlib.sha256(Path(schema_file).read_bytes()).hexdigest()[:16]
    # The executor reads no flags, but they are part of the cache key.
    assert isinstance(schema_gen.executor_spec, ExecutorClassSpec)
    schema_gen.executor_spec.add_extra_flags([f"--schema_version={digest}"])
    return schema_gen
