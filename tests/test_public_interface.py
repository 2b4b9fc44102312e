"""`import umx_model as umx`: every public name is there, and nothing heavy before it is used."""

import subprocess
import sys

import pytest

import umx_model as umx


@pytest.mark.parametrize("name", umx.__all__)
def test_public_names(name):
    assert getattr(umx, name).__doc__
    assert name in dir(umx)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'seperate'"):
        _ = umx.seperate


def test_looking_does_not_import_tensorflow():
    code = "import sys, umx_model, umx_model.cli; assert not {'tensorflow', 'numpy', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_is_silent_and_train_is_callable_whatever_came_first():
    code = (
        "import umx_model.train.trainer; import umx_model as umx; from umx_model import train; "
        "assert callable(umx.train) and train is umx.train; umx.load_separator, umx.FixedSourcesTrackFolderDataset"
    )
    environment = {"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
