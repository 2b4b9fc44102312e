from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile as sf

from umx_model.data.track_folder import read_database
from umx_model.errors import InputError
from umx_model.profile import Profile
from umx_model.train import statistics

PROFILE = Profile.model_validate(
    {
        "model": {"targets": ["vocals", "drums"], "sample_rate": 8000, "n_fft": 512, "hop_length": 256},
        "train": {"excerpt_seconds": 0.5},
    }
)


def mixtures(root: Path) -> list[np.ndarray]:
    samples = sorted((root / "train").iterdir())
    return [sum(sf.read(sample / f"{target}.wav")[0] for target in ("vocals", "drums")) for sample in samples]


def levels(mixture: np.ndarray, piece: int) -> np.ndarray:
    """Magnitudes averaged over channels of successive pieces, [frames, bins]."""
    frames = []
    for start in range(0, len(mixture) - 511, piece):
        x = mixture[start : start + piece]
        _, _, z = scipy.signal.stft(x, window="hann", nperseg=512, noverlap=256, boundary=None, padded=False, axis=0)
        frames.append(np.abs(z).mean(axis=1).T * scipy.signal.get_window("hann", 512).sum())
    return np.concatenate(frames)


def test_equal_scipys_over_all_frames(tmp_path: Path, make_database: Callable[..., Path]) -> None:
    # 1.33 s: pieces of 4000, 4000 and 2640 samples; of 4000, 4000 and 300 in a second database, where the last is none.
    for seconds in (1.33, 1.0375):
        root = make_database(tmp_path / f"{seconds}", seconds=seconds, sample_rate=8000)
        samples = read_database(root, PROFILE.model.targets)["train"]
        mean, std = statistics.input_statistics(PROFILE, samples, quiet=True)
        expected = np.concatenate([levels(mixture, 4000) for mixture in mixtures(root)])
        np.testing.assert_allclose(mean, expected.mean(axis=0), rtol=1e-4, atol=1e-5)
        floored = np.maximum(expected.std(axis=0), 1e-4 * expected.std(axis=0).max())
        np.testing.assert_allclose(std, floored, rtol=1e-3, atol=1e-5)


def test_a_large_database_is_measured_in_part(
    tmp_path: Path, make_database: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_database(tmp_path, splits={"train": 6, "valid": 1}, seconds=1, sample_rate=8000)
    samples = read_database(root, PROFILE.model.targets)["train"]
    monkeypatch.setattr(statistics, "MAX_PIECES", 4)  # of 2 pieces each
    mean, _ = statistics.input_statistics(PROFILE, samples, quiet=True)
    chosen = [mixtures(root)[index] for index in (0, 3)]
    np.testing.assert_allclose(mean, np.concatenate([levels(m, 4000) for m in chosen]).mean(axis=0), rtol=1e-4)


def test_valid_samples_are_read_but_not_measured(tmp_path: Path, make_database: Callable[..., Path]) -> None:
    samples = read_database(make_database(tmp_path, seconds=1, sample_rate=8000), PROFILE.model.targets)
    alone = statistics.input_statistics(PROFILE, samples["train"], quiet=True)
    together = statistics.input_statistics(PROFILE, samples["train"], samples["valid"], quiet=True)
    np.testing.assert_array_equal(together, alone)
    broken = tmp_path / "valid" / "song01" / "drums.wav"
    broken.write_bytes(broken.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"valid/song01/drums.wav: truncated"):
        statistics.input_statistics(PROFILE, samples["train"], samples["valid"], quiet=True)


def test_silence_is_refused(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / split / "song").mkdir(parents=True)
        for target in ("vocals", "drums"):
            sf.write(tmp_path / split / "song" / f"{target}.wav", np.zeros((8000, 2)), 8000)
    samples = read_database(tmp_path, PROFILE.model.targets)["train"]
    with pytest.raises(InputError, match="silent"):
        statistics.input_statistics(PROFILE, samples, quiet=True)
