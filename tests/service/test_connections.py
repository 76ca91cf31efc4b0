"""Slow, silent, greedy and ill-mannered clients: their connections end, and others are answered meanwhile."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
import structlog
from service_fakes import Fakes, listening

from creditgrid.service import connections as limits
from creditgrid.service import server
from creditgrid.service.api.app import create_app
from creditgrid.service.connections import Connections
from creditgrid.service.settings import Settings

HOST = b"Host: 127.0.0.1\r\n"
HALF_A_HEAD = b"GET /v1/sweeps HTTP/1.1\r\n" + HOST + b"X: "
HALF_A_BODY = b"POST /v1/plans HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
HEALTHZ = b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"
SOON_S = 20.0

Connect = Callable[..., socket.socket]


@pytest.fixture
def connections() -> Connections:
    return Connections(1024)


@pytest.fixture
def url(fakes: Fakes, settings: Settings, connections: Connections, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The service, which looks at its connections ten times a second."""
    monkeypatch.setattr(server, "TICKS_PER_S", 1)
    with listening(create_app(fakes.services(), settings), connections) as found:
        yield found


@pytest.fixture
def connect(url: str) -> Iterator[Connect]:
    """Connects to the service, and sends something."""
    address = httpx.URL(url)
    with ExitStack() as stack:

        def open_connection(sent: bytes = b"") -> socket.socket:
            found = socket.create_connection((address.host, address.port or 0), timeout=SOON_S)
            stack.enter_context(found)
            found.sendall(sent)
            return found

        yield open_connection


@contextmanager
def few(connections: Connections, most: int, most_requests: int) -> Iterator[None]:
    """A small limit of connections."""
    connections.most, connections.most_requests = most, most_requests
    yield


