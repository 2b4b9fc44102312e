"""SampleGen: a database of sample folders in, an index of it out."""

from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.orchestration.data_types import RuntimeParameter
from tfx.types import Channel, standard_artifacts
from tfx.types.component_spec import ChannelParameter as Artifacts
from tfx.types.component_spec import ComponentSpec, ExecutionParameter

from components.code_version import code_version
from components.sample_gen import executor


class SampleGenSpec(ComponentSpec):
    """What goes in and out; see `SampleGen`."""

    PARAMETERS = {
        "data": ExecutionParameter(type=str),
        "targets": ExecutionParameter(type=str),
        "data_version": ExecutionParameter(type=str),
        "code_version": ExecutionParameter(type=str),
    }
    INPUTS: dict[str, Artifacts] = {}
    OUTPUTS = {"examples": Artifacts(type=standard_artifacts.Examples)}


class SampleGen(base_beam_component.BaseBeamComponent):
    """Reads every sample folder of a database block by block and writes an index of it.

    The output `examples` holds a folder `Split-<split>` per split with gzipped TFRecords, one
    tf.Example per sample as `data_schema/schema.pbtxt` describes, and says in the custom property
    `data_version` which state of the database it describes. The audio stays where it is.

    Broken samples fail the run with one message that lists them all.

    Args:
        data: root of the database, a local folder or a remote one that tf.io.gfile opens.
        targets: comma-separated; every sample must have exactly these.
        data_version: fingerprint that the database must have; part of the cache key, so that a changed
            database is read again. Empty for whatever it has.
    """

    SPEC_CLASS = SampleGenSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self, data: str | RuntimeParameter, targets: str | RuntimeParameter, data_version: str | RuntimeParameter
    ) -> None:
        super().__init__(
            SampleGenSpec(
                data=data,
                targets=targets,
                data_version=data_version,
                code_version=code_version("umx_model.data", "components.sample_gen", "data_schema"),
                examples=Channel(type=standard_artifacts.Examples),
            )
        )
