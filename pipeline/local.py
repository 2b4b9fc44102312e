"""The pipeline on this machine: Beam's DirectRunner, and a record of runs in SQLite.

Everything is kept in the output folder:

    artifacts/     what each component made
    metadata.db    which component made what from what; decides what need not run again
    training/      checkpoints and logs of a training that has not finished
    serving/       pushed models, one folder per version
    logs/          one file per run
    .lock          locked while a run is using the folder
"""

import datetime
import fcntl
import functools
import json
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from ml_metadata.proto import metadata_store_pb2
from tfx.dsl.compiler import compiler, constants
from tfx.orchestration import metadata
from tfx.orchestration.local import runner_utils
from tfx.orchestration.pipeline import Pipeline
from tfx.orchestration.portable import (
    beam_executor_operator,
    launcher,
    python_executor_operator,
    runtime_parameter_utils,
)
from tfx.orchestration.portable.mlmd import execution_lib
from tfx.proto.orchestration import executable_spec_pb2, pipeline_pb2
from tfx.types import Artifact

from components.evaluator.executor import REPORT_FILE, SCORES_FILE
from components.pusher.executor import OVERTAKEN, REASON, WEIGHTS_SHA256, WITHDRAWN
from components.pusher.registry import check_registry
from components.pusher.versions import current_version, is_withdrawn, read_lineage, served_weights
from components.sample_gen.component import SampleGen
from pipeline.logs import logged_to
from pipeline.pipeline import Choices, create_pipeline
from pipeline.settings import PipelineSettings
from umx_model.data.check import check_fits
from umx_model.data.track_folder import database_fingerprint, read_database
from umx_model.errors import InputError
from umx_model.evaluation.evaluate import METRIC, table
from umx_model.evaluation.scores import TrackScores, summarize_mixture
from umx_model.model.spectral_filter import check_architecture
from umx_model.train.checks import check_trainable

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalRunResult:
    """How a run ended.

    Attributes:
        pushed_version_dir: the version that serves the model; None where it was not pushed.
        not_pushed_because: why not; None where it was.
        scores: the Evaluator's report, `scores.json`.
        report: the Evaluator's report to look at, `report.html`.
        model_dir: the trained model folder.
        log_file: what TFX, Beam and TensorFlow had to say.
        cached: the components that need not run.
    """

    pushed_version_dir: str | None
    not_pushed_because: str | None
    scores: dict[str, Any]
    report: str
    model_dir: str
    log_file: str
    cached: tuple[str, ...]


class ComponentError(Exception):
    """A component failed; the cause is chained."""


def describe(result: LocalRunResult) -> str:
    """Say where the model is, how good it is and how to use it."""
    scores = result.scores
    tracks = [TrackScores.from_json(track) for track in scores["tracks"]]
    baseline = [TrackScores.from_json(track) for track in scores["baseline"] or ()]
    folder = result.pushed_version_dir
    lines = [""]
    if not all(math.isnan(score) for score in summarize_mixture(tracks).values()):
        lines += [f"{METRIC}; {len(tracks)} {scores['split']} samples", table(tracks, baseline or None), ""]
    if folder is None and not scores["blessed"]:
        lines.append("Not pushed, because the model is not good enough:")
        lines += [f"  {objection}" for objection in scores["objections"]]
    elif folder is None:
        lines.append(f"Not pushed: {result.not_pushed_because}")
    if folder is None:
        lines.append(f"The model is kept in {result.model_dir}")
        folder = result.model_dir
    else:
        lines.append(f"Pushed to {folder}")
    lines.append(f"More on how good it is: {result.report}")
    return "\n".join([*lines, usage(folder)])


def usage(folder: str) -> str:
    """Say how to use a model folder or SavedModel, as lines that can be pasted into a shell."""
    code = f'import umx_model as umx; stems = umx.load_separator({json.dumps(folder)}).separate("SONG")'
    lines = [
        "Use it:",
        f"  {_command('umx-pro')} separate --model {shlex.quote(folder)} SONG",
        f"  {_command('python')} -c {shlex.quote(code)}",
    ]
    return "\n".join(lines)


def _command(name: str) -> str:
    """A program of this Python's environment, which need not be the activated one."""
    path = os.path.join(os.path.dirname(sys.executable), name)
    below = os.path.relpath(path)
    return shlex.quote(path if below.startswith(os.pardir) or os.sep not in below else below)


def run_local(settings: PipelineSettings, report: Callable[[str], None] = print) -> LocalRunResult:
    """Run the pipeline, skipping components whose inputs, settings and code have not changed.

    A run that failed or was interrupted continues where it stopped when it is run again.

    Args:
        settings: what to run.
        report: takes one line per component when it is done.

    Raises:
        InputError: settings, database or folders cannot be used; one line per problem.
        ComponentError: a component failed.
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM while it trains, with code 143.
    """
    check_settings(settings)
    with _locked(settings.output), logged_to(os.path.join(settings.output, "logs")) as log_file:
        connection = metadata.sqlite_metadata_connection_config(_metadata_file(settings))
        _forget_what_no_longer_holds(connection, settings.serving_folder)
        pipeline = local_pipeline(settings, database_fingerprint(settings.data), connection)
        if not settings.beam_args:
            _read_in_parallel(pipeline)
        plan = compiler.Compiler().compile(pipeline)
        return _summary(_run(plan, connection, report, log_file), log_file)


