"""The Evaluator's scores and blessing."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tfx.components.evaluator import executor as stock
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import Artifact, artifact_utils, standard_artifacts

from components.evaluator import executor
from components.evaluator.component import Evaluator
from components.evaluator.executor import Executor, objections
from data_schema.index import read_index
from umx_model.errors import InputError
from umx_model.evaluation.evaluate import TargetScore, evaluate_sample
from umx_model.inference.restore import load_separator
from umx_model.model.folder import write_model_folder
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.profile import ModelProfile, Profile


@pytest.mark.parametrize(
    ("estimates", "floor_db", "baseline", "expected"),
    [
        ((1.0, 1.0), 0.0, None, []),
        ((1.0, 0.0), 0.0, None, ["drums: SDR 0.00 dB is +0.00 dB from"]),  # what doing nothing gets
        ((1.0, float("nan")), 0.0, None, ["drums: SDR nan dB"]),
        ((1.0, 3.0), 2.0, None, ["vocals: SDR 1.00 dB is +1.00 dB from"]),
        ((1.0, 1.0), -5.0, (1.0, 0.5), []),
        ((1.0, 1.0), -5.0, (1.5, 0.5), ["vocals: SDR 1.00 dB is below the baseline's 1.50 dB"]),
        ((-1.0, 1.0), 0.0, (0.5, 0.5), ["vocals: SDR -1.00 dB is -1.00 dB from", "vocals: SDR -1.00 dB is below"]),
    ],
)
def test_objections(estimates: tuple, floor_db: float, baseline: tuple | None, expected: list[str]) -> None:
    found = objections(scores(estimates), floor_db, scores(baseline) if baseline else None)
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


def test_silence_is_named() -> None:
    silent = {target: TargetScore(float("nan"), float("nan")) for target in ("vocals", "drums")}
    message = "no 1 s window of test has sound in every target; add samples"
    assert objections(silent, -100.0, silent, split="test") == [message]


def scores(estimates: tuple) -> Mapping[str, TargetScore]:
    return {target: TargetScore(0.0, value) for target, value in zip(("vocals", "drums"), estimates, strict=True)}


def test_vertex_finds_its_blessing() -> None:
    # What TFX's resolver of the latest blessed model looks for there.
    assert issubclass(Executor, stock.Executor)
    assert Evaluator.SPEC_CLASS.OUTPUTS["blessing"].type is standard_artifacts.ModelBlessing


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> standard_artifacts.Examples:
    import helpers

    from components.sample_gen.executor import Executor as SampleGen

    folder = tmp_path_factory.mktemp("index")
    data = helpers.make_database(folder / "db", {"train": 1, "valid": 2}, sample_rate=8000, seconds=2.5, channels=1)
    examples = standard_artifacts.Examples()
    examples.uri = str(folder / "index")
    properties = {"data": str(data), "targets": "vocals,drums", "data_version": ""}
    context = BaseBeamExecutor.Context(tmp_dir=str(folder / "tmp"), unique_id="1")
    SampleGen(context).Do({}, {"examples": [examples]}, properties)
    return examples


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[[int], standard_artifacts.Model]:
    def make(seed: int) -> standard_artifacts.Model:
        import keras

        keras.utils.set_random_seed(seed)
        profile = ModelProfile(
            targets=("vocals", "drums"), sample_rate=8000, channels=1, n_fft=64, hop_length=32, hidden_size=4, layers=1
        )
        model = standard_artifacts.Model()
        model.id = seed
        model.uri = str(tmp_path / f"model{seed}")
        write_model_folder(model.uri, get_joint_spectral_filter(profile), Profile(model=profile), saved_model=False)
        return model

    return make


def test_scores_and_blessing(
    index: standard_artifacts.Examples, make_model: Callable[[int], standard_artifacts.Model], tmp_path: Path
) -> None:
    model, baseline = make_model(1), make_model(2)
    samples = read_index(artifact_utils.get_split_uri([index], "valid"))
    separators = [load_separator(one.uri) for one in (model, baseline)]
    expected = {one.id: [evaluate_sample(separator, one) for separator in separators] for one in samples}
    better = all(
        sum(pair[0].estimates[target] - pair[1].estimates[target] for pair in expected.values()) >= 0
        for target in ("vocals", "drums")
    )
    inputs: dict[str, list[Artifact]] = {"examples": [index], "model": [model], "baseline_model": [baseline]}
    report, blessing = run(inputs, -100.0, tmp_path)
    assert report["split"] == "valid"
    assert report["blessed"] is better
    assert bool(report["objections"]) is not better
    for sample in report["samples"]:
        for target, figure in expected[sample["id"]][0].estimates.items():
            assert sample["estimates"][target] == pytest.approx(figure, abs=1e-4)
    for target in ("vocals", "drums"):
        middle = sum(pair[1].estimates[target] for pair in expected.values()) / 2  # median of two
        assert report["baseline"][target]["estimates"] == pytest.approx(middle, abs=1e-4)
    assert blessing.get_int_custom_property("blessed") == int(better)
    assert blessing.get_string_custom_property("current_model") == model.uri
    assert blessing.get_int_custom_property("current_model_id") == 1
    assert blessing.get_int_custom_property("baseline_model_id") == 2
    assert [path.name for path in Path(blessing.uri).iterdir()] == ["BLESSED" if better else "NOT_BLESSED"]


def test_no_baseline_on_the_first_run(
    index: standard_artifacts.Examples, make_model: Callable[[int], standard_artifacts.Model], tmp_path: Path
) -> None:
    inputs: dict[str, list[Artifact]] = {"examples": [index], "model": [make_model(1)], "baseline_model": []}
    report, blessing = run(inputs, -100.0, tmp_path)
    assert report["blessed"]
    assert "baseline" not in report
    assert not blessing.has_custom_property("baseline_model")


def test_damaged_model_is_told_once(
    index: standard_artifacts.Examples, make_model: Callable[[int], standard_artifacts.Model], tmp_path: Path
) -> None:
    model = make_model(1)
    Path(model.uri, "model.weights.h5").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"model1") as caught:
        run({"examples": [index], "model": [model]}, 0.0, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_failure_is_one_line(
    index: standard_artifacts.Examples,
    make_model: Callable[[int], standard_artifacts.Model],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(executor, "evaluate_sample", fail)
    with pytest.raises(RuntimeError) as caught:
        run({"examples": [index], "model": [make_model(1)]}, 0.0, tmp_path)
    assert str(caught.value) == "song00: RuntimeError: out of luck (and 1 more)"
    assert "Traceback" not in capfd.readouterr().err


def run(
    inputs: dict[str, list[Artifact]], floor_db: float, folder: Path
) -> tuple[dict, standard_artifacts.ModelBlessing]:
    evaluation, blessing = standard_artifacts.ModelEvaluation(), standard_artifacts.ModelBlessing()
    evaluation.uri, blessing.uri = str(folder / "evaluation"), str(folder / "blessing")
    context = BaseBeamExecutor.Context(tmp_dir=str(folder / "tmp"), unique_id="1")
    Executor(context).Do(inputs, {"evaluation": [evaluation], "blessing": [blessing]}, {"floor_db": floor_db})
    return json.loads((folder / "evaluation" / "scores.json").read_text()), blessing
