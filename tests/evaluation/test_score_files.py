"""Scores in files: museval reads its own, and any program the others."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from museval_oracle import museval

from umx_model.errors import InputError
from umx_model.evaluation.evaluate import score_track
from umx_model.evaluation.museval_json import museval_document
from umx_model.evaluation.score_files import write_csv, write_json, write_museval_folder, write_text
from umx_model.evaluation.scores import METRICS, Evaluation, summarize, summarize_mixture

RATE = 2000
TARGETS = ("vocals", "drums")


def track(name, seed, leak=0.2, silent=False):
    generator = np.random.default_rng(seed)
    references = generator.standard_normal((round(4.4 * RATE), 1, 2)) * 0.1
    references[RATE : 2 * RATE, :, 0] = 0  # a window without a score
    if silent:
        references[..., 1] = 0
    return score_track(name, references, references + leak * references[..., ::-1] ** 2 + 0.003, TARGETS, RATE)


@pytest.fixture(scope="module")
def evaluation():
    tracks = [track("a song", 0), track("b", 1, 0.5), track("c", 2, 0.9), track("d", 3, silent=True)]
    baseline = [track(one.name, number, 1.5) for number, one in enumerate(tracks)]
    return Evaluation("new", tracks, baseline, "old", settings={"niter": 1}, data_fingerprint="abc")


@pytest.fixture(scope="module")
def schema():
    return json.loads((Path(museval.__path__[0]) / "musdb.schema.json").read_text())


def test_musevals_aggregation_reads_it(tmp_path, evaluation, schema):
    folder = str(tmp_path / "method")
    write_museval_folder(folder, evaluation, "test")
    assert sorted(path.name for path in (tmp_path / "method/test").iterdir()) == [
        f"{name}.json" for name in ("a song", "b", "c", "d")
    ]
    for path in (tmp_path / "method/test").iterdir():
        jsonschema.validate(json.loads(path.read_text()), schema)
    store = museval.EvalStore()
    store.add_eval_dir(folder)
    by_metric = store.agg_frames_tracks_scores()
    by_track = store.agg_frames_scores()
    for metric in METRICS:
        ours = summarize(evaluation.tracks, metric)
        for target in TARGETS:
            assert by_metric[target, metric] == pytest.approx(ours[target], abs=1e-5)
        for one in evaluation.tracks:
            for target, score in one.score(metric).items():
                assert by_track[one.name, target, metric] == pytest.approx(score, abs=1e-5, nan_ok=True)
    methods = museval.MethodStore()
    methods.add_eval_dir(folder)
    assert methods.agg_frames_tracks_scores()["method", "vocals", "SDR"] == pytest.approx(
        summarize(evaluation.tracks)["vocals"], abs=1e-5
    )


def test_document_is_musevals_own(evaluation):
    """The same scores given to museval's TrackStore make the same document."""
    scores = evaluation.tracks[0]
    store = museval.TrackStore("a song", win=1.0, hop=1.0)
    for index, target in enumerate(TARGETS):
        values = {metric: scores.windows[metric][:, index].tolist() for metric in METRICS}
        values = {
            metric: [np.inf if np.isnan(value) else value for value in column] for metric, column in values.items()
        }
        store.add_target(target, values)
    theirs, ours = json.loads(store.json), json.loads(json.dumps(museval_document(scores)))
    assert (theirs.pop("museval_version"), ours.pop("museval_version")) == ("0.4.1", "0.4.1 (umx-pro)")
    np.testing.assert_equal(ours, theirs)
    assert np.isnan(ours["targets"][0]["frames"][1]["metrics"]["SDR"])


