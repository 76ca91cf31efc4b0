"""Whether the results table and the ledger belong together. The service asks once, when it starts.

A ledger older than the table takes rows for written that were not. One that is newer, or another one's, writes rows
twice.
"""

from __future__ import annotations

from creditgrid.service.ledger.integrity import AFTERWARDS, LedgerDamaged
from creditgrid.service.results.table import Results


def check_ledger(results: Results, ledger: str, started: int, written: int) -> None:
    """The table was written with this ledger, and holds the batches that the ledger notes as written.

    Args:
        ledger: the ledger's name, for messages.
        started: the last batch that the ledger has started.
        written: the last batch that it notes as written.

    Raises:
        LedgerDamaged: with which of both is older, or belongs to another service.
    """
    newest = results.newest()
    if newest is None and results.dataset() is not None:
        raise LedgerDamaged(
            f"the results in {results.path} were written with another ledger than {ledger}, which knows none of them "
            f"and would write their rows twice. Put the ledger back that belongs to them, or move {results.path} "
            f"away: {AFTERWARDS}"
        )
    if (newest or 0) > started:
        raise LedgerDamaged(
            f"the results in {results.path} hold batch {newest} and the ledger {ledger} has started {started}: it is "
            "an older copy, and would take rows for written that are not. Put the newest ledger back, or move it and "
            f"{results.path} away together: {AFTERWARDS}"
        )
    if (newest or 0) < written:
        raise LedgerDamaged(
            f"the ledger {ledger} notes batch {written} as written and the results in {results.path} "
            f"{'are missing' if newest is None else f'end with {newest}'}: they are an older copy, were removed, or "
            "belong to another ledger. Put the results back, or move both away "
            f"together: {AFTERWARDS}"
        )
