"""Requests that no honest client sends: malformed, lying about their length, pipelined, or cut off."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(189)
BAD = (400, 404, 405, 411, 413, 414, 415, 417, 422, 426, 431, 501, 505)
"""Statuses of a malformed request; closing the connection without one is allowed too."""
NO_TOKEN = (*BAD, 401, 403)
JSON = "Content-Type: application/json"
BINARY = "Content-Type: application/octet-stream"
CHUNKED = "Transfer-Encoding: chunked"


@dataclass(frozen=True, slots=True)
class Exchange:
    """Bytes to send. ``statuses``: of the answers; ``close``: stop sending after that, or reset the connection."""

    name: str
    data: bytes
    statuses: Collection[int] = BAD
    may_be_silent: bool = False  # no answer is needed while the request is incomplete
    close: str = ""  # "half": no more is sent, "reset": at once, without reading


def request(
    method: str = "GET", path: str = "/healthz", *lines: str, body: bytes = b"", host: str = "localhost"
) -> bytes:
    """An HTTP/1.1 request."""
    head = "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *lines])
    return f"{head}\r\n\r\n".encode("latin-1") + body


def exchanges() -> Iterator[Exchange]:
    """Every malformed, lying or cut-off request."""
    yield from _malformed()
    yield from _headers()
    yield from _lengths()
    yield from _chunks()
    yield from _pipelines()
    yield from _cut_off()


def _malformed() -> Iterator[Exchange]:
    ok = (200, *BAD)
    lines: dict[str, bytes] = {
        "random bytes": bytes(range(256)) * 4,
        "zeros": bytes(1000),
        "TLS": CLIENT_HELLO,
        "SSH": b"SSH-2.0-OpenSSH_9.9\r\n",
        "Redis": b"*1\r\n$4\r\nPING\r\n\r\n",
        "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        "proxy protocol": b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + request(),
        "binary proxy protocol": b"\r\n\r\n\x00\r\nQUIT\n" + bytes(20),
        "no version": b"GET /healthz\r\n\r\n",
        "no path": b"GET HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "no method": b" /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "version 1.10": b"GET /healthz HTTP/1.10\r\nHost: localhost\r\n\r\n",
        "another protocol": b"GET /healthz FTP/1.1\r\nHost: localhost\r\n\r\n",
        "a tab": b"GET\t/healthz\tHTTP/1.1\r\nHost: localhost\r\n\r\n",
        "a NUL in the path": b"GET /heal\0thz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "bytes in the path": b"GET /\xff\xfe\xfd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "a NUL in the method": b"G\0ET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "a long method": b"A" * 70_000 + b" /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "CR alone": b"GET /healthz HTTP/1.1\rHost: localhost\r\r",
    }
    for name, data in lines.items():
        yield Exchange(name, data, close="half")
    yield Exchange("two spaces", b"GET  /healthz  HTTP/1.1\r\nHost: localhost\r\n\r\n", ok, close="half")
    yield Exchange("LF alone", b"GET /healthz HTTP/1.1\nHost: localhost\n\n", ok, close="half")
    for version in ("2.0", "9.9"):
        data = f"GET /healthz HTTP/{version}\r\nHost: localhost\r\n\r\n".encode()
        yield Exchange(f"version {version}", data, ok)
    yield Exchange("HTTP/1.0", b"GET /healthz HTTP/1.0\r\n\r\n", ok)
    yield Exchange("empty lines first", b"\r\n\r\n" + request(), ok, close="half")
    yield Exchange("absolute form", request(path="http://localhost/healthz"), ok)
    yield Exchange("absolute form, foreign", request(path="http://evil.example/v1/sweeps"), (*ok, 401))
    yield Exchange("authority form", request("CONNECT", "evil.example:443"), BAD)
    yield Exchange("asterisk form", request("OPTIONS", "*"), ok)
    yield Exchange("an unknown method", request("BREW"), BAD)
    yield Exchange("a method in lower case", request("get"), BAD)
    yield Exchange("TRACE", request("TRACE"), BAD)
    yield Exchange("a long path", request(path="/" + "a" * 60_000), BAD)
    yield Exchange("a very long path", request(path="/" + "a" * 2_000_000), BAD)
    yield Exchange("a long query", request(path="/healthz?" + "a=1&" * 12_000), ok)
    yield Exchange("a deep path", request(path="/v1" + "/.." * 10_000 + "/etc/passwd"), BAD)
    yield Exchange("escapes in the path", request(path="/%00%ff%zz%"), BAD)
    yield Exchange("WebSocket", request("GET", "/v1/sweeps", *WEB_SOCKET), (200, *BAD, 403))
    yield Exchange("WebSocket elsewhere", request("GET", "/nowhere", *WEB_SOCKET), (*BAD, 403))
    yield Exchange("h2c", request("GET", "/healthz", *H2C), ok)


H2C = ("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")
WEB_SOCKET = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


def _headers() -> Iterator[Exchange]:
    ok = (200, *BAD)
    for name, line in {
        "no colon": "Nonsense",
        "no name": ": value",
        "a space before the colon": "X-A : b",
        "a folded line": "X-A: b\r\n c",
        "a NUL": "X-A: b\0c",
        "a lone CR": "X-A: b\rc",
        "bytes": "X-\xff: \xfe",
        "two hosts": "Host: evil.example",
        "an empty host": "Host:",
        "a header line that is a request": "GET /v1/sweeps HTTP/1.1",
        "a long name": "X-" + "a" * 60_000 + ": b",
        "a bad range": "Range: bytes=9-1,-,x-y",
        "many ranges": "Range: bytes=" + ",".join(f"{i}-{i}" for i in range(5_000)),
        "a bad date": "If-Modified-Since: yesterday",
        "many etags": "If-None-Match: " + ", ".join(f'"{i}"' for i in range(5_000)),
        "a bad accept": "Accept: " + "*/*;q=9,," * 500,
        "a bad encoding": "Accept-Encoding: " + "gzip;q=1e999," * 500,
        "a bad cookie": "Cookie: " + ";" * 10_000,
        "an odd connection": "Connection: close, keep-alive, upgrade, ,",
        "an odd expectation": "Expect: 200-maybe",
        "a long request id": "X-Request-ID: " + "a" * 20_000,
        "a line break in the request id": "X-Request-ID: a%0d%0aSet-Cookie: b",
        "an event id of 5,000 digits": "Last-Event-ID: " + "9" * 5_000,
    }.items():
        yield Exchange(name, request("GET", "/healthz", line), ok, close="half")
    yield Exchange("a header of 60 KB", request("GET", "/healthz", "X-A: " + "a" * 60_000), ok)
    yield Exchange("a header of 8 MB", request("GET", "/healthz", "X-A: " + "a" * 8_000_000), BAD)
    yield Exchange("1,000 headers", request("GET", "/healthz", *[f"X-{i}: {i}" for i in range(1_000)]), ok)
    yield Exchange("200,000 headers", request("GET", "/healthz", *[f"X-{i}: {i}" for i in range(200_000)]), BAD)
    yield Exchange("no host", b"GET /v1/sweeps HTTP/1.1\r\n\r\n", NO_TOKEN)
    for host in ("[", "[::1", "a b", "localhost:99999999", "localhost:x", "%00", "\xff"):
        yield Exchange(f"host {host!a}", request("GET", "/v1/sweeps", host=host), (200, *NO_TOKEN), close="half")


def _lengths() -> Iterator[Exchange]:
    body = b'{"sql": "SELECT 1"}'
    for name, lines in {
        "negative": ["Content-Length: -1"],
        "with a plus": ["Content-Length: +19"],
        "not a number": ["Content-Length: many"],
        "hexadecimal": ["Content-Length: 0x13"],
        "empty": ["Content-Length:"],
        "a list": ["Content-Length: 19, 20"],
        "two that differ": ["Content-Length: 19", "Content-Length: 5"],
        "with chunks": ["Content-Length: 19", CHUNKED],
        "with an odd encoding": ["Content-Length: 19", "Transfer-Encoding: xchunked"],
        "of 30 digits": ["Content-Length: 1" + "0" * 30],
        "of 5,000 digits": ["Content-Length: 1" + "0" * 5_000],
        "in other digits": ["Content-Length: \xb2\xb3"],
    }.items():
        yield Exchange(
            f"length {name}", request("POST", "/v1/query", JSON, *lines, body=body), (200, *NO_TOKEN), close="half"
        )
    long, short = "Content-Length: 1000", "Content-Length: 3"
    yield Exchange(
        "a length beyond the body", request("POST", "/v1/query", JSON, long, body=body), NO_TOKEN, True, "half"
    )
    yield Exchange("a length within the body", request("POST", "/v1/query", JSON, short, body=body), NO_TOKEN)
    smuggled = request("GET", "/healthz")
    yield Exchange(
        "a request in the body of a GET", request("GET", "/healthz", "Content-Length: 0", body=smuggled), (200,)
    )
    yield Exchange("a body that a GET has", request("GET", "/healthz", "Content-Length: 19", body=body), (200, *BAD))
    yield Exchange("5 GB announced", request("POST", "/v1/sweeps", JSON, "Content-Length: 5000000000"), NO_TOKEN, True)
    expecting = request("POST", "/v1/sweeps", JSON, "Content-Length: 5000000000", "Expect: 100-continue")
    yield Exchange("5 GB announced, with an expectation", expecting, (100, *NO_TOKEN))
    upload = request("POST", "/v1/checkpoints", BINARY, "Content-Length: 5000000000")
    yield Exchange("5 GB of checkpoint announced", upload, NO_TOKEN, True)


def _chunks() -> Iterator[Exchange]:
    lines = (JSON, CHUNKED)
    for name, body in {
        "not a size": b"zz\r\nabc\r\n0\r\n\r\n",
        "a negative size": b"-3\r\nabc\r\n0\r\n\r\n",
        "a huge size": b"ffffffffffffffffff\r\nabc",
        "0x": b"0x3\r\nabc\r\n0\r\n\r\n",
        "an underscore": b"1_0\r\nabcabcabcabcabca\r\n0\r\n\r\n",
        "no line end": b"3abc0",
        "too much data": b"3\r\nabcdef\r\n0\r\n\r\n",
        "a long extension": b"3;" + b"a" * 100_000 + b"\r\nabc\r\n0\r\n\r\n",
        "a long size": b"0" * 100_000 + b"3\r\nabc\r\n0\r\n\r\n",
        "many trailers": b"0\r\n" + b"X-A: b\r\n" * 50_000 + b"\r\n",
        "a bad trailer": b"0\r\nnonsense\r\n\r\n",
        "100,000 chunks of a byte": b"1\r\na\r\n" * 100_000 + b"0\r\n\r\n",
    }.items():
        yield Exchange(f"chunks: {name}", request("POST", "/v1/query", *lines, body=body), NO_TOKEN, close="half")
    yield Exchange("chunks: no end", request("POST", "/v1/query", *lines, body=b"3\r\nabc\r\n"), NO_TOKEN, True, "half")
    for encoding in ("gzip", "gzip, chunked", "chunked, chunked", "identity", "chunked;q=1", " chunked", "CHUNKED"):
        data = request("POST", "/v1/query", JSON, f"Transfer-Encoding: {encoding}", body=b"0\r\n\r\n")
        yield Exchange(f"encoding {encoding}", data, NO_TOKEN, close="half")
    for encoding in ("gzip", "br", "deflate"):
        lines = (JSON, f"Content-Encoding: {encoding}", "Content-Length: 9")
        data = request("POST", "/v1/query", *lines, body=bytes(9))
        yield Exchange(f"content encoding {encoding}", data, NO_TOKEN)


def _pipelines() -> Iterator[Exchange]:
    yield Exchange("100 requests at once", request() * 100, (200,))
    yield Exchange("2,000 requests at once", request() * 2_000, (200,))
    yield Exchange("a request, then nonsense", request() + bytes(range(200)) + b"\r\n\r\n", (200, *BAD), close="half")
    yield Exchange("requests after a close", request("GET", "/healthz", "Connection: close") + request() * 10, (200,))
    mixed = request("POST", "/v1/query", JSON, "Content-Length: 2", body=b"{}") + request()
    yield Exchange("a refused request, then a good one", mixed, (200, *NO_TOKEN))


def _cut_off() -> Iterator[Exchange]:
    part = "Content-Length: 1000"
    query = b'{"sql": "SELECT sum(range) FROM range(9000000000)"}'
    upload = request("POST", "/v1/checkpoints", BINARY, "Content-Length: 9999999", body=bytes(100_000))
    ends = {
        "at once": b"",
        "in the method": b"GE",
        "in the headers": b"GET /healthz HTTP/1.1\r\nHost: loc",
        "before the answer": request("GET", "/openapi.json"),
        "in the body": request("POST", "/v1/sweeps", JSON, part, body=b'{"name": "'),
        "in the body of a query": request("POST", "/v1/query", JSON, part, body=b'{"sql": "'),
        "in a chunk": request("POST", "/v1/plans", JSON, CHUNKED, body=b"10\r\nabc"),
        "in an upload": upload,
        "in a query": request("POST", "/v1/query", JSON, f"Content-Length: {len(query)}", body=query),
        "in pipelined requests": request("GET", "/openapi.json") * 50,
        "in a list": request("GET", "/v1/sweeps?limit=1000"),
    }
    for name, data in ends.items():
        for close in ("reset", "half"):
            yield Exchange(f"{close} {name}", data, (200, *NO_TOKEN), True, close)
