"""Retraining for real: runs on data that grow, spoil and mislead, and what is served after each.

One story in eight acts that build on one another, as runs do. The music is made up, but is separated:
tones and noise differ enough for a small model to learn them in half a minute.
"""

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

import helpers
import numpy as np
import pytest
import soundfile as sf

from components.pusher.versions import list_versions, number, read_lineage
from pipeline.local import LocalRunResult, describe, run_local
from pipeline.settings import PipelineSettings
from umx_model.errors import InputError
from umx_model.inference.restore import load_separator
from umx_model.profile import Profile

REPOSITORY = Path(__file__).parents[2]
ALL = ("ImportSchemaGen", "SampleGen", "StatisticsGen", "ExampleValidator", "Trainer", "Evaluator", "Pusher")
PROFILE = {
    "model": {
        "targets": ["vocals", "drums"],
        "sample_rate": 8000,
        "channels": 1,
        "n_fft": 512,
        "hop_length": 256,
        "hidden_size": 16,
        "layers": 1,
        "bandwidth": 4000,
        "unidirectional": True,
    },
    "train": {
        "epochs": 6,
        "batch_size": 4,
        "excerpts_per_sample": 16,
        "excerpt_seconds": 1.0,
        "learning_rate": 0.01,
        "checkpoint_minutes": 0.01,
    },
}

pytestmark = pytest.mark.slow


def settings_file(folder: Path, **settings: Any) -> str:
    """Write the settings of all runs."""
    document = {"data": str(folder / "db"), "output": str(folder / "out"), "profile": PROFILE, "warm_start": True}
    path = folder / "settings.yaml"
    path.write_text(json.dumps(document | settings))
    return str(path)


def run(folder: Path, **settings: Any) -> tuple[LocalRunResult, list[str]]:
    """Run the pipeline; returns also the components that had to run."""
    result = run_local(PipelineSettings.load({}, settings_file(folder, **settings), {}), lambda line: None)
    return result, [name for name in ALL if name not in result.cached]


