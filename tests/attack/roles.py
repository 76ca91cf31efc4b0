"""What each role may not do: every route, with tokens of readers and submitters, and with ended ones."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import httpx

from .access import BODY, routes
from .attempts import Attempt, client, send
from .sweeps import Sweeps
from .tally import Tally

CORPUS = "roles"
ADMINISTRATION = ("/v1/gc", "/v1/tokens", "/v1/audit")
FOR_READERS = ("/v1/plans", "/v1/query")
"""What a reader may POST to."""
EXPIRES_S = 1.0


def attack(url: str, admin: httpx.Client, document: Mapping[str, Any], sweeps: Sweeps, tally: Tally) -> None:
    """Tokens of people on a service whose sweeps all belong to the administrator."""
    reader, submitter = _token(admin, "reader", "read"), _token(admin, "submitter", "submit")
    expired, revoked = _token(admin, "expired", "admin", expires_s=EXPIRES_S), _token(admin, "revoked", "admin")
    with client(url, revoked) as http:
        http.get("/v1/sweeps").raise_for_status()  # so that the service remembers it
    admin.delete("/v1/tokens/revoked").raise_for_status()
    time.sleep(EXPIRES_S)
    for name, token in (("reader", reader), ("submitter", submitter), ("expired", expired), ("revoked", revoked)):
        with client(url, token) as http:
            for method, path in routes(document, sweeps):
                statuses = _expected(name, method, path)
                body = BODY if method == "POST" else None
                headers = [("Content-Type", "application/json")]
                attempt = Attempt(f"{name}: {method}", method, path, body, headers, 5.0, statuses)
                if not path.endswith("/checkpoints"):
                    send(http, CORPUS, attempt, tally)
    for secret in (reader, submitter, expired, revoked):
        for path in ("/v1/tokens", "/v1/audit"):
            if secret in admin.get(path).text:
                tally.fell_short(CORPUS, "a token in an answer", path)


def _expected(name: str, method: str, path: str) -> tuple[int, ...] | None:
    """The statuses that are allowed; None for all."""
    if name in ("expired", "revoked"):
        return (401,)
    if path.startswith(ADMINISTRATION):
        return (403,)
    if method == "GET" or path in FOR_READERS:
        return None
    if name == "submitter" and path == "/v1/sweeps":
        return None
    if "{" in path or path.endswith("/extend"):  # whose it is may be asked after whether it exists, or can be read
        return (403, 404, 422)
    return (403,)


def _token(admin: httpx.Client, name: str, role: str, **more: float) -> str:
    answer = admin.post("/v1/tokens", json={"name": name, "role": role, **more})
    return str(answer.raise_for_status().json()["token"])
