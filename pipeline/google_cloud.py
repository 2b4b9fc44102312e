"""Calls to Google Cloud: credentials, time limits, repetitions, and failures in one line with the remedy."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import google.auth
import requests  # type: ignore[import-untyped]
from google.api_core import exceptions
from google.api_core.retry import Retry
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError
from google.auth.transport.requests import AuthorizedSession

from pipeline.remote import RemoteError
from umx_model.errors import InputError

Answer = TypeVar("Answer")

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_LOGIN = "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a service account's key"
_OVERLOADED = (exceptions.TooManyRequests,)
_BROKEN = (
    exceptions.InternalServerError,
    exceptions.BadGateway,
    exceptions.ServiceUnavailable,
    exceptions.GatewayTimeout,
)


@dataclass(frozen=True)
class Service:
    """A service of Google Cloud.

    Attributes:
        name: for people.
        api: by which a project enables it.
        role: that lets one use it, as this software does.
    """

    name: str
    api: str
    role: str


VERTEX = Service("Vertex AI", "aiplatform.googleapis.com", "roles/aiplatform.user")
STORAGE = Service("Cloud Storage", "storage.googleapis.com", "roles/storage.objectAdmin")
REGISTRY = Service("Artifact Registry", "artifactregistry.googleapis.com", "roles/artifactregistry.reader")


class GoogleCloud:
    """A project of Google Cloud, as seen with somebody's credentials.

    Args:
        project: its id.
        endpoint: a local server that stands for all of Google Cloud, `http://...`, which asks for no credentials;
            none otherwise.
        credentials: to use; those of the environment if None.
        timeout: seconds that an answer may take.
        patience: seconds for which a call is repeated while the service is overloaded or broken.
    """

    def __init__(
        self,
        project: str,
        endpoint: str = "",
        credentials: Credentials | None = None,
        timeout: float = 30,
        patience: float = 30,
    ) -> None:
        self._project = project
        self._endpoint = endpoint
        self._given = credentials
        self._timeout = timeout
        self._patience = patience

    @cached_property
    def credentials(self) -> Credentials:
        """Who is asking.

        Raises:
            InputError: there are no credentials.
        """
        if self._given is not None:
            return self._given
        if self._endpoint:
            return AnonymousCredentials()
        try:
            found, _ = google.auth.default(scopes=[_SCOPE])
        except DefaultCredentialsError as error:
            named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
            if named:
                raise InputError(
                    f"GOOGLE_APPLICATION_CREDENTIALS={named}: no usable key ({_sentence(error)})"
                ) from None
            raise InputError(f"Google Cloud: no credentials; {_LOGIN}") from None
        return found

    def call(
        self,
        service: Service,
        function: Callable[..., Answer],
        *,
        missing: str = "",
        repeat: bool = True,
        **arguments: Any,
    ) -> Answer:
        """Call a function of a client library.

        Args:
            service: that is called.
            function: takes a `timeout`, and the arguments.
            missing: what to say where the service finds nothing.
            repeat: whether the call may be repeated when it is not known if the first one was carried out.
            arguments: of the function.

        Raises:
            InputError: the user has to mend something: credentials, permissions, names.
            RemoteError: the service failed or did not answer.
        """
        retry = Retry(
            lambda error: isinstance(error, (*_OVERLOADED, *_BROKEN) if repeat else _OVERLOADED),
            initial=min(1, self._patience / 4),
            timeout=self._patience,
        )
        try:
            return retry(function)(timeout=self._timeout, **arguments)
        except exceptions.RetryError as error:
            raise self._explain(service, error.cause or error, missing, repeat) from None
        except (exceptions.GoogleAPICallError, GoogleAuthError, requests.RequestException) as error:
            raise self._explain(service, error, missing, repeat) from None

    def get(
        self, service: Service, path: str, missing: str = "", query: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Return what a service has at a path of its REST interface; errors are those of `call`."""
        answer: dict[str, Any] = self.call(
            service, self._get, url=f"{self._address(service)}{path}", params=query, missing=missing
        )
        return answer

    def _get(self, url: str, params: Mapping[str, str] | None, timeout: float) -> dict[str, Any]:
        answer = self._session.get(url, params=params, timeout=timeout)
        if not answer.ok:
            raise exceptions.from_http_response(answer)
        content: dict[str, Any] = answer.json()
        return content

    @cached_property
    def _session(self) -> AuthorizedSession:
        return AuthorizedSession(self.credentials)

    def _address(self, service: Service) -> str:
        emulator = os.environ.get("STORAGE_EMULATOR_HOST") if service is STORAGE else None
        return (emulator or self._endpoint or f"https://{service.api}").rstrip("/")

    def _explain(self, service: Service, error: Exception, missing: str, repeat: bool) -> InputError | RemoteError:
        """Return the error to raise."""
        said = _sentence(error)
        project = f"project {self._project}"
        if isinstance(error, (requests.Timeout, requests.ConnectionError, TransportError)):
            what = (
                f"no answer within {self._timeout:g} s" if isinstance(error, requests.Timeout) else "cannot be reached"
            )
            return RemoteError(f"{service.name}: {what}; check the network and the region{_doubt(repeat)}")
        if isinstance(error, (exceptions.Unauthorized, GoogleAuthError)):
            return InputError(f"Google Cloud: the credentials are not accepted, or no longer; {_LOGIN}")
        if isinstance(error, exceptions.Forbidden):
            # `error.reason` breaks on answers of REST interfaces.
            reason = next((detail["reason"] for detail in error.details if "reason" in detail), "")
            if reason == "SERVICE_DISABLED":
                enable = f"gcloud services enable {service.api} --project {self._project}"
                return InputError(f"{service.name}: not enabled in {project}; run `{enable}`")
            if reason == "CONSUMER_INVALID":
                return InputError(f"{project}: no such project; expected an id from `gcloud projects list`")
            if "actAs" in said:
                return InputError(
                    f"{project}: no permission to run as its service account; "
                    f"ask for roles/iam.serviceAccountUser on it ({said})"
                )
            return InputError(f"{service.name}: no permission in {project}; ask for the role {service.role} ({said})")
        if isinstance(error, exceptions.NotFound):
            return InputError(missing or f"{service.name}: not found in {project} ({said})")
        if isinstance(error, exceptions.TooManyRequests):
            return RemoteError(
                f"{service.name}: too many requests, or a quota of {project} is used up; "
                f"try again later, or ask for more in the console under Quotas ({said})"
            )
        if isinstance(error, exceptions.ClientError):
            return InputError(f"{service.name} refuses: {said}")
        return RemoteError(f"{service.name} failed: {said}; try again later{_doubt(repeat)}")


def _doubt(repeat: bool) -> str:
    return "" if repeat else ", and look first whether it was done all the same"


def _sentence(error: Exception) -> str:
    """Return what a service says, in one line, without the request that the client library puts before it."""
    text = str(getattr(error, "message", "") or error)
    words = " ".join(text.split())
    if "://" in words.split(": ", 1)[0]:
        words = words.split(": ", 1)[-1]
    return words if len(words) <= 300 else words[:300] + "..."
