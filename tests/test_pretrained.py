"""The models that come with the program: whole, small, licensed, and good on music that they have not heard."""

import os
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from examples.demo import example_path, read_stems, separate_with_shipped
from umx_model import load_separator
from umx_model.cli.common import DEFAULT_MODEL
from umx_model.data.resampling import resample
from umx_model.evaluation.whole_track import mdx_sdr
from umx_model.inference.separator import Separator
from umx_model.model.folder import WEIGHTS, read_model
from umx_model.pretrained import shipped_models
from umx_model.profile import Profile

MODELS = shipped_models()


def test_there_is_one_to_start_with() -> None:
    assert DEFAULT_MODEL in MODELS
    assert sum(os.path.getsize(os.path.join(folder, WEIGHTS)) for folder in MODELS.values()) < 60e6


@pytest.mark.parametrize("name", MODELS)
def test_says_what_it_is(name: str) -> None:
    folder = Path(MODELS[name])
    assert {path.name for path in folder.iterdir()} == {"profile.json", WEIGHTS, "card.md"}
    profile = Profile.read(folder)
    assert profile.license == "CC-BY-NC-SA-4.0"
    assert set(profile.scores) == set(profile.model.targets)
    card = (folder / "card.md").read_text()
    assert "umx-pro train " in card
    assert "CC BY-NC-SA 4.0" in card
    assert all(f"{score:.2f}" in card for score in profile.scores.values())
    # Nothing of the machine that it was made on.
    assert not re.search(r"/(work|tmp|home|root)/", card + (folder / "profile.json").read_text())


@pytest.mark.parametrize("name", MODELS)
def test_can_be_trained_again_by_its_profile(name: str) -> None:
    recipe = Profile.read(Path(__file__).parent.parent / "examples" / "profiles" / f"{name}.json")
    shipped = Profile.read(MODELS[name])
    assert (recipe.model, recipe.train) == (shipped.model, shipped.train)


@pytest.mark.parametrize("name", MODELS)
def test_matrices_are_stored_as_halves(name: str) -> None:
    kinds = set()
    with h5py.File(os.path.join(MODELS[name], WEIGHTS)) as file:
        file.visititems(lambda _, item: kinds.add((item.ndim > 1, item.dtype.name)) if hasattr(item, "ndim") else None)
    assert (True, "float16") in kinds
    assert (True, "float32") not in kinds


@pytest.fixture(scope="module")
def stems() -> np.ndarray:
    """Six seconds of a song of MUSDB18's test half: vocals and accompaniment, `[samples, channels, 2]`."""
    found, rate = read_stems(example_path())
    assert rate == 44100
    vocals = found.pop("vocals")
    return np.stack([vocals, sum(found.values())], axis=-1)


@pytest.fixture(scope="module")
def separator(tmp_path_factory: pytest.TempPathFactory) -> Separator:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # remembers that a licence was mentioned
        return load_separator(DEFAULT_MODEL)


def sdr(separator: Separator, stems: np.ndarray, rate: int = 44100) -> np.ndarray:
    """Of the whole excerpt, vocals and accompaniment."""
    estimates = separator.separate(stems.sum(axis=-1), rate)
    return scaled_sdr(stems, np.stack([estimates["vocals"], estimates["accompaniment"]], axis=-1))


def scaled_sdr(references: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    """As if the references were full scale: the score has an epsilon, which quiet music would feel."""
    peak = np.abs(references).max()
    return mdx_sdr(references / peak, estimates / peak)


def test_separates_music_that_it_has_not_heard(separator: Separator, stems: np.ndarray) -> None:
    mixture = np.broadcast_to(stems.sum(axis=-1, keepdims=True), stems.shape)
    assert np.all(sdr(separator, stems) > mdx_sdr(stems, mixture) + np.array([9, 2.3]))  # which begin at -7 and 7 dB


def test_five_targets_of_it() -> None:
    """Guitar and `other` together are what MUSDB18 calls `other`."""
    targets = ("vocals", "bass", "drums", "other")
    found, _ = read_stems(example_path())
    references = np.stack([found[target] for target in targets], axis=-1)
    mixture = references.sum(axis=-1)
    estimates = load_separator("five-targets").separate(mixture)
    estimates["other"] += estimates.pop("guitar")
    estimated = np.stack([estimates[target] for target in targets], axis=-1)
    before = np.broadcast_to(mixture[..., np.newaxis], references.shape)
    gains = scaled_sdr(references, estimated) - scaled_sdr(references, before)
    assert np.all(gains > [8, 4, 8, 4])


def test_the_saved_model_gives_the_same(separator: Separator, stems: np.ndarray) -> None:
    """As it is exported and served, with all frames at once."""
    mixture = stems.sum(axis=-1)
    model, _ = read_model(MODELS[DEFAULT_MODEL])
    at_once = model(mixture[np.newaxis]).numpy()[0]
    estimates = separator.separate(mixture)
    for index, target in enumerate(separator.targets):
        np.testing.assert_allclose(at_once[..., index], estimates[target], atol=1e-3)


def test_separates_quiet_music_alike(separator: Separator, stems: np.ndarray) -> None:
    np.testing.assert_allclose(sdr(separator, 0.1 * stems), sdr(separator, stems), atol=0.05)


def test_separates_mono_and_other_rates(separator: Separator, stems: np.ndarray) -> None:
    plain = sdr(separator, stems)
    mono = stems.mean(axis=1, keepdims=True)
    assert np.all(sdr(separator, mono) > plain - 1.5)
    low = np.stack([resample(stems[..., index], 44100, 22050) for index in range(2)], axis=-1)
    assert np.all(sdr(separator, low, 22050) > plain - 1.5)


def test_hears_little_pieces_of_a_long_one_alike(separator: Separator, stems: np.ndarray) -> None:
    """Each piece is brought to one level by itself; here a loud song comes after a quiet one."""
    both = np.concatenate([0.1 * stems, stems])
    pieces = load_separator(DEFAULT_MODEL, chunk_seconds=len(stems) / 44100)
    np.testing.assert_allclose(sdr(pieces, both)[1], sdr(separator, both)[1], atol=0.5)


def test_the_demo_shows_it(stems: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    separate_with_shipped({"vocals": stems[..., 0], "rest": stems[..., 1]}, 44100, str(tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["accompaniment.wav", "vocals.wav"]
    assert re.search(r"^vocals( +-?\d+\.\d\d){2} +\+\d", capsys.readouterr().out, re.M)


def test_singing_and_playing_alone(separator: Separator, stems: np.ndarray) -> None:
    for index, absent in enumerate(("accompaniment", "vocals")):
        alone = stems[..., index]
        leak = separator.separate(alone)[absent]
        assert 10 * np.log10(np.sum(leak**2) / np.sum(alone**2)) < -10
