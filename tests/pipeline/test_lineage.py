"""Looking for a version that is not there; what is found is tested where runs are."""

from pathlib import Path

import pytest

from pipeline.lineage import trace
from pipeline.settings import Folders
from umx_model.errors import InputError


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("4", r"^version 4: not in .*/out/serving \(there: none\), nor pushed there by a run in .*/out/metadata.db$"),
        ("newest", r"^version newest: expected a number, as the folders in .*/out/serving have$"),
        ("../4", r"^version ../4: expected a number"),
    ],
)
def test_refuses(tmp_path: Path, version: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        trace(Folders(output=str(tmp_path / "out")), version)
    assert not (tmp_path / "out").exists()
