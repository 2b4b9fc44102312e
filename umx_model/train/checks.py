"""What is asked of settings and samples before training starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from umx_model.data.check import check_fits
from umx_model.data.track_folder import Sample
from umx_model.errors import InputError
from umx_model.profile import Profile


def check_trainable(profile: Profile, samples: Mapping[str, Sequence[Sample]], replicas: int) -> None:
    """Refuse what cannot be trained on before anything is written.

    Args:
        profile: of the model and its training.
        samples: to train on and to validate on, under `train` and `valid`.
        replicas: devices that share each batch.

    Raises:
        InputError: settings that do not go together, or samples that do not fit them.
    """
    model, settings = profile.model, profile.train
    if settings.excerpt_seconds * model.sample_rate < model.n_fft:
        raise InputError(
            f"train.excerpt_seconds: {settings.excerpt_seconds:g} s is shorter than one frame of "
            f"{model.n_fft} samples (model.n_fft); use at least {model.n_fft / model.sample_rate:.3g} s"
        )
    if settings.batch_size % replicas:
        raise InputError(
            f"train.batch_size: {settings.batch_size} excerpts cannot be shared out evenly over "
            f"{replicas} devices; use a multiple of {replicas}"
        )
    for split in ("train", "valid"):
        if not samples.get(split):
            raise InputError(f"{split}: no samples; a database needs at least one to train on and one to validate on")
    check_fits(samples["train"], model, settings.read_seconds)
    check_fits(samples["valid"], model, model.n_fft / model.sample_rate)
