"""Whether something listens at an address: checked before a call that would block for minutes without it."""

from __future__ import annotations

import socket

TIMEOUT_S = 2.0


def connection_error(address: str) -> str | None:
    """Why no connection to ``host:port`` can be made; None if one can, or if ``address`` has another form."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        return str(error)
    return None
