"""Which role each route needs, and what the audit log calls it. A route that is not here fails a test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.routing import compile_path

from creditgrid.core.wire import Role

READ, SUBMIT, ADMIN = Role.READ, Role.SUBMIT, Role.ADMIN


@dataclass(frozen=True, slots=True)
class Access:
    """What a request needs: ``action`` is what it would change, empty for one that changes nothing."""

    role: Role
    action: str = ""


ROUTES: Mapping[tuple[str, str], Access] = {
    ("GET", "/v1/sweeps"): Access(READ),
    ("GET", "/v1/sweeps/{sweep}"): Access(READ),
    ("GET", "/v1/sweeps/{sweep}/cells"): Access(READ),
    ("GET", "/v1/sweeps/{sweep}/tasks"): Access(READ),
    ("GET", "/v1/sweeps/{sweep}/failures"): Access(READ),
    ("GET", "/v1/sweeps/{sweep}/summary"): Access(READ),
    ("GET", "/v1/sweeps/{sweep}/logs"): Access(READ),
    ("GET", "/v1/sweeps/{sweep}/events"): Access(READ),
    ("GET", "/v1/sweeps/{sweep}/results"): Access(READ),
    ("GET", "/v1/sweeps/{sweep}/curves"): Access(READ),
    ("GET", "/v1/tasks/{key}"): Access(READ),
    ("GET", "/v1/tasks/{key}/logs"): Access(READ),
    ("GET", "/v1/artifacts/{key}"): Access(READ),
    ("GET", "/v1/artifacts/{key}/record"): Access(READ),
    ("GET", "/v1/experiments"): Access(READ),
    ("GET", "/v1/experiments/{name}"): Access(READ),
    ("POST", "/v1/plans"): Access(READ),
    ("GET", "/v1/submissions"): Access(READ),
    ("DELETE", "/v1/submissions/{submission}"): Access(SUBMIT, "stop planning"),
    ("POST", "/v1/query"): Access(READ),
    ("POST", "/v1/sweeps"): Access(SUBMIT, "submit"),
    # of one's own sweeps; ``control`` checks whose they are
    ("POST", "/v1/sweeps/{sweep}/cancel"): Access(SUBMIT, "cancel"),
    ("POST", "/v1/sweeps/{sweep}/pause"): Access(SUBMIT, "pause"),
    ("POST", "/v1/sweeps/{sweep}/resume"): Access(SUBMIT, "resume"),
    ("POST", "/v1/sweeps/{sweep}/retry"): Access(SUBMIT, "retry"),
    ("POST", "/v1/sweeps/{sweep}/extend"): Access(SUBMIT, "extend"),
    ("POST", "/v1/checkpoints"): Access(SUBMIT, "import"),
    ("POST", "/v1/code"): Access(SUBMIT, "code"),
    ("GET", "/v1/code/{sha256}"): Access(READ),
    ("GET", "/v1/code/{sha256}/files/{path:path}"): Access(READ),
    ("POST", "/v1/gc"): Access(ADMIN, "gc"),
    ("GET", "/v1/tokens"): Access(ADMIN),
    ("POST", "/v1/tokens"): Access(ADMIN, "token create"),
    ("DELETE", "/v1/tokens/{name}"): Access(ADMIN, "token revoke"),
    ("GET", "/v1/audit"): Access(ADMIN),
}
"""By method and path, as the routes declare them."""

_PATTERNS = [(method, compile_path(path)[0], access) for (method, path), access in ROUTES.items()]


def find_access(method: str, path: str) -> tuple[Access, str] | None:
    """What a request needs, and the target that its path names; None where no route answers it."""
    for known, pattern, access in _PATTERNS:
        if known == method and (found := pattern.match(path)) is not None:
            return access, next(iter(found.groupdict().values()), "")
    return None


def describe_roles(document: dict[str, Any]) -> None:
    """Say in an OpenAPI document which role each operation needs: in its text, and as ``x-role``."""
    for (method, path), access in ROUTES.items():
        operation = document["paths"][path.replace(":path}", "}")][method.lower()]
        operation["x-role"] = str(access.role)
        operation["description"] += f"\n\nWith tokens it needs the role `{access.role}`."
