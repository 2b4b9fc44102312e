"""The part of a cache key that sees code.

TFX decides whether a component may be skipped from its class path, inputs and execution
properties; an edited executor changes none of them. Every component here therefore has a
`code_version` property: a hash of the source files that its result depends on.
"""

import hashlib
import importlib.util
from pathlib import Path


def code_version(*modules: str) -> str:
    """Hash the source of modules and, of packages, everything below them.

    Args:
        *modules: dotted names, for example `"umx_model.data"`.

    Returns:
        16 hexadecimal digits that change when a file is edited, added, renamed or removed.
    """
    digest = hashlib.sha256()
    for name in sorted(modules):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"{name}: no such module")
        origin = Path(spec.origin)
        files = sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]
        for file in files:
            digest.update(f"{name}/{file.relative_to(origin.parent)}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
