"""Open-Unmix's side of other benchmarks, run there by a Python that has openunmix 1.3.0 and PyTorch.

PYTHON benchmarks/open_unmix.py weights FOLDER      # make a folder of checkpoints with random weights
PYTHON benchmarks/open_unmix.py separate FOLDER     # then one JSON request per line of stdin
PYTHON benchmarks/open_unmix.py train EXCERPTS.npy HIDDEN_SIZE      # then one training step per line of stdin
"""

from __future__ import annotations

import json
import os
import sys
import time
import types
from typing import Any

# openunmix imports it for reading audio and resampling, which this does not do.
sys.modules["torchaudio"] = types.ModuleType("torchaudio")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from openunmix import model, transforms, utils  # type: ignore[import-not-found]  # noqa: E402

TARGETS = ("vocals", "drums", "bass", "other")
SEPARATOR = {"nfft": 4096, "nhop": 1024, "sample_rate": 44100, "nb_channels": 2}


def randomize(network: torch.nn.Module) -> None:
    """Give a new network what training would have changed, so that masks differ by bin, frame and target."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_mean") or (name.startswith("bn") and name.endswith("bias")):
                tensor.normal_(0.0, 0.2)
            elif name.endswith("running_var") or (name.startswith("bn") and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
            elif name == "input_mean":
                tensor.uniform_(-1.0, 0.0)
            elif name in ("input_scale", "output_scale", "output_mean"):
                tensor.uniform_(0.2, 0.6)


def write_weights(folder: str, hidden_size: int) -> None:
    """Write checkpoints with random weights, in the layout that Open-Unmix trains into."""
    torch.manual_seed(0)
    os.makedirs(folder, exist_ok=True)
    bins = SEPARATOR["nfft"] // 2 + 1
    max_bin = int(utils.bandwidth_to_max_bin(SEPARATOR["sample_rate"], SEPARATOR["nfft"], 16000))
    for target in TARGETS:
        network = model.OpenUnmix(bins, SEPARATOR["nb_channels"], hidden_size, max_bin=max_bin)
        randomize(network)
        torch.save(network.state_dict(), os.path.join(folder, target + ".pth"))
        with open(os.path.join(folder, target + ".json"), "w") as file:
            json.dump({"args": {**SEPARATOR, "hidden_size": hidden_size, "bandwidth": 16000}}, file)
    with open(os.path.join(folder, "separator.json"), "w") as file:
        json.dump(SEPARATOR, file)


def answer(request: dict[str, Any], networks: torch.nn.Module) -> dict[str, Any]:
    """Separate a file of samples `[samples, channels]` float32; say how long that took.

    Args:
        request: `mixture` names the .npy file, `niter` the EM iterations, `output` (optional) the .npy
            file to write, `[samples, channels, targets]`.
        networks: by target.
    """
    audio = torch.from_numpy(np.load(request["mixture"]).T[None].copy())
    separator = model.Separator(
        networks,
        niter=request["niter"],
        sample_rate=SEPARATOR["sample_rate"],
        n_fft=SEPARATOR["nfft"],
        n_hop=SEPARATOR["nhop"],
        nb_channels=SEPARATOR["nb_channels"],
    )
    separator.freeze()
    began = time.perf_counter()
    with torch.no_grad():
        estimates = separator(audio)
    seconds = time.perf_counter() - began
    if "output" in request:
        np.save(request["output"], estimates[0].permute(2, 1, 0).numpy())
    return {"seconds": seconds}


class Training:
    """One model for each target, trained as `scripts/train.py` does: every one transforms the audio for itself.

    Args:
        excerpts: waveforms float32 `[batch, samples, channels, targets]`, the same in every step.
        hidden_size: width of the networks.
    """

    def __init__(self, excerpts: torch.Tensor, hidden_size: int) -> None:
        self._mixture = excerpts.sum(-1).transpose(1, 2).contiguous()
        self._targets = [excerpts[..., target].transpose(1, 2).contiguous() for target in range(excerpts.shape[-1])]
        stft, _ = transforms.make_filterbanks(
            n_fft=SEPARATOR["nfft"], n_hop=SEPARATOR["nhop"], sample_rate=SEPARATOR["sample_rate"]
        )
        self._encoder = torch.nn.Sequential(stft, transforms.ComplexNorm(mono=False))
        max_bin = int(utils.bandwidth_to_max_bin(SEPARATOR["sample_rate"], SEPARATOR["nfft"], 16000))
        bins, channels = SEPARATOR["nfft"] // 2 + 1, SEPARATOR["nb_channels"]
        self._networks = [model.OpenUnmix(bins, channels, hidden_size, max_bin=max_bin) for _ in self._targets]
        self._optimizers = [
            torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-5) for network in self._networks
        ]

    def step(self) -> dict[str, Any]:
        """Make one step with every network and say how long that took."""
        began = time.perf_counter()
        for network, optimizer, target in zip(self._networks, self._optimizers, self._targets, strict=True):
            optimizer.zero_grad()
            mixture = self._encoder(self._mixture)
            loss = torch.nn.functional.mse_loss(network(mixture), self._encoder(target))
            loss.backward()
            optimizer.step()
        return {"seconds": time.perf_counter() - began, "loss": loss.item()}


def main() -> None:
    """Do what the command line says."""
    command, folder, *rest = sys.argv[1:]
    if command == "weights":
        write_weights(folder, int(rest[0]))
        return
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if command == "train":
        training = Training(torch.from_numpy(np.load(folder)), int(rest[0]))
        print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
        for _ in sys.stdin:
            print(json.dumps(training.step()), flush=True)
        return
    networks = utils.load_target_models(TARGETS, folder)
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), networks)), flush=True)


if __name__ == "__main__":
    main()
