"""What TensorBoard would show, read back with TensorBoard's own readers from real files."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import helpers
import keras
import numpy as np
import pytest
import scipy.signal
import soundfile as sf
import tensorflow as tf
from gcs import GcsServer
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from umx_model.data.track_folder import Sample, read_database
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.model.umx import UMX
from umx_model.profile import Profile
from umx_model.train import run
from umx_model.train.pictures import draw
from umx_model.train.summaries import Summaries, choose_excerpts
from umx_model.train.trainer import train

RATE = 8000
MODEL = {
    "targets": ["vocals", "drums"],
    "sample_rate": RATE,
    "n_fft": 512,
    "hop_length": 256,
    "hidden_size": 8,
    "layers": 1,
    "unidirectional": True,
    "bandwidth": 4000,
}


@pytest.fixture(scope="module")
def profile() -> Profile:
    return Profile.model_validate({"model": MODEL, "train": {"summary_epochs": 5}})


@pytest.fixture(scope="module")
def spectral_filter(profile: Profile) -> keras.Model:
    keras.utils.set_random_seed(1)
    return get_joint_spectral_filter(profile.model)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, ...]:
    root = helpers.make_database(tmp_path_factory.mktemp("data"), {"train": 1, "valid": 4}, seconds=2, sample_rate=RATE)
    return read_database(root)["valid"]


def shown(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    return accumulator


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in shown(folder).Tensors(tag)]


def kept(folder: Path) -> list[int]:
    """The steps of the files: TensorBoard itself mixes up those of one second, as no training writes them."""
    return sorted(int(path.name.rpartition("-")[2]) for path in folder.iterdir())


def sound(events: EventAccumulator, tag: str) -> np.ndarray:
    wav = tf.make_ndarray(events.Tensors(tag)[-1].tensor_proto).flat[0]
    waveform, rate = sf.read(io.BytesIO(wav))
    assert rate == RATE
    return waveform


def write_points(summaries: Summaries, *steps: int, value: float = 1.0) -> None:
    for step in steps:
        summaries.training(step, step / 10, [value, 3 * value], 0.01, 0.5, 20.0, 0.2)


def test_curves(tmp_path: Path, spectral_filter: keras.Model, profile: Profile) -> None:
    summaries = Summaries(tmp_path, spectral_filter, profile, (), step=0)
    write_points(summaries, 5, 10)
    summaries.validation(10, [2.0, 4.0])
    logs = tmp_path / "logs"
    assert curve(logs, "valid_loss/drums") == [(10, 4.0)]  # without being closed
    summaries.close()
    assert curve(logs, "train_loss/vocals") == [(5, 1.0), (10, 1.0)]
    assert curve(logs, "train_loss") == [(5, 2.0), (10, 2.0)]
    assert curve(logs, "valid_loss") == [(10, 3.0)]
    for tag, value in {
        "epoch": 0.5,
        "learning_rate": 0.01,
        "gradient_norm": 0.5,
        "excerpts_per_second": 20,
        "step_seconds": 0.2,
    }.items():
        assert curve(logs, tag)[0] == (5, pytest.approx(value))


def test_a_resumed_run_continues_the_curves(tmp_path: Path, spectral_filter: keras.Model, profile: Profile) -> None:
    killed = Summaries(tmp_path, spectral_filter, profile, (), step=0)
    write_points(killed, 5, 10, 15, 20, value=1.0)
    killed.close()
    resumed = Summaries(tmp_path, spectral_filter, profile, (), step=10)
    write_points(resumed, 14, 19, value=2.0)
    resumed.close()
    assert curve(tmp_path / "logs", "train_loss/vocals") == [(5, 1.0), (10, 1.0), (14, 2.0), (19, 2.0)]


def test_a_training_that_goes_back(tmp_path: Path, spectral_filter: keras.Model, profile: Profile) -> None:
    summaries = Summaries(tmp_path, spectral_filter, profile, (), step=0)
    write_points(summaries, 5, 10)
    summaries.validation(10, [1.0, 1.0])
    write_points(summaries, 15, 20)
    write_points(summaries, 12, 17, value=2.0)
    summaries.close()
    assert curve(tmp_path / "logs", "train_loss/vocals") == [(5, 1.0), (10, 1.0), (12, 2.0), (17, 2.0)]
    assert curve(tmp_path / "logs", "valid_loss") == [(10, 1.0)]


def test_excerpts_are_what_the_model_separates(
    tmp_path: Path, spectral_filter: keras.Model, profile: Profile, valid: tuple[Sample, ...]
) -> None:
    summaries = Summaries(tmp_path, spectral_filter, profile, valid, step=0)
    for epoch in range(1, 7):
        summaries.excerpts(10 * epoch, epoch)
    events = shown(tmp_path / "logs" / "excerpts")
    ids = ("song00", "song02", "song03")
    names = {f"{target}{kind}" for target in MODEL["targets"] for kind in ("", " estimate")}
    assert set(events.Tags()["tensors"]) == {
        f"{id}/{name}" for id in ids for name in names | {"mixture", "spectrograms"}
    }
    assert [event.step for event in events.Tensors("song00/mixture")] == [10, 50]  # after epochs 1 and 5
    stems = np.stack([sf.read(valid[2].files[target].path)[0] for target in MODEL["targets"]], axis=-1)
    mixture = stems.sum(axis=-1)
    np.testing.assert_allclose(sound(events, "song02/mixture"), mixture, atol=1e-4)
    np.testing.assert_allclose(sound(events, "song02/drums"), stems[..., 1], atol=1e-4)
    estimates = UMX(spectral_filter, niter=0)(mixture[np.newaxis].astype(np.float32))[0]
    np.testing.assert_allclose(sound(events, "song02/drums estimate"), estimates[..., 1], atol=1e-4)
    width, height, png, *_ = tf.make_ndarray(events.Tensors("song02/spectrograms")[0].tensor_proto)
    assert tf.io.decode_png(png).shape == (int(height), int(width), 3)


def test_excerpts_written_again_after_a_resume_replace_those_before(
    tmp_path: Path, spectral_filter: keras.Model, profile: Profile, valid: tuple[Sample, ...]
) -> None:
    for _ in range(2):
        Summaries(tmp_path, spectral_filter, profile, valid[:1], step=10).excerpts(20, 5)
    assert [event.step for event in shown(tmp_path / "logs" / "excerpts").Tensors("song00/mixture")] == [20]


def test_the_first_and_the_newest_excerpts_are_kept(
    tmp_path: Path, spectral_filter: keras.Model, profile: Profile, valid: tuple[Sample, ...]
) -> None:
    summaries = Summaries(tmp_path, spectral_filter, profile, valid[:1], step=0)
    for epoch in range(5, 70, 5):
        summaries.excerpts(epoch, epoch)
    assert kept(tmp_path / "logs" / "excerpts") == [5, *range(25, 70, 5)]


def test_an_excerpt_is_taken_where_there_is_sound(tmp_path: Path) -> None:
    time = np.arange(8 * RATE) / RATE
    tone = np.tile(0.3 * np.sin(2 * np.pi * 440 * time)[:, np.newaxis], 2)
    loud, together = (time < 3)[:, np.newaxis], ((time >= 4) & (time < 6))[:, np.newaxis]
    stems = {"vocals": tone * (3 * loud + together), "drums": tone * together}
    for split in ("train", "valid"):
        (tmp_path / split / "song").mkdir(parents=True)
        for target, waveform in stems.items():
            sf.write(tmp_path / split / "song" / f"{target}.wav", waveform, RATE)
    valid = read_database(tmp_path)["valid"]
    ((name, waveforms),) = choose_excerpts(valid, ["vocals", "drums"], seconds=2.0)
    assert (name, waveforms.shape) == ("song", (2 * RATE, 2, 2))
    # Places are 1.5 s apart: the one from 4.5 to 6.5 s, where both are heard, although vocals are louder before.
    assert [np.mean(np.abs(waveforms[..., index]) > 0) for index in (0, 1)] == pytest.approx([0.75, 0.75], abs=0.01)


FULL_DISK = """
import json, resource, sys
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.profile import Profile
from umx_model.train.summaries import Summaries

