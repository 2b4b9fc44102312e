"""The command of the pipeline's containers, as a process that gets what Vertex AI or Kubeflow would give it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorflow_metadata.proto.v0 import anomalies_pb2

from umx_model.profile import Profile

REPOSITORY = Path(__file__).parents[2]
SAMPLE_GEN = "components.sample_gen.executor.Executor"
# Beam as it is told to work in containers.
BEAM = ["--direct_running_mode=multi_threading", "--direct_num_workers=0", "--sdk_container_image=none"]
PROFILE = {
    "model": {
        "targets": ["vocals", "drums"],
        "sample_rate": 8000,
        "channels": 1,
        "n_fft": 512,
        "hop_length": 256,
        "bandwidth": 4000,
        "hidden_size": 8,
        "layers": 1,
        "unidirectional": True,
    },
    "train": {
        "epochs": 4,
        "batch_size": 2,
        "excerpts_per_sample": 40,
        "excerpt_seconds": 0.5,
        "checkpoint_minutes": 1e-9,
    },
}


def artifact(folder: Path, title: str, **properties: Any) -> dict[str, Any]:
    return {
        "artifacts": [
            {
                "uri": str(folder),
                "type": {"instanceSchema": f"title: {title}\ntype: object\n"},
                "metadata": properties,
            }
        ]
    }


def container(
    work: Path,
    executor: str,
    parameters: dict[str, Any],
    inputs: dict[str, Any] | None = None,
    outputs: dict[str, Any] | None = None,
    beam: list[str] | None = None,
    **environment: str,
) -> subprocess.Popen:
    """Start a component in a folder of its own."""
    work.mkdir(exist_ok=True)
    told = {
        "inputs": {"parameterValues": parameters, "artifacts": inputs or {}},
        "outputs": {"artifacts": outputs or {}, "outputFile": str(work / "task" / "executor_output.json")},
    }
    command = [sys.executable, "-m", "components.container", "--executor_class_path", executor]
    told_as = ["--json_serialized_invocation_args", json.dumps(told), "--json_serialized_inputs_spec_args", "{}"]
    return subprocess.Popen(
        [*command, *told_as, *(beam or [])],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def sample_gen(work: Path, database: Path, **environment: str) -> subprocess.Popen:
    parameters = {"data": str(database), "targets": "vocals,drums", "data_version": "", "code_version": "1"}
    outputs = {"examples": artifact(work / "examples", "tfx.Examples")}
    return container(work, SAMPLE_GEN, parameters, outputs=outputs, beam=BEAM, **environment)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Wait for the end; returns the exit code, stdout and stderr."""
    progress, trouble = process.communicate(timeout=240)
    return process.returncode, progress, trouble


def test_a_component_does_its_work(tmp_path: Path, database: Path) -> None:
    code, progress, trouble = finish(sample_gen(tmp_path / "work", database))
    assert code == 0, trouble
    written = json.loads((tmp_path / "work" / "task" / "executor_output.json").read_text())
    [examples] = written["artifacts"]["examples"]["artifacts"]
    assert examples["metadata"]["data_version"]
    assert list((tmp_path / "work" / "examples" / "Split-train").iterdir())
    # TFX alone logs dozens of lines at INFO.
    assert "Executor" not in progress + trouble
    assert "INFO" not in trouble


def test_mistakes_are_told_without_a_traceback(tmp_path: Path, database: Path) -> None:
    shutil.copy(database / "train" / "song00" / "vocals.wav", database / "train" / "song00" / "speech.wav")
    (database / "train" / "song01" / "drums.wav").unlink()
    code, _, trouble = finish(sample_gen(tmp_path / "work", database))
    assert code == 1
    [start] = [index for index, line in enumerate(trouble.splitlines()) if line.startswith("umx-pro: error: ")]
    first, second = trouble.splitlines()[start : start + 2]
    assert "song00" in first + second
    assert "song01" in first + second
    assert "Traceback" not in trouble
    assert not (tmp_path / "work" / "task" / "executor_output.json").exists()

    code, _, trouble = finish(sample_gen(tmp_path / "work", database, UMX_PRO_DEBUG="1"))
    assert code == 1
    assert "Traceback" in trouble
    assert {first, second} <= set(trouble.splitlines())