def local_pipeline(
    settings: PipelineSettings,
    data_version: str,
    metadata_connection_config: metadata_store_pb2.ConnectionConfig | None = None,
) -> Pipeline:
    """Wire the components for runs in an output folder; arguments are those of `create_pipeline`."""
    choices = Choices(
        data=settings.data,
        data_version=data_version,
        mixture_targets=",".join(settings.profile.mixture_targets),
        push_destination=settings.serving_folder,
        warm_start=settings.warm_start,
    )
    return create_pipeline(
        settings,
        choices,
        root=os.path.join(settings.output, "artifacts"),
        training_folder=os.path.join(settings.output, "training"),
        metadata_connection_config=metadata_connection_config,
        beam_args=settings.beam_args,
    )


def check_settings(settings: PipelineSettings) -> None:
    """Refuse, before anything is written, what would fail later.

    Raises:
        InputError: one line per problem.
    """
    profile = settings.profile
    check_architecture(profile.model)
    samples = read_database(settings.data, profile.mixture_targets)
    check_trainable(profile, samples, max(1, len(tf.config.list_physical_devices("GPU"))))
    # Used whole, so any length does that holds an STFT frame.
    check_fits(samples.get("test", ()), profile.model, profile.model.n_fft / profile.model.sample_rate)
    for name, folder in (("output", settings.output), ("push_destination", settings.serving_folder)):
        _require_writable(name, folder)
    if settings.vertex_registry:
        check_registry(settings.vertex_registry, settings.serving_folder)
    _require_database(_metadata_file(settings))


def _metadata_file(settings: PipelineSettings) -> str:
    return os.path.join(settings.output, "metadata.db")


def _require_writable(name: str, folder: str) -> None:
    """Write and remove a file in a folder, or in the one that it would be made in, or say that this cannot be done."""
    place = folder
    while not tf.io.gfile.exists(place) and ("://" in os.path.dirname(place)) == ("://" in place):
        place = os.path.dirname(place)
    probe = os.path.join(place, f".umx-pro-{os.getpid()}")
    try:
        with tf.io.gfile.GFile(probe, "w") as file:
            file.write("")
        tf.io.gfile.remove(probe)
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "message", str(error))
        raise InputError(f"{name} {folder}: cannot be written ({reason}); choose another folder") from None


def _require_database(path: str) -> None:
    """Refuse a file that is no SQLite database; there may be none yet."""
    if os.path.exists(path):
        with open(path, "rb") as file:
            start = file.read(16)
        if start not in (b"", b"SQLite format 3\0"):
            raise InputError(f"{path}: not a metadata database; remove it to start afresh")


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Keep other runs out of a folder while the block runs; the system frees it even after a crash."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, ".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"output {folder}: another run is using this folder; wait for its end, or choose another folder"
            ) from None
        yield


def _read_in_parallel(pipeline: Pipeline) -> None:
    """Have SampleGen read on all cores; the other components' work is too short to gain from it."""
    [sample_gen] = [component for component in pipeline.components if isinstance(component, SampleGen)]
    sample_gen.with_beam_pipeline_args(
        [
            "--direct_running_mode=multi_threading",
            "--direct_num_workers=0",
            # Named only because TFX otherwise packs itself up for workers elsewhere, which takes seconds.
            "--sdk_container_image=none",
        ]
    )


def _run(
    plan: pipeline_pb2.Pipeline,
    connection: metadata_store_pb2.ConnectionConfig,
    report: Callable[[str], None],
    log_file: str,
) -> dict[str, "_Done"]:
    """Run the components one after the other, as TFX's LocalDagRunner does, and say how each went."""
    run_id = {constants.PIPELINE_RUN_ID_PARAMETER_NAME: datetime.datetime.now().isoformat()}
    runtime_parameter_utils.substitute_runtime_parameter(plan, run_id)
    deployment = runner_utils.extract_local_deployment_config(plan)
    done = {}
    for node in (node.pipeline_node for node in plan.nodes):
        name = node.node_info.id
        component = launcher.Launcher(
            pipeline_node=node,
            mlmd_connection=metadata.Metadata(connection),
            pipeline_info=plan.pipeline_info,
            pipeline_runtime_spec=plan.runtime_spec,
            executor_spec=runner_utils.extract_executor_spec(deployment, name),
            custom_executor_operators=_OPERATORS,
        )
        start = time.monotonic()
        try:
            execution = component.launch()
        except InputError:
            raise
        except _Interrupted as interruption:
            raise interruption.signal from None
        except Exception as error:
            _log.info("%s failed", name, exc_info=True)
            raise ComponentError(f"{name} failed: {_first_line(error)}; more in {log_file}") from error
        with metadata.Metadata(connection) as store:
            done[name] = _Done.read(store, execution.execution_id)
        took = "cached" if done[name].cached else f"{time.monotonic() - start:.1f} s"
        report(f"{name:<17}{took:>10}")
    return done


