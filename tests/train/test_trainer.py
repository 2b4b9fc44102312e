import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import keras
import numpy as np
import pytest
import scipy.signal
import soundfile as sf
import tensorflow as tf

from umx_model.data.dataset import FixedSourcesTrackFolderDataset
from umx_model.data.track_folder import Sample, read_database
from umx_model.errors import InputError
from umx_model.model.folder import read_model
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.profile import Profile
from umx_model.train import interrupt
from umx_model.train import run as runs
from umx_model.train.blame import describe_excerpts
from umx_model.train.loop import Loop
from umx_model.train.losses import magnitudes
from umx_model.train.run import TrainingFailedError
from umx_model.train.steps import Steps
from umx_model.train.trainer import train

MODEL: dict[str, Any] = {
    "targets": ["vocals", "drums"],
    "sample_rate": 8000,
    "channels": 2,
    "n_fft": 512,
    "hop_length": 256,
    "hidden_size": 8,
    "layers": 1,
    "unidirectional": True,
    "bandwidth": 4000,
    "niter": 0,
}
TRAIN = {"excerpt_seconds": 0.5, "batch_size": 2, "excerpts_per_sample": 2, "epochs": 2, "learning_rate": 0.01}


def make_profile(**train_settings: Any) -> Profile:
    return Profile.model_validate({"model": MODEL, "train": {**TRAIN, **train_settings}})