def test_other_failures_keep_their_traceback(tmp_path: Path) -> None:
    code, _, trouble = finish(container(tmp_path / "work", "components.sample_gen.executor.Missing", {}))
    assert code == 1
    assert "Traceback" in trouble
    assert "Missing" in trouble.splitlines()[-1]
    assert "umx-pro: error" not in trouble


EXECUTORS = """
import logging

from tfx.dsl.components.base import base_executor
from umx_model.errors import InputError


class Wrapped(base_executor.BaseExecutor):
    def Do(self, input_dict, output_dict, exec_properties):
        logging.getLogger("umx_model.somewhere").info("half done")
        logging.getLogger("library").info("chatter")
        logging.getLogger("library").warning("a library warns")
        try:
            raise InputError("song.wav: cannot be read")
        except InputError as error:
            raise RuntimeError("a stage failed") from error


class Waits(base_executor.BaseExecutor):
    def Do(self, input_dict, output_dict, exec_properties):
        import threading

        threading.Thread(target=threading.Event().wait).start()
        print("waiting", flush=True)
        threading.Event().wait()
"""


def test_a_mistake_is_found_behind_other_errors_and_logs_are_sorted(tmp_path: Path) -> None:
    (tmp_path / "executors.py").write_text(EXECUTORS)
    code, progress, trouble = finish(container(tmp_path, "executors.Wrapped", {}))
    assert code == 1
    assert trouble.splitlines()[-1] == "umx-pro: error: song.wav: cannot be read"
    assert "Traceback" not in trouble
    [line] = progress.splitlines()
    assert line.endswith("INFO umx_model.somewhere: half done")
    assert line.startswith("20")  # a year
    assert "WARNING library: a library warns" in trouble


def test_sigterm_ends_a_component_whose_threads_go_on(tmp_path: Path) -> None:
    (tmp_path / "executors.py").write_text(EXECUTORS)
    process = container(tmp_path, "executors.Waits", {})
    assert process.stdout
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGTERM)
    code, _, trouble = finish(process)
    assert code == 143
    assert "terminated" in trouble
    assert "Traceback" not in trouble


@pytest.mark.slow
def test_a_training_that_sigterm_stopped_goes_on(tmp_path: Path, make_database: Callable[..., Path]) -> None:
    database = make_database(tmp_path / "db", {"train": 2, "valid": 1}, sample_rate=8000, channels=1)
    code, _, trouble = finish(sample_gen(tmp_path / "index", database))
    assert code == 0, trouble
    made = json.loads((tmp_path / "index" / "task" / "executor_output.json").read_text())
    [examples] = made["artifacts"]["examples"]["artifacts"]
    examples["type"] = {"instanceSchema": "title: tfx.Examples\ntype: object\n"}
    for split in ("train", "valid"):
        diff = tmp_path / "anomalies" / f"Split-{split}" / "SchemaDiff.pb"
        diff.parent.mkdir(parents=True)
        diff.write_bytes(anomalies_pb2.Anomalies().SerializeToString())
    found = artifact(tmp_path / "anomalies", "tfx.ExampleAnomalies", split_names='["train", "valid"]')

    def trainer(work: Path) -> subprocess.Popen:
        return container(
            work,
            "components.trainer.executor.Executor",
            {
                "profile": json.dumps(PROFILE),
                "training_folder": str(tmp_path / "training"),
                "push_destination": "",
                "warm_start": False,
                "init_from": "",
                "code_version": "1",
            },
            {"examples": {"artifacts": [examples]}, "anomalies": found},
            {
                "model": artifact(work / "model", "tfx.Model"),
                "model_run": artifact(work / "model_run", "tfx.ModelRun"),
            },
        )

    process = trainer(tmp_path / "first")
    deadline = time.monotonic() + 200
    while not any(Profile.read(path).history for path in (tmp_path / "training").glob("*/profile.json")):
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    code, _, trouble = finish(process)
    assert code == 143, trouble
    assert "Traceback" not in trouble
    [left] = (tmp_path / "training").iterdir()
    done = len(Profile.read(left).history)
    assert 1 <= done < PROFILE["train"]["epochs"]

    code, progress, trouble = finish(trainer(tmp_path / "second"))
    assert code == 0, trouble
    profile = Profile.read(tmp_path / "second" / "model")
    assert len(profile.history) == PROFILE["train"]["epochs"]
    assert "resumed" in profile.made_with
    print(progress, trouble)
