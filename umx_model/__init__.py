"""UMX-PRO's models: separate music, and learn to.

    import umx_model as umx

    separator = umx.load_separator("out/model")
    stems = separator.separate("song.mp3")          # {"vocals": [samples, channels], ...}

Names are imported when first used, so that programs which only look (`umx-pro --help`) start at once.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# What TensorFlow reads when it is imported. Its C++ messages at start-up (which GPU libraries are
# missing, say) mean nothing to users; its errors arrive as Python exceptions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Spectrograms are large: without a pool, each is mapped and unmapped by the kernel, which took
# more than a third of a training step on CPU.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "1")
# Fetch from gs:// what is asked for, not the 64 MB around it: an excerpt takes one.
os.environ.setdefault("GCS_READ_CACHE_BLOCK_SIZE_MB", "0")

if TYPE_CHECKING:
    from umx_model.data.dataset import FixedSourcesTrackFolderDataset
    from umx_model.errors import InputError
    from umx_model.inference.restore import load_separator
    from umx_model.inference.separator import Separator
    from umx_model.inference.stems import StemSelection
    from umx_model.inference.streaming import StreamingSeparator
    from umx_model.model.expectation_maximization import ExpectationMaximization
    from umx_model.model.spectral_filter import (
        BLSTMSpectralFilterLayer,
        JointSpectralFilter,
        get_joint_spectral_filter,
        register_spectral_filter,
    )
    from umx_model.model.stft import ISTFTLayer, STFTLayer
    from umx_model.model.umx import UMX
    from umx_model.profile import ModelProfile, Profile, TrainProfile
    from umx_model.train.trainer import train

__all__ = [
    "UMX",
    "BLSTMSpectralFilterLayer",
    "ExpectationMaximization",
    "FixedSourcesTrackFolderDataset",
    "ISTFTLayer",
    "InputError",
    "JointSpectralFilter",
    "ModelProfile",
    "Profile",
    "STFTLayer",
    "Separator",
    "StemSelection",
    "StreamingSeparator",
    "TrainProfile",
    "get_joint_spectral_filter",
    "load_separator",
    "register_spectral_filter",
    "train",
]

_MODULES = {
    "FixedSourcesTrackFolderDataset": "umx_model.data.dataset",
    "InputError": "umx_model.errors",
    "load_separator": "umx_model.inference.restore",
    "Separator": "umx_model.inference.separator",
    "StemSelection": "umx_model.inference.stems",
    "StreamingSeparator": "umx_model.inference.streaming",
    "ExpectationMaximization": "umx_model.model.expectation_maximization",
    "BLSTMSpectralFilterLayer": "umx_model.model.spectral_filter",
    "JointSpectralFilter": "umx_model.model.spectral_filter",
    "get_joint_spectral_filter": "umx_model.model.spectral_filter",
    "register_spectral_filter": "umx_model.model.spectral_filter",
    "STFTLayer": "umx_model.model.stft",
    "ISTFTLayer": "umx_model.model.stft",
    "UMX": "umx_model.model.umx",
    "ModelProfile": "umx_model.profile",
    "Profile": "umx_model.profile",
    "TrainProfile": "umx_model.profile",
    "train": "umx_model.train",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_MODULES[name])
    value = module if name == "train" else getattr(module, name)  # that package is its function
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