profile = Profile.model_validate({"model": json.loads(sys.argv[2])})
summaries = Summaries(sys.argv[1], get_joint_spectral_filter(profile.model), profile, (), step=0)
point = lambda step: summaries.training(step, 0.0, [1.0, 1.0], 0.01, 0.5, 20.0, 0.2)
point(1); summaries.validation(2, [1.0, 1.0])
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
point(3); summaries.validation(4, [1.0, 1.0]); point(5); summaries.validation(6, [1.0, 1.0])
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
point(7); summaries.validation(8, [1.0, 1.0]); summaries.close()
print("done")
"""


def test_a_full_disk_is_a_warning(tmp_path: Path) -> None:
    # Files that may not grow fail as on a full disk.
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), json.dumps(MODEL)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr[-2000:]
    assert done.stderr.count("cannot be written") == 1
    steps = [step for step, _ in curve(tmp_path / "logs", "valid_loss")]
    assert steps == [2, 8]


IN_A_BUCKET = """
import json, sys
from umx_model.data.track_folder import read_database
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.profile import Profile
from umx_model.train.summaries import Summaries

profile = Profile.model_validate({"model": json.loads(sys.argv[2])})
valid = read_database(sys.argv[1])["valid"]
summaries = Summaries("gs://bucket/model", get_joint_spectral_filter(profile.model), profile, valid, step=0)
for epoch in range(5, 65, 5):
    summaries.training(epoch, 0.0, [1.0, 1.0], 0.01, 0.5, 20.0, 0.2)
    summaries.validation(epoch, [1.0, 1.0])
    summaries.excerpts(epoch, epoch)
