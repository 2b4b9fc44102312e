"""Training as a process of its own that is killed, told to end, and started again."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import helpers
import numpy as np
import pytest
import tensorflow as tf

from umx_model.errors import InputError
from umx_model.model.checkpoint_files import list_checkpoints
from umx_model.profile import Profile
from umx_model.train import run as runs
from umx_model.train.run import Run
from umx_model.train.trainer import train

PROFILE: dict[str, Any] = {
    "model": {
        "targets": ["vocals", "drums"],
        "sample_rate": 8000,
        "n_fft": 512,
        "hop_length": 256,
        "hidden_size": 8,
        "layers": 2,  # with dropout between them
        "niter": 0,
    },
    # A checkpoint after every step, so that many of the kills hit the writing of one.
    "train": {
        "excerpt_seconds": 0.5,
        "batch_size": 2,
        "excerpts_per_sample": 14,
        "epochs": 3,
        "learning_rate": 0.01,
        "plateau_patience": 0,
        "plateau_cooldown": 0,
        "checkpoint_minutes": 1e-9,
    },
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers.make_database(tmp_path_factory.mktemp("database"), seconds=1.2, sample_rate=8000)


class Training:
    """`umx-pro train` in a process of its own."""

    def __init__(self, root: Path, output: Path, profile: dict[str, Any], *options: str) -> None:
        self.output = output
        file = output.parent / f"{output.name}.json"
        file.write_text(json.dumps(profile))
        command = [sys.executable, "-c", "from umx_model.cli import main; main()", "train", str(file)]
        self.before = self.checkpoints()
        self.process = subprocess.Popen(
            [*command, "--data", str(root), "--output", str(output), "--resume", *options],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def checkpoints(self) -> list[str]:
        return list_checkpoints(str(self.output / "checkpoints"))

    def wait_for(self, what: Callable[[], bool]) -> bool:
        """Wait until something is so; False where the process ends before."""
        while not what():
            if self.process.poll() is not None:
                return False
            time.sleep(0.002)
        return True

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal; returns the exit code and what was written to stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors

    def reach(self, phase: str) -> bool:
        """Wait for a phase of training; False where it does not come any more."""
        if phase == "starting":
            return True
        if phase == "measuring":
            return self.wait_for(self.output.exists)
        if phase == "finishing":
            return self.wait_for((self.output / "saved_model.partial").exists)
        return self.wait_for(lambda: self.checkpoints()[:1] not in ([], self.before[:1]))


def kill_and_resume(
    root: Path, output: Path, profile: dict[str, Any], moments: Sequence[tuple[str, float]]
) -> list[str]:
    """Kill training at moments, each so long after a phase has begun; then let it end. Returns where it was killed."""
    places = []
    for phase, delay in moments:
        training = Training(root, output, profile)
        if training.reach(phase):
            time.sleep(delay)
        code, errors = training.end(signal.SIGKILL)
        newest = os.path.basename((training.checkpoints() or ["none"])[0])
        partial = (output / "checkpoints" / ".partial").exists()
        places.append(f"{phase}: {newest}{' and a part' if partial else ''}")
        assert code in (-signal.SIGKILL, 0), errors
    training = Training(root, output, profile)
    _, errors = training.process.communicate(timeout=300)
    assert training.process.returncode == 0, errors
    assert "damaged" not in errors
    return places


def tensors(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All variables of the newest checkpoint, and where the loop stood, except for what tells of time."""
    reader = tf.train.load_checkpoint(list_checkpoints(str(folder))[0])
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith(("model/", "optimizer/"))]
    [loop] = [name for name in reader.get_variable_to_shape_map() if name.startswith("loop/")]
    state = json.loads(reader.get_tensor(loop))["state"]
    for name in ("seconds", "resumed", "made_with"):
        del state[name]
    for entry in state["history"]:
        del entry["seconds"]
    return {name: reader.get_tensor(name) for name in names}, state


def weights(output: Path) -> dict[str, np.ndarray]:
    arrays = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with h5py.File(output / "model.weights.h5") as file:
        file.visititems(visit)
    return arrays


def assert_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    assert len(a) > 20
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], err_msg=name, strict=True)


def assert_same_training(one: Path, other: Path) -> None:
    (variables, state), (other_variables, other_state) = (tensors(output / "checkpoints") for output in (one, other))
    assert_equal(variables, other_variables)
    assert state == other_state
    assert state["excerpts"] == 2 * state["step"]
    assert_equal(weights(one), weights(other))
    histories = [[{**entry, "seconds": 0.0} for entry in Profile.read(output).history] for output in (one, other)]
    assert histories[0] == histories[1]
    assert not list(other.glob("**/*.partial"))
    assert (other / "saved_model" / "saved_model.pb").exists()


