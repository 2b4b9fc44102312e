"""Commands and settings in README.md and docs/: all are commands that there are, and what can run here is run."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import typer
from kubeflow_server import KubeflowServer
from vertex_server import Bucket, VertexServer

import pipeline_runner
from pipeline import following
from umx_model.cli import app as umx_pro

REPOSITORY = Path(__file__).parent.parent
PAGES = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")])
NAMES = {
    "PROJECT": "my-project",
    "REGION": "europe-west4",
    "BUCKET": "my-project-umx-pro",
    "IMAGE": "europe-west4-docker.pkg.dev/my-project/umx-pro/pipeline:1",
    "RUNNER": "umx-pro-runner@my-project.iam.gserviceaccount.com",
}
Command = Callable[[str], tuple[int, str, str]]


def commands(page: Path) -> list[str]:
    """Lines of a page that are commands of ours, in blocks or in the text."""
    found = re.findall(
        r"(?:^ *|`)((?:\.venv/bin/)?(?:python pipeline_runner\.py|umx-pro) [^`\n]+)", page.read_text(), re.M
    )
    return [line.split("  #")[0].strip() for line in found]


def settings(page: str) -> str:
    """The settings file that a page shows."""
    [block] = re.findall(r"^```yaml\n(platform: .*?)^```", (REPOSITORY / "docs" / page).read_text(), re.M | re.S)
    return str(block)


def expand(line: str) -> str:
    return re.sub(r"\$(\w+)", lambda name: NAMES[name[1]], line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_is_understood(page: Path) -> None:
    for line in commands(page):
        words = shlex.split(expand(line.replace("...", "")))
        ours = pipeline_runner.app if words[0].endswith("python") else umx_pro
        arguments = words[2:] if words[0].endswith("python") else words[1:]
        understand(typer.main.get_command(ours), arguments, line)


def understand(command: click.Command, arguments: list[str], line: str) -> None:
    """Have a command line parsed, down to the command that would do the work."""
    if isinstance(command, click.Group):
        assert arguments[0] in command.commands, line
        understand(command.commands[arguments[0]], arguments[1:], line)
        return
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    named = {word.split("=")[0] for word in arguments if word.startswith("--")} - {"--help"}
    assert named <= known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_make_has_the_targets() -> None:
    known = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    for page in PAGES:
        for line in re.findall(r"(?:^ *|`)make ([a-z- ]+?)(?=[`\n]| [A-Z])", page.read_text(), re.M):
            assert set(line.split()) <= known, f"{page.name}: make {line}"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run a line of a page in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(following, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(following, "_LAST_PAUSE", 0.01)

    def run(line: str) -> tuple[int, str, str]:
        words = shlex.split(expand(line))[2:]
        if words[0] == "submit" and "--yes" not in words:
            words.append("--yes")  # nobody is there to answer
        monkeypatch.setattr(sys, "argv", ["pipeline_runner.py", *words])
        return pipeline_runner.main(), *capsys.readouterr()

    return run


@pytest.fixture
def vertex(monkeypatch: pytest.MonkeyPatch) -> Iterator[VertexServer]:
    with VertexServer().running() as server:
        server.projects.add(NAMES["PROJECT"])
        server.buckets[NAMES["BUCKET"]] = Bucket("EUROPE-WEST4", ["music/train/a/vocals.wav"])
        for image in (NAMES["IMAGE"], f"{NAMES['IMAGE']}-gpu"):
            server.images.add(image.replace("europe-west4-docker.pkg.dev/my-project/", "my-project/europe-west4/"))
        server.steps = [("SUCCEEDED", {})]
        monkeypatch.setenv("UMX_PRO_VERTEX_ENDPOINT", server.address)
        yield server


@pytest.fixture
def kubeflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeflowServer]:
    with KubeflowServer().running() as server:
        server.state = "SUCCEEDED"
        monkeypatch.setenv("UMX_PRO_KUBEFLOW_HOST", server.address)
        yield server


@pytest.mark.parametrize("platform", ["vertex", "kubeflow"])
def test_guide_works_as_written(
    platform: str, command: Command, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server: VertexServer | KubeflowServer = request.getfixturevalue(platform)
    page = "vertex-ai.md" if platform == "vertex" else "kubeflow.md"
    (tmp_path / f"{platform}.yaml").write_text(settings(page))
    # A bucket for rollbacks is no part of these servers; tests/components/test_versions.py has one.
    lines = [line for line in commands(REPOSITORY / "docs" / page) if " rollback " not in line]
    assert len(lines) == 10
    for line in lines:
        code, stdout, stderr = command(line)
        assert (code, stderr) == (0, ""), f"{line}\n{stdout}{stderr}"
    runs = server.jobs if isinstance(server, VertexServer) else server.runs
    assert len(runs) == 2
    assert not server.schedules
