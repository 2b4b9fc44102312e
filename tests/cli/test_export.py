"""`umx-pro export`."""

import numpy as np
import tensorflow as tf

from umx_model.model.folder import read_model
from umx_model.profile import Profile


def test_exports(model, umx_pro, tmp_path):
    code, out, err = umx_pro("export", model, "-o", tmp_path / "served" / "1", "--niter", 0, "--softmask", "--tflite")
    assert (code, err) == (0, "")
    folder = tmp_path / "served" / "1"
    assert out.splitlines() == [
        f"SavedModel: {folder}, vocals, drums, bass",
        f"TFLite:     {folder / 'spectral_filter.tflite'}",
    ]
    profile = Profile.read(folder / "assets.extra").model
    assert (profile.niter, profile.softmask) == (0, True)
    mixture = np.random.default_rng(0).normal(0, 0.1, (1, 2000, 2)).astype(np.float32)
    served = tf.saved_model.load(str(folder)).signatures["serving_default"](mixture=tf.constant(mixture))
    expected = read_model(model, niter=0, softmask=True)[0](mixture)
    np.testing.assert_allclose(served["drums"], expected[..., 1], atol=1e-5)
    assert tf.lite.Interpreter(str(folder / "spectral_filter.tflite")).get_signature_list()

    code, out, err = umx_pro("export", model, "--output", folder)
    assert (code, out) == (2, "")
    assert err == f"umx-pro: error: {folder}: exists already; remove it or choose another folder to export to\n"


def test_refuses_what_is_no_model(umx_pro, tmp_path):
    code, _, err = umx_pro("export", tmp_path / "missing", "-o", tmp_path / "out")
    assert code == 2
    assert err.startswith(f"umx-pro: error: {tmp_path}/missing: no such model")
    assert not list(tmp_path.iterdir())
