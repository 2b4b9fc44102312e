"""The Evaluator's scores, report and blessing."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from kfp.pipeline_spec.pipeline_spec_pb2 import ArtifactList, RuntimeArtifact
from tfx.components.evaluator import executor as stock
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.orchestration.kubeflow.v2 import compiler_utils
from tfx.orchestration.kubeflow.v2.container.kubeflow_v2_entrypoint_utils import parse_raw_artifact_dict
from tfx.types import Artifact, Channel, artifact_utils, standard_artifacts

from components.evaluator import scoring
from components.evaluator.component import Evaluator
from components.evaluator.executor import Executor
from components.pusher.executor import push
from data_schema.index import read_index
from system import HTML
from umx_model.errors import InputError
from umx_model.evaluation.evaluate import columns, evaluate_sample
from umx_model.evaluation.gate import GateRule, judge
from umx_model.evaluation.scores import TrackScores
from umx_model.inference.restore import load_separator
from umx_model.model.folder import write_model_folder
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.profile import ModelProfile, Profile

ANYTHING = GateRule(floor_db=-100.0, margin_db=100.0)


def test_vertex_finds_its_blessing() -> None:
    # What TFX's resolver of the latest blessed model looks for there.
    assert issubclass(Executor, stock.Executor)
    assert Evaluator.SPEC_CLASS.OUTPUTS["blessing"].type is standard_artifacts.ModelBlessing


def test_user_interfaces_know_the_report() -> None:
    channel = Channel(type=Evaluator.SPEC_CLASS.OUTPUTS["report"].type)
    spec = compiler_utils.build_output_artifact_spec(channel)
    assert yaml.safe_load(spec.artifact_type.instance_schema)["title"] == "system.HTML"
    # As TFX's containers make the artifact of it.
    given = ArtifactList(artifacts=[RuntimeArtifact(uri="gs://bucket/report", type=spec.artifact_type)])
    [report] = parse_raw_artifact_dict({"report": given}, {})["report"]
    assert isinstance(report, HTML)


MakeModel = Callable[..., standard_artifacts.Model]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> standard_artifacts.Examples:
    import helpers

    from components.sample_gen.executor import Executor as SampleGen

    folder = tmp_path_factory.mktemp("index")
    data = helpers.make_database(folder / "db", {"train": 1, "valid": 3}, sample_rate=8000, seconds=2.5, channels=1)
    examples = standard_artifacts.Examples()
    examples.uri = str(folder / "index")
    properties = {"data": str(data), "targets": "vocals,drums", "data_version": ""}
    context = BaseBeamExecutor.Context(tmp_dir=str(folder / "tmp"), unique_id="1")
    SampleGen(context).Do({}, {"examples": [examples]}, properties)
    return examples


@pytest.fixture(scope="module")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    folder = tmp_path_factory.mktemp("models")

    def make(seed: int, **settings: Any) -> standard_artifacts.Model:
        import keras

        keras.utils.set_random_seed(seed)
        sizes = {"sample_rate": 8000, "channels": 1, "n_fft": 64, "hop_length": 32, "hidden_size": 4, "layers": 1}
        # One direction, because that is quicker to export.
        profile = ModelProfile(**{"targets": ("vocals", "drums"), "unidirectional": True, **sizes, **settings})
        model = standard_artifacts.Model()
        model.id = seed
        model.uri = str(folder / f"model{seed}-{len(list(folder.iterdir()))}")
        write_model_folder(
            model.uri,
            get_joint_spectral_filter(profile),
            Profile(model=profile, data_fingerprint="f1n9er"),
            saved_model=False,
        )
        return model

    return make


@pytest.fixture(scope="module")
def serve(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Push a model, as version 1 of its own destination."""

    def push_model(model: standard_artifacts.Model) -> Path:
        destination = tmp_path_factory.mktemp("serving")
        push(model.uri, str(destination), 5, {"weights_sha256": sha256(model.uri)}, {})
        return destination

    return push_model


@pytest.fixture(scope="module")
def served(make_model: MakeModel, serve: Callable[..., Path]) -> Path:
    return serve(make_model(2))


def sha256(folder: str | Path) -> str:
    digest = Profile.read(folder).weights_sha256
    assert digest
    return digest


def expected_scores(folder: str | Path, index: standard_artifacts.Examples) -> list[TrackScores]:
    separator = load_separator(folder)
    samples = read_index(artifact_utils.get_split_uri([index], "valid"))
    return [evaluate_sample(separator, sample)[0] for sample in samples]


