"""museval, which needs no FFmpeg for what tests ask of it."""

import shutil
import sys
import types

import pytest

if shutil.which("ffmpeg") is None:
    # It imports musdb, which refuses to be imported without ffmpeg; nothing here reads MUSDB18.
    sys.modules.setdefault("musdb", types.ModuleType("musdb"))
museval = pytest.importorskip("museval")
