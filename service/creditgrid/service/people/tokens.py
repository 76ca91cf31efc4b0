"""Named tokens: the ledger has the hash of each, and memory a map of those that are accepted.

A token is looked up by its SHA-256, so a comparison shows nothing of other tokens, and a copy of the ledger holds
none. A lookup reads memory alone: ``create`` and ``revoke`` replace the map, ``flush`` writes when tokens were used.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from creditgrid.core.errors import ConflictError, NotFoundError
from creditgrid.core.wire import NewToken, Role, TokenRequest, TokenView
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.tokens import accepted_token, add_token, all_tokens, end_token, note_uses
from creditgrid.service.people.actor import UNLIMITED, Actor, Limits
from creditgrid.service.people.audit import record

PREFIX = "cg_"
SECRET_BYTES = 32
ADMIN = "admin"
"""The name of the token that the settings give."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token that is not revoked."""

    actor: Actor
    expires_at: float | None

    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and self.expires_at <= time.time()


class Tokens:
    """The named tokens of one ledger; ``limits`` are those of the role ``submit``, where a token has no others."""

    def __init__(self, ledger: Ledger, limits: Limits = UNLIMITED) -> None:
        self._ledger, self._limits = ledger, limits
        self._changing = threading.Lock()
        self._used: dict[int, float] = {}  # by id: when it was last used, not yet written
        self._by_hash: Mapping[str, Token] = {}
        self.exist = False
        """Whether a token was ever created: then every request needs one, also when all have ended."""
        with ledger.read() as connection:
            self._keep(all_tokens(connection))

    def find(self, text: str) -> Token | None:
        """The token with this text, also if it has expired; None for a wrong or revoked one."""
        found = self._by_hash.get(digest(text))
        if found is not None and found.actor.token is not None and not found.expired():
            self._used[found.actor.token] = time.time()
        return found

    def accepts(self, actor: Actor) -> bool:
        """Whether the token of an actor is still accepted, later than at the start of the request."""
        if actor.token is None:
            return True
        return any(known.actor.token == actor.token and not known.expired() for known in self._by_hash.values())

    def all(self) -> list[TokenView]:
        """All tokens, the newest first, those that have ended too."""
        with self._ledger.read() as connection:
            return [self._view(row) for row in all_tokens(connection)]

    def create(self, request: TokenRequest, actor: Actor) -> NewToken:
        """A new token; its text is returned once and kept nowhere.

        Raises:
            ConflictError: the name has a token, or the service has no token of an administrator.
        """
        if actor.name is None:
            raise ConflictError(
                "this service has no token of an administrator, so nobody could manage others: start it with "
                "--token-file or CREDITGRID_TOKEN first"
            )
        text = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        now = time.time()
        row: dict[str, Any] = {
            "name": request.name,
            "hash": digest(text),
            "role": request.role,
            "max_open_cells": request.max_open_cells,
            "max_priority": request.max_priority,
            "created_at": now,
            "expires_at": None if request.expires_s is None else now + request.expires_s,
        }
        with self._changing:
            with self._ledger.write() as connection:
                if request.name.lower() == ADMIN or accepted_token(connection, request.name, now) is not None:
                    raise ConflictError(f"there is a token {request.name!r}: choose another name, or revoke it first")
                made = add_token(connection, row)
                record(connection, actor, "token create", request.name, _described(row))
                known = all_tokens(connection)
            self._keep(known)
        return NewToken(**self._view(made).model_dump(), token=text)

    def revoke(self, name: str, actor: Actor) -> TokenView:
        """End a token: from now on no request with it is accepted.

        Raises:
            NotFoundError: no token has this name, apart from revoked and expired ones.
        """
        with self._changing:
            with self._ledger.write() as connection:
                row = accepted_token(connection, name, time.time())
                if row is None:
                    raise NotFoundError(f"there is no token {name!r} to revoke")
                ended = end_token(connection, row.id, time.time())
                record(connection, actor, "token revoke", name)
                known = all_tokens(connection)
            self._keep(known)
        return self._view(ended)

    def flush(self) -> None:
        """Write when tokens were last used.

        Raises:
            OperationalError: the ledger cannot be written now.
        """
        used = dict(self._used)
        if not used:
            return
        with self._ledger.write() as connection:
            note_uses(connection, used)
        for id, at in used.items():
            if self._used.get(id) == at:
                del self._used[id]

    def _keep(self, rows: Sequence[sa.Row[Any]]) -> None:
        kept = [row for row in rows if row.revoked_at is None]
        self._by_hash = {row.hash: Token(self._actor(row), row.expires_at) for row in kept}
        self.exist = bool(rows)

    def _actor(self, row: sa.Row[Any]) -> Actor:
        role = Role(row.role)
        usual = UNLIMITED if role is Role.ADMIN else self._limits
        cells = usual.open_cells if row.max_open_cells is None else row.max_open_cells
        priority = usual.priority if row.max_priority is None else row.max_priority
        return Actor(row.name, role, limits=Limits(cells, priority), token=row.id)

    def _view(self, row: sa.Row[Any]) -> TokenView:
        limits = self._actor(row).limits
        return TokenView(
            name=row.name,
            role=Role(row.role),
            created_at=_utc(row.created_at),
            expires_at=_utc(row.expires_at),
            last_used_at=_utc(self._used.get(row.id, row.last_used_at)),
            revoked_at=_utc(row.revoked_at),
            max_open_cells=limits.open_cells,
            max_priority=limits.priority,
        )


def digest(text: str) -> str:
    """The SHA-256 of a token, which stands for it."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _described(row: Mapping[str, Any]) -> str:
    expires = _utc(row["expires_at"])
    parts = [f"role {row['role']}", "no expiry" if expires is None else f"expires at {expires:%Y-%m-%d %H:%M} UTC"]
    if row["max_open_cells"] is not None:
        parts.append(f"at most {row['max_open_cells']:,} open cells")
    if row["max_priority"] is not None:
        parts.append(f"priority at most {row['max_priority']}")
    return ", ".join(parts)


def _utc(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
