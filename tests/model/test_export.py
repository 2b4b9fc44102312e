"""Exported models in programs that have TensorFlow alone, against the Keras model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from umx_model.errors import InputError
from umx_model.model import export as exporting
from umx_model.model.export import TFLITE, export, export_saved_model
from umx_model.model.spectral_filter import (
    JointSpectralFilter,
    SpectralFilterLayer,
    get_joint_spectral_filter,
    register_spectral_filter,
)
from umx_model.model.umx import UMX
from umx_model.profile import ModelProfile, Profile

TARGETS = ("vocals", "drums")


def make_profile(**settings) -> Profile:
    sizes = {"n_fft": 64, "hop_length": 16, "sample_rate": 8000, "bandwidth": 3000.0, "hidden_size": 6, "layers": 2}
    return Profile(model=ModelProfile(**{"targets": TARGETS, **sizes, **settings}))


def make_model(profile: Profile, kind=get_joint_spectral_filter, **settings) -> UMX:
    """A model with random weights, statistics and scales, whose estimates change from frame to frame."""
    keras.utils.set_random_seed(2)
    spectral_filter = kind(profile.model)
    generator = np.random.default_rng(2)
    for variable in spectral_filter.variables:
        if any(part in variable.path for part in ("lstm", "norm", "input", "output", "correction")):
            variable.assign(generator.uniform(0.5 if "variance" in variable.path else -1.0, 1.5, variable.shape))
    return UMX(spectral_filter, **settings)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape[0]).normal(0, 0.2, shape).astype(np.float32)


def in_plain_tensorflow(script: str, folder: Path) -> None:
    """Run a script with TensorFlow and NumPy in a process of its own, and hold its promises."""
    script = "import sys, numpy as np, tensorflow as tf\n" + textwrap.dedent(script)
    script += "\nassert 'umx_model' not in sys.modules\n"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "custom gradients" not in result.stderr


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, UMX, Profile]:
    """A SavedModel with two EM iterations, where its profile has one; the model and the profile that it is of."""
    profile = make_profile()
    model, folder = make_model(profile, niter=2), tmp_path_factory.mktemp("export") / "saved"
    export_saved_model(model, profile, folder)
    return folder, model, profile


def test_saved_model_in_plain_tensorflow(exported, tmp_path):
    folder, model, profile = exported
    shapes = [(1, 1, 2), (1, 5000, 2), (3, 700, 2), (2, 31, 2)]
    for index, shape in enumerate(shapes):
        np.save(tmp_path / f"mixture{index}.npy", noise(*shape))
    np.save(tmp_path / "magnitude.npy", np.abs(noise(2, 9, 33, 2)))
    in_plain_tensorflow(
        f"""
        loaded = tf.saved_model.load({str(folder)!r})
        separate, estimate = loaded.signatures["serving_default"], loaded.signatures["spectral_filter"]
        for index in range(4):
            np.savez(f"estimates{{index}}.npz", **separate(mixture=tf.constant(np.load(f"mixture{{index}}.npy"))))
        np.savez("magnitudes.npz", **estimate(magnitude=tf.constant(np.load("magnitude.npy"))))
        for signature in (separate, estimate):
            graph = signature.graph.as_graph_def()
            functions = graph.library.function
            ops = {{node.op for nodes in (graph.node, *(f.node_def for f in functions)) for node in nodes}}
            assert not [op for op in ops if "cudnn" in op.lower() or "Xla" in op], ops
            assert not [f.signature.name for f in functions if f.attr["_XlaMustCompile"].b]
            assert "BlockLSTMV2" in ops
        """,
        tmp_path,
    )
    for index, shape in enumerate(shapes):
        found, expected = np.load(tmp_path / f"estimates{index}.npz"), model(noise(*shape)).numpy()
        assert set(found.files) == set(TARGETS)
        for target, estimate in zip(TARGETS, np.moveaxis(expected, -1, 0), strict=True):
            np.testing.assert_allclose(found[target], estimate, atol=1e-5)
    found, expected = np.load(tmp_path / "magnitudes.npz"), model.spectral_filter(np.abs(noise(2, 9, 33, 2))).numpy()
    assert expected.std() > 0.01
    np.testing.assert_allclose(found["estimates"], expected, atol=1e-5)
    assert Profile.read(folder / "assets.extra") == profile.updated({"model.niter": 2})


def test_signatures_as_saved_model_cli_shows_them(exported):
    program = Path(sys.executable).with_name("saved_model_cli")
    command = [program, "show", "--dir", exported[0], "--all"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    signatures = re.split(r"signature_def\['(\w+)'\]:", shown.partition("Concrete Functions")[0])
    found = dict(zip(signatures[1::2], signatures[2::2], strict=True))
    waveform, magnitude = "(-1, -1, 2)", "(-1, -1, 33, 2)"
    for signature, inputs, outputs in [
        ("serving_default", {"mixture": waveform}, dict.fromkeys(TARGETS, waveform)),
        ("spectral_filter", {"magnitude": magnitude}, {"estimates": "(-1, -1, 33, 2, 2)"}),
    ]:
        tensor = r"(\w+)\['(\w+)'\] tensor_info:\s+dtype: (\w+)\s+shape: (\([-\d, ]+\))"
        expected = [("inputs", name, "DT_FLOAT", shape) for name, shape in inputs.items()]
        expected += [("outputs", name, "DT_FLOAT", shape) for name, shape in outputs.items()]
        assert sorted(re.findall(tensor, found[signature])) == sorted(expected)
        assert "tensorflow/serving/predict" in found[signature]


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, get_joint_spectral_filter),
        ({"unidirectional": True, "targets": ("vocals",)}, JointSpectralFilter),
        ({"refiner_channels": 4}, get_joint_spectral_filter),
    ],
)
def test_tflite_equals_keras(tmp_path, settings, kind):
    profile = make_profile(**settings)
    model = make_model(profile, kind)
    (tmp_path / TFLITE).write_bytes(exporting.to_tflite(model))
    for frames in (1, 2, 100):
        np.save(tmp_path / f"{frames}.npy", np.abs(noise(1, frames, 33, profile.model.network_channels)))
    in_plain_tensorflow(
        f"""
        interpreter = tf.lite.Interpreter("{TFLITE}")
        ops = {{op["op_name"] for op in interpreter._get_ops_details()}}
        assert not [op for op in ops if op.startswith("Flex") or op == "CUSTOM"], ops
        assert list(interpreter.get_signature_list()) == ["spectral_filter"]
        run = interpreter.get_signature_runner("spectral_filter")
        for frames in (100, 1, 2, 100):
            np.savez(f"{{frames}}.npz", **run(magnitude=np.load(f"{{frames}}.npy")))
        """,
        tmp_path,
    )
    for frames in (1, 2, 100):
        found = np.load(tmp_path / f"{frames}.npz")
        expected = model.spectral_filter(np.load(tmp_path / f"{frames}.npy")).numpy()
        np.testing.assert_allclose(found["estimates"], expected, atol=1e-5)


def test_exports_all_or_nothing(tmp_path, monkeypatch):
    profile = make_profile(targets=("vocals",))
    model, folder = make_model(profile), tmp_path / "exported"

    def fail(model):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "to_tflite", fail)
        with pytest.raises(InputError, match=r"exported: cannot export here \(No space left on device\)"):
            export(model, profile, folder, tflite=True)
    assert not list(tmp_path.iterdir())

    folder.mkdir()
    export(model, profile, folder, tflite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported"]
    assert {"saved_model.pb", "variables", "assets.extra", TFLITE} <= {path.name for path in folder.iterdir()}
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for taken in (folder, folder / TFLITE):
        with pytest.raises(InputError, match=f"{taken}: exists already; remove it or choose another"):
            export(model, profile, taken)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_other_architectures(tmp_path):
    @register_spectral_filter("test_export_gain")
    class Gain(SpectralFilterLayer):
        @classmethod
        def from_profile(cls, profile, **kwargs):
            return cls(**kwargs)

        def build(self, input_shape):
            self.gain = self.add_weight(name="gain", shape=(), initializer="ones")

        def call(self, magnitude):
            return magnitude * self.gain

    profile = make_profile(architecture="test_export_gain", targets=("vocals",))
    model = make_model(profile)
    model.spectral_filter.variables[0].assign(0.5)
    export(model, profile, tmp_path / "exported", tflite=True)
    magnitude = np.abs(noise(1, 4, 33, 2))
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    estimates = loaded.signatures["spectral_filter"](magnitude=tf.constant(magnitude))["estimates"]
    np.testing.assert_allclose(estimates[..., 0], magnitude / 2)
    run = tf.lite.Interpreter(str(tmp_path / "exported" / TFLITE)).get_signature_runner()
    np.testing.assert_allclose(run(magnitude=magnitude)["estimates"][..., 0], magnitude / 2)
