"""Converted Open-Unmix models against what Open-Unmix estimates (`golden/`, made by `make_golden.py`)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import checkpoint_files as checkpoints
import numpy as np
import pytest
import tensorflow as tf

from umx_model.cli import main
from umx_model.convert.open_unmix import convert_open_unmix
from umx_model.convert.torch_checkpoint import read_checkpoint
from umx_model.errors import InputError
from umx_model.inference.restore import load_separator
from umx_model.model.folder import read_model
from umx_model.profile import Profile

GOLDEN = Path(__file__).parent / "golden"
MODELS = ["stereo", "speech-legacy", "unidirectional-legacy"]


def relative_rms(x: np.ndarray, reference: np.ndarray) -> float:
    assert x.shape == reference.shape
    return float(np.sqrt(np.mean((x - reference) ** 2) / np.mean(reference**2)))


def inputs(name: str, expected: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What `make_golden.py` gave to Open-Unmix: magnitudes [frames, bins, channels], mixture [samples, channels]."""
    random = np.random.RandomState(0)
    magnitude = random.uniform(0, 3, expected["magnitudes"].shape[:-1]).astype(np.float32)
    mixture = random.uniform(-0.9, 0.9, expected["waveforms_0"].shape[:-1]).astype(np.float32)
    return magnitude, mixture


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the stereo checkpoints, to be damaged."""
    folder = tmp_path / "open-unmix"
    shutil.copytree(GOLDEN / "stereo", folder)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_estimates_what_open_unmix_estimates(name: str, tmp_path: Path) -> None:
    profile = convert_open_unmix(GOLDEN / name, tmp_path / "model")
    expected = dict(np.load(GOLDEN / name / "expected.npz"))
    magnitude, mixture = inputs(name, expected)
    for niter in (0, 1):
        model, read = read_model(tmp_path / "model", niter=niter)
        assert read.model == profile.model
        magnitudes = model.spectral_filter(tf.constant(magnitude[None])).numpy()[0]
        np.testing.assert_allclose(magnitudes, expected["magnitudes"], rtol=1e-4, atol=1e-5)
        if f"waveforms_{niter}" in expected:
            waveforms = model(tf.constant(mixture[None])).numpy()[0]
            for target in range(len(profile.model.targets)):
                reference = expected[f"waveforms_{niter}"][:, :, target]
                assert relative_rms(waveforms[..., target], reference) < 1e-3, profile.model.targets[target]


def test_profiles_say_what_the_networks_are(tmp_path: Path) -> None:
    stereo, speech, unidirectional = (convert_open_unmix(GOLDEN / name, tmp_path / name).model for name in MODELS)
    assert stereo.targets == ("vocals", "drums")  # not by name
    assert (stereo.sample_rate, stereo.channels, stereo.n_fft, stereo.hop_length) == (8000, 2, 128, 32)
    assert (stereo.hidden_size, stereo.layers, stereo.bandwidth, stereo.unidirectional) == (8, 3, 3000.0, False)
    assert (stereo.niter, stereo.softmask, stereo.window_frames) == (1, False, 300)
    assert speech.targets == ("speech", "noise")
    assert (speech.sample_rate, speech.channels, speech.n_fft, speech.hop_length) == (16000, 1, 1024, 512)
    assert (speech.hidden_size, speech.bandwidth) == (4, 16000.0)
    assert (unidirectional.layers, unidirectional.unidirectional) == (2, True)
    assert unidirectional.bandwidth == 4000.0


def test_profile_says_where_the_weights_are_from(tmp_path: Path) -> None:
    convert_open_unmix(GOLDEN / "stereo", tmp_path / "model", license="CC-BY-NC-SA-4.0")
    profile = Profile.read(tmp_path / "model")
    assert profile.license == "CC-BY-NC-SA-4.0"
    assert profile.made_with == {"openunmix": "commit fd9c753"}


def test_a_flag_that_open_unmix_ignored_is_ignored(source: Path, tmp_path: Path) -> None:
    # Its training script builds a bidirectional network whatever --unidirectional says.
    for target in ("vocals", "drums"):
        edit(source / f"{target}.json", lambda document: document["args"].update(unidirectional=True))
    assert not convert_open_unmix(source, tmp_path / "model").model.unidirectional


def test_bandwidth_follows_the_weights(source: Path, tmp_path: Path) -> None:
    # As after fine-tuning a network of another bandwidth: 3000 Hz are 48 steps of 62.5 Hz.
    edit(source / "vocals.json", lambda document: document["args"].update(bandwidth=16000))
    assert convert_open_unmix(source, tmp_path / "model").model.bandwidth == 3000.0


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["convert", "open-unmix", str(GOLDEN / "stereo"), "--output", str(tmp_path / "model")])
    assert stop.value.code == 0
    assert str(tmp_path / "model") in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (9000, 2)).astype(np.float32)
    estimates = load_separator(tmp_path / "model").separate(noise)
    assert list(estimates) == ["vocals", "drums"]
    assert all(estimate.shape == noise.shape for estimate in estimates.values())


def test_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["convert", "open-unmix", str(tmp_path / "none"), "--output", str(tmp_path / "model")])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"umx-pro: error: {tmp_path / 'none'}: no such folder")


def edit(file: Path, change: Callable[[dict], object]) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def edit_tensors(file: Path, change: Callable[[dict], object]) -> None:
    tensors = read_checkpoint(file)
    change(tensors)
    file.write_bytes(checkpoints.zip_checkpoint(tensors))


def test_rewritten_checkpoint_is_the_same(source: Path, tmp_path: Path) -> None:
    edit_tensors(source / "vocals.pth", lambda tensors: None)
    convert_open_unmix(source, tmp_path / "rewritten")
    convert_open_unmix(GOLDEN / "stereo", tmp_path / "original")
    rewritten, original = (read_model(tmp_path / name)[0].weights for name in ("rewritten", "original"))
    assert len(rewritten) == len(original) > 0
    for one, other in zip(rewritten, original, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no separator.json": (lambda folder: (folder / "separator.json").unlink(), "separator.json: no such file"),
    "no settings": (lambda folder: (folder / "vocals.json").unlink(), "vocals.pth: has no <target>.json"),
    "no checkpoint": (lambda folder: (folder / "vocals.pth").unlink(), "vocals.json: has no vocals.pth"),
    "nothing": (lambda folder: [path.unlink() for path in folder.iterdir()], "no <target>\\*.pth in it"),
    "two checkpoints": (
        lambda folder: shutil.copy(folder / "vocals.pth", folder / "vocals-b62c91ce.pth"),
        "vocals-b62c91ce.pth and .*vocals.pth are both of target vocals",
    ),
    "not JSON": (lambda folder: (folder / "vocals.json").write_text("{"), "vocals.json: not JSON"),
    "JSON list": (lambda folder: (folder / "vocals.json").write_text("[]"), "vocals.json: .* expected a JSON object"),
    "no args": (lambda folder: edit(folder / "drums.json", lambda d: d.pop("args")), 'drums.json: no "args"'),
    "no hidden_size": (
        lambda folder: edit(folder / "drums.json", lambda d: d["args"].pop("hidden_size")),
        "drums.json: hidden_size is None, expected a whole number",
    ),
    "text for a number": (
        lambda folder: edit(folder / "separator.json", lambda d: d.update(nhop="32")),
        "separator.json: nhop is '32', expected a whole number",
    ),
    "NaN for a number": (
        lambda folder: edit(folder / "separator.json", lambda d: d.update(sample_rate=float("nan"))),
        "separator.json: sample_rate is nan, expected a whole number",
    ),
    "negative": (
        lambda folder: edit(folder / "separator.json", lambda d: d.update(nfft=-128)),
        "separator.json: nfft is -128, expected at least 1",
    ),
    "contradiction": (
        lambda folder: edit(folder / "drums.json", lambda d: d["args"].update(hidden_size=16)),
        "drums.json: hidden_size is 16, expected 8",
    ),
    "impossible": (
        lambda folder: edit(folder / "separator.json", lambda d: d.update(sample_rate=8)),
        "sample_rate: Input should be greater than or equal to 1000",
    ),
    "missing tensor": (
        lambda folder: edit_tensors(folder / "vocals.pth", lambda t: t.pop("bn2.running_var")),
        r"vocals.pth: lacks bn2.running_var \[8\]",
    ),
    "missing layer": (
        lambda folder: edit_tensors(
            folder / "drums.pth", lambda t: [t.pop(name) for name in list(t) if "_l2_reverse" in name]
        ),
        r"drums.pth: lacks lstm.weight_ih_l2_reverse \[16, 8\], lstm.weight_hh_l2_reverse \[16, 4\]",
    ),
    "unknown tensor": (
        lambda folder: edit_tensors(folder / "vocals.pth", lambda t: t.update({"fc4.weight": np.zeros((2, 3))})),
        r"vocals.pth: has unknown fc4.weight \[2, 3\]",
    ),
    "misshapen tensor": (
        lambda folder: edit_tensors(folder / "vocals.pth", lambda t: t.update({"fc3.weight": np.zeros((130, 7))})),
        r"vocals.pth: has misshapen fc3.weight \[130, 7\] instead of \[130, 8\]",
    ),
    "misshapen input_mean": (
        lambda folder: edit_tensors(folder / "vocals.pth", lambda t: t.update({"input_mean": np.zeros(0)})),
        r"vocals.pth: has misshapen input_mean \[0\]",
    ),
    "other hidden size": (
        lambda folder: [
            edit(folder / f, lambda d: d["args"].update(hidden_size=6)) for f in ("vocals.json", "drums.json")
        ],
        r"vocals.pth: has misshapen fc1.weight \[8, 98\] instead of \[6, 98\]",
    ),
    "NaN": (
        lambda folder: edit_tensors(folder / "vocals.pth", lambda t: t.update({"bn1.weight": np.full(8, np.nan)})),
        "vocals.pth: bn1.weight holds NaN",
    ),
    "integers": (
        lambda folder: edit_tensors(folder / "vocals.pth", lambda t: t.update({"bn1.weight": np.ones(8, np.int64)})),
        "vocals.pth: bn1.weight holds NaN, infinity or integers",
    ),
    "a whole training state": (
        lambda folder: (folder / "vocals.pth").write_bytes(checkpoints.zip_pickle(b"\x80\x02}U\x05epochK\x07s.")),
        "vocals.pth: .*epoch is a int, expected a tensor",
    ),
    "cut short": (
        lambda folder: (folder / "vocals.pth").write_bytes((folder / "vocals.pth").read_bytes()[:20000]),
        "vocals.pth: not a checkpoint that can be read safely: damaged or cut short",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(kind: str, source: Path, tmp_path: Path) -> None:
    damage, message = DAMAGE[kind]
    damage(source)
    with pytest.raises(InputError, match=message) as error:
        convert_open_unmix(source, tmp_path / "model")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["open-unmix"]  # nothing half-written


def test_existing_output_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="model: exists already"):
        convert_open_unmix(GOLDEN / "stereo", tmp_path / "model")
    assert (tmp_path / "model" / "thesis.txt").read_text() == "mine"
    (tmp_path / "model" / "thesis.txt").unlink()
    convert_open_unmix(GOLDEN / "stereo", tmp_path / "model")


def test_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        convert_open_unmix(GOLDEN / "stereo", tmp_path / "file" / "model")