def test_scores_report_and_blessing(
    index: standard_artifacts.Examples, make_model: MakeModel, served: Path, tmp_path: Path
) -> None:
    model = make_model(1, niter=2, softmask=True)
    scores, blessing = run(index, model, ANYTHING, tmp_path, served)
    mine, theirs = expected_scores(model.uri, index), expected_scores(served / "1", index)
    assert scores["split"] == "valid"
    assert (scores["settings"]["niter"], scores["settings"]["softmask"]) == (2, True)
    assert scores["data_fingerprint"] == "f1n9er"
    assert scores["baseline_version"] == "1"
    for found, expected in ((scores["tracks"], mine), (scores["baseline"], theirs)):
        assert [track["name"] for track in found] == ["song00", "song01", "song02"]
        for one, other in zip(map(TrackScores.from_json, found), expected, strict=True):
            for metric in ("SDR", "ISR", "SIR", "SAR"):
                np.testing.assert_allclose(one.windows[metric], other.windows[metric], atol=1e-3)
            np.testing.assert_allclose(one.mixture, other.mixture, atol=1e-6)
    for name, figures in columns(mine, theirs).items():
        assert scores["figures"][name] == pytest.approx(figures, abs=1e-3)

    verdict = judge(mine, theirs, ANYTHING, "version 1")
    assert scores["blessed"] is verdict.blessed
    opening, *rest = verdict.sentences
    assert scores["verdict"] == [opening, "Judged on 3 samples of valid, against version 1, which is served.", *rest]
    assert scores["comparisons"] == json.loads(json.dumps(verdict.comparisons))

    report = (tmp_path / "report").read_text()
    for text in ("song02", "data:audio/ogg", "against version 1, which is served", "f1n9er"):
        assert text in report
    assert blessing.get_int_custom_property("blessed") == int(verdict.blessed)
    assert blessing.get_string_custom_property("blessing_message") == " ".join(verdict.objections)
    assert blessing.get_string_custom_property("current_model") == model.uri
    assert blessing.get_int_custom_property("current_model_id") == 1
    assert blessing.get_string_custom_property("baseline_model") == str(served / "1")
    assert blessing.get_string_custom_property("model_weights_sha256") == sha256(model.uri)
    assert blessing.get_string_custom_property("baseline_weights_sha256") == sha256(served / "1")
    assert [path.name for path in Path(blessing.uri).iterdir()] == ["BLESSED" if verdict.blessed else "NOT_BLESSED"]


def test_the_mixture_is_the_baseline_of_the_first_run(
    index: standard_artifacts.Examples, make_model: MakeModel, tmp_path: Path
) -> None:
    scores, blessing = run(index, make_model(1), ANYTHING, tmp_path, tmp_path / "nothing")
    assert scores["blessed"]
    assert scores["baseline"] is None
    assert scores["baseline_version"] is None
    assert "against the mixture, because nothing is served yet." in scores["verdict"][1]
    assert scores["comparisons"]["vocals"]["baseline"] == "the mixture less 100 dB"
    assert not blessing.has_custom_property("baseline_model")
    assert blessing.get_string_custom_property("baseline_weights_sha256") == ""


def test_the_model_that_the_pipeline_found_is_the_baseline_where_nothing_is_served(
    index: standard_artifacts.Examples, make_model: MakeModel, served: Path, tmp_path: Path
) -> None:
    found = make_model(4)
    scores, blessing = run(index, make_model(1), ANYTHING, tmp_path, tmp_path / "nothing", found=found)
    assert scores["verdict"][1].endswith("against the latest blessed model, because nothing is served yet.")
    for track, expected in zip(scores["baseline"], expected_scores(found.uri, index), strict=True):
        assert TrackScores.from_json(track).score() == pytest.approx(expected.score(), abs=1e-3)
    assert scores["baseline_version"] is None
    assert blessing.get_string_custom_property("baseline_model") == found.uri
    assert blessing.get_string_custom_property("baseline_weights_sha256") == ""  # so that the Pusher finds it unchanged

    scores, _ = run(index, make_model(1), ANYTHING, tmp_path / "again", served, found=found)
    assert scores["verdict"][1].endswith("against version 1, which is served.")


def test_floor_of_a_run_wins_over_the_rules(
    index: standard_artifacts.Examples, make_model: MakeModel, tmp_path: Path
) -> None:
    scores, _ = run(index, make_model(1), ANYTHING, tmp_path, tmp_path / "no", floor_db="vocals=100,drums=-100")
    assert {objection.split(":")[0] for objection in scores["objections"]} == {"vocals"}
    for floor, message in (
        ("piano=3", "floor_db: piano is no target of the model; there are vocals, drums"),
        ("high", "floor_db: expected dB, or dB per target"),
    ):
        with pytest.raises(InputError, match=message):
            run(index, make_model(1), ANYTHING, tmp_path, tmp_path / "no", floor_db=floor)


def test_not_good_enough(index: standard_artifacts.Examples, make_model: MakeModel, tmp_path: Path) -> None:
    scores, blessing = run(index, make_model(1), GateRule(floor_db="vocals=100,drums=-100"), tmp_path, tmp_path / "no")
    assert not scores["blessed"]
    assert scores["verdict"][0] == "Not good enough: vocals."
    assert all(objection.startswith("vocals: ") for objection in scores["objections"])
    assert blessing.get_int_custom_property("blessed") == 0
    assert "not above the floor of +100 dB" in blessing.get_string_custom_property("blessing_message")
    assert [path.name for path in Path(blessing.uri).iterdir()] == ["NOT_BLESSED"]


