"""The rows of the audit log."""

from __future__ import annotations

from creditgrid.service.ledger.audit import add_entry, entries
from creditgrid.service.ledger.ledger import Ledger


def test_entries_come_newest_first_in_pages(ledger: Ledger) -> None:
    with ledger.write() as connection:
        for n in range(5):
            entry = {"at": float(n), "actor": "anna" if n % 2 else None, "request": None, "outcome": "done"}
            add_entry(connection, **entry, action="cancel", target=f"s{n}", detail="\0 and \udcff")
        first = entries(connection, None, None, None, 3)
        assert [found.target for found in first] == ["s4", "s3", "s2"]
        assert [found.target for found in entries(connection, None, None, first[-1].id, 3)] == ["s1", "s0"]
        assert [found.target for found in entries(connection, "anna", None, None, 9)] == ["s3", "s1"]
        assert [found.actor for found in entries(connection, None, "s4", None, 9)] == [None]
        assert first[0].detail == "\\x00 and \\udcff"
