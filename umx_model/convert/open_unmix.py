"""Converting Open-Unmix checkpoints (`openunmix` 1.3.0, and those of 1.0) into model folders.

What Open-Unmix trains, publishes and loads (`openunmix/utils.py`, `load_target_models`) is a folder of

    separator.json     {"nfft": 4096, "nhop": 1024, "sample_rate": 44100, "nb_channels": 2}
    vocals.json        {"args": {"nfft": 4096, "nb_channels": 2, "hidden_size": 512, ...}, ...}
    vocals.pth         or vocals-b62c91ce.pth or vocals_b62c91ce.pth: the network's state dictionary
    ...                the same two files for every other target

Open-Unmix loads with `strict=False`. Here every tensor must be there, have its shape and be finite, and no
other may be there but the few that `_IGNORED` lists.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from umx_model.convert.torch_checkpoint import read_checkpoint
from umx_model.errors import InputError
from umx_model.model.folder import write_model_folder
from umx_model.model.spectral_filter import BLSTMSpectralFilterLayer, get_joint_spectral_filter
from umx_model.profile import ModelProfile, Profile

SEPARATOR = "separator.json"

# The order in which Open-Unmix lists its targets; others follow by name.
_USUAL_ORDER = ("vocals", "drums", "bass", "other", "speech", "noise")

# Of no effect on estimates: counters of batch normalisation, and the transform that networks of
# Open-Unmix 1.0 brought along, whose settings are in separator.json.
_IGNORED = re.compile(r"bn[123]\.num_batches_tracked|sample_rate|stft\.window|transform\.0\.window")


def convert_open_unmix(
    source: str | os.PathLike[str], output: str | os.PathLike[str], license: str | None = None
) -> Profile:
    """Convert a folder of Open-Unmix checkpoints into a model folder that estimates all their targets.

    The profile asks for one EM iteration, as Open-Unmix does, but for none where there is a single
    target: EM would turn that into the mixture.

    Args:
        source: the folder; local or remote.
        output: the model folder to write; must not exist, or be empty.
        license: of the weights, an SPDX identifier where there is one.

    Returns:
        The profile of the model.

    Raises:
        InputError: a file is missing, damaged or contradicts another; a tensor is missing, superfluous,
            misshapen or not finite; or the output exists.
    """
    folder, path = os.fspath(source).rstrip("/"), os.fspath(output).rstrip("/")
    if tf.io.gfile.exists(path) and (not tf.io.gfile.isdir(path) or tf.io.gfile.listdir(path)):
        raise InputError(f"{path}: exists already; remove it or choose another output folder")
    files = _find_checkpoints(folder)
    profile = _make_profile(folder, files, license)
    spectral_filter = get_joint_spectral_filter(profile.model)
    for target, file in files.items():
        _assign(file, spectral_filter.get_layer(target), profile.model)
    _write(path, spectral_filter, profile)
    return profile


def _find_checkpoints(folder: str) -> dict[str, str]:
    """Return the checkpoint of every target, in the order that the targets will have."""
    if not tf.io.gfile.isdir(folder):
        raise InputError(f"{folder}: no such folder; expected one with {SEPARATOR}, <target>.json and <target>*.pth")
    names = sorted(tf.io.gfile.listdir(folder))
    targets = [name.removesuffix(".json") for name in names if name.endswith(".json") and name != SEPARATOR]
    files: dict[str, str] = {}
    for name in names:
        if not name.endswith(".pth"):
            continue
        file = os.path.join(folder, name)
        owners = [target for target in targets if re.fullmatch(re.escape(target) + r"([-_][0-9a-f]+)?\.pth", name)]
        if not owners:
            raise InputError(f"{file}: has no <target>.json beside it; put there what was published or trained with it")
        target = max(owners, key=len)
        if target in files:
            raise InputError(f"{files[target]} and {file} are both of target {target}; remove one")
        files[target] = file
    for target in targets:
        if target not in files:
            raise InputError(
                f"{os.path.join(folder, target)}.json: has no {target}.pth or {target}-<hash>.pth beside it; "
                "add the checkpoint, or remove the file"
            )
    if not files:
        raise InputError(f"{folder}: no <target>*.pth in it; expected Open-Unmix checkpoints")
    rank = {target: number for number, target in enumerate(_USUAL_ORDER)}
    return {target: files[target] for target in sorted(files, key=lambda name: (rank.get(name, len(rank)), name))}


def _make_profile(folder: str, files: dict[str, str], license: str | None) -> Profile:
    """Describe the network, from the settings and, where these cannot be trusted, from the first checkpoint.

    Which bins the network reads and whether it is unidirectional are not what the settings say after
    fine-tuning; 1.3.0 trains bidirectional networks even where `unidirectional` is asked for.
    """
    settings = _read_settings(folder, tuple(files))
    tensors = read_checkpoint(next(iter(files.values())))
    bins, hidden_size = settings["nfft"] // 2 + 1, settings["hidden_size"]
    rows = {name: len(tensor) for name, tensor in tensors.items() if tensor.ndim}
    read_bins = min(rows.get("input_mean") or bins, bins)
    document = {
        "model": {
            "targets": list(files),
            "sample_rate": settings["sample_rate"],
            "channels": settings["nb_channels"],
            "n_fft": settings["nfft"],
            "hop_length": settings["nhop"],
            "hidden_size": hidden_size,
            "layers": settings["nb_layers"],
            "bandwidth": _bandwidth(settings, read_bins),
            "unidirectional": rows.get("lstm.weight_ih_l0") == 4 * hidden_size,
            "niter": 1,
        },
        "made_with": {"openunmix": f"commit {settings['commit']}"},
        "license": license,
    }
    return Profile.parse(document, source=folder)


def _read_settings(folder: str, targets: tuple[str, ...]) -> dict[str, Any]:
    """Return what separator.json and all targets' settings say, which must agree."""
    separator = os.path.join(folder, SEPARATOR)
    common = _read_json(separator)
    _check_counts(separator, common, ("nfft", "nhop", "sample_rate", "nb_channels"))
    merged = {**common, "nb_layers": 3}  # Open-Unmix has no option for it
    for number, target in enumerate(targets):
        file = os.path.join(folder, target + ".json")
        document = _read_json(file)
        arguments = document.get("args")
        if not isinstance(arguments, dict):
            raise InputError(f'{file}: no "args"; expected what Open-Unmix trained the target with')
        _check_counts(file, arguments, ("nfft", "nb_channels", "hidden_size"))
        if number == 0:
            own = ("hidden_size", "nb_layers", "bandwidth")
            merged |= {key: arguments[key] for key in own if key in arguments}
            merged["commit"] = document.get("commit", "unknown")
        for key in ("nfft", "nhop", "nb_channels", "hidden_size", "nb_layers"):
            if arguments.get(key, merged[key]) != merged[key]:
                raise InputError(
                    f"{file}: {key} is {arguments[key]}, expected {merged[key]} as in {SEPARATOR} "
                    f"or {targets[0]}.json; convert networks of different kinds from folders of their own"
                )
    return merged


