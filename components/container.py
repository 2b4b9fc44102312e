"""What every container of the pipeline runs: one component, as Vertex AI or Kubeflow starts it.

    python -m components.container --executor_class_path NAME --json_serialized_invocation_args JSON [Beam's options]
    python -m components.container --executor_class_path=NAME --inputs=JSON --outputs=JSON --exec-properties=JSON

The work is TFX's `kubeflow_v2_run_executor`, and on machines of a custom job its `run_executor`. What a run ends with,
and what it writes, is for people who read logs in a browser:

    exit code 0     done
    exit code 1     failed; a mistake in the input is `umx-pro: error: ...` and no more, anything else has its traceback
    exit code 143   stopped by SIGTERM, as machines that are taken back are; a training goes on there when started again

With `UMX_PRO_DEBUG=1` mistakes have their traceback, too. Records below WARNING go to stdout and others to stderr,
which Google Cloud takes for the severities INFO and ERROR.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback

from umx_model.errors import InputError
from umx_model.train.interrupt import TERMINATED, Interrupt

FAILED = 1
# Whose progress is worth a line; libraries write thousands.
_OURS = ("components", "data_schema", "pipeline", "umx_model")
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main() -> int:
    """Run the component that the command line names; returns the exit code."""
    _log_for_readers()
    try:
        # A container's first process is deaf to SIGTERM unless it asks for it.
        with Interrupt():
            _run()
    except SystemExit as stop:
        if stop.code != TERMINATED:
            raise
        print("umx-pro: terminated; started again, a training continues where it stopped", file=sys.stderr)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        # At once: Beam's threads, which Python would wait for, know nothing of the signal.
        os._exit(TERMINATED)
    except Exception as error:
        mistake = _mistake(error)
        if mistake is None or os.environ.get("UMX_PRO_DEBUG") == "1":
            traceback.print_exc()
        if mistake is not None:
            print(f"umx-pro: error: {mistake}", file=sys.stderr)
        return FAILED
    return 0


def _run() -> None:
    # Imported here: a log that nothing has configured before TensorFlow comes is configured by it.
    if any(argument.startswith("--inputs=") for argument in sys.argv):  # a machine of a custom job
        from tfx.scripts import run_executor

        run_executor._run_executor(*run_executor.parse_flags(sys.argv))
        return
    from tfx.orchestration.kubeflow.v2.container import kubeflow_v2_run_executor as tfx_container

    args, beam_args = tfx_container._parse_flags(sys.argv[1:])
    args.json_serialized_invocation_args = _with_types(
        args.json_serialized_invocation_args, args.json_serialized_inputs_spec_args
    )
    tfx_container.main((args, beam_args))


def _with_types(invocation: str, inputs_spec: str | None) -> str:
    """Add types of input artifacts where they lack: Kubeflow's driver has lost them, and TFX does not start without.

    kubeflow/pipelines, backend/src/v2/metadata/client.go: `GetOutputArtifactsByExecutionId` leaves the schema empty.

    Args:
        invocation: an ExecutorInput as JSON.
        inputs_spec: the component's inputs as JSON, as the compiled pipeline has them.
    """
    known = json.loads(inputs_spec or "{}").get("artifacts", {})
    document = json.loads(invocation)
    for name, entry in document.get("inputs", {}).get("artifacts", {}).items():
        for artifact in entry.get("artifacts", []):
            if name in known and not any(artifact.get("type", {}).values()):
                artifact["type"] = known[name]["artifactType"]
    return json.dumps(document)


def _mistake(error: BaseException | None) -> InputError | None:
    """Return the user's mistake that led to an error, if one did."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return error


def _log_for_readers() -> None:
    """Send log records to stdout and stderr: ours from INFO on, those of libraries from WARNING on."""
    progress, trouble = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    progress.addFilter(lambda record: record.levelno < logging.WARNING and record.name.split(".")[0] in _OURS)
    trouble.setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, format=_FORMAT, handlers=[progress, trouble])
    logging.captureWarnings(True)


if __name__ == "__main__":
    sys.exit(main())