summaries.close()
"""


@pytest.mark.slow
def test_logs_in_a_bucket(gcs: GcsServer, valid: tuple[Sample, ...], tmp_path: Path) -> None:
    gcs.create_bucket("bucket")
    done = gcs.run(IN_A_BUCKET, str(Path(valid[0].files["drums"].path).parents[2]), json.dumps(MODEL))
    assert "cannot be written" not in done.stderr
    for name in gcs.list("bucket", "model/logs/"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(gcs.download("bucket", name))
    logs = tmp_path / "model" / "logs"
    assert [step for step, _ in curve(logs, "valid_loss")] == list(range(5, 65, 5))
    assert kept(logs / "excerpts") == [5, *range(20, 65, 5)]


def bounds(picture: np.ndarray, rows: int, columns: int) -> list[list[np.ndarray]]:
    """The spectrograms in a picture."""
    return [
        [picture[24 + 184 * row : 184 + 184 * row, 40 + 328 * column : 360 + 328 * column] for column in range(columns)]
        for row in range(rows)
    ]


def test_a_picture_shows_tones_where_they_are() -> None:
    rate, seconds = 44100, 4
    time = np.arange(rate * seconds) / rate

    def magnitudes(waveform: np.ndarray) -> np.ndarray:
        return np.abs(scipy.signal.stft(waveform, nperseg=4096, noverlap=3072)[2]).T

    tone = np.sin(2 * np.pi * 1000 * time)
    late = 0.01 * np.sin(2 * np.pi * 10000 * time) * (time >= seconds / 2)  # 40 dB below
    rows: Any = [[("mixture", magnitudes(tone + late)), ("tone", magnitudes(tone)), ("late", magnitudes(late))]]
    picture = draw(rows, rate, 1024)
    ((_, tone_panel, late_panel),) = bounds(picture, 1, 3)
    octaves = np.log2(22050 / 50)

    def brightest(panel: np.ndarray) -> float:
        """Frequency of the brightest row, in Hz."""
        row = int(panel.astype(int).sum(axis=(1, 2)).argmax())
        return 22050 / 2 ** ((row + 0.5) / 160 * octaves)

    assert brightest(tone_panel) == pytest.approx(1000, rel=0.06)  # a pixel is 4 %
    assert brightest(late_panel) == pytest.approx(10000, rel=0.06)
    light = late_panel.astype(int).sum(axis=2).max(axis=0)
    assert light[:140].max() < 150 < light[180:].min()
    assert tone_panel.astype(int).sum(axis=2).max() > late_panel.astype(int).sum(axis=2).max() + 100
    middle = late_panel[:, 200:].reshape(-1, 3).astype(int)  # -40 of -80 dB: the middle of the colours
    assert np.abs(middle - [163, 46, 103]).sum(axis=1).min() < 40


def test_silence_can_be_drawn() -> None:
    rows: Any = [[("mixture", np.zeros([3, 257])), ("drums_2-B.c", np.zeros([3, 257]))]]
    picture = draw(rows, 8000, 256)
    for panel in bounds(picture, 1, 2)[0]:
        assert panel.max() == 6


def test_watching_does_not_change_what_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "write_model_folder", lambda folder, model, profile: profile)  # takes long
    root = helpers.make_database(tmp_path / "data", {"train": 2, "valid": 1}, ["vocals"], seconds=1, sample_rate=RATE)
    settings = {"excerpt_seconds": 0.5, "batch_size": 2, "excerpts_per_sample": 2, "epochs": 2}
    model = {**MODEL, "targets": ["vocals"], "layers": 2}  # with dropout
    seen = []
    for name, epochs in (("watched", 1), ("unwatched", 1000)):
        profile = Profile.model_validate({"model": model, "train": {**settings, "summary_epochs": epochs}})
        if name == "unwatched":
            monkeypatch.setattr(Summaries, "excerpts", lambda *_: None)
        train(profile, root, tmp_path / name, quiet=True)
        reader = tf.train.load_checkpoint(str(tmp_path / name / "checkpoints"))
        names = [name for name in reader.get_variable_to_shape_map() if name.startswith(("model/", "optimizer/"))]
        seen.append({name: reader.get_tensor(name) for name in names})
    assert len(seen[0]) > 30
    for name, value in seen[0].items():
        np.testing.assert_array_equal(value, seen[1][name], err_msg=name)
    logs = tmp_path / "watched" / "logs"
    assert [event.step for event in shown(logs / "excerpts").Tensors("song00/mixture")] == [2, 4]
    assert [step for step, _ in curve(logs, "valid_loss")] == [2, 4]
    for tag in ("gradient_norm", "step_seconds", "excerpts_per_second", "train_loss/vocals"):
        points = curve(logs, tag)
        assert {2, 4} <= {step for step, _ in points}
        assert all(value > 0 for _, value in points)
    assert curve(logs, "epoch")[-1] == (4, 2)
