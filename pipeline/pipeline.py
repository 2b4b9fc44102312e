"""The wiring of the components, top-down like the diagram.

SampleGen -> StatisticsGen -> ImportSchemaGen -> ExampleValidator -+
    |                                                              v
    +------------------------------------------------------->  Trainer -> Evaluator -> Pusher
"""

import hashlib
import os
from pathlib import Path

from ml_metadata.proto import metadata_store_pb2
from tfx.components import ExampleValidator, StatisticsGen
from tfx.components.schema_gen.import_schema_gen.component import ImportSchemaGen
from tfx.dsl.components.base.executor_spec import ExecutorClassSpec
from tfx.orchestration.pipeline import Pipeline

from components.evaluator.component import Evaluator
from components.pusher.component import Pusher
from components.sample_gen.component import SampleGen
from components.trainer.component import Trainer
from data_schema.index import SCHEMA_FILE
from pipeline.settings import PipelineSettings

NAME = "umx-pro"


def create_pipeline(
    settings: PipelineSettings,
    data_version: str,
    metadata_connection_config: metadata_store_pb2.ConnectionConfig | None = None,
) -> Pipeline:
    """Wire the components.

    Args:
        settings: what to run.
        data_version: fingerprint of the database as it is now; a component is skipped only if its
            inputs, settings, code and this stayed the same.
        metadata_connection_config: where the record of runs is kept; None where the platform keeps it.
    """
    sample_gen = SampleGen(
        data=settings.data, targets=",".join(settings.profile.mixture_targets), data_version=data_version
    )
    statistics_gen = StatisticsGen(examples=sample_gen.outputs["examples"])
    schema_gen = _import_schema(SCHEMA_FILE)
    validator = ExampleValidator(statistics=statistics_gen.outputs["statistics"], schema=schema_gen.outputs["schema"])
    trainer = Trainer(
        examples=sample_gen.outputs["examples"],
        anomalies=validator.outputs["anomalies"],
        profile=settings.profile,
        training_folder=os.path.join(settings.output, "training"),
        warm_start_from=settings.serving_folder if settings.warm_start else "",
    )
    evaluator = Evaluator(
        examples=sample_gen.outputs["examples"],
        model=trainer.outputs["model"],
        rule=settings.rule,
        push_destination=settings.serving_folder,
    )
    pusher = Pusher(
        model=trainer.outputs["model"],
        model_blessing=evaluator.outputs["blessing"],
        evaluation=evaluator.outputs["evaluation"],
        push_destination=settings.serving_folder,
        keep_versions=settings.keep_versions,
        vertex_registry=settings.vertex_registry,
    )
    return Pipeline(
        pipeline_name=NAME,
        pipeline_root=os.path.join(settings.output, "artifacts"),
        metadata_connection_config=metadata_connection_config,
        components=[sample_gen, statistics_gen, schema_gen, validator, trainer, evaluator, pusher],
        enable_cache=True,
        beam_pipeline_args=list(settings.beam_args),
    )


def _import_schema(schema_file: str) -> ImportSchemaGen:
    """ImportSchemaGen that is not skipped when the file has been edited under the same name."""
    schema_gen = ImportSchemaGen(schema_file=schema_file)
    digest = hashlib.sha256(Path(schema_file).read_bytes()).hexdigest()[:16]
    # The executor reads no flags, but they are part of the cache key.
    assert isinstance(schema_gen.executor_spec, ExecutorClassSpec)
    schema_gen.executor_spec.add_extra_flags([f"--schema_version={digest}"])
    return schema_gen
