"""Who may use the service; this is decided before anything else reads the request.

With a token, every ``/v1`` request must carry it. Without one the service listens on loopback only, and must refuse the
requests of foreign web pages in a browser on this machine. Such a request names a foreign host (DNS rebinding) or a
foreign origin (cross-site request).
"""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from creditgrid.core.wire import Problem
from creditgrid.service.api.problems import problem, problem_response
from creditgrid.service.settings import is_loopback

PROTECTED = "/v1"


class AuthMiddleware:
    """Refuses requests that lack the token or come from foreign web pages."""

    def __init__(self, app: ASGIApp, token: SecretStr | None) -> None:
        self._app = app
        self._token = None if token is None else token.get_secret_value().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        headers = {"WWW-Authenticate": 'Bearer realm="creditgrid"'} if refusal.status == 401 else None
        await problem_response(refusal, headers)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        if self._token is None:
            return _foreign_page(headers)
        path = scope["path"]
        if path != PROTECTED and not path.startswith(PROTECTED + "/"):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self._token):
            return None
        what = "is wrong" if given else "is missing"
        return problem(401, f"the API token {what}: send the header 'Authorization: Bearer <token>'")


def _foreign_page(headers: Headers) -> Problem | None:
    host = headers.get("host", "")
    if not is_loopback(_host_of(f"//{host}")):
        return problem(400, f"this service answers as 127.0.0.1 or localhost only; the request is for {host!r:.100}")
    origin = headers.get("origin")
    if origin is not None and not is_loopback(_host_of(origin)):
        return problem(403, f"web pages of {origin!r:.100} may not use this service")
    return None


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # such as an unclosed bracket
        return ""
