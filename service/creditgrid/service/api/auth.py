"""Who may use the service; this is decided before anything else reads the request.

With a token, every ``/v1`` request must carry one whose role allows it (``access``). Without one the service listens on
loopback only, and must refuse the requests of foreign web pages in a browser on this machine. Such a request names a
foreign host (DNS rebinding) or a foreign origin (cross-site request). Only pages of the service itself may change
anything: another port of this machine is another program.
"""

from __future__ import annotations

import hmac
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import urlsplit

import structlog
from pydantic import SecretStr, ValidationError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from creditgrid.core.errors import ForbiddenError
from creditgrid.core.wire import Problem, Role
from creditgrid.service.api.access import find_access
from creditgrid.service.api.problems import problem, problem_response
from creditgrid.service.people.actor import ANYONE, OPERATOR, Actor
from creditgrid.service.people.audit import Audit
from creditgrid.service.people.tokens import ADMIN, Tokens, digest
from creditgrid.service.settings import is_loopback

PROTECTED = "/v1"
SAFE_METHODS = frozenset(["GET", "HEAD", "OPTIONS"])
OWN_SITE = frozenset(["same-origin", "none"])
"""Values of ``Sec-Fetch-Site``, which browsers send: a page of the service, and a user who typed the address."""
PORTS = {"http": 80, "https": 443}


class AuthMiddleware:
    """Refuses requests without a token that allows them, or from foreign web pages.

    What it accepts has an actor, ``scope["state"]["actor"]``. Refused changes are in the audit log, also those that a
    later part of the service refuses with status 403.

    Args:
        app: the next ASGI app.
        token: the administrator's, from the settings; None for a service that may have no tokens.
        tokens: those of people.
        audit: takes refused changes.
    """

    def __init__(self, app: ASGIApp, token: SecretStr | None, tokens: Tokens, audit: Audit) -> None:
        self._app, self._tokens, self._audit = app, tokens, audit
        self._admin = None if token is None else digest(token.get_secret_value())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        found = self._actor(scope)
        if isinstance(found, Problem):
            headers = {"WWW-Authenticate": 'Bearer realm="creditgrid"'} if found.status == 401 else None
            await problem_response(found, headers)(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        actor = state["actor"] = replace(found, request=state.get("request"))
        if actor.name is not None:
            structlog.contextvars.bind_contextvars(actor=actor.name)  # log lines of this request say who makes it
        access, target = find_access(scope["method"], scope["path"]) or (None, "")

        if access is not None and access.action:
            send = self._noting_refusals(send, actor, access.action, target)
        try:
            actor.require(Role.READ if access is None else access.role)
        except ForbiddenError as error:
            await problem_response(problem(403, str(error)))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _noting_refusals(self, send: Send, actor: Actor, action: str, target: str) -> Send:
        refused = False

        async def send_and_note(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                refused = message["status"] == 403
            elif refused:
                refused = False
                self._audit.note_refusal(actor, action, target, _detail(message["body"]))
            await send(message)

        return send_and_note

    def _actor(self, scope: Scope) -> Actor | Problem:
        headers = Headers(scope=scope)
        if self._admin is None and not self._tokens.exist:
            return _foreign_page(scope, headers) or OPERATOR
        path = scope["path"]
        if path != PROTECTED and not path.startswith(PROTECTED + "/"):
            return ANYONE
        scheme, _, given = headers.get("authorization", "").partition(" ")
        text = given.strip() if scheme.lower() == "bearer" else ""
        if self._admin is not None and hmac.compare_digest(digest(text), self._admin):
            return Actor(ADMIN, Role.ADMIN)
        token = self._tokens.find(text)
        what = "is wrong" if given else "is missing"
        if token is not None:
            if not token.expired():
                return token.actor
            ended = datetime.fromtimestamp(token.expires_at or 0, UTC)
            what = (
                f"of {token.actor.name!r} expired at {ended:%Y-%m-%d %H:%M} UTC, so ask an administrator for a new one"
            )
        return problem(401, f"the API token {what}: send the header 'Authorization: Bearer <token>'")


def _detail(body: bytes) -> str:
    try:
        return Problem.model_validate_json(body).detail
    except ValidationError:  # it comes in several messages
        return "refused"


def _foreign_page(scope: Scope, headers: Headers) -> Problem | None:
    host = headers.get("host", "")
    if not is_loopback(_host_of(f"//{host}")):
        return problem(400, f"this service answers as 127.0.0.1 or localhost only; the request is for {host!r:.100}")
    origin = headers.get("origin")
    if origin is not None and not is_loopback(_host_of(origin)):
        return problem(403, f"web pages of {origin!r:.100} may not use this service")
    if scope["method"] in SAFE_METHODS:
        return None
    if origin is not None and (_origin(origin) or origin) != _origin(f"{scope['scheme']}://{host}"):
        return problem(403, f"web pages of {origin!r:.100} may not change anything here, only those of this service")
    if headers.get("sec-fetch-site", "none") not in OWN_SITE:
        return problem(403, "web pages of another site may not change anything here, only those of this service")
    return None


def _origin(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None for what is not the origin of a web page."""
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS[parts.scheme]
    except (ValueError, KeyError):
        return None
    return parts.scheme, parts.hostname or "", port


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # such as an unclosed bracket
        return ""
