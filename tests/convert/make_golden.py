"""Make `golden/`: tiny Open-Unmix checkpoints and what Open-Unmix itself estimates with them.

    PYTHON tests/convert/make_golden.py

PYTHON is one of an environment with openunmix 1.3.0, PyTorch and NumPy (torchaudio is not needed).
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from benchmarks.open_unmix import model, randomize, utils  # openunmix's, without torchaudio

GOLDEN = Path(__file__).parent / "golden"
MODELS: dict[str, dict[str, Any]] = {
    "stereo": {
        "files": {"vocals": "vocals", "drums": "drums"},
        "separator": {"nfft": 128, "nhop": 32, "sample_rate": 8000, "nb_channels": 2},
        "args": {"hidden_size": 8, "bandwidth": 3000},
        "frames": 12,
        "samples": 1000,
    },
    # As umxse: names, settings and the legacy format with the buffers of Open-Unmix 1.0.
    "speech-legacy": {
        "files": {"speech": "speech_f5e0d9f9", "noise": "noise_04a6fc2d"},
        "separator": {"nfft": 1024, "nhop": 512, "sample_rate": 16000.0, "nb_channels": 1},
        "args": {"hidden_size": 4, "bandwidth": 16000},
        "frames": 4,
        "samples": 2560,
        "legacy": True,
    },
    "unidirectional-legacy": {
        "files": {"vocals": "vocals-b62c91ce"},
        "separator": {"nfft": 128, "nhop": 32, "sample_rate": 8000, "nb_channels": 2},
        "args": {"hidden_size": 6, "nb_layers": 2, "unidirectional": True},
        "frames": 10,
        "samples": 800,
        "legacy": True,
    },
}


def make_model(name: str, spec: dict[str, Any]) -> None:
    """Write one folder of checkpoints, and `expected.npz` beside them."""
    folder = GOLDEN / name
    folder.mkdir(parents=True, exist_ok=True)
    separator, arguments = spec["separator"], {**spec["separator"], **spec["args"]}
    bins, rate, channels = separator["nfft"] // 2 + 1, separator["sample_rate"], separator["nb_channels"]
    bandwidth = arguments.get("bandwidth")
    networks = {}
    for target, file in spec["files"].items():
        networks[target] = model.OpenUnmix(
            bins,
            channels,
            arguments["hidden_size"],
            nb_layers=arguments.get("nb_layers", 3),
            unidirectional=arguments.get("unidirectional", False),
            max_bin=int(utils.bandwidth_to_max_bin(rate, separator["nfft"], bandwidth)) if bandwidth else None,
        )
        randomize(networks[target])
        state = networks[target].state_dict()
        if spec.get("legacy"):
            window = torch.hann_window(separator["nfft"])
            state |= {"sample_rate": torch.tensor(rate), "stft.window": window, "transform.0.window": window}
        torch.save(state, folder / f"{file}.pth", _use_new_zipfile_serialization=not spec.get("legacy"))
        document = {"args": arguments, "commit": "fd9c753"}
        (folder / f"{target}.json").write_text(json.dumps(document, sort_keys=True) + "\n")
    (folder / "separator.json").write_text(json.dumps(separator, sort_keys=True) + "\n")

    # Inputs that the tests make again, in the same order.
    random = np.random.RandomState(0)
    magnitude = random.uniform(0, 3, (spec["frames"], bins, channels)).astype(np.float32)
    mixture = random.uniform(-0.9, 0.9, (spec["samples"], channels)).astype(np.float32)
    expected = {}
    with torch.no_grad():
        for network in networks.values():
            network.eval()
        estimates = [network(torch.from_numpy(magnitude.T[None].copy())) for network in networks.values()]
        expected["magnitudes"] = np.stack([estimate[0].numpy().T for estimate in estimates], axis=-1)
        for niter in (0, 1) if len(networks) > 1 else (0,):
            whole = model.Separator(
                networks,
                niter,
                sample_rate=rate,
                n_fft=separator["nfft"],
                n_hop=separator["nhop"],
                nb_channels=channels,
            )
            waveforms = whole(torch.from_numpy(mixture.T[None].copy()))
            expected[f"waveforms_{niter}"] = waveforms[0].permute(2, 1, 0).numpy()
    np.savez_compressed(folder / "expected.npz", **expected)


def make_tensors() -> None:
    """Write one dictionary in both formats: views of one storage, strides, several types, no dimension."""
    numbers = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = OrderedDict(
        whole=numbers,
        transposed=numbers.T,
        part=numbers[1:3, 2:5],
        parameter=torch.nn.Parameter(torch.tensor([0.5, -0.5])),
        half=torch.tensor([1.5], dtype=torch.float16),
        double=torch.tensor([1 / 3], dtype=torch.float64),
        scalar=torch.tensor(7),
        flag=torch.tensor([True, False]),
        empty=torch.zeros(0, 3),
    )
    for name, zip_format in (("tensors.pth", True), ("tensors-legacy.pth", False)):
        torch.save(tensors, GOLDEN / name, _use_new_zipfile_serialization=zip_format)


if __name__ == "__main__":
    torch.manual_seed(0)
    for name, spec in MODELS.items():
        make_model(name, spec)
    make_tensors()
