"""Models that are known by name: those in this folder, and those in the folders of `UMX_PRO_MODELS`.

A model is a model folder (`profile.json`, `model.weights.h5`, `card.md`), and its name is the folder's.
`UMX_PRO_MODELS` holds one or more folders, separated as in `PATH`; each is a model folder or holds some.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path

import tensorflow as tf

from umx_model.errors import InputError
from umx_model.profile import FILE_NAME, Profile

VARIABLE = "UMX_PRO_MODELS"

# What a licence means for whoever uses the weights, in a word.
_TERMS = {"CC-BY-NC-SA-4.0": "CC BY-NC-SA 4.0, not for commercial use"}


def known_models() -> dict[str, str]:
    """Return the model folders that have a name, `{name: folder}`; a name of `UMX_PRO_MODELS` hides a shipped one.

    Raises:
        InputError: `UMX_PRO_MODELS` names a folder that is not there.
    """
    models: dict[str, str] = {}
    # The colon of gs:// separates nothing.
    for root in re.split(f"{os.pathsep}(?!//)", os.environ.get(VARIABLE, "")):
        if not root:
            continue
        if not tf.io.gfile.isdir(root):
            raise InputError(f"{root}: no such folder; the environment variable {VARIABLE} names it")
        models = find_models(root) | models
    return shipped_models() | models


def shipped_models() -> dict[str, str]:
    """Return the model folders that come with the program, `{name: folder}`."""
    return find_models(os.path.dirname(__file__))


def find_models(root: str) -> dict[str, str]:
    """Return the model folders that a folder is or holds, `{name: folder}`, sorted by name."""
    root = root.rstrip("/") or "/"
    if tf.io.gfile.exists(os.path.join(root, FILE_NAME)):
        return {os.path.basename(os.path.abspath(root) if "://" not in root else root): root}
    folders = {name.rstrip("/"): os.path.join(root, name.rstrip("/")) for name in tf.io.gfile.listdir(root)}
    return {
        name: folder for name, folder in sorted(folders.items()) if tf.io.gfile.exists(os.path.join(folder, FILE_NAME))
    }


def locate_model(name_or_path: str) -> str:
    """Return the path of a model that is given by its name; paths are returned as they are.

    Raises:
        InputError: neither a known name nor a path at which there is something.
    """
    if tf.io.gfile.exists(name_or_path) or tf.io.gfile.exists(name_or_path + ".index"):  # a checkpoint's path is a stem
        return name_or_path
    models = known_models()
    if name_or_path in models:
        return models[name_or_path]
    known = f"; known by name: {', '.join(models)}" if models else ""
    raise InputError(
        f"{name_or_path}: no such model; expected a model folder, a weights file, a checkpoint, a SavedModel "
        f"or a name that `umx-pro models` lists{known}"
    )


def shipped_name(path: str) -> str | None:
    """Return the name of a model that comes with the program, given its folder; None of another one."""
    real = os.path.realpath(path)
    return next((name for name, folder in shipped_models().items() if os.path.realpath(folder) == real), None)


def mention_licence(path: str) -> None:
    """Tell on stderr under which licence a shipped model's weights are, once for each user and model.

    Args:
        path: of a model; nothing is told of those that do not come with the program.
    """
    name = shipped_name(path)
    if name is None:
        return
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    mentioned = Path(cache, "umx-pro", "licences-mentioned", name)
    with contextlib.suppress(OSError):
        if mentioned.exists():
            return
    stated = Profile.read(path).license or "not stated"
    print(
        f"umx-pro: licence of the model {name}: {_TERMS.get(stated, stated)}; see {os.path.join(path, 'card.md')} "
        "(shown once)",
        file=sys.stderr,
        flush=True,
    )
    if mentioned.is_absolute():  # there is a home
        with contextlib.suppress(OSError):  # where nothing can be remembered, it is told every time
            mentioned.parent.mkdir(parents=True, exist_ok=True)
            mentioned.touch()
