"""What to look at before a run on Vertex AI: buckets and images. Each finding is one line with its remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

from pipeline.cloud_settings import COMPONENTS, CloudSettings
from pipeline.google_cloud import REGISTRY, STORAGE, GoogleCloud
from umx_model.errors import InputError

_IMAGE = re.compile(
    r"(?P<place>[a-z0-9-]+)-docker\.pkg\.dev/(?P<project>[^/]+)/(?P<repository>[^/]+)/"
    r"(?P<image>[^@:]+)(?::(?P<tag>[^@:]+))?(?:@(?P<digest>sha256:[0-9a-f]+))?"
)
# Buckets that are in more than one region: https://cloud.google.com/storage/docs/locations
_MULTI_REGIONS = {
    "US": r"us-.*",
    "EU": r"europe-(?!west2$|west6$).*",
    "ASIA": r"asia-.*",
    "NAM4": r"us-(central1|east1)",
    "EUR4": r"europe-(north1|west4)",
    "EUR5": r"europe-west[12]",
    "EUR7": r"europe-west[23]",
    "EUR8": r"europe-west[36]",
    "ASIA1": r"asia-northeast[12]",
}


def place_problems(data: str, push_destination: str) -> Iterator[str]:
    """Yield what is wrong with the names of a run's folders, without looking at them."""
    if not data.startswith(("gs://", "https://", "http://")):
        yield (
            f"data: {data or 'nothing'} is no place that Vertex AI can read; upload the database "
            f"(`gcloud storage cp -r DIR gs://BUCKET/FOLDER`) and give --param data=gs://BUCKET/FOLDER"
        )
    if not push_destination.startswith("gs://"):
        yield f"push_destination: {push_destination} is no place that Vertex AI can write to; expected gs://..."


def bucket_problems(cloud: GoogleCloud, settings: CloudSettings, data: str, push_destination: str) -> Iterator[str]:
    """Yield what is wrong with the buckets of folders on `gs://`: missing, unreadable, far away, or without data."""
    folders = {"pipeline_root": settings.pipeline_root, "data": data, "push_destination": push_destination}
    buckets: dict[str, list[str]] = {}
    for name, folder in folders.items():
        if folder.startswith("gs://"):
            buckets.setdefault(folder.split("/")[2], []).append(name)
    for bucket, names in buckets.items():
        label = ", ".join(names)
        missing = (
            f"{label}: there is no bucket gs://{bucket}; create it with "
            f"`gcloud storage buckets create gs://{bucket} --location={settings.region}`, or name another"
        )
        try:
            _list(cloud, bucket, "", missing)
            if "data" in names and not _list(cloud, bucket, data.split("/", 3)[3:], missing):
                yield f"data: {data} has no files; expected a database with train/ and valid/"
        except InputError as problem:
            yield str(problem) if problem.args == (missing,) else f"{label}: gs://{bucket}: {problem}"
            continue
        yield from _distance(cloud, bucket, label, settings.region)


def _list(cloud: GoogleCloud, bucket: str, folder: list[str] | str, missing: str) -> bool:
    """Return whether a folder of a bucket has files."""
    prefix = "".join(folder).strip("/")
    query = {"maxResults": "1"} | ({"prefix": f"{prefix}/"} if prefix else {})
    return bool(cloud.get(STORAGE, f"/storage/v1/b/{quote(bucket, '')}/o", missing, query).get("items"))


def _distance(cloud: GoogleCloud, bucket: str, label: str, region: str) -> Iterator[str]:
    try:
        found = cloud.get(STORAGE, f"/storage/v1/b/{quote(bucket, '')}")
    except InputError:
        return  # who may only use the files is not told where they are
    location = str(found.get("location", ""))
    regions = found.get("customPlacementConfig", {}).get("dataLocations", [])
    pattern = "|".join(map(re.escape, regions)) or _MULTI_REGIONS.get(location, re.escape(location))
    if location and not re.fullmatch(pattern, region, re.IGNORECASE):
        yield (
            f"{label}: gs://{bucket} is in {location.lower()}, and the run in {region}: reading would be slow and cost "
            f"extra; use a bucket in {region}, or compile with --region of the bucket"
        )


def image_problems(cloud: GoogleCloud, settings: CloudSettings) -> Iterator[str]:
    """Yield images that Artifact Registry does not have; those of other registries are not looked for."""
    for image in sorted({settings.image_of(component) for component in COMPONENTS}):
        found = _IMAGE.fullmatch(image)
        if found is None:
            if "-docker.pkg.dev/" in image:
                yield f"image: {image} is no image; expected REGION-docker.pkg.dev/PROJECT/REPOSITORY/IMAGE:TAG"
            continue
        where = f"/v1/projects/{found['project']}/locations/{found['place']}/repositories/{found['repository']}"
        version = f"versions/{found['digest']}" if found["digest"] else f"tags/{found['tag'] or 'latest'}"
        missing = f"image: there is no {image}; push it (`docker push {image}`), or compile with another --image"
        try:
            cloud.get(REGISTRY, f"{where}/packages/{quote(found['image'], '')}/{version}", missing)
        except InputError as problem:
            yield str(problem) if problem.args == (missing,) else f"image: {image}: {problem}"
