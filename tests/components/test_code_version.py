"""The hash of source files that makes cache keys see code."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.code_version import code_version


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "some_package"
    (folder / "inner").mkdir(parents=True)
    for name in ("__init__.py", "one.py", "inner/__init__.py", "inner/two.py"):
        (folder / name).write_text(f"# {name}\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield folder
    for name in [name for name in sys.modules if name.startswith("some_package")]:
        del sys.modules[name]


def test_sees_edits_additions_renames_and_removals(package: Path) -> None:
    versions = [code_version("some_package")]
    assert code_version("some_package") == versions[0]
    for change in (
        lambda: (package / "inner" / "two.py").write_text("changed\n"),
        lambda: (package / "three.py").write_text("new\n"),
        lambda: (package / "three.py").rename(package / "four.py"),
        lambda: (package / "one.py").unlink(),
    ):
        change()
        versions.append(code_version("some_package"))
    assert len(set(versions)) == len(versions)


def test_looks_at_the_named_modules_only(package: Path) -> None:
    inner, one = code_version("some_package.inner"), code_version("some_package.one")
    (package / "inner" / "two.py").write_text("changed\n")
    assert code_version("some_package.one") == one
    assert code_version("some_package.inner") != inner
    assert code_version("some_package.one", "some_package.inner") != one


def test_refuses_a_module_that_is_not_there() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"umx_model\.no_such"):
        code_version("umx_model.no_such")
