"""Joined models: what their parts are, together."""

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from umx_model.errors import InputError
from umx_model.model.folder import read_model, write_model_folder
from umx_model.model.join import join, joined_profile
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.profile import Profile

RATE = 8000
MODEL = {
    "sample_rate": RATE,
    "n_fft": 512,
    "hop_length": 128,
    "bandwidth": 3500,
    "hidden_size": 8,
    "layers": 2,
    "niter": 0,
}


def write(folder: Path, targets: str, seed: int = 0, card: str | None = None, **settings: object) -> Path:
    """Write a model folder with random weights, also where they start as ones and zeros."""
    profile = Profile.model_validate({"model": {"targets": targets.split(","), **MODEL}}).updated(settings)
    keras.utils.set_random_seed(seed)
    spectral_filter = get_joint_spectral_filter(profile.model)
    for weight in spectral_filter.weights:
        weight.assign(weight + tf.random.uniform(weight.shape, 0.0, 0.2))
    write_model_folder(folder, spectral_filter, profile, saved_model=False)
    if card:
        (folder / "card.md").write_text(card)
    return folder


def describe(folder: Path, **entries: object) -> None:
    """Change entries of a model's profile."""
    Profile.parse({**Profile.read(folder).model_dump(mode="json"), **entries}).write(folder)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts")
    mixture = {"train.mixture_targets": "vocals,drums,bass"}
    write(root / "voice", "vocals", 1, card="Sings.", **mixture)
    write(root / "rest", "bass,drums", 2, **mixture)
    return root


@pytest.fixture
def parts(originals: Path, tmp_path: Path) -> list[Path]:
    return [shutil.copytree(originals / name, tmp_path / name) for name in ("voice", "rest")]