@pytest.fixture(scope="module")
def uninterrupted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    train(Profile.parse(PROFILE), root, output, quiet=True)
    return output


@pytest.mark.slow
def test_a_killed_training_ends_as_if_it_had_not_been(root: Path, uninterrupted: Path, tmp_path: Path) -> None:
    kill_and_resume(root, tmp_path / "model", PROFILE, [("training", 0.7)])
    assert_same_training(uninterrupted, tmp_path / "model")


@pytest.mark.slow
def test_a_training_killed_at_20_random_moments_ends_as_if_it_had_not_been(root: Path, tmp_path: Path) -> None:
    profile = {**PROFILE, "train": {**PROFILE["train"], "epochs": 8}}
    train(Profile.parse(profile), root, tmp_path / "uninterrupted", quiet=True)
    draw = random.Random(4)
    moments = [("starting", draw.uniform(3, 9)), ("measuring", draw.uniform(0, 0.4)), ("measuring", draw.uniform(0, 1))]
    moments += [("training", draw.uniform(0, 1.0)) for _ in range(14)]
    moments += [("finishing", draw.uniform(0, 2)) for _ in range(3)]
    places = kill_and_resume(root, tmp_path / "model", profile, moments)
    print(*places, sep="\n")
    assert len(set(places)) > 10
    assert_same_training(tmp_path / "uninterrupted", tmp_path / "model")


HELD_UP = """
import ctypes, sys, time
from umx_model.errors import InputError
from umx_model.profile import Profile
from umx_model.train import run as runs
from umx_model.train import loop, steps
from umx_model.train.run import Run
from umx_model.train.trainer import train

where, profile, root, output, backup = sys.argv[1:]
calls = []

def hold_up():
    calls.append(time.monotonic())
    if len(calls) == 4:
        print("held up", flush=True)
        for _ in range(60):
            ctypes.CDLL(None).usleep(999_999)  # does not let Python handle signals
    elif where == "step":
        time.sleep(2.1)  # long steps are expected to be long again

compile_train, readable = steps.Steps.compile_train, loop.readable

def compile_slowly(self, spec):
    step = compile_train(self, spec)
    def run(batch):
        hold_up()
        return step(batch)
    return run

def read_slowly(batches):
    for batch in readable(batches):
        hold_up()
        yield batch

if where == "step":
    steps.Steps.compile_train = compile_slowly
else:
    loop.readable = read_slowly
train(Profile.read(profile), root, output, quiet=True, backup=backup)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["step", "read"])
def test_sigterm_saves_while_python_is_held_up(root: Path, tmp_path: Path, where: str) -> None:
    profile = Profile.parse(PROFILE).updated({"train.checkpoint_minutes": 60.0})
    profile.write(tmp_path)
    arguments = [where, *map(str, (tmp_path / "profile.json", root, tmp_path / "model", tmp_path / "backup"))]
    process = subprocess.Popen(
        [sys.executable, "-c", HELD_UP, *arguments],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "held up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert "SIGTERM" in process.communicate()[1]
    for folder in ("model", "backup"):
        assert tensors(tmp_path / folder / "checkpoints")[1]["step"] == 3
    # What it left goes on as if it had not been: the first three steps are those of another training.
    train(profile.updated({"train.epochs": 1}), root, tmp_path / "model", resume=True, quiet=True)
    train(profile.updated({"train.epochs": 1}), root, tmp_path / "other", quiet=True)
    assert_same_training(tmp_path / "other", tmp_path / "model")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"file systems cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_training_clearly_and_leaves_a_good_checkpoint(
    root: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, filler = small_disk / "model", small_disk / "filler"
    save, saved = Run.save, []

    def fill_before_third(run: Run) -> None:
        saved.append(run.state.step)
        if len(saved) == 3:
            with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        save(run)

    monkeypatch.setattr(Run, "save", fill_before_third)
    profile = Profile.parse(PROFILE)
    with pytest.raises(InputError, match=r"small/model: the disk is full \(0\.0 MB left.*resume") as error:
        train(profile, root, output, quiet=True)
    assert "\n" not in str(error.value)
    assert not (output / "checkpoints" / ".partial").exists()
    _, state = tensors(output / "checkpoints")
    assert state["step"] == saved[-1] - 1
    filler.unlink()
    monkeypatch.setattr(runs, "write_model_folder", lambda folder, model, profile: profile)  # needs more
    train(profile.updated({"train.epochs": 1}), root, output, resume=True, quiet=True)
    assert tensors(output / "checkpoints")[1]["epoch"] == 1


def test_a_disk_that_is_full_from_the_start(root: Path, small_disk: Path) -> None:
    with contextlib.suppress(OSError), open(small_disk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    profile = Profile.parse(PROFILE)
    with pytest.raises(InputError, match="full|No space left"):
        train(profile, root, small_disk / "model", quiet=True)