def _read_json(file: str) -> dict[str, Any]:
    try:
        with tf.io.gfile.GFile(file, "rb") as stream:
            document = json.loads(stream.read())
    except tf.errors.OpError:
        raise InputError(f"{file}: no such file; Open-Unmix wants it beside its checkpoints, put it there") from None
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error})") from None
    if not isinstance(document, dict):
        raise InputError(f"{file}: not the settings of a network; expected a JSON object")
    return document


def _check_counts(file: str, settings: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys:
        value = settings.get(key)
        # JSON of Python may hold NaN and 44100.0; the bound keeps what is derived from it in memory.
        if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
            raise InputError(f"{file}: {key} is {value!r}, expected a whole number")
        if not 1 <= value <= 2**20:
            raise InputError(f"{file}: {key} is {value!r}, expected at least 1 and at most {2**20}")
        settings[key] = int(value)


def _bandwidth(settings: dict[str, Any], read_bins: int) -> float:
    """Return the setting if it means that so many bins are read, otherwise the last of their frequencies."""
    frequencies = np.linspace(0, settings["sample_rate"] / 2, settings["nfft"] // 2 + 1)
    asked = settings.get("bandwidth")
    if isinstance(asked, int | float) and np.count_nonzero(frequencies <= asked) == read_bins:
        return float(asked)
    return float(frequencies[read_bins - 1])


class _Destination(NamedTuple):
    """Where a tensor goes: its shape in PyTorch, our variable, and how it is arranged for that."""

    shape: tuple[int, ...]
    variable: keras.Variable
    arrange: Callable[[np.ndarray], np.ndarray] = np.asarray


def _assign(file: str, layer: BLSTMSpectralFilterLayer, profile: ModelProfile) -> None:
    """Give a target's layer the weights of its checkpoint."""
    tensors = read_checkpoint(file)
    destinations = _destinations(layer, profile)
    unknown = [name for name in tensors if name not in destinations and not _IGNORED.fullmatch(name)]
    problems = {
        "lacks": [
            f"{name} {list(destination.shape)}" for name, destination in destinations.items() if name not in tensors
        ],
        "has unknown": [f"{name} {list(tensors[name].shape)}" for name in unknown],
        "has misshapen": [
            f"{name} {list(tensors[name].shape)} instead of {list(destination.shape)}"
            for name, destination in destinations.items()
            if name in tensors and tensors[name].shape != destination.shape
        ],
    }
    if any(problems.values()):
        text = "; ".join(f"{what} {', '.join(names)}" for what, names in problems.items() if names)
        raise InputError(
            f"{file}: {text}; its settings describe {profile.layers} recurrent layers of {profile.hidden_size} units "
            '("hidden_size" and, where it is not 3, "nb_layers" under "args")'
        )
    for name, destination in destinations.items():
        if not np.issubdtype(tensors[name].dtype, np.floating) or not np.isfinite(tensors[name]).all():
            raise InputError(f"{file}: {name} holds NaN, infinity or integers, expected finite numbers; train again")
        destination.variable.assign(destination.arrange(tensors[name]).astype(np.float32))


def _destinations(layer: BLSTMSpectralFilterLayer, profile: ModelProfile) -> dict[str, _Destination]:
    """Return where each tensor of Open-Unmix's network (`openunmix/model.py`, `OpenUnmix`) goes.

    Its features are channels of bins, `[channels * bins]`; ours are bins of channels. Its matrices are
    `[outputs, inputs]`. Its LSTM gates are in our order: input, forget, cell ("g"), output.
    """
    channels, bins, read = profile.channels, profile.bins, layer.max_bin
    hidden = profile.hidden_size
    units = hidden if profile.unidirectional else hidden // 2

    def bins_first(features: np.ndarray) -> np.ndarray:
        channels_of_bins = features.reshape(*features.shape[:-1], channels, -1)
        return channels_of_bins.swapaxes(-1, -2).reshape(features.shape)

    destinations = {
        "input_mean": _Destination((read,), layer.input_mean),
        "input_scale": _Destination((read,), layer.input_scale),
        "output_mean": _Destination((bins,), layer.output_mean),
        "output_scale": _Destination((bins,), layer.output_scale),
        "fc1.weight": _Destination((hidden, channels * read), layer.encoder.kernel, lambda w: bins_first(w).T),
        "fc2.weight": _Destination((hidden, 2 * hidden), layer.decoder.kernel, np.transpose),
        "fc3.weight": _Destination((channels * bins, hidden), layer.mask.kernel, lambda w: bins_first(w.T)),
    }
    norms: list[tuple[str, keras.layers.Layer, int, Callable[[np.ndarray], np.ndarray]]] = [
        ("bn1", layer.encoder_norm, hidden, np.asarray),
        ("bn2", layer.decoder_norm, hidden, np.asarray),
        ("bn3", layer.mask_norm, channels * bins, bins_first),
    ]
    for name, norm, width, arrange in norms:
        destinations |= {
            f"{name}.weight": _Destination((width,), norm.gamma, arrange),
            f"{name}.bias": _Destination((width,), norm.beta, arrange),
            f"{name}.running_mean": _Destination((width,), norm.moving_mean, arrange),
            f"{name}.running_var": _Destination((width,), norm.moving_variance, arrange),
        }
    for suffix, lstms in (("", layer.forward_lstms), ("_reverse", layer.backward_lstms)):
        for number, lstm in enumerate(lstms):
            end = f"l{number}{suffix}"
            destinations |= {
                f"lstm.weight_ih_{end}": _Destination((4 * units, hidden), lstm.kernel, np.transpose),
                f"lstm.weight_hh_{end}": _Destination((4 * units, units), lstm.recurrent_kernel, np.transpose),
                f"lstm.bias_ih_{end}": _Destination((4 * units,), lstm.bias),
                f"lstm.bias_hh_{end}": _Destination((4 * units,), lstm.recurrent_bias),
            }
    return destinations


def _write(path: str, spectral_filter: keras.Model, profile: Profile) -> None:
    """Write the model folder under another name and give it its own when it is whole."""
    partial = path + ".partial"
    try:
        write_model_folder(partial, spectral_filter, profile, saved_model=False)
        if tf.io.gfile.exists(path):
            tf.io.gfile.rmtree(path)  # an empty folder
        tf.io.gfile.rename(partial, path)
    except (OSError, tf.errors.OpError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot be written ({reason}); choose another output folder") from None
    finally:
        if tf.io.gfile.exists(partial):
            tf.io.gfile.rmtree(partial)
