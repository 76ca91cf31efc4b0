"""HTTP with the service: retries requests, and turns every failure into one of the client's errors.

Every request of the API may be repeated: reads change nothing, a submission has one Idempotency-Key for all its tries,
and cancel, pause, extend and the like lead to the same state twice. So after a lost connection and the answers 502, 503
and 504 the request is sent again, a limited number of times, with growing random pauses. A service that has answered
before may be restarting, so it gets more tries.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from creditgrid.client.errors import ApiError, BadSetting, CannotConnect, DamagedAnswer, UnexpectedAnswer, api_error
from creditgrid.core.files import atomic_file
from creditgrid.core.wire import Problem

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE, TOKEN_VARIABLE = "CREDITGRID_URL", "CREDITGRID_TOKEN"

FIRST_TRIES, TRIES = 3, 9
"""Tries while the service has not answered yet (about half a second) and after it has (about half a minute)."""
PATIENCE_S = 60.0
"""No further try starts later than this: one that takes minutes to fail is not repeated."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 8.0
CONNECT_TIMEOUT_S = 10.0
COMPUTING_TIMEOUT_S = 600.0
"""Limit for answers that take time to compute: a plan of a million cells, a query, a summary."""
LOST = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)
"""What httpx raises when the connection is lost."""
UNAVAILABLE = (502, 503, 504)

Answer = TypeVar("Answer")
Model = TypeVar("Model", bound=BaseModel)


class Connection:
    """One service: its URL, its token, and a pool of connections to it. Several threads may use it.

    Args:
        url: of the service's root; default: $CREDITGRID_URL, or http://127.0.0.1:8000.
        token: the API token; default: $CREDITGRID_TOKEN, or none.
        timeout: seconds without a byte after which a connection counts as lost.
        transport: replaces the network, in tests.

    Raises:
        BadSetting: for a URL or token that cannot be used.
    """

    def __init__(
        self, url: str | None, token: str | None, timeout: float, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url = _checked_url(url or usual_url())
        token = (token or os.environ.get(TOKEN_VARIABLE) or "").strip()
        if not token.isascii() or not token.isprintable():
            raise BadSetting(
                f"the token has characters that a header cannot hold: correct --token or ${TOKEN_VARIABLE}"
            )
        self._timeout = timeout
        self.answered = False
        """Whether the service has ever answered on this connection."""
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            transport=transport,
            # A proxy from the environment cannot reach this machine's loopback.
            trust_env=httpx.URL(self.url).host not in ("127.0.0.1", "::1", "localhost"),
        )

    def close(self) -> None:
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        computing: bool = False,
    ) -> httpx.Response:
        """The whole answer; ``computing`` for answers that take time to compute.

        Its ``extensions["tries"]`` is how often the request was sent.

        Raises:
            CannotConnect, ApiError, UnexpectedAnswer: after the last try, or at once if another try would not help.
        """
        params = {name: value for name, value in (params or {}).items() if value is not None}
        request = self._http.build_request(
            method, path, params=params, json=json, headers=headers, timeout=self._read_timeout(computing)
        )

        tries = 0

        def send() -> httpx.Response:
            nonlocal tries
            tries += 1
            return self._checked(self._http.send(request))

        response = self.persist(send)
        response.extensions["tries"] = tries
        return response

    def get(self, model: type[Model], *steps: str, computing: bool = False) -> Model:
        """The resource at ``steps`` as ``model``; raises as ``request`` and ``read`` do."""
        return read(self.request("GET", resource(*steps), computing=computing), model)

    def upload(self, path: str, source: Path, media_type: str) -> httpx.Response:
        """The answer to the file ``source``, which is sent in pieces; every try starts at the first.

        Raises as ``request`` does, and OSError if the file cannot be read.
        """

        def send() -> httpx.Response:
            with source.open("rb") as file:
                headers = {"Content-Type": media_type}
                timeout = self._read_timeout(computing=True)
                return self._checked(self._http.post(path, content=file, headers=headers, timeout=timeout))

        return self.persist(send)

    def download(self, path: str, target: Path, *, accept: str) -> None:
        """Write the answer to the file ``target``, which appears when it is complete; every try starts from zero.

        Raises as ``request`` and ``check_digest`` do, and OSError if the file cannot be written.
        """

        def fetch() -> None:
            with (
                atomic_file(target) as file,
                self.stream(path, headers={"Accept": accept}, computing=True) as response,
            ):
                found = hashlib.sha256()
                for chunk in response.iter_bytes():
                    found.update(chunk)
                    file.write(chunk)
                check_digest(response, found.digest())

        self.persist(fetch)

    @contextmanager
    def stream(
        self,
        path: str,
        *,
        headers: Mapping[str, str],
        read_timeout: float | None = None,
        computing: bool = False,
    ) -> Iterator[httpx.Response]:
        """An answer that is read in pieces, without retries; raises httpx's errors when the connection is lost."""
        timeout = (
            self._read_timeout(computing) if read_timeout is None else httpx.Timeout(self._timeout, read=read_timeout)
        )
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if not response.is_success:
                response.read()
            yield self._checked(response)

    def persist(self, attempt: Callable[[], Answer]) -> Answer:
        """The result of ``attempt``, repeated while the connection is lost or the service is unavailable."""
        patience = Patience(self)
        while True:
            try:
                return attempt()
            except (*LOST, ApiError) as error:
                patience.after(error)
            except httpx.HTTPError as error:
                raise CannotConnect(f"cannot talk to {self.url}: {_reason(error)}") from error

    def _read_timeout(self, computing: bool) -> httpx.Timeout:
        read = max(self._timeout, COMPUTING_TIMEOUT_S) if computing else self._timeout
        return httpx.Timeout(self._timeout, connect=min(self._timeout, CONNECT_TIMEOUT_S), read=read)

    def _checked(self, response: httpx.Response) -> httpx.Response:
        """The response if it is a success; otherwise raises its error."""
        self.answered = True
        if response.is_success:
            return response
        if not response.is_error:
            where = response.headers.get("Location", "nowhere")
            raise UnexpectedAnswer(
                f"{self.url} answers {response.status_code} and redirects to {where}: use that as the URL"
            )
        raise api_error(_problem(response, self.url))