def dropout_profile(**train_settings: Any) -> Profile:
    """A profile with two layers, and so dropout, for one target, to be quick."""
    return make_profile(excerpts_per_sample=4, **train_settings).updated(
        {"model.layers": 2, "model.targets": ["vocals"]}
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers.make_database(tmp_path_factory.mktemp("database"), seconds=1.2, sample_rate=8000)


@pytest.fixture(scope="module")
def samples(root: Path) -> dict[str, tuple[Sample, ...]]:
    return read_database(root)


@pytest.fixture(scope="module")
def uninterrupted(samples: dict[str, tuple[Sample, ...]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of six steps of the profile with dropout."""
    output = tmp_path_factory.mktemp("uninterrupted")
    train(dropout_profile(), samples, output, quiet=True)
    return output


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished")
    train(make_profile(epochs=1), root, output, quiet=True)
    return output


@pytest.fixture
def model(finished: Path, tmp_path: Path) -> Path:
    """A model folder after one epoch, to go on from."""
    return shutil.copytree(finished, tmp_path / "model")


def before_step(patch: pytest.MonkeyPatch, number: int, act: Callable[[Steps], Any]) -> None:
    """Make something happen before a training step; the first has the number 1."""
    compile_train, calls = Steps.compile_train, []

    def compile_with_accident(self: Steps, spec: Any) -> Any:
        step = compile_train(self, spec)

        def run(batch: Any) -> tf.Tensor:
            calls.append(number)
            if len(calls) == number:
                act(self)
            return step(batch)

        return run

    patch.setattr(Steps, "compile_train", compile_with_accident)


def saved_state(output: Path) -> dict[str, Any]:
    """Where the loop stood at the newest checkpoint."""
    reader = tf.train.load_checkpoint(str(output / "checkpoints"))
    (name,) = [name for name in reader.get_variable_to_shape_map() if name.startswith("loop/")]
    return json.loads(reader.get_tensor(name))["state"]


def weights(output: Path) -> list[np.ndarray]:
    """What the newest checkpoint holds of the model and the optimizer."""
    reader = tf.train.load_checkpoint(str(output / "checkpoints"))
    names = sorted(reader.get_variable_to_shape_map())
    return [reader.get_tensor(name) for name in names if name.startswith(("model/", "optimizer/"))]


def assert_same_training(a: Path, b: Path) -> None:
    for x, y in zip(weights(a), weights(b), strict=True):
        np.testing.assert_array_equal(x, y)
    assert len(weights(a)) > 50
    losses = [[(entry["train_loss"], entry["valid_loss"]) for entry in Profile.read(path).history] for path in (a, b)]
    assert losses[0] == losses[1]


def test_leaves_a_model_folder(finished: Path) -> None:
    profile = Profile.read(finished)
    assert [entry["epoch"] for entry in profile.history] == [1]
    keys = {"train_loss", "valid_loss", "valid_loss/vocals", "valid_loss/drums", "learning_rate", "seconds"}
    assert keys <= set(profile.history[0])
    assert profile.made_with["tensorflow"] == tf.__version__
    assert profile.data_fingerprint
    model, _ = read_model(finished)
    mixture = np.random.default_rng(0).normal(size=(1, 5000, 2)).astype(np.float32) * 0.1
    served = tf.saved_model.load(str(finished / "saved_model")).signatures["serving_default"](mixture=mixture)
    np.testing.assert_allclose(served["drums"], model(mixture)[..., 1], atol=1e-5)

    tags = set()
    for file in (finished / "logs").glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            tags |= {value.tag for value in event.summary.value}
    assert {"train_loss/vocals", "valid_loss/drums", "learning_rate", "excerpts_per_second"} <= tags


def test_overfits_a_tiny_database(tmp_path: Path, make_database: Callable[..., Path]) -> None:
    root = make_database(tmp_path / "database", splits={"train": 1, "valid": 1}, seconds=0.6, sample_rate=8000)
    for target in ("vocals", "drums"):  # validate on what is trained on
        (root / "valid" / "song00" / f"{target}.wav").write_bytes(
            (root / "train" / "song00" / f"{target}.wav").read_bytes()
        )
    settings = {"excerpts_per_sample": 40, "epochs": 3, "learning_rate": 0.03, "gain_range": None, "swap_channels": 0}
    profile = make_profile(**settings).updated({"model.unidirectional": False})
    history = train(profile, root, tmp_path / "model", quiet=True).history
    assert history[-1]["train_loss"] < 0.3 * history[0]["train_loss"]
    assert history[-1]["valid_loss"] < 0.3 * history[0]["valid_loss"]


def test_validation_loss_is_that_of_the_weights_over_whole_samples(root: Path, finished: Path) -> None:
    model, profile = read_model(finished)
    errors = []
    for sample in sorted((root / "valid").iterdir()):
        stems = np.stack([sf.read(sample / f"{target}.wav")[0] for target in MODEL["targets"]], axis=-1)
        for start in range(0, len(stems) - 511, 4000):
            piece = stems[start : start + 4000]
            _, _, z = scipy.signal.stft(
                np.concatenate([piece.sum(-1, keepdims=True), piece], axis=-1),
                **{"window": "hann", "nperseg": 512, "noverlap": 256, "boundary": None, "padded": False, "axis": 0},
            )
            magnitude = np.moveaxis(np.abs(z), -1, 0) * 256  # [frames, bins, channels, mixture and targets]
            estimates = model.spectral_filter(magnitude[np.newaxis, ..., 0].astype(np.float32))[0]
            errors.append((estimates - magnitude[..., 1:]) ** 2)
    (epoch,) = profile.history
    frames = np.concatenate(errors)  # [frames, bins, channels, targets]
    assert epoch["valid_loss"] == pytest.approx(frames.mean(), rel=1e-4)
    assert epoch["valid_loss/drums"] == pytest.approx(frames[..., 1].mean(), rel=1e-4)


def test_silence_moves_weights_by_the_coupled_decay_alone(root: Path) -> None:
    # The estimate of silence is silence, so the loss has no gradient, and what Adam sees is decay * w.
    profile = make_profile(weight_decay=0.1)
    strategy = tf.distribute.get_strategy()
    spectral_filter = get_joint_spectral_filter(profile.model)
    optimizer = keras.optimizers.Adam(0.01, epsilon=1e-8)
    optimizer.build(spectral_filter.trainable_variables)
    before = [variable.numpy() for variable in spectral_filter.trainable_variables]
    step = Steps(strategy, spectral_filter, optimizer, profile).compile_train(tf.TensorSpec([2, 4000, 2, 2]))
    assert step(tf.zeros([2, 4000, 2, 2])).losses.numpy().tolist() == [0, 0]
    eps = 1e-8 / np.sqrt(1 - 0.999)  # in the first step, as Keras writes Adam
    for old, new in zip(before, spectral_filter.trainable_variables, strict=True):
        gradient = 0.1 * old.astype(np.float64)
        np.testing.assert_allclose(new.numpy(), old - 0.01 * gradient / (np.abs(gradient) + eps), atol=1e-6)


def test_every_target_learns_as_if_alone(root: Path) -> None:
    # The summed loss gives each filter the gradient that the recipe gives it.
    profile = make_profile(weight_decay=0)
    excerpts = tf.random.stateless_normal([2, 4000, 2, 2], [1, 2])
    spectral_filter = get_joint_spectral_filter(
        profile.model.model_copy(update={"dropout": 0.0, "targets": ("vocals", "drums")})
    )
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(spectral_filter.trainable_variables)
    steps = Steps(tf.distribute.get_strategy(), spectral_filter, optimizer, profile)
    mixture, references = magnitudes(excerpts, steps._stft)
    variables = spectral_filter.get_layer("drums").trainable_variables
    with tf.GradientTape() as tape:
        estimate = spectral_filter.get_layer("drums")(mixture, training=True)
        loss = tf.reduce_mean((estimate - references[..., 1]) ** 2)
    expected = [
        variable.numpy() - gradient
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=False)
    ]
    losses = steps.compile_train(tf.TensorSpec(excerpts.shape))(excerpts).losses
    assert losses.numpy()[1] == pytest.approx(float(loss), rel=1e-5)
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-3, atol=1e-5 * float(loss))


def test_a_run_resumed_after_a_crash_and_ctrl_c_equals_an_uninterrupted_one(
    samples: dict[str, tuple[Sample, ...]], uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(_: Steps) -> None:
        raise MemoryError

    def run(**settings: Any) -> None:
        train(dropout_profile(**settings), samples, tmp_path, resume=True, quiet=True)

    def position() -> list[int]:
        return [saved_state(tmp_path)[name] for name in ("epoch", "step", "excerpts", "epoch_excerpts")]

    with monkeypatch.context() as patch:
        before_step(patch, 4, crash)
        with pytest.raises(MemoryError):
            run(checkpoint_minutes=1e-9)  # a checkpoint after every step
    assert position() == [0, 3, 6, 6]
    with monkeypatch.context() as patch:
        before_step(patch, 5, lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert position() == [1, 8, 16, 4]
    assert not (tmp_path / "model.weights.h5").exists()
    assert len(read_model(tmp_path)[1].history) == 1  # what is there can be used
    run()
    assert_same_training(uninterrupted, tmp_path)


def test_resume_does_not_measure_again(root: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Profile.read(model)
    monkeypatch.setattr(runs, "input_statistics", None)
    assert train(make_profile(epochs=1), root, model, resume=True, quiet=True) == before == Profile.read(model)


def test_best_weights_are_kept_and_patience_ends_training(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence = iter([3.0, 1.0, 2.0, 1.5, 9.0])
    seen = []

    def validate(loop: Loop, *_: Any) -> np.ndarray:
        seen.append([weight.numpy() for weight in loop._run.spectral_filter.weights])
        return np.full(2, next(sequence))

    monkeypatch.setattr(Loop, "_validate", validate)
    settings = {"epochs": 10, "patience": 2, "plateau_patience": 0, "plateau_cooldown": 0, "plateau_factor": 0.1}
    profile = train(make_profile(**settings), root, tmp_path / "model", quiet=True)
    assert [entry["valid_loss"] for entry in profile.history] == [3, 1, 2, 1.5]
    rates = [entry["learning_rate"] for entry in profile.history]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.001])
    model, _ = read_model(tmp_path / "model")
    for kept, best in zip(model.spectral_filter.weights, seen[1], strict=True):
        np.testing.assert_array_equal(kept.numpy(), best)


def test_time_ends_an_epoch_early(root: Path, tmp_path: Path) -> None:
    profile = train(make_profile(excerpts_per_sample=10**6, max_minutes=0.05), root, tmp_path / "model", quiet=True)
    assert len(profile.history) == 1
    assert profile.history[0]["seconds"] < 30
    assert (tmp_path / "model" / "model.weights.h5").exists()


def validate_as(patch: pytest.MonkeyPatch, loss: float) -> list[list[np.ndarray]]:
    """Fix the validation loss; returns what will hold the weights at each validation."""
    seen: list[list[np.ndarray]] = []

    def validate(loop: Loop, *_: Any) -> np.ndarray:
        seen.append([weight.numpy() for weight in loop._run.spectral_filter.weights])
        return np.full(2, loss)

    patch.setattr(Loop, "_validate", validate)
    return seen


@pytest.mark.parametrize("what", ["the database", "train.floor_db"])
def test_losses_of_something_else_do_not_count(
    root: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    seen = validate_as(monkeypatch, 1e9)  # far above the loss of the epoch before
    profile = make_profile(epochs=2, patience=1)
    if what == "the database":
        train(profile, root, model, resume=True, quiet=True, data_fingerprint="another")
    else:
        train(profile.updated({"train.floor_db": -30.0}), root, model, resume=True, quiet=True)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"{what} has changed" in warning
    state = saved_state(model)
    assert state["plateau"]["best"] == state["stopping"]["best"] == 1e9
    assert state["stopping"]["bad_epochs"] == 0
    for kept, last in zip(read_model(model)[0].spectral_filter.weights, seen[-1], strict=True):
        np.testing.assert_array_equal(kept.numpy(), last)


def test_the_learning_rate_goes_on_unless_the_profiles_was_changed(
    root: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate_as(monkeypatch, 1e9)
    monkeypatch.setattr(runs, "write_model_folder", lambda folder, model, profile: profile)  # takes long

    def rates(**settings: Any) -> list[float]:
        settings = {"plateau_patience": 0, "plateau_factor": 0.1, "plateau_cooldown": 9, **settings}
        profile = train(make_profile(**settings), root, model, resume=True, quiet=True)
        return [entry["learning_rate"] for entry in profile.history]

    assert rates(epochs=3) == pytest.approx([0.01, 0.01, 0.001])
    assert rates(epochs=4) == pytest.approx([0.01, 0.01, 0.001, 0.001])
    # The cooldown ends too: so the rate is lowered again.
    assert rates(epochs=6, learning_rate=0.02) == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.02, 0.002])


def test_a_cosine_brings_the_rate_down_by_the_last_epoch_or_minute(root: Path, tmp_path: Path) -> None:
    def rates(**settings: Any) -> list[float]:
        profile = make_profile(excerpts_per_sample=1, decay="cosine", **settings)
        history = train(profile, root, tmp_path / str(len(settings)), quiet=True).history
        return [entry["learning_rate"] for entry in history]

    assert rates(epochs=4) == pytest.approx([0.005 * (1 + np.cos(np.pi * epoch / 4)) for epoch in range(4)])
    longer = make_profile(excerpts_per_sample=1, decay="cosine", epochs=2)
    train(longer, root, tmp_path / "longer", quiet=True)
    longer = longer.updated({"train.epochs": 4})
    history = train(longer, root, tmp_path / "longer", quiet=True, resume=True).history
    assert [entry["learning_rate"] for entry in history] == pytest.approx([0.01, 0.005, 0.005, 0.005 * (1 - 0.5**0.5)])
    by_time = rates(epochs=10000, max_minutes=0.15)  # of which tracing takes seconds
    assert 2 < len(by_time) < 10000
    assert np.all(np.diff(by_time) < 0)
    assert by_time[-1] < 0.003


@pytest.mark.parametrize("where", ["training", "validation"])
def test_nan_stops_at_once(root: Path, model: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    good, steps_made = weights(model), []
    if where == "training":
        before_step(monkeypatch, 1, poison)
        before_step(monkeypatch, 3, steps_made.append)  # the second is underway when the first one's loss is read
    else:
        monkeypatch.setattr(Loop, "_validate", lambda *_: np.array([1.0, np.nan]))
    with pytest.raises(TrainingFailedError, match="no longer") as failure:
        train(make_profile(epochs=3), root, model, resume=True, quiet=True)
    assert str(model) in str(failure.value)
    assert not steps_made
    for before, after in zip(good, weights(model), strict=True):
        np.testing.assert_array_equal(before, after)


def poison(steps: Steps) -> None:
    weight = steps._filter.weights[0]
    weight.assign(weight * np.nan)


def test_nan_weights_are_not_saved(root: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As after a gradient that is not finite: the loss of the last step before Ctrl-C still was.
    good, step_of = weights(model), Steps.compile_train

    def compile_train(self: Steps, spec: Any) -> Any:
        step = step_of(self, spec)

        def run(batch: Any) -> Any:
            result = step(batch)
            poison(self)
            signal.raise_signal(signal.SIGINT)
            return result

        return run

    monkeypatch.setattr(Steps, "compile_train", compile_train)
    with pytest.raises(TrainingFailedError, match="weights"):
        train(make_profile(epochs=3), root, model, resume=True, quiet=True)
    for before, after in zip(good, weights(model), strict=True):
        np.testing.assert_array_equal(before, after)


def loud_database(folder: Path) -> Path:
    """Six training samples, one of which holds values whose squares are beyond float32 where drums are."""
    root = helpers.make_database(folder, {"train": 6, "valid": 1}, seconds=1.2, sample_rate=8000)
    file = root / "train" / "song03" / "drums.wav"
    audio, rate = sf.read(file)
    sf.write(file, audio * 1e25, rate, subtype="FLOAT")
    return root


def test_the_samples_of_a_bad_excerpt_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = loud_database(tmp_path / "database")
    train_samples = read_database(root)["train"]
    profile = make_profile(epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "input_statistics", lambda *_: (np.zeros(257), np.ones(257)))
        with pytest.raises(TrainingFailedError, match="loss of .*drums"):
            train(profile, root, tmp_path / "model", quiet=True)
    named = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert named
    for line in named:
        assert re.search(r"not finite on excerpt \d+: vocals from song\d\d at .*, drums from song03 at", line)
    excerpts = describe_excerpts(profile, train_samples, 0, 12)
    assert sum("drums from song03" in line for line in excerpts) == 2  # once per round of six
    assert all(line.partition("not finite on ")[2].partition(";")[0] in excerpts for line in named)


def test_excerpts_are_described_as_they_are_made(tmp_path: Path) -> None:
    root = helpers.make_database(tmp_path, {"train": 5, "valid": 1}, seconds=1.2, sample_rate=8000)
    for index in range(5):
        for target in MODEL["targets"]:
            time = np.arange(9600) / 2**20  # says where an excerpt starts
            value = np.stack([time, time], axis=1) + index / 16
            sf.write(root / "train" / f"song{index:02}" / f"{target}.wav", value, 8000, subtype="FLOAT")
    profile = make_profile(gain_range=None)
    samples = read_database(root)["train"]
    excerpts = FixedSourcesTrackFolderDataset.from_samples(
        samples, "train", MODEL["targets"], excerpt_seconds=0.5, gain_range=None, first_excerpt=7
    )
    lines = describe_excerpts(profile, samples, 7, 12)
    assert len(lines) == 12
    for number, (line, excerpt) in enumerate(zip(lines, excerpts.take(12), strict=True)):
        described = re.findall(r"(\w+) from song(\d\d) at ([\d.]+) s", line)
        assert line.startswith(f"excerpt {7 + number}: ")
        for column, (target, song, start) in enumerate(described):
            value = float(excerpt[0, 0, column])
            assert target == MODEL["targets"][column]
            assert int(song) == int(value * 16)
            assert float(start) == pytest.approx((value - int(song) / 16) * 2**20 / 8000, abs=0.006)


def test_a_bad_excerpt_lowers_the_rate_where_that_is_wished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = loud_database(tmp_path / "database")
    monkeypatch.setattr(runs, "input_statistics", lambda *_: (np.zeros(257), np.ones(257)))
    settings = {"epochs": 2, "excerpts_per_sample": 2, "checkpoint_minutes": 1e-9, "plateau_factor": 0.5}
    profile = make_profile(on_non_finite="lower_rate", **settings)
    profile = train(profile, root, tmp_path / "model", quiet=True)
    setbacks = [record.getMessage() for record in caplog.records if "going on from" in record.getMessage()]
    assert 1 <= len(setbacks) <= 6
    assert [entry["learning_rate"] for entry in profile.history][-1] <= 0.01 * 0.5 ** len(setbacks) * 1.001
    assert len(profile.history) == 2
    assert all(np.isfinite(list(entry.values())).all() for entry in profile.history)
    assert all(np.isfinite(array).all() for array in weights(tmp_path / "model"))
    state = saved_state(tmp_path / "model")
    assert state["excerpts"] > 2 * state["step"]  # some were passed over


def test_going_back_again_and_again_ends(
    root: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good = weights(model)
    monkeypatch.setattr(Loop, "_validate", lambda *_: np.array([1.0, np.inf]))
    with pytest.raises(TrainingFailedError, match="validation loss of drums"):
        train(make_profile(epochs=3, on_non_finite="lower_rate"), root, model, resume=True, quiet=True)
    assert len([record for record in caplog.records if "going on from" in record.getMessage()]) == 3
    for before, after in zip(good, weights(model), strict=True):
        np.testing.assert_array_equal(before, after)


def test_sigterm_saves_and_ends_with_its_own_code(
    samples: dict[str, tuple[Sample, ...]], uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupt, "GRACE_SECONDS", 300)  # compiling a step on a busy machine may take long
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        before_step(patch, 5, lambda _: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(SystemExit) as stop:
            train(dropout_profile(), samples, tmp_path, quiet=True)
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == handler
    assert signal.set_wakeup_fd(-1) == -1
    assert saved_state(tmp_path)["step"] == 5
    with monkeypatch.context() as patch:  # in the midst of validation
        step_of = Steps.compile_valid

        def compile_valid(self: Steps, spec: Any) -> Any:
            step = step_of(self, spec)

            def run(batch: Any) -> Any:
                signal.raise_signal(signal.SIGTERM)
                return step(batch)

            return run

        patch.setattr(Steps, "compile_valid", compile_valid)
        with pytest.raises(SystemExit):
            train(dropout_profile(), samples, tmp_path, resume=True, quiet=True)
    train(dropout_profile(), samples, tmp_path, resume=True, quiet=True)
    assert_same_training(uninterrupted, tmp_path)


def test_resumptions_and_versions_are_recorded(root: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_with = Profile.read(model).made_with
    assert made_with["tensorflow"] == tf.__version__
    assert {"python", "keras", "numpy", "tensorflow-io", "devices"} <= made_with.keys()
    assert "resumed" not in made_with
    monkeypatch.setattr(runs, "provenance", lambda strategy: {**made_with, "keras": "4.0"})
    for epochs in (2, 3):
        profile = train(make_profile(epochs=epochs), root, model, resume=True, quiet=True)
    assert profile.made_with == {
        **made_with,
        "keras": f"{made_with['keras']}; from step 3: 4.0",
        "resumed": "at step 3, 6",
    }
    assert [entry["epoch"] for entry in profile.history] == [1, 2, 3]


def test_another_models_checkpoint_is_refused(root: Path, model: Path) -> None:
    other = make_profile().updated({"model.hidden_size": 12, "model.bandwidth": 2000})
    before = Profile.read(model)
    with pytest.raises(
        InputError, match=r"bandwidth is 4000.0 there and 2000.0 .*hidden_size is 8 there and 12 "
    ) as error:
        train(other, root, model, resume=True, quiet=True)
    assert "\n" not in str(error.value)
    assert Profile.read(model) == before


def test_output_in_use_is_refused(root: Path, model: Path) -> None:
    with pytest.raises(InputError, match="resume"):
        train(make_profile(epochs=1), root, model, quiet=True)


def test_a_model_without_checkpoints_is_not_replaced(root: Path, model: Path) -> None:
    shutil.rmtree(model / "checkpoints")
    before = (model / "model.weights.h5").read_bytes()
    for resume in (True, False):
        with pytest.raises(InputError, match=r"holds a trained model .* no checkpoints .* another output .* remove"):
            train(make_profile(epochs=1), root, model, resume=resume, quiet=True)
    assert (model / "model.weights.h5").read_bytes() == before
    assert not (model / "checkpoints").exists()


def test_output_that_cannot_be_written_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        train(make_profile(), root, tmp_path / "file" / "model", quiet=True)
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(InputError, match="cannot be written"):
            train(make_profile(), root, tmp_path / "locked" / "model", quiet=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.excerpt_seconds": 3}, "excerpt"),
        ({"train.excerpt_seconds": 0.05}, "n_fft"),
        ({"model.sample_rate": 16000}, "sample_rate"),
        ({"model.channels": 1}, "channel"),
    ],
)
def test_profile_and_data_must_fit(root: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(make_profile().updated(settings), root, tmp_path / "model", quiet=True)
    assert not (tmp_path / "model").exists()


def test_a_damaged_file_is_named_before_anything_is_written(tmp_path: Path) -> None:
    root = helpers.make_database(tmp_path / "database", seconds=1.2, sample_rate=8000)
    samples = read_database(root, MODEL["targets"])
    broken = root / "valid" / "song01" / "drums.wav"
    broken.write_bytes(broken.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"valid/song01/drums.wav") as error:
        train(make_profile(), samples, tmp_path / "model", quiet=True)
    assert "\n" not in str(error.value)
    (root / "train" / "song00" / "vocals.wav").unlink()
    with pytest.raises(InputError, match=r"train/song00/vocals.wav"):
        train(make_profile(), samples, tmp_path / "model", quiet=True)
    assert not (tmp_path / "model").exists()


def test_a_file_that_breaks_underway_is_named_and_the_run_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = helpers.make_database(tmp_path / "database", seconds=1.2, sample_rate=8000)
    broken, output = root / "valid" / "song01" / "drums.wav", tmp_path / "model"
    content = broken.read_bytes()
    with monkeypatch.context() as patch:
        before_step(patch, 1, lambda _: broken.write_bytes(content[:1000]))
        with pytest.raises(InputError, match=r"valid/song01/drums.wav: truncated.*; resuming \(--resume\)") as error:
            train(make_profile(epochs=1), root, output, quiet=True)
    assert "\n" not in str(error.value)
    broken.write_bytes(content)
    assert len(train(make_profile(epochs=1), root, output, resume=True, quiet=True).history) == 1
