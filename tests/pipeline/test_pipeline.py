"""The wiring, and what its cache keys see."""

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest
from tfx.dsl.compiler.compiler import Compiler

import pipeline.pipeline
from pipeline.local import local_pipeline
from pipeline.settings import PipelineSettings
from umx_model.profile import Profile

OURS = ("umx_model", "components", "data_schema")
# A change of these changes what is shown or how a mistake is worded, not what is made.
HARMLESS = {
    "components",
    "umx_model",
    "umx_model.errors",
    "umx_model.progress",
    "components.progress",
    "components.beam_text",
}


def nodes(data_version: str = "v", **settings: object) -> dict[str, bytes]:
    """What TFX knows of each component, and derives its cache key from."""
    options = {"data": "/db", "output": "/out", "profile": {"model": {"targets": ["a", "b"]}}, **settings}
    made = local_pipeline(PipelineSettings.load(options, environment={}), data_version)
    plan = [node.pipeline_node for node in Compiler().compile(made).nodes]
    flags = {component.id: repr(component.executor_spec.extra_flags).encode() for component in made.components}
    return {
        node.node_info.id: node.parameters.SerializeToString(deterministic=True) + flags[node.node_info.id]
        for node in plan
    }


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def test_only_what_depends_on_a_setting_sees_it() -> None:
    before = nodes()
    assert changed(before, nodes()) == set()
    assert changed(before, nodes(data_version="w")) == {"SampleGen"}
    for setting in ({"floor_db": 1.0}, {"margin_db": 1.0}, {"confidence": 0.9}, {"resamples": 500}):
        assert changed(before, nodes(**setting)) == {"Evaluator"}
    assert changed(before, nodes(keep_versions=2)) == {"Pusher"}
    assert changed(before, nodes(warm_start=True)) == {"Trainer"}
    assert changed(before, nodes(push_destination="/serving")) == {"Evaluator", "Pusher"}
    assert changed(before, nodes(keep_versions=2)) == {"Pusher"}
    assert changed(before, nodes(warm_start=True)) == {"Trainer"}
    assert changed(before, nodes(set={"train.epochs": 3})) == {"Trainer"}
    assert changed(before, nodes(set={"model.targets": "b,a"})) == {"SampleGen", "Trainer"}


def test_traces_of_an_earlier_training_do_not_train_again() -> None:
    profile = Profile.parse('{"model": {"targets": ["a", "b"]}}')
    options = {"data": "/db", "output": "/out", "profile": profile}
    plain = PipelineSettings(**options)
    traced = PipelineSettings(**{**options, "profile": profile.model_copy(update={"data_fingerprint": "x"})})
    plans = [Compiler().compile(local_pipeline(one, "v")) for one in (plain, traced)]
    assert plans[0] == plans[1]


def test_edited_schema_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = tmp_path / "schema.pbtxt"
    monkeypatch.setattr(pipeline.pipeline, "SCHEMA_FILE", str(schema))
    schema.write_text("")
    before = nodes()
    schema.write_text("# edited")
    assert changed(before, nodes()) == {"ImportSchemaGen"}


@pytest.mark.parametrize("component", ["sample_gen", "trainer", "evaluator", "pusher"])
def test_code_version_covers_all_code_that_a_component_runs(component: str, monkeypatch: pytest.MonkeyPatch) -> None:
    covered: list[str] = []

    def listen(*modules: str) -> str:
        covered.extend(modules)
        return "version"

    module = importlib.import_module(f"components.{component}.component")
    monkeypatch.setattr(module, "code_version", listen)
    assert b"\x07version" in nodes()[module.__name__.split(".")[1].title().replace("_", "")]
    harmless = HARMLESS | ({"umx_model.profile"} if component == "sample_gen" else set())
    for name in imported(f"components.{component}.executor") - harmless:
        assert any(name == one or name.startswith(one + ".") for one in covered), name


def imported(name: str, seen: set[str] | None = None) -> set[str]:
    """Our modules that a module imports, and those that they import, and so on, by their source."""
    seen = set() if seen is None else seen
    spec = importlib.util.find_spec(name)
    if name in seen or spec is None or spec.origin is None:
        return seen
    seen.add(name)
    for node in ast.walk(ast.parse(Path(spec.origin).read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for one in names:
            if one.split(".")[0] in OURS and one not in HARMLESS and is_module(one):
                imported(one, seen)
    return seen


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
