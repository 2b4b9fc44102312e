"""The model registry of Vertex AI."""

from __future__ import annotations

import re

from components.pusher.versions import number, served_weights
from umx_model.errors import InputError

NAME = "umx-pro"
# Google's container that serves SavedModels.
_IMAGE = "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest"
_REGISTRY = re.compile(r"projects/[^/]+/locations/[^/]+")


def check_registry(registry: str, destination: str) -> None:
    """Refuse a registry that cannot be one, or versions that it could not read.

    Raises:
        InputError: not of the form `projects/PROJECT/locations/LOCATION`, or the versions are not in a bucket.
    """
    if not _REGISTRY.fullmatch(registry):
        raise InputError(f"vertex_registry: expected projects/PROJECT/locations/LOCATION, found {registry!r}")
    if not destination.startswith("gs://"):
        raise InputError(
            f"vertex_registry: Vertex AI reads versions from gs:// only, and they are pushed to {destination}; "
            "name a push_destination in a bucket"
        )


def register(version: str, registry: str) -> str:
    """Enter a version into the registry, as a version of the model `umx-pro`, and make it the default there.

    A version that is there already, known by its alias `push-<number>-<weights>`, is left alone. A rollback is not
    entered: there, one moves the alias `default`.

    Args:
        version: its folder, in a bucket.
        registry: `projects/PROJECT/locations/LOCATION`. Credentials are those of the environment.

    Returns:
        The model's resource name.

    Raises:
        InputError: `check_registry` refuses it, or Vertex AI does.
    """
    check_registry(registry, version)
    # Imported here: it takes seconds, and few push there.
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import aiplatform

    project, location = registry.split("/")[1::2]
    weights = served_weights(version)[:12]
    alias = f"push-{number(version)}-{weights}"
    try:
        models = aiplatform.Model.list(filter=f'display_name="{NAME}"', project=project, location=location)
        parent = models[0].resource_name if models else None
        versions = models[0].versioning_registry.list_versions() if models else []
        if any(alias in (found.version_aliases or ()) for found in versions):
            return str(parent)
        uploaded = aiplatform.Model.upload(
            display_name=NAME,
            parent_model=parent,
            artifact_uri=version,
            serving_container_image_uri=_IMAGE,
            version_aliases=[alias],
            version_description=f"weights {weights}",
            project=project,
            location=location,
        )
    except (GoogleAPICallError, GoogleAuthError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{registry}: Vertex AI does not take version {number(version)} ({reason}); it is pushed all the same, "
            "and the next run tries again"
        ) from None
    return str(uploaded.resource_name)
