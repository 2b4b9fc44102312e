"""Several processes train together, each as a machine of its own would: `umx-pro train` with TF_CONFIG."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import tensorflow as tf

from umx_model.model.folder import read_model
from umx_model.profile import Profile

pytestmark = pytest.mark.slow

PROFILE = {
    "model": {
        "targets": ["vocals", "drums"],
        "sample_rate": 8000,
        "n_fft": 512,
        "hop_length": 256,
        "bandwidth": 4000,
        "hidden_size": 8,
        "layers": 1,
        "unidirectional": True,
        "niter": 0,
    },
    # 10 steps per epoch. Weight decay keeps gradients away from zero, where Adam would blow up rounding errors.
    "train": {
        "excerpt_seconds": 0.5,
        "batch_size": 4,
        "excerpts_per_sample": 8,
        "epochs": 2,
        "weight_decay": 0.01,
        "learning_rate": 1e-4,
    },
}
LONG = ["--set", "train.excerpts_per_sample=16", "--set", "train.checkpoint_minutes=1e-9"]  # 20 steps per epoch
CODE = "import sys; from umx_model.cli import main; main(sys.argv[1:])"


class Workers:
    """Processes that have each other's addresses in TF_CONFIG.

    Args:
        arguments: of `umx-pro train`, per worker.
        chief: call the first one chief, as Vertex AI does.
    """

    def __init__(self, *arguments: Sequence[str], chief: bool = False) -> None:
        addresses = [f"localhost:{port}" for port in free_ports(len(arguments))]
        cluster: dict[str, list[str]] = {"worker": addresses}
        tasks = [{"type": "worker", "index": index} for index in range(len(addresses))]
        if chief:
            cluster = {"chief": addresses[:1], "worker": addresses[1:]}
            tasks = [{"type": "chief", "index": 0}, *tasks[:-1]]
        self.processes = [
            start(own, TF_CONFIG=json.dumps({"cluster": cluster, "task": task, "environment": "cloud"}))
            for own, task in zip(arguments, tasks, strict=True)
        ]

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: Any) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def finish(self, seconds: float = 300) -> list[tuple[int, str]]:
        """Wait for all and return the exit code of each, and its own last line on stderr among TensorFlow's."""
        ends = []
        for process in self.processes:
            error = process.communicate(timeout=seconds)[1]
            assert "Traceback" not in error, error
            lines = [line for line in error.splitlines() if line.startswith("umx-pro: ")]
            ends.append((process.returncode, lines[-1] if lines else ""))
        return ends


def start(arguments: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CODE, "train", *arguments],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", **environment},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What to train. 5 train samples, and 3 valid samples of 3 pieces that do not fill batches evenly."""
    folder = tmp_path_factory.mktemp("workers")
    root = helpers.make_database(folder / "database", {"train": 5, "valid": 3}, seconds=1.2, sample_rate=8000)
    (folder / "profile.json").write_text(json.dumps(PROFILE))
    return [str(folder / "profile.json"), "--data", str(root)]


def checkpoint(output: Path) -> str:
    latest = tf.train.latest_checkpoint(str(output / "checkpoints"))
    assert latest is not None
    return latest


def state(output: Path) -> dict[str, np.ndarray]:
    """All variables of the newest checkpoint."""
    reader = tf.train.load_checkpoint(checkpoint(output))
    names = reader.get_variable_to_shape_map()
    return {name: reader.get_tensor(name) for name in names if name.startswith(("model/", "optimizer/"))}


def assert_same(one: Path, two: Path, tolerance: float) -> None:
    histories = [Profile.read(output).history for output in (one, two)]
    for a, b in zip(*histories, strict=True):
        assert a["step"] == b["step"]
        for loss in ("train_loss", "valid_loss", "valid_loss/vocals", "valid_loss/drums"):
            np.testing.assert_allclose(a[loss], b[loss], rtol=tolerance)
    states = [state(output) for output in (one, two)]
    assert states[0].keys() == states[1].keys()
    assert sum("moving" in name for name in states[0]) == 2 * 2 * 3  # mean and variance, two targets, three layers
    for name, value in states[0].items():
        if "state_" not in name:  # of random generators, which differ from replica to replica
            np.testing.assert_allclose(states[1][name], value, rtol=0, atol=tolerance, err_msg=name)


