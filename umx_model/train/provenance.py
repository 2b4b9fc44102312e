"""What made the weights: versions, devices, and where a training was resumed."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping

import tensorflow as tf

_PACKAGES = ("umx-pro", "tensorflow", "tensorflow-io", "keras", "numpy", "soundfile")


def provenance(strategy: tf.distribute.Strategy) -> dict[str, str]:
    """Return versions of Python, packages and CUDA, and the devices that `strategy` uses."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # run from a checkout
    devices = tf.config.list_physical_devices("GPU")
    if devices:
        build = tf.sysconfig.get_build_info()
        found |= {name: str(build[f"{name}_version"]) for name in ("cuda", "cudnn") if f"{name}_version" in build}
    names = [tf.config.experimental.get_device_details(device).get("device_name", device.name) for device in devices]
    kind = f"GPU ({', '.join(sorted(set(names)))})" if names else f"CPU ({platform.machine()})"
    found["devices"] = f"{strategy.num_replicas_in_sync} x {kind}"
    if strategy.num_replicas_in_sync > 1:
        found["strategy"] = type(strategy).__name__
    return found


def continued(before: Mapping[str, str], now: Mapping[str, str], step: int) -> dict[str, str]:
    """Add to what made the weights up to a step what makes them from there on.

        continued({"keras": "3.10.0"}, {"keras": "3.11.3"}, 120)   # {"keras": "3.10.0; from step 120: 3.11.3"}

    Args:
        before: what an earlier process wrote; empty where there was none.
        now: of this process.
        step: where it takes over.
    """
    if not before:
        return dict(now)
    both = dict(before)
    for name in now.keys() | before.keys():
        value, last = now.get(name, "none"), before.get(name, "none").rpartition(": ")[2]
        if value != last:
            both[name] = f"{before.get(name, 'none')}; from step {step}: {value}"
    return both
