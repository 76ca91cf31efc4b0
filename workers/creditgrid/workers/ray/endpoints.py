"""Whether anything listens at an address: asked before what would otherwise block for minutes."""

from __future__ import annotations

import socket

PATIENCE_S = 2.0


def refusal(address: str, patience: float = PATIENCE_S) -> str | None:
    """Why no connection to ``host:port`` can be made, or None where one can; what is no such address is not asked."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=patience).close()
    except (OSError, OverflowError) as error:
        return str(error)
    return None