def command(folder: Path, *arguments: str) -> str:
    """Run pipeline_runner.py as a user does; returns what it prints."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "pipeline_runner.py"), *arguments, "--settings", settings_file(folder)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def served(folder: Path) -> list[str]:
    return [number(version) for version in list_versions(str(folder / "out" / "serving"))]


def lineage(folder: Path, version: str) -> dict[str, Any]:
    return read_lineage(str(folder / "out" / "serving" / version))


def add_samples(folder: Path, split: str, seeds: range, swapped: bool = False) -> None:
    """Add samples; where they are swapped, what is called vocals is drums."""
    for seed in seeds:
        sample = helpers.make_sample(
            folder / "db" / split / f"song{seed:02d}", seconds=4, sample_rate=8000, channels=1, seed=seed
        )
        if swapped:
            (sample / "vocals.wav").rename(sample / "away.wav")
            (sample / "drums.wav").rename(sample / "vocals.wav")
            (sample / "away.wav").rename(sample / "drums.wav")


def wait_for(condition: Callable[[], Any], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_retraining(tmp_path: Path) -> None:
    add_samples(tmp_path, "train", range(4))
    add_samples(tmp_path, "valid", range(50, 53))
    add_samples(tmp_path, "test", range(60, 68))

    # The first run pushes version 1: nothing is served, and the mixture is what to be better than.
    first, ran = run(tmp_path)
    assert ran == list(ALL)
    assert first.scores["baseline_version"] is None
    assert served(tmp_path) == ["1"], describe(first)
    data_of_first = lineage(tmp_path, "1")["data_fingerprint"]
    assert lineage(tmp_path, "1")["started_from"] is None

    # A second run on the same data has nothing to do.
    second, ran = run(tmp_path)
    assert ran == []
    assert second.pushed_version_dir == first.pushed_version_dir
    assert served(tmp_path) == ["1"]

    # New samples arrive. The run is killed while it trains, and continues.
    add_samples(tmp_path, "train", range(4, 10))
    checkpoints = tmp_path / "out" / "training"
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "pipeline_runner.py"), "local", "--settings", settings_file(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: any(Profile.read(found).history for found in checkpoints.glob("*/profile.json")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert served(tmp_path) == ["1"]
    [work] = checkpoints.iterdir()
    done = len(Profile.read(work).history)
    assert 1 <= done < PROFILE["train"]["epochs"]

    # It starts from the weights of version 1, and is pushed because it is not worse.
    third, ran = run(tmp_path)
    assert ran[-3:] == ["Trainer", "Evaluator", "Pusher"]
    assert third.scores["baseline_version"] == "1"
    assert served(tmp_path) == ["1", "2"], describe(third)
    profile = Profile.read(third.model_dir)
    assert len(profile.history) == PROFILE["train"]["epochs"]
    assert "resumed" in profile.made_with
    start = lineage(tmp_path, "2")["started_from"]
    assert start.startswith(str(tmp_path / "out" / "serving" / "1") + " ")
    assert lineage(tmp_path, "2")["data_fingerprint"] != data_of_first
    assert run(tmp_path)[1] == []

    # Spoiled data are stopped before anything is trained.
    good = tmp_path / "good.wav"
    spoiled = tmp_path / "db" / "train" / "song00" / "drums.wav"
    shutil.copy2(spoiled, good)
    sf.write(spoiled, 32768 * sf.read(spoiled, dtype="float32")[0], 8000, subtype="FLOAT")
    with pytest.raises(InputError, match="train/: peak: out-of-range values"):
        run(tmp_path)
    assert served(tmp_path) == ["1", "2"]
    assert list(checkpoints.iterdir()) == []
    shutil.copy2(good, spoiled)
    assert run(tmp_path)[1] == []

    # Training samples whose names are wrong make a worse model. It is not pushed, and the run says why.
    add_samples(tmp_path, "train", range(10, 40), swapped=True)
    worse, ran = run(tmp_path)
    assert ran[-3:] == ["Trainer", "Evaluator", "Pusher"]
    assert worse.scores["baseline_version"] == "2"
    assert worse.pushed_version_dir is None
    assert served(tmp_path) == ["1", "2"]
    said = describe(worse)
    assert "Not pushed, because the model is not good enough:" in said
    assert "version 2" in said
    again, ran = run(tmp_path)
    assert ran == []
    assert again.pushed_version_dir is None
    for seed in range(10, 40):
        shutil.rmtree(tmp_path / "db" / "train" / f"song{seed:02d}")
    assert run(tmp_path)[0].pushed_version_dir == third.pushed_version_dir

    # Rolled back, version 1 is served as version 3; the run on the same data does not undo that.
    assert "Withdrawn: version 2" in command(tmp_path, "rollback", "1")
    assert served(tmp_path) == ["1", "2", "3"]
    after, ran = run(tmp_path)
    assert set(ran) <= {"Evaluator", "Pusher"}
    assert after.pushed_version_dir is None
    assert "version 2 with this model was withdrawn by a rollback" in describe(after)
    assert served(tmp_path) == ["1", "2", "3"]
    assert run(tmp_path)[1] == []
    mixture = sum(helpers.stem(target, 1.0, 8000, 1, seed=99) for target in helpers.TARGETS)
    one, three = (load_separator(tmp_path / "out" / "serving" / version).separate(mixture) for version in "13")
    for target in helpers.TARGETS:
        np.testing.assert_array_equal(one[target], three[target])

    # Which data made which version.
    for version, samples in (("1", 4), ("2", 10), ("3", 4)):
        text = command(tmp_path, "lineage", version)
        assert f"{tmp_path / 'db'}: {samples} train, 3 valid, 8 test samples" in text
        assert lineage(tmp_path, version)["data_fingerprint"] in text
    found = json.loads(command(tmp_path, "lineage", "3", "--json"))
    assert found["samples"]["train"] == [f"song{seed:02d}" for seed in range(4)]
    assert (found["pushed_as"], found["recorded"]["rolled_back_from"]) == ("1", "1")
    steps = {step["component"]: step for step in found["steps"]}
    assert set(steps) == set(ALL)
    assert steps["SampleGen"]["parameters"]["data_version"] == data_of_first
    assert os.path.isdir(steps["Trainer"]["outputs"]["model"])
