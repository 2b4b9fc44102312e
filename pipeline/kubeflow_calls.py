"""Calls to Kubeflow Pipelines: credentials, time limits, repetitions, and failures in one line with the remedy."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import time
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import kfp
import kfp_server_api  # type: ignore[import-untyped]
import urllib3  # type: ignore[import-untyped]
from kfp.client.client import KF_PIPELINES_ENDPOINT_ENV
from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials

from pipeline.cloud_settings import CloudSettings
from pipeline.remote import RemoteError
from umx_model.errors import InputError

Answer = TypeVar("Answer")

_TOKEN_FILE = "KF_PIPELINES_SA_TOKEN_PATH"
_TOKEN_IN_CLUSTER = "/var/run/secrets/kubeflow/pipelines/token"
_LOGIN = (
    f"set {_TOKEN_FILE} to a file with a token, or write the cookie of a browser that is logged in as "
    "client_authentication_cookie into ~/.config/kfp/context.json"
)
_OVERLOADED = (429,)
_BROKEN = (502, 503, 504)


class NotThere(InputError):  # noqa: N818 (it is no error where something is deleted)
    """Kubeflow does not have what was asked for."""


class _Page(Exception):  # noqa: N818
    """A web page came where data was expected."""


class _Client(kfp.Client):
    """kfp's client, whose answers must come in time and be data."""

    def __init__(self, host: str, namespace: str, timeout: float) -> None:
        self._namespace = namespace
        self._timeout = (timeout, timeout)
        token = os.environ.get(_TOKEN_FILE) or os.path.exists(_TOKEN_IN_CLUSTER)
        super().__init__(host=host, credentials=ServiceAccountTokenVolumeCredentials() if token else None)
        rest = self._healthz_api.api_client.rest_client
        rest.request = functools.partial(self._request, rest.request)

    def _load_config(self, *arguments: Any) -> kfp_server_api.Configuration:
        config = super()._load_config(*arguments)
        # Repeating is `Calls.call`'s, which waits in between.
        config.retries = urllib3.Retry(None, connect=0, read=0, status=0, other=0, redirect=5)
        return config

    def _load_context_setting_or_default(self) -> None:
        super()._load_context_setting_or_default()
        # Where there is none, the client asks the server while it is made, five times, and without a time limit. A
        # server with one user passes over it (ReplaceNamespace in backend/src/apiserver/resource).
        self._context_setting["namespace"] = self._namespace

    def _request(self, send: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        answer = send(*arguments, **options | {"_request_timeout": self._timeout})
        if _is_page(answer.getheaders()):
            raise _Page
        return answer


class Calls:
    """A Kubeflow installation, as `call` reaches it.

    Args:
        settings: where.
        timeout: seconds that an answer may take.
        patience: seconds for which a call is repeated while Kubeflow is overloaded or broken.
    """

    def __init__(self, settings: CloudSettings, timeout: float, patience: float) -> None:
        host = settings.kubeflow_host or os.environ.get(KF_PIPELINES_ENDPOINT_ENV, "")
        if not host:
            raise InputError(
                "kubeflow_host: none named; compile with --kubeflow-host, as https://kubeflow.example.com/pipeline"
            )
        self.host = (host if host.startswith("http") else f"https://{host}").rstrip("/")
        self._namespace = settings.namespace
        self._timeout = timeout
        self._patience = patience

    @cached_property
    def client(self) -> kfp.Client:
        """What `call`'s functions are taken from."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a note on versions
            return _Client(self.host, self._namespace, self._timeout)

    def call(
        self,
        function: Callable[[kfp.Client], Answer],
        *,
        missing: str = "",
        repeat: bool = True,
    ) -> Answer:
        """Call a function with the client.

        Args:
            function: takes the client.
            missing: what to say where Kubeflow finds nothing.
            repeat: whether the call may be repeated when it is not known if the first one was carried out.

        Raises:
            InputError: the user has to mend something: address, credentials, permissions, names.
            RemoteError: Kubeflow failed or did not answer.
        """
        deadline, wait = time.monotonic() + self._patience, min(1, self._patience / 4)
        while True:
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # the client prints links
                    return function(self.client)
            except kfp_server_api.ApiException as error:
                again = error.status in (*_OVERLOADED, *_BROKEN) if repeat else error.status in _OVERLOADED
                if not again or time.monotonic() + wait > deadline:
                    raise self._explain(error, missing, repeat) from None
            except _Page:
                raise InputError(
                    f"Kubeflow: {self.host} answers with a web page, perhaps a login; expected Kubeflow Pipelines: "
                    f"{_LOGIN}"
                ) from None
            except urllib3.exceptions.HTTPError as error:
                raise self._unreachable(error, repeat) from None
            except OSError as error:
                raise InputError(
                    f"{_TOKEN_FILE}: {error.filename} cannot be read ({error.strerror}); name a file with a token"
                ) from None
            time.sleep(wait)
            wait *= 2

    def _unreachable(self, error: Exception, repeat: bool) -> InputError | RemoteError:
        reason = getattr(error, "reason", None) or error
        if isinstance(error, urllib3.exceptions.LocationValueError):
            return InputError(f"kubeflow_host: {self.host} is no address; expected https://HOST or http://HOST:PORT")
        if isinstance(reason, urllib3.exceptions.SSLError):
            return RemoteError(
                f"Kubeflow: no secure connection to {self.host}; check its certificate, and whether it is http://"
            )
        if isinstance(reason, urllib3.exceptions.TimeoutError) and not isinstance(
            reason, urllib3.exceptions.NewConnectionError
        ):
            what = f"{self.host} did not answer within {self._timeout:g} s"
        else:
            what = f"{self.host} cannot be reached"
        return RemoteError(f"Kubeflow: {what}; check the address (kubeflow_host) and the network{_doubt(repeat)}")

    def _explain(self, error: kfp_server_api.ApiException, missing: str, repeat: bool) -> InputError | RemoteError:
        """Return the error to raise."""
        said, is_data = _said(error)
        reason = f" ({said})" if said else ""
        if error.status == 401:
            return InputError(f"Kubeflow: {self.host} asks for credentials, or does not accept these: {_LOGIN}")
        if error.status == 403:
            return InputError(
                f"Kubeflow: no permission in the namespace {self._namespace}; ask its owner to add you as a "
                f"contributor, or compile with another namespace{reason}"
            )
        if error.status in (404, 405) and not is_data:
            return InputError(
                f"Kubeflow: {self.host} is not Kubeflow Pipelines 2; expected its address, as "
                "https://kubeflow.example.com/pipeline"
            )
        if error.status == 404:
            return NotThere(missing or f"Kubeflow: not found{reason}")
        if error.status == 409:
            return InputError(f"Kubeflow: there is one of this name; choose another{reason}")
        if error.status == 429:
            return RemoteError(f"Kubeflow: too many requests; try again later{reason}")
        if 400 <= error.status < 500:
            return InputError(f"Kubeflow refuses: {said}")
        return RemoteError(f"Kubeflow failed: {said or error.reason}; try again later{_doubt(repeat)}")


def _doubt(repeat: bool) -> str:
    return "" if repeat else ", and look first whether it was done all the same"


def _is_page(headers: Any) -> bool:
    return "text/html" in str((headers or {}).get("Content-Type", ""))


def _said(error: kfp_server_api.ApiException) -> tuple[str, bool]:
    """Return what Kubeflow says, in one line, and whether it was Kubeflow that said it."""
    # {"error": ..., "code": 5, "message": ..., "details": [...]}: backend/src/common/util/error.go, by grpc-gateway.
    try:
        body = json.loads(error.body or "")
        words = " ".join(str(body["message"]).split())
    except (KeyError, TypeError, ValueError):
        return " ".join(str(error.reason or "").split()), False
    return (words if len(words) <= 300 else words[:300] + "..."), True
