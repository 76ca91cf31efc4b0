"""The rows of named tokens; a name has at most one token that is accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from creditgrid.service.ledger.tables import tokens


def add_token(connection: sa.Connection, row: Mapping[str, Any]) -> sa.Row[Any]:
    """Write a token; returns its row."""
    connection.execute(tokens.insert().values(**row))
    return connection.execute(sa.select(tokens).where(tokens.c.hash == row["hash"])).one()


def end_token(connection: sa.Connection, token: int, at: float) -> sa.Row[Any]:
    """Note that a token was revoked; returns its row."""
    connection.execute(tokens.update().where(tokens.c.id == token).values(revoked_at=at))
    return connection.execute(sa.select(tokens).where(tokens.c.id == token)).one()


def note_uses(connection: sa.Connection, used: Mapping[int, float]) -> None:
    """Note when these tokens were last used."""
    for token, at in used.items():
        connection.execute(tokens.update().where(tokens.c.id == token).values(last_used_at=at))


def accepted_token(connection: sa.Connection, name: str, now: float) -> sa.Row[Any] | None:
    """The token of this name that is neither revoked nor expired."""
    in_time = tokens.c.expires_at.is_(None) | (tokens.c.expires_at > now)
    query = sa.select(tokens).where(tokens.c.name == name, tokens.c.revoked_at.is_(None), in_time)
    return connection.execute(query).one_or_none()


def all_tokens(connection: sa.Connection) -> Sequence[sa.Row[Any]]:
    """All tokens, the newest first, those that have ended too."""
    return connection.execute(sa.select(tokens).order_by(tokens.c.id.desc())).all()
