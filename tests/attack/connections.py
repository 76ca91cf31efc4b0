"""Sends the malformed requests, each on a connection of its own, and judges the answers."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time

from .malformed import Exchange, exchanges
from .tally import Tally

Address = tuple[str, int]

CORPUS = "connections"
ANSWER_S = 5.0
"""A malformed request is answered, or its connection closed, by then."""
SILENT_S = 1.0
"""So long the answer is waited for where silence is allowed."""


def attack(address: Address, tally: Tally) -> None:
    """Send every exchange, each on its own connection."""
    for exchange in exchanges():
        started = time.perf_counter()
        try:
            answer, closed = _exchange(address, exchange)
        except OSError as error:
            tally.attempt(CORPUS, exchange.name, "no connection", time.perf_counter() - started)
            tally.fell_short(CORPUS, "no connection", f"{exchange.name}: {error}")
            continue
        seconds = time.perf_counter() - started
        _judge(exchange, answer, closed, seconds, tally)


def _exchange(address: Address, exchange: Exchange) -> tuple[bytes, bool]:
    """What the service answered within a limit, and whether it closed the connection."""
    with socket.create_connection(address, timeout=ANSWER_S) as connection:
        sender = threading.Thread(target=_send, args=(connection, exchange.data, exchange.close == "half"))
        sender.start()
        try:
            if exchange.close == "reset":
                sender.join()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return b"", True
            return _receive(connection, exchange)
        finally:
            sender.join()


def _send(connection: socket.socket, data: bytes, half: bool) -> None:
    try:
        connection.sendall(data)
        if half:
            connection.shutdown(socket.SHUT_WR)
    except OSError:  # the service has closed the connection, as it may
        return


def _receive(connection: socket.socket, exchange: Exchange) -> tuple[bytes, bool]:
    received = bytearray()
    wanted = exchange.data.count(b"HTTP/1.1\r\nHost: localhost\r\n\r\n") if exchange.statuses == (200,) else 1
    deadline = time.monotonic() + (SILENT_S if exchange.may_be_silent else ANSWER_S)
    while time.monotonic() < deadline:
        readable, _, _ = select.select([connection], [], [], 0.25)
        if not readable:
            if received.count(b"HTTP/1.1 ") >= wanted:
                return bytes(received), False
            continue
        try:
            data = connection.recv(2**16)
        except ConnectionResetError:
            return bytes(received), True
        if not data:
            return bytes(received), True
        received += data
    return bytes(received), False


def _judge(exchange: Exchange, answer: bytes, closed: bool, seconds: float, tally: Tally) -> None:
    head, _, rest = answer.partition(b"\r\n")
    status = int(head[9:12]) if head.startswith(b"HTTP/1.1 ") and head[9:12].isdigit() else None
    tally.attempt(CORPUS, exchange.name, status or ("closed" if closed else "silence"), seconds)
    if status is None:
        if answer:
            tally.fell_short(CORPUS, "an answer that is not HTTP", f"{exchange.name}: {answer[:80]!r}")
        elif not closed and not exchange.may_be_silent:
            tally.fell_short(CORPUS, "neither answered nor closed", f"{exchange.name}: after {seconds:.1f} s")
        return
    if status >= 500 and status not in exchange.statuses:
        tally.fell_short(CORPUS, f"status {status}", f"{exchange.name}: {rest[:300]!r}")
    elif status not in exchange.statuses:
        tally.fell_short(CORPUS, "unexpected status", f"{exchange.name}: {status}: {answer[:200]!r}")
    elif status >= 400 and b"application/problem+json" not in answer:
        tally.fell_short(CORPUS, "error that is no problem document", f"{exchange.name}: {answer[:200]!r}")
