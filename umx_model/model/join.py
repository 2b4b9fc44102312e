"""Joining models that were trained apart into one model folder.

    join(["vocals-model", "rest-model"], "model")

The filters of a joint model share nothing (without `model.bridges` and `model.refiner_channels`), so the joint
model holds those of its parts as they are and estimates what they estimate. EM then shares the mixture out among
all targets, which is worth more than with one target and the rest of the mixture.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import tensorflow as tf

from umx_model.errors import InputError
from umx_model.model.folder import read_model, write_model_folder
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.profile import ModelProfile, Profile

CARD = "card.md"

# How a model is trained and used, not what its filters are. The first part's become the joint model's.
_FREE = ("targets", "bridges", "dropout", "niter", "softmask", "window_frames")


def join(parts: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> Profile:
    """Make one model folder of several, with the targets of all of them.

    Of the profile's entries, those about use (EM) and training are the first part's. The mixture to train on
    is that of all parts; the history keeps each target's validation losses; licences are joined by AND;
    a fingerprint is kept where all parts have the same. Scores are kept where EM is off: with it, the
    joint model's estimates are other, better ones.

    Args:
        parts: model folders, or whatever else `read_model` takes; each target is in one of them.
        output: the model folder to write, with SavedModel, and with `card.md` where a part has one;
            must not exist, or be empty.

    Returns:
        The profile as it was written.

    Raises:
        InputError: fewer than two parts, one that cannot be read, a target in two of them, parts that
            differ in sample rate, STFT or architecture, several targets with bridges, a refiner; or
            `output` holds something or cannot be written.
    """
    names = [os.fspath(part).rstrip("/") for part in parts]
    if len(names) < 2:
        raise InputError(f"join: expected two models or more, got {len(names)}")
    folder = os.fspath(output).rstrip("/")
    _check_output(folder)
    models = [read_model(name) for name in names]
    _check_parts({name: profile.model for name, (_, profile) in zip(names, models, strict=True)}, names)
    profile = joined_profile([profile for _, profile in models])
    joint = get_joint_spectral_filter(profile.model)
    for umx, part in models:
        for target in part.model.targets:
            joint.get_layer(target).set_weights(umx.spectral_filter.get_layer(target).get_weights())
    partial = folder + ".partial"
    try:
        _remove(partial)
        profile = write_model_folder(partial, joint, profile)
        _write_card(partial, {name: part.model.targets for name, (_, part) in zip(names, models, strict=True)})
        _remove(folder)  # which is empty
        tf.io.gfile.rename(partial, folder)
    except (OSError, tf.errors.OpError) as error:
        raise InputError(f"{folder}: cannot be written ({error}); choose another folder") from None
    finally:
        _remove(partial)
    return profile


def joined_profile(parts: Sequence[Profile]) -> Profile:
    """Return the profile of the model that `parts` make together; see `join`."""
    first = parts[0]
    targets = [target for part in parts for target in part.model.targets]
    mixture = list(dict.fromkeys(target for part in parts for target in part.mixture_targets))
    fingerprints = {part.data_fingerprint for part in parts}
    document = first.model_dump(mode="json")
    document["model"] |= {"targets": targets, "bridges": False}
    document["train"] |= {"mixture_targets": mixture if set(mixture) != set(targets) else None}
    document |= {
        "made_with": {
            package: ", ".join(_distinct(part.made_with.get(package) for part in parts))
            for package in _distinct(package for part in parts for package in part.made_with)
        },
        "data_fingerprint": first.data_fingerprint if len(fingerprints) == 1 else None,
        "history": _history(parts),
        "license": _licence(parts),
        "scores": {} if any(part.model.niter for part in parts) else _merged(part.scores for part in parts),
        "weights_sha256": None,
    }
    return Profile.parse(document, "joint profile")


def _check_parts(parts: dict[str, ModelProfile], names: Sequence[str]) -> None:
    """Refuse models that cannot be one."""
    homes: dict[str, str] = {}
    first_name, first = next(iter(parts.items()))
    for name in names:
        part = parts[name]
        for target in part.targets:
            if target in homes:
                raise InputError(
                    f"{name}: has the target '{target}', and so has {homes[target]}; name models of different targets"
                )
            homes[target] = name
        if part.refiner_channels:
            raise InputError(
                f"{name}: refines the masks of its targets together (model.refiner_channels), for which a model with "
                "others has no weights; train the targets without, or all of them in one model"
            )
        if part.bridges and len(part.targets) > 1:
            raise InputError(
                f"{name}: its targets were trained with bridges (model.bridges): each filter needs the others of its "
                "model and would estimate something else in another one; train its targets without bridges"
            )
        differences = [
            f"{field} {getattr(part, field)}, not {getattr(first, field)}"
            for field in ModelProfile.model_fields
            if field not in _FREE and getattr(part, field) != getattr(first, field)
        ]
        if differences:
            raise InputError(
                f"{name}: does not go with {first_name}: {'; '.join(differences)}; the filters of a model are alike, "
                "so train the targets with one profile"
            )


def _check_output(folder: str) -> None:
    if tf.io.gfile.exists(folder) and (not tf.io.gfile.isdir(folder) or tf.io.gfile.listdir(folder)):
        raise InputError(f"{folder}: exists already; remove it or choose another folder for the joint model")


def _history(parts: Sequence[Profile]) -> list[dict[str, float]]:
    """Entries per epoch, with what is known of each target alone."""
    return [
        {"epoch": float(epoch + 1)}
        | _merged(
            {name: value for name, value in part.history[epoch].items() if name.startswith("valid_loss/")}
            for part in parts
            if epoch < len(part.history)
        )
        for epoch in range(max(len(part.history) for part in parts))
    ]


def _licence(parts: Sequence[Profile]) -> str | None:
    """Return the SPDX expression for works under several licences: all hold."""
    if not any(part.license for part in parts):
        return None
    return " AND ".join(_distinct(part.license or "NOASSERTION" for part in parts))


def _write_card(folder: str, parts: dict[str, tuple[str, ...]]) -> None:
    """Put the parts' cards one after the other, where there are any."""
    pages = []
    for name, targets in parts.items():
        path = os.path.join(name, CARD)
        if tf.io.gfile.exists(path):
            with tf.io.gfile.GFile(path) as file:
                pages.append(f"# {', '.join(targets)}\n\n{file.read().strip()}\n")
    if pages:
        with tf.io.gfile.GFile(os.path.join(folder, CARD), "w") as file:
            file.write("Joined of models that were trained apart; what follows describes each.\n\n" + "\n".join(pages))


def _merged(mappings: Iterable[dict[str, float]]) -> dict[str, float]:
    return {name: value for mapping in mappings for name, value in mapping.items()}


def _distinct(texts: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))


def _remove(folder: str) -> None:
    if tf.io.gfile.exists(folder):
        tf.io.gfile.rmtree(folder)
