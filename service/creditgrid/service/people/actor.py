"""Who makes a request, and what they may change."""

from __future__ import annotations

from dataclasses import dataclass

from creditgrid.core.errors import ForbiddenError
from creditgrid.core.wire import Role


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one person may have; None is no limit."""

    open_cells: int | None = None
    priority: int | None = None


UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class Actor:
    """The holder of a token, in one request.

    ``name`` is the token's, and the owner of the sweeps that the actor submits; None in a service without tokens.
    ``request`` is the id of the request; None where there is no request. ``token`` is the number of a named token.
    """

    name: str | None
    role: Role
    request: str | None = None
    limits: Limits = UNLIMITED
    token: int | None = None

    def require(self, needed: Role) -> None:
        """Raise ForbiddenError if the role allows less than ``needed``."""
        if not self.role.allows(needed):
            raise ForbiddenError(
                f"this needs a token of role {needed}; the token of {self.name!r} has role {self.role}"
            )

    def require_owner(self, sweep: str, owner: str | None) -> None:
        """Raise ForbiddenError if the actor may not change this sweep: it is another person's."""
        if owner != self.name and not self.role.allows(Role.ADMIN):
            whose = "has no owner" if owner is None else f"belongs to {owner!r}"
            raise ForbiddenError(
                f"sweep {sweep} {whose}: to change it needs a token of role {Role.ADMIN}; the token of {self.name!r} "
                f"has role {self.role}"
            )


OPERATOR = Actor(None, Role.ADMIN)
"""Whoever runs the process: every request to a service without tokens."""
ANYONE = Actor(None, Role.READ)
"""Every request to a path that needs no token."""
