"""Who gets in: every route, with all forms of missing, wrong and odd credentials, foreign hosts and origins."""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx

from .attempts import Attempt, send
from .sweeps import Sweeps
from .tally import Tally

OPEN = ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs")
REFUSED = (400, 401, 403, 404, 405, 421, 431)
"""Statuses of a request that does not get in."""
BODY = b'{"sql": "SELECT 1", "name": "intruder", "experiment": "noop", "axes": {"x": [987654321]}}'


def routes(document: Mapping[str, Any], sweeps: Sweeps) -> list[tuple[str, str]]:
    """Method and path of each protected operation, with ids that exist."""
    found = []
    for path, methods in document["paths"].items():
        if path in OPEN:
            continue
        values = {"sweep": sweeps.ids["succeeded"], "name": "noop"}
        values["key"] = sweeps.tasks[0] if "/tasks/" in path else sweeps.artifacts[0]
        filled = path
        for name, value in values.items():
            filled = filled.replace("{" + name + "}", value)
        found += [(method.upper(), filled) for method in methods]
    return found


def credentials(token: str) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Name and headers of each form that must not get in."""
    wrong = token[:-1] + chr(ord(token[-1]) ^ 1)
    right = token.encode()
    basic = base64.b64encode(b"admin:" + right)
    for name, value in {
        "empty": b"",
        "scheme alone": b"Bearer",
        "wrong": b"Bearer " + wrong.encode(),
        "a prefix": b"Bearer " + right[:-1],
        "one more character": b"Bearer " + right + b"x",
        "the first character": b"Bearer " + right[:1],
        "another case": b"Bearer " + right.swapcase(),
        "twice": b"Bearer " + right + b" " + right,
        "a list": b"Bearer " + right + b", Bearer " + right,
        "quoted": b'Bearer "' + right + b'"',
        "no scheme": right,
        "another scheme": b"Token " + right,
        "basic": b"Basic " + basic,
        "bearer of basic": b"Bearer " + basic,
        "base64": b"Bearer " + base64.b64encode(right),
        "null": b"Bearer null",
        "a star": b"Bearer *",
        "percent": b"Bearer %",
        "SQL": b"Bearer ' OR '1'='1",
        "latin-1": b"Bearer \xff\xfe" + right,
        "UTF-8": "Bearer €".encode() + right,
        "no separator": b"Bearer" + right,
        "equals": b"Bearer=" + right,
        "long": b"Bearer " + right * 400,
        "many colons": b"Bearer " + b":" * 4000,
    }.items():
        yield name, [("Authorization", value)]
    yield "none", []
    yield "a cookie", [("Cookie", b"token=" + right + b"; Authorization=Bearer " + right)]
    yield "another header", [("X-API-Key", right), ("X-Authorization", b"Bearer " + right)]
    yield "proxy", [("Proxy-Authorization", b"Bearer " + right)]
    yield "wrong before right", [("Authorization", b"Bearer " + wrong.encode()), ("Authorization", b"Bearer " + right)]
    yield "forwarded", [("X-Forwarded-For", b"127.0.0.1"), ("Forwarded", b"for=127.0.0.1"), ("Host", b"localhost")]
    yield "another URL", [("X-Original-URL", b"/healthz"), ("X-Rewrite-URL", b"/healthz")]
    yield "another method", [("X-HTTP-Method-Override", b"OPTIONS"), ("X-Method-Override", b"HEAD")]


def odd_paths(path: str) -> Iterator[str]:
    """Spellings of a path that a check of credentials could take for another one."""
    yield "/" + path
    yield path + "/"
    yield path + "//"
    yield "/." + path
    yield "/healthz/.." + path
    yield "/%2e" + path
    yield path.replace("/v1", "/V1", 1)
    yield path.replace("/v1", "/%76%31", 1)
    yield path.replace("/v1/", "/v1%2F", 1)
    yield path.replace("/v1/", "/v1;x/", 1)
    yield path.replace("/v1/", "/v1/./", 1)
    yield path.replace("/v1/", "/v1//", 1)
    yield path + "?token=x"
    yield path + "#/healthz"
    yield path + "%00"
    yield path + ";/healthz"


def attack_token(
    http: httpx.Client,
    document: Mapping[str, Any],
    sweeps: Sweeps,
    token: str,
    until: float,
    seed: int,
    tally: Tally,
) -> None:
    """A service with a token, attacked by a client without it: nothing protected is answered."""
    corpus = "credentials"
    for path in OPEN:
        send(http, corpus, Attempt(f"open: {path}", "GET", path, statuses=(200,)), tally)
    for method, path in _in_random_order(routes(document, sweeps), until, seed):
        for name, headers in credentials(token):
            _refuse(http, corpus, f"{name}: {method}", method, path, headers, tally)
        for odd in odd_paths(path):
            _refuse(http, corpus, f"odd path: {method}", method, odd, [], tally)
        for other in ("HEAD", "OPTIONS", "TRACE", "PATCH", "QUERY", "get", "PROPFIND"):
            _refuse(http, corpus, f"another method: {other}", other, path, [], tally)
        answer = http.request(method, path, headers={"Authorization": f"Bearer {token}x"}, content=b"")
        if token in answer.text or token in str(answer.headers):
            tally.fell_short(corpus, "the token is in an answer", f"{method} {path}")


def attack_origins(
    http: httpx.Client,
    url: str,
    document: Mapping[str, Any],
    sweeps: Sweeps,
    until: float,
    seed: int,
    tally: Tally,
) -> None:
    """A service without a token, asked by web pages: only its own origin may change anything, only loopback read."""
    corpus = "hosts and origins"
    port = httpx.URL(url).port or 80
    hosts = ["evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1"]
    hosts += ["[::ffff:10.0.0.1]", "0x7f.1.evil", "", "user@evil.example", "localhost@evil.example", "127.0.0.1, evil"]
    foreign = ["https://evil.example", "http://127.0.0.1.evil.example", "null", "http://localhost.evil.example"]
    foreign += ["file://", "chrome-extension://abc", "http://[::1", "http://localhost@evil.example", "data:text/html,x"]
    neighbours = [
        f"http://localhost:{port + 1}",
        f"http://127.0.0.1:{port - 1}",
        "http://localhost",
        f"https://localhost:{port}",
    ]
    for method, path in _in_random_order(routes(document, sweeps), until, seed):
        for host in hosts:
            _refuse(http, corpus, f"host {host!r}: {method}", method, path, [("Host", host.encode())], tally)
        for origin in foreign:
            _refuse(http, corpus, f"origin {origin}: {method}", method, path, [("Origin", origin.encode())], tally)
        if method == "GET" or path in ("/v1/plans", "/v1/query"):
            continue
        for origin in neighbours:
            _refuse(http, corpus, f"neighbour {origin}: {method}", method, path, [("Origin", origin.encode())], tally)
        for site in ("cross-site", "same-site"):
            headers = [("Sec-Fetch-Site", site.encode()), ("Content-Type", b"text/plain"), ("Origin", b"null")]
            _refuse(http, corpus, f"a form of a {site} page: {method}", method, path, headers, tally)


def _in_random_order(some: Sequence[tuple[str, str]], until: float, seed: int) -> Iterator[tuple[str, str]]:
    """All of them, unless the time is up before."""
    for item in random.Random(seed).sample(some, len(some)):
        if time.monotonic() > until:
            return
        yield item


def _refuse(
    http: httpx.Client,
    corpus: str,
    name: str,
    method: str,
    path: str,
    headers: list[tuple[str, bytes]],
    tally: Tally,
) -> None:
    body = None
    if method == "POST":
        body = BODY
        if not any(header == "Content-Type" for header, _ in headers):
            headers = [*headers, ("Content-Type", b"application/json")]
    send(http, corpus, Attempt(name, method, path, body, headers, limit_s=2.0, statuses=REFUSED), tally)
