"""Backups into a bucket of a real Google Cloud Storage server, also while it is away or does not answer."""

import shutil
import subprocess
import sys
from pathlib import Path

import helpers
import numpy as np
import pytest
import tensorflow as tf
from gcs import GcsServer

from umx_model.model.folder import read_model
from umx_model.profile import Profile

SAVING = """
import sys
from pathlib import Path
from test_backup import Training
from umx_model.train import backup
from umx_model.train.backup import Backup

backup._REST_SECONDS = 0
training = Training(Path(sys.argv[1]))
copies = Backup(sys.argv[1], "gs://bucket/some/model", training.profile)
copies.prepare()
with copies:
    for step in range(1, 9):
        training.save(step)
        copies.request()
        if step in (2, 6):
            print(step, flush=True)
            sys.stdin.readline()
print("ended", flush=True)
"""

RESTORING = """
import sys
from pathlib import Path
from test_backup import weight
from umx_model.train.backup import restore_backup

assert restore_backup("gs://bucket/some/model", sys.argv[1], quiet=True)
print(weight(Path(sys.argv[1])))
"""


@pytest.fixture
def bucket(gcs: GcsServer) -> GcsServer:
    gcs.create_bucket("bucket")
    return gcs


@pytest.mark.slow
def test_a_server_that_is_away_for_a_while(bucket: GcsServer, tmp_path: Path) -> None:
    environment = bucket.environment()
    environment["PYTHONPATH"] += f":{Path(__file__).parent}"
    with subprocess.Popen(
        [sys.executable, "-c", SAVING, str(tmp_path / "model")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "2\n"
        bucket.stop()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "6\n"  # though nothing can be copied
        bucket.start()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ended\n", process.stderr.read()
        assert process.wait(60) == 0
    names = set(bucket.list("bucket"))
    here = {f"some/model/{path.relative_to(tmp_path / 'model')}" for path in (tmp_path / "model").rglob("*.*")}
    assert {name for name in here if Path(tmp_path / "model").joinpath(name[11:]).is_file()} <= names
    assert not [name for name in names if "step-6" in name]
    done = subprocess.run(
        [sys.executable, "-c", RESTORING, str(tmp_path / "elsewhere")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "8.0\n", done.stderr[-2000:]


TRAINING = """
import sys
from umx_model.profile import Profile
from umx_model.train import backup
from umx_model.train.trainer import train

backup._REST_SECONDS = 0
backup._ANSWER_SECONDS = backup._END_SECONDS = 3
database, output, epochs, resume = sys.argv[1:]
profile = Profile.model_validate({
    "model": {"targets": ["vocals", "drums"], "sample_rate": 8000, "n_fft": 512, "hop_length": 256, "hidden_size": 8,
              "layers": 2, "unidirectional": True, "niter": 0},
    "train": {"excerpt_seconds": 0.5, "batch_size": 2, "excerpts_per_sample": 4, "epochs": int(epochs),
              "checkpoint_minutes": 1e-9},
})
train(profile, database, output, resume=bool(resume), quiet=True, backup="gs://bucket/model")
print("ended")
"""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers.make_database(tmp_path_factory.mktemp("database"), seconds=1.2, sample_rate=8000)


def variables(model: Path) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(str(model / "checkpoints"))
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith(("model/", "optimizer/"))]
    return {name: reader.get_tensor(name) for name in names}


@pytest.mark.slow
def test_an_empty_machine_continues_as_if_nothing_had_happened(
    bucket: GcsServer, database: Path, tmp_path: Path
) -> None:
    bucket.run(TRAINING, str(database), str(tmp_path / "first"), "1", "")
    there = bucket.list("bucket", "model/")
    here = {f"model/{path.relative_to(tmp_path / 'first')}" for path in (tmp_path / "first").rglob("*")}
    assert {name for name in here if (tmp_path / "first").joinpath(name[6:]).is_file()} == set(there)
    shutil.rmtree(tmp_path / "first")
    bucket.run(TRAINING, str(database), str(tmp_path / "second"), "2", "resume")
    assert len(Profile.read(tmp_path / "second").history) == 2
    read_model(tmp_path / "second")
    for name in bucket.list("bucket", "model/"):
        bucket.delete("bucket", name)
    bucket.run(TRAINING, str(database), str(tmp_path / "uninterrupted"), "2", "")
    expected = variables(tmp_path / "uninterrupted")
    assert len(expected) > 50
    for name, value in variables(tmp_path / "second").items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.slow
def test_training_ends_while_the_bucket_hangs(bucket: GcsServer, database: Path, tmp_path: Path) -> None:
    bucket.delay = 1000
    done = bucket.run(TRAINING, str(database), str(tmp_path / "model"), "2", "")
    assert done.stdout == "ended\n"
    (entry, last) = Profile.read(tmp_path / "model").history
    assert (entry["step"], last["step"]) == (6, 12)
    read_model(tmp_path / "model")
    assert "cannot be reached (no answer in 3 seconds); training goes on" in done.stderr
    assert "lacks what came last" in done.stderr
    assert bucket.list("bucket") == {}


def test_an_output_in_a_missing_bucket_is_refused(gcs: GcsServer) -> None:
    program = "from umx_model.train.checkpoints import prepare_output; prepare_output('gs://missing/model', False)"
    done = gcs.run(program, check=False)
    assert "InputError: gs://missing/model: output folder cannot be written" in done.stderr