@dataclass(frozen=True)
class _Done:
    """A component that has run, or need not."""

    cached: bool
    outputs: dict[str, Artifact]

    @classmethod
    def read(cls, store: metadata.Metadata, execution_id: int) -> "_Done":
        [execution] = store.store.get_executions_by_id([execution_id])
        outputs = execution_lib.get_output_artifacts(store, execution_id)
        cached = execution.last_known_state == metadata_store_pb2.Execution.CACHED
        return cls(cached, {key: artifacts[0] for key, artifacts in outputs.items()})


class _Interrupted(Exception):  # noqa: N818 (it is no error)
    """Ctrl-C or SIGTERM while a component runs, as an exception after which TFX cleans up."""

    def __init__(self, signal: BaseException) -> None:
        super().__init__(str(signal))
        self.signal = signal


class _PythonOperator(python_executor_operator.PythonExecutorOperator):
    def run_executor(self, execution_info: Any) -> Any:
        try:
            return super().run_executor(execution_info)
        except (KeyboardInterrupt, SystemExit) as signal:
            raise _Interrupted(signal) from None


class _BeamOperator(beam_executor_operator.BeamExecutorOperator):
    def run_executor(self, execution_info: Any, make_beam_pipeline_fn: Any = None) -> Any:
        try:
            return super().run_executor(execution_info, make_beam_pipeline_fn)
        except (KeyboardInterrupt, SystemExit) as signal:
            raise _Interrupted(signal) from None


_OPERATORS = {
    executable_spec_pb2.PythonClassExecutableSpec: _PythonOperator,
    executable_spec_pb2.BeamExecutableSpec: _BeamOperator,
}


def _summary(done: dict[str, _Done], log_file: str) -> LocalRunResult:
    pushed = done["Pusher"].outputs["pushed_model"]
    evaluation = done["Evaluator"].outputs["evaluation"].uri
    with tf.io.gfile.GFile(os.path.join(evaluation, SCORES_FILE)) as file:
        scores = json.loads(file.read())
    return LocalRunResult(
        pushed_version_dir=pushed.get_string_custom_property("pushed_destination") or None,
        not_pushed_because=pushed.get_string_custom_property(REASON) or None,
        scores=scores,
        report=os.path.join(done["Evaluator"].outputs["report"].uri, REPORT_FILE),
        model_dir=done["Trainer"].outputs["model"].uri,
        log_file=log_file,
        cached=tuple(name for name, component in done.items() if component.cached),
    )


def _forget_what_no_longer_holds(connection: metadata_store_pb2.ConnectionConfig, destination: str) -> None:
    """Make Evaluator and Pusher run again where their results depend on what was served then and is not now.

    What is served is in no cache key: else every push would make the next run judge and push the same model again.
    """
    current = current_version(destination)
    lineage = read_lineage(current) if current else {}
    with metadata.Metadata(connection) as handle:
        for kind, holds in (
            ("PushedModel", functools.partial(_push_holds, current=current, lineage=lineage)),
            ("ModelBlessing", functools.partial(_blessing_holds, served=served_weights(current))),
        ):
            live = metadata_store_pb2.Artifact.LIVE
            lapsed = [
                artifact
                for artifact in handle.store.get_artifacts_by_type(kind)
                if artifact.state == live and not holds(_properties(artifact))
            ]
            for artifact in lapsed:
                artifact.state = metadata_store_pb2.Artifact.DELETED
            handle.store.put_artifacts(lapsed)


def _properties(artifact: metadata_store_pb2.Artifact) -> dict[str, Any]:
    return {name: value.int_value or value.string_value for name, value in artifact.custom_properties.items()}


def _push_holds(said: Mapping[str, Any], current: str | None, lineage: Mapping[str, Any]) -> bool:
    """Whether a model that was pushed is still served, or one that was not, would still not be.

    Else the Pusher is asked again: it knows of rollbacks, and does not push again what is served under another number.
    """
    if said.get("pushed"):
        return said["pushed_destination"] == current
    if said.get(OVERTAKEN):
        return False
    return bool(said.get(WITHDRAWN)) == is_withdrawn(lineage, said.get(WEIGHTS_SHA256))


def _blessing_holds(said: Mapping[str, Any], served: str) -> bool:
    """Whether a judgement is of the model that is served, or was made against it (or, as now, against none)."""
    model, baseline = said.get("model_weights_sha256"), said.get("baseline_weights_sha256") or ""
    return not model or served in (model, baseline)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    if lines and lines[0].startswith("Traceback"):
        return lines[-1]  # what Beam makes of an exception: its traceback, which ends with type and text
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
