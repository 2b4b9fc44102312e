"""The work of SampleGen: check every sample with Beam, write the index."""

import os
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from tfx.components.util import examples_utils
from tfx.dsl.components.base import base_beam_executor
from tfx.proto import example_gen_pb2
from tfx.types import Artifact, artifact_utils

from components import progress
from components.beam_text import failure, raise_failures, read_lines, write_lines
from data_schema.index import to_example
from umx_model.data.check import check_sample
from umx_model.data.track_folder import database_fingerprint, list_sample_folders
from umx_model.errors import InputError

_PROBLEMS = "problems"
_FAILURES = "failures"


class _CheckSample(beam.DoFn):
    """(split, folder name) -> (split, serialised example), or lines about what is wrong with it or has failed."""

    def __init__(self, data: str, targets: tuple[str, ...]) -> None:
        self._data = data
        self._targets = targets

    def process(self, folder: tuple[str, str]) -> Iterator[Any]:
        """Check one sample."""
        split, name = folder
        try:
            check = check_sample(self._data, split, name, self._targets)
            if check.sample is not None and not check.problems:
                example = to_example(check.sample, check.statistics, self._targets)
                yield split, example.SerializeToString(deterministic=True)
            for problem in check.problems:
                yield TaggedOutput(_PROBLEMS, problem)
        except Exception as error:
            yield TaggedOutput(_FAILURES, failure(f"{split}/{name}", error))
        progress.advance(name)


class Executor(base_beam_executor.BaseBeamExecutor):
    """Writes the index; see `components.sample_gen.component.SampleGen`."""

    def Do(  # noqa: N802 (TFX's name)
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Read the database and write its index.

        Raises:
            InputError: the database or samples of it cannot be used; one line per problem.
            RuntimeError: samples could not be checked.
        """
        data = exec_properties["data"]
        targets = tuple(target.strip() for target in exec_properties["targets"].split(","))
        folders = list_sample_folders(data)
        data_version = _data_version(data, exec_properties["data_version"])
        splits = list(dict.fromkeys(split for split, _ in folders))

        examples = artifact_utils.get_single_instance(output_dict["examples"])
        examples.split_names = artifact_utils.encode_split_names(splits)
        examples.set_string_custom_property("data_version", data_version)
        examples_utils.set_payload_format(examples, example_gen_pb2.PayloadFormat.FORMAT_TF_EXAMPLE)

        scratch = self._get_tmp_dir()
        problems, failures = os.path.join(scratch, _PROBLEMS), os.path.join(scratch, _FAILURES)
        with progress.shown("reading samples", len(folders), "samples"), self._make_beam_pipeline() as pipeline:
            checked = (
                pipeline
                | "Folders" >> beam.Create(folders)
                | "Spread" >> beam.Reshuffle()
                | "Check" >> beam.ParDo(_CheckSample(data, targets)).with_outputs(_PROBLEMS, _FAILURES, main="examples")
            )
            checked[_PROBLEMS] | "WriteProblems" >> write_lines(problems)
            checked[_FAILURES] | "WriteFailures" >> write_lines(failures)
            for split in splits:
                _write_split(checked["examples"], split, artifact_utils.get_split_uri([examples], split))
        lines = read_lines(problems)
        if lines:
            raise InputError("\n".join(lines))
        raise_failures(read_lines(failures))


def _data_version(data: str, expected: str) -> str:
    """Return the fingerprint of a database, which must be as expected where something is."""
    found = database_fingerprint(data)
    if expected not in ("", found):
        raise InputError(
            f"{data}: has changed: data_version should be {expected}, and is {found}; leave data_version empty "
            "to take the database as it is"
        )
    return found


def _write_split(examples: beam.PCollection, split: str, folder: str) -> None:
    (
        examples
        | f"Only[{split}]" >> beam.Filter(lambda example, split: example[0] == split, split)
        | f"Record[{split}]" >> beam.Values()
        | f"Write[{split}]"
        >> beam.io.WriteToTFRecord(os.path.join(folder, "index"), file_name_suffix=".gz", num_shards=1)
    )
