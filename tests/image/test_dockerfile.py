"""The image that containers run, without a container engine: its steps, replayed in an empty folder.

A clean virtual environment stands for its Python, a folder for its disk; uv installs what pip does there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import helpers
import pytest
import yaml

from pipeline.cloud_settings import COMPONENTS, CloudSettings
from pipeline.compile import compile_pipeline

REPOSITORY = Path(__file__).parents[2]
DEVELOPMENT = ("pytest", "mypy", "ruff", "selenium", "museval", "norbert", "stempeg", "hadolint")


def steps(stage: str, arguments: dict[str, str]) -> list[tuple[str, str]]:
    """Instructions of a stage of the Dockerfile, with build arguments and its own variables put in."""
    text = re.sub(r"^\s*#.*\n", "", (REPOSITORY / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    found, current = [], ""
    known = dict(arguments)
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            current = rest.split(" AS ")[1] if " AS " in rest else ""
            continue
        if current != stage:
            continue
        rest = re.sub(r"\$\{?(\w+)\}?", lambda match, known=known: known.get(match[1], match[0]), rest)
        if name == "ENV":
            known |= dict(word.split("=", 1) for word in shlex.split(rest))
        found.append((name, rest))
    return found


def environment(stage: str) -> dict[str, str]:
    settings = [rest for name, rest in steps(stage, {"VARIANT": "cpu"}) if name == "ENV"]
    return dict(word.split("=", 1) for rest in settings for word in shlex.split(rest))


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_locks_agree(variant: str) -> None:
    """What containers run is what the tests run."""

    def pins(name: str) -> set[str]:
        return set(re.findall(r"^[a-z0-9._-]+==\S+", (REPOSITORY / name).read_text(), re.M))

    more = pins(f"requirements-{variant}.txt") - pins("requirements.txt")
    assert all(pin.startswith("nvidia-") for pin in more)
    assert bool(more) == (variant == "gpu")
    assert not [pin for pin in pins(f"requirements-{variant}.txt") if pin.split("==")[0].startswith(DEVELOPMENT)]


def test_image_is_no_ones_root() -> None:
    assert ("USER", "umx-pro") in steps("pipeline", {})
    assert ("USER", "65534") in steps("serving", {})
    assert any(name == "HEALTHCHECK" for name, _ in steps("serving", {}))


def test_compose_file_serves_what_is_pushed() -> None:
    service = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]["serving"]
    assert service["build"]["target"] == "serving"
    [mount] = service["volumes"]
    assert mount.endswith(f":/models/{environment('serving')['MODEL_NAME']}:ro")
    assert "umx-pro-output/serving" in mount


@pytest.mark.slow
class TestReplayed:
    @pytest.fixture(scope="class")
    def disk(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
        """The image's disk: its folders below one, its Python in `python`."""
        disk = tmp_path_factory.mktemp("image")
        place = disk
        uv = str(Path(sys.executable).parent / "uv")
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, disk / "python"], check=True)
        for name, rest in steps("pipeline", {"VARIANT": "cpu"}):
            if name == "WORKDIR":
                place = disk / rest.lstrip("/")
                place.mkdir()
            elif name == "COPY" and not rest.startswith("--from"):
                source, target = rest.split()
                to = disk / target.lstrip("/") if target.startswith("/") else place / target
                to.parent.mkdir(exist_ok=True)
                if (REPOSITORY / source).is_dir():
                    shutil.copytree(REPOSITORY / source, to, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(REPOSITORY / source, to)
            elif name == "RUN" and rest.startswith("pip install"):
                [requirements] = re.findall(r"--requirement (\S+)", rest)
                command = [uv, "pip", "install", "--quiet", "--require-hashes", "--compile-bytecode"]
                own = {**os.environ, "VIRTUAL_ENV": str(disk / "python")}
                subprocess.run([*command, "-r", disk / requirements.lstrip("/")], check=True, env=own)
            elif name == "RUN":
                compiles = rest.split(" && ")[0]
                assert compiles.startswith("python -m compileall")
                subprocess.run([disk / "python" / "bin" / "python", *compiles.split()[1:]], check=True, cwd=place)
        yield disk
        shutil.rmtree(disk)

    def run(self, disk: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python as a container does, of which nothing of this machine's environment is seen."""
        own = {
            **environment("pipeline"),
            "PYTHONPATH": str(disk / "umx-pro"),
            "PATH": f"{disk}/python/bin:/usr/bin:/bin",
            "HOME": "/nonexistent",
        }
        command = [str(disk / "python" / "bin" / "python"), *arguments]
        return subprocess.run(command, env=own, cwd="/", capture_output=True, text=True, timeout=300)

    def test_holds_no_more_than_it_needs(self, disk: Path) -> None:
        assert sorted(path.name for path in (disk / "umx-pro").iterdir() if path.name != "__pycache__") == [
            "components",
            "data_schema",
            "pipeline",
            "system.py",
            "umx_model",
        ]
        program = f"import importlib.util as i; print([n for n in {DEVELOPMENT} if i.find_spec(n)])"
        assert self.run(disk, "-c", program).stdout.strip() == "[]"
        assert list((disk / "umx-pro" / "umx_model").rglob("*.pyc"))

    @pytest.mark.parametrize("platform", ["vertex", "kubeflow"])
    def test_every_compiled_command_starts(self, disk: Path, platform: str, tmp_path: Path) -> None:
        data = helpers.make_database(tmp_path / "db", {"train": 1, "valid": 1}, seconds=1.0)
        options = {
            "platform": platform,
            "image": "image:1",
            "data": "gs://bucket/music",
            "pipeline_root": "gs://bucket/runs",
            "profile": {"model": {"targets": ["vocals", "drums"]}},
        }
        spec = compile_pipeline(CloudSettings.load(options, environment={})).spec
        containers = {name: spec["deploymentSpec"]["executors"][f"{name}_executor"]["container"] for name in COMPONENTS}
        classes = [
            container["args"][container["args"].index("--executor_class_path") + 1] for container in containers.values()
        ]
        classes += ["components.trainer.custom_job.Executor", "system.HTML"]
        program = f"from tfx.utils.import_utils import import_class_by_path as f; print([f(n) for n in {classes}])"
        # What Beam's boot starts on workers, too.
        done = self.run(disk, "-c", f"import apache_beam.runners.worker.sdk_worker_main; {program}")
        assert done.returncode == 0, done.stderr

        told = {
            "inputs": {"parameterValues": {"data": str(data), "targets": "vocals,drums", "data_version": ""}},
            "outputs": {
                "artifacts": {
                    "examples": {
                        "artifacts": [
                            {
                                "uri": str(tmp_path / "examples"),
                                "type": spec["components"]["SampleGen"]["outputDefinitions"]["artifacts"]["examples"][
                                    "artifactType"
                                ],
                            }
                        ]
                    }
                },
                "outputFile": str(tmp_path / "task" / "output.json"),
            },
        }
        container = containers["SampleGen"]
        command = [part.replace("{{$}}", json.dumps(told)) for part in (*container["command"], *container["args"])]
        done = self.run(disk, *command[1:])
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "task" / "output.json").exists()
        assert list((tmp_path / "examples" / "Split-train").iterdir())