def test_what_is_served_is_not_scored_twice(
    index: standard_artifacts.Examples, make_model: MakeModel, serve: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_model(1)
    scores, _ = run(index, model, ANYTHING, tmp_path, serve(model))
    assert scores["verdict"][1].endswith("against version 1, which is served and is this model.")
    assert scores["baseline"] == scores["tracks"]
    assert scores["comparisons"]["drums"]["difference"] == 0.0
    assert scores["blessed"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ("vocals", "bass")}, "version 1, which is served, separates bass, which samples lack."),
        ({"channels": 2}, "version 1, which is served, takes 2 channels, this model 1."),
    ],
)
def test_what_cannot_be_compared_is_said(
    index: standard_artifacts.Examples,
    make_model: MakeModel,
    serve: Callable[..., Path],
    tmp_path: Path,
    settings: dict,
    message: str,
) -> None:
    served = serve(make_model(3, **settings))
    scores, blessing = run(index, make_model(1), ANYTHING, tmp_path, served)
    assert scores["verdict"][1] == f"Judged on 3 samples of valid, against the mixture, because {message}"
    assert scores["baseline"] is None
    assert blessing.get_string_custom_property("baseline_weights_sha256") == sha256(served / "1")


def test_what_is_served_without_a_profile_is_said(
    index: standard_artifacts.Examples, make_model: MakeModel, tmp_path: Path
) -> None:
    (tmp_path / "serving" / "7").mkdir(parents=True)
    (tmp_path / "serving" / "7" / "saved_model.pb").write_text("somebody's model")
    scores, blessing = run(index, make_model(1), ANYTHING, tmp_path, tmp_path / "serving")
    assert scores["verdict"][1].endswith("version 7, which is served, has no profile that says what it separates.")
    assert blessing.get_string_custom_property("baseline_weights_sha256") == "unknown-7"


def test_damaged_model_is_told_once(index: standard_artifacts.Examples, make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(1)
    Path(model.uri, "model.weights.h5").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"model1") as caught:
        run(index, model, ANYTHING, tmp_path, tmp_path / "nothing")
    assert "\n" not in str(caught.value)


def test_a_failure_is_one_line(
    index: standard_artifacts.Examples,
    make_model: MakeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(scoring, "evaluate_sample", fail)
    with pytest.raises(RuntimeError) as caught:
        run(index, make_model(1), ANYTHING, tmp_path, tmp_path / "nothing")
    assert str(caught.value) == "song00: RuntimeError: out of luck (and 2 more)"
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_workers_make_no_difference(
    index: standard_artifacts.Examples, make_model: MakeModel, served: Path, tmp_path: Path
) -> None:
    ways = {
        "in memory": [],
        "1 thread": ["--direct_running_mode=multi_threading", "--direct_num_workers=1"],
        "4 threads": ["--direct_running_mode=multi_threading", "--direct_num_workers=4"],
        "2 processes": ["--direct_running_mode=multi_processing", "--direct_num_workers=2"],
    }
    model = make_model(1)
    found = {}
    for name, arguments in ways.items():
        scores, _ = run(index, model, GateRule(), tmp_path / name, served, arguments)
        page = (tmp_path / name / "report").read_text()
        found[name] = scores, re.sub(r"data:audio/ogg;base64,[\w+/=]*", "", page)  # Ogg files have random numbers
    for name, (scores, report) in found.items():
        assert scores == found["in memory"][0], name
        assert (report == found["in memory"][1]) is True, name


def run(
    index: standard_artifacts.Examples,
    model: standard_artifacts.Model,
    rule: GateRule,
    folder: Path,
    push_destination: Path,
    beam_args: Sequence[str] = (),
    found: standard_artifacts.Model | None = None,
    **properties: str,
) -> tuple[dict, standard_artifacts.ModelBlessing]:
    evaluation, blessing, report = standard_artifacts.ModelEvaluation(), standard_artifacts.ModelBlessing(), HTML()
    evaluation.uri, blessing.uri, report.uri = (str(folder / name) for name in ("evaluation", "blessing", "report"))
    outputs: dict[str, list[Artifact]] = {"evaluation": [evaluation], "blessing": [blessing], "report": [report]}
    inputs: dict[str, list[Artifact]] = {"examples": [index], "model": [model]}
    if found is not None:
        inputs["baseline_model"] = [found]
    properties |= {"rule": rule.model_dump_json(), "push_destination": str(push_destination)}
    context = BaseBeamExecutor.Context(beam_pipeline_args=list(beam_args), tmp_dir=str(folder / "tmp"), unique_id="1")
    Executor(context).Do(inputs, outputs, properties)
    return json.loads((folder / "evaluation" / "scores.json").read_text()), blessing
