"""What is written for Vertex AI and Kubeflow, held against their own message types and readers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform
from google.protobuf import json_format
from kfp.components import load_component_from_file
from kfp.pipeline_spec import pipeline_spec_pb2

from pipeline.cloud_settings import COMPONENTS, CloudSettings
from pipeline.compile import compile_pipeline
from pipeline.compiled import CompiledPipeline
from umx_model.errors import InputError

REPOSITORY = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {
    "data": "gs://bucket/music",
    "image": "europe-docker.pkg.dev/project/images/umx-pro:1",
    "pipeline_root": "gs://bucket/runs",
    "project": "project",
    "region": "europe-west4",
    "profile": {"model": {"targets": ["vocals", "drums"]}},
}
ON_KUBEFLOW = {"platform": "kubeflow"}


def make(**changes: Any) -> CompiledPipeline:
    return compile_pipeline(CloudSettings.load({**SETTINGS, **changes}, environment={}))


def container(pipeline: CompiledPipeline, component: str) -> dict[str, Any]:
    return dict(pipeline.spec["deploymentSpec"]["executors"][f"{component}_executor"]["container"])


def tasks(pipeline: CompiledPipeline) -> dict[str, Any]:
    return dict(pipeline.spec["root"]["dag"]["tasks"])


@pytest.fixture(scope="module")
def vertex() -> CompiledPipeline:
    return make()


@pytest.fixture(scope="module")
def kubeflow() -> CompiledPipeline:
    return make(**ON_KUBEFLOW)


@pytest.mark.parametrize("platform", ["vertex", "kubeflow"])
def test_is_what_the_platforms_read(platform: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pipeline: CompiledPipeline = request.getfixturevalue(platform)
    json_format.ParseDict(pipeline.spec, pipeline_spec_pb2.PipelineSpec())  # refuses unknown fields
    assert pipeline.spec["schemaVersion"] == "2.1.0"
    path = str(tmp_path / "umx_pro.yaml")
    pipeline.write(path)
    loaded = load_component_from_file(path)
    assert set(loaded.component_spec.inputs) == set(pipeline.parameters)
    job = aiplatform.PipelineJob(
        display_name="x",
        template_path=path,
        pipeline_root="gs://b/r",
        project="project",
        location="europe-west4",
        credentials=AnonymousCredentials(),
    )
    assert job.to_dict()["pipelineSpec"]["pipelineInfo"] == {"name": "umx-pro"}


def test_file_comes_back_as_it_was_written(vertex: CompiledPipeline, tmp_path: Path) -> None:
    path = str(tmp_path / "umx_pro.yaml")
    vertex.write(path)
    assert CompiledPipeline.read(path) == vertex
    assert [file.name for file in tmp_path.iterdir()] == ["umx_pro.yaml"]


def test_same_settings_make_the_same_file(vertex: CompiledPipeline) -> None:
    program = (
        "import json, sys; from pipeline.cloud_settings import CloudSettings as S; from pipeline.compile import *;"
        "print(compile_pipeline(S.load(json.loads(sys.argv[1]), environment={})).text(), end='')"
    )
    command = [sys.executable, "-c", program, json.dumps(SETTINGS)]
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, cwd="/", stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == vertex.text()


def test_form_can_be_used_without_the_code(vertex: CompiledPipeline) -> None:
    shown = {name: (parameter.type, parameter.default) for name, parameter in vertex.parameters.items()}
    assert shown == {
        "batch_size": ("NUMBER_INTEGER", 16),
        "data": ("STRING", "gs://bucket/music"),
        "data_version": ("STRING", ""),
        "epochs": ("NUMBER_INTEGER", 1000),
        "excerpt_seconds": ("NUMBER_DOUBLE", 6.0),
        "floor_db": ("STRING", "0"),
        "push_destination": ("STRING", "gs://bucket/runs/serving"),
        "targets": ("STRING", "vocals,drums"),
        "warm_start": ("BOOLEAN", False),
    }
    assert all(len(parameter.description) > 30 for parameter in vertex.parameters.values())
    changed = make(floor_db={"vocals": 2, "drums": 1.5}, warm_start=True, set={"train.epochs": 3}).parameters
    assert [changed[name].default for name in ("floor_db", "warm_start", "epochs")] == ["vocals=2,drums=1.5", True, 3]


def test_parameters_reach_the_components(vertex: CompiledPipeline) -> None:
    reached = {
        (source["componentInputParameter"], name)
        for name, task in tasks(vertex).items()
        for source in task.get("inputs", {}).get("parameters", {}).values()
        if "componentInputParameter" in source
    }
    assert reached == {
        ("data", "SampleGen"),
        ("data_version", "SampleGen"),
        ("targets", "SampleGen"),
        *((name, "Trainer") for name in ("targets", "epochs", "batch_size", "excerpt_seconds", "warm_start")),
        *(("push_destination", name) for name in ("Trainer", "Evaluator", "Pusher")),
        ("floor_db", "Evaluator"),
    }


def test_targets_of_the_mixture_are_fixed_where_the_profile_names_them() -> None:
    pipeline = make(set={"train.mixture_targets": "vocals,drums,bass"})
    source = tasks(pipeline)["SampleGen"]["inputs"]["parameters"]["targets"]
    assert source == {"runtimeValue": {"constant": "vocals,drums,bass"}}


def test_only_vertex_has_a_resolver(vertex: CompiledPipeline, kubeflow: CompiledPipeline) -> None:
    assert set(tasks(kubeflow)) == set(COMPONENTS)
    extra = set(tasks(vertex)) - set(COMPONENTS)
    assert extra == {"Resolver-model-blessing-resolver", "Resolver-model-resolver"}
    source = tasks(vertex)["Evaluator"]["inputs"]["artifacts"]["baseline_model"]["taskOutputArtifact"]
    assert source == {"outputArtifactKey": "baseline_model", "producerTask": "Resolver-model-resolver"}
    assert "baseline_model" not in tasks(kubeflow)["Evaluator"]["inputs"]["artifacts"]


def test_what_depends_on_more_than_inputs_never_comes_from_the_cache(vertex: CompiledPipeline) -> None:
    def cached(pipeline: CompiledPipeline) -> set[str]:
        return {name for name, task in tasks(pipeline).items() if task.get("cachingOptions", {}).get("enableCache")}

    usual = {"StatisticsGen", "ImportSchemaGen", "ExampleValidator", "Trainer"}
    assert cached(vertex) == usual
    assert cached(vertex.with_cache(index=True)) == {*usual, "SampleGen"}
    assert cached(vertex) == usual  # a copy was changed


class TestMachines:
    def test_each_component_has_its_own(self) -> None:
        pipeline = make(
            gpu_image="gpu:1",
            machine={"cpu": 3, "memory_gb": 12},
            machines={"Trainer": {"cpu": 12, "memory_gb": 85, "gpu": "NVIDIA_TESLA_A100", "gpus": 2, "retries": 5}},
        )
        for name in COMPONENTS:
            spec = container(pipeline, name)
            gpu = name == "Trainer"
            assert spec["image"] == ("gpu:1" if gpu else SETTINGS["image"])
            assert spec["resources"] == (
                {
                    "cpuLimit": 12.0,
                    "memoryLimit": 85.0,
                    "accelerator": {"type": "NVIDIA_TESLA_A100", "count": "2"},
                }
                if gpu
                else {"cpuLimit": 3.0, "memoryLimit": 12.0}
            )
            assert tasks(pipeline)[name]["retryPolicy"]["maxRetryCount"] == (5 if gpu else 2)
            assert spec["command"] == ["python", "-m", "components.container"]

    def test_kubernetes_names(self) -> None:
        gpu = {"gpu": "nvidia.com/gpu", "gpus": 1, "spot": True}
        pipeline = make(**ON_KUBEFLOW, gpu_image="gpu:1", machines={"Trainer": gpu})
        assert container(pipeline, "Trainer")["resources"]["accelerator"] == {"type": "nvidia.com/gpu", "count": "1"}
        assert container(pipeline, "Trainer")["image"] == "gpu:1"
        json_format.ParseDict(pipeline.platform_spec, pipeline_spec_pb2.PlatformSpec())
        [document, platforms] = yaml.safe_load_all(pipeline.text())
        executors = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        assert set(executors) <= set(document["deploymentSpec"]["executors"])
        assert executors["Trainer_executor"]["nodeSelector"]["labels"] == {"cloud.google.com/gke-spot": "true"}

    def test_several_machines_are_a_custom_job(self) -> None:
        machine = {"machine_type": "n1-standard-8", "gpu": "NVIDIA_TESLA_T4", "gpus": 1, "machines": 3, "spot": True}
        pipeline = make(gpu_image="gpu:1", service_account="a@b", machines={"Trainer": machine})
        args = container(pipeline, "Trainer")["args"]
        assert args[args.index("--executor_class_path") + 1] == "components.trainer.custom_job.Executor"
        job = json.loads(tasks(pipeline)["Trainer"]["inputs"]["parameters"]["custom_job"]["runtimeValue"]["constant"])
        assert job["project"] == "project"
        assert job["region"] == "europe-west4"
        assert job["machine_type"] == "n1-standard-8"
        assert job["accelerator_type"] == "NVIDIA_TESLA_T4"
        assert job["machines"] == 3
        assert job["image"] == "gpu:1"
        assert job["spot"]
        assert job["service_account"] == "a@b"

    def test_one_machine_is_none(self, vertex: CompiledPipeline) -> None:
        args = container(vertex, "Trainer")["args"]
        assert args[args.index("--executor_class_path") + 1] == "components.trainer.executor.Executor"


class TestBeam:
    def args(self, pipeline: CompiledPipeline, component: str) -> list[str]:
        return [arg for arg in container(pipeline, component)["args"] if arg.startswith("--") and "=" in arg]

    def test_dataflow(self) -> None:
        pipeline = make(beam_runner="dataflow", service_account="a@b", beam_args=["--max_num_workers=5"])
        expected = {
            "--runner=DataflowRunner",
            "--project=project",
            "--region=europe-west4",
            "--temp_location=gs://bucket/runs/beam",
            "--experiments=use_runner_v2",
            f"--sdk_container_image={SETTINGS['image']}",
            "--service_account_email=a@b",
            "--max_num_workers=5",
        }
        for name in ("SampleGen", "StatisticsGen", "Evaluator"):
            assert set(self.args(pipeline, name)) == expected
        for name in ("Trainer", "Pusher", "ExampleValidator"):
            assert self.args(pipeline, name) == []

    def test_flink(self) -> None:
        pipeline = make(**ON_KUBEFLOW, beam_runner="flink", flink_job_server="flink:8099")
        args = self.args(pipeline, "Evaluator")
        assert args[:2] == ["--runner=PortableRunner", "--job_endpoint=flink:8099"]
        assert "--environment_type=EXTERNAL" in args

    def test_own_cores(self, vertex: CompiledPipeline) -> None:
        assert "--direct_running_mode=multi_threading" in self.args(vertex, "SampleGen")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "/music"}, "data: /music is on this machine, which Vertex AI does not see; expected gs://"),
        ({"data": "music", **ON_KUBEFLOW}, "data: expected gs://... or a path that containers see"),
        ({"pipeline_root": "s3://bucket/runs"}, "pipeline_root: Vertex AI writes to gs:// only"),
        ({"pipeline_root": "/mnt/runs", **ON_KUBEFLOW}, "pipeline_root: Kubeflow writes to gs:// or s3:// only"),
        ({"platform": "airflow"}, "platform: Input should be 'vertex' or 'kubeflow'"),
        ({"image": ""}, "image: "),
        ({"machines": {"Trainr": {}}}, "machines: Trainr: no such component; there are SampleGen"),
        ({"machines": {"Trainer": {"gpus": 1}}}, "name both the type and how many"),
        ({"machines": {"Trainer": {"gpus": 1, "gpu": "nvidia.com/gpu"}}}, "gpu: expected Vertex AI's name"),
        ({"machines": {"Trainer": {"gpus": 1, "gpu": "L4"}}, **ON_KUBEFLOW}, "gpu: expected a Kubernetes resource"),
        ({"machines": {"Trainer": {"machines": 2}}}, "several need a machine_type"),
        ({"machines": {"Evaluator": {"machines": 2, "machine_type": "m"}}}, "machines: Evaluator has several"),
        ({"machines": {"Trainer": {"machines": 2, "machine_type": "m"}}, **ON_KUBEFLOW}, "Trainer has several"),
        ({"machines": {"Trainer": {"spot": True}}}, "machine_type: missing; the Trainer's custom job"),
        ({"beam_runner": "flink"}, "flink_job_server: missing"),
        ({"beam_runner": "dataflow", "project": ""}, "project: missing; Dataflow"),
        ({"floor_db": {"piano": 1}}, "floor_db: piano is no target"),
    ],
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make(**change)
    assert "\n" not in str(caught.value)


class TestFilesThatAreNone:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("pipelineInfo: {name: x}\n", "not written by `pipeline_runner.py compile`"),
            (
                '# umx-pro: {"version": "0.0.1", "settings": {}}\n',
                "compiled by version 0.0.1, this is .*; compile it again",
            ),
            ("# umx-pro: {\n", "damaged; compile it again"),
            ('# umx-pro: {"version": "VERSION", "settings": {}}\nx: 1\n', "damaged; compile it again"),
        ],
    )
    def test_are_refused(self, text: str, message: str, tmp_path: Path) -> None:
        import umx_model

        path = tmp_path / "umx_pro.yaml"
        path.write_text(text.replace("VERSION", umx_model.__version__))
        with pytest.raises(InputError, match=message):
            CompiledPipeline.read(str(path))

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"cannot be read \(No such file or directory\); `pipeline_runner.py comp"):
            CompiledPipeline.read(str(tmp_path / "none.yaml"))

    def test_cut_short(self, vertex: CompiledPipeline, tmp_path: Path) -> None:
        path = tmp_path / "umx_pro.yaml"
        path.write_text(vertex.text()[:3000])
        with pytest.raises(InputError, match="damaged"):
            CompiledPipeline.read(str(path))

    def test_place_that_cannot_be_written(self, vertex: CompiledPipeline, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"none/x.yaml: cannot be written \(No such file"):
            vertex.write(str(tmp_path / "none" / "x.yaml"))


def test_values_of_parameters(vertex: CompiledPipeline) -> None:
    given = {"epochs": "3", "excerpt_seconds": "2.5", "warm_start": "yes", "targets": "a,b"}
    assert vertex.parse(given) == {"epochs": 3, "excerpt_seconds": 2.5, "warm_start": True, "targets": "a,b"}
    with pytest.raises(InputError) as caught:
        vertex.parse({"epochs": "3.5", "warm_start": "2", "excerpt_seconds": "nan", "epoch": "1"})
    lines = str(caught.value).splitlines()
    assert lines[:3] == [
        "--param epochs=3.5: expected a whole number",
        "--param warm_start=2: expected true or false",
        "--param excerpt_seconds=nan: expected a number",
    ]
    assert lines[3].startswith("--param epoch: no such parameter; there are batch_size, data,")
