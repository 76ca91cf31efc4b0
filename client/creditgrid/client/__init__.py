"""The Python client and the command line.

::

    from creditgrid.client import Client

    with Client("http://127.0.0.1:8000") as client:
        sweep = client.submit("sweep.yaml").wait(progress=True)
        print(sweep.summary().verdicts)
        table = sweep.results().table

The names below are imported at their first use, because the command line's help needs no HTTP.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from creditgrid.client.client import Client
    from creditgrid.client.errors import (
        ApiError,
        CannotConnect,
        ClientError,
        Conflict,
        Forbidden,
        InvalidRequest,
        NotFound,
        SweepFailed,
        Unauthorised,
        WaitTimeout,
    )
    from creditgrid.client.local_service import LocalService
    from creditgrid.client.result import Result
    from creditgrid.client.sweep import Sweep

__all__ = [
    "ApiError",
    "CannotConnect",
    "Client",
    "ClientError",
    "Conflict",
    "Forbidden",
    "InvalidRequest",
    "LocalService",
    "NotFound",
    "Result",
    "Sweep",
    "SweepFailed",
    "Unauthorised",
    "WaitTimeout",
]

_MODULES = {"Client": "client", "LocalService": "local_service", "Result": "result", "Sweep": "sweep"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