def test_sdr_alone(evaluation, schema):
    scores = score_track("x", np.ones((4000, 1, 1)), np.full((4000, 1, 1), 0.9), ("vocals",), RATE, metrics=["SDR"])
    document = museval_document(scores)
    jsonschema.validate(document, schema)
    frame = document["targets"][0]["frames"][1]
    assert (frame["time"], frame["duration"], frame["metrics"]["SDR"]) == (1.0, 1.0, 20.0)
    assert np.isnan(frame["metrics"]["SAR"])
    overlapping = museval_document(replace(scores, hop_seconds=0.5, window_seconds=2.0))
    frame = overlapping["targets"][0]["frames"][1]
    assert (frame["time"], frame["duration"]) == (0.5, 2.0)


def test_one_document(tmp_path, evaluation):
    path = tmp_path / "scores.json"
    write_json(str(path), evaluation)
    document = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert {key: document[key] for key in ("title", "settings", "data_fingerprint")} == {
        "title": "new",
        "settings": {"niter": 1},
        "data_fingerprint": "abc",
    }
    vocals = document["targets"]["vocals"]
    assert list(vocals) == [*METRICS, "mixture", "gain", "baseline", "change"]
    sdr, mixture, baseline = (
        summarize(evaluation.tracks)["vocals"],
        summarize_mixture(evaluation.tracks)["vocals"],
        summarize(evaluation.baseline)["vocals"],
    )
    expected = {"SDR": sdr, "mixture": mixture, "gain": sdr - mixture, "baseline": baseline, "change": sdr - baseline}
    assert {name: vocals[name] for name in expected} == pytest.approx(expected, abs=2e-5)
    assert [one["name"] for one in document["tracks"]] == ["a song", "b", "c", "d"]
    assert document["tracks"][3]["scores"]["drums"]["SDR"] is None
    assert document["baseline"]["title"] == "old"
    # What museval's aggregation makes of it, null for NaN.
    frames = [museval.aggregate.json2df(one["museval"], one["name"]) for one in document["tracks"][:3]]
    medians = museval.EvalStore()
    for frame in frames:
        medians.add_track(frame)
    assert medians.agg_frames_tracks_scores()["vocals", "SDR"] == pytest.approx(sdr, abs=1e-5)


def test_csv(tmp_path, evaluation):
    write_csv(str(tmp_path / "scores.csv"), evaluation)
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("track", "target", *METRICS, "mixture_SDR", "gain", "SI_SDR", "MDX_SDR", "baseline_SDR", "change")
    ]
    assert [(row["track"], row["target"]) for row in rows[:3]] == [
        ("a song", "vocals"),
        ("a song", "drums"),
        ("b", "vocals"),
    ]
    scores, baseline = evaluation.tracks[1], evaluation.baseline[1]
    expected = {metric: scores.score(metric)["vocals"] for metric in METRICS}
    expected |= {
        "mixture_SDR": scores.mixture_score()["vocals"],
        "gain": scores.score()["vocals"] - scores.mixture_score()["vocals"],
        "SI_SDR": scores.si_sdr[0],
        "MDX_SDR": scores.mdx_sdr[0],
        "baseline_SDR": baseline.score()["vocals"],
        "change": scores.score()["vocals"] - baseline.score()["vocals"],
    }
    assert {name: float(rows[2][name]) for name in expected} == pytest.approx(expected, abs=1e-5)
    assert (rows[7]["track"], rows[7]["SDR"], rows[7]["gain"]) == ("d", "", "")


def test_csv_without_a_baseline(tmp_path, evaluation):
    write_csv(str(tmp_path / "scores.csv"), Evaluation("new", evaluation.tracks))
    assert (tmp_path / "scores.csv").read_text().splitlines()[0].endswith(",SI_SDR,MDX_SDR")


def test_files_replace_what_was_there(tmp_path, evaluation):
    for write, name in ((write_json, "scores.json"), (write_csv, "scores.csv")):
        (tmp_path / name).write_text("old")
        write(str(tmp_path / name), evaluation)
        assert (tmp_path / name).read_text() != "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.csv", "scores.json"]


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "scores.csv").mkdir()
    with pytest.raises(InputError, match=r"scores.csv: cannot be written \(.*\); choose another place$"):
        write_text(str(tmp_path / "scores.csv"), "x")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]