def rest(connection: socket.socket) -> bytes:
    """All that comes until the service closes the connection."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def is_cut_off(connection: socket.socket, data: bytes) -> bool:
    """Whether the service closes a connection while the client sends this again and again."""
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        try:
            connection.sendall(data)
        except OSError:
            return True
        time.sleep(0.01)
    return False


def problem_of(answer: bytes, status: int) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), answer
    assert b"content-type: application/problem+json" in head
    document = json.loads(body)
    assert document["status"] == status
    return str(document["detail"])


def is_well(connection: socket.socket) -> bool:
    """Whether ``/healthz`` was answered, in one packet or in several."""
    found = b""
    while b"}" not in found and (part := connection.recv(1000)):
        found += part
    return found.startswith(b"HTTP/1.1 200") and found.endswith(b'{"status":"ok"}')


def is_open(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionResetError:
        return False
    finally:
        connection.settimeout(SOON_S)


def test_answers_do_not_wait_for_acknowledgements(connect: Connect, connections: Connections) -> None:
    assert is_well(connect(HEALTHZ))
    (found,) = connections
    accepted = found.transport.get_extra_info("socket")
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
def test_a_silent_connection_is_closed(connect: Connect, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(limits, "HEAD_S", 0.3)
    assert rest(connect(sent)) == b""


def test_a_head_that_trickles_is_ended(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_S", 0.3)
    assert is_cut_off(connect(HALF_A_HEAD), b"x")
    assert "head" in problem_of(rest(connect(HALF_A_HEAD)), 408)


def test_a_kept_connection_may_be_idle_for_a_while(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_S", 0.1)
    monkeypatch.setattr(limits, "IDLE_S", 1.0)
    connection = connect(HEALTHZ)
    start = time.monotonic()
    answer = rest(connection)
    assert time.monotonic() - start > 0.9
    assert answer.startswith(b"HTTP/1.1 200")


def test_bytes_after_an_answer_do_not_keep_a_connection(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IDLE_S", 0.3)
    refused = connect(b"POST /v1/plans HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 1000000\r\n\r\n")
    assert is_cut_off(refused, b"x")


def test_event_streams_stay(
    url: str, fakes: Fakes, connect: Connect, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HEAD_S", "IDLE_S", "UNREAD_S"):
        monkeypatch.setattr(limits, name, 0.2)
    sweep = httpx.post(f"{url}/v1/sweeps", json={"name": "one", "experiment": "linesearch"}).json()["id"]
    with httpx.stream("GET", f"{url}/v1/sweeps/{sweep}/events", timeout=SOON_S) as response:
        lines = response.iter_lines()
        next(lines)
        with few(connections, 4, 3):
            for _ in range(20):
                connect(HALF_A_HEAD)
            time.sleep(1)
        fakes.ledger.finish(sweep)
        assert any("sweep.finished" in line for line in lines)


@pytest.mark.parametrize("sent", [b"", HALF_A_HEAD, HALF_A_BODY], ids=["silent", "head", "body"])
def test_who_does_not_finish_a_request_makes_room(
    url: str, connect: Connect, connections: Connections, sent: bytes
) -> None:
    with few(connections, 8, 6), structlog.testing.capture_logs() as logs:
        held = []
        for _ in range(40):
            held.append(connect(sent))
            if sent:
                time.sleep(0.005)  # they arrive one after the other
            assert len(connections) <= 9
        for _ in range(5):
            assert httpx.get(f"{url}/healthz", timeout=SOON_S).status_code == 200
        assert sum(map(is_open, held)) <= 8
        assert not any(map(is_open, held[:20]))
    assert sum(entry["event"].startswith("connections were dropped") for entry in logs) == 1


def test_a_client_that_was_answered_is_kept_before_one_that_was_not(connect: Connect, connections: Connections) -> None:
    kept = connect(HEALTHZ)
    assert is_well(kept)
    with few(connections, 8, 6):
        for _ in range(30):
            connect(HALF_A_HEAD)
            time.sleep(0.005)
        kept.sendall(HEALTHZ)
        assert is_well(kept)


def test_a_flood_does_not_sort_all_connections_each_time(
    connect: Connect, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    sorts = 0
    inner = connections._sorted

    def counted(phases: tuple[limits.Phase, ...]) -> deque[limits.Connection]:
        nonlocal sorts
        sorts += 1
        return inner(phases)

    monkeypatch.setattr(connections, "_sorted", counted)
    with few(connections, 20, 10):
        for _ in range(100):
            connect(HALF_A_HEAD)
        assert is_well(connect(HEALTHZ))
    assert 1 <= sorts <= 20


def test_the_last_places_are_for_probes(url: str, connections: Connections) -> None:
    with few(connections, 8, 1), ExitStack() as stack:
        sweep = httpx.post(f"{url}/v1/sweeps", json={"name": "one", "experiment": "linesearch"}).json()["id"]
        stream = stack.enter_context(httpx.stream("GET", f"{url}/v1/sweeps/{sweep}/events", timeout=SOON_S))
        lines = stream.iter_lines()
        next(lines)
        refused = httpx.get(f"{url}/v1/sweeps", timeout=SOON_S)
        assert refused.status_code == 503
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.headers["retry-after"]
        for path in ("/healthz", "/readyz", "/metrics"):
            assert httpx.get(f"{url}{path}", timeout=SOON_S).status_code == 200


def test_a_client_that_does_not_read_is_cut_off(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UNREAD_S", 0.3)
    address = httpx.URL(url)
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect((address.host, address.port or 0))
        assert is_cut_off(reader, b"GET /openapi.json HTTP/1.1\r\n" + HOST + b"\r\n")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"NoColon\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"Host: evil.example\r\n\r\n",
        b"POST /v1/plans HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /v1/plans HTTP/1.1\r\n" + HOST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_a_problem(connect: Connect, sent: bytes) -> None:
    assert "HTTP" in problem_of(rest(connect(sent)), 400)


def test_a_long_head_is_refused(connect: Connect) -> None:
    connection = connect(HALF_A_HEAD)
    connection.sendall(b"y" * (limits.MAX_HEAD_BYTES + 1))
    assert "head" in problem_of(rest(connection), 431)
    assert "headers" in problem_of(rest(connect(HALF_A_HEAD + b"\r\nX: ".join([b"y"] * 300))), 431)


def test_requests_on_one_connection_are_bounded(connect: Connect) -> None:
    connection = connect(HEALTHZ * 10)
    answers = b""
    while answers.count(b'{"status":"ok"}') < 10:
        answers += connection.recv(65536)
    assert is_cut_off(connect(), HEALTHZ * 10_000)
    assert is_well(connect(HEALTHZ))


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1", 200), ("localhost:80", 200), ("evil.example", 400)])
def test_a_whole_url_names_the_host(connect: Connect, host: str, status: int) -> None:
    connection = connect(f"GET http://{host}/v1/sweeps HTTP/1.1\r\n".encode() + HOST + b"Connection: close\r\n\r\n")
    assert rest(connection).startswith(f"HTTP/1.1 {status} ".encode())


def test_an_upgrade_is_not_taken(connect: Connect) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
    assert is_well(connect(b"GET /healthz HTTP/1.1\r\n" + HOST + upgrade + b"\r\n"))


def test_a_stop_waits_for_no_body(fakes: Fakes, settings: Settings) -> None:
    with ExitStack() as stack, structlog.testing.capture_logs() as logs:
        with listening(create_app(fakes.services(), settings)) as url:
            address = httpx.URL(url)
            for sent in (b"", HALF_A_HEAD, HALF_A_BODY):
                held = stack.enter_context(socket.create_connection((address.host, address.port or 0)))
                held.sendall(sent)
            httpx.get(f"{url}/healthz")
            start = time.monotonic()
        assert time.monotonic() - start < 4  # of the 5 s that an answer has
    assert [entry["status"] for entry in logs if entry["event"] == "request"] == [200, 499]
    assert not any(entry.get("exc_info") for entry in logs)


@pytest.mark.parametrize("descriptors", [limits.LEAST_DESCRIPTORS, 256, 1024, 4096, 20_000, 65_536])
def test_connections_leave_descriptors_to_the_service(descriptors: int) -> None:
    found = Connections(descriptors)
    assert 4 <= found.most_requests < found.most <= limits.MAX_CONNECTIONS
    assert found.most + 4 * found.batch + limits.OWN_DESCRIPTORS[0] <= descriptors


@pytest.mark.parametrize(
    ("soft", "hard", "said"),
    [(256, 512, "512"), (300, 300, "300"), (64, 100, "ConflictError: this process may open 100 files")],
)
def test_the_limit_of_descriptors_is_raised(soft: int, hard: int, said: str) -> None:
    program = (
        "import resource; from creditgrid.service.connections import descriptor_limit\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); print(descriptor_limit())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert said in result.stdout + result.stderr
