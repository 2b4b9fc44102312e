"""The whole pipeline for real on a few seconds of audio: TFX, Beam and SQLite, nothing replaced.

The tests of `TestOneOutputFolder` share an output folder and build on one another, as runs do.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import soundfile as sf

import pipeline_runner
from components.pusher import executor as pusher
from components.sample_gen import executor as sample_gen
from pipeline.local import ComponentError, LocalRunResult, run_local
from pipeline.settings import PipelineSettings
from umx_model.errors import InputError
from umx_model.profile import Profile
from umx_model.train.loop import Loop

REPOSITORY = Path(__file__).parents[2]
COMPONENTS = (
    "ImportSchemaGen",
    "SampleGen",
    "StatisticsGen",
    "ExampleValidator",
    "Trainer",
    "Evaluator",
    "Pusher",
)
PROFILE = {
    "model": {
        "targets": ["vocals", "drums"],
        "sample_rate": 8000,
        "channels": 1,
        "n_fft": 512,
        "hop_length": 256,
        "hidden_size": 8,
        "layers": 1,
        "bandwidth": 3000,
    },
    "train": {"epochs": 2, "batch_size": 2, "excerpts_per_sample": 2, "excerpt_seconds": 1.0},
}
SETTINGS: dict[str, Any] = {"profile": PROFILE, "floor_db": -100.0}  # so short a training makes no good model


def make_database(folder: Path) -> Path:
    return helpers.make_database(folder, {"train": 2, "valid": 1}, seconds=1.5, sample_rate=8000, channels=1)


def run(data: Path, output: Path, **settings: Any) -> tuple[LocalRunResult, list[str]]:
    """Run in this process; also returns the lines that were reported."""
    lines: list[str] = []
    options = {**SETTINGS, "data": str(data), "output": str(output), **settings}
    return run_local(PipelineSettings.load(options, environment={}), lines.append), lines


def command_line(*arguments: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / "pipeline_runner.py"), "local", *arguments]


def options(data: Path, output: Path) -> list[str]:
    """The settings of `run` as command-line options."""
    changes = [f"{part}.{key}={value}" for part in PROFILE for key, value in PROFILE[part].items() if key != "targets"]
    flags = [flag for change in changes for flag in ("--set", change)]
    return ["--data", str(data), "--output", str(output), "--targets", "vocals,drums", "--floor", "-100", *flags]


def environment() -> dict[str, str]:
    """A user's, without what the test suite or a developer has set."""
    ours = ("UMX_PRO_", "TF_CPP_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def start(arguments: Sequence[str], folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        command_line(*arguments),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def versions(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "serving").iterdir())


PLAIN_TENSORFLOW = """
import json, sys
import numpy as np, tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
mixture = np.load(sys.argv[2])
estimates = {name: value.numpy() for name, value in serve(mixture=tf.constant(mixture)).items()}
assert not any(name.split(".")[0] in ("umx_model", "keras", "tfx") for name in sys.modules), "not plain"
print(json.dumps({
    "shapes": {name: value.shape for name, value in estimates.items()},
    "off": float(np.abs(sum(estimates.values()) - mixture).max()),
    "differ": float(np.abs(np.subtract(*estimates.values())).max()),
}))
"""


class TestOneOutputFolder:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("pipeline")

    @pytest.fixture(scope="class")
    def data(self, folder: Path) -> Path:
        return make_database(folder / "db")

    @pytest.fixture(scope="class")
    def output(self, folder: Path) -> Path:
        return folder / "out"

    def test_first_run_pushes_a_model(self, folder: Path, data: Path, output: Path) -> None:
        process = start(options(data, output), folder)
        stdout, stderr = process.communicate(timeout=300)
        assert (process.returncode, stderr) == (0, "")
        lines = stdout.splitlines()
        for line, name in zip(lines, COMPONENTS, strict=False):
            assert line.split()[0] == name
            assert line.endswith(" s")
        [version] = versions(output)
        pushed = output / "serving" / version
        assert f"Pushed to {pushed}" in lines
        programs = Path(sys.executable).parent
        assert lines[-2] == f"  {programs / 'umx-pro'} separate --model {pushed} SONG"
        assert shlex.split(lines[-1])[:2] == [str(programs / "python"), "-c"]
        columns = next(line.split() for line in lines if line.startswith("target "))
        assert any(line.startswith("vocals ") and len(line.split()) == len(columns) for line in lines)
        assert list((output / "training").iterdir()) == []

        mixture = sum(helpers.stem(target, 1.0, 8000, 1) for target in ("vocals", "drums"))[np.newaxis]
        np.save(folder / "mixture.npy", mixture)
        arguments = [sys.executable, "-c", PLAIN_TENSORFLOW, str(pushed), str(folder / "mixture.npy")]
        found = json.loads(subprocess.run(arguments, check=True, cwd=folder, stdout=subprocess.PIPE).stdout)
        assert found["shapes"] == {"vocals": [1, 8000, 1], "drums": [1, 8000, 1]}
        assert found["off"] < 0.05  # EM shares the mixture out
        assert found["differ"] > 0.01

    def test_second_run_has_nothing_to_do(self, data: Path, output: Path) -> None:
        lines: list[str] = []

        def report(line: str) -> None:
            lines.append(line)
            with pytest.raises(InputError, match="another run is using this folder"):
                run(data, output)

        result = run_local(settings(data, output), report)
        assert result.cached == COMPONENTS
        assert [line.split() for line in lines] == [[name, "cached"] for name in COMPONENTS]
        assert result.pushed_version_dir == str(output / "serving" / versions(output)[0])
        assert len(versions(output)) == 1

    def test_ctrl_c_while_training(self, folder: Path, data: Path, output: Path) -> None:
        process = start([*options(data, output), "--set", "train.epochs=10000"], folder)
        wait_for(lambda: list(output.glob("training/*/checkpoints/best/*")), process)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 130
        assert stderr.strip() == "umx-pro: interrupted; the same command continues where it stopped"
        assert [line.split() for line in stdout.splitlines()] == [[name, "cached"] for name in COMPONENTS[:4]]
        assert list(output.glob("training/*/checkpoints/*.index"))
        assert len(list(output.glob("artifacts/Trainer/model/*"))) == 1  # that of the first run
        shutil.rmtree(output / "training")

    def test_lost_version_is_pushed_again(self, data: Path, output: Path) -> None:
        shutil.rmtree(output / "serving")
        result, _ = run(data, output)
        assert result.cached == COMPONENTS[:-1]
        assert result.pushed_version_dir == str(output / "serving" / versions(output)[0])

    def test_model_below_the_floor_is_not_pushed(self, data: Path, output: Path) -> None:
        before = versions(output)
        result, _ = run(data, output, floor_db=100.0)
        assert result.cached == COMPONENTS[:5]
        assert result.pushed_version_dir is None
        assert [line.split(":")[0] for line in result.scores["objections"]] == ["vocals", "drums"]
        assert versions(output) == before

    def test_failed_push_continues_at_the_pusher(
        self, data: Path, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.rmtree(output / "serving")
        with monkeypatch.context() as patch:
            patch.setattr(pusher, "export_saved_model", fail)
            with pytest.raises(ComponentError, match="Pusher failed: RuntimeError: out of luck"):
                run(data, output)
        assert versions(output) == []
        result, _ = run(data, output)
        assert result.cached == COMPONENTS[:-1]
        assert versions(output) == ["1"]

    def test_a_model_that_is_served_is_not_pushed_again(self, data: Path, output: Path) -> None:
        result, _ = run(data, output, floor_db=-99.0)
        assert result.cached == COMPONENTS[:5]
        assert result.pushed_version_dir == str(output / "serving" / "1")
        assert run(data, output)[0].cached == COMPONENTS
        assert versions(output) == ["1"]

    def test_new_sample_is_noticed_and_a_crashed_training_resumed(
        self, data: Path, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        helpers.make_sample(data / "train" / "new", seconds=1.5, sample_rate=8000, channels=1, seed=99)
        finish = Loop._finish_epoch
        finished = []

        def finish_once(self: Any, losses: np.ndarray) -> None:
            if finished:
                fail()
            finish(self, losses)
            finished.append(1)

        lines: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(Loop, "_finish_epoch", finish_once)
            with pytest.raises(ComponentError, match="Trainer failed: RuntimeError: out of luck"):
                run_local(settings(data, output), lines.append)
        # The schema has not changed; all else depends on the data.
        assert [line.split()[0] for line in lines] == list(COMPONENTS[:4])
        assert [line.endswith("cached") for line in lines] == [True, False, False, False]
        assert len(list((output / "training").iterdir())) == 1

        epochs = []
        monkeypatch.setattr(Loop, "_finish_epoch", lambda *args: (finish(*args), epochs.append(1)))
        result, _ = run(data, output)
        assert result.cached == COMPONENTS[:4]
        assert len(epochs) == 1  # of two
        history = Profile.read(result.model_dir).history
        assert [entry["epoch"] for entry in history] == [1.0, 2.0]
        assert list((output / "training").iterdir()) == []


def settings(data: Path, output: Path) -> PipelineSettings:
    return PipelineSettings.load({**SETTINGS, "data": str(data), "output": str(output)}, environment={})


def fail(*_: Any) -> None:
    raise RuntimeError("out of luck")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[[Sequence[str]], tuple]:
    """Runs the command line in this process: arguments -> exit code, stdout, stderr."""

    def call(arguments: Sequence[str]) -> tuple[int, str, str]:
        for name in os.environ.keys() - environment().keys():
            monkeypatch.delenv(name)
        monkeypatch.setattr(sys, "argv", command_line(*arguments)[1:])
        code = pipeline_runner.main()
        return code, *capsys.readouterr()

    return call


def test_broken_audio(tmp_path: Path, command: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_database(tmp_path / "db")
    with monkeypatch.context() as patch:
        patch.setattr(sample_gen, "check_sample", fail)
        code, _, stderr = command(options(data, tmp_path / "out"))
    assert code == 1
    [line] = stderr.splitlines()
    reason = "SampleGen failed: RuntimeError: train/song00: RuntimeError: out of luck (and 2 more); more in "
    assert line.startswith(f"umx-pro: failed: {reason}{tmp_path}/out/logs/")

    for name in ("train/song00/vocals.wav", "valid/song00/drums.wav"):
        audio = sf.read(data / name, dtype="float32")[0]
        audio[100] = np.inf
        sf.write(data / name, audio, 8000, subtype="FLOAT")
    code, stdout, stderr = command(options(data, tmp_path / "out"))
    assert code == 2
    assert [line.split()[0] for line in stdout.splitlines()] == ["ImportSchemaGen"]
    assert stderr.splitlines() == [
        f"umx-pro: error: {data}/train/song00/vocals.wav: 1 values are NaN or infinite; replace the file",
        f"{data}/valid/song00/drums.wav: 1 values are NaN or infinite; replace the file",
    ]
    assert list((tmp_path / "out" / "artifacts" / "SampleGen" / "examples").iterdir()) == []
    assert not (tmp_path / "out" / "serving").exists()


def test_anomalies_stop_the_trainer(tmp_path: Path) -> None:
    data = make_database(tmp_path / "db")
    integers = data / "train" / "song01" / "drums.wav"
    sf.write(integers, 32768 * sf.read(integers, dtype="float32")[0], 8000, subtype="FLOAT")
    with pytest.raises(InputError) as caught:
        run(data, tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("train/: loudness: out-of-range values")
    assert lines[1].startswith("train/: peak: out-of-range values")
    assert len(lines) == 3
    assert not (tmp_path / "out" / "training").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nowhere"}, "nowhere: no such folder"),
        ({"set": {"train.excerpt_seconds": 9}}, r"train/song00: 1.50 s long, an excerpt takes 9 s"),
        ({"set": {"train.excerpt_seconds": 0.05}}, "train.excerpt_seconds: 0.05 s is shorter than one frame"),
        ({"set": {"model.architecture": "cnn"}}, "model.architecture: 'cnn' is not registered; known are blstm"),
        ({"set": {"model.sample_rate": 16000}}, r"8000 Hz, the profile has 16000; set model.sample_rate=8000"),
        ({"targets": "vocals,piano"}, "no sample has the target 'piano'"),
        ({"output": "file/out"}, "output .*file/out: cannot be written"),
        ({"push_destination": "file/serving"}, "push_destination .*file/serving: cannot be written"),
    ],
)
def test_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    data = make_database(tmp_path / "db")
    with pytest.raises(InputError, match=message):
        run(**{"data": data, "output": tmp_path / "out", **change})
    assert {path.name for path in tmp_path.iterdir()} == {"file", "db"}


def test_refuses_what_is_no_record_of_runs(tmp_path: Path) -> None:
    data = make_database(tmp_path / "db")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metadata.db").write_text("garbage " * 1000)
    with pytest.raises(InputError, match=r"out/metadata.db: not a metadata database; remove it to start afresh"):
        run(data, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["metadata.db"]


def wait_for(condition: Callable[[], Any], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--set", "train.epochs"], 2, "umx-pro: error: --set train.epochs: expected NAME=VALUE"),
        (["--no-such-option"], 2, "umx-pro: error: No such option: --no-such-option (see --help)"),
        ([], 2, "umx-pro: error: data: no database named; give --data DIR"),
    ],
)
def test_command_line_mistakes(command: Callable, arguments: list[str], code: int, text: str) -> None:
    found, _, stderr = command(arguments)
    assert found == code
    assert stderr.startswith(text)
    assert len(stderr.splitlines()) == 1


def test_no_command_prints_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["pipeline_runner.py"])
    assert pipeline_runner.main() == 2
    stdout, stderr = capsys.readouterr()
    assert "Usage: pipeline_runner.py" in stdout + stderr
    assert "error" not in stdout + stderr
