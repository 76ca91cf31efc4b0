"""More connections than the service has descriptors."""

from __future__ import annotations

import errno
import socket
import time

from .tally import Tally


def flood(address: tuple[str, int], count: int, seconds: float, tally: Tally, name: str, first: bytes = b"") -> None:
    """Open ``count`` connections that stay for ``seconds``; a refused one is an answer too."""
    opened: list[socket.socket] = []
    started = time.perf_counter()
    try:
        for _ in range(count):
            connection = socket.socket()
            connection.settimeout(1.0)
            try:
                connection.connect(address)
                if first:
                    connection.send(first)
                opened.append(connection)
            except OSError as error:
                connection.close()
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise
        time.sleep(seconds)
    finally:
        for connection in opened:
            connection.close()
    tally.attempt("floods", name, "opened", time.perf_counter() - started, len(opened))
    if count > len(opened):
        tally.attempt("floods", name, "refused", 0.0, count - len(opened))
