"""On several devices as on one. Devices are made up before TensorFlow starts, hence the processes."""

import subprocess
import sys
from pathlib import Path

import helpers
import pytest

SCRIPT = """
import sys
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from umx_model.data.track_folder import read_database
from umx_model.profile import Profile
from umx_model.train.trainer import train

root, output = sys.argv[1:]
samples = read_database(root)
profile = Profile.model_validate({
    "model": {"targets": ["vocals", "drums"], "sample_rate": 8000, "n_fft": 512, "hop_length": 256, "hidden_size": 8,
              "layers": 1, "unidirectional": True, "niter": 0},
    "train": {"excerpt_seconds": 0.5, "batch_size": 4, "excerpts_per_sample": 8, "epochs": 2, "weight_decay": 0.01,
              "learning_rate": 1e-4},
})
more = profile.updated({"train.epochs": 3})
one = train(more, samples, output + "/one", quiet=True)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    two = train(profile, samples, output + "/two", quiet=True)

assert two.history[-1]["step"] == 20
for a, b in zip(one.history[:2], two.history, strict=True):
    assert a["step"] == b["step"]
    np.testing.assert_allclose(a["train_loss"], b["train_loss"], rtol=1e-5)
    np.testing.assert_allclose(a["valid_loss"], b["valid_loss"], rtol=1e-5)
readers = [tf.train.load_checkpoint(f"{output}/{run}/checkpoints/epoch-2-step-20") for run in ("one", "two")]
names = [name for name in readers[0].get_variable_to_shape_map() if name.startswith("model/")]
assert sum("moving" in name for name in names) == 2 * 2 * 3, names  # mean and variance, targets, normalisations
for name in names:
    np.testing.assert_allclose(*[reader.get_tensor(name) for reader in readers], atol=1e-5, err_msg=name)

# What two devices left, one can go on from.
two = train(more, samples, output + "/two", resume=True, quiet=True)
np.testing.assert_allclose(one.history[-1]["valid_loss"], two.history[-1]["valid_loss"], rtol=1e-5)
print("equal")
"""


@pytest.mark.slow
def test_two_devices_give_what_one_gives(tmp_path: Path) -> None:
    # 3 valid samples of 3 pieces: the last batches do not reach both devices.
    root = helpers.make_database(tmp_path / "database", {"train": 5, "valid": 3}, seconds=1.2, sample_rate=8000)
    command = [sys.executable, "-c", SCRIPT, str(root), str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "equal", done.stderr[-3000:]