def test_two_processes_give_what_one_gives(command: list[str], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone = start([*command, "--output", str(one)])
    assert alone.wait(300) == 0, alone.stderr
    # Only the chief writes: the other may have another idea of where to.
    with Workers(
        [*command, "--output", str(two)], [*command, "--output", str(tmp_path / "not-written")], chief=True
    ) as workers:
        ends = workers.finish()
    assert [code for code, _ in ends] == [0, 0], ends
    assert not (tmp_path / "not-written").exists()
    assert Profile.read(two).history[-1]["step"] == 20
    assert_same(one, two, 1e-5)
    models = [read_model(output)[0].spectral_filter for output in (one, two)]
    for a, b in zip(models[0].weights, models[1].weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def uninterrupted(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted") / "model"
    arguments = [*command, *LONG, "--output", str(output)]
    with Workers(arguments, arguments) as workers:
        assert [code for code, _ in workers.finish()] == [0, 0]
    return output


def wait_for_step(output: Path, step: int, workers: Workers) -> None:
    deadline = time.monotonic() + 200
    # A checkpoint counts from when the list names it: its files are there a moment before.
    while int((tf.train.latest_checkpoint(str(output / "checkpoints")) or "-0").rsplit("-", 1)[1]) < step:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in workers.processes)
        time.sleep(0.005)


@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_end_when_one_is_killed_and_all_can_be_resumed(
    command: list[str], uninterrupted: Path, tmp_path: Path, victim: int
) -> None:
    output = tmp_path / "model"
    arguments = [*command, *LONG, "--output", str(output)]
    with Workers(arguments, arguments) as workers:
        wait_for_step(output, 7, workers)
        workers.processes[victim].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        code, line = workers.finish(60)[1 - victim]
        assert time.monotonic() - killed < 60
    assert code == 1
    assert line.startswith("umx-pro: failed: WorkerLostError: worker ")
    assert f"worker {victim} (localhost:" in line
    assert "--resume" in line
    assert 7 <= json.loads(describe(output))["state"]["step"] < 40
    shutil.copytree(output, tmp_path / "alone")

    with Workers([*arguments, "--resume"], [*arguments, "--resume"]) as workers:
        ends = workers.finish()
    assert [code for code, _ in ends] == [0, 0], ends
    assert_same(uninterrupted, output, 0)

    # One process can go on with what two have left, too.
    if victim:
        alone = start([*command, *LONG, "--output", str(tmp_path / "alone"), "--resume"])
        assert alone.wait(300) == 0
        assert_same(uninterrupted, tmp_path / "alone", 1e-4)


def describe(output: Path) -> str:
    reader = tf.train.load_checkpoint(checkpoint(output))
    (name,) = [name for name in reader.get_variable_to_shape_map() if name.startswith("loop/")]
    return reader.get_tensor(name)


def test_all_stop_with_a_checkpoint_when_one_is_asked_to(
    command: list[str], uninterrupted: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    arguments = [*command, *LONG, "--output", str(output)]
    with Workers(arguments, arguments) as workers:
        wait_for_step(output, 5, workers)
        workers.processes[1].send_signal(signal.SIGTERM)
        ends = workers.finish(60)
    assert [code for code, _ in ends] == [143, 143], ends
    with Workers([*arguments, "--resume"], [*arguments, "--resume"]) as workers:
        assert [code for code, _ in workers.finish()] == [0, 0]
    assert_same(uninterrupted, output, 0)


def test_time_ends_training_on_all_at_once(command: list[str], tmp_path: Path) -> None:
    output = tmp_path / "model"
    arguments = [*command, "--set", "train.excerpts_per_sample=1000000", "--output", str(output)]
    with Workers(
        [*arguments, "--set", "train.max_minutes=0.2"], [*arguments, "--set", "train.max_minutes=0.2"]
    ) as both:
        ends = both.finish(200)
    assert [code for code, _ in ends] == [0, 0], ends
    assert len(Profile.read(output).history) == 1


def test_workers_that_would_train_different_things_refuse(command: list[str], tmp_path: Path) -> None:
    arguments = [*command, "--output", str(tmp_path / "model")]
    with Workers(arguments, [*arguments, "--set", "train.seed=7"]) as workers:
        ends = workers.finish(100)
    assert [code for code, _ in ends] == [2, 2], ends
    assert all("not the same on all workers" in line for _, line in ends)
    assert not (tmp_path / "model").exists()
