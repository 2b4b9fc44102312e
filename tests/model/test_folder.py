"""Weights as half as many bytes."""

from pathlib import Path

import h5py
import numpy as np

from umx_model.model.folder import WEIGHTS, read_model, write_model_folder
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.profile import ModelProfile, Profile

PROFILE = Profile(
    model=ModelProfile(targets=("a", "b"), n_fft=512, hop_length=256, hidden_size=64, layers=2, normalize_level=True)
)


def test_half_rounds_matrices_and_nothing_else(tmp_path: Path) -> None:
    spectral_filter = get_joint_spectral_filter(PROFILE.model)
    rng = np.random.default_rng(0)
    for weight in spectral_filter.weights:
        weight.assign(rng.normal(1, 0.3, weight.shape))
    full = write_model_folder(tmp_path / "full", spectral_filter, PROFILE, saved_model=False)
    half = write_model_folder(tmp_path / "half", spectral_filter, PROFILE, saved_model=False, half=True)
    assert full.weights_sha256 != half.weights_sha256
    assert sorted(path.name for path in (tmp_path / "half").iterdir()) == [WEIGHTS, "profile.json"]
    sizes = [(tmp_path / folder / WEIGHTS).stat().st_size for folder in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]

    loaded, profile = read_model(tmp_path / "half")
    assert profile == half
    for before, after in zip(spectral_filter.weights, loaded.spectral_filter.weights, strict=True):
        assert after.dtype == "float32"
        expected = before.numpy().astype(np.float16) if len(before.shape) > 1 else before.numpy()
        np.testing.assert_array_equal(after.numpy(), expected)


def test_half_keeps_the_names(tmp_path: Path) -> None:
    def names(folder: str) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        with h5py.File(tmp_path / folder / WEIGHTS) as file:
            file.visititems(lambda name, item: found.update({name: getattr(item, "shape", ())}))
        return found

    spectral_filter = get_joint_spectral_filter(PROFILE.model)
    for half in (False, True):
        write_model_folder(tmp_path / str(half), spectral_filter, PROFILE, saved_model=False, half=half)
    assert names("True") == names("False")
