"""The rows of named tokens."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.tokens import accepted_token, add_token, all_tokens, end_token, note_uses


def row(name: str, hash: str, **values: Any) -> dict[str, Any]:
    return {"name": name, "hash": hash, "role": "submit", "created_at": 1.0, **values}


def test_a_name_is_free_again_when_its_token_has_ended(ledger: Ledger) -> None:
    with ledger.write() as connection:
        first = add_token(connection, row("anna", "a", expires_at=50.0))
        assert accepted_token(connection, "anna", 49.0) == first
        assert accepted_token(connection, "anna", 50.0) is None
        second = add_token(connection, row("anna", "b"))
        assert accepted_token(connection, "anna", 51.0) == second
        assert end_token(connection, second.id, 52.0).revoked_at == 52.0
        assert accepted_token(connection, "anna", 53.0) is None
        assert [found.hash for found in all_tokens(connection)] == ["b", "a"]


def test_uses_are_noted(ledger: Ledger) -> None:
    with ledger.write() as connection:
        one, two = (add_token(connection, row(name, name)) for name in ("anna", "ben"))
        note_uses(connection, {two.id: 7.5})
        assert {found.name: found.last_used_at for found in all_tokens(connection)} == {"anna": None, "ben": 7.5}
        assert one.last_used_at is None


def test_two_tokens_never_have_one_hash(ledger: Ledger) -> None:
    with ledger.write() as connection:
        add_token(connection, row("anna", "a"))
    with pytest.raises(sa.exc.IntegrityError), ledger.write() as connection:
        add_token(connection, row("ben", "a"))