class Patience:
    """The pauses between the tries of one request, and their limit."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.reset()

    def reset(self) -> None:
        """Count from zero again, because a try succeeded."""
        self._tries, self._since = 0, monotonic()

    def after(self, error: httpx.HTTPError | ApiError) -> None:
        """Pause after a failed try.

        Raises:
            CannotConnect, ApiError: if another try would not help, or the limit is reached.
        """
        self._tries += 1
        failure: CannotConnect | ApiError
        if isinstance(error, ApiError):
            error.tries = self._tries
            if error.problem.status not in UNAVAILABLE:
                raise error
            failure = error
        else:
            failure = self._cannot_connect(error)
        tries = TRIES if self._connection.answered else FIRST_TRIES
        if self._tries >= tries or monotonic() - self._since > PATIENCE_S:
            raise failure from error
        length = min(FIRST_PAUSE_S * 2 ** (self._tries - 1), LONGEST_PAUSE_S)
        sleep(length * random.uniform(0.5, 1))  # noqa: S311 - jitter, so that clients do not return all at once

    def _cannot_connect(self, error: httpx.HTTPError) -> CannotConnect:
        url, reason = self._connection.url, _reason(error)
        if self._connection.answered:
            return CannotConnect(
                f"lost the connection to {url} ({reason}) and did not regain it in {self._tries} tries"
            )
        return CannotConnect(
            f"no CreditGrid service answers at {url} ({reason}). Start one with `creditgrid serve`, or give its URL "
            f"with --url or ${URL_VARIABLE}"
        )


def usual_url() -> str:
    """The URL of the service if none is given."""
    return (os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")


def url_option(url: str) -> str:
    """What a command about the service at ``url`` must end with: nothing if it is the usual one."""
    return "" if url == usual_url() else f" --url {url}"


def resource(*steps: str) -> str:
    """A path of the API; a step cannot lead out of its place."""
    return "/".join(("/v1", *(quote(step, safe="") for step in steps)))


def read(response: httpx.Response, model: type[Model]) -> Model:
    """The body as ``model``.

    Raises:
        UnexpectedAnswer: if the body does not fit the model.
    """
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        where = response.request.url
        raise UnexpectedAnswer(
            f"the answer of {where} is no {model.__name__}: is this a CreditGrid service of this version?"
        ) from error


def check_digest(response: httpx.Response, sha256: bytes) -> None:
    """Compare the SHA-256 of the received data with the one in ``Repr-Digest`` (RFC 9530), if the service sent one.

    Raises:
        DamagedAnswer: if they differ.
    """
    recorded = re.search(r"(?:^|[,\s])sha-256=:([A-Za-z0-9+/=]+):", response.headers.get("Repr-Digest", ""))
    if recorded is not None and recorded[1] != base64.b64encode(sha256).decode():
        raise DamagedAnswer(
            f"{response.request.url} is damaged: its SHA-256 differs from the one recorded when it was written"
        )


def _problem(response: httpx.Response, url: str) -> Problem:
    if response.headers.get("Content-Type", "").startswith("application/problem+json"):
        return read(response, Problem)
    body = " ".join(response.text.split())[:200] or "empty body"
    detail = f"{url} answers {response.status_code} {response.reason_phrase} ({body}): is it a CreditGrid service?"
    return Problem(title=response.reason_phrase, status=response.status_code, detail=detail)


def _checked_url(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise BadSetting(f"{text!r} is not a URL ({error}): write it like {DEFAULT_URL}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise BadSetting(f"{text!r} is not an http(s) URL: write it like {DEFAULT_URL}")
    return text.rstrip("/")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
