"""The whole of UMX-PRO on six seconds of real music: stems in, a trained and pushed model and separated stems out.

    python examples/demo.py [--output DIR]

First the model that comes with the program separates the music, which it has not heard before. Then the pipeline
trains one on that very music, so those figures show that the machinery works, and nothing about how well a model
does on music that it has not heard.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time

import av
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))  # the pipeline is not an installed package

from umx_model.errors import InputError  # noqa: E402

PROFILE = os.path.join(HERE, "profiles", "demo.json")
STEMS = ("drums", "bass", "other", "vocals")  # the file's audio streams, after the mixture
GOAL_DB = {"vocals": 5.0, "drums": 5.0}  # above the mixture


def example_path() -> str:
    """Return the path of the excerpt that the package `stempeg` ships (CC BY-NC-SA 3.0).

    `stempeg.example_stem_path()` says the same, but importing stempeg needs an `ffmpeg` program.
    """
    package = importlib.util.find_spec("stempeg")
    if package is None or not package.submodule_search_locations:
        raise InputError("the demo's music is missing: install the package stempeg (it is in requirements.txt)")
    return os.path.join(package.submodule_search_locations[0], "data", "The Easton Ellises - Falcon 69.stem.mp4")


def read_stems(path: str) -> tuple[dict[str, np.ndarray], int]:
    """Decode the stems of a .stem.mp4 file to float32 `[samples, channels]`, with their rate."""
    stems = {}
    rate = 0
    for number, name in enumerate(STEMS, 1):
        with av.open(path) as container:
            converter = av.AudioResampler(format="fltp")
            frames = [
                part.to_ndarray().T for frame in container.decode(audio=number) for part in converter.resample(frame)
            ]
            rate = container.streams.audio[number].rate
        stems[name] = np.concatenate(frames)
    return stems, rate


def build_database(root: str, stems: dict[str, np.ndarray], rate: int) -> None:
    """Write excerpts of the stems as a database: overlapping ones to learn from, the whole to validate on."""
    from umx_model.data import audio

    length = min(len(stem) for stem in stems.values())
    half = length // 2
    excerpts = {
        "train/first-half": (0, half),
        "train/middle": (half // 2, half // 2 + half),
        "train/second-half": (length - half, length),
        "valid/whole": (0, length),
    }
    for name, (start, stop) in excerpts.items():
        os.makedirs(os.path.join(root, name))
        for target, stem in stems.items():
            audio.write(os.path.join(root, name, f"{target}.wav"), stem[start:stop], rate)


def separate_with_shipped(stems: dict[str, np.ndarray], rate: int, folder: str) -> None:
    """Separate the sum of the stems with the model that comes with the program, write what it gives, and score it."""
    from umx_model import load_separator
    from umx_model.cli.common import DEFAULT_MODEL
    from umx_model.data import audio
    from umx_model.evaluation.evaluate import score_track, table

    separator = load_separator(DEFAULT_MODEL)
    mixture = np.sum(list(stems.values()), axis=0)
    began = time.monotonic()
    estimates = separator.separate(mixture, rate)
    seconds = time.monotonic() - began
    os.makedirs(folder, exist_ok=True)
    for target, estimate in estimates.items():
        audio.write(os.path.join(folder, f"{target}.wav"), estimate, rate, "FLOAT")
    references = np.stack([stems["vocals"], mixture - stems["vocals"]], axis=-1)
    estimated = np.stack([estimates["vocals"], estimates["accompaniment"]], axis=-1)
    scores = score_track("demo", references, estimated, separator.targets, rate, mixture, metrics=["SDR"])
    print(f"\n{DEFAULT_MODEL}, which has not heard it, took {seconds:.1f} s; SDR in dB (BSSEval v4, median over 1 s")
    print(f"windows) of the estimates and of the mixture:\n{table([scores])}\nstems: {folder}\n")


def separate(saved_model: str, mixture: np.ndarray) -> dict[str, np.ndarray]:
    """Separate `[samples, channels]` with a SavedModel, using nothing but TensorFlow."""
    import tensorflow as tf

    model = tf.saved_model.load(saved_model)
    estimates = model.signatures["serving_default"](mixture=tf.constant(mixture[np.newaxis]))
    return {target: waveform[0].numpy() for target, waveform in estimates.items()}


def run(output: str) -> bool:
    """Run the demo in a folder; return whether it reached its goal."""
    from pipeline.local import run_local, usage
    from pipeline.settings import PipelineSettings
    from umx_model.data import audio
    from umx_model.evaluation.evaluate import columns, score_track, table
    from umx_model.profile import Profile

    profile = Profile.read(PROFILE)
    targets = profile.model.targets
    stems, rate = read_stems(example_path())
    mixture = np.sum(list(stems.values()), axis=0)
    database = os.path.join(output, "database")
    if not os.path.isdir(database):
        build_database(database + ".partial", stems, rate)
        os.rename(database + ".partial", database)
    print(
        f"music:    {len(mixture) / rate:.1f} s of The Easton Ellises, Falcon 69; four stems, and their sum to separate"
    )
    separate_with_shipped(stems, rate, os.path.join(output, "vocals-accompaniment"))

    print(f"A pipeline, from the stems to a model that is served; database: {database}")
    result = run_local(PipelineSettings(data=database, profile=profile, output=os.path.join(output, "run")))
    if result.pushed_version_dir is None:
        print(f"the model was not good enough to be pushed; see {result.log_file}")
        return False

    estimates = separate(result.pushed_version_dir, mixture)
    for target in targets:
        audio.write(os.path.join(output, "separated", f"{target}.wav"), estimates[target], rate, "FLOAT")

    references, estimated = (np.stack([found[target] for target in targets], axis=-1) for found in (stems, estimates))
    scores = score_track("demo", references, estimated, targets, rate, mixture, metrics=["SDR"])
    print(f"\nSDR in dB (BSSEval v4, median over 1 s windows) of the estimates and of the mixture:\n{table([scores])}")
    print("The model has heard this music in training: this shows the machinery, not generalisation.\n")
    print(f"stems: {os.path.join(output, 'separated')}")
    print(f"model: {result.pushed_version_dir}")
    print(usage(result.pushed_version_dir))
    gains = columns([scores])["gain"]
    missed = [target for target, goal in GOAL_DB.items() if not gains[target] >= goal]
    for target in missed:
        print(f"missed: {target} gained {gains[target]:.2f} dB, the goal is {GOAL_DB[target]:.0f} dB")
    return not missed


def main() -> None:
    """Run the demo from the command line; exit with 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description="Trains and separates on six seconds of music, through the pipeline.")
    parser.add_argument("--output", help="folder for everything that the demo leaves (default: a new temporary one)")
    output = parser.parse_args().output or tempfile.mkdtemp(prefix="umx-pro-demo-")
    began = time.monotonic()
    try:
        os.makedirs(os.path.join(output, "separated"), exist_ok=True)
        reached = run(output)
    except InputError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        sys.exit(f"demo: failed: {type(error).__name__}: {error}")
    print(f"{'done' if reached else 'failed'} in {time.monotonic() - began:.0f} s")
    sys.exit(0 if reached else 1)


if __name__ == "__main__":
    main()
