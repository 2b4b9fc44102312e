"""Entering versions into Vertex AI's model registry: Google's own client, against a server on loopback."""

import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest
from gcs import GcsServer

from components.pusher.registry import check_registry
from umx_model.errors import InputError

PLACE = "projects/music/locations/europe-west4"


class _Registry(http.server.BaseHTTPRequestHandler):
    """The three methods that are needed, as in the API's description (aiplatform.googleapis.com, v1)."""

    uploads: list[dict[str, Any]] = []
    refuse = False

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answer(self, document: dict[str, Any], code: int = 200) -> None:
        content = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _models(self) -> list[dict[str, Any]]:
        return [
            {
                "name": f"{PLACE}/models/42",
                "displayName": upload["model"]["displayName"],
                "versionId": str(index + 1),
                "versionAliases": upload["model"]["versionAliases"],
            }
            for index, upload in enumerate(self.uploads)
        ]

    def do_GET(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        if self.refuse:
            self._answer({"error": {"code": 403, "message": "not for you", "status": "PERMISSION_DENIED"}}, 403)
        elif path == f"/v1/{PLACE}/models":
            assert 'display_name="umx-pro"' in urllib.parse.unquote(self.path)
            self._answer({"models": self._models()[-1:]})
        elif path == f"/v1/{PLACE}/models/42:listVersions":
            self._answer({"models": self._models()})
        elif re.fullmatch(rf"/v1/{PLACE}/models/42(@\d+)?", path):
            self._answer(self._models()[-1])
        else:
            self._answer({"error": {"code": 404, "message": path, "status": "NOT_FOUND"}}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path.startswith(f"/v1/{PLACE}/models:upload"), self.path
        self.uploads.append(body)
        response = {
            "@type": "type.googleapis.com/google.cloud.aiplatform.v1.UploadModelResponse",
            "model": f"{PLACE}/models/42",
            "modelVersionId": str(len(self.uploads)),
        }
        self._answer({"name": f"{PLACE}/models/42/operations/1", "done": True, "response": response})


@pytest.fixture
def registry() -> Iterator[tuple[type[_Registry], str]]:
    """The handler, which remembers uploads, and the server's address."""
    _Registry.uploads, _Registry.refuse = [], False
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Registry) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield _Registry, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


PROGRAM = """
import json, sys
import tensorflow as tf
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform
from components.pusher.registry import register
from components.pusher.versions import add_version
from umx_model.errors import InputError

def fill(folder):
    for name, text in (("saved_model.pb", ""), ("lineage.json", json.dumps({"weights_sha256": "a" * 64}))):
        with tf.io.gfile.GFile(f"{folder}/{name}", "w") as file:
            file.write(text)

aiplatform.init(credentials=AnonymousCredentials(), api_endpoint=sys.argv[1], api_transport="rest")
versions = [add_version("gs://bucket/serving", fill, 5) for _ in range(2)]
try:
    print(json.dumps([register(versions[index], sys.argv[2]) for index in (0, 1, 1)]))
except InputError as error:
    print(error)
"""


def test_versions_are_entered_once(registry: tuple[type[_Registry], str], gcs: GcsServer) -> None:
    server, address = registry
    gcs.create_bucket("bucket")
    *_, last = gcs.run(PROGRAM, address, PLACE).stdout.splitlines()  # Google's client talks before
    assert json.loads(last) == [f"{PLACE}/models/42"] * 3
    first, second = server.uploads
    assert first["model"]["displayName"] == "umx-pro"
    assert first["model"]["artifactUri"] == "gs://bucket/serving/1"
    assert "tf2-cpu" in first["model"]["containerSpec"]["imageUri"]
    assert first["model"]["versionAliases"] == ["push-1-aaaaaaaaaaaa", "default"]
    assert first["model"]["versionDescription"] == "weights aaaaaaaaaaaa"
    assert "parentModel" not in first
    assert second["parentModel"] == f"{PLACE}/models/42"
    assert second["model"]["artifactUri"] == "gs://bucket/serving/2"
    assert second["model"]["versionAliases"] == ["push-2-aaaaaaaaaaaa", "default"]


def test_refusal_is_one_line(registry: tuple[type[_Registry], str], gcs: GcsServer) -> None:
    server, address = registry
    server.refuse = True
    gcs.create_bucket("bucket")
    [line] = gcs.run(PROGRAM, address, PLACE).stdout.splitlines()
    assert line.startswith(f"{PLACE}: Vertex AI does not take version 1 (")
    assert "not for you" in line


def test_what_cannot_be_a_registry_is_refused() -> None:
    check_registry(PLACE, "gs://bucket/serving")
    with pytest.raises(InputError, match="expected projects/PROJECT/locations/LOCATION, found 'music'"):
        check_registry("music", "gs://bucket/serving")
    with pytest.raises(InputError, match="Vertex AI reads versions from gs:// only"):
        check_registry(PLACE, "/out/serving")