@pytest.fixture(scope="module")
def joint(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joint") / "model"
    join([originals / "voice", originals / "rest"], folder)
    return folder


@pytest.fixture(scope="module")
def mixture() -> np.ndarray:
    return 0.1 * np.random.default_rng(0).normal(size=(2, 5000, 2)).astype(np.float32)


def test_equals_its_parts(originals: Path, joint: Path, mixture: np.ndarray) -> None:
    model, profile = read_model(joint)
    assert profile.model.targets == ("vocals", "bass", "drums")
    estimates = model(mixture).numpy()
    expected = np.concatenate([read_model(originals / name)[0](mixture) for name in ("voice", "rest")], axis=-1)
    assert np.abs(expected).max() > 0.05
    assert np.abs(expected[..., 0] - expected[..., 1]).max() > 1e-3
    np.testing.assert_allclose(estimates, expected, atol=1e-6)
    served = tf.saved_model.load(str(joint / "saved_model")).signatures["serving_default"](mixture=mixture)
    np.testing.assert_allclose(served["bass"], expected[..., 1], atol=1e-5)


def test_weights_are_copied_exactly(originals: Path, joint: Path) -> None:
    model = read_model(joint)[0].spectral_filter
    for name in ("voice", "rest"):
        part = read_model(originals / name)[0]
        for target in part.profile.targets:
            there, here = (filters.get_layer(target).get_weights() for filters in (part.spectral_filter, model))
            assert len(there) > 10
            for one, other in zip(there, here, strict=True):
                np.testing.assert_array_equal(one, other)


def test_profile_tells_where_it_is_from(parts: list[Path], tmp_path: Path) -> None:
    describe(
        parts[0],
        license="MIT",
        made_with={"keras": "3.11.3", "numpy": "1"},
        data_fingerprint="abc",
        history=[{"epoch": 1, "valid_loss": 2, "valid_loss/vocals": 2}, {"epoch": 2, "valid_loss/vocals": 1}],
        scores={"vocals": 6.0},
    )
    describe(
        parts[1],
        made_with={"keras": "3.11.2", "numpy": "1"},
        data_fingerprint="abc",
        history=[{"epoch": 1, "valid_loss/drums": 3, "valid_loss/bass": 4, "seconds": 9}],
        scores={"drums": 5.0},
    )
    written = join(parts, tmp_path / "model")
    assert written == Profile.read(tmp_path / "model")
    assert written.license == "MIT AND NOASSERTION"
    assert written.made_with == {"keras": "3.11.3, 3.11.2", "numpy": "1"}
    assert written.data_fingerprint == "abc"
    assert written.history == (
        {"epoch": 1, "valid_loss/vocals": 2, "valid_loss/drums": 3, "valid_loss/bass": 4},
        {"epoch": 2, "valid_loss/vocals": 1},
    )
    assert written.scores == {"vocals": 6.0, "drums": 5.0}
    assert written.train.mixture_targets is None
    assert (tmp_path / "model" / "card.md").read_text().endswith("# vocals\n\nSings.\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "rest", "voice"]


def profile(targets: str, niter: int = 1, **entries: object) -> Profile:
    document = {"model": {"targets": targets.split(","), "niter": niter}, **entries}
    return Profile.parse(document)


def test_scores_with_em_are_not_the_joint_models() -> None:
    parts = profile("vocals", 0, scores={"vocals": 6.0}), profile("bass", 1, scores={"bass": 5.0})
    assert joined_profile(parts).scores == {}
    assert joined_profile(parts).model.niter == 0


def test_fingerprints_of_two_databases_are_none() -> None:
    assert joined_profile([profile("vocals", data_fingerprint="a"), profile("bass")]).data_fingerprint is None


def test_the_mixture_stays_where_a_target_is_missing() -> None:
    train = {"mixture_targets": ["vocals", "drums", "bass"]}
    joint = joined_profile([profile("drums", train=train), profile("vocals", train=train)])
    assert joint.model.targets == ("drums", "vocals")
    assert joint.mixture_targets == ("vocals", "drums", "bass")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model.hidden_size": 16}, "odd: does not go with .*voice: hidden_size 16, not 8; .*one profile$"),
        (
            {"model.sample_rate": 16000, "model.hop_length": 256},
            "sample_rate 16000, not 8000; hop_length 256, not 128",
        ),
        ({"model.n_fft": 1024}, "n_fft 1024, not 512"),
    ],
)
def test_refuses_models_that_differ(originals: Path, tmp_path: Path, settings: dict[str, object], message: str) -> None:
    write(tmp_path / "odd", "drums", **settings)
    with pytest.raises(InputError, match=message):
        join([originals / "voice", tmp_path / "odd"], tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_refuses(originals: Path, tmp_path: Path) -> None:
    voice, rest, model = originals / "voice", originals / "rest", tmp_path / "model"
    write(tmp_path / "more", "other,vocals")
    with pytest.raises(InputError, match="more: has the target 'vocals', and so has .*voice; name models of different"):
        join([voice, tmp_path / "more"], model)
    with pytest.raises(InputError, match="voice: has the target 'vocals', and so has .*voice"):
        join([voice, voice], model)
    with pytest.raises(InputError, match="expected two models or more, got 1"):
        join([voice], model)
    with pytest.raises(InputError, match="nowhere: no such model"):
        join([voice, tmp_path / "nowhere"], model)
    with pytest.raises(InputError, match="more: exists already"):
        join([voice, rest], tmp_path / "more")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/model: cannot be written"):
        join([voice, rest], tmp_path / "file" / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "more"]


def test_bridges(originals: Path, tmp_path: Path) -> None:
    """Of several targets they cannot be cut; of one they are none."""
    write(tmp_path / "bridged", "drums,other", **{"model.bridges": True})
    with pytest.raises(InputError, match="bridged: its targets were trained with bridges .*needs the others"):
        join([originals / "voice", tmp_path / "bridged"], tmp_path / "model")
    one = profile("drums").updated({"model.bridges": True})
    assert joined_profile([one, profile("vocals")]).model.bridges is False


def test_a_refiner(originals: Path, tmp_path: Path) -> None:
    """It knows the targets that it was trained with, and no others."""
    write(tmp_path / "refined", "drums,other", **{"model.refiner_channels": 2})
    with pytest.raises(InputError, match="refined: refines the masks of its targets together .*all of them in one"):
        join([originals / "voice", tmp_path / "refined"], tmp_path / "model")


def test_an_empty_folder_may_be_written_to(originals: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    join([originals / "voice", originals / "rest"], tmp_path / "model")
    assert (tmp_path / "model" / "saved_model").is_dir()
